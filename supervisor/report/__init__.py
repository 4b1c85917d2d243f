"""`memsup report`: the night on one page. `gather.py` reads, `account.py` reckons, `page.py` (with `plots.py`, `style.py`) and
`terminal.py` show. Nothing here talks to a supervisor or a network, and nothing changes the run.
"""
