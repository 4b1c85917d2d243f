"""The life of a run: events in, actions out. `lifecycle.py` joins the others."""
