"""By what the losses of a batch's parts are to be multiplied for their sum to be the loss of the whole. Pure, but for the
tensors that it counts in.

A loss adds up as it is where it is divided by a number that does not depend on the part (`num_items_in_batch`); otherwise it is
a mean, over rows, over the labels that count, over those but the first of each row, or over what a mask shows. Which of these
it is no program says. So all of them are hypotheses, and each observation, the loss of some rows and of two parts of them,
leaves over those that agree with it. Those left over may differ in a later batch; then it has to tell them apart first.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple, Union

from memsup.cut_batch import IGNORED, Documents, Rows
from memsup.cut_tree import Path, at

Split = Union[Rows, Documents]

CLOSE, CLOSE_IN_LOW_PRECISION, CLOSE_IN_LOW_NUMBERS = 1e-4, 5e-3, 2e-2
"""The relative error up to which a hypothesis agrees: with float32, where 16-bit numbers are computed with, which give other
bits to other shapes, and where the loss is itself one of these."""
_SAME = 1e-6
_NOT_LABELS = ("input_ids", "token_type_ids", "position_ids", "mask", "seq_idx")


class Kind(enum.Enum):
    """What a loss is. The value is its name for people."""

    SUM = "a sum"
    LABELS = "a mean over labels"
    SHIFTED_LABELS = "a mean over shifted labels"
    MASK = "a mean over what a mask shows"
    SHIFTED_MASK = "a mean over what a shifted mask shows"
    TOKENS = "a mean over tokens"
    ROWS = "a mean over rows"


class Hypothesis(NamedTuple):
    """One way to weight."""

    kind: Kind
    path: Path = ()
    """Where that lies in a batch which is counted."""


class Seen(NamedTuple):
    """A loss of some rows, and of two parts of them."""

    whole: float
    parts: tuple[float, float]
    rows: Split
    """The rows."""
    cut: int
    """How many of them are the first part."""


def hypotheses(split: Split) -> list[Hypothesis]:
    """All ways to weight that make sense for a batch like this."""
    found = [Hypothesis(Kind.SUM)]
    for path, field in split.fields():
        name = path[-1] if path and isinstance(path[-1], str) else ""
        if name.endswith("mask") and field.dim() == 2:
            found += [Hypothesis(Kind.MASK, path), Hypothesis(Kind.SHIFTED_MASK, path)]
        elif not name.endswith(_NOT_LABELS) and not field.is_floating_point() and not field.is_complex():
            found.append(Hypothesis(Kind.LABELS, path))
            if field.dim() >= 2 and field.shape[1] > 1:
                found.append(Hypothesis(Kind.SHIFTED_LABELS, path))
    if isinstance(split, Documents):
        found.append(Hypothesis(Kind.TOKENS))
    return [*found, Hypothesis(Kind.ROWS)]


def counts(hypothesis: Hypothesis, split: Split) -> list[float] | None:
    """What each row counts. It is None where all count in full, or where this batch does not have what is counted."""
    if hypothesis.kind is Kind.SUM:
        return None
    if hypothesis.kind is Kind.ROWS:
        return [1.0] * split.count
    if hypothesis.kind is Kind.TOKENS:
        return [float(split.tokens(row, row + 1)) for row in range(split.count)]
    try:
        field = at(split.batch, hypothesis.path)
    except (KeyError, IndexError, AttributeError, TypeError):
        return None
    if hypothesis.kind in {Kind.SHIFTED_LABELS, Kind.SHIFTED_MASK}:
        field = field[:, 1:]
    values = field != IGNORED if hypothesis.kind in {Kind.LABELS, Kind.SHIFTED_LABELS} else field
    return split.by_row(values)


class Weighting:
    """The hypotheses that agree with all that was seen so far."""

    def __init__(self) -> None:
        self._left: dict[Hypothesis, float] | None = None
        """What is left over, with the largest error of each. It is None before anything was seen."""

    def learn(self, seen: Seen, *, close: float) -> None:
        """Takes in an observation. One whose whole is nothing, or no number, says nothing."""
        if not math.isfinite(seen.whole) or abs(seen.whole) < 1e-9:
            return
        candidates = self._left if self._left is not None else dict.fromkeys(hypotheses(seen.rows), 0.0)
        self._left = {}
        for hypothesis, largest in candidates.items():
            error = abs(_predicted(hypothesis, seen) - seen.whole) / abs(seen.whole)
            if error <= close:  # not where it is no number
                self._left[hypothesis] = max(error, largest)

    @property
    def is_known(self) -> bool:
        """Whether anything was seen."""
        return self._left is not None

    @property
    def is_refuted(self) -> bool:
        """Whether no way to weight is right."""
        return self._left is not None and not self._left

    @property
    def kind(self) -> Kind | None:
        """The likeliest of what is left over, in the order of `Kind`. It is None where nothing is."""
        return min((h.kind for h in self._left or {}), key=list(Kind).index, default=None)

    def shares(self, split: Split, *, at_best: bool = False) -> list[float] | None:
        """The share of each row of this batch, which add up to 1; empty where parts add up as they are. It is None where what
        is left over does not agree about that; with `at_best` the closest then counts.
        """
        found: list[list[float]] = []
        for hypothesis in sorted(self._left or {}, key=lambda left: (self._left or {})[left]):
            share = _shares(hypothesis, split)
            if share is not None:
                found.append(share)
        if not found or (not at_best and any(not _is_same(found[0], other) for other in found[1:])):
            return None
        return found[0]


def _shares(hypothesis: Hypothesis, split: Split) -> list[float] | None:
    if hypothesis.kind is Kind.SUM:
        return []
    counted = counts(hypothesis, split)
    total = sum(counted) if counted is not None else 0.0
    return [count / total for count in counted] if counted is not None and total > 0 else None


def _is_same(some: list[float], others: list[float]) -> bool:
    return len(some) == len(others) and all(abs(a - b) <= _SAME for a, b in zip(some, others))


def _predicted(hypothesis: Hypothesis, seen: Seen) -> float:
    """The loss of the whole as it would be; not a number where that cannot be."""
    if hypothesis.kind is Kind.SUM:
        return seen.parts[0] + seen.parts[1]
    share = _shares(hypothesis, seen.rows)
    if share is None:
        return math.nan
    weights = sum(share[: seen.cut]), sum(share[seen.cut :])
    return sum(weight * loss for weight, loss in zip(weights, seen.parts) if weight > 0)  # a mean over nothing is no number


def best_cuts(split: Split, most: int = 2) -> list[int]:
    """Where to cut some rows so that the hypotheses differ most, the best first; unequally where they don't care."""
    ways = [share for share in (_shares(hypothesis, split) for hypothesis in hypotheses(split)) if share]

    def told_apart(cut: int) -> tuple[int, float]:
        firsts = {round(sum(share[:cut]), 3) for share in ways}
        return len(firsts), -abs(cut / split.count - 0.35)

    return sorted(range(1, split.count), key=told_apart, reverse=True)[:most]


def most_telling(split: Split, rows: int) -> int:
    """Where so many rows begin in which the hypotheses differ most; 0 where they don't."""
    ways = [share for share in (_shares(hypothesis, split) for hypothesis in hypotheses(split)) if share]

    def told_apart(begin: int) -> float:
        total = 0.0
        for share in ways:
            some = share[begin : begin + rows]
            total += sum(abs(one / sum(some) - 1 / rows) for one in some) if sum(some) else 0.0
        return round(total, 6)

    return max(range(0, split.count - rows + 1, max(1, rows // 2)), key=told_apart)
