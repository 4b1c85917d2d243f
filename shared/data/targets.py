"""What a row's label is, by the names that transformers has for it: one class, several labels, or a number. Pure."""

from __future__ import annotations

import math
import re
from typing import Literal

TaskKind = Literal["text-classification", "token-classification", "causal-lm"]
"""What is learnt, by the names that the hub has for it: labels of texts, of words and spans in them, or to go on with texts,
such as to answer."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What is learnt of a text: which class it has, which labels out of several, or a number, such as stars or a share."""
SEPARATORS = "|;；、,，\n"
"""What stands between several labels in a cell."""


def as_score(text: str) -> float | None:
    """The number that a cell holds, written as programs write it. None means that it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def several_labels(text: str) -> tuple[str, ...]:
    """The labels in a cell, each once: joined by a separator, or as a program prints a list of them. An empty one has none."""
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        found = ["".join(ways) for ways in _IN_LIST.findall(text[1:-1])]
    else:
        found = re.split(f"[{SEPARATORS}]", text)
    return tuple(dict.fromkeys(label for label in map(str.strip, found) if label))


_IN_LIST = re.compile(r"""'([^']*)'|"([^"]*)"|([^,'"\s][^,'"]*)""")
