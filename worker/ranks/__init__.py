"""Several ranks: processes of one machine that compute a step together. What a person has to know is in docs/ranks.md.

The worker is rank 0. It starts the others (`first.py`), tells each what to compute, and does all else alone: orders,
checkpoints, evaluations, the audit, reports. The others (`__main__.py`, `other.py`) compute their part of each step, cut as
their own plan has it, and change their parameters as rank 0 changes its own. Only where all are known to be ready do they meet
in a collective (`adding.py`), so none waits in one, and no pause is too long for it.
"""
