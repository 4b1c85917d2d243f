"""Exhaustion is recognised, and the soft limit lies where resident memory would reach the worker's limit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.memory import SOFT_FRACTION, SPARE_BYTES, Held, held, is_out_of_memory, soft_limit_bytes
from memsup.supervisor.decide.ladder import FREEZE_FROM_USE
from memsup.worker.memory import fraction_of, hand_back, read_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "137438953472 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3.81 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_exhaustion_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_torchs_own_error_is_recognised() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


@given(st.integers(0, 1 << 44), st.integers(0, 1 << 44), st.integers(0, 1 << 44))
def test_what_is_reserved_and_untouched_does_not_count(limit: int, anonymous: int, data: int) -> None:
    """Touching all that the soft limit still allows leaves the spare room below the worker's limit, and does not come to where
    the ladder freezes what grows fast.
    """
    most = min(limit - SPARE_BYTES, int(limit * SOFT_FRACTION))
    assert most < FREEZE_FROM_USE * limit or limit == 0
    soft = soft_limit_bytes(limit, Held(resident_bytes=anonymous, anonymous_bytes=anonymous, data_bytes=data))
    may_still_grow = max(0, soft - max(data, anonymous))
    assert anonymous + may_still_grow <= max(most, anonymous)
    if data >= anonymous and most >= anonymous:
        assert anonymous + may_still_grow == most


def test_what_is_held_is_what_the_kernel_says() -> None:
    block = bytearray(32 << 20)
    now = held()
    with open("/proc/self/status", encoding="ascii") as file:
        status = {line.split(":")[0]: line.split()[1] for line in file if line.startswith(("VmRSS", "RssAnon"))}
    assert now.resident_bytes == pytest.approx(int(status["VmRSS"]) * 1024, abs=4 << 20)
    assert now.anonymous_bytes == pytest.approx(int(status["RssAnon"]) * 1024, abs=4 << 20)
    assert now.data_bytes >= now.anonymous_bytes >= len(block)
    assert read_memory().cuda_allocated_bytes is None


@dataclass
class RecordedDevice:
    """An accelerator that has 300 bytes in use and keeps 700."""

    kept_bytes: int = 700

    def allocated_bytes(self) -> int:
        return 300

    def reserved_bytes(self) -> int:
        return 300 + self.kept_bytes

    def release(self) -> None:
        self.kept_bytes = 0

    def limit(self, size_bytes: int) -> None:
        raise NotImplementedError


def test_handing_back_empties_the_devices_cache() -> None:
    device = RecordedDevice()
    before = read_memory(device)
    hand_back(device)
    after = read_memory(device)
    assert (before.cuda_allocated_bytes, before.cuda_reserved_bytes) == (300, 1000)
    assert (after.cuda_allocated_bytes, after.cuda_reserved_bytes) == (300, 300)


CHILD = """
import json
from memsup.memory import SoftLimit, held, is_out_of_memory
from memsup.supervisor.decide.ladder import FREEZE_FROM_USE
from memsup.worker.memory import hand_back
limit = SoftLimit(held().anonymous_bytes + (256 << 20))
limit.renew()
def fill():
    blocks = []
    try:
        while True:
            blocks.append(bytearray(8 << 20))
    except MemoryError as error:
        assert is_out_of_memory(error)
        return held().anonymous_bytes, len(blocks)
start = held().anonymous_bytes
counts = []
for _ in range(5):
    reached, count = fill()
    hand_back()
    limit.renew()
    counts.append(count)
with limit.spare():
    more = fill()[1]
print(json.dumps([reached - start, counts, more]))
"""


def test_exhaustion_at_the_soft_limit_is_caught_again_and_again() -> None:
    """A real limit in a real process: 192 of 256 MiB are used, then a MemoryError, five times alike; 64 MiB are spare."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    grown, counts, more = json.loads(done.stdout)
    assert 176 << 20 <= grown <= 193 << 20  # the kernel counts pages in bundles (proc_pid_statm(5): inaccurate)
    assert min(counts) >= 22
    assert max(counts) <= 24
    assert 29 <= more <= 32


HOLES = """
import json
from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.measuring import Measuring
from memsup.memory import held, trim
from memsup.supervisor.decide.ladder import FREEZE_FROM_USE
from memsup.worker.memory import Peak
from memsup.worker.plan.planner import Planner
peak = Peak(None)
planned = peak.begin() + (32 << 20)
measuring = Measuring(peak, Planner(limit_bytes=planned, longest=8, may_checkpoint=False))
def step():
    measuring.begin_step()
    with measuring.micro_batch(Shape(1, 8), checkpointed=False):
        pass
    measuring.end_step()
    return measuring.is_tight
tight = [step()]
blocks = [b"x" * 100_000 for _ in range(640)]
last = blocks.pop()  # what lies above the holes keeps the heap from shrinking by itself
del blocks
full = held().anonymous_bytes
tight.append(step())
trim()
print(json.dumps([tight + [step()], full - held().anonymous_bytes]))
"""


def test_holes_that_make_memory_tight_are_given_back() -> None:
    """A step that took more than is planned for is known, and what lay between used memory is back before the next one."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    tight, returned_bytes = json.loads(done.stdout)
    assert tight == [False, True, False]
    assert returned_bytes > 48 << 20


# -- the device --------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 1 << 40))
def test_a_limit_in_bytes_is_torchs_limit_to_the_byte(data: st.DataObject, total_bytes: int) -> None:
    """Torch takes a fraction, multiplies it by what the device has, and cuts off what is behind the point."""
    size_bytes = data.draw(st.integers(0, total_bytes))
    fraction = fraction_of(size_bytes, total_bytes)
    assert 0 <= fraction <= 1
    assert int(fraction * total_bytes) == size_bytes
