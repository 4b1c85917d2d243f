"""What happens in a step that is computed in parts (`step.py`), as whoever has it computed is told."""

from __future__ import annotations

from typing import NamedTuple, Union

from memsup.cut_probe import Refusal


class RanOut(NamedTuple):
    """Memory ran out. What was computed of the window was dropped."""

    where: str
    """The part of the work: forward, backward or evaluate."""
    device: str
    tokens_before: int
    """Rows × padded length of what did not fit."""
    tokens_after: int | None
    """What is not exceeded from now on. None means that nothing smaller can be tried, so the error is raised."""
    detail: str


class Refused(NamedTuple):
    """No step of this program is computed in parts."""

    refusal: Refusal
    detail: str


class Resized(NamedTuple):
    """Parts are of another size by themselves."""

    tokens_before: int | None
    """Rows × padded length. None means no bound."""
    tokens_after: int | None
    cause: str
    """A clause for people."""


class Begins(NamedTuple):
    """A part is about to be computed that is larger than any before, below a limit: if it is the last that is heard of this
    process, it is known what did not fit.
    """

    rows: int
    """The rows of its micro-batch."""
    part_rows: int
    part_tokens: int
    """Rows × padded length of the part."""


Event = Union[RanOut, Refused, Resized, Begins]
