"""What a row's label is, by the names that transformers has for it: one class, or a number. Pure."""

from __future__ import annotations

import math
from typing import Literal

ProblemType = Literal["single_label_classification", "regression"]
"""What is learnt of a text: which of a few classes it has, or a number, such as stars or a share."""


def as_score(text: str) -> float | None:
    """The number that a cell holds, written as programs write it. None means that it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None
