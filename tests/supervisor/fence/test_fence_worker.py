"""The worker as a process, as far as no whole run is needed to see it."""

from __future__ import annotations

import time

from kit.cli_process import a_run, eventually

from memsup.shared.run_file import read_record
from memsup.supervisor.fence.kill import KillState
from memsup.supervisor.fence.rlimit import NoFence
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.kernel.processes import marks


def test_a_worker_is_known_by_its_mark_from_its_first_moment() -> None:
    """Also while what launches it has not become it: a supervisor may die in that moment, and whoever looks for what it left
    must not be told that there is nothing.
    """
    paths = a_run(command=["sleep", "1000"])
    record = read_record(paths.record)
    assert record is not None
    worker = WorkerProcess(paths, record, NoFence(record.run_id, 1 << 30), 1)
    worker.start(time.monotonic())
    try:
        assert worker.fence.name in marks()
    finally:
        worker.kill(time.monotonic())
        eventually(lambda: worker.step(time.monotonic()) is KillState.GONE)
        worker.collect()
