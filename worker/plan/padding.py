"""Where short rows of a micro-batch are padded, if they may be: decided by what the model was seen to say. Pure.

A model that says something else of a row when it is padded, or beside other rows, would learn something else under another cut.
What it says is found out in `tasks/probe.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Padding(StrEnum):
    """Where rows that are shorter than others are padded."""

    RIGHT = "right"
    LEFT = "left"
    NONE = "none"
    """Nowhere: only rows of one length are computed together."""


class Same(NamedTuple):
    """Whether a model says the same of a row, to rounding, in other circumstances as of the row alone."""

    after_others: bool
    beside_others: bool
    """Whether it does beside rows of the same length."""
    padded: dict[Padding, bool]
    """Whether it does padded beside a longer row, on the sides that were tried."""


def choose(same: Same) -> Padding | None:
    """The padding under which the cut changes nothing: the first side that works of those that were tried, or else none. None
    means that the model does not say the same of a row under any cut.
    """
    if not same.after_others or not same.beside_others:
        return None
    return next((side for side, works in same.padded.items() if works), Padding.NONE)


def in_words(found: Padding, named: Padding) -> str | None:
    """The sentence for people on rows that are not padded as their tokenizer has it. None means that they are."""
    if found is named:
        return None
    sees = f"Padded on the {named}, as its tokenizer has it, the model says something else of a row than of the row alone"
    if found is Padding.NONE:
        return f"{sees}, and on the other side as well, so only rows of one length are computed together."
    return f"{sees}, so rows are padded on the {found}, where it says the same."
