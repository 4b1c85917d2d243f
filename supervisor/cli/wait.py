"""`memsup wait` and `start --wait`: looks on until the run ends, with a moving line on a terminal and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from memsup.shared.commands import command
from memsup.shared.paths import RunPaths
from memsup.shared.printable import printable
from memsup.shared.status import OVER, RunState, Status, Trouble, TroubleKind, Wanted, encode_status
from memsup.supervisor.cli import INTERRUPTED
from memsup.supervisor.cli.options import json_option, paths_of, run_option
from memsup.supervisor.cli.picture import one_line
from memsup.supervisor.cli.screen import colour, console, data, json_data, message
from memsup.supervisor.client.contact import observe
from memsup.supervisor.words import duration, reached, result_line, size, trains

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FINISHED, NOT_FINISHED = 0, 1
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 10.0


@click.command()
@run_option
@json_option
def wait(run_name: str, as_json: bool) -> int:
    """Wait until the run ends. Progress is shown on stderr, the result on stdout.

    Ctrl-C ends the waiting only. Exit code: 0 finished, else 1.
    """
    paths = paths_of(run_name)
    if observe(paths).status is None:
        message(f"There is no run {run_name!r}. Start it with: {command('start', run_name)}")
        return NOT_FINISHED
    return follow(paths, as_json)


def follow(paths: RunPaths, as_json: bool) -> int:
    """Shows progress until the run is over or its supervisor is gone; returns the exit code."""
    try:
        last = _on_a_terminal(paths) if colour(sys.stderr) and not as_json else _in_lines(paths)
    except KeyboardInterrupt:
        return goes_on(paths)
    if as_json:
        json_data(encode_status(last))
    else:
        _tell_end(last, paths)
    return FINISHED if last.state is RunState.FINISHED else NOT_FINISHED


def goes_on(paths: RunPaths) -> int:
    """Says after Ctrl-C that only the looking on has ended; returns the exit code."""
    message(
        "", f"The run goes on. Look at it with: {command('status', paths.name)}   End it with: {command('stop', paths.name)}"
    )
    return INTERRUPTED


def _tell_end(last: Status, paths: RunPaths) -> None:
    for sentence in last.attention:
        message(f"! {sentence}")
    match last.state:
        case RunState.FINISHED:
            data("Finished" + (f": {result_line(last)}" if last.result else "."))
            if last.model_path:
                data(f"Model: {last.model_path}")
        case RunState.FAILED:
            message(f"The run failed: {last.failure or 'see the log'}", f"Its log: {command('logs', paths.name)}")
        case _:
            message(f"The run is stopped. Continue with: {command('start', paths.name)}")


def _in_lines(paths: RunPaths) -> Status:
    """Prints a line when the state changes, and every ten seconds while something moves; gives back the last status."""
    told, told_at_s = "", -TELL_EVERY_S
    told_state: RunState | None = None
    while True:
        status, over = _look(paths)
        line = one_line(status)
        due = time.monotonic() - told_at_s >= TELL_EVERY_S
        if status.state is not told_state or (due and line != told):
            message(line)
            told, told_at_s, told_state = line, time.monotonic(), status.state
        if over:
            return status
        time.sleep(LOOK_EVERY_S)


def _on_a_terminal(paths: RunPaths) -> Status:
    from rich.progress import BarColumn, Progress, TextColumn

    shape = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]}", markup=False),
        TextColumn("{task.fields[speed]}", style="cyan", markup=False),
        TextColumn("{task.fields[memory]}", style="magenta", markup=False),
    )
    # Drawn once a look: a bar that moves ten times a second takes its CPU from the training.
    with Progress(*shape, console=console(sys.stderr), auto_refresh=False) as progress:
        task = progress.add_task("starting", total=None, steps="", speed="", memory="")
        told: set[str] = set()
        while True:
            status, over = _look(paths)
            _show(progress, task, status)
            for sentence in status.attention:
                if sentence not in told:
                    progress.console.print(f"! {printable(sentence)}", style="yellow", markup=False, highlight=False)
            told = set(status.attention)
            if over:
                return status
            time.sleep(LOOK_EVERY_S)


def _show(progress: Progress, task: TaskID, status: Status) -> None:
    p, memory, found = status.progress, status.memory, reached(status)
    runs = status.state is RunState.RUNNING and trains(status)
    doing = f" ({p.phase})" if runs and p.phase != "training" else ""
    speed = [
        f"loss {p.loss:.3f}" if p.loss is not None and found is not None and found.lost_from is None else None,
        f"{p.samples_per_s:.3g}/s" if runs and p.samples_per_s is not None else None,
        f"{duration(p.eta_s)} left" if runs and p.eta_s is not None else None,
    ]
    used = (
        None
        if memory.worker_bytes is None or status.worker_pid is None
        else f"{size(memory.worker_bytes)} of {size(memory.limit_bytes)}"
    )
    progress.update(
        task,
        description=printable(f"{status.state}{doing}"),
        completed=found.step if found else 0,
        total=p.total_steps,
        steps="" if found is None else f"{found.step:,}" + (f"/{p.total_steps:,}" if p.total_steps else ""),
        speed="  ".join(part for part in speed if part),
        memory=used or "",
        refresh=True,
    )


def _look(paths: RunPaths) -> tuple[Status, bool]:
    """The status now, and whether nothing more will come."""
    observed = observe(paths)
    if observed.status is None:  # somebody deleted it
        gone = Status(run=paths.name, state=RunState.STOPPED, wanted=Wanted.STOPPED)
        gone.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, "The run's folder is gone."))
        return gone, True
    return observed.status, observed.status.state in OVER
