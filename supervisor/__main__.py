"""`python -m memsup.supervisor --run NAME`: the process that `memsup start` leaves behind.

The process says on `--ready-fd`, in one JSON line, whether it guards now or why not; from then on it talks through its sockets
and files.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from memsup.shared.commands import command
from memsup.shared.log import json_lines, log, log_to, plain_words, to_standard_error
from memsup.shared.paths import PathError, prepare, run_paths
from memsup.shared.record import RecordError
from memsup.shared.run_file import read_record
from memsup.shared.settings import SettingsError
from memsup.shared.status import Wanted
from memsup.supervisor.daemon.lock import AlreadyRunningError, Lock
from memsup.supervisor.daemon.systemd import GUARDED
from memsup.supervisor.kernel.children import why_not_started
from memsup.supervisor.main import Supervisor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m memsup.supervisor")
    parser.add_argument("--run", required=True)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    os.umask(0o077)
    try:
        paths = run_paths(options.run)
        prepare(paths)
        into_file = _standard_error_is(paths.supervisor_log)
        log_to(paths.name, (json_lines if into_file else plain_words)(to_standard_error))
        lock = Lock(paths)
        record = read_record(paths.record)
        if record is None:
            raise RecordError(f"{paths.record} is missing; start the run with: {command('start', paths.name)}")
        if record.wanted is Wanted.STOPPED:  # since somebody wanted it started; or it is started by hand, past `memsup start`
            raise RecordError(f"The run was stopped. Go on with: {command('start', paths.name)}")
        supervisor = Supervisor(paths, record, lock)
    except (AlreadyRunningError, PathError, RecordError, SettingsError, OSError) as error:
        more = error.more if isinstance(error, SettingsError) else ()
        text = f"{why_not_started(error)[0]}." if isinstance(error, OSError) else str(error)
        _tell(options.ready_fd, ok=False, text=text, more=more)
        log.error(" ".join([text, *more]))
        return GUARDED if isinstance(error, AlreadyRunningError) else 1
    into_log = json_lines(partial(supervisor.scribe.append, paths.supervisor_log))
    log_to(paths.name, into_log, *([] if into_file else [plain_words(supervisor.scribe.say)]))
    death, fence = supervisor.night.death, supervisor.worker.fence
    _tell(
        options.ready_fd,
        ok=True,
        postmortem=death.lines if death else (),
        fence=fence.kind,
        fence_reason=fence.why_no_better,
        waits=death is not None and death.waits is not None,
        others=supervisor.night.limits.beside.others,
    )
    supervisor.run()
    lock.release()
    return supervisor.exit_status


def _standard_error_is(file: Path) -> bool:
    """Whether standard error goes to `file`: `memsup start` leads it there, so that what Python says when it breaks has a
    place.
    """
    try:
        return os.path.samestat(os.fstat(2), os.stat(file))
    except OSError:
        return False


def _tell(fd: int | None, *, ok: bool, **answer: Any) -> None:
    """Writes the line that `memsup start` waits for, whose fields are those of `Answer` in `client/spawning.py`. `fd` is None
    where nobody waits.
    """
    if fd is not None:
        try:
            os.write(fd, msgspec.json.encode({"ok": ok} | answer) + b"\n")
        except BrokenPipeError:
            pass  # whoever started us has gone; that is no reason to go as well
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
