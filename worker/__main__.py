"""`python -m memsup.worker --run NAME --lifeline-fd N`: one life of the worker, from the first word to the last.

Everything heavy is imported after the supervisor has answered: it knows the worker's process, and the worker its limits,
before anything large is allocated. Only a worker that takes the place of one that died has everything from the process that
stood by (`warm.py`). Exit status: 0 finished or left as told; 1 failed.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import logging
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

from memsup.checkpoint.errors import DiskFull
from memsup.shared.commands import command
from memsup.shared.data.errors import InputError
from memsup.shared.log import FromLibraries, json_lines, log, log_to, plain_words, to_standard_error
from memsup.shared.messages import AnyReport, Failed, FailureCause, Leaving, Phase
from memsup.shared.paths import PathError, RunPaths, run_paths
from memsup.shared.record import RecordError, RunRecord
from memsup.shared.run_file import read_record
from memsup.sleep import Sleep
from memsup.worker.imports import import_code_of, quick_scan_of_transformers, without_search_for_garbage
from memsup.worker.link import Link, MustLeave
from memsup.worker.session import GiveUp, Leave, Session
from memsup.worker.warm import stand_by

WELCOME_S = 60.0

LIBRARIES = {
    # A thread that waits for the others spins a moment, then sleeps. With 30,000 turns a step takes a tenth less on an idle
    # machine, and twice the time as soon as anybody else wants a core (benchmarks/spinning.py); libgomp's own are 300,000.
    "GOMP_SPINCOUNT": "1000",
    # Another number of threads, chosen by a library on its own, would give other bits.
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
    # oneDNN, which multiplies bfloat16, generates code for each shape and keeps that of 1,024, in two caches. Micro-batches
    # come in hundreds of shapes: BERT 6 x 384 grew by 490 MiB in 60 steps. With 64 it grows by 35 MiB, at the same speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    # numpy starts its threads when it is imported. Nothing here multiplies large matrices with it, and a process that has
    # threads cannot be forked (`warm.py`).
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment of torch's libraries, where the user has not set it."""


def main() -> int:
    arguments = _arguments()
    if arguments.warm_fd is not None:
        arguments.lifeline_fd = stand_by(arguments.warm_fd, partial(_load_for, arguments.run))
    log_to(arguments.run, (plain_words if sys.stderr.isatty() else json_lines)(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    logging.captureWarnings(True)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # kill -USR1 PID: every thread's stack into worker.log
    try:
        paths = run_paths(arguments.run)
        record = read_record(paths.record)
        if record is None:
            raise RecordError(f"There is no run {arguments.run!r}. Start it with: {command('start', paths.name)}")
        link = Link(paths, run_id=record.run_id, lifeline_fd=arguments.lifeline_fd)
    except (PathError, RecordError) as error:
        log.error(str(error))
        return 1
    link.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: link.orders.put(MustLeave(signal.Signals(caught).name)))
    try:
        return _live(paths, record, link)
    finally:
        link.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker", description=__doc__)
    parser.add_argument("--run", required=True)
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--lifeline-fd", type=int)
    whose.add_argument("--warm-fd", type=int, help="stand by instead, until a worker is wanted")
    return parser.parse_args()


def _live(paths: RunPaths, record: RunRecord, link: Link) -> int:
    welcome = link.welcome(WELCOME_S)
    if welcome is None:
        log.error(f"No supervisor answered; the worker trains only under one. Start it with: {command('start', record.run)}")
        return 1
    session, sleep = Session(link, link.lifeline), Sleep()
    last_words: AnyReport
    try:
        with session.phase(Phase.LOADING):
            _load()
            from memsup.worker.ranks.joined import GuestSession, follow
            from memsup.worker.train import train
        if record.settings.nodes.join is None:
            last_words = train(record, paths, welcome, session)
        else:
            last_words = follow(record, paths, welcome, GuestSession(link))
    except Leave as leave:
        log.info("Leaving", reason=leave.reason)
        last_words = Leaving(reason=leave.reason, checkpoint=leave.checkpoint)
    except Exception as error:
        last_words = failed(error, record.run, sleep)
        if last_words.cause in (FailureCause.BAD_INPUT, FailureCause.DISK_FULL):  # where in the program it was is of no use
            log.error("The training ends here", reason=last_words.message)
        else:
            log.exception("The training ends here")
    link.report(last_words)
    return 1 if isinstance(last_words, Failed) else 0


def _load() -> None:
    os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded
    with without_search_for_garbage(), quick_scan_of_transformers():
        import memsup.worker.train  # noqa: F401


def _load_for(run: str) -> None:
    """Imports what the workers of this run need, before any of them is there. Raises `PathError`, `RecordError` and
    `InputError`.
    """
    record = read_record(run_paths(run).record)
    _load()
    if record is not None:
        from memsup.worker.tasks import find_task

        with without_search_for_garbage():
            find_task(record.settings.task.kind)
            import_code_of(Path(record.settings.task.model or ""))


def failed(error: Exception, run: str, sleep: Sleep | None = None) -> Failed:
    """Whose fault it is, in one sentence. `run` is the run's name, `sleep` the machine's in this life. None of
    `sleep` means that no device computes.
    """
    cause, message = FailureCause.CRASH, f"The worker crashed: {type(error).__name__}: {error}"
    step = device_others_bytes = exit_status = rank = None
    crash = error.__cause__ or error  # not the sentence that was made of it
    dead = None if sleep is None else sleep.killed_cuda(crash, "the worker")
    if dead is not None:
        cause, message = FailureCause.AFTER_SLEEP, dead
    elif isinstance(error, GiveUp):
        cause, message = error.cause, str(error)
        step, device_others_bytes, exit_status = error.step, error.device_others_bytes, error.exit_status
        rank = error.rank
    elif isinstance(error, InputError):
        cause, message = FailureCause.BAD_INPUT, str(error)
    elif isinstance(error, DiskFull):
        cause, message = FailureCause.DISK_FULL, str(error)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        cause, message = FailureCause.DISK_FULL, f"The disk is full: {error}. Free some space, then: {command('start', run)}"
    has_trace = cause in (FailureCause.CRASH, FailureCause.AFTER_SLEEP) and exit_status is None
    return Failed(
        cause=cause,
        message=message,
        traceback="".join(traceback.format_exception(crash))[-60_000:] if has_trace else None,
        step=step,
        device_others_bytes=device_others_bytes,
        exit_status=exit_status,
        rank=rank,
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Taking torch and its thousands of modules down in order takes seconds, in which the memory is not back yet. Everything
    # that matters is on disk and has been said.
    os._exit(status)
