"""What a micro-batch takes of time, learnt from what earlier ones took. Pure.

Covers one straight-line model, seconds = start + a · tokens + b · tokens · length + c · tokens², and how sure it is. The start
makes many small micro-batches slow, padding and the last part large ones: on a CPU what does not fit into its caches is slower
a token, so the largest micro-batch is not the fastest. Of one that is computed in lanes, tokens are those of the part that the
others wait for. Only the ratios matter for a cut; they go into the plan as `Costs`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from memsup.worker.plan.footprint import Shape, non_negative_least_squares

_REMEMBERED = 512
_LEAST_SEEN = 16
_TWICE = 4 / 3
"""A micro-batch whose activations are computed twice takes so many times as long: the forward pass is a third of it. So what
those took with which a run begins tells of those that come after them."""
_LEAST_PART = 0.01
"""A token takes at least this part of what a token takes with all that is beside it."""
_LEAST_SPREAD = 2
"""Micro-batches of nearly one size tell nothing about other sizes: the largest has so many times the tokens of the smallest."""


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a micro-batch costs beyond its tokens, expressed in tokens: whatever takes as long as one token costs 1."""

    start: float
    """The cost of a micro-batch, whatever is in it."""
    per_square: float
    """What a token costs more for each token of the length to which it is padded."""
    per_size: float
    """What a token costs more for each token of its micro-batch."""

    def of(self, tokens: int, squares: int) -> float:
        """The cost of a micro-batch of `tokens`, in tokens. `squares` is the sum of the lengths to which each is padded."""
        return self.start + tokens * (1 + self.per_square * (squares / tokens) + self.per_size * tokens)


BY_TOKENS = Costs(start=0.0, per_square=0.0, per_size=0.0)
"""The costs that are assumed before anything was measured: a token is a token."""


class Line(NamedTuple):
    """What micro-batches take by the measurements, and how sure that is."""

    weights: NDArray[np.float64]
    """What each figure of `work` takes: in seconds, or in any other unit."""
    doubt: NDArray[np.float64]
    """The covariance of `weights`."""

    @property
    def costs(self) -> Costs:
        """The same in tokens, with two digits, so that the plan does not change with every measurement."""
        start, per_token, per_square, per_size = (float(weight) for weight in self.weights)
        return Costs(
            start=_two_digits(start / per_token),
            per_square=_two_digits(per_square / per_token),
            per_size=_two_digits(per_size / per_token),
        )

    def gain(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
        """By how much one `work` is expected to take longer than the other, and the standard error of that. Both are of the
        same rows, so what is unsure of both alike is no error.
        """
        less = before - after
        return float(less @ self.weights), math.sqrt(max(float(less @ self.doubt @ less), 0.0))


def known(costs: Costs) -> Line:
    """The line of costs that an earlier life has found, which are not doubted; its unit is a token."""
    return Line(np.array([costs.start, 1.0, costs.per_square, costs.per_size]), np.zeros((4, 4)))


def work(shapes: Iterable[Shape]) -> NDArray[np.float64]:
    """What micro-batches come to together: their number, tokens, squares, and the squares of their sizes. Of one in lanes that
    part counts which takes longer.
    """
    return np.array([_figures(shape) for shape in shapes]).sum(axis=0)


class Stopwatch:
    """The times of micro-batches as they were observed, and the line through them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Shape, float, bool]] = deque(maxlen=_REMEMBERED)

    def observe(self, shape: Shape, seconds: float, *, checkpointed: bool = False) -> None:
        """Takes in the time of one micro-batch, and whether its activations were computed twice."""
        self._seen.append((shape, seconds, checkpointed))

    @property
    def tokens_seen(self) -> tuple[int, int]:
        """The tokens of the smallest and of the largest micro-batch that is remembered; two zeros where none is."""
        tokens = [shape.tokens for shape, *_ in self._seen]
        return min(tokens, default=0), max(tokens, default=0)

    def fit(self) -> Line | None:
        """The line through what was seen. None means that too little was seen.

        Other programs make some micro-batches slow and none fast, so the fit follows the quick ones: least squares of the
        relative errors, those far above the line counting less and less (iteratively reweighted, Holland and Welsch 1977).
        """
        smallest, largest = self.tokens_seen
        if len(self._seen) < _LEAST_SEEN or largest < _LEAST_SPREAD * smallest:
            return None
        features = np.array([_figures(shape) for shape, *_ in self._seen])
        seconds = np.array([max(took_s, 1e-9) / (_TWICE if checkpointed else 1) for _, took_s, checkpointed in self._seen])
        importance = 1 / seconds
        weights = np.zeros(4)
        for _ in range(6):
            weights = non_negative_least_squares(features * importance[:, None], seconds * importance)
            line = np.maximum(features @ weights, 1e-9)
            above = np.maximum(seconds / line - 1, 0)
            importance = 1 / (line * (1 + (above / 0.1) ** 2) ** 0.5)
        doubt = _doubt(features * importance[:, None], (seconds - features @ weights) * importance, weights > 0)
        # Where starting is nearly all, or noise bends the line, a token seems to take nothing; it is the unit of the costs.
        weights[1] = max(weights[1], _LEAST_PART * float(np.median(seconds / features[:, 1])))
        return Line(weights, doubt)


def _doubt(features: NDArray[np.float64], off: NDArray[np.float64], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The covariance of the weights of least squares, of which only those `used` are free, for a line `off` by so much."""
    scale = np.abs(features[:, used]).max(axis=0)  # tokens and their squares are of very different sizes
    seen, doubt = features[:, used] / scale, np.zeros((len(used), len(used)))
    variance = float(off @ off) / max(len(off) - len(scale), 1)
    doubt[np.ix_(used, used)] = variance * np.linalg.pinv(seen.T @ seen) / np.outer(scale, scale)
    return doubt


def _figures(shape: Shape) -> tuple[float, float, float, float]:
    part = shape.heaviest
    return 1.0, float(part.tokens), float(part.squares), float(part.tokens) ** 2


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
