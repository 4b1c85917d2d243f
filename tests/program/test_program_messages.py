"""One schema: what a program says is what `shared/messages.py` reads, and each order that it can get is known to it."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from memsup import messages as said
from memsup import packing
from memsup.about import About, NotAttached, NotCut, Seam
from memsup.cut_probe import Refusal
from memsup.joined_step import why_not_cut
from memsup.memory import read_memory
from memsup.ranks import Group, lost_rank
from memsup.shared import messages as m

NOTE = said.note("/c/step-00000005", 5, 1.0, verified=True, save_s=None, size_bytes=7)
MEMORY = dict.fromkeys(read_memory())
ABOUTS = [About(seam, "t" * 300, not_cut=why, detail="d" * 300) for seam in Seam for why in (None, *NotCut)]
SAID: list[tuple[said.Message, type[m.Report]]] = [
    *[(said.hello(42, "r", about), m.Hello) for about in ABOUTS],
    *[(said.described(about), m.Described) for about in ABOUTS],
    *[(said.not_attached(42, "r", why, "d" * 1000), m.NotAttachedReport) for why in NotAttached],
    (said.heartbeat(said.progress(), read_memory(), NOTE), m.Heartbeat),
    (said.heartbeat(said.progress(), read_memory(), None, said.batch(32, 4096, micro_rows=8), 0.5), m.Heartbeat),
    (said.heartbeat({**said.progress(), "loss": 0.5, "epoch": 1.5, "total_steps": 9, "eta_s": 3.0}, MEMORY, None), m.Heartbeat),
    (said.out_of_memory("forward", "cpu", 3, 64, 32, "d"), m.OutOfMemory),
    (said.done(1, "d", micro_tokens=64), m.Done),
    (said.accepted(1), m.Accepted),
    (said.done(1, "d", NOTE), m.Done),
    (said.done(1, "d" * 100_000), m.Done),
    (said.order_failed(1, "d"), m.OrderFailed),
    (said.leaving("r", NOTE), m.Leaving),
    (said.finished("/x", {"loss": 0.5}, 9), m.Finished),
    (said.finished("/x" * 9000, {"n" * 300 + str(number): number for number in range(2000)}, 9), m.Finished),
    (said.failed("crash", "m", "t", 3), m.Failed),
    (said.failed("bad_input", "m", None, 3), m.Failed),
    *[(report, kind) for report, kind in zip(lost_rank(1, -9, 3, Group(0, 2, "k", 0, 1)), (m.Decided, m.Failed), strict=True)],
    ({**said.out_of_memory("forward", "cpu", 3, 64, 32, "d"), "rank": 1}, m.OutOfMemory),
    (said.decided("checkpoint_damaged", "d", "/x", 3), m.Decided),
    (said.decided("checkpoint_failed", "d"), m.Decided),
]


def test_the_protocol_is_the_same() -> None:
    assert said.PROTOCOL == m.PROTOCOL


@pytest.mark.parametrize(("message", "kind"), SAID)
def test_whatever_a_program_says_is_understood(message: said.Message, kind: type[m.Report]) -> None:
    """Every field of it, as it was said."""
    found = m.decode_for_supervisor([said.PROTOCOL, packing.pack(message)])
    assert type(found) is kind
    assert _is_within(message, msgspec.to_builtins(found))


def _is_within(said: Any, understood: Any) -> bool:
    """Whether all that was said was understood, whatever else there could have been said of it."""
    if isinstance(said, dict) and isinstance(understood, dict):
        return all(name in understood and _is_within(value, understood[name]) for name, value in said.items())
    return bool(said == understood)


@pytest.mark.parametrize("phase", ["starting", "loading", "training", "saving", "holding", "finishing"])
def test_each_phase_that_is_told_is_one(phase: str) -> None:
    assert phase in {str(known) for known in m.Phase}


def test_whatever_keeps_a_step_from_being_cut_has_its_word_on_the_wire() -> None:
    assert [why_not_cut(refusal).name for refusal in Refusal] == [refusal.name for refusal in Refusal]


def test_every_order_and_answer_of_the_supervisor_is_known_to_a_program() -> None:
    for_the_built_in_training = {m.KeepState}
    sent = {str(kind.__struct_config__.tag) for kind in set(get_args(m.ToWorker)) - for_the_built_in_training}
    assert sent == said.ORDERS | said.NO_ORDERS


def test_an_order_comes_as_the_words_that_a_session_reads() -> None:
    for order, words in {
        m.Stop(order_id=3, reason="r", checkpoint=True): {"kind": "stop", "order_id": 3, "reason": "r", "checkpoint": True},
        m.Pause(order_id=3, reason="r", mode=m.PauseMode.HOLD): {"kind": "pause", "mode": "hold"},
        m.Pause(order_id=3, reason="r", mode=m.PauseMode.RELEASE): {"kind": "pause", "mode": "release"},
        m.Pace(order_id=3, reason="r", duty_fraction=0.5): {"kind": "pace", "duty_fraction": 0.5},
        m.Lease(lease_s=3.0): {"kind": "lease", "lease_s": 3.0},
    }.items():
        assert words.items() <= packing.unpack(m.encode(order)[1]).items()


@pytest.mark.parametrize(
    "told",
    [
        None,
        {"kind": ["pause"]},
        {"kind": "pause", "order_id": 1, "reason": "x"},
        {"kind": "pause", "order_id": 1, "reason": "x", "mode": "sleep"},
        {"kind": "pace", "order_id": 1, "reason": "x", "duty_fraction": float("nan")},
        {"kind": "pace", "order_id": 1, "reason": "x", "duty_fraction": 0},
        {"kind": "stop", "order_id": True, "reason": "x", "checkpoint": True},
        {"kind": "lease", "lease_s": 1e300},
        {"kind": "welcome", "lease_s": 30.0, "memory_limit_bytes": "1"},
    ],
)
def test_what_no_supervisor_says_is_no_order(told: Any) -> None:
    assert not said.makes_sense(told)


@pytest.mark.parametrize(
    "order",
    [
        m.Welcome(run_id="r", lease_s=30.0, memory_limit_bytes=None, micro_tokens_limit=64),
        m.Lease(lease_s=30.0),
        m.Checkpoint(order_id=0, reason="x"),
        m.LimitMicroBatch(order_id=2, reason="x"),
        m.LimitMemory(order_id=3, reason="x", device_bytes=1 << 40),
        m.Pace(order_id=4, reason="x", duty_fraction=1.0),
        m.Pause(order_id=5, reason="x", mode=m.PauseMode.RELEASE),
        m.Resume(order_id=6, reason="x"),
        m.Stop(order_id=7, reason="x", checkpoint=False),
    ],
    ids=lambda order: type(order).__name__,
)
def test_whatever_the_supervisor_says_makes_sense(order: m.ToWorker) -> None:
    assert said.makes_sense(packing.unpack(m.encode(order)[1]))
