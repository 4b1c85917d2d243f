"""The worker hears, answers and notices that it is alone, whatever its main thread does. Real sockets, in this process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.lone_supervisor import LoneSupervisor, tiny_settings

from memsup.shared.messages import (
    PROTOCOL,
    Accepted,
    Checkpoint,
    CheckpointNote,
    Decided,
    DecisionKind,
    Done,
    Heartbeat,
    Hello,
    LimitMemory,
    LimitMicroBatch,
    OrderFailed,
    Pace,
    Pause,
    PauseMode,
    Phase,
    Resume,
    Stop,
    Welcome,
    WorkerMemory,
    encode,
)
from memsup.worker.link import LeaseTimer, Link, MustLeave
from memsup.worker.memory import read_memory
from memsup.worker.session import Leave, Session

NOTE = CheckpointNote(path="/somewhere/step-00000007", step=7, at_unix_s=1.0, verified=True, save_s=0.1)


@dataclass
class Trainer:
    """A program whose saves take no time, or fail."""

    fails: bool = False
    is_loaded: bool = True
    saved: list[bool] = field(default_factory=list)
    """For each save, whether it was to be the last one."""
    limits: list[LimitMicroBatch] = field(default_factory=list)

    def save(self, *, last: bool) -> CheckpointNote:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.saved.append(last)
        return NOTE

    def limit_micro_batch(self, order: LimitMicroBatch) -> int:
        self.limits.append(order)
        return 64

    def limit_memory(self, order: LimitMemory) -> str:
        return f"{order.device_bytes} bytes"

    def read_memory(self) -> WorkerMemory:
        return read_memory()

    def pass_on(self, order: Pace | Pause | Resume) -> None:
        """It has no other ranks."""


class Ends:
    """A supervisor's socket and a worker's link, both real; the test's thread is the worker's main thread."""

    def __init__(self, folder: Path) -> None:
        self.supervisor = LoneSupervisor(tiny_settings(folder))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, self.lifeline = theirs.detach(), ours.detach()
        self.link = Link(self.supervisor.paths, run_id="0123456789ab", lifeline_fd=read_end)
        self.session = Session(self.link)

    def connect(self) -> None:
        self.link.start()
        self.supervisor.first(Hello)

    def obey(self, wait_s: float = 10.0) -> None:
        """Boundaries, until there are no orders left to carry out."""
        end_s = time.monotonic() + wait_s
        while self.link.orders.empty() and time.monotonic() < end_s:
            self.supervisor.pump(0.01)
        self.session.boundary()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    with made.supervisor:
        yield made
        if made.link._thread.is_alive():
            made.link.close()


# ---------------------------------------------------------------------------------------------------------------------
# The link


def test_hello_welcome_and_beats(ends: Ends) -> None:
    ends.link.start()
    hello = ends.supervisor.first(Hello)
    assert (hello.pid, hello.run_id) == (os.getpid(), "0123456789ab")
    welcome = ends.link.welcome(10)
    assert isinstance(welcome, Welcome)
    assert welcome.lease_s == 60
    beat = ends.supervisor.first(Heartbeat)
    assert beat.progress.phase is Phase.STARTING
    assert beat.memory.resident_bytes is not None


def test_beats_come_sooner_until_the_first_step_is_taken(ends: Ends) -> None:
    """People wait for that step."""

    def beats_in(span_s: float) -> int:
        ends.supervisor.first(Heartbeat)
        ends.supervisor.reports.clear()
        end_s = time.monotonic() + span_s
        while time.monotonic() < end_s:
            ends.supervisor.pump(0.05)
        return sum(isinstance(report, Heartbeat) for report in ends.supervisor.reports)

    ends.connect()
    before = beats_in(2.0)
    ends.session.publish(step=1, loss=0.7)
    after = beats_in(2.0)
    assert before > 2 * after > 0


def test_an_order_is_accepted_while_the_main_thread_is_busy(ends: Ends) -> None:
    """This test's thread, which is the main thread, reaches no boundary."""
    ends.connect()
    ends.supervisor.send(Checkpoint(order_id=5, reason="a test"))
    assert ends.supervisor.first(Accepted).order_id == 5
    assert ends.link.orders.get_nowait() == Checkpoint(order_id=5, reason="a test")


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [PROTOCOL],
        [PROTOCOL, b"\xc1garbage"],
        [PROTOCOL + b"0", encode(Stop(order_id=1, reason="", checkpoint=False))[1]],
        [PROTOCOL, encode(Stop(order_id=1, reason="", checkpoint=False))[1][:-3]],
        [PROTOCOL, b"\x81\xa4kind\xa7explode"],
        [PROTOCOL, b"\x90" * 100_000],
        [PROTOCOL, b"\x00" * (2 << 20)],
        [PROTOCOL] * 40,
    ],
)
def test_garbage_is_dropped_and_the_next_order_heard(ends: Ends, frames: list[bytes], logged: list[dict[str, Any]]) -> None:
    ends.connect()
    ends.supervisor.send_frames(frames)
    ends.supervisor.send(Resume(order_id=2, reason="a test"))
    ends.supervisor.first(Accepted, order_id=2)
    assert ends.link.orders.get_nowait() == Resume(order_id=2, reason="a test")
    assert logged[0]["number"] == 1


def test_a_flood_of_garbage_does_not_fill_the_log(ends: Ends, logged: list[dict[str, Any]]) -> None:
    ends.connect()
    for _ in range(500):
        ends.supervisor.send_frames([b"?"])
    ends.supervisor.send(Resume(order_id=2, reason="a test"))
    ends.supervisor.first(Accepted, order_id=2)
    assert [event["number"] for event in logged] == [2**power for power in range(9)]


def test_a_dead_supervisor_is_noticed_by_its_lifeline(ends: Ends) -> None:
    ends.connect()
    os.close(ends.lifeline)
    assert ends.link.orders.get(timeout=10) == MustLeave("the supervisor is gone")


def test_without_a_supervisor_nobody_waits_for_a_welcome(ends: Ends) -> None:
    ends.supervisor.welcome = None
    ends.connect()
    os.close(ends.lifeline)
    assert ends.link.welcome(30) is None


def test_a_supervisor_that_no_longer_renews_its_lease_is_left(ends: Ends) -> None:
    ends.supervisor.lease_s = 1.0
    ends.supervisor.welcome = Welcome(run_id="x", lease_s=1.0, memory_limit_bytes=None, micro_tokens_limit=None)
    ends.connect()
    end_s = time.monotonic() + 2.5
    while time.monotonic() < end_s:
        ends.supervisor.pump(0.05)
    assert ends.link.orders.empty(), "while it is renewed, nothing happens"
    ends.supervisor.renews_lease = False
    assert ends.link.orders.get(timeout=30) == MustLeave("the supervisor has not renewed its lease")


@given(st.lists(st.floats(0, 3600), max_size=50), st.floats(1, 60))
def test_time_in_which_nothing_could_be_heard_does_not_count(passes_s: list[float], lease_s: float) -> None:
    """The worker was frozen or the machine slept within a pass; one such pass never ends a lease of more than a second."""
    timer = LeaseTimer(most_s=1.0)
    assert not timer.spend(1e9), "no lease yet"
    timer.renew(lease_s)
    spent_s = 0.0
    for passed_s in passes_s:
        spent_s += min(passed_s, 1.0)
        assert timer.spend(passed_s) == (spent_s >= lease_s) or spent_s == pytest.approx(lease_s)


# ---------------------------------------------------------------------------------------------------------------------
# The session


def test_each_order_is_carried_out_at_the_boundary_and_answered(ends: Ends) -> None:
    trainer = Trainer()
    ends.session.begin(trainer)
    ends.connect()
    ends.supervisor.send(Checkpoint(order_id=1, reason="a test"))
    ends.supervisor.send(LimitMicroBatch(order_id=2, reason="a test", halve=True))
    ends.supervisor.first(Accepted, order_id=2)
    assert not trainer.saved
    ends.obey()
    assert ends.supervisor.first(Done, order_id=1).checkpoint == NOTE
    assert ends.supervisor.first(Done, order_id=2).micro_tokens == 64
    assert trainer.saved == [False]
    assert trainer.limits == [LimitMicroBatch(order_id=2, reason="a test", halve=True)]


def test_orders_that_need_a_plan_wait_for_it_while_loading(ends: Ends) -> None:
    ends.connect()
    ends.supervisor.send(Checkpoint(order_id=1, reason="a test"))
    ends.supervisor.send(LimitMicroBatch(order_id=2, reason="a test", micro_tokens=128))
    ends.supervisor.send(LimitMemory(order_id=3, reason="a test", device_bytes=5))
    ends.supervisor.first(Accepted, order_id=3)
    ends.obey()
    ends.session.boundary()
    assert not [r for r in ends.supervisor.reports if isinstance(r, Done | OrderFailed)]
    trainer = Trainer(is_loaded=False)
    ends.session.begin(trainer)
    ends.session.boundary()
    assert ends.supervisor.first(Done, order_id=3).detail == "5 bytes", "the device is there first"
    assert not [r for r in ends.supervisor.reports if isinstance(r, Done | OrderFailed) and r.order_id != 3]
    trainer.is_loaded = True
    ends.session.boundary()
    assert ends.supervisor.first(Done, order_id=1).checkpoint == NOTE
    assert ends.supervisor.first(Done, order_id=2).micro_tokens == 64


def test_a_failed_save_is_answered_and_nothing_ends(ends: Ends) -> None:
    ends.session.begin(Trainer(fails=True))
    ends.connect()
    for number, order in enumerate(
        [
            Checkpoint(order_id=1, reason="a test"),
            Pause(order_id=2, reason="a test", mode=PauseMode.RELEASE),
            Stop(order_id=3, reason="a test", checkpoint=True),
        ],
        start=1,
    ):
        ends.supervisor.send(order)
        ends.obey()
        assert "No space left" in ends.supervisor.first(OrderFailed, order_id=number).detail


def test_a_hold_blocks_and_still_answers(ends: Ends) -> None:
    """Held at a boundary, the worker writes a checkpoint, takes a limit, and goes on when it is told."""
    ends.session.begin(Trainer())
    ends.connect()
    passed = threading.Event()

    def work() -> None:
        with ends.session.phase(Phase.EVALUATING):
            while not passed.is_set():
                ends.session.boundary()
                if ends.session.held_s:
                    passed.set()

    main = threading.Thread(target=work)
    main.start()
    try:
        ends.supervisor.order(Pause(order_id=1, reason="a test", mode=PauseMode.HOLD))
        ends.supervisor.reach(Phase.HOLDING)
        assert isinstance(ends.supervisor.order(Checkpoint(order_id=2, reason="a test")), Done)
        assert isinstance(ends.supervisor.order(LimitMicroBatch(order_id=3, reason="a test", halve=True)), Done)
        assert isinstance(ends.supervisor.order(Pause(order_id=4, reason="again", mode=PauseMode.HOLD)), Done)
        first = ends.supervisor.reach(Phase.HOLDING)
        ends.supervisor.until(
            "a sign of life while held",
            lambda: ends.supervisor.reach(Phase.HOLDING).progress.ticks > first.progress.ticks,
        )
        assert not passed.is_set()
        ends.supervisor.order(Resume(order_id=5, reason="a test"))
        assert passed.wait(10)
    finally:
        main.join(10)
    assert ends.link.snapshot.progress.phase is Phase.STARTING, "the phases before are back"


@pytest.mark.parametrize(
    ("order", "saves"),
    [
        (Stop(order_id=1, reason="enough", checkpoint=True), [True]),
        (Stop(order_id=1, reason="enough", checkpoint=False), []),
        (Pause(order_id=1, reason="enough", mode=PauseMode.RELEASE), [True]),
    ],
)
def test_leaving_as_told(ends: Ends, order: Stop | Pause, saves: list[bool]) -> None:
    trainer = Trainer()
    ends.session.begin(trainer)
    ends.connect()
    ends.supervisor.send(order)
    with pytest.raises(Leave, match="enough") as leave:
        ends.obey()
    assert trainer.saved == saves
    assert leave.value.checkpoint == (NOTE if saves else None)
    assert ends.supervisor.first(Done, order_id=1).checkpoint == (NOTE if saves else None)


def test_leaving_without_a_supervisor_saves_first_and_leaves_even_if_that_fails(ends: Ends) -> None:
    ends.session.publish(checkpoint=NOTE, step=9)
    ends.session.begin(Trainer(fails=True))
    ends.connect()
    os.close(ends.lifeline)
    with pytest.raises(Leave, match="gone") as leave:
        ends.obey()
    assert leave.value.checkpoint == NOTE
    said = ends.supervisor.first(Decided)
    assert (said.what, said.step) == (DecisionKind.CHECKPOINT_FAILED, 9)


def test_a_pace_leaves_gaps_of_the_measured_work(ends: Ends) -> None:
    """At a fifth of the time, 30 ms of work are followed by a gap of 120 ms; full pace leaves none."""
    ends.connect()
    ends.supervisor.send(Pace(order_id=1, reason="heat", duty_fraction=0.2))
    ends.obey()
    gaps_s, works_s = [], []
    for _ in range(5):
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.03:
            pass
        worked_s = time.monotonic() - began_s
        before_s = time.monotonic()
        ends.session.boundary()
        gaps_s.append(time.monotonic() - before_s)
        works_s.append(worked_s)
    assert all(gap_s >= 3.9 * work_s for gap_s, work_s in zip(gaps_s, works_s, strict=True))
    ends.supervisor.send(Pace(order_id=2, reason="cool", duty_fraction=1.0))
    ends.obey()
    assert ends.session._rest_until_s == 0.0


def test_a_gap_ends_when_the_pace_is_lifted(ends: Ends) -> None:
    ends.connect()
    ends.supervisor.send(Pace(order_id=1, reason="heat", duty_fraction=0.0001))
    ends.obey()
    began_s = time.monotonic()
    while time.monotonic() - began_s < 0.05:  # would be followed by eight minutes of rest
        pass
    lifted = threading.Timer(0.2, lambda: ends.link.orders.put(Pace(order_id=2, reason="cool", duty_fraction=1.0)))
    lifted.start()
    ends.session.boundary()
    assert time.monotonic() - began_s < 60
