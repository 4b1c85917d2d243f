"""`memsup list` and `memsup rm`: all runs with their state and what they take of the disk, and the removal of some of them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from memsup.shared.commands import command
from memsup.shared.paths import paths_of, state_root
from memsup.shared.record import RecordError
from memsup.shared.settings import parse_duration_s
from memsup.shared.status import OVER, RunState, Status
from memsup.supervisor.cli.options import json_option, run_names
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.contact import Presence, observe
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.removal import remove, size_bytes
from memsup.supervisor.client.runs import all_runs
from memsup.supervisor.words import count, duration, learnt, measured, percent, plural, reached, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DONE, NOT_REMOVED, UNKNOWN = 0, 1, 4


@dataclass(frozen=True)
class Found:
    """One run, as it was found."""

    name: str
    status: Status | None
    """What is so of it. It is None where its `run.json` cannot be read."""
    is_up: bool
    """Whether it has a supervisor, or something that it started still runs."""
    size_bytes: int
    is_unguarded: bool = False
    """Whether something that it started still runs, and it has no supervisor."""

    @property
    def age_s(self) -> float | None:
        """The time since the run came into its state. It is None where that is not known."""
        if self.status is None or self.status.since is None:
            return None
        return max(0.0, time.time() - self.status.since)


def find(name: str) -> Found:
    paths = paths_of(name)
    try:
        observed = observe(paths)
    except RecordError:
        return Found(name, None, is_up=False, size_bytes=size_bytes(paths))
    left = observed.worker_is_left
    is_up = observed.presence is not Presence.GONE or left
    return Found(name, observed.status, is_up=is_up, size_bytes=size_bytes(paths), is_unguarded=left)


@click.command("list")
@json_option
def list_runs(as_json: bool) -> int:
    """All runs: what each does, how far it is, what came of it, and what it takes of the disk."""
    found = [find(paths.name) for paths in all_runs()]
    if as_json:
        json_data({"schema": 1, "runs": [_document(run) for run in found]})
        return DONE
    if not found:
        message(f"There is no run in {state_root()} yet. Start one with: memsup start")
        return DONE
    data(*rows(found, time.time()))
    if len(found) > 1:
        message(f"{plural(len(found), 'run')}, {size(sum(run.size_bytes for run in found))}. Remove some with: memsup rm RUN…")
    return DONE


def rows(found: Iterable[Found], now_unix_s: float) -> list[tuple[str, ...]]:
    """The table of all runs, with its head; a column of which nothing is known of any run is left out."""
    table = [_row(run, now_unix_s) for run in found]
    head = ("run", "state", "progress", "time", "result", "on disk")
    told = [place for place in range(len(head)) if any(row[place] for row in table)]
    return [tuple(row[place] for place in told) for row in (head, *table)]


def _row(run: Found, now_unix_s: float) -> tuple[str, ...]:
    status = run.status
    if status is None:
        return (run.name, "unreadable", "", "", "", size(run.size_bytes))
    far = reached(status)
    total = status.progress.total_steps
    steps = "" if far is None else count(far.step) + (f" ({percent(far.step / total)})" if total else "")
    if status.waiting is not None and status.state not in OVER:
        steps = ", ".join(filter(None, [steps, status.waiting.what_for]))
    state = f"{status.state}, unguarded" if run.is_unguarded else str(status.state)
    return (run.name, state, steps, _time(status, now_unix_s), _metric(status), size(run.size_bytes))


def _time(status: Status, now_unix_s: float) -> str:
    if status.state is RunState.RUNNING and status.progress.eta_s is not None:
        return f"{duration(status.progress.eta_s)} left"
    if status.since is None:
        return ""
    age = duration(now_unix_s - status.since)
    return f"{age} ago" if status.state in OVER else f"for {age}"


def _metric(status: Status) -> str:
    """The first metric of a finished run: accuracy, for a classifier."""
    if not status.result:
        return ""
    name, value = next(iter(learnt(status.result).items()))
    return f"{name.replace('_', ' ')} {measured(name, value)}"


def _document(run: Found) -> dict[str, Any]:
    status = run.status
    return {
        "run": run.name,
        "state": None if status is None else status.state,
        "is_up": run.is_up,
        "is_unguarded": run.is_unguarded,
        "waits_for": None if status is None or status.waiting is None else status.waiting.runs,
        "is_command": None if status is None else status.is_command,
        "step": None if status is None else status.progress.step,
        "total_steps": None if status is None else status.progress.total_steps,
        "eta_s": None if status is None or status.state in OVER else status.progress.eta_s,
        "since": None if status is None else status.since,
        "result": None if status is None else status.result,
        "model_path": None if status is None else status.model_path,
        "bytes": run.size_bytes,
    }


@click.command()
@click.argument("names", nargs=-1, metavar="RUN…", shell_complete=run_names)
@click.option("--older-than", "age", metavar="TIME", help="Those that ended at least so long ago, such as 30d or 12h.")
@click.option("--finished", is_flag=True, help="Those that are finished.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def rm(names: tuple[str, ...], age: str | None, finished: bool, yes: bool, as_json: bool) -> int:
    """Remove runs, with their checkpoints and models. Never one that is up.

    Says what that is and asks, unless with --yes. What lies in a run's folder and is not memsup's stays.
    Exit code: 0 removed, 1 not, 2 nobody could be asked, 4 unknown run.
    """
    if not names and age is None and not finished:
        raise click.UsageError("Name the runs, or choose them with --finished or --older-than. memsup list shows them all.")
    if unknown := sorted(set(names) - {paths.name for paths in all_runs()}):
        raise RefusedError(f"There is no run {unknown[0]!r}. Those that there are: memsup list", UNKNOWN)
    chosen = [find(name) for name in dict.fromkeys(names) or [paths.name for paths in all_runs()]]
    if names and (up := [run for run in chosen if run.is_up]):
        name = up[0].name
        guard = f"{command('start', name)}, then " if up[0].is_unguarded else ""  # nobody is there who could be told to stop
        raise RefusedError(f"Run {name!r} is up, and is not removed. First: {guard}{command('stop', name)}", NOT_REMOVED)
    chosen = _those([run for run in chosen if not run.is_up], older_than_s=_seconds(age), finished=finished)
    if not chosen:
        message("No run is to be removed.")
    elif not (yes or _agreed(chosen)):
        message("Nothing was removed.")
        return NOT_REMOVED
    removed = []
    for run in chosen:
        paths = paths_of(run.name)
        left = remove(paths)
        removed.append({"run": run.name, "bytes": run.size_bytes, "left": left})
        if not as_json:  # told one by one: a later one may be refused
            data(f"Removed run {run.name!r}, {size(run.size_bytes)}.")
            if left:
                message(f"  In {paths.state} stays what is not memsup's: {', '.join(left)}")
    if as_json:
        json_data({"schema": 1, "removed": removed})
    return DONE


def _seconds(age: str | None) -> float | None:
    try:
        return None if age is None else parse_duration_s(age)
    except ValueError as error:
        raise click.UsageError(f"--older-than {age}: {error}.") from None


def _those(found: Sequence[Found], *, older_than_s: float | None, finished: bool) -> list[Found]:
    """Those that are chosen. A run whose age is not known is not old."""
    return [
        run
        for run in found
        if (not finished or (run.status is not None and run.status.state is RunState.FINISHED))
        and (older_than_s is None or (run.age_s is not None and run.age_s >= older_than_s))
    ]


def _agreed(chosen: Sequence[Found]) -> bool:
    """Whether a person wants that. Raises `RefusedError` where nobody can be asked."""
    message("To be removed, with their checkpoints, models, ledgers and logs:", *(_row(run, time.time()) for run in chosen))
    for run in chosen:
        folder = _checkpoints_elsewhere(run.name)
        if folder is not None:
            message(f"The checkpoints of run {run.name!r} in {folder} stay.")
    if not sys.stdin.isatty():
        raise RefusedError("Nobody can be asked here, so nothing was removed. To remove them: the same with --yes")
    total = size(sum(run.size_bytes for run in chosen))
    return click.confirm(f"Remove {plural(len(chosen), 'run')}, {total}?", err=True)


def _checkpoints_elsewhere(name: str) -> str | None:
    from memsup.shared.run_file import read_record

    try:
        record = read_record(paths_of(name).record)
    except RecordError:
        return None
    return record.settings.checkpoint.folder if record is not None else None
