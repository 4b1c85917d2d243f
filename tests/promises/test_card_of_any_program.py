"""The card of a program that knows nothing of memsup, through the real command line: given back for a person and for a game,
and taken again, on the same bits.

There is no GPU: the driver is the tests' own (`kit/fake_libcuda`), the processes, the freezer and the moves are real.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import fake_libcuda, fake_nvml
from kit.cli_process import end_supervisors, eventually, memsup
from kit.fake_libcuda import NOT_SUPPORTED, FakeLibcuda, Operation, State
from kit.fake_nvml import FakeNvml
from kit.run_state import ledger, status, until

from memsup.shared.paths import run_paths

pytestmark = pytest.mark.skipif(fake_nvml.compiler() is None, reason="NOT RUN: no C compiler (cc) to build the libraries")
GIB = 1 << 30
DIGEST = re.compile(r"digest (\d+) ([0-9a-f]{64})")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_libcuda.build(fake_nvml.build(tmp_path_factory.mktemp("libraries")))


@pytest.fixture
def device(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    device = FakeNvml(libraries, tmp_path / "nvml.control")
    for name, value in device.environment.items():
        monkeypatch.setenv(name, value)
    return device


@pytest.fixture
def cuda(libraries: Path, device: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibcuda]:
    cuda = FakeLibcuda(libraries, tmp_path)
    for name, value in cuda.environment.items():
        monkeypatch.setenv(name, value)
    yield cuda
    end_supervisors()


def start(folder: Path, cuda: FakeLibcuda, *options: str, processes: int = 1) -> None:
    """A program that holds 8 slots, which count for 2 GiB, in each of its processes."""
    program = fake_libcuda.write_program(folder)
    done = memsup("start", *options, "--", sys.executable, "-S", str(program), "1000000", str(processes), "8", cwd=folder)
    assert done.returncode == 0, done.stderr
    eventually(lambda: len(cuda.programs) == processes and all(program.calls for program in cuda.programs))
    until(lambda seen: seen["gpus"] and seen["gpus"][0]["used_bytes"] >= processes * 2 * GIB)


def digest(folder: Path) -> tuple[int, str]:
    """What the program came to, and at which step, once it was told that it is enough."""
    (folder / "enough").touch()
    log = run_paths("default").worker_log
    found = eventually(lambda: DIGEST.search(log.read_text(encoding="utf-8")))
    return int(found[1]), found[2]


def undisturbed(folder: Path, steps: int) -> str:
    """What a program comes to that nobody guards."""
    (folder / "enough").unlink()
    argv = [sys.executable, "-S", str(folder / "on_the_card.py"), str(steps), "1", "8"]
    out = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"STEP_S": "0"}).stdout
    return out.split()[2]


def told(event: str) -> list[str]:
    return [f"{entry['reason']} {entry.get('result', '')}" for entry in ledger() if entry["event"] == event]


def test_its_card_is_given_back_to_a_person_and_to_a_game_on_the_same_bits(
    tmp_path: Path, device: FakeNvml, cuda: FakeLibcuda
) -> None:
    start(tmp_path, cuda)
    given = memsup("pause", "--release")
    assert given.returncode == 0
    assert "given back: 2 GiB of VRAM by the device's own count" in given.stdout
    assert (status()["state"], cuda.states()) == ("paused", [State.CHECKPOINTED])
    stood = cuda.programs[0].calls
    assert memsup("resume").stdout.strip() == "Running."
    eventually(lambda: cuda.programs[0].calls > stood)

    until(lambda seen: seen["gpus"][0]["used_bytes"] >= 2 * GIB)
    time.sleep(2)  # what others hold is known once it was there in two looks
    device.set(others_bytes=7.9 * GIB)  # a game, which fills the card
    began_s = time.monotonic()
    eventually(lambda: cuda.states() == [State.CHECKPOINTED])
    gave_s = time.monotonic() - began_s
    until(lambda seen: seen["state"] == "recovering")
    waits = memsup("resume")
    assert "waits for the GPU" in waits.stdout
    device.set(others_bytes=GIB)
    began_s = time.monotonic()
    eventually(lambda: cuda.states() == [State.RUNNING])
    back_s = time.monotonic() - began_s
    assert (gave_s < 3, back_s < 30) == (True, True), (gave_s, back_s)
    step, found = digest(tmp_path)
    assert found == undisturbed(tmp_path, step + 1)
    assert len(told("card_left")) == len(told("card_back")) == 2
    assert "other programs hold" in told("card_left")[1]


def test_what_keeps_it_from_that_is_said_and_changes_nothing(tmp_path: Path, cuda: FakeLibcuda) -> None:
    start(tmp_path, cuda, "--set", "limits.ram=1GiB", processes=2)
    no_room = memsup("pause", "--release")
    assert no_room.returncode == 1
    assert "that takes 4 GiB of RAM, and its limit and the machine have room for" in no_room.stderr
    assert memsup("start", "--set", "limits.ram=8GiB").returncode == 0
    cuda.control.result[Operation.CHECKPOINT] = NOT_SUPPORTED
    refused = memsup("pause", "--release")
    assert refused.returncode == 1
    assert "unified memory, memory shared with another process, or NCCL" in refused.stderr
    assert "so it cannot give its memory back and go on later" in refused.stderr
    assert (status()["state"], cuda.states()) == ("running", [State.RUNNING] * 2)
    stood = [program.calls for program in cuda.programs]
    eventually(lambda: all(program.calls > then for program, then in zip(cuda.programs, stood, strict=True)))
    assert len(told("card_kept")) == 1


def test_a_supervisor_that_is_killed_while_it_is_in_ram_costs_the_program_nothing(tmp_path: Path, cuda: FakeLibcuda) -> None:
    start(tmp_path, cuda)
    assert memsup("pause", "--release").returncode == 0
    before, stood = status(), cuda.programs[0].calls
    os.kill(before["pid"], signal.SIGKILL)
    assert memsup("start").returncode == 0
    until(lambda seen: seen["pid"] != before["pid"] and seen["state"] == "paused")
    assert memsup("resume").returncode == 0
    eventually(lambda: cuda.programs[0].calls > stood)
    assert status()["pid"] != before["pid"]
    assert cuda.states() == [State.RUNNING]
    step, found = digest(tmp_path)
    assert found == undisturbed(tmp_path, step + 1)
    assert "how, only the supervisor would have known" in until(lambda seen: seen["state"] == "failed")["failure"]
