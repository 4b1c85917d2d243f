"""Where the worker's use of memory is answered, and a GPU's heat. Pure. The figures are apart from `ladder.py` and
`thresholds.py`, which act on them, for `status`, which colours by them and has to be quick.
"""

from __future__ import annotations

STOP_GROWING_USE = 0.85
SHRINK_USE = 0.90
HOLD_USE = 0.95
COLOUR_BELOW_C, HOLD_BELOW_C = 12.0, 5.0
"""So far below the temperature at which a device slows itself down a figure has a colour, and the worker is held."""
