"""The process that trains: the link to the supervisor, the session, and one readable training file, `train.py`.

Nothing here decides about the machine; orders come from the supervisor. The link and the session import no torch: they are up
before that takes its seconds. To be read in this order: `__main__.py`, `link.py`, `session.py`, `train.py`.

Pure: `batches.py` (which rows which step sees, and the cuts). With a file each: `plan.py` (cuts, journalled), `audit.py` (what
each step did). With torch: `hardware.py`, `state.py` (state to checkpoint and back), `checkpoints.py` (when, and where a run
begins), `training.py` (what a life trains with), `randomness.py`.
"""
