"""What came back is what was counted: never more than was held, never nought for unknown, and what is missing is said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.messages import WorkerMemory
from memsup.supervisor.decide.readings import GpuReading, MemoryReading
from memsup.supervisor.decide.run.freed import PROOF_WITHIN_S, GivenBack, Held, Proof, held_by
from memsup.supervisor.decide.vram import CONTEXT_BYTES

GIB = 1 << 30
HELD = Held(ram_bytes=3 * GIB, vram_bytes=6 * GIB, used_bytes={0: 7 * GIB})


def proof(held: Held = HELD, *, left: int | None = 0) -> Proof:
    return Proof(held=held, ram_left_bytes=left, since_s=100.0)


def gpu(used: int | None, *, at_s: float = 101.0, index: int = 0, worker: int | None = None) -> GpuReading:
    return GpuReading(at_s=at_s, index=index, used_bytes=used, worker_bytes=worker)


def test_what_the_worker_held_is_the_drivers_figure_or_its_own_and_a_context() -> None:
    own = WorkerMemory(resident_bytes=1, cuda_allocated_bytes=GIB, cuda_reserved_bytes=2 * GIB, data_limit_bytes=None)
    memory = MemoryReading(at_s=1, worker_bytes=3 * GIB)
    assert held_by(memory, [gpu(7 * GIB, worker=6 * GIB)], own) == HELD
    assert held_by(memory, [gpu(7 * GIB)], own).vram_bytes == 2 * GIB + CONTEXT_BYTES
    assert held_by(memory, [gpu(7 * GIB)], None).vram_bytes is None
    assert held_by(memory, [], None) == Held(ram_bytes=3 * GIB)


def test_without_anything_on_a_gpu_there_is_nothing_to_wait_for() -> None:
    done = proof(Held(ram_bytes=3 * GIB)).step(100, ())
    assert done == GivenBack(ram_bytes=3 * GIB)
    assert done.text == "given back: 3 GiB of RAM"


def test_the_device_is_waited_for_until_it_says_so_itself() -> None:
    assert proof().step(100, ()) is None
    assert proof().step(101, [gpu(7 * GIB, at_s=99)]) is None, "from before"
    assert proof().step(101, [gpu(7 * GIB)]) is None, "the driver takes its time"
    done = proof().step(102, [gpu(GIB)])
    assert done is not None
    assert done.text == "given back: 3 GiB of RAM and 6 GiB of VRAM by the device's own count"
    assert not done.missing


def test_more_than_was_held_is_never_claimed() -> None:
    """Another program ended in the same moment."""
    done = proof().step(102, [gpu(0)])
    assert done is not None
    assert done.vram_bytes == 6 * GIB


def test_what_does_not_come_back_is_said_with_both_figures() -> None:
    done = proof(left=GIB).step(100 + PROOF_WITHIN_S, [gpu(5 * GIB)])
    assert done is not None
    assert (done.ram_bytes, done.vram_bytes) == (2 * GIB, 2 * GIB)
    assert "Of the 6 GiB of VRAM that the worker held only 2 GiB came back" in done.missing[0]
    assert "1 GiB of the worker's RAM did not come back" in done.missing[1]


def test_what_stands_by_did_not_come_back_and_is_nobodys_trouble() -> None:
    """The RAM that came back is what the fence's count says; only what nobody has any more is missing."""
    held, left = Held(ram_bytes=700 << 20), 272 << 20
    done = Proof(held=held, ram_left_bytes=left, since_s=0.0, standby_bytes=left - (2 << 20)).step(0.0, ())
    assert done is not None
    assert (done.ram_bytes, done.missing) == (428 << 20, ())


def test_what_cannot_be_asked_is_unknown_and_not_nought() -> None:
    done = proof(left=None).step(100 + PROOF_WITHIN_S, [gpu(None)])
    assert done is not None
    assert (done.ram_bytes, done.vram_bytes, done.missing) == (None, None, ())
    assert done.text == "how much VRAM came back is not known"


@given(
    st.none() | st.integers(0, 10 * GIB),
    st.none() | st.integers(0, 10 * GIB),
    st.none() | st.integers(1, 10 * GIB),
    st.integers(0, 10 * GIB),
    st.none() | st.integers(0, 10 * GIB),
    st.floats(100, 110),
)
def test_every_proof_ends_in_time_and_claims_no_more_than_was_held(
    ram: int | None, left: int | None, vram: int | None, before: int, after: int | None, now_s: float
) -> None:
    done = proof(Held(ram_bytes=ram, vram_bytes=vram, used_bytes={0: before}), left=left).step(now_s, [gpu(after)])
    if done is None:
        assert now_s < 100 + PROOF_WITHIN_S
        return
    assert 0 <= (done.ram_bytes or 0) <= (ram or 0)
    assert 0 <= (done.vram_bytes or 0) <= (vram or 0)
    assert done.vram_bytes is None or after is not None
