"""`memsup report`: the night on one page. `gather.py` reads; `account.py` reckons, with `axis.py` and `interventions.py`;
`page.py`, with `plots.py` and `style.py`, and `terminal.py` show. Nothing here talks to a supervisor or a network, and nothing
changes the run.
"""
