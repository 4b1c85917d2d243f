"""Promise 1, with everything real: misbehaving commands under `memsup start -- COMMAND`, and processes that stand still.

Each child of `misbehaving.py` wants gigabytes and gets 700 MiB. The limit holds, the whole tree goes, a bystander never
notices, and the ledger says what happened. The parts are held to account in
`tests/supervisor/fence/` and `tests/supervisor/kernel/`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.faults.night_clock import FAST, NightClock
from kit.fenced import MISBEHAVING
from kit.run_state import LOOK_EVERY_S, endless_job, ledger, status, trains_beyond, until

from memsup.shared.messages import PROTOCOL
from memsup.shared.paths import run_paths
from memsup.supervisor.record.output import log_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MIB = 1 << 20
LIMIT_MIB = 700


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process with 50 MiB of its own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MEMSUP_")}
    command = [sys.executable, "-c", "b = b'x' * (50 << 20); input()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=others)
    yield child
    child.kill()
    child.wait()


def of_this_run() -> list[psutil.Process]:
    """Every process that was started for the run, wherever it has gone: they all carry the test's own state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MEMSUP_STATE_DIR") == os.environ["MEMSUP_STATE_DIR"] and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    "faults",
    [
        {"LEAK_MB_PER_S": "50"},
        {"LEAK_MB_PER_S": "2000"},
        {"LEAK_MB_PER_S": "full", "IGNORES": "1"},
        {"LEAK_MB_PER_S": "400", "NATIVE": "1"},
        {"LEAK_MB_PER_S": "200", "FORKS": "3"},
        {"LEAK_MB_PER_S": "500", "ESCAPES": "1"},
        {"LEAK_MB_PER_S": "500", "FORKS": "2", "STOPS": "1", "LEAK_MB": "600"},
    ],
    ids=lambda faults: "-".join(f"{key}{value}" for key, value in faults.items()),
)
def test_a_runaway_is_ended_at_its_limit_and_nobody_else_is_touched(
    faults: dict[str, str], bystander: subprocess.Popen[bytes]
) -> None:
    command = ["start", "--set", f"limits.ram={LIMIT_MIB}MiB", "--", sys.executable, "-I", "-S", str(MISBEHAVING)]
    started = memsup(*command, **faults)
    assert started.returncode == 0, started.stderr
    peaks: list[int] = []

    def died() -> bool:
        seen = status()
        peaks.append(seen["memory"]["worker_bytes"] or 0)
        return bool(seen["restarts"]) or seen["state"] == "failed"

    eventually(died, 120, every_s=LOOK_EVERY_S)
    deaths = [line for line in ledger() if line["event"] == "death"]
    assert deaths[0]["cause"] == "memory", deaths
    assert max(peaks) <= LIMIT_MIB * MIB
    readings = [line["memory"]["worker_bytes"] or 0 for line in ledger() if line.get("memory")]
    assert max(readings) <= LIMIT_MIB * MIB
    assert bystander.poll() is None
    memsup("stop", "--now")
    eventually(lambda: not of_this_run(), 30)
    assert bystander.poll() is None


@pytest.fixture
def job(tmp_path: Path, unhurried: None) -> Path:
    return endless_job(tmp_path / "job")


@pytest.mark.parametrize("disobeys", ["computing", "saving", "without-a-link"])
def test_a_worker_that_takes_all_it_can_get_is_ended_at_its_limit_and_the_run_goes_on(
    disobeys: str, job: Path, tmp_path: Path, bystander: subprocess.Popen[bytes], night_clock: NightClock
) -> None:
    """The built-in training, gone wrong in native code that holds the GIL: no order can be heard, let alone carried out."""
    orders = tmp_path / "orders"
    orders.mkdir()
    started = memsup("start", "--set", f"limits.ram={LIMIT_MIB}MiB", cwd=job, FAULT_FOLDER=str(orders))
    assert started.returncode == 0, started.stderr
    trains_beyond(3)
    saved = memsup("checkpoint", "--json")
    assert saved.returncode == 0, saved.stderr
    before = trains_beyond(status()["checkpoint"]["step"])
    match disobeys:
        case "computing":
            (orders / "gorge").touch()
        case "saving":
            (orders / "save").touch()
            eventually(lambda: not (orders / "save").exists())
            assert memsup("checkpoint").returncode != 0
        case "without-a-link":
            (orders / "mute").touch()
            with night_clock.fast(FAST):
                until(lambda seen: any("does not answer" in sentence for sentence in seen["attention"]))
            (orders / "gorge").touch()
    peaks: list[int] = []

    def goes_on() -> bool:
        seen = status()
        peaks.append(seen["memory"]["worker_bytes"] or 0)
        return seen["worker_pid"] not in (None, before["worker_pid"]) and seen["progress"]["step"] > before["progress"]["step"]

    eventually(goes_on, 120, every_s=LOOK_EVERY_S)
    deaths = [line for line in ledger() if line["event"] == "death"]
    assert [death["cause"] for death in deaths] == ["memory"], deaths
    readings = [line["memory"]["worker_bytes"] or 0 for line in ledger() if line.get("memory")]
    assert max(peaks + readings) <= LIMIT_MIB * MIB
    assert bystander.poll() is None
    assert memsup("stop").returncode == 0
    eventually(lambda: not of_this_run(), 30)
    assert not [path.name for path in run_paths("default").checkpoints.iterdir() if path.name.startswith(".")]


def test_a_supervisor_that_is_stopped_loses_its_worker_to_the_lease_and_goes_on_afterwards(
    job: Path, night_clock: NightClock
) -> None:
    """The worker does not train on unguarded: it checkpoints and leaves."""
    memsup("start", cwd=job)
    seen = trains_beyond(3)
    os.kill(seen["pid"], signal.SIGSTOP)
    with night_clock.fast(FAST):
        eventually(lambda: psutil.Process(seen["worker_pid"]).status() == psutil.STATUS_ZOMBIE, 90)
    os.kill(seen["pid"], signal.SIGCONT)
    again = until(lambda now: now["worker_pid"] not in (None, seen["worker_pid"]))
    assert again["pid"] == seen["pid"]
    trains_beyond(seen["progress"]["step"])


def test_a_worker_that_stands_still_is_said_to_and_can_be_stopped(job: Path, night_clock: NightClock) -> None:
    memsup("start", cwd=job)
    seen = trains_beyond(3)
    os.kill(seen["worker_pid"], signal.SIGSTOP)
    with night_clock.fast(FAST):
        silent = until(lambda now: now["attention"])
    assert "does not answer" in silent["attention"][0]
    assert memsup("status").returncode == 1
    assert memsup("stop", "--now").returncode == 0
    eventually(lambda: not of_this_run(), 30)


def test_garbage_on_both_sockets_disturbs_nobody(job: Path) -> None:
    import zmq

    from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder

    memsup("start", cwd=job)
    seen = trains_beyond(3)
    folder, context = SocketFolder(run_paths("default")), zmq.Context()
    for name in (WORKER_SOCKET, CONTROL_SOCKET):
        socket = context.socket(zmq.DEALER)
        socket.linger = 5000
        socket.connect(folder.endpoint(name))
        for number in range(300):
            socket.send_multipart([PROTOCOL, os.urandom(number), b""][: number % 3 + 1])
        socket.close()
    context.term()
    folder.close()
    after = trains_beyond(seen["progress"]["step"])
    assert (after["pid"], after["worker_pid"], after["restarts"]) == (seen["pid"], seen["worker_pid"], 0)
    logged = [log_line(line) for line in run_paths("default").supervisor_log.read_bytes().splitlines()]
    assert [line.event["number"] for line in logged if line.event][:3] == [1, 2, 4]
