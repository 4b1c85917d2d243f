"""The planner finds the fastest cut that fits, without being told anything: on made-up machines with known costs and memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memsup.worker.plan.batches import Lengths, Rows, cut, split
from memsup.worker.plan.cost import Costs, Stopwatch, work
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.footprint import LEAST_MARGIN_BYTES, Footprint, Shape, non_negative_least_squares, shape_of
from memsup.worker.plan.planner import LEAST_OFTEN_STEPS, REFUSED_STEPS, Change, Initial, Planner

MIB = 1 << 20
EFFECTIVE = 16


def plan(start: int, **bounds: Any) -> Entry:
    return Entry(step=1, start=start, cause="a test", at_unix_s=0.0, **bounds)


@dataclass
class Machine:
    """What micro-batches really take here. `noise`: others make some of them slower."""

    start_s: float = 0.002
    token_s: float = 1e-4
    square_s: float = 0.0
    size_s: float = 0.0
    floor_bytes: int = 500 * MIB
    token_bytes: int = MIB // 4
    square_bytes: int = 0
    lane_bytes: int = 0
    """What a second lane takes by itself: another gradient."""
    noise: float = 0.0
    seed: int = 1
    twice: float = 4 / 3
    """By how much longer it takes if activations are computed twice."""
    recomputed: float = 1 / 8
    """Part of a token's memory that is taken when activations are computed twice."""
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def took_s(self, shape: Shape, *, checkpointed: bool = False) -> float:
        seconds = self.start_s + shape.tokens * (self.token_s + self.square_s * shape.length + self.size_s * shape.tokens)
        return seconds * (self.twice if checkpointed else 1) * (1 + self.noise * self.random.exponential())

    def peak_bytes(self, shape: Shape, *, checkpointed: bool = False) -> int:
        part = self.recomputed if checkpointed else 1.0
        taken = part * (shape.tokens * self.token_bytes + shape.squares * self.square_bytes)
        return self.floor_bytes + int(taken) + (self.lane_bytes if shape.beside else 0)

    def step(self, lengths: Lengths, entry: Entry, planner: Planner | None = None) -> tuple[float, int]:
        """Seconds, and the peak in bytes."""
        seconds, peaks = 0.0, []
        if planner is not None:
            planner.compute_in(entry.lanes_used)
        for rows in cut(np.arange(len(lengths)), lengths, entry):
            parts = split(rows, lengths[rows], entry)
            shape = shape_of([lengths[part] for part in parts])
            checkpointed = entry.checkpoints_activations(shape.length)
            took_s = self.took_s(shape.heaviest, checkpointed=checkpointed)
            peak_bytes = self.peak_bytes(shape, checkpointed=checkpointed)
            if entry.keeps_on_host(shape.length):
                peak_bytes = self.floor_bytes
            elif planner is not None:
                planner.observe(shape, checkpointed=checkpointed, peak_bytes=peak_bytes, before_bytes=self.floor_bytes)
                if len(parts) == entry.lanes_used:
                    planner.observe_time(shape, checkpointed=checkpointed, took_s=took_s)
            seconds += took_s
            peaks.append(peak_bytes)
        return seconds, max(peaks)


@dataclass
class Night:
    """Steps over reviews of many lengths under one planner."""

    machine: Machine
    limit_bytes: int | None
    entry: Entry
    longest: int = 512
    seed: int = 3
    uniform: bool = False
    """All texts are as long as the longest."""
    initial: Initial | None = None
    on_device: bool = False
    step: int = 0
    peaks: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    told: list[Change] = field(default_factory=list)
    begun_with: int = field(init=False)

    def __post_init__(self) -> None:
        self.begun_with = self.entry.start
        self.planner = Planner(
            limit_bytes=self.limit_bytes,
            longest=self.longest,
            may_checkpoint=True,
            initial=self.initial,
            may_offload=self.on_device,
        )

    def lengths(self, step: int) -> Lengths:
        if self.uniform:
            return np.full(EFFECTIVE, self.longest, np.int32)
        drawn = np.random.default_rng([self.seed, step]).lognormal(4.0, 0.9, EFFECTIVE)
        return np.clip(drawn, 4, self.longest).astype(np.int32)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            _, peak_bytes = self.machine.step(self.lengths(self.step), self.entry, self.planner)
            self.peaks.append(peak_bytes)
            coming = range(self.step + 1, self.step + 33)
            change = self.planner.look(self.step + 1, self.entry, lambda: [self.lengths(s) for s in coming])  # noqa: B023
            if change is not None:
                self.entry = msgspec.structs.replace(self.entry, step=self.step + 1, **change.fields)
                self.changes.append(self.step + 1)
                self.told.append(change)

    def limit_to(self, limit_bytes: int) -> None:
        """The supervisor says between two steps what there is to plan for, as `micro_batch_limit.py` takes it in."""
        if self.planner.limit_to(limit_bytes, limit_bytes):
            changes = self.planner.within_limit(self.step + 1, self.entry)
            self.entry = msgspec.structs.replace(self.entry, step=self.step + 1, **changes)

    def seconds(self, entry: Entry) -> float:
        """Of a hundred steps that are cut like this, without the noise."""
        quiet = Machine(**{f: getattr(self.machine, f) for f in ("start_s", "token_s", "square_s", "size_s")})
        return sum(quiet.step(self.lengths(step), entry)[0] for step in range(10_000, 10_100))

    def best_fixed_s(self) -> float:
        """Of those that memory allows with activations kept, and the least margin that a prediction has."""
        sizes, fit = (64, 128, 256, 512, 1024, 2048, 4096, 8192), ()
        if self.limit_bytes is not None:
            room_bytes = self.limit_bytes - self.machine.floor_bytes - LEAST_MARGIN_BYTES
            fit = (max(1, room_bytes // self.machine.token_bytes),)
        return min(self.seconds(plan(tokens, lanes=self.entry.lanes, bands=fit)) for tokens in sizes)

    def used(self) -> list[int]:
        """The sizes it has computed with, one after the other; none is larger than a whole step."""
        sizes = [self.begun_with, *(change.fields.get("start") for change in self.told)]
        most = EFFECTIVE * self.longest
        return [size for size, _ in itertools.groupby(min(size, most) for size in sizes if size is not None)]

    def went_and_came_back(self) -> list[int]:
        """The sizes that were more than twice, or less than half, of what came before and after."""
        threes = zip(self.used(), self.used()[1:], self.used()[2:], strict=False)
        return [two for one, two, three in threes if two > 2 * max(one, three) or 2 * two < min(one, three)]


# -- the whole ---------------------------------------------------------------------------------------------------------

LARGE_IS_FAST = Machine(start_s=0.02, token_s=2e-5)
SMALL_IS_FAST = Machine(start_s=0.003, token_s=1e-4, size_s=1.2e-7)


@pytest.mark.parametrize("machine", [LARGE_IS_FAST, SMALL_IS_FAST], ids=["a device", "a processor with small caches"])
@pytest.mark.parametrize("start", [128, 1024, 4096])
@pytest.mark.parametrize("lanes", [1, 2])
def test_wherever_it_starts_it_is_soon_as_fast_as_the_best_fixed_size(machine: Machine, start: int, lanes: int) -> None:
    night = Night(machine, limit_bytes=16 << 30, entry=plan(start, lanes=lanes))
    night.run(120)
    assert night.seconds(night.entry) <= 1.05 * night.best_fixed_s()


@pytest.mark.parametrize("start", [257, 1024])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_small_job_finds_its_cut_within_twenty_steps_and_does_not_flutter(start: int, noise: float) -> None:
    """Nothing is tried that is a tenth of what is computed with: a step of so many micro-batches takes its time."""
    night = Night(Machine(token_s=2e-5, noise=noise), limit_bytes=16 << 30, entry=plan(start), longest=48)
    used = [start]
    for step in range(1, 61):
        night.run(1)
        used.append(night.entry.micro_tokens)
        if step == 20:
            assert night.seconds(night.entry) <= 1.10 * night.best_fixed_s()
    assert len(night.changes) <= 4
    assert all(one < 8 * other and other < 8 * one for one, other in itertools.pairwise(used)), used
    assert night.seconds(night.entry) <= 1.05 * night.best_fixed_s()


@dataclass
class Unsteady(Machine):
    """A machine whose first micro-batches are slower, as are the first of each size, and all of them off, whichever way."""

    slow_first: int = 60
    slower: float = 0.1
    """By how much the first `slow_first` are."""
    slower_size: float = 0.0
    """By how much the first of each size is, for which memory is fresh and kernels are chosen."""
    off: float = 0.15
    """By how much any may be off."""
    computed: int = 0
    sizes: set[tuple[int, bool]] = field(default_factory=set)

    def took_s(self, shape: Shape, *, checkpointed: bool = False) -> float:
        self.computed += 1
        slower = 1 + self.slower if self.computed <= self.slow_first else 1.0
        size = int(4 * np.log2(shape.tokens)), checkpointed
        if size not in self.sizes:
            self.sizes.add(size)
            slower *= 1 + self.slower_size
        return super().took_s(shape, checkpointed=checkpointed) * slower * self.random.uniform(1 - self.off, 1 + self.off)


@settings(max_examples=6, deadline=None)
@given(
    start_s=st.floats(-4, -1.5).map(lambda power: 10**power),
    token_s=st.floats(-5, -3).map(lambda power: 10**power),
    size=st.sampled_from([0.0, 1e-5, 1e-4, 1e-3]),
    start=st.sampled_from([64, 257, 1024]),
    longest=st.sampled_from([48, 128, 512]),
    lanes=st.sampled_from([1, 2]),
    slow_first=st.sampled_from([20, 60, 200]),
    seed=st.integers(0, 99),
)
@example(start_s=0.027, token_s=3.4e-5, size=7e-5, start=257, longest=48, lanes=2, slow_first=60, seed=30)
@example(start_s=1e-4, token_s=1e-4, size=1e-3, start=257, longest=48, lanes=1, slow_first=20, seed=41)
def test_on_an_unsteady_machine_it_settles_within_twenty_steps_and_stays_there(
    start_s: float, token_s: float, size: float, start: int, longest: int, lanes: int, slow_first: int, seed: int
) -> None:
    """It moves by more than a factor of 2 later only where that is really faster, and tries nothing that takes many times as
    long as what it has.
    """
    machine = Unsteady(start_s=start_s, token_s=token_s, size_s=size * token_s, slow_first=slow_first, seed=seed)
    night = Night(machine, limit_bytes=16 << 30, entry=plan(start, lanes=lanes), longest=longest, seed=seed)
    used, then_s = [start], night.seconds(night.entry)
    for _ in range(20):
        night.run(1)
        used.append(night.entry.micro_tokens)
        if night.changes and night.changes[-1] == night.step + 1:
            before_s, then_s = then_s, night.seconds(night.entry)
            assert then_s <= 4.5 * before_s, used
    assert then_s <= 1.15 * night.best_fixed_s(), used
    for _ in range(40):
        night.run(1)
        used.append(night.entry.micro_tokens)
    settled = [min(tokens, EFFECTIVE * longest) for tokens in used[20:]]
    assert max(settled) <= 2 * min(settled) or night.seconds(night.entry) <= 0.985 * then_s, used


SMALL_JOBS = {
    "start_s": st.floats(-4, -1.5).map(lambda power: 10**power),
    "in_tokens": st.floats(0.5, 3).map(lambda power: 10**power),
    "bent_at": st.sampled_from([None, 300, 1000, 4000, 20000]),
    "padding_at": st.sampled_from([None, 500, 2000]),
    "noise": st.sampled_from([0.0, 0.05, 0.2, 0.4]),
    "off": st.sampled_from([0.0, 0.05, 0.15]),
    "slower_size": st.sampled_from([0.0, 0.1, 0.3]),
    "slower": st.sampled_from([0.0, 0.1, 0.3]),
    "slow_first": st.sampled_from([5, 20, 60, 200]),
    "twice": st.floats(1.2, 1.45),
    "checkpointing": st.booleans(),
    "lanes": st.sampled_from([1, 2]),
    "longest": st.sampled_from([48, 128, 256, 512]),
    "start": st.sampled_from([64, 128, 257, 1024, 4096]),
    "rows_that_fit": st.sampled_from([None, 3, 6, 12]),
    "seed": st.integers(0, 999),
}
"""`start_s` of a micro-batch is what `in_tokens` tokens take; from so many tokens on, or at such a length, a token takes twice
as long; of the longest row so many fit into memory."""


def small_job(
    *,
    start_s: float,
    in_tokens: float,
    bent_at: int | None,
    padding_at: int | None,
    checkpointing: bool,
    lanes: int,
    longest: int,
    start: int,
    rows_that_fit: int | None,
    seed: int,
    **machine: Any,
) -> Night:
    token_s = start_s / in_tokens
    unsteady = Unsteady(
        start_s=start_s,
        token_s=token_s,
        size_s=token_s / bent_at if bent_at else 0.0,
        square_s=token_s / padding_at if padding_at else 0.0,
        token_bytes=MIB // 8,
        seed=seed,
        **machine,
    )
    limit_bytes = 16 << 30
    if rows_that_fit is not None:
        limit_bytes = unsteady.floor_bytes + rows_that_fit * longest * unsteady.token_bytes + LEAST_MARGIN_BYTES
        start = min(start, max(64, longest))
    entry = plan(start, lanes=lanes, activation_checkpointing=checkpointing)
    return Night(unsteady, limit_bytes=limit_bytes, entry=entry, longest=longest, seed=seed)


@settings(max_examples=12)
@given(**SMALL_JOBS)
def test_whatever_the_machine_it_has_its_cut_within_twenty_steps_without_going_to_and_fro(**job: Any) -> None:
    """A size is tried and left again at most once, where nothing else tells what sizes cost; also when the activations of the
    first steps were computed twice, and those of later ones are kept.
    """
    has_room = job["rows_that_fit"] is None  # else what a prediction may be off by takes much of the little that there is
    night = small_job(**job)
    night.run(20)
    after_20_s = night.seconds(night.entry)
    night.run(40)
    assert len(night.went_and_came_back()) <= 1, night.used()
    assert after_20_s <= (1.25 if has_room else 1.35) * night.best_fixed_s(), night.used()
    assert night.seconds(night.entry) <= (1.10 if has_room else 1.35) * night.best_fixed_s(), night.used()


@pytest.mark.parametrize("twice", [1.2, 4 / 3, 1.45])
def test_what_was_seen_before_activations_were_kept_spares_a_trial(twice: float) -> None:
    """The first steps computed them twice, and so told what sizes cost; 64 tokens were tried between 512 and 512."""
    machine = Unsteady(start_s=0.0197, token_s=5.06e-5, slower_size=0.1, off=0.0, token_bytes=MIB // 16, twice=twice)
    entry = plan(256, lanes=2, activation_checkpointing=True)
    night = Night(machine, limit_bytes=4000 * MIB, entry=entry, longest=128)
    night.run(20)
    assert night.went_and_came_back() == []
    assert night.seconds(night.entry) <= 1.05 * night.best_fixed_s()


@pytest.mark.parametrize("seed", range(8))
def test_noise_of_others_does_not_lead_it_astray(seed: int) -> None:
    machine = Machine(start_s=0.003, token_s=1e-4, size_s=1.2e-7, noise=0.4, seed=seed)
    night = Night(machine, limit_bytes=16 << 30, entry=plan(1024), seed=seed)
    night.run(200)
    assert night.seconds(night.entry) <= 1.10 * night.best_fixed_s()


@pytest.mark.parametrize("start", [128, 4096])
def test_texts_of_one_length_are_learnt_from_as_well(start: int) -> None:
    """Micro-batches of one size tell nothing of others, so others are tried."""
    night = Night(LARGE_IS_FAST, limit_bytes=16 << 30, entry=plan(start), longest=128, uniform=True)
    night.run(60)
    assert night.seconds(night.entry) <= 1.05 * night.best_fixed_s()


@given(
    token_bytes=st.integers(MIB // 64, MIB),
    square_bytes=st.sampled_from([0, 64, 512]),
    limit_mib=st.integers(700, 6000),
    seed=st.integers(0, 1000),
    lanes=st.integers(1, 2),
)
@settings(max_examples=30, deadline=None)
def test_whatever_a_token_takes_it_grows_to_the_limit_and_not_beyond(
    token_bytes: int, square_bytes: int, limit_mib: int, seed: int, lanes: int
) -> None:
    machine = Machine(start_s=0.05, token_s=1e-5, token_bytes=token_bytes, square_bytes=square_bytes, seed=seed)
    begin = plan(64, activation_checkpointing=True, lanes=lanes)
    night = Night(machine, limit_bytes=limit_mib * MIB, entry=begin, seed=seed)
    night.run(100)
    one_row = max(machine.peak_bytes(Shape(1, 512), checkpointed=True), limit_mib * MIB)  # one row is always computed
    assert max(night.peaks) <= 1.02 * one_row
    assert len(night.changes) < 25, "the plan flutters"


@pytest.mark.parametrize("start", [16, 1024, 8192])
def test_a_trial_is_not_called_a_success(start: int) -> None:
    """Only what was measured as faster is news. Each says what it is, and the news of a run are a few lines."""
    night = Night(SMALL_IS_FAST, limit_bytes=16 << 30, entry=plan(start))
    night.run(600)
    news = [change for change in night.told if change.is_known]
    assert all(change.cause.startswith("measured: ") and "faster" in change.cause for change in news)
    assert not [change for change in night.told if not change.is_known and change.cause.startswith("measured: ")]
    assert len(news) <= 4
    if start != 1024:  # nothing can be known before another size was tried, but there the small rests of steps are another
        assert night.told[0] not in news


def test_a_quiet_run_is_left_alone() -> None:
    night = Night(SMALL_IS_FAST, limit_bytes=16 << 30, entry=plan(1024))
    night.run(800)
    assert not [step for step in night.changes if step > 200]


def test_rows_that_do_not_fit_otherwise_are_computed_twice_and_only_they() -> None:
    machine = Machine(token_bytes=MIB)
    night = Night(machine, limit_bytes=(500 + 330) * MIB, entry=plan(128))
    night.run(100)
    assert night.entry.checkpointed_from == 257
    assert not night.entry.checkpoints_activations(200)
    assert max(night.peaks[50:]) <= (500 + 330) * MIB


@pytest.mark.parametrize("on_device", [False, True])
def test_rows_too_long_even_so_are_kept_on_the_host_of_a_device_before_memory_runs_out(on_device: bool) -> None:
    """And on the device again, computed twice, when there is room."""
    night = Night(Machine(token_bytes=MIB), limit_bytes=(500 + 55) * MIB, entry=plan(32), on_device=on_device)
    night.run(100)
    assert night.entry.on_host_from == (257 if on_device else None)
    assert night.entry.checkpoints_activations(256)
    assert night.entry.checkpoints_activations(300) is not on_device
    if on_device:
        assert max(night.peaks[50:]) <= (500 + 55) * MIB
    night.planner.limit_to(700 * MIB, 700 * MIB)
    night.run(20)
    assert night.entry.on_host_from is None
    assert night.entry.checkpoints_activations(300)


def test_where_there_is_room_activations_are_kept_although_the_tier_began_without() -> None:
    night = Night(Machine(), limit_bytes=8 << 30, entry=plan(128, activation_checkpointing=True))
    night.run(30)
    assert not night.entry.activation_checkpointing
    assert night.entry.checkpointed_from is None


@pytest.mark.parametrize("kept_before", [False, True])
def test_a_run_that_begins_close_to_its_limit_keeps_what_it_began_with(kept_before: bool) -> None:
    """What is held before a micro-batch may take more than growth keeps to; rows computed alone and twice save nothing then."""
    machine = Machine(floor_bytes=700 * MIB, token_bytes=MIB // 8)
    begin = plan(128, activation_checkpointing=kept_before)
    night = Night(machine, limit_bytes=717 * MIB, entry=begin, initial=Initial(128, 788 * MIB))
    night.run(100)
    assert night.entry.most_tokens(16) == 128
    assert not night.entry.checkpoints_activations(512)
    assert max(night.peaks) <= 788 * MIB


def test_what_it_began_with_is_taken_away_where_it_does_not_fit() -> None:
    machine = Machine(floor_bytes=700 * MIB, token_bytes=MIB)
    night = Night(machine, limit_bytes=717 * MIB, entry=plan(128), initial=Initial(128, 788 * MIB))
    night.run(100)
    assert night.entry.most_tokens(16) < 88
    assert night.entry.checkpoints_activations(300)


def test_what_ran_out_of_memory_is_not_tried_again_for_a_while_and_then_is() -> None:
    """Somebody else had the memory: what the lines say is not what is there."""
    night = Night(LARGE_IS_FAST, limit_bytes=16 << 30, entry=plan(4096))
    night.run(60)
    before = night.entry.most_tokens(64)
    night.planner.out_of_memory(Shape(16, 64), checkpointed=False, step=night.step + 1)
    night.entry = msgspec.structs.replace(night.entry, ceiling=512)
    night.run(20)
    assert night.entry.most_tokens(64) == 512
    assert night.entry.most_tokens(16) == before, "other lengths have nothing to do with it"
    assert night.entry.ceiling is None
    night.run(REFUSED_STEPS + LEAST_OFTEN_STEPS)
    assert night.entry.most_tokens(64) == before


def test_a_ceiling_is_raised_step_by_step() -> None:
    """After a death for memory, or when the supervisor's limit has ended: the room may be back, or not."""
    night = Night(SMALL_IS_FAST, limit_bytes=16 << 30, entry=plan(4096, ceiling=64))
    ceilings = []
    for _ in range(60):
        night.run(1)
        ceilings.append(night.entry.ceiling)
    seen = [ceiling for ceiling, _ in itertools.groupby(ceilings)]
    assert seen[-1] is None
    assert seen[:3] == [64, 128, 256]
    assert [c for c in seen if c is not None] == [64 << i for i in range(len(seen) - 1)]


def test_a_lane_that_memory_took_comes_back_with_the_last_ceiling() -> None:
    night = Night(SMALL_IS_FAST, limit_bytes=16 << 30, entry=plan(4096, ceiling=64, lanes=2, one_lane=True))
    while night.entry.ceiling is not None:
        assert night.entry.lanes_used == 1
        night.run(1)
    night.run(LEAST_OFTEN_STEPS)
    assert night.entry.lanes_used == 2
    assert night.seconds(night.entry) <= 1.05 * night.best_fixed_s(), "and what two lanes cost is learnt anew"


def test_the_supervisors_word_is_not_argued_with() -> None:
    night = Night(LARGE_IS_FAST, limit_bytes=16 << 30, entry=plan(4096, limit=256, lanes=2, one_lane=True))
    night.run(60)
    assert night.entry == plan(4096, limit=256, lanes=2, one_lane=True)


def test_what_a_step_will_take_is_known_beforehand() -> None:
    machine = Machine(square_bytes=256)
    night = Night(machine, limit_bytes=16 << 30, entry=plan(1024))
    night.run(50)
    shape = Shape(3, 400)
    assert night.planner.predicted_peak_bytes(shape, checkpointed=False) == pytest.approx(machine.peak_bytes(shape), rel=0.03)
    assert night.planner.predicted_peak_bytes(shape, checkpointed=True) is None, "that was never seen"


# -- a limit that falls ------------------------------------------------------------------------------------------------


@given(
    lanes=st.sampled_from([1, 2]),
    token_bytes=st.integers(MIB // 32, MIB // 4),
    square_bytes=st.sampled_from([0, 100]),
    lane_bytes=st.integers(0, 200 * MIB),
    room=st.floats(0.0, 1.0),
    start=st.sampled_from([128, 1024, 4096]),
)
def test_when_less_may_be_held_the_next_step_keeps_to_it_and_when_it_is_back_so_is_the_speed(
    lanes: int, token_bytes: int, square_bytes: int, lane_bytes: int, room: float, start: int
) -> None:
    """The limit falls in mid-run to anything in which a row fits, computed twice if need be; no step is too large for it."""
    machine = Machine(start_s=0.003, size_s=1.2e-7, token_bytes=token_bytes, square_bytes=square_bytes, lane_bytes=lane_bytes)
    night = Night(machine, limit_bytes=1600 * MIB, entry=plan(start, lanes=lanes))
    night.run(80)
    before_s = night.seconds(night.entry)
    row_bytes = machine.peak_bytes(Shape(1, night.longest), checkpointed=True) + 16 * MIB
    low_bytes = int(row_bytes + room * (1600 * MIB - row_bytes))
    night.limit_to(low_bytes)
    night.peaks.clear()
    night.run(60)
    assert max(night.peaks) <= low_bytes + 8 * MIB
    night.limit_to(1600 * MIB)
    night.run(40)
    assert night.seconds(night.entry) <= before_s / 0.95


def test_a_second_lane_that_has_no_room_goes_first_and_comes_back_when_it_has() -> None:
    machine = Machine(start_s=0.003, size_s=1.2e-7, token_bytes=MIB // 8, lane_bytes=200 * MIB)
    night = Night(machine, limit_bytes=1600 * MIB, entry=plan(1024, lanes=2))
    night.run(40)
    assert not night.entry.one_lane
    night.limit_to(800 * MIB)
    assert night.entry.one_lane
    night.run(40)
    assert night.entry.one_lane, "there is still no room"
    assert night.entry.checkpointed_from is None, "a row fits beside nothing else"
    night.limit_to(1600 * MIB)
    night.run(3)
    assert not night.entry.one_lane


def test_what_still_fits_is_left_as_it_is_when_less_may_be_held() -> None:
    night = Night(SMALL_IS_FAST, limit_bytes=16 << 30, entry=plan(1024, lanes=2))
    night.run(80)
    before = night.entry
    night.limit_to(8 << 30)
    assert night.entry.same_cuts(before)


def test_a_size_that_was_set_is_made_smaller_only_as_far_as_it_has_to_be_and_given_back() -> None:
    night = Night(SMALL_IS_FAST, limit_bytes=1600 * MIB, entry=plan(2048))
    night.planner._tunes = False
    night.run(20)
    night.limit_to(800 * MIB)
    assert 512 <= (night.entry.ceiling or 0) < 1200
    night.limit_to(1600 * MIB)
    night.run(20)
    assert night.entry.ceiling is None


def test_the_least_that_a_row_takes_is_known_when_rows_were_seen() -> None:
    night = Night(SMALL_IS_FAST, limit_bytes=4000 * MIB, entry=plan(1024))
    assert night.planner.least_bytes() is None
    night.run(40)
    least_bytes = night.planner.least_bytes()
    assert least_bytes is not None
    alone_bytes = SMALL_IS_FAST.peak_bytes(Shape(1, 512))
    assert alone_bytes <= least_bytes <= alone_bytes + 16 * MIB


# -- its parts ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=7),
    st.integers(1, 3000),
    st.builds(Costs, start=st.floats(0, 500), per_square=st.floats(0, 0.1), per_size=st.floats(0, 0.01)),
)
def test_no_cut_of_the_sorted_rows_is_cheaper(lengths: list[int], most: int, costs: Costs) -> None:
    ordered = sorted(lengths, reverse=True)

    def price(ends: tuple[int, ...]) -> float | None:
        total = 0.0
        for begin, end in itertools.pairwise([0, *ends, len(ordered)]):
            tokens = (end - begin) * ordered[begin]
            if end - begin > 1 and tokens > most:
                return None
            total += costs.of(tokens, tokens * ordered[begin])
        return total

    places = range(1, len(ordered))
    every = [price(ends) for count in range(len(ordered)) for ends in itertools.combinations(places, count)]
    found: list[Rows] = cut(np.arange(len(lengths)), np.array(lengths, np.int32), plan(most, costs=costs))
    ends = tuple(np.cumsum([len(rows) for rows in found])[:-1].tolist())
    assert price(ends) == pytest.approx(min(p for p in every if p is not None))


@given(st.lists(st.floats(0, 100), min_size=3, max_size=3), st.integers(0, 10_000))
def test_lines_are_found_again(weights: list[float], seed: int) -> None:
    features = np.random.default_rng(seed).uniform(0, 1, (50, 3)) * [1, 1e3, 1e6]
    found = non_negative_least_squares(features, features @ np.array(weights))
    assert found == pytest.approx(weights, rel=1e-4, abs=1e-4)


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 512), st.floats(0, 1e10)), min_size=1, max_size=60))
def test_no_measurements_make_a_line_that_lets_more_tokens_need_less(seen: list[tuple[int, int, float]]) -> None:
    footprint, watch = Footprint(), Stopwatch()
    for rows, length, size in seen:
        footprint.observe(Shape(rows, length), int(size), int(size / 2))
        watch.observe(Shape(rows, length), size / 1e9)
    fit, line = footprint.fit(), watch.fit()
    if fit is not None:
        assert 0 <= fit.peak_bytes(Shape(1, 10)) <= fit.peak_bytes(Shape(2, 10)) <= fit.peak_bytes(Shape(1, 20))
        assert fit.most_tokens(16, 2 << 30) >= fit.most_tokens(512, 2 << 30) >= 0
    if line is not None:
        costs = line.costs
        assert costs.of(100, 1000) <= costs.of(200, 2000) <= costs.of(200, 4000)


@given(noise=st.floats(0.01, 0.3), seed=st.integers(0, 999))
def test_how_sure_a_line_is_is_known_and_what_was_seen_often_is_surer(noise: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    before, after = work([Shape(1, 100)] * 16), work([Shape(4, 100)] * 4)
    truly_s = 12 * 0.01  # twelve micro-batches fewer, of the same tokens
    errors = []
    for count in (20, 320):
        watch = Stopwatch()
        for _ in range(count):
            shape = Shape(int(random.integers(1, 8)), int(random.integers(20, 200)))
            watch.observe(shape, (0.01 + 1e-4 * shape.tokens) * float(np.exp(random.normal(0, noise))))
        line = watch.fit()
        assert line is not None
        gain_s, error_s = line.gain(before, after)
        assert abs(gain_s - truly_s) <= 6 * error_s + noise * truly_s
        errors.append(error_s)
    assert errors[1] < errors[0]


def test_peaks_that_hide_behind_an_earlier_one_do_not_bend_the_line() -> None:
    """Resident memory falls late: after a large micro-batch, the small ones show its peak."""
    footprint = Footprint()
    largest = 0
    for number in range(80):
        shape = Shape(1 + number % 8, 100)
        true_peak = 400 * MIB + shape.tokens * MIB
        largest = max(int(0.97 * largest), true_peak)
        footprint.observe(shape, largest, 400 * MIB if largest == true_peak else largest)
    fit = footprint.fit()
    assert fit is not None
    assert fit.peak_bytes(Shape(8, 100)) == pytest.approx(1200 * MIB, rel=0.03)
    assert fit.peak_bytes(Shape(2, 100)) == pytest.approx(600 * MIB, rel=0.10)


# -- a size that was set -----------------------------------------------------------------------------------------------


def follow(planner: Planner, plan: Entry, steps: range) -> tuple[Entry, dict[int, int]]:
    """The plan after `steps`, and the micro-batch from each step on that changed it."""
    sizes: dict[int, int] = {}
    for step in steps:
        change = planner.look(step, plan, list)
        if change is not None:
            plan = msgspec.structs.replace(plan, step=step, **change.fields)
            sizes[step] = plan.micro_tokens
    return plan, sizes


def test_what_memory_took_of_a_size_that_was_set_is_given_back_when_the_refusal_is_old() -> None:
    planner = Planner(limit_bytes=4 << 30, longest=128, may_checkpoint=True, tunes=False)
    plan = Entry(step=1, start=1024, cause="the settings", at_unix_s=0.0)
    plan, sizes = follow(planner, plan, range(1, 600))
    assert sizes == {}, "what was set is not changed for speed"
    planner.out_of_memory(Shape(8, 128), checkpointed=False, step=600)
    planner.out_of_memory(Shape(4, 128), checkpointed=False, step=600)
    plan = msgspec.structs.replace(plan, ceiling=256, one_lane=True, activation_checkpointing=True)
    plan, sizes = follow(planner, plan, range(601, 1400))
    assert min(sizes) >= 600 + REFUSED_STEPS
    assert list(sizes.values()) == [512, 1024, 1024, 1024]
    assert (plan.ceiling, plan.activation_checkpointing, plan.one_lane) == (None, False, False)


def test_of_a_size_that_was_set_no_more_is_given_back_than_is_predicted_to_fit() -> None:
    """After a restart because of memory nothing was refused in this life. What is measured decides; the settings bound it."""
    for limit_bytes, sizes_after in ((700 << 20, [512]), (4 << 30, [512, 1024])):
        planner = Planner(limit_bytes=limit_bytes, longest=128, may_checkpoint=True, tunes=False, always_checkpoints=True)
        plan = Entry(step=1, start=1024, ceiling=256, activation_checkpointing=True, cause="a restart", at_unix_s=0.0)
        for rows in (1, 2, 1, 2, 1, 2, 1, 2):
            shape = Shape(rows, 128)
            planner.observe(shape, checkpointed=True, peak_bytes=(200 << 20) + shape.tokens * 600_000, before_bytes=200 << 20)
        plan, sizes = follow(planner, plan, range(1, 400))
        assert list(sizes.values()) == sizes_after
        assert plan.activation_checkpointing, "as it was set"


# -- on a GPU ----------------------------------------------------------------------------------------------------------


@dataclass
class Gpu(Machine):
    """Starting the operations of a micro-batch takes long beside what a token takes, and times are known a step later."""

    start_s: float = 0.015
    token_s: float = 2e-6
    floor_bytes: int = 2048 * MIB
    token_bytes: int = MIB // 2
    _late: list[tuple[Shape, bool, float]] = field(default_factory=list)

    def step(self, lengths: Lengths, entry: Entry, planner: Planner | None = None) -> tuple[float, int]:
        if planner is None:
            return super().step(lengths, entry)
        told, self._late = self._late, []
        found = super().step(lengths, entry, _Deaf(planner, self._late))  # type: ignore[arg-type]
        for shape, checkpointed, took_s in told:
            planner.observe_time(shape, checkpointed=checkpointed, took_s=took_s)
        return found


class _Deaf:
    """A planner that is told times later."""

    def __init__(self, planner: Planner, late: list[tuple[Shape, bool, float]]) -> None:
        self.compute_in, self.observe, self._late = planner.compute_in, planner.observe, late

    def observe_time(self, shape: Shape, *, checkpointed: bool, took_s: float) -> None:
        self._late.append((shape, checkpointed, took_s))


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("start", [128, 1024, 4096])
def test_a_gpu_computes_large_micro_batches_within_ten_steps(start: int, uniform: bool) -> None:
    """From what each tier begins with. What the steps then take beside those of the best size of all."""
    night = Night(Gpu(), limit_bytes=60_000 * MIB, entry=plan(start), uniform=uniform)
    night.run(10)
    assert night.seconds(night.entry) <= 1.25 * night.best_fixed_s()
    assert not night.planner.passed(max(night.peaks))
    night.run(6)
    assert night.seconds(night.entry) <= 1.1 * night.best_fixed_s()
