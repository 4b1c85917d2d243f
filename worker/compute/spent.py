"""What a step's time is spent on, noted where it is spent, in the few steps that are looked at (`worker/computing.py`).

In all other steps nothing is noted, at the price of one look at a variable. Lanes note at the same time; seconds of one that
computes beside another count half, since it has half of the threads.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


class Part(enum.Enum):
    """What time is spent on, but for the products of the linear layers."""

    ATTENTION = enum.auto()
    """Scores and weights of tokens for each other, and what is summed by them; forward and backward."""
    OPTIMIZER = enum.auto()
    """Adding the lanes' gradients, clipping, and the optimizer's step."""
    LOADING = enum.auto()
    """Making tensors of rows."""
    WAITING = enum.auto()
    """A lane that has ended waits for the other."""


@dataclass
class Spent:
    """What is noted in one step."""

    notes: list[tuple[Part, float]] = field(default_factory=list)
    """Seconds of all threads together. A list's `append` is safe from several threads."""
    padded_tokens: list[int] = field(default_factory=list)
    """Of each part of a micro-batch: rows × padded length."""
    in_use: int = 1
    """How many lanes compute now."""

    def seconds(self, part: Part) -> float:
        """The seconds spent on `part`."""
        return sum(seconds for noted, seconds in self.notes if noted is part)

    @contextlib.contextmanager
    def side_by_side(self, count: int) -> Iterator[list[float]]:
        """Stands around so many lanes that compute; takes when each has ended."""
        self.in_use, ended_s = count, list[float]()
        try:
            yield ended_s
        finally:
            self.in_use = 1
            self.notes += [(Part.WAITING, (max(ended_s) - one_s) / count) for one_s in ended_s]


_noted: Spent | None = None


def noted() -> Spent | None:
    """What is noted now. None means that nothing is."""
    return _noted


@contextlib.contextmanager
def note() -> Iterator[Spent]:
    """Notes what is spent inside, by any thread."""
    global _noted
    _noted = Spent()
    try:
        yield _noted
    finally:
        _noted = None


@contextlib.contextmanager
def spent_on(part: Part) -> Iterator[None]:
    """Notes the time inside as spent on `part`, where anything is noted."""
    into = _noted
    if into is None:
        yield
        return
    began_s = time.perf_counter()
    try:
        yield
    finally:
        into.notes.append((part, (time.perf_counter() - began_s) / into.in_use))
