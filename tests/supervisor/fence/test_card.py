"""Moving a program's GPU memory, for real: real processes, the real child, a library that speaks the driver's interface.

The library is `fake_libcuda/`, built here; without a C compiler these are not run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import fake_libcuda
from kit.cli_process import eventually
from kit.fake_libcuda import NOT_SUPPORTED, OUT_OF_MEMORY, FakeLibcuda, Operation, State
from kit.fake_nvml import compiler

from memsup.shared.descriptors import wait_ready
from memsup.supervisor.decide.run.card import GONE, Moved, Whole
from memsup.supervisor.fence.card import CardMover

pytestmark = pytest.mark.skipif(compiler() is None, reason="NOT RUN: no C compiler (cc) to build the CUDA library")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_libcuda.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibcuda:
    fake = FakeLibcuda(library, tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def mover() -> Iterator[CardMover]:
    mover = CardMover()
    yield mover
    mover.close()


class Program:
    """A program of some processes that compute on the card until they are told that it is enough."""

    def __init__(self, folder: Path, fake: FakeLibcuda, processes: int = 1) -> None:
        self._folder, self._fake, self._processes = folder, fake, processes
        argv = [sys.executable, "-S", str(fake_libcuda.write_program(folder)), "1000000", str(processes), "4"]
        self.process = subprocess.Popen(
            argv, cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ | {"STEP_S": "0.001"}
        )
        eventually(lambda: len(fake.programs) == processes and all(program.calls for program in fake.programs))
        self.pids = sorted(int(program.pid) for program in fake.programs)

    def steps(self) -> list[int]:
        return [int(program.calls) for program in self._fake.programs]

    def goes_on(self) -> bool:
        """Whether each of its processes computes on."""
        before = self.steps()
        eventually(lambda: all(now > then for now, then in zip(self.steps(), before, strict=True)))
        return True

    def digests(self) -> dict[int, str]:
        """What each process came to, by its last step."""
        (self._folder / "enough").touch()
        out, _ = self.process.communicate(timeout=60)
        return {int(words[1]): words[2] for words in map(str.split, out.splitlines())}


@pytest.fixture
def program(tmp_path: Path, fake: FakeLibcuda) -> Iterator[Program]:
    program = Program(tmp_path, fake)
    yield program
    program.process.kill()
    program.process.communicate()


def move(mover: CardMover, pids: list[int], *, to_ram: bool) -> Moved:
    assert mover.start(pids, to_ram=to_ram) is None
    assert wait_ready([mover], 60)
    moved = mover.answer()
    assert moved is not None
    return moved


def digest_of(folder: Path, steps: int) -> str:
    """What a program comes to that nobody has moved."""
    argv = [sys.executable, "-S", str(folder / "on_the_card.py"), str(steps), "1", "4"]
    (folder / "enough").unlink(missing_ok=True)
    out = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"STEP_S": "0"}).stdout
    return out.split()[2]


def test_all_that_a_program_has_on_the_card_leaves_it_and_comes_back_the_same_bits(
    tmp_path: Path, fake: FakeLibcuda, mover: CardMover, program: Program
) -> None:
    for _ in range(2):
        assert move(mover, program.pids, to_ram=True) == Moved(whole=Whole.CHECKPOINTED)
        assert fake.states() == [State.CHECKPOINTED]
        assert not any(fake.control.owner), "the card is free"
        stood = program.steps()
        assert move(mover, program.pids, to_ram=True) == Moved(whole=Whole.CHECKPOINTED), "it goes on from where it is"
        assert program.steps() == stood
        assert move(mover, program.pids, to_ram=False) == Moved(whole=Whole.RUNNING)
        assert program.goes_on()
    ((step, digest),) = program.digests().items()
    assert digest == digest_of(tmp_path, step + 1)


@pytest.mark.parametrize("operation", [Operation.LOCK, Operation.CHECKPOINT])
def test_what_the_driver_refuses_is_undone_for_all_processes(
    tmp_path: Path, fake: FakeLibcuda, mover: CardMover, operation: Operation
) -> None:
    program = Program(tmp_path, fake, processes=2)
    fake.control.result[operation] = NOT_SUPPORTED
    moved = move(mover, program.pids, to_ram=True)
    assert (moved.whole, moved.never) == (Whole.RUNNING, True)
    assert moved.why is not None
    assert "NCCL" in moved.why
    assert "CUDA_ERROR_NOT_SUPPORTED" in moved.why
    assert program.goes_on()
    program.digests()


@pytest.mark.parametrize("operation", [Operation.LOCK, Operation.CHECKPOINT, Operation.RESTORE, Operation.UNLOCK])
@pytest.mark.parametrize("dies", [True, False])
def test_a_child_that_hangs_or_crashes_costs_nothing_and_another_one_finishes(
    fake: FakeLibcuda, mover: CardMover, program: Program, operation: Operation, dies: bool
) -> None:
    faults = fake.control.crashes if dies else fake.control.hangs
    to_ram = operation in (Operation.LOCK, Operation.CHECKPOINT)
    if not to_ram:
        assert move(mover, program.pids, to_ram=True).whole is Whole.CHECKPOINTED
    faults[operation] = 1
    if dies:
        assert move(mover, program.pids, to_ram=to_ram) == GONE
    else:
        assert mover.start(program.pids, to_ram=to_ram) is None
        assert not wait_ready([mover], 0.3)
        mover.abandon()
        assert mover.answer() is None
    faults[operation] = 0
    assert move(mover, program.pids, to_ram=False) == Moved(whole=Whole.RUNNING)
    assert program.goes_on()


def test_memory_that_has_no_room_on_the_card_stays_in_ram(fake: FakeLibcuda, mover: CardMover, program: Program) -> None:
    assert move(mover, program.pids, to_ram=True).whole is Whole.CHECKPOINTED
    fake.control.owner[:] = [os.getpid()] * fake_libcuda.SLOTS
    moved = move(mover, program.pids, to_ram=False)
    assert moved.whole is Whole.CHECKPOINTED
    assert moved.why is not None
    assert "CUDA_ERROR_OUT_OF_MEMORY" in moved.why
    assert OUT_OF_MEMORY == 2
    fake.control.owner[:] = [0] * fake_libcuda.SLOTS
    assert move(mover, program.pids, to_ram=False) == Moved(whole=Whole.RUNNING)
    assert program.goes_on()


def test_memory_that_is_lost_is_said_to_be(fake: FakeLibcuda, mover: CardMover, program: Program) -> None:
    fake.control.breaks[Operation.CHECKPOINT] = 1
    assert move(mover, program.pids, to_ram=True).whole is Whole.FAILED


def test_one_that_has_ended_keeps_the_others_from_nothing(tmp_path: Path, fake: FakeLibcuda, mover: CardMover) -> None:
    program = Program(tmp_path, fake, processes=2)
    assert move(mover, program.pids, to_ram=True).whole is Whole.CHECKPOINTED
    child = next(pid for pid in program.pids if pid != program.process.pid)
    os.kill(child, signal.SIGKILL)
    assert move(mover, program.pids, to_ram=False) == Moved(whole=Whole.RUNNING)
    assert len(program.digests()) == 1


def test_processes_that_hang_on_each_other_are_given_back_in_the_order_in_which_they_were_taken(
    tmp_path: Path, fake: FakeLibcuda, mover: CardMover
) -> None:
    """With NCCL the driver says nothing about one process while it has another one locked (NVIDIA/cuda-checkpoint#30)."""
    program = Program(tmp_path, fake, processes=2)
    first = [int(found.pid) for found in fake.programs]  # the order in which the library looks for them
    fake.control.entangled = 1
    assert mover.start(first, to_ram=True) is None
    eventually(lambda: State.LOCKED in fake.states())
    assert not wait_ready([mover], 0.3)
    mover.abandon()
    assert move(mover, first, to_ram=False) == Moved(whole=Whole.RUNNING)
    assert program.goes_on()
    program.digests()


def test_where_nobody_is_there_any_more_to_be_told_it_is_brought_back(fake: FakeLibcuda, program: Program) -> None:
    """Whoever asked for it has died meanwhile."""
    ours, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "memsup.supervisor.fence.card_driver", "to_ram", *map(str, program.pids)]
    fake.control.hangs[Operation.CHECKPOINT] = 1
    with subprocess.Popen(command, stdin=its_own.fileno(), cwd="/") as child:
        its_own.close()
        eventually(lambda: fake.states() == [State.LOCKED])
        ours.close()
        fake.control.hangs[Operation.CHECKPOINT] = 0
        assert child.wait(60) == 0
    assert fake.control.done[Operation.RESTORE] == 1
    assert program.goes_on()


@pytest.mark.parametrize("there_is", ["an old driver", "none"])
def test_a_driver_that_cannot_do_it_is_asked_for_nothing(
    there_is: str, tmp_path: Path, mover: CardMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    if there_is == "none":
        (tmp_path / "lib" / "libcuda.so.1").touch()
    else:
        fake_libcuda.build(tmp_path / "lib", "-DOLD")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    moved = move(mover, [os.getpid()], to_ram=True)
    assert (moved.whole, moved.never) == (Whole.RUNNING, True)
    assert ("570" in str(moved.why)) is (there_is == "an old driver")
