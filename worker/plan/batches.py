"""Which rows which optimizer step sees, and how a step is cut into micro-batches. Pure.

The order of samples is a function of seed and epoch, and the place in it is the number of steps taken, so that resuming
replays nothing. The *effective batch* of a step never depends on memory; only the cut does. No batch crosses the end of an
epoch: the last one of an epoch may be smaller, and its loss is averaged over what it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memsup.worker.plan.cost import BY_TOKENS
from memsup.worker.plan.entry import Entry

Rows = NDArray[np.int64]
Lengths = NDArray[np.int32]


@dataclass(frozen=True)
class Schedule:
    """The steps of a run over `rows` samples. Steps are counted from 1; step 0 is the state before training."""

    rows: int
    effective_batch: int
    epochs: float
    seed: int
    max_steps: int | None = None
    """All steps of the run. None means that `epochs` says it."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one may be of fewer samples than the others."""
        return -(-self.rows // self.effective_batch)

    @property
    def total_steps(self) -> int:
        """All steps of the run. A part of an epoch is rounded up to whole steps."""
        return self.max_steps or max(1, math.ceil(self.epochs * self.steps_per_epoch - 1e-9))

    def epoch_of(self, step: int) -> float | None:
        """The epochs completed after `step` steps, as a fraction."""
        return step / self.steps_per_epoch

    def pass_of(self, step: int) -> int:
        """The pass over the rows that `step` (from 1) is in, counted from 0; of a stream the block."""
        return (step - 1) // self.steps_per_epoch

    def samples_after(self, step: int) -> int:
        """Samples seen after `step` steps, those of earlier epochs included."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.rows + rest * self.effective_batch

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last one of an epoch or of the run."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.total_steps)


@dataclass(frozen=True)
class EndlessSchedule(Schedule):
    """The steps of a run over a stream, of which it is not known how many rows a pass has. `rows` are shuffled together: a
    block of them, of whole steps. So all steps see as many samples, and what a step sees follows from seed and step alone.
    """

    def __post_init__(self) -> None:
        """Raises ValueError for a block that is not of whole steps, and where no number of steps is given."""
        if self.max_steps is None or self.rows % self.effective_batch:
            raise ValueError("a stream is trained on for a number of steps, in blocks of whole steps")

    def epoch_of(self, step: int) -> None:
        """It is None: nobody knows."""

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last one of the run."""
        return step == self.total_steps


class Order:
    """The effective batches of a schedule. Keeps one epoch's order, 8 bytes a row."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._epoch = -1
        self._shuffled: Rows = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Rows:
        """The rows that `step` (from 1) sees."""
        epoch, place = divmod(step - 1, self._schedule.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffled = shuffled(self._schedule.rows, self._schedule.seed, epoch)
            self._epoch = epoch
        begin = place * self._schedule.effective_batch
        return self._shuffled[begin : begin + self._schedule.effective_batch]


class EndlessOrder(Order):
    """The effective batches of a stream, whose rows are counted over all blocks."""

    def batch(self, step: int) -> Rows:
        """The rows that `step` (from 1) sees."""
        return super().batch(step) + self._schedule.pass_of(step) * self._schedule.rows


def shuffled(rows: int, seed: int, epoch: int) -> Rows:
    """The numbers 0 … rows-1 in the order of a hash of (seed, epoch, row): the same for ever, whatever numpy does to its
    generators.
    """
    with np.errstate(over="ignore"):
        stream = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
        return np.argsort(_mix(np.arange(rows, dtype=np.uint64) + stream), kind="stable").astype(np.int64, copy=False)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014): the increment and the finaliser of one step, modulo 2**64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def cut(rows: Rows, lengths: Lengths, plan: Entry) -> list[Rows]:
    """Cuts `rows` into micro-batches that `plan` allows, in the order in which they are computed; one row is always allowed.

    `lengths[i]` is the length of `rows[i]`. The longest come first, so that a step's peak of memory shows at its start;
    rows of like length come together, so that little is padding. Where the plan knows what a micro-batch costs, the cut is the
    cheapest there is (the shortest way through all cuts of the sorted rows); else each takes as many rows as it may.
    """
    by_length = np.lexsort((rows, -lengths.astype(np.int64)))
    longest = np.maximum(lengths[by_length], 1).tolist()
    sums = _sums(longest)
    ends = _greedy(sums, plan) if plan.costs is None else _cheapest(sums, plan)
    return [rows[by_length[begin:end]] for begin, end in itertools.pairwise([0, *ends])]


def evaluation_batches(rows: Rows, lengths: Lengths, tokens: int, *, equal_lengths: bool) -> list[Rows]:
    """Cuts `rows`, the longest first, into batches of at most so many tokens. `lengths` are those of all rows."""
    found, place = [], 0
    while place < len(rows):
        longest = int(lengths[rows[place]])
        batch = rows[place : place + max(1, tokens // longest)]
        if equal_lengths:
            batch = batch[lengths[batch] == longest]
        found.append(batch)
        place += len(batch)
    return found


def split(rows: Rows, lengths: Lengths, plan: Entry) -> list[Rows]:
    """The parts of a micro-batch, as `cut` made it, that lanes compute side by side: one where the plan has one lane, else two.

    Each is padded to its own longest row, so that a long row is no waste beside many short ones. They cost as nearly the same
    as can be: the one waits for the other. A single row is one part.
    """
    *_, whole = _reaches(_sums(np.maximum(lengths, 1).tolist()), 0, plan)
    return [part for part in (rows[: whole.middle], rows[whole.middle :]) if len(part)]


class _Reach(NamedTuple):
    """A micro-batch of the sorted rows."""

    end: int
    middle: int
    """The row with which its second part begins. At `end` there is no second part."""
    tokens: int
    cost: float
    """The cost of the part that takes longer, in tokens."""


def _reaches(sums: _Sums, begin: int, plan: Entry) -> Iterator[_Reach]:
    """Every micro-batch that begins at `begin`, one row more each time, whatever its size."""
    middle = begin + 1
    for end in range(begin + 1, len(sums.longest) + 1):
        if plan.lanes_used == 1:
            middle = end
        cost, tokens = _of_parts(sums, begin, middle, end, plan)
        while middle + 1 < end:
            further, tokens_further = _of_parts(sums, begin, middle + 1, end, plan)
            if further >= cost:
                break
            middle, cost, tokens = middle + 1, further, tokens_further
        yield _Reach(end, middle, tokens, cost)


class _Sums(NamedTuple):
    """What the sorted rows are together, up to each of them."""

    longest: list[int]
    tokens: list[int]
    squares: list[int]

    def part(self, begin: int, end: int, plan: Entry) -> tuple[int, int]:
        """The tokens of rows that one lane computes, and the sum of the lengths to which each is padded."""
        if plan.packed:
            return self.tokens[end] - self.tokens[begin], self.squares[end] - self.squares[begin]
        tokens = (end - begin) * self.longest[begin]
        return tokens, tokens * self.longest[begin]


def _sums(longest: list[int]) -> _Sums:
    squares = [length * length for length in longest]
    return _Sums(longest, [0, *itertools.accumulate(longest)], [0, *itertools.accumulate(squares)])


def _of_parts(sums: _Sums, begin: int, middle: int, end: int, plan: Entry) -> tuple[float, int]:
    """What the two parts of a micro-batch cost together, and their tokens."""
    costs, first = plan.costs or BY_TOKENS, sums.part(begin, middle, plan)
    if middle == end:
        return costs.of(*first), first[0]
    second = sums.part(middle, end, plan)
    return max(costs.of(*first), costs.of(*second)), first[0] + second[0]


def _allowed(sums: _Sums, begin: int, plan: Entry) -> Iterator[_Reach]:
    """Those of `_reaches` that `plan` allows; the first, of one row, always is."""
    longest = sums.longest
    most = plan.most_tokens(longest[begin])
    for reach in _reaches(sums, begin, plan):
        if reach.tokens > most and reach.end > begin + 1:
            return
        if plan.equal_lengths and longest[reach.end - 1] < longest[begin]:
            return
        yield reach


def starting_fraction(lengths: Lengths, plan: Entry) -> float | None:
    """The part of a step's cost that is the starting of its micro-batches. None means that the plan does not know what they
    cost.
    """
    if plan.costs is None:
        return None
    sums, cost, begin = _sums(sorted(np.maximum(lengths, 1).tolist(), reverse=True)), 0.0, 0
    ends = _cheapest(sums, plan)
    for end in ends:
        cost += next(reach.cost for reach in _reaches(sums, begin, plan) if reach.end == end)
        begin = end
    return len(ends) * plan.costs.start / cost


def _greedy(sums: _Sums, plan: Entry) -> list[int]:
    """The rows with which micro-batches end if each takes as many rows as it may."""
    ends, end = [], 0
    while end < len(sums.longest):
        *_, furthest = _allowed(sums, end, plan)
        end = furthest.end
        ends.append(end)
    return ends


def _cheapest(sums: _Sums, plan: Entry) -> list[int]:
    """The rows with which micro-batches end in the cheapest cut. It is found from the back: the rows from `begin` on cost what
    their best first micro-batch and the best cut of the rest cost.
    """
    count = len(sums.longest)
    price, end_of = [0.0] * (count + 1), [0] * count
    for begin in reversed(range(count)):
        price[begin], end_of[begin] = min((reach.cost + price[reach.end], reach.end) for reach in _allowed(sums, begin, plan))
    ends, begin = [], 0
    while begin < count:
        begin = end_of[begin]
        ends.append(begin)
    return ends


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_fraction: float) -> float:
    """The learning rate of `step` (from 1). It rises linearly to `peak`, then falls linearly; the step after the last would
    have 0.
    """
    warmup_steps = math.ceil(total_steps * warmup_fraction)
    if step <= warmup_steps:
        return peak * (step / warmup_steps)
    return peak * ((total_steps + 1 - step) / (total_steps + 1 - warmup_steps))
