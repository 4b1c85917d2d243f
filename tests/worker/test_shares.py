"""Which rank computes which rows: each row once, as many tokens as a rank is fast, and what is decided about that from what was
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.lone_supervisor import LoneSupervisor, tiny_settings
from kit.one_life import without_dropout
from kit.stutter import stuttering

from memsup.shared.messages import Heartbeat, Leaving, Stop
from memsup.worker.plan.batches import Lengths
from memsup.worker.plan.journal import read_journal
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.other import Meeting
from memsup.worker.ranks.shares import LEAST, WHOLE, Measured, Shares, better, done_after_s, equal, shared_out


def lengths_of(count: int) -> Lengths:
    return np.random.default_rng(3).integers(4, 100, count).astype(np.int32)


def at(*tokens_per_s: float) -> list[Measured]:
    return [Measured(speed, 0.0) for speed in tokens_per_s]


@pytest.mark.parametrize("shares", [(500, 500), (333, 333, 334), (700, 300), (980, 20), (1000,)])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_each_row_of_a_step_has_one_rank_and_tokens_are_shared_as_they_are_to_be(shares: tuple[int, ...], count: int) -> None:
    rows, lengths = np.arange(100, 100 + count), lengths_of(count)
    parts = shared_out(rows, lengths, shares)
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert len(parts) == len(shares)
    if count == 64:
        for part, share in zip(parts, shares, strict=True):
            tokens = int(lengths[part - 100].sum())
            assert abs(tokens - lengths.sum() * share / sum(shares)) <= lengths.max()


def test_one_rank_has_the_rows_of_a_step_as_they_are() -> None:
    rows = np.array([5, 3, 9])
    assert shared_out(rows, np.array([1, 2, 3], np.int32), (1000,))[0] is rows


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64])
def test_equal_shares_make_up_the_whole(ranks: int) -> None:
    assert sum(equal(ranks)) == WHOLE
    assert max(equal(ranks)) - min(equal(ranks)) <= 1


def test_shares_follow_the_speed_where_that_saves_something() -> None:
    assert better((500, 500), at(300.0, 100.0), 1000) == (750, 250)
    assert better((750, 250), at(310.0, 100.0), 1000) is None
    assert better((500, 500), at(100.0, 104.0), 1000) is None
    assert better((500, 500), at(1000.0, 1.0), 1000) == (WHOLE - LEAST, LEAST)
    assert better(equal(64), at(*[1.5] * 32, *[0.5] * 32), 1000) is None, "each would have to have less than the least"


def test_a_rank_that_can_begin_only_later_has_fewer_rows() -> None:
    """The slower one changes its parameters more slowly as well, and no share of rows makes that shorter."""
    slower = Measured(100.0, beside_s=1.5)
    assert better((750, 250), [Measured(300.0, beside_s=0.5), slower], 1000) == (825, 175)
    assert better((750, 250), [Measured(300.0, beside_s=0.5), slower], 100_000) is None, "of a long step that is little"
    assert better((500, 500), [Measured(300.0, beside_s=0.0), Measured(100.0, beside_s=60.0)], 1000) == (WHOLE - LEAST, LEAST)


paces = st.tuples(st.floats(1, 5), st.floats(0, 0.3))
"""How many times as fast as the slowest it is, and the part of a step that passes before it begins."""


@given(st.lists(paces, min_size=2, max_size=64), st.integers(100, 1_000_000))
def test_shares_make_up_the_whole_and_none_is_too_small_whatever_was_measured(
    measured: list[tuple[float, float]], tokens: int
) -> None:
    found = better(equal(len(measured)), [Measured(100 * speed, beside) for speed, beside in measured], tokens)
    if found is not None:
        assert sum(found) == WHOLE
        assert min(found) >= LEAST


def took_s(rows_of: Sequence[Any], lengths: Lengths, measured: Sequence[Measured]) -> float:
    """The time of a step in which each rank has these places of rows."""
    return max(
        pace.beside_s + float(lengths[rows].sum()) / pace.tokens_per_s for rows, pace in zip(rows_of, measured, strict=True)
    )


def best_s(lengths: Lengths, measured: Sequence[Measured]) -> float:
    """The time of a step of few rows on two ranks that are shared out as well as they can be."""
    ways = np.arange(1 << len(lengths))[:, None] >> np.arange(len(lengths)) & 1
    of_second = ways @ lengths
    first, second = measured
    each = [
        first.beside_s + (lengths.sum() - of_second) / first.tokens_per_s,
        second.beside_s + of_second / second.tokens_per_s,
    ]
    return float(np.maximum(*each).min())


def settled(measured: Sequence[Measured], tokens: float) -> Shares:
    """The shares to which a run comes that begins with equal ones."""
    shares = equal(len(measured))
    return better(shares, measured, tokens) or shares


@settings(deadline=None)
@given(
    st.floats(1, 5),
    st.floats(0, 0.1),
    st.booleans(),
    st.lists(st.integers(4, 128), min_size=2, max_size=11),
)
def test_two_unequal_ranks_take_hardly_longer_than_with_the_best_of_all_ways_to_share_few_rows(
    times: float, beside: float, is_first: bool, many: list[int]
) -> None:
    """As few as they are, a row too many is a long time, so they are compared with the best that whole rows allow."""
    lengths = np.array(many, np.int32)
    pair = [Measured(100.0 * times, 0.0), Measured(100.0, 0.0)]
    step_s = float(lengths.sum()) / sum(pace.tokens_per_s for pace in pair)
    measured = [pace._replace(beside_s=beside * step_s * 100 / pace.tokens_per_s) for pace in pair]
    if is_first:
        measured.reverse()
    parts = shared_out(np.arange(len(lengths)), lengths, settled(measured, float(lengths.sum())))
    assert took_s(parts, lengths, measured) <= best_s(lengths, measured) / 0.85


@settings(deadline=None)
@given(st.lists(st.floats(1, 5), min_size=2, max_size=4), st.integers(0, 1 << 30), st.integers(24, 64))
def test_unequal_ranks_make_use_of_nearly_all_of_their_speed(speeds: list[float], seed: int, rows: int) -> None:
    """Of rows as texts have them, in a step of usual size."""
    lengths = np.random.default_rng(seed).integers(4, 128, rows).astype(np.int32)
    measured = at(*(100 * speed for speed in speeds))
    parts = shared_out(np.arange(rows), lengths, settled(measured, float(lengths.sum())))
    assert took_s(parts, lengths, measured) <= float(lengths.sum()) / (100 * sum(speeds)) / 0.85


@given(st.lists(paces, min_size=2, max_size=8), st.integers(100, 1_000_000))
def test_shares_that_were_found_are_kept(measured: list[tuple[float, float]], tokens: int) -> None:
    """While nothing changes no step has other bits than the one before."""
    ranks = [Measured(100 * speed, beside * tokens / 100) for speed, beside in measured]
    shares = settled(ranks, tokens)
    assert better(shares, ranks, tokens) is None
    assert done_after_s(shares, ranks, tokens) <= done_after_s(equal(len(ranks)), ranks, tokens)


def test_what_a_rank_tells_of_its_time_leaves_pauses_out() -> None:
    """Else a rank that was paused within a step would count as slow, and be given less to do."""
    now_s = 100.0
    said: list[m.ToFirst] = []

    class Training:
        step, device_memory = 4, None

        def own_tokens(self, _step: int) -> int:
            return 50

    def added(loss: torch.Tensor) -> torch.Tensor:
        nonlocal now_s
        now_s += 3  # the others are waited for
        return loss

    meeting = Meeting(said.append, lambda: m.Add(), added, clock=lambda: now_s)
    for _ in range(2):
        meeting.compute(5)
        now_s += 2
        meeting.add_up(Training(), torch.zeros(()))  # type: ignore[arg-type]
        now_s += 0.5
        meeting.has_taken_step()
        now_s += 7  # until it is told what comes next
    assert said[1] == m.Ready(step=5, tokens=50, took_s=2.0, beside_s=0.5)


# ---------------------------------------------------------------------------------------------------------------------
# A whole run


def share_of_rank_1(supervisor: LoneSupervisor) -> float | None:
    for report in reversed(supervisor.reports):
        if isinstance(report, Heartbeat) and report.batch is not None and report.batch.ranks is not None:
            return report.batch.ranks[1].share
    return None


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_rank_that_is_slow_gets_less_of_each_step_and_a_later_life_goes_on_with_that(tmp_path: Path) -> None:
    """It computes for 10 ms of each 30. The shares stand in the plan, and steps done again are shared out like that."""
    job = without_dropout(
        tiny_settings(
            tmp_path,
            rows=400,
            words=100,
            hidden=128,
            training__ranks=2,
            training__epochs=20,
            training__effective_batch=16,
            training__max_length=128,
            training__micro_tokens=2048,
            training__tune="true",
        )
    )
    with LoneSupervisor(job, name="unequal") as supervisor:
        supervisor.start()

        def pid_of_rank_1() -> int | None:
            for report in reversed(supervisor.reports):
                if isinstance(report, Heartbeat) and report.batch is not None and report.batch.ranks is not None:
                    return report.batch.ranks[1].pid
            return None

        pid = supervisor.until("it trains", pid_of_rank_1, 600)
        with stuttering(psutil.Process(pid), computes_s=0.01, rests_s=0.02):
            supervisor.until("it is given less", lambda: (share_of_rank_1(supervisor) or 1) < 0.4, 600)
            supervisor.send(Stop(order_id=1, reason="a test", checkpoint=True))
            supervisor.until("it has left", lambda: any(isinstance(report, Leaving) for report in supervisor.reports))
        assert supervisor.exit_status() == 0
        plan = read_journal(supervisor.paths.plan)[0][-1]
        assert plan.shares[1] < 400
        del supervisor.reports[:]
        supervisor.start()
        share = supervisor.until("it goes on", lambda: share_of_rank_1(supervisor), 600)
        assert share == plan.shares[1] / WHOLE
