"""How many rows of a batch are computed at once: bounds on rows × padded length, moved by what happened. Pure.

What `worker/plan/` is for the built-in training, smaller: it bounds memory and no more, for without trouble a program of a
person's own is to compute what it would have computed. There are three bounds, and the smallest counts. What the supervisor
orders; the ceiling, which halves where memory ran out and doubles again after a while; and where the limit is known what is
predicted to fit, from a line through the peaks that were measured:
peak = floor + a · tokens + b · tokens · length, the second part for attention, which is quadratic in the length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

PLANNED_FRACTION = 0.84
"""The part of the limit that is planned for: the ladder stops growth at 85 %, and the line has an error."""
FIRST_WAIT_WINDOWS, MOST_WAIT_WINDOWS = 64, 1024
"""The windows after which a size that did not fit is tried again: other programs give memory back. Each time that it fails
again it is twice as long."""
STEADY_WINDOWS = 16
"""The windows between one doubling and the next, once growth goes well."""
SETTLING_WINDOWS = 3
"""The windows in which nothing is measured: an optimizer's state comes with its first steps, libraries keep what they need."""
MEASURED_EVERY = 8
"""After the first parts every so many are measured."""
_REMEMBERED, _LEAST_SEEN, _NEWS_TO_FIT, _LEAST_RISES = 256, 8, 32, 3
_LEAST_MARGIN_BYTES = 8 << 20


class Cuttable(Protocol):
    """A batch that can be cut between its rows."""

    @property
    def count(self) -> int:
        """The number of its rows."""
        ...

    @property
    def length(self) -> int:
        """The length to which rows are padded."""
        ...

    def tokens(self, begin: int, end: int) -> int:
        """Rows × padded length of the rows from `begin` to before `end`."""
        ...


class Move(NamedTuple):
    """A change of the bound by itself."""

    before: int | None
    """Rows × padded length. None means no bound."""
    after: int | None
    cause: str
    """A clause for people."""


class Planner:
    """The plan of one life of a program."""

    def __init__(
        self,
        *,
        limit_bytes: int | None = None,
        most_tokens: int | None = None,
        fitted_tokens: int | None = None,
        in_powers: bool = False,
    ) -> None:
        """`limit_bytes` is what the process may hold; None means that nobody knows. `most_tokens` is the bound to begin with,
        and `fitted_tokens` the ceiling; None means none. `in_powers` has parts be of 1, 2, 4, 8 … rows, of which a compiled
        model sees few.
        """
        self._limit_bytes, self._in_powers = limit_bytes, in_powers
        self._ordered = most_tokens
        self._may_grow = True
        self._ceiling = fitted_tokens
        self._largest = 0
        """The most tokens that a whole batch had."""
        self._line = _Line()
        self._windows = self._parts = 0
        self._wait_windows = FIRST_WAIT_WINDOWS
        self._grows_at = FIRST_WAIT_WINDOWS if fitted_tokens is not None else 0
        """The window from which on the ceiling may rise."""
        self._has_grown = False
        """Whether the ceiling rose since memory ran out last."""

    @property
    def most_tokens(self) -> int | None:
        """The bound by order and by ceiling. None means that there is none."""
        return min((bound for bound in (self._ordered, self._ceiling) if bound is not None), default=None)

    @property
    def is_bounded(self) -> bool:
        """Whether anything may make parts smaller than batches. Where nothing does, nobody has to know how large they are."""
        return self.most_tokens is not None or self._limit_bytes is not None

    def rows(self, split: Cuttable, row: int) -> int:
        """How many rows of a batch to compute next from `row` on, at least 1; parts are about equal."""
        left, whole, length = split.count - row, split.tokens(0, split.count), split.length
        self._largest = max(self._largest, whole)
        bound = self.bound(length)
        if bound is None or whole <= bound:
            return left
        most = 1
        while most < left and split.tokens(row, row + most + 1) <= bound:
            most += 1
        if self._in_powers:
            return 1 << (most.bit_length() - 1)
        return min(most, -(-left // -(-left // most)))

    def bound(self, length: int) -> int | None:
        """The most tokens of a part that is padded to `length`. None means any."""
        return min((bound for bound in (self.most_tokens, self._fits(length)) if bound is not None), default=None)

    def _fits(self, length: int) -> int | None:
        fit = self._line.fit()
        if fit is None or self._limit_bytes is None:
            return None
        return max(1, fit.most_tokens(length, int(self._limit_bytes * PLANNED_FRACTION)))

    # -- what happened ------------------------------------------------------------------------------------------------

    def wants_peak(self) -> bool:
        """Whether the memory of the part that comes is to be measured, which takes a tenth of a millisecond: of the first ones
        each, and then a few.
        """
        self._parts += 1
        has_few = self._parts < _NEWS_TO_FIT or self._parts % MEASURED_EVERY == 0
        return self._limit_bytes is not None and self._windows >= SETTLING_WINDOWS and has_few

    def observe(self, tokens: int, length: int, before_bytes: int, peak_bytes: int) -> None:
        """Takes in the memory of one part: what was held when it began, and at its peak."""
        self._line.observe(tokens, length, before_bytes, peak_bytes)

    def out_of_memory(self, tokens: int) -> int:
        """Takes in that memory ran out with so many tokens, which no line predicted; returns the new bound."""
        if self._has_grown:
            self._wait_windows = min(2 * self._wait_windows, MOST_WAIT_WINDOWS)
        self._has_grown = False
        most = self.most_tokens
        self._ceiling = max(1, (tokens if most is None else min(most, tokens)) // 2)
        self._grows_at = self._windows + self._wait_windows
        return self._ceiling

    def window_done(self) -> Move | None:
        """Takes in that a window went well; grows if it is time, by twice at most. None means that nothing has changed."""
        self._windows += 1
        if self._ceiling is None or not self._may_grow or self._windows < self._grows_at:
            return None
        before, after = self._ceiling, 2 * self._ceiling
        self._grows_at = self._windows + STEADY_WINDOWS
        if self._ordered is not None and before >= self._ordered:
            return None
        fits = self._fits(1)
        if fits is not None and before >= fits:
            return None
        self._ceiling, self._has_grown = (after if after < self._largest else None), True
        return Move(before, self._ceiling, "larger parts are tried again after memory ran out")

    # -- what is ordered ----------------------------------------------------------------------------------------------

    def order(self, most_tokens: int | None, *, halve: bool, may_grow: bool, in_use: int | None) -> int | None:
        """Takes in what the supervisor orders (`LimitMicroBatch`); `in_use` are the tokens of the largest part so far. None of
        `most_tokens` lifts the bound; from there parts grow again. Returns the bound.
        """
        lifted = self._ordered
        self._may_grow = may_grow
        if halve:
            used = [tokens for tokens in (self.most_tokens, in_use) if tokens]
            self._ordered = max(1, min(used) // 2) if used else None
        elif most_tokens is not None or may_grow:
            self._ordered = most_tokens
        elif in_use is not None and self._ordered is None:
            self._ordered = in_use
        if self._ordered is None and lifted is not None and (self._ceiling is None or self._ceiling > 2 * lifted):
            self._ceiling = 2 * lifted
            self._grows_at = self._windows + STEADY_WINDOWS
        return self.most_tokens

    def limit_to(self, limit_bytes: int | None) -> None:
        """Takes in that the process may hold more or less from now on."""
        self._limit_bytes = limit_bytes


# --------------------------------------------------------------------------------------------------------------------
# Memory


class _Fit(NamedTuple):
    """The line, in bytes."""

    floor_bytes: float
    per_token: float
    per_square: float
    margin_bytes: float

    def most_tokens(self, length: int, limit_bytes: int) -> int:
        a_token = self.per_token + self.per_square * length
        return int(max(limit_bytes - self.floor_bytes - self.margin_bytes, 0.0) / a_token) if a_token > 1e-6 else 1 << 40


class _Seen(NamedTuple):
    tokens: int
    length: int
    before_bytes: int
    peak_bytes: int


class _Line:
    """The peaks of parts as they were observed, and the line through them. A peak of the host that is no higher than what was
    held before says only that no more was needed; the least that was held before any is the floor.
    """

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=_REMEMBERED)
        self._fit: _Fit | None = None
        self._news = 0

    def observe(self, tokens: int, length: int, before_bytes: int, peak_bytes: int) -> None:
        self._seen.append(_Seen(tokens, length, before_bytes, peak_bytes))
        self._news += 1

    def fit(self) -> _Fit | None:
        """The line through what was seen. None means that too little was."""
        if self._news >= (_LEAST_SEEN if self._fit is None else _NEWS_TO_FIT):
            self._fit, self._news = self._fitted(), 0
        return self._fit

    def _fitted(self) -> _Fit | None:
        rose = [seen for seen in self._seen if seen.peak_bytes > seen.before_bytes]
        if len(rose) < _LEAST_RISES:
            return None
        floor_bytes = min(seen.before_bytes for seen in self._seen)
        points = [(1.0, float(seen.tokens), float(seen.tokens * seen.length)) for seen in rose]
        over = [float(seen.peak_bytes - floor_bytes) for seen in rose]
        weights = non_negative_least_squares([(1.0, 0.0, 0.0), *points], [0.0, *over])
        errors = sorted(y - sum(w * x for w, x in zip(weights, point)) for point, y in zip(points, over))
        margin = max(errors[int(0.98 * (len(errors) - 1))], 0.0) + _LEAST_MARGIN_BYTES
        return _Fit(floor_bytes + weights[0], weights[1], weights[2], margin)


def non_negative_least_squares(points: Sequence[tuple[float, ...]], values: Sequence[float]) -> list[float]:
    """Weights ≥ 0 of few columns, by leaving out, one after the other, the column whose weight is most negative, or that says
    nothing that the ones before it don't.
    """
    columns = len(points[0])
    scale = [max(1e-12, *(abs(point[i]) for point in points)) for i in range(columns)]
    kept = list(range(columns))
    while kept:
        scaled = [[point[i] / scale[i] for i in kept] for point in points]
        normal = [[sum(row[i] * row[j] for row in scaled) for j in range(len(kept))] for i in range(len(kept))]
        right = [sum(row[i] * value for row, value in zip(scaled, values)) for i in range(len(kept))]
        solved = _solved(normal, right)
        if isinstance(solved, int):
            del kept[solved]
            continue
        if min(solved) >= 0:
            weights = [0.0] * columns
            for i, weight in zip(kept, solved):
                weights[i] = weight / scale[i]
            return weights
        del kept[solved.index(min(solved))]
    return [0.0] * columns


def _solved(matrix: list[list[float]], right: list[float]) -> list[float] | int:
    """The solution of a small symmetric system, or the first column that depends on those before it."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right)]
    for i in range(size):
        if abs(rows[i][i]) < 1e-9 * max(matrix[i][i], 1e-12):
            return i
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i])]
    solution = [0.0] * size
    for i in reversed(range(size)):
        solution[i] = (rows[i][size] - sum(rows[i][j] * solution[j] for j in range(i + 1, size))) / rows[i][i]
    return solution
