"""Columns of 0 and 1, of which each is a label that a text has or has not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ON, _OFF = frozenset(("1", "1.0", "true")), frozenset(("0", "0.0", "false"))
FEWEST = 2
"""So many such columns and more are several labels; one is a class."""


def is_on(cell: str) -> bool | None:
    """Whether a cell says that its row has the label. None means that it says neither."""
    folded = cell.strip().casefold()
    return True if folded in _ON else False if folded in _OFF else None


def switches(seen: Mapping[str, Sequence[str]]) -> list[str]:
    """Of columns with their values those that hold 0 and 1 alone, or one of the two."""
    return [name for name, values in seen.items() if values and all(is_on(value) is not None for value in values)]


def is_multi_hot(cells: Sequence[str]) -> bool:
    """Whether a list is one of switches in place of one of labels: zeros and ones, of which some come again."""
    return len(set(cells)) < len(cells) and all(is_on(cell) is not None for cell in cells)
