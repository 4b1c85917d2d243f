"""Which cut of a step is the fastest that fits: measurements in, changes of the plan out. Pure; `measuring.py`
measures, and `train.py` obeys.

Covers growing, the bounds in memory by length, the cheapest cut, and where activations are kept or computed twice. It moves
within what the supervisor allows and never past it: the ladder is behind it, and the fence behind that. Running out of memory
is an answer as well (`out_of_memory`), and what it taught is forgotten when there is room again by more than a guess.

A step may use micro-batches of up to twice the tokens that were seen so far, if these are predicted to fit and to be faster. So
no prediction reaches further than that, and the largest micro-batch is not assumed to be the fastest. Where all micro-batches
were of like sizes, another size is tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from memsup.worker.plan.batches import Lengths, Rows, cut, split
from memsup.worker.plan.cost import Costs, Stopwatch, known, work
from memsup.worker.plan.entry import Entry, band_length, band_of
from memsup.worker.plan.footprint import MANY_TOKENS, Fit, Footprint, Shape, shape_of
from memsup.worker.plan.leak import Floor

WORTH_FRACTION, WORTH_FRACTION_LATER, LATER_STEPS = 0.03, 0.10, 256
"""The parts by which a cut has to be faster to be worth other bits: until `LATER_STEPS`, and after them, when the run has
settled."""
FIRST_LOOK_STEPS, LEAST_OFTEN_STEPS = 2, 256
"""The plan is looked at after so many steps, then after twice as many each time, down to the latter."""
EARLY_STEPS = 16
"""In the first steps of a life it is looked at every `FIRST_LOOK_STEPS`: each tells much then."""
FINER_AT_ONCE = 4
"""No change makes more than so many times as many micro-batches of a step, whatever a line says."""
WIDE_SPREAD = 4
"""No other size is tried just to learn what it takes where the largest micro-batch had so many times the tokens of the
smallest."""
NUMBERS_OF_A_LAYER = 34
"""The numbers that a layer keeps for a token and position of the hidden size. If activations are computed twice it keeps one,
and one layer at a time has all, with their gradients (Korthikanti et al. 2022, "Reducing Activation Recomputation"). This is a
guess until memory was measured."""
MANY_LAYERS = 32
"""The number of layers that is assumed of a model that does not say how many it has."""
REFUSED_STEPS = 256
"""The steps after which what did not fit is predicted anew, and may be tried again: other programs give memory back."""
LEAKED_FRACTION = 0.5
"""The part of the room that a leak may eat before it costs a restart, some seconds. In 1.5 GiB, what libraries keep for each
new shape takes a fifth of it within the first fifty steps, and looks like a leak."""
SMALLEST_CHANGE = 1.15
"""The factor by which a bound in memory has to differ to be moved."""
PLANNED_FRACTION, INITIAL_FRACTION = 0.84, 0.88
"""The parts of the worker's limit that micro-batches are planned for, and that those may take with which the run began: the
ladder stops growth at 85 %, asks for less at 90 %, and the planner's line has an error."""
LEAST_ROWS_IN_LANES = 2
"""So many of the longest rows have to fit at once where micro-batches are computed in lanes, each of which has one at least."""


LEAST_STEPS_TO_LEAVE = 8
"""A life of fewer steps does not leave to a new process for want of room: that would hold as much."""


def planned_bytes(limit_bytes: int) -> tuple[int, int]:
    """Of a limit, what micro-batches are planned for, and what those with which the run begins may take."""
    return int(limit_bytes * PLANNED_FRACTION), int(limit_bytes * INITIAL_FRACTION)


class Refusal(NamedTuple):
    """What is not tried again for a while, since memory ran out."""

    tokens: int
    """The tokens with which memory ran out."""
    until_step: int


class Initial(NamedTuple):
    """The micro-batch with which the run began. It may take a little more memory than growth may, since a run in which every
    row is computed alone is slow.
    """

    tokens: int
    """The tokens of this micro-batch, as the settings have them."""
    most_bytes: int
    """The most that a micro-batch of so many tokens, or a single row, may take; it is more than what growth keeps to."""


class Change(NamedTuple):
    """What is to be changed in the plan, and why."""

    fields: dict[str, Any]
    """The new values, as fields of `Entry`."""
    cause: str
    """The clause for people."""
    is_known: bool
    """Whether it is known to be faster. Otherwise it is a trial, from which is learnt what it costs, or a bound has moved."""


class _Lines(NamedTuple):
    """What was learnt of micro-batches in so many lanes; of memory by whether activations were computed twice."""

    stopwatch: Stopwatch
    footprint: dict[bool, Footprint]


class Planner:
    """The planner of one life of the worker. What it finds out goes into the plan, and so outlives it."""

    def __init__(
        self,
        *,
        limit_bytes: int | None,
        longest: int,
        may_checkpoint: bool,
        initial: Initial | None = None,
        layers: int | None = None,
        tunes: bool = True,
        always_checkpoints: bool = False,
        may_offload: bool = False,
        lanes_from_bytes: int | None = None,
    ) -> None:
        """`limit_bytes` is what the worker may hold when all is well. None means that nobody knows, and memory then bounds
        nothing. `longest` is the length of the longest row in tokens, `may_checkpoint` whether the model can compute its
        activations twice, and `layers` how many layers it has. None of `layers` means that it does not say; None of `initial`
        that the first micro-batch has no rights of its own. Where it does not tune, cuts are as the settings have them, and
        what memory took of them is given back; `always_checkpoints` is whether these have activations computed twice anyway.
        `may_offload` is whether a device computes, so that activations may be kept in host memory. `lanes_from_bytes` is the
        least limit with which a second lane is tried before anything was measured of one; None means that it is tried unless
        the limit has fallen.
        """
        self._initial, self._layers = initial, layers or MANY_LAYERS
        self._limit_bytes, self._longest = limit_bytes, longest
        self._may_checkpoint, self._may_offload = may_checkpoint, may_offload
        self._tunes, self._always_checkpoints = tunes, always_checkpoints
        self._most_limit_bytes = limit_bytes or 0
        self._lanes_from_bytes = lanes_from_bytes
        self._lines: dict[int, _Lines] = {}
        """What was learnt, by the number of lanes."""
        self.compute_in(1)
        self._floor = Floor()
        self._first_floor_bytes: int | None = None
        self._held_bytes = 0
        self._refused: dict[tuple[bool, int], Refusal] = {}
        """What did not fit lately, by whether activations were computed twice, and by band."""
        self._tried_smaller: set[int] = set()
        """The numbers of lanes in which a smaller size was tried only to learn what it takes."""
        self._interval_steps = FIRST_LOOK_STEPS
        self._looked_at_step: int | None = None
        self._first_step: int | None = None

    @property
    def limit_bytes(self) -> int | None:
        """What micro-batches are planned to take at most. None means that nobody knows what there is."""
        return self._limit_bytes

    @property
    def longest(self) -> int:
        """The tokens of the longest row."""
        return self._longest

    def compute_in(self, lanes: int) -> None:
        """Tells the number of lanes. Another one takes other times and other memory, so each has lines of its own."""
        self._lanes = lanes
        fresh = _Lines(Stopwatch(), {False: Footprint(), True: Footprint()})
        self._stopwatch, self._footprint = self._lines.setdefault(lanes, fresh)

    def observe(self, shape: Shape, *, checkpointed: bool, peak_bytes: int, before_bytes: int) -> None:
        """Takes in the memory of one micro-batch."""
        self._footprint[checkpointed].observe(shape, peak_bytes, before_bytes)

    def observe_time(self, shape: Shape, *, checkpointed: bool, took_s: float) -> None:
        """Takes in the time of one micro-batch."""
        self._stopwatch.observe(shape, took_s, checkpointed=checkpointed)

    def out_of_memory(self, shape: Shape, *, checkpointed: bool, step: int) -> None:
        """Takes in that memory ran out, which no line predicted: for `REFUSED_STEPS` nothing so large is tried again, and the
        plan is looked at soon.
        """
        band = band_of(shape.length)
        earlier = self._refused.get((checkpointed, band))
        tokens = min(shape.tokens, earlier.tokens) if earlier is not None else shape.tokens
        self._refused[checkpointed, band] = Refusal(tokens, until_step=step + REFUSED_STEPS)
        self.look_soon()

    def limit_to(self, limit_bytes: int, initial_bytes: int) -> bool:
        """Takes in that the worker may hold more or less from now on, and its first micro-batch take up to `initial_bytes`.
        What did not fit into less room is no answer any more. Returns whether it is less than before.
        """
        before_bytes = limit_bytes if self._limit_bytes is None else self._limit_bytes
        if limit_bytes > before_bytes:
            self._refused.clear()
        self._limit_bytes, self._most_limit_bytes = limit_bytes, max(limit_bytes, self._most_limit_bytes)
        if self._initial is not None:
            self._initial = self._initial._replace(most_bytes=initial_bytes)
        self.look_soon()
        return limit_bytes < before_bytes

    def within_limit(self, step: int, plan: Entry) -> dict[str, Any]:
        """What to change of the plan for `step` at once, so that it keeps to a limit that has fallen, as far as is known:
        without a second lane where that has no room for two rows, and with bounds by length that fit.
        """
        changes: dict[str, Any] = {}
        if plan.lanes_used > 1 and not self.fits_in(plan.lanes):
            changes["one_lane"] = True
            self.compute_in(1)
        kept = self._kept()
        if not self._tunes:
            most_tokens = MANY_TOKENS if kept is None else max(1, self._most_tokens(kept, self._longest))
            return changes | ({"ceiling": most_tokens} if most_tokens < plan.most_tokens(self._longest) else {})
        room = self._room(step, _with(plan, changes))
        if changes.get("one_lane") and plan.bands:  # what fitted beside a second lane is no reason to cut larger now
            room["bands"] = tuple(min(pair) for pair in zip(plan.bands, room.get("bands", plan.bands), strict=True))
        return changes | room

    def has_no_room(self, step: int) -> bool:
        """Whether a limit that has fallen is predicted to be too small even for the longest row by itself, with its activations
        computed twice if need be, in a process that has trained for long enough to hold more than a new one would.
        """
        is_new = self._first_step is None or step - self._first_step < LEAST_STEPS_TO_LEAVE
        kept, checkpointed = self._kept(), self._footprint[True].fit()
        if is_new or kept is None or self._limit_bytes is None or self._lanes > 1:  # a second lane goes first
            return False
        most_bytes = self._limit_bytes if self._initial is None else self._initial.most_bytes
        if checkpointed is None and self._may_checkpoint:  # it takes a part of that, and nobody knows which
            checkpointed = kept._replace(per_token=0.0, per_square=0.0)
        lines = [kept] if checkpointed is None else [kept, checkpointed]
        return all(line.most_tokens(self._longest, most_bytes) < self._longest for line in lines)

    def least_bytes(self) -> int | None:
        """What the longest row takes by itself at least, as predicted. None means that too little was seen."""
        fits = [fit for fit in (self._kept(), self._footprint[True].fit() if self._may_checkpoint else None) if fit is not None]
        alone = Shape(1, self._longest)
        return min((int(fit.peak_bytes(alone) + fit.margin_bytes) for fit in fits), default=None)

    def look_soon(self) -> None:
        """Has the plan looked at soon, since something changed that was not measured."""
        self._interval_steps = FIRST_LOOK_STEPS

    def predicted_peak_bytes(self, shape: Shape, *, checkpointed: bool) -> int | None:
        """The peak that a micro-batch like this is expected to reach. None means that too little was seen."""
        fit = self._footprint[checkpointed].fit()
        return None if fit is None else int(fit.peak_bytes(shape))

    def passed(self, peak_bytes: int) -> bool:
        """Whether a peak is above what micro-batches are planned for."""
        return self._limit_bytes is not None and peak_bytes > self._limit_bytes

    def begin_step(self, held_bytes: int) -> None:
        """Takes in what is held at the beginning of a step, when nothing is computed."""
        self._first_floor_bytes, self._held_bytes = self._first_floor_bytes or held_bytes, held_bytes
        self._floor.observe(held_bytes)

    def leak(self, hand_back: Callable[[], int]) -> str | None:
        """Why this process had better leave to a new one, before it comes to the limit and has to. None means that it may stay.

        It may stay until a leak has eaten `LEAKED_FRACTION` of the room that there was. `hand_back` gives to the system what
        nobody uses and returns what is held then: what an allocator keeps for later is no leak.
        """
        leak = self._floor.leak()
        if leak is None or self._limit_bytes is None or self._first_floor_bytes is None:
            return None
        risen_bytes = max(leak.rise_bytes, self._held_bytes - self._first_floor_bytes)
        most_bytes = LEAKED_FRACTION * (self._most_limit_bytes - self._first_floor_bytes)
        if risen_bytes < most_bytes:
            return None
        risen_bytes = hand_back() - self._first_floor_bytes
        if risen_bytes < most_bytes:
            self._floor = Floor()
            return None
        return (
            f"the memory held between steps has risen by {risen_bytes >> 20} MiB and goes on rising, by "
            f"{leak.per_step_bytes / 2**20:.2f} MiB a step: something leaks, and a new process begins without it"
        )

    def look(self, step: int, plan: Entry, coming: Callable[[], Sequence[Lengths]]) -> Change | None:
        """What to change from `step` on; `coming()` are the rows' lengths in the next steps. None means that nothing is to be
        changed, or that it is not yet time to look.
        """
        if self._looked_at_step is None or self._first_step is None:
            self._looked_at_step = self._first_step = step
        if step - self._looked_at_step < self._interval_steps:
            return None
        self._looked_at_step = step
        if step - self._first_step >= EARLY_STEPS:
            self._interval_steps = min(2 * self._interval_steps, LEAST_OFTEN_STEPS)
        if not self._tunes:
            changes = self._given_back(step, plan)
            return Change(changes, "memory may suffice again", is_known=False) if changes else None
        steps = coming()
        if not steps or (plan.limit is not None and plan.limit < plan.start):
            return None  # the supervisor has the word, and gives it back
        worth = WORTH_FRACTION if step <= LATER_STEPS else WORTH_FRACTION_LATER
        room = self._room(step, plan)
        faster = self._faster(_with(plan, room), steps, worth)
        changes = room | (faster.fields if faster else {})
        cause = faster.cause if faster else "what fits into memory has moved, as measured"
        if plan.ceiling is not None:  # one step of trust at a time
            changes["ceiling"] = 2 * plan.ceiling if 2 * plan.ceiling < plan.start else None
            cause = faster.cause if faster else "larger ones are tried again after memory ran out"
        if plan.one_lane and plan.ceiling is None and plan.limit is None and self.fits_in(plan.lanes):
            changes["one_lane"] = False
        if changes.get("checkpointed_from", plan.checkpointed_from) != plan.checkpointed_from:
            self.look_soon()  # rows that were not kept before are: what they take is seen now
        if changes.keys() & {"start", "ceiling", "one_lane"}:
            self.look_soon()
            self._floor = Floor()  # larger micro-batches leave more behind than smaller ones did, which is no leak
        return Change(changes, cause, faster is not None and faster.is_known) if changes else None

    def _given_back(self, step: int, plan: Entry) -> dict[str, Any]:
        """What running out of memory took of the settings' cut, one step of trust at a time, and no more than that. It is tried
        when the last refusal is old, and where it is predicted to fit.
        """
        if plan.limit is not None or any(step < refusal.until_step for refusal in self._refused.values()):
            return {}
        changes: dict[str, Any] = {}
        if plan.ceiling is not None:
            tokens = min(2 * plan.ceiling, plan.start)
            if self._is_trusted(step, tokens, checkpointed=plan.activation_checkpointing):
                changes = {"ceiling": tokens if tokens < plan.start else None}
        elif plan.activation_checkpointing and not self._always_checkpoints:
            if self._is_trusted(step, min(self._longest, plan.start), checkpointed=False):
                changes = {"activation_checkpointing": False}
        elif plan.one_lane and self.fits_in(plan.lanes):
            changes = {"one_lane": False}
        if changes:
            self.look_soon()
            self._floor = Floor()
        return changes

    def _is_trusted(self, step: int, tokens: int, *, checkpointed: bool) -> bool:
        """Whether a micro-batch of so many tokens is predicted to fit. Where nothing is predicted it is trusted when this life
        has gone well for `REFUSED_STEPS`.
        """
        if self._limit_bytes is None:
            return True
        fit = self._footprint[checkpointed].fit()
        if fit is None:
            return self._first_step is not None and step - self._first_step >= REFUSED_STEPS
        return tokens <= self._most_tokens(fit, min(tokens, self._longest))

    # -- memory -------------------------------------------------------------------------------------------------------

    def _room(self, step: int, plan: Entry) -> dict[str, Any]:
        """The bounds in memory by length, and from which length on activations are computed twice, or kept in host memory
        where that is not enough, where they have moved.
        """
        kept, checkpointed = self._kept(), self._footprint[True].fit()
        if self._limit_bytes is None or kept is None:
            return {}
        bands: list[int] = []
        checkpointed_from = on_host_from = None
        for band in range(band_of(self._longest) + 1):
            length = min(band_length(band), self._longest)
            tokens = min(self._most_tokens(kept, length), self._not_refused(step, band, checkpointed=False))
            if self._may_checkpoint and (checkpointed_from is not None or tokens < length):
                begin = band_length(band - 1) + 1 if band else 1
                checkpointed_from = checkpointed_from or begin
                tokens = self._most_tokens(checkpointed, length) if checkpointed else length
                tokens = min(tokens, self._not_refused(step, band, checkpointed=True))
                if self._may_offload and tokens < length:
                    on_host_from = on_host_from or begin
            bands.append(max(tokens, 1))
        if (
            _moved(plan.bands, tuple(bands), plan.start)
            or (checkpointed_from, on_host_from) != (plan.checkpointed_from, plan.on_host_from)
            or plan.activation_checkpointing
        ):
            where = {"checkpointed_from": checkpointed_from, "on_host_from": on_host_from, "activation_checkpointing": False}
            return {"bands": tuple(bands)} | where
        return {}

    def fits_in(self, lanes: int) -> bool:
        """Whether the limit has room for micro-batches in so many lanes. Where they were never measured it is assumed that it
        has, from `lanes_from_bytes` on.
        """
        seen = self._lines.get(lanes)
        fit = seen.footprint[False].fit() if seen else None
        if self._limit_bytes is None:
            return True
        if fit is None:
            from_bytes = self._most_limit_bytes if self._lanes_from_bytes is None else self._lanes_from_bytes
            return self._limit_bytes >= from_bytes
        return fit.most_tokens(self._longest, self._limit_bytes) >= LEAST_ROWS_IN_LANES * self._longest

    def _most_tokens(self, fit: Fit, length: int) -> int:
        """The most tokens of a micro-batch padded to `length` that fit: as far as growth goes, or the initial ones where these
        take a little more.
        """
        assert self._limit_bytes is not None
        most = fit.most_tokens(length, self._limit_bytes)
        if self._initial is None:
            return most
        return max(most, min(max(self._initial.tokens, length), fit.most_tokens(length, self._initial.most_bytes)))

    def _not_refused(self, step: int, band: int, *, checkpointed: bool) -> int:
        """Half of the tokens with which memory ran out lately, in this band; no bound where it did not."""
        refusal = self._refused.get((checkpointed, band))
        return refusal.tokens // 2 if refusal is not None and step < refusal.until_step else MANY_TOKENS

    def _kept(self) -> Fit | None:
        """The line of memory for activations that are kept. Where they never were, it is that of more lanes, or a guess from
        those computed twice: too high rather than too low. None means that nothing is known.
        """
        fit = self._footprint[False].fit()
        checkpointed = self._footprint[True].fit()
        if fit is None and self._lanes == 1:  # more lanes take more
            known = (lines.footprint[False].fit() for lanes, lines in self._lines.items() if lanes > 1)
            fit = next((line for line in known if line is not None), None)
        if fit is None and checkpointed is not None:
            layers = self._layers
            times = max(1.0, layers * NUMBERS_OF_A_LAYER / (layers + 2 * NUMBERS_OF_A_LAYER))
            return checkpointed._replace(per_token=times * checkpointed.per_token, per_square=layers * checkpointed.per_square)
        return fit

    # -- time ---------------------------------------------------------------------------------------------------------

    def _faster(self, plan: Entry, coming: Sequence[Lengths], worth: float) -> Change | None:
        """The costs, if cutting by them is faster by `worth`, and a further reach, if that is; or a size to try.

        What was seen may be noise, so a cut is faster if it is so by more than the standard error. One that reaches further
        than was seen is tried where it is expected to be: no line is sure there, and the trial tells. Either way it goes a part
        of the way at a time, and what comes then says whether it goes on.
        """
        line, (smallest, largest) = self._stopwatch.fit(), self._stopwatch.tokens_seen
        if line is None and plan.costs is not None:
            line = known(plan.costs)
        if line is None:
            return self._wider(plan, coming, smallest, largest)
        if not largest:
            return None
        costs = _not_much_finer(line.costs, plan, coming)
        now = work(shape for lengths in coming for shape in _shapes(lengths, plan))
        price = float(now @ line.weights)
        best, found = 0.0, None
        for better in ({"costs": costs}, {"costs": costs, "start": 2 * largest}):
            shapes = [shape for lengths in coming for shape in _shapes(lengths, _with(plan, better))]
            gain, error = line.gain(now, work(shapes))
            largest_used = max(shape.tokens for shape in shapes)
            is_known, share = largest_used <= largest, f"{100 * gain / price:.0f} % faster"
            gain -= error if is_known else 0.0
            if gain > best + worth * price:
                cause = f"measured: {share}" if is_known else f"tried: expected to be {share}"
                best, found = gain, Change(better | {"start": largest_used}, cause, is_known)  # further would only take memory
        return found

    def _wider(self, plan: Entry, coming: Sequence[Lengths], smallest: int, largest: int) -> Change | None:
        """Another size to try where all micro-batches were of like sizes: larger if memory allows it, or else, once, as much
        smaller as tells something.
        """
        if largest >= WIDE_SPREAD * smallest:
            self.look_soon()  # they tell it by themselves, as soon as there are enough of them
            return None
        starts = [2 * largest] if self._lanes in self._tried_smaller else [2 * largest, largest // WIDE_SPREAD]
        now = [len(_cut(lengths, plan)) for lengths in coming]
        for start in starts:
            others = [_cut(lengths, _with(plan, {"start": start})) for lengths in coming]
            fills_lanes = [len(rows) >= self._lanes for cut in others for rows in cut]  # no time is taken of those that do not
            is_timed = any(fills_lanes) if start > largest else 2 * sum(fills_lanes) > len(fills_lanes)
            if is_timed and [len(cut) for cut in others] != now:
                if start < largest:
                    self._tried_smaller.add(self._lanes)
                return Change({"start": start}, "tried: what another size costs is not known yet", False)
        return None


def _not_much_finer(costs: Costs, plan: Entry, coming: Sequence[Lengths]) -> Costs:
    """`costs`, with a start that is dear enough to cut the coming steps into `FINER_AT_ONCE` times as many parts at most."""
    most = FINER_AT_ONCE * sum(len(_cut(lengths, plan)) for lengths in coming)
    while costs.start < MANY_TOKENS and sum(len(_cut(lengths, _with(plan, {"costs": costs}))) for lengths in coming) > most:
        costs = msgspec.structs.replace(costs, start=1.5 * costs.start + 4)
    return costs


def _shapes(lengths: Lengths, plan: Entry) -> Iterator[Shape]:
    for rows in _cut(lengths, plan):
        yield shape_of([lengths[part] for part in split(rows, lengths[rows], plan)], packed=plan.packed)


def _cut(lengths: Lengths, plan: Entry) -> list[Rows]:
    return cut(np.arange(len(lengths)), lengths, plan)


def _moved(before: tuple[int, ...], after: tuple[int, ...], reach: int) -> bool:
    """Whether bounds differ by `SMALLEST_CHANGE` or more, as far as micro-batches reach."""
    for old, new in zip(before or [2 * reach] * len(after), after, strict=True):
        ratio = (min(new, 2 * reach) + 1) / (min(old, 2 * reach) + 1)
        if not 1 / SMALLEST_CHANGE < ratio < SMALLEST_CHANGE:
            return True
    return False


def _with(plan: Entry, changes: dict[str, Any]) -> Entry:
    return msgspec.structs.replace(plan, **changes)
