"""The parts of its limit at which the worker's use of memory is answered. Pure. They are apart from `ladder.py`, which acts on
them, for `status`, which colours a figure by them and has to be quick.
"""

from __future__ import annotations

STOP_GROWING_USE = 0.85
SHRINK_USE = 0.90
HOLD_USE = 0.95
