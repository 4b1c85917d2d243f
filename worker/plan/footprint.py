"""What a micro-batch takes of memory, learnt from what earlier ones took. Pure.

Covers one straight-line model: peak = floor + a · tokens + b · tokens · length, for rows × length = tokens; the second part is
what attention takes, quadratic in the length (Vaswani et al. 2017): much where whole matrices are kept, little where
`attention.py` computes them in blocks. Activation checkpointing and mixed precision change a and b, so each has a model of its
own. What is done about a prediction is decided in `planner.py`, and how peaks are measured is in `memory.py`.

Peaks of the host are resident sizes, which fall late: a small micro-batch after a large one seems to have the large one's peak.
So a peak that did not rise above what was resident before says only that this micro-batch needs no more than that. The least
that was ever held before a micro-batch is the floor: what a micro-batch of no tokens would take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MANY_TOKENS = 10**9
"""A number of tokens that no micro-batch reaches: no bound."""
_REMEMBERED = 256
_LEAST_SEEN, _NEWS_TO_FIT = 8, 32
_LEAST_RISES = 3
LEAST_MARGIN_BYTES = 8 << 20


class Shape(NamedTuple):
    """The size of a micro-batch, or of the part of it that one lane computes."""

    rows: int
    length: int
    """The length of the longest row, to which all are padded."""
    packed: tuple[int, int] | None = None
    """The sums of the rows' own lengths and of their squares, where layers see no padding. None means that rows are padded."""
    beside: Shape | None = None
    """The part that is computed at the same time in another lane; its rows are no longer than these. None means that there is
    none."""

    @property
    def all_rows(self) -> int:
        """The rows of all parts."""
        return self.rows + (self.beside.all_rows if self.beside else 0)

    @property
    def tokens(self) -> int:
        """Rows × padded length, or where nothing is padded the rows' own tokens, all parts together."""
        own = self.packed[0] if self.packed else self.rows * self.length
        return own + (self.beside.tokens if self.beside else 0)

    @property
    def squares(self) -> int:
        """The sum over all tokens of the length to which each is padded, or of that of its row."""
        own = self.packed[1] if self.packed else self.rows * self.length**2
        return own + (self.beside.squares if self.beside else 0)

    @property
    def heaviest(self) -> Shape:
        """The part with the most tokens, for which the others wait."""
        alone = self._replace(beside=None)
        return max(alone, self.beside.heaviest, key=lambda part: part.tokens) if self.beside else alone


def shape_of(parts: Sequence[NDArray[np.integer[Any]]], *, packed: bool = False) -> Shape:
    """The shape of a micro-batch whose `parts` are the lengths of the rows that each lane computes, the longest first, padded
    or `packed`.
    """
    first, *others = parts
    own = (int(first.sum()), int((first.astype(np.int64) ** 2).sum())) if packed else None
    return Shape(len(first), int(first[0]), own, shape_of(others, packed=packed) if others else None)


class Fit(NamedTuple):
    """The line of the model, in bytes: floor, and what each token and each square take on top."""

    floor_bytes: float
    per_token: float
    per_square: float
    margin_bytes: float
    """How far reality has been above the line, and a little more."""

    def peak_bytes(self, shape: Shape) -> float:
        """The best guess of a micro-batch's peak, without the margin."""
        return self.floor_bytes + self.per_token * shape.tokens + self.per_square * shape.squares

    def most_tokens(self, length: int, limit_bytes: int) -> int:
        """The most tokens of a micro-batch padded to `length` that stay below `limit_bytes` even with the margin."""
        room_bytes = limit_bytes - self.floor_bytes - self.margin_bytes
        a_token = self.per_token + self.per_square * length
        return int(min(max(room_bytes, 0.0) / max(a_token, 1e-9), MANY_TOKENS))


class Footprint:
    """The peaks of micro-batches as they were observed, and the line through them, fitted anew when there is news."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Shape, int, int]] = deque(maxlen=_REMEMBERED)
        self._fit: Fit | None = None
        self._news = 0

    def observe(self, shape: Shape, peak_bytes: int, before_bytes: int) -> None:
        """Takes in one micro-batch: its peak, and what was held when it began."""
        self._seen.append((shape, peak_bytes, before_bytes))
        self._news += 1

    def fit(self) -> Fit | None:
        """The line through what was seen. None means that too little was."""
        if self._news >= (_LEAST_SEEN if self._fit is None else _NEWS_TO_FIT):
            self._fit, self._news = self._fitted(), 0
        return self._fit

    def _fitted(self) -> Fit | None:
        rose = [(shape, peak) for shape, peak, before in self._seen if peak > before]
        if len(rose) < _LEAST_RISES:
            return None
        floor = (Shape(0, 0), min(before for *_, before in self._seen))
        no_more = [(shape, peak) for shape, peak, before in self._seen if peak <= before]
        points = [floor, *rose, *no_more]
        features = np.array([(1.0, shape.tokens, shape.squares) for shape, _ in points])
        peaks = np.array([peak for _, peak in points], dtype=float)
        exact = np.arange(len(points)) <= len(rose)
        counted = exact
        for _ in range(4):  # what did not rise counts where the line lies above it
            weights = non_negative_least_squares(features[counted], peaks[counted])
            counted = exact | (features @ weights > peaks)
        over = (peaks - features @ weights)[exact]
        margin = max(float(np.quantile(over, 0.98)), 0.0) + LEAST_MARGIN_BYTES
        return Fit(float(weights[0]), float(weights[1]), float(weights[2]), margin)


def non_negative_least_squares(features: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights ≥ 0 of few columns, by leaving out, one after the other, the column whose weight is most negative.

    Columns are scaled to like sizes first: tokens and their squares are of very different ones.
    """
    scale = np.maximum(np.abs(features).max(axis=0), 1e-12)
    kept = list(range(features.shape[1]))
    weights = np.zeros(features.shape[1])
    while kept:
        found = np.linalg.lstsq(features[:, kept] / scale[kept], values, rcond=None)[0]
        if (found >= 0).all():
            weights[kept] = found / scale[kept]
            break
        del kept[int(found.argmin())]
    return weights
