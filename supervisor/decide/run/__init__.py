"""The life of a run: events in, actions out. `lifecycle.py` has the events and joins the others."""
