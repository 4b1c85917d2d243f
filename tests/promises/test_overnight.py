"""Left alone: what the modules of `supervisor/night.py` do in the life of a real supervisor."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from kit.cli_process import a_run, end_supervisors, eventually, memsup
from kit.run_state import ledger, until

from memsup.shared import messages as m
from memsup.shared.messages import Phase
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.shared.status import decode_status
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import Stage
from memsup.supervisor.fence.kill import KillState
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.night import HangGuard
from memsup.supervisor.record.blackbox import Mark, read_blackbox
from memsup.supervisor.record.history import read_points
from memsup.supervisor.record.scribe import Scribe

STANDS_STILL = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
print("stands", flush=True)
def stuck_in_here(): time.sleep(1000)
stuck_in_here()
"""


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def beat(ticks: int) -> m.Heartbeat:
    progress = m.Progress(
        phase=Phase.TRAINING, ticks=ticks, epoch=0.1, step=5, total_steps=9, samples=80, loss=0.5, samples_per_s=9.0, eta_s=60.0
    )
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    return m.Heartbeat(progress=progress, batch=None, memory=memory, checkpoint=None, digest=None)


def test_a_killed_supervisor_is_explained_by_the_next_start_before_anything_else(tmp_path: Path) -> None:
    """On stderr, in the JSON document, and as a line of the ledger; a clean stop is followed by no such words."""
    first = memsup("start", "--json", "--", "sleep", "1000", cwd=tmp_path)
    assert first.document["postmortem"] == []
    paths = run_paths("default")
    eventually(lambda: len(read_blackbox(paths.blackbox).frames) >= 3)
    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))
    second = memsup("start", "--json", cwd=tmp_path)
    said = second.document["postmortem"]
    assert said[0] == "The supervisor was killed or ended without a word; the machine lived on."
    assert second.stderr.startswith(said[0])
    found = eventually(lambda: [entry for entry in ledger() if entry["event"] == "postmortem"])
    assert [entry["reason"] for entry in found] == said[:1]
    assert memsup("stop", "--now", cwd=tmp_path).returncode == 0
    eventually(lambda: not is_held(paths))
    last = read_blackbox(paths.blackbox).last
    assert last is not None
    assert (last.mark, last.reason) == (Mark.CLEAN, "the run is stopped")
    assert memsup("start", "--json", cwd=tmp_path).document["postmortem"] == []


def test_every_second_is_in_the_black_box_and_the_history_ends_with_the_end(tmp_path: Path) -> None:
    """Frames hold readings; the history's last point is of the state in which the run ended."""
    memsup("start", "--", "sleep", "1000", cwd=tmp_path)
    paths = run_paths("default")
    frames = eventually(lambda: [f for f in read_blackbox(paths.blackbox).frames if f.trace and f.facts])
    assert frames[-1].trace[-1].available_mib
    assert frames[-1].facts is not None
    assert frames[-1].facts.limit_mib
    memsup("stop", cwd=tmp_path)
    eventually(lambda: not is_held(paths))
    points, bad = read_points(paths.history.read_bytes().splitlines())
    assert bad == 0
    assert points[-1].state == "stopped"
    assert decode_status(paths.status.read_bytes()).state == "stopped"


def test_a_worker_that_stands_still_is_dumped_killed_and_started_again(tmp_path: Path) -> None:
    """A real process, half an hour of it told by the clock that is an argument: its stack is kept, and nothing gets smaller."""
    paths = a_run(command=[sys.executable, "-c", STANDS_STILL])
    record = read_record(paths.record)
    assert record is not None
    scribe = Scribe()
    scribe.start()
    hangs = HangGuard(paths, scribe)
    worker = WorkerProcess(paths, record, NoFence(record.run_id, 1 << 30), cpus=1)
    life = Lifecycle(
        wanted=record.wanted, pause_mode=record.pause_mode, run_id=record.run_id, lease_s=10.0, memory_limit_bytes=None
    )
    life.on_start(0.0, leftover=False)
    worker.start(time.monotonic())
    try:
        eventually(lambda: paths.worker_log.exists() and "stands" in paths.worker_log.read_text())
        life.on_spawned(0.0)
        life.on_report(0.0, m.Hello(pid=worker.pid or 0, run_id=record.run_id))
        now_s, hang = 0.0, None
        while hang is None:
            now_s += 1.0
            life.on_report(now_s, beat(ticks=7))  # its link thread still speaks
            hang = hangs.step(now_s, life, worker)
            if now_s > 1_801:  # the dump takes real time, which the told clock must not outrun
                eventually(lambda: "stuck_in_here" in paths.worker_log.read_text())
                written = threading.Event()
                scribe.carry_out("nothing", written.set)
                assert written.wait(20)
            assert now_s < 4_000
        assert 1_800 < now_s < 1_810
        why, stacks = hang
        assert re.search(r"got nothing done for 30 min \d s \(training;", why)
        assert stacks is not None
        assert "stuck_in_here" in stacks
        actions = life.on_hang(now_s, why, stacks)
        assert [type(a).__name__ for a in actions] == ["Record", "Kill", "Record"]
        assert actions[0].event == "hang"  # type: ignore[union-attr]
        assert life.stage is Stage.ENDING
        worker.kill(time.monotonic())
        eventually(lambda: worker.step(time.monotonic()) is KillState.GONE)
        status, *_ = worker.collect()
        life.on_exit(now_s, status, 0)
        assert (life.recovery.count, life.micro_tokens_limit, life.terminal) == (1, None, None)
    finally:
        worker.kill(time.monotonic())
        eventually(lambda: worker.step(time.monotonic()) in (None, KillState.GONE))
        scribe.finish(5.0)


def test_a_supervisor_says_by_its_exit_status_whether_it_is_to_begin_again(tmp_path: Path) -> None:
    """75 when told to go while the run is wanted, 3 beside another one, 0 after a stop: what the unit is written for."""
    paths = a_run(command=["sleep", "1000"])
    start = [sys.executable, "-P", "-m", "memsup.supervisor", "--run", paths.name]
    first = subprocess.Popen(start, stderr=subprocess.DEVNULL)
    eventually(lambda: paths.status.exists() and b'"running"' in paths.status.read_bytes())
    assert subprocess.run(start, stderr=subprocess.DEVNULL, check=False).returncode == 3
    first.terminate()
    assert first.wait(60) == 75
    second = subprocess.Popen(start, stderr=subprocess.DEVNULL)
    until(lambda seen: seen["state"] == "running")
    memsup("stop")
    assert second.wait(60) == 0


def test_a_message_about_the_end_is_delivered_and_is_in_the_ledger_without_its_address(tmp_path: Path) -> None:
    """To a real HTTP server here, by the real sender, before the supervisor goes."""
    got: list[bytes] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"json://127.0.0.1:{server.server_port}/a-secret"
        memsup("start", "--wait", "--set", f"notify.urls={address}", "--", "true", cwd=tmp_path, NO_PROXY="127.0.0.1")
        paths = run_paths("default")
        eventually(lambda: not is_held(paths))
        assert len(got) == 1
        assert b"finished" in got[0]
        said = [entry for entry in ledger() if entry["event"] == "message"]
        assert [entry["result"] for entry in said] == ["delivered"]
        assert "a-secret" not in paths.ledger.read_text() + paths.supervisor_log.read_text()
    finally:
        server.shutdown()
        server.server_close()
