"""What a micro-batch takes of time, learnt from what earlier ones took. Pure.

Covers one straight-line model: seconds = start + a · tokens + b · tokens · length + c · tokens². The start makes many small
micro-batches slow, padding and the last part large ones: on a CPU what does not fit into its caches is slower a token, so the
largest micro-batch is not the fastest. Of one that is computed in lanes, tokens are those of the part that the others wait for.
Only the ratios matter for a cut; they go into the plan as `Costs`.
"""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from memsup.worker.plan.footprint import Shape, non_negative_least_squares

_REMEMBERED = 512
LEAST_SEEN = 16
_LEAST_PART = 0.01
"""A token takes at least this part of what a token takes with all that is beside it."""
LEAST_SPREAD = 4
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


class Stopwatch:
    """The times of micro-batches as they were observed, and the line through them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Shape, float]] = deque(maxlen=_REMEMBERED)

    def observe(self, shape: Shape, seconds: float) -> None:
        """Takes in the time of one micro-batch."""
        self._seen.append((shape, seconds))

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def tokens_seen(self) -> tuple[int, int]:
        """The tokens of the smallest and of the largest micro-batch that is remembered; two zeros where none is."""
        tokens = [shape.tokens for shape, _ in self._seen]
        return min(tokens, default=0), max(tokens, default=0)

    def fit(self) -> Costs | None:
        """The line through what was seen, with two digits, so that the plan does not change with every measurement. None means
        that too little was seen.

        Other programs make some micro-batches slow and none fast, so the fit follows the quick ones: least squares of the
        relative errors, those far above the line counting less and less (iteratively reweighted, Holland and Welsch 1977).
        """
        smallest, largest = self.tokens_seen
        if len(self._seen) < LEAST_SEEN or largest < LEAST_SPREAD * smallest:
            return None
        shapes = [shape.heaviest for shape, _ in self._seen]
        features = np.array([(1.0, s.tokens, s.squares, float(s.tokens) ** 2) for s in shapes])
        seconds = np.array([took_s for _, took_s in self._seen])
        importance = 1 / np.maximum(seconds, 1e-9)
        weights = np.zeros(4)
        for _ in range(6):
            weights = non_negative_least_squares(features * importance[:, None], seconds * importance)
            line = np.maximum(features @ weights, 1e-9)
            above = np.maximum(seconds / line - 1, 0)
            importance = 1 / (line * (1 + (above / 0.1) ** 2) ** 0.5)
        start, per_token, per_square, per_size = (float(weight) for weight in weights)
        # Where starting is nearly all, or noise bends the line, a token seems to take nothing; it is the unit of the costs.
        per_token = max(per_token, _LEAST_PART * float(np.median(seconds / features[:, 1])))
        return Costs(
            start=_two_digits(start / per_token),
            per_square=_two_digits(per_square / per_token),
            per_size=_two_digits(per_size / per_token),
        )


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
