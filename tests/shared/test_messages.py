"""The wire: everything that is said arrives as it was said, and what is no message is refused without harm."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared import messages as m

DECODERS = [m.decode_for_worker, m.decode_for_supervisor, m.decode_request, m.decode_reply]

progress = st.builds(
    m.Progress,
    phase=st.sampled_from(m.Phase),
    ticks=st.integers(0, 2**60),
    epoch=st.floats(0, 1e4),
    step=st.integers(0, 2**40),
    total_steps=st.none() | st.integers(0, 2**40),
    samples=st.integers(0, 2**50),
    loss=st.none() | st.floats(allow_nan=False),
    samples_per_s=st.none() | st.floats(0, 1e9),
    eta_s=st.none() | st.floats(0, 1e9),
)


def test_every_message_of_the_design_exists_and_has_a_kind_of_its_own() -> None:
    orders = {"Checkpoint", "LimitMicroBatch", "LimitMemory", "Pace", "Pause", "Resume", "Stop"}
    reports = {"Hello", "Heartbeat", "Accepted", "Done", "OutOfMemory", "Finished", "Failed"}
    assert {kind.__name__ for kind in typing.get_args(m.AnyOrder)} == orders
    assert reports <= {kind.__name__ for kind in typing.get_args(m.AnyReport)}
    tags = [kind.__struct_config__.tag for kind in typing.get_args(m.ToWorker) + typing.get_args(m.AnyReport)]
    assert len(tags) == len(set(tags))


@given(progress)
def test_a_heartbeat_arrives_as_it_was_sent(value: m.Progress) -> None:
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    beat = m.Heartbeat(progress=value, batch=None, memory=memory, checkpoint=None, digest="00")
    assert m.decode_for_supervisor(m.encode(beat)) == beat


@pytest.mark.parametrize("decode", DECODERS)
@given(frames=st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_refused_and_nothing_else_happens(decode: typing.Any, frames: list[bytes]) -> None:
    with pytest.raises(m.BadFrameError):
        decode(frames)


@pytest.mark.parametrize("decode", DECODERS)
@given(body=st.binary(max_size=300))
def test_garbage_behind_the_right_name_is_refused_too(decode: typing.Any, body: bytes) -> None:
    with pytest.raises(m.BadFrameError):
        decode([m.PROTOCOL, body])


@given(st.recursive(st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9), lambda x: st.lists(x, max_size=3)))
def test_well_formed_msgpack_that_is_no_message_is_refused(value: object) -> None:
    with pytest.raises(m.BadFrameError):
        m.decode_for_supervisor([m.PROTOCOL, msgspec.msgpack.encode(value)])


def test_another_version_an_unknown_kind_and_an_unknown_field_are_refused() -> None:
    good = m.encode(m.Accepted(order_id=1))
    for frames in (
        [m.PROTOCOL + b"0", good[1]],
        [m.PROTOCOL, msgspec.msgpack.encode({"kind": "dance"})],
        [m.PROTOCOL, msgspec.msgpack.encode({"kind": "accepted", "order_id": 1, "extra": 1})],
        [m.PROTOCOL, msgspec.msgpack.encode({"kind": "accepted", "order_id": -1})],
        m.encode(m.Finished(model_path="/a\0b", metrics={}, steps=1, samples=1)),
    ):
        with pytest.raises(m.BadFrameError):
            m.decode_for_supervisor(frames)


def test_a_message_for_the_other_side_is_refused() -> None:
    with pytest.raises(m.BadFrameError):
        m.decode_for_worker(m.encode(m.Accepted(order_id=1)))


def test_a_deeply_nested_bomb_and_a_huge_frame_are_refused() -> None:
    with pytest.raises(m.BadFrameError):
        m.decode_for_supervisor([m.PROTOCOL, b"\x91" * 100_000])
    with pytest.raises(m.BadFrameError, match="more than"):
        m.decode_for_supervisor([m.PROTOCOL, bytes(m.MAX_FRAME_BYTES + 1)])
