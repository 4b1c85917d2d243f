"""What a supervisor holds of a worker's state: taken from whoever dies, handed on, counted, and given up."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator

import pytest
from kit.fenced import MIB, kill, subreaper, wait_for

from memsup.shared.descriptors import SEALS, receive_with_descriptor
from memsup.shared.messages import Kept, decode_kept, encode_kept
from memsup.supervisor.fence import Fence, FenceError
from memsup.supervisor.fence.cgroup1 import Cgroup1Fence
from memsup.supervisor.fence.cgroup2 import DelegatedFence
from memsup.supervisor.fence.in_memory import HeldState
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.kernel.children import spawn

HANDS_OVER = """\
import os, socket, sys
from memsup.shared.messages import Kept
from memsup.worker.kept import Lifeline
from memsup.shared.descriptors import SEALS
import fcntl
fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
for _ in range({mib}):
    os.write(fd, b"x" * (1 << 20))
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
Lifeline(int(sys.argv[1])).hand_over(Kept(step=3, size_bytes={mib} << 20, took_s=0.1), fd)
"""


def memory(content: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def note(step: int, size_bytes: int) -> Kept:
    return Kept(step=step, size_bytes=size_bytes, took_s=0.1)


@pytest.fixture
def held() -> Iterator[HeldState]:
    held = HeldState(NoFence("test", 1 << 30))
    yield held
    held.end_life()
    held.give_up()


def worker_of(held: HeldState) -> socket.socket:
    return socket.socket(fileno=held.begin_life())


def hand_over(worker: socket.socket, step: int, content: bytes) -> None:
    fd = memory(content)
    socket.send_fds(worker, [encode_kept(note(step, len(content)))], [fd])
    os.close(fd)


def handed_to(worker: socket.socket) -> tuple[Kept, bytes] | None:
    try:
        said, fd = receive_with_descriptor(worker, 512)
    except BlockingIOError:
        return None
    assert fd is not None
    content = os.pread(fd, 100, 0)
    os.close(fd)
    return decode_kept(said), content


def test_the_newest_that_a_worker_has_handed_over_goes_to_the_next_ones_until_it_is_given_up(held: HeldState) -> None:
    with worker_of(held) as first:
        assert (held.take(), handed_to(first)) == (None, None)
        hand_over(first, 1, b"old")
        hand_over(first, 2, b"newer")
    assert held.take() == note(2, 5), "it is taken also from one that has died"
    assert held.size_bytes == 5
    for _ in range(2):
        with worker_of(held) as following:
            handed = handed_to(following)
            assert handed is not None
            assert (handed[0].step, handed[1], handed[0].age_s > 0) == (2, b"newer", True)
    held.give_up()
    assert held.size_bytes == 0
    with worker_of(held) as last:
        assert handed_to(last) is None


def test_what_makes_no_sense_is_let_go_and_what_is_held_stays(held: HeldState) -> None:
    with worker_of(held) as worker:
        hand_over(worker, 1, b"good")
        assert held.take() == note(1, 4)
        descriptors = len(os.listdir("/proc/self/fd"))
        could_be_written, another_size, pipe = memory(b"bad", 0), memory(b"bad"), os.pipe()
        for said, fds in (
            (encode_kept(note(2, 3)), [could_be_written]),
            (encode_kept(note(2, 4)), [another_size]),
            (encode_kept(note(2, 0)), [pipe[0]]),
            (b"\x80", [another_size]),
            (encode_kept(note(2, 3)), []),
            (encode_kept(note(2, 3)), [another_size, could_be_written]),
        ):
            socket.send_fds(worker, [said], fds)
        os.close(could_be_written)
        os.close(another_size)
        os.close(pipe[0])
        os.close(pipe[1])
        held.take()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert held.size_bytes in (4, 3)


@pytest.mark.parametrize("kind", [NoFence, Cgroup1Fence, DelegatedFence])
def test_what_is_held_counts_as_the_fences_until_it_is_given_up(kind: type[Fence]) -> None:
    with subreaper():
        try:
            fence = kind(f"test_{os.getpid()}_kept", 400 * MIB)
        except FenceError as error:
            pytest.skip(str(error))
        held = HeldState(fence)
        fd = held.begin_life()
        child = spawn([*fence.launch_prefix(), sys.executable, "-P", "-c", HANDS_OVER.format(mib=100), str(fd)], keep_fds=[fd])
        os.close(fd)
        wait_for("it has handed over and ended", lambda: child.exit_code() == 0)
        assert held.take() == note(3, 100 * MIB)
        kill(fence, child)
        used = fence.used_bytes()
        assert used is not None
        assert 100 * MIB <= used < 140 * MIB
        held.give_up()
        wait_for("its memory is back", lambda: (fence.used_bytes() or 0) < 40 * MIB)
        held.end_life()
        assert fence.remove()
