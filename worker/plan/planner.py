"""Which cut of a step is the fastest that fits: measurements in, changes of the plan out. Pure; `train.py` measures and obeys.

Covers growing, the bounds in memory by length, the cheapest cut, and where activations are kept or computed twice. It moves
within what the supervisor allows and never past it: the ladder is behind it, and the fence behind that. Running out of memory
is an answer as well (`out_of_memory`), and what it taught is forgotten when there is room again by more than a guess.

A step may use micro-batches of up to twice the tokens that were seen so far, if these are predicted to fit and to be faster. So
a prediction never reaches further than that, and the largest micro-batch is not taken for the fastest. Where all were of nearly
one size, another size is tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from memsup.worker.plan.batches import Lengths, Rows, cut, split
from memsup.worker.plan.cost import Costs, Stopwatch
from memsup.worker.plan.entry import Entry, band_length, band_of
from memsup.worker.plan.footprint import MANY_TOKENS, Fit, Footprint, Shape, shape_of
from memsup.worker.plan.leak import Floor

WORTH_FRACTION, WORTH_FRACTION_LATER, LATER_STEPS = 0.03, 0.10, 256
"""A cut that is not faster by this much is not worth a change: it gives other bits. More so when the run has settled."""
FIRST_LOOK_STEPS, LEAST_OFTEN_STEPS = 2, 256
"""The plan is looked at after so many steps, then after twice as many each time, down to the latter."""
NUMBERS_OF_A_LAYER = 34
"""That a layer keeps for a token and position of the hidden size. If they are computed twice it keeps one, and one layer at a
time has all, with their gradients (Korthikanti et al. 2022, "Reducing Activation Recomputation"). A guess until measured."""
MANY_LAYERS = 32
"""Taken for a model that does not say how many it has."""
REFUSED_STEPS = 256
"""Other programs give memory back: what did not fit is predicted anew, and may be tried again, after so many steps."""
LEAKED_FRACTION = 0.5
"""A leak costs a restart, some seconds, each time it has eaten this part of the room. In 1.5 GiB, what libraries keep for each
new shape takes a fifth of it within the first fifty steps, and looks like a leak."""
SMALLEST_CHANGE = 1.15
"""Bounds in memory are moved by this factor at least, or when they are passed."""


class Refusal(NamedTuple):
    tokens: int
    """With which memory ran out."""
    until_step: int


class Initial(NamedTuple):
    """What the run began with is only taken from it for a good reason: where every row is computed alone, all is slow."""

    tokens: int
    """Of a micro-batch, as the settings have it."""
    most_bytes: int
    """Micro-batches of so many tokens, and single rows, may take this much: more than what growth keeps to."""


class Planner:
    """Of one life of the worker. What it found out is in the plan, and so outlives it."""

    def __init__(
        self,
        *,
        limit_bytes: int | None,
        longest: int,
        may_checkpoint: bool,
        initial: Initial | None = None,
        layers: int | None = None,
    ) -> None:
        """`limit_bytes`: what the worker may hold when all is well; None: nobody knows. `longest`: of all rows, in tokens.
        `may_checkpoint`: activations. `layers`: of the model, where it says so.
        """
        self._initial, self._layers = initial, layers or MANY_LAYERS
        self._limit_bytes, self._longest = limit_bytes, longest
        self._may_checkpoint = may_checkpoint
        self._lanes = 0
        self.compute_in(1)
        self._floor = Floor()
        self._first_floor_bytes: int | None = None
        self._held_bytes = 0
        self._refused: dict[tuple[bool, int], Refusal] = {}
        """By whether activations were computed twice, and band."""
        self._interval_steps = FIRST_LOOK_STEPS
        self._looked_at_step: int | None = None

    def compute_in(self, lanes: int) -> None:
        """Another number takes other times and other memory: these are learnt anew."""
        if lanes != self._lanes:
            self._lanes = lanes
            self._stopwatch = {False: Stopwatch(), True: Stopwatch()}
            self._footprint = {False: Footprint(), True: Footprint()}

    def observe(self, shape: Shape, *, checkpointed: bool, took_s: float | None, peak_bytes: int, before_bytes: int) -> None:
        """One micro-batch. `took_s` None: not measured, or disturbed."""
        if took_s is not None:
            self._stopwatch[checkpointed].observe(shape, took_s)
        self._footprint[checkpointed].observe(shape, peak_bytes, before_bytes)

    def out_of_memory(self, shape: Shape, *, checkpointed: bool, step: int) -> None:
        """No line predicted this: for some time nothing so large is tried again, and the plan is looked at soon."""
        band = band_of(shape.length)
        earlier = self._refused.get((checkpointed, band))
        tokens = min(shape.tokens, earlier.tokens) if earlier is not None else shape.tokens
        self._refused[checkpointed, band] = Refusal(tokens, until_step=step + REFUSED_STEPS)
        self.look_soon()

    def look_soon(self) -> None:
        """Something changed that it has not measured."""
        self._interval_steps = FIRST_LOOK_STEPS

    def predicted_peak_bytes(self, shape: Shape, *, checkpointed: bool) -> int | None:
        """Of a micro-batch like this. None: not known yet."""
        fit = self._footprint[checkpointed].fit()
        return None if fit is None else int(fit.peak_bytes(shape))

    def passed(self, peak_bytes: int) -> bool:
        """Whether that is more than micro-batches are planned for."""
        return self._limit_bytes is not None and peak_bytes > self._limit_bytes

    def begin_step(self, held_bytes: int) -> None:
        """What is held when nothing is computed."""
        self._first_floor_bytes, self._held_bytes = self._first_floor_bytes or held_bytes, held_bytes
        self._floor.observe(held_bytes)

    def leak(self, hand_back: Callable[[], int]) -> str | None:
        """Why this process had better leave to a new one, before it comes to the limit and has to. None: it had not.

        It may go on until a leak has eaten `LEAKED_FRACTION` of the room that there was. `hand_back` gives to the system what
        nobody uses and returns what is held then: what an allocator keeps for later is no leak.
        """
        leak = self._floor.leak()
        if leak is None or self._limit_bytes is None or self._first_floor_bytes is None:
            return None
        risen_bytes = max(leak.rise_bytes, self._held_bytes - self._first_floor_bytes)
        most_bytes = LEAKED_FRACTION * (self._limit_bytes - self._first_floor_bytes)
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

    def look(self, step: int, plan: Entry, coming: Callable[[], Sequence[Lengths]]) -> dict[str, Any] | None:
        """What to change from `step` on, as fields of `Entry`; `coming()` are the rows' lengths in the next steps.

        None: nothing, or it is not yet time to look.
        """
        if self._looked_at_step is None:
            self._looked_at_step = step
        if step - self._looked_at_step < self._interval_steps:
            return None
        self._looked_at_step = step
        self._interval_steps = min(2 * self._interval_steps, LEAST_OFTEN_STEPS)
        changes: dict[str, Any] = {}
        steps = coming()
        if not steps or (plan.limit is not None and plan.limit < plan.start):
            return None  # the supervisor has the word, and gives it back
        changes |= self._room(step, plan)
        worth = WORTH_FRACTION if step <= LATER_STEPS else WORTH_FRACTION_LATER
        changes |= self._faster(_with(plan, changes), steps, worth)
        if plan.ceiling is not None:  # one step of trust at a time
            changes["ceiling"] = 2 * plan.ceiling if 2 * plan.ceiling < plan.start else None
        if plan.one_lane and plan.ceiling is None and plan.limit is None:
            changes["one_lane"] = False
        if changes.get("checkpointed_from", plan.checkpointed_from) != plan.checkpointed_from:
            self.look_soon()  # rows that were not kept before are: what they take is seen now
        if changes.keys() & {"start", "ceiling", "one_lane"}:
            self.look_soon()
            self._floor = Floor()  # larger micro-batches leave more behind than smaller ones did, which is no leak
        return changes or None

    # -- memory -------------------------------------------------------------------------------------------------------

    def _room(self, step: int, plan: Entry) -> dict[str, Any]:
        """The bounds by length, and from which length on activations are computed twice."""
        kept, checkpointed = self._kept(), self._footprint[True].fit()
        if self._limit_bytes is None or kept is None:
            return {}
        bands: list[int] = []
        checkpointed_from = None
        for band in range(band_of(self._longest) + 1):
            length = min(band_length(band), self._longest)
            tokens = min(self._most_tokens(kept, length), self._not_refused(step, band, checkpointed=False))
            if self._may_checkpoint and (checkpointed_from is not None or tokens < length):
                if checkpointed_from is None:
                    checkpointed_from = band_length(band - 1) + 1 if band else 1
                tokens = self._most_tokens(checkpointed, length) if checkpointed else length
                tokens = min(tokens, self._not_refused(step, band, checkpointed=True))
            bands.append(max(tokens, 1))
        if (
            _moved(plan.bands, tuple(bands), plan.start)
            or checkpointed_from != plan.checkpointed_from
            or plan.activation_checkpointing
        ):
            return {"bands": tuple(bands), "checkpointed_from": checkpointed_from, "activation_checkpointing": False}
        return {}

    def _most_tokens(self, fit: Fit, length: int) -> int:
        """That fit: as far as growth goes, or what the run began with, where that takes a little more."""
        assert self._limit_bytes is not None
        most = fit.most_tokens(length, self._limit_bytes)
        if self._initial is None:
            return most
        return max(most, min(max(self._initial.tokens, length), fit.most_tokens(length, self._initial.most_bytes)))

    def _not_refused(self, step: int, band: int, *, checkpointed: bool) -> int:
        """Tokens that are no more than half of those with which memory ran out lately."""
        refusal = self._refused.get((checkpointed, band))
        return refusal.tokens // 2 if refusal is not None and step < refusal.until_step else MANY_TOKENS

    def _kept(self) -> Fit | None:
        """The line for activations that are kept; where they never were, a guess that is too high rather than too low."""
        fit = self._footprint[False].fit()
        checkpointed = self._footprint[True].fit()
        if fit is None and checkpointed is not None:
            layers = self._layers
            times = max(1.0, layers * NUMBERS_OF_A_LAYER / (layers + 2 * NUMBERS_OF_A_LAYER))
            return checkpointed._replace(per_token=times * checkpointed.per_token, per_square=layers * checkpointed.per_square)
        return fit

    # -- time ---------------------------------------------------------------------------------------------------------

    def _faster(self, plan: Entry, coming: Sequence[Lengths], worth: float) -> dict[str, Any]:
        """The costs, if cutting by them is faster, and a further reach, if that is."""
        watch = max(self._stopwatch.values(), key=len)  # computing activations twice makes all of them slower alike
        costs, (smallest, largest) = watch.fit(), watch.tokens_seen
        if costs is None:
            return self._wider(plan, coming, smallest, largest)
        best, changes = _price(plan, coming, costs), dict[str, Any]()
        for better in ({"costs": costs}, {"costs": costs, "start": 2 * largest}):
            after = _with(plan, better)
            price = _price(after, coming, costs)
            if price < best * (1 - worth):
                largest_used = max(shape.tokens for lengths in coming for shape in _shapes(lengths, after))
                best, changes = price, better | {"start": largest_used}  # further would only take memory
        return changes

    def _wider(self, plan: Entry, coming: Sequence[Lengths], smallest: int, largest: int) -> dict[str, Any]:
        """Micro-batches of nearly one size were seen: tries others, larger ones if memory allows them, or smaller ones."""
        now = [len(_cut(lengths, plan)) for lengths in coming]
        for start in (2 * largest, smallest // 4):
            others = [_cut(lengths, _with(plan, {"start": start})) for lengths in coming]
            if any(len(rows) > 1 for cut in others for rows in cut) and [len(cut) for cut in others] != now:
                return {"start": start}
        return {}


def _price(plan: Entry, coming: Sequence[Lengths], costs: Costs) -> float:
    """Of the coming steps, in tokens, if they are cut as `plan` has it. Of a micro-batch in lanes that part counts which takes
    longer.
    """
    price = 0.0
    for lengths in coming:
        for shape in _shapes(lengths, plan):
            part = shape.heaviest
            price += costs.of(part.tokens, part.length)
    return price


def _shapes(lengths: Lengths, plan: Entry) -> Iterator[Shape]:
    for rows in _cut(lengths, plan):
        yield shape_of([lengths[part] for part in split(rows, lengths[rows], plan)])


def _cut(lengths: Lengths, plan: Entry) -> list[Rows]:
    return cut(np.arange(len(lengths)), lengths, plan)


def _moved(before: tuple[int, ...], after: tuple[int, ...], reach: int) -> bool:
    """Whether bounds differ by enough, as far as micro-batches reach."""
    for old, new in zip(before or [2 * reach] * len(after), after, strict=True):
        ratio = (min(new, 2 * reach) + 1) / (min(old, 2 * reach) + 1)
        if not 1 / SMALLEST_CHANGE < ratio < SMALLEST_CHANGE:
            return True
    return False


def _with(plan: Entry, changes: dict[str, Any]) -> Entry:
    return msgspec.structs.replace(plan, **changes)
