"""The process that trains: the link to the supervisor, the session, and one readable training file, `train.py`.

Nothing here decides about the machine; orders come from the supervisor. The link and the session import no torch: they are up
before that takes its seconds. To be read in this order: `__main__.py`, `link.py`, `session.py`, `train.py`.

`plan/` says how a step is cut, `compute/` how a gradient is made, `tasks/` from what. Beside `train.py`: `training.py` (what a
life trains with), `saving.py` (when it saves, and where a run begins), `state.py` (state to checkpoint and back), `audit.py`
(what each step did), `exhaustion.py` (when memory ran out), `micro_batch_limit.py` (when the supervisor asks for less),
`memory.py` and `hardware.py`.
"""
