"""The process that trains: the link to the supervisor, the session, and one readable training file, `train.py`.

Nothing here decides about the machine; orders come from the supervisor. Only `train.py`, `state.py`, `randomness.py` and the
tasks import torch; what the link needs must be up before that takes its seconds.
"""
