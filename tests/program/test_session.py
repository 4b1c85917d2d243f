"""Orders are carried out where the state allows it: all at a boundary, some between the parts of a step, and at once while data
is waited for. The link is a real one that was not opened, so that orders are put into its queue and answers taken from its own.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from memsup.about import About, Seam
from memsup.link import Link, Lost, Told
from memsup.memory import read_memory
from memsup.messages import Message
from memsup.ranks import Group, Ranks
from memsup.session import CannotLimitError, Leave, Session
from memsup.store import Checkpoint

TOLD = '{"socket": "/nowhere", "run_id": "r", "checkpoints": "/nowhere", "every_s": 1000.0, "keep": 2}'


class Program:
    """What trains, without training."""

    def __init__(self) -> None:
        self.step = self.saves = 0
        self.limits: list[Message] = []

    def save(self) -> Checkpoint:
        self.saves += 1
        return Checkpoint(f"/c/step-{self.step:08}", self.step, 1.0, 10, 0.1)

    def place(self) -> Message:
        return {"step": self.step, "total_steps": 9, "epoch": 0.0}

    def memory(self) -> Message:
        return read_memory()

    def limit(self, order: Message) -> int:
        if order["kind"] == "limit_memory":
            raise RuntimeError("CUDA error: invalid argument")
        if order["micro_tokens"] == 0:
            raise CannotLimitError("nothing is less than one row")
        self.limits.append(order)
        return 64


class Play:
    """A session, and what it says."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.link = Link(Told(TOLD), About(Seam.CALLS))
        self.session = Session(self.link, About(Seam.CALLS, cuts=True, not_cut=None), 1000.0, ranks)
        self.program = Program()
        self.session.begin(self.program)

    def order(self, kind: str, **fields: Any) -> None:
        self.link.orders.put({"kind": kind, "order_id": 7, "reason": "asked", **fields})

    def said(self) -> list[tuple[str, str]]:
        """The kind and the detail of each answer since the last time."""
        found = []
        while not self.link._outbox.empty():
            message = self.link._outbox.get()
            if isinstance(message, threading.Event):
                message.set()
            else:
                found.append((message["kind"], str(message.get("detail", message.get("reason", "")))))
        return found


@pytest.fixture
def play() -> Play:
    return Play()


@pytest.fixture
def reads(play: Play) -> Any:
    """Somebody takes what is said, as the link's thread does, since who leaves waits for that."""
    done = threading.Event()
    heard: list[tuple[str, str]] = []

    def listen() -> None:
        while not done.is_set():
            heard.extend(play.said())
            time.sleep(0.002)

    listener = threading.Thread(target=listen)
    listener.start()
    yield heard
    done.set()
    listener.join()


def test_at_a_boundary_everything_is_carried_out(play: Play) -> None:
    play.order("limit_micro_batch", micro_tokens=64, halve=False, may_grow=True)
    play.order("checkpoint")
    play.order("pace", duty_fraction=1.0)
    play.session.boundary()
    assert play.said() == [
        ("done", "micro-batches of at most 64 tokens"),
        ("done", "checkpoint at step 0"),
        ("done", "computing 100 % of the time"),
    ]
    assert (play.program.saves, len(play.program.limits)) == (1, 1)


def test_between_parts_what_needs_a_whole_state_waits_for_the_boundary(play: Play, reads: Any) -> None:
    play.order("limit_micro_batch", micro_tokens=64, halve=False, may_grow=True)
    play.order("checkpoint")
    play.order("stop", checkpoint=True)
    play.session.part()
    play.session.part()
    assert play.program.saves == 0
    play.program.step = 1
    with pytest.raises(Leave):
        play.session.boundary()
    play.session.part()  # whoever has caught it goes on to the next boundary
    with pytest.raises(Leave):
        play.session.boundary()
    kinds = [kind for kind, _ in reads + play.said()]
    assert kinds == ["done", "done", "done", "leaving"]


def test_a_program_that_holds_within_a_step_gives_way_to_what_it_leaves_by(play: Play) -> None:
    """And says of a checkpoint that there can be none; otherwise whoever waits for it would wait for the resume."""
    play.order("pause", mode="hold")
    play.order("checkpoint")
    release = threading.Timer(0.05, lambda: play.order("pause", mode="release"))
    release.start()
    play.session.part()
    release.join()
    assert [kind for kind, _ in play.said()] == ["done", "order_failed"]
    assert play.link.progress["phase"] == "starting", "it holds no longer"
    assert play.program.saves == 0


def test_the_first_of_several_ranks_holds_at_a_boundary_only_where_the_others_wait_outside_of_a_collective() -> None:
    play = Play(Ranks(Told(TOLD), Group(0, 2, "a")))
    play.order("pause", mode="hold")
    play.order("resume")
    play.session.part()
    play.session.own_boundary()
    with play.session.waiting(is_whole=True):
        assert play.said() == []
    play.session.boundary()
    assert [detail for _, detail in play.said()] == ["holding", "continuing"]


def waits(play: Play, seconds: float) -> None:
    with play.session.waiting(is_whole=True):
        time.sleep(seconds)


def test_orders_that_come_while_data_is_waited_for_are_carried_out_at_once(play: Play, reads: Any) -> None:
    """The main thread is interrupted in its wait, also twice, and where the state is whole it saves and leaves out of it."""

    def orders() -> None:
        for kind, fields in (("pause", {"mode": "hold"}), ("resume", {}), ("checkpoint", {}), ("stop", {"checkpoint": True})):
            time.sleep(0.05)
            play.order(kind, **fields)
            play.link.urge()

    sender = threading.Thread(target=orders)
    began_s = time.monotonic()
    sender.start()
    with pytest.raises(Leave):
        waits(play, 30)
    sender.join()
    assert time.monotonic() - began_s < 20
    assert play.program.saves == 2
    kinds = [detail for _, detail in reads + play.said()]
    assert kinds == ["holding", "continuing", "checkpoint at step 0", "left at step 0", "asked"]
    play.link.urge()  # nobody waits any more
    assert play.session.leaving is not None


def test_a_wait_within_a_step_leaves_what_saves_for_later(play: Play) -> None:
    play.order("stop", checkpoint=True)
    with play.session.waiting():
        pass
    assert play.said() == []
    assert play.program.saves == 0


def test_a_limit_that_cannot_be_kept_is_answered(play: Play) -> None:
    play.order("limit_micro_batch", micro_tokens=0, halve=False, may_grow=True)
    play.order("limit_memory", device_bytes=1 << 30)
    play.session.boundary()
    play.session.describe(cuts=False)
    play.order("limit_memory", device_bytes=1 << 30)
    play.session.boundary()
    assert play.said() == [
        ("order_failed", "nothing is less than one row"),
        ("order_failed", "CUDA error: invalid argument"),
        ("described", ""),
        ("order_failed", "memsup does not cut what this program computes."),
    ]


def test_who_loses_its_supervisor_within_a_step_leaves_at_the_boundary(play: Play, reads: Any) -> None:
    play.link.orders.put(Lost("the supervisor is gone"))
    play.session.part()
    with pytest.raises(Leave):
        play.session.boundary()
    assert play.program.saves == 1


def test_who_waits_in_another_thread_leaves_the_main_one_alone(play: Play) -> None:
    """That one may be anywhere: in the middle of a step, where nothing can be saved."""
    with play.session.waiting(is_whole=True):
        pass
    play.order("checkpoint")
    thread = threading.Thread(target=waits, args=(play, 0.0))
    thread.start()
    thread.join()
    assert (play.program.saves, play.said()) == (0, [])
    play.session.boundary()
    assert play.program.saves == 1


def test_a_loss_is_shown_twice_a_second_and_what_is_none_ends_nothing(play: Play) -> None:
    play.session.show_loss()
    assert play.link.progress["loss"] is None
    play.session.show_loss(0.5, 0.25)
    play.session.show_loss(7.0)
    assert play.link.progress["loss"] == 0.75
    play.session._loss_s -= 1.0
    play.session.show_loss("whatever")
    assert play.link.progress["loss"] == 0.75


def test_the_time_left_is_that_of_training_whatever_evaluations_saves_and_pauses_take(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr("memsup.session.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    session, program = play.session, play.program
    session.publish(phase="training")
    session.begin(program)

    def passes(seconds: float, steps: int = 0) -> Any:
        clock.now_s, program.step = clock.now_s + seconds, program.step + steps
        session.boundary()
        return play.link.progress["eta_s"]

    assert passes(4, steps=2) == 7 * 2.0
    with session.phase("evaluating"):
        assert passes(3600) == 7 * 2.0
        play.order("pause", mode="hold")
        play.order("resume")
        assert passes(3600) == 7 * 2.0
    assert passes(2, steps=1) == 6 * 2.0
    with session.phase("saving"):
        clock.now_s += 600
    assert passes(2, steps=1) == 5 * 2.0
