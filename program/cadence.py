"""When the next checkpoint is due: what a save costs, weighed against what a death would. Pure; `now_s` is an argument.

Young (1974): with saves of C seconds and a mean time M between deaths, an interval of sqrt(2·C·M) loses least in all; Daly
(2006) refines it where C is not small against M. Two bounds lie around that: saving takes at most 1 % of the time, and no
more than ten minutes of work are ever at risk. Where the two contradict each other (a save of more than six seconds), the
ten minutes win. The built-in training (`worker/saving.py`) and programs of a person's own (`session.py`) save alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

MOST_AT_RISK_S = 600.0
OVERHEAD_FRACTION = 0.01
FIRST_SAVE_S = 60.0
"""A run's first save comes early: until then its cost is unknown, and so is whether the disk takes it at all."""
ASSUMED_LIFE_S = 6 * 3600.0
"""The mean time between deaths that is assumed before anything is known of this machine: one death in an evening and a night.
It counts as one observed death."""


class Experience(NamedTuple):
    """What this run has seen so far. All durations are monotonic seconds; time that stood still (paused) is not counted."""

    save_s: float | None
    """What the last save cost, as measured. None means that none was made yet."""
    trained_s: float
    """Training time of the run in all its lives."""
    deaths: int
    """How many lives of the worker ended without anybody having asked for it."""

    @property
    def mean_life_s(self) -> float:
        """Mean time between deaths, the assumption counted in as one: it fades as the run lives (or dies)."""
        return (ASSUMED_LIFE_S + self.trained_s) / (1 + self.deaths)


def interval_s(experience: Experience, every_s: float | None = None) -> float:
    """Seconds of work between two checkpoints. `every_s` is the user's own choice and stands as it is. None means `auto`."""
    if every_s is not None:
        return every_s
    if experience.save_s is None:
        return FIRST_SAVE_S
    cheapest_s = experience.save_s * (1 / OVERHEAD_FRACTION - 1)
    return min(MOST_AT_RISK_S, max(cheapest_s, young_daly_s(experience.save_s, experience.mean_life_s)))


def young_daly_s(save_s: float, mean_life_s: float) -> float:
    """The interval that loses least, after Daly's higher-order estimate (Future Generation Computer Systems 22, eq. 37)."""
    if save_s >= 2 * mean_life_s:
        return mean_life_s
    ratio = math.sqrt(save_s / (2 * mean_life_s))
    return math.sqrt(2 * save_s * mean_life_s) * (1 + ratio / 3 + ratio * ratio / 9) - save_s


def is_due(now_s: float, saved_s: float, experience: Experience, every_s: float | None = None) -> bool:
    """Whether to save now. `saved_s` is when the work since was begun: the end of the last save, or the start."""
    return now_s - saved_s >= interval_s(experience, every_s)
