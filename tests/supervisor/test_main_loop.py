"""The supervisor's loop rests where there is nothing to do. The real one, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from memsup.shared.clock import monotonic_s
from memsup.shared.paths import prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.decide.run.actions import Kill
from memsup.supervisor.decide.run.one_life import Stage
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.main import Supervisor

paths = run_paths("default")
prepare(paths)
record = RunRecord(
    run="default", run_id="rest", created_unix_s=0.0, wanted=Wanted.RUNNING, tier="auto", tier_reason="", settings=Settings(),
    command=["sleep", "1000"], command_folder="/",
)
supervisor = Supervisor(paths, record, Lock(paths))
supervisor.startup()
def turn():
    woken = {key.fd for key, _ in supervisor.poller.select(0.02)}
    supervisor.on_wake(monotonic_s(), woken)
while supervisor.worker.pid is None:
    turn()
first = supervisor.worker.pid
if sys.argv[1] == "killed":
    supervisor._perform(monotonic_s(), [Kill()])
    while supervisor.worker.step(monotonic_s()).name == "KILLING":
        pass
else:
    os.kill(first, 9)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
supervisor.on_wake(monotonic_s(), set())  # its end is found by looking, not by its descriptor
while supervisor.worker.pid == first:
    turn()
assert supervisor.life.stage is Stage.NONE, supervisor.life.stage
ours = (supervisor.sockets.worker, supervisor.sockets.control, supervisor.devices, supervisor.worker.card)
print(set(supervisor.poller.get_map()) == {supervisor.signals.fd, *(one.fileno() for one in ours)})
print(supervisor.guard.look_again_in_s(worker_is_gone=True, at_most_s=supervisor.worker.beat_every_s))
supervisor.shutdown()
"""


@pytest.mark.parametrize("how", ["killed", "ended by itself"])
def test_a_worker_that_is_gone_wakes_the_loop_no_more(tmp_path: Path, how: str) -> None:
    """Its descriptor was left in the poll once it was closed, and the loop used a whole core until the next start."""
    folders = {"MEMSUP_STATE_DIR": str(tmp_path / "state"), "MEMSUP_RUNTIME_DIR": str(tmp_path / "runtime")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how],
        env=os.environ | folders,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    only_what_stays_open, rest_s = done.stdout.split()
    assert only_what_stays_open == "True"
    assert float(rest_s) >= 0.5
