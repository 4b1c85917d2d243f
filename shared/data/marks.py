"""Columns that say of each row whether it is meant: rejected by whoever looked at it, or of another part. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from memsup.shared.data.layout import Part, is_part, part_of

REJECTED = frozenset(
    ("reject", "rejected", "discard", "discarded", "ignore", "ignored", "skip", "skipped", "flagged", "cancelled")
)
_VERDICTS = REJECTED | {
    "accept",
    "accepted",
    "approve",
    "approved",
    "submitted",
    "valid",
    "validated",
    "ok",
    "keep",
    "pending",
    "draft",
}
"""What programs for labelling write beside a row: whether its label holds."""
_SWITCH = re.compile(r"(?:is|in)[_ ]?(?P<part>train\w*|val\w*|dev\w*|test\w*|eval\w*|holdout)", re.IGNORECASE)
"""The name of a column that is true for the rows of one part, such as `is_valid`."""
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def mark_of(column: str, value: str) -> str | None:
    """What a value of `column` says of its row, in few words. It is None where it says nothing of the kind."""
    said = value.strip().casefold()
    if switch := _SWITCH.fullmatch(column.strip()):
        return f"{switch['part']} {said}".casefold() if said in _TRUE + _FALSE else None
    return said if said in _VERDICTS or is_part(said) else None


def are_marks(column: str, values: Iterable[str]) -> bool:
    """Whether each value of `column`, but the empty ones, says that its row is meant or not, or to which part it belongs."""
    marks = [mark_of(column, value) for value in set(values) if value]
    return bool(marks) and (all(mark in _VERDICTS for mark in marks) or all(mark and part_said(mark) for mark in marks))


def part_said(mark: str) -> Part | None:
    """The part that a mark says. It is None for a mark of another kind."""
    part, _, switch = mark.partition(" ")
    if switch in _TRUE + _FALSE and switch:
        of_switch = part_of(part) or Part.TEST
        is_train = (of_switch is Part.TRAIN) == (switch in _TRUE)
        return Part.TRAIN if is_train else of_switch if of_switch is not Part.TRAIN else Part.TEST
    return part_of(mark) if is_part(mark) else None
