"""Cleans up after a drill, however it ended: a process of its own that waits for its standard input to end.

    python -P -m memsup.supervisor.drill.janitor FOLDER

The drill writes the name and the run id of each run that it begins there, one a line. When the drill is over, was interrupted
or was killed, the kernel closes the pipe, and the janitor stops the supervisors of these runs, ends whatever is left in their
fences, and removes the folder. It finds supervisors by the locks they hold in that folder, or by having been started for it,
and workers by the fences of these runs, so it can touch nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from memsup.shared.messages import RequestKind
from memsup.shared.paths import PathError, RunPaths
from memsup.supervisor.client.contact import NoAnswerError, NobodyThereError, ask
from memsup.supervisor.daemon.lock import is_taken
from memsup.supervisor.fence import choose_fence
from memsup.supervisor.fence.kill import KillState, TreeKill
from memsup.supervisor.kernel.processes import Process, send_to, with_variable

STOPS_WITHIN_S = 10.0
STEP_S = 0.01


def run_folders(drill_folder: Path, name: str) -> RunPaths:
    """Each run has a root of its own, so that one of them can lie on another file system."""
    return RunPaths(name=name, state=drill_folder / name / "state" / name, runtime=drill_folder / name / "runtime" / name)


def main(drill_folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whatever interrupts the drill is why there is a janitor
    begun = dict(line.split() for line in sys.stdin)
    for name in begun:
        end_supervisor(run_folders(drill_folder, name))
    while left := started_for(drill_folder):
        for process in left:
            send_to(process, signal.SIGKILL)
        time.sleep(STEP_S)
    for run_id in begun.values():
        clear_fence(run_id)
    shutil.rmtree(drill_folder, ignore_errors=True)


def end_supervisor(paths: RunPaths) -> None:
    if holder_of(paths) is None:
        return
    kill_at_s = time.monotonic() + STOPS_WITHIN_S
    with contextlib.suppress(NobodyThereError, NoAnswerError, PathError):
        ask(paths, RequestKind.STOP_NOW, within_s=STOPS_WITHIN_S)
    while (pid := holder_of(paths)) is not None:
        if time.monotonic() > kill_at_s:
            os.kill(pid, signal.SIGKILL)  # it holds the lock, so this number is its own
        time.sleep(STEP_S)


def holder_of(paths: RunPaths) -> int | None:
    """The pid of the supervisor that holds the run's lock. None means that nobody does."""
    try:
        with paths.lock.open("rb") as lock:
            if is_taken(lock.fileno()):
                text = lock.read(32).strip()
                return int(text) if text.isdigit() else None
    except OSError:
        pass
    return None


def started_for(drill_folder: Path) -> list[Process]:
    """What was started to keep its state in the drill's folder: a supervisor that was begun just now holds no lock yet."""
    found = with_variable("MEMSUP_STATE_DIR")
    return [process for process, state in found if Path(state).is_relative_to(drill_folder) and process.pid != os.getpid()]


def clear_fence(run_id: str) -> None:
    """Ends what a killed supervisor left: its worker, which may be leaving just now, and the cgroup around it."""
    fence = choose_fence(run_id, 1 << 30, device_is_cuda=False).fence
    kill = TreeKill(fence, None, now_s=time.monotonic())
    while kill.step(time.monotonic()) is KillState.KILLING:
        time.sleep(STEP_S)
    fence.remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
