"""The clocks, in one place: durations from a clock that nobody can set, dates from the one that people read.

`now` is passed to everything pure; only the loops call these.
"""

from __future__ import annotations

import time

monotonic_s = time.monotonic
"""Seconds that never jump; stands still while the machine sleeps."""

unix_s = time.time
"""Seconds since 1970, for records that people and other machines read; may jump."""
