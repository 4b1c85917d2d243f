"""`memsup start`: looks at everything, says what it found and decided, and leaves a supervisor behind. Idempotent.

Everything that can be wrong is found before anything is written (`client/preparing.py`); `client/spawning.py` writes and
starts. What may be asked is in `asked.py`, what a run waits for in `queued.py`, what becomes of a run that is there already in
`already.py`, and what is said in `announcement.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path

import click

from memsup.shared.commands import command as typed
from memsup.shared.data.errors import NoTaskError
from memsup.shared.paths import RunPaths, paths_of
from memsup.shared.record import RunRecord
from memsup.shared.run_file import read_record
from memsup.shared.status import OVER, RunState, Wanted
from memsup.supervisor.cli import INTERRUPTED
from memsup.supervisor.cli.already import (
    already,
    ends,
    finished_status,
    kept_from,
    refuse_left_worker,
    refuse_other_training,
    tell_finished,
)
from memsup.supervisor.cli.announcement import on_hours, tell, tell_doubts, tell_next
from memsup.supervisor.cli.asked import NO_INPUT, Asked, checked_command, refuse_data_for_command
from memsup.supervisor.cli.findings import no_task_document, unfenced
from memsup.supervisor.cli.options import (
    TrainingCommand,
    flag_options,
    json_option,
    mixed_precision,
    run_names,
    run_option,
    setting_names,
    settings_of_flags,
)
from memsup.supervisor.cli.queued import hours_of, next_time_of, queue_of, waits_for, waiver
from memsup.supervisor.cli.screen import json_data, message, moves
from memsup.supervisor.cli.streams import has_input
from memsup.supervisor.client import joining
from memsup.supervisor.client.contact import is_held, observe
from memsup.supervisor.client.demos import DEMOS, make_demo
from memsup.supervisor.client.errors import NOT_STARTED, RefusedError
from memsup.supervisor.client.preparing import (
    DoubtfulDataError,
    Plan,
    as_claimed,
    load_settings,
    merge,
    plan_continued,
    plan_new,
)
from memsup.supervisor.client.records import continued_record, new_record
from memsup.supervisor.client.trust import refuse_strangers
from memsup.supervisor.daemon import claims
from memsup.supervisor.decide.claims import ALONE

EPILOG = "Exit code: 0 started, running or finished; 1 not started; 2 bad input. With --wait: 0 only if the run finished."


@click.command(epilog=EPILOG, cls=TrainingCommand)
@run_option
@json_option
@click.option("--tier", type=click.Choice(["auto", "low", "safe", "full"]), help="How much the run may take; auto decides.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting, as in memsup.toml (docs/settings.md).",
    shell_complete=setting_names,
)
@flag_options
@click.option(
    "--demo",
    is_flag=False,
    flag_value="reviews",
    metavar="[ner|chat|english]",
    type=click.Choice(DEMOS),
    help="A built-in job on real data: reviews, `ner` names in a newspaper, `chat` a chat model, `english` film reviews.",
)
@click.option("--wait", is_flag=True, help="Show progress until the run ends. Ctrl-C leaves it running.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for the first step, as on a terminal it does.")
@click.option("--foreground", is_flag=True, help="Stay in this terminal. Ctrl-C checkpoints and stops, a second one forces.")
@click.option("--fresh", is_flag=True, help="Begin anew; the earlier run's folder is moved aside.")
@click.option("--trust", is_flag=True, help="Contact whom the memsup.toml in this folder says; it is yours.")
@click.option("--accept", is_flag=True, help="Train on data that were found doubtful, as they were shown.")
@click.option(
    "--attach/--no-attach", "attaches", default=None, help="With -- COMMAND: guard Hugging Face's Trainer by itself, or do not."
)
@click.option(
    "--after", multiple=True, metavar="RUN", shell_complete=run_names, help="Begin when that run is over; all: those up now."
)
@click.option(
    "--after-ok", multiple=True, metavar="RUN", shell_complete=run_names, help="The same, and only if that one finished."
)
@click.option("--not-before", metavar="TIME", help="Begin at this time of the day, such as 23:00.")
@click.option("--until", metavar="TIME", help="Pause by this time, its memory given back; with --not-before every night.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("-v", "--verbose", is_flag=True, help="All that was found, and where each limit came from.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
def start(
    *,
    run_name: str,
    as_json: bool,
    tier: str | None,
    assignments: tuple[str, ...],
    demo: str | None,
    wait: bool,
    detach: bool,
    foreground: bool,
    fresh: bool,
    trust: bool,
    accept: bool,
    attaches: bool | None,
    after: tuple[str, ...],
    after_ok: tuple[str, ...],
    not_before: str | None,
    until: str | None,
    dry_run: bool,
    verbose: bool,
    command: tuple[str, ...],
    use_amp: bool,
    accumulation: int | None,
    **flags: str | None,
) -> int:
    """Start a run in the background, or continue it where it was.

    With -- COMMAND any training command is guarded in place of the built-in training.
    """
    paths = paths_of(run_name)
    if wait and foreground:
        raise click.UsageError("--foreground shows the run itself; --wait looks on from outside. Choose one.")
    if detach and (wait or foreground):
        raise click.UsageError("--detach comes back at once, --wait and --foreground do not. Choose one.")
    refuse_data_for_command(command, flags["train"])
    assignments += settings_of_flags(flags, assignments, accumulation, is_command=bool(command))
    if use_amp:
        assignments += mixed_precision(flags["device"])
    argv = checked_command(command)
    if until is not None:
        assignments, not_before = (*assignments, *hours_of(not_before, until, assignments)), None
    if demo is not None:
        make_demo(demo, message)
    loaded = load_settings(demo=demo, tier=tier, assignments=assignments, environment=os.environ)
    if argv is None:
        loaded = joining.with_address(loaded)
        joining.refuse_own_run(None if fresh else read_record(paths.record), loaded)
    else:
        loaded = joining.without_machines(loaded)
    asked = Asked(
        loaded,
        argv,
        assignments,
        fresh=fresh,
        trust=trust,
        wait=wait,
        foreground=foreground,
        attaches=attaches,
        queued=queue_of(paths, after, after_ok),
        not_before=next_time_of(not_before),
        looks_on=not detach and not as_json and moves(sys.stderr),
        dry_run=dry_run,
        verbose=verbose or dry_run,
        as_json=as_json,
    )
    try:
        is_ending = ends(paths, waits=not dry_run)
    except KeyboardInterrupt:
        message(f"Nothing was started; the run goes on stopping. Then start it with: {typed('start', run_name)}")
        return INTERRUPTED
    if not is_ending and is_held(paths) and not (dry_run and fresh):
        return already(paths, asked)
    if fresh:
        refuse_left_worker(paths)
    else:
        observe(paths)  # which writes down what its last supervisor could not
    before = record = None if fresh else read_record(paths.record)
    if record is not None and (over := finished_status(paths)) is not None:
        if not kept_from(record, asked):
            return tell_finished(paths, over, asked)
        record = None  # another training: it is kept, and gives its name to the one that is asked for now
    if record is not None and (kept := kept_from(record, asked)):
        refuse_other_training(record, kept, asked, is_up=False)
    if not trust:
        refuse_strangers(loaded, record.settings if record else None, typed("start", paths.name))
    settings = loaded.settings if record is None else merge(record.settings, loaded, is_command=record.command is not None)[0]
    queued = waits_for(asked, record, settings)
    beside = claims.beside(paths) if queued.awaited is None else ALONE  # what others leave is seen when it is its turn
    if asked.looks_on:
        message("Looking at this machine, the model and the data …")
    try:
        if record is None and argv is None and loaded.settings.nodes.join is not None:
            loaded = joining.received(paths, loaded, message)
        if record is None:
            plan = plan_new(paths, loaded, argv, beside, accept=accept)
        else:
            plan = plan_continued(paths, record, loaded, beside, accept=accept)
    except DoubtfulDataError as doubtful:
        return tell_doubts(doubtful, as_json)
    except NoTaskError as error:
        if as_json:
            json_data({"schema": 1} | no_task_document(error))
        raise
    if dry_run:
        tell(paths, plan, record, asked)
        if before is not None and record is None:
            message(f"Run {paths.name!r} is finished; it would be kept under another name.")
        if queued.awaited is not None:
            message(f"It would wait {queued.text}.")
        if sentence := on_hours(settings, saves=plan.command is None):
            message(sentence)
        if record is None and argv is None and loaded.settings.nodes.join is not None:
            message("Dry run: nothing was started. What was received is kept for the start.")
        else:
            message("Dry run: nothing was written, nothing was started.")
        return 0
    return _go(paths, plan, record, asked, before)


def _go(paths: RunPaths, plan: Plan, record: RunRecord | None, asked: Asked, found: RunRecord | None) -> int:
    """Starts what was planned; returns the exit code. `record` is the run's that goes on, and `found` what was there. Each
    is None where there is none.
    """
    from memsup.supervisor.client import queueing, spawning

    with spawning.only_start(paths):
        # Another start may have come first while the data were looked at.
        if is_held(paths) or (not asked.fresh and _run_id(read_record(paths.record)) != _run_id(found)):
            return already(paths, dataclasses.replace(asked, fresh=False))
        queued, waived_unix_s = waits_for(asked, record, plan.settings), waiver(record, plan.settings)
        before = copy.deepcopy(record)  # the record that goes on is changed in its place
        fresh_record = new_record(paths, plan) if record is None else continued_record(record, plan)
        fresh_record.queued, fresh_record.not_before = queued.awaited, queued.not_before
        fresh_record.waived_unix_s = waived_unix_s
        fresh_record.attaches = fresh_record.attaches if asked.attaches is None else asked.attaches
        with claims.turn(paths):  # or two that are to wait for each other could be written at once
            if queued.awaited:
                queueing.refuse_circle(paths, queued.awaited)
            aside = _set_aside(paths) if record is None else None
            if record is None:
                joining.move_in(paths, fresh_record)
            spawning.write_run(paths, fresh_record)
            joining.write_key(paths, fresh_record.settings.nodes)
        moved = [_where_it_is(paths, aside)] if aside else []
        if asked.foreground:
            message(*moved)
            tell(paths, plan, record, asked, run_id=fresh_record.run_id)
            child = _supervised_here(paths, fresh_record, asked)
        else:
            from_step = 0 if record is None or (was := observe(paths).status) is None else was.checkpoint.step or 0
            try:
                answer = spawning.spawn(paths)
            except spawning.NotStartedError:
                spawning.take_back(paths, before, aside)
                raise
            except RefusedError:
                message(*moved)
                raise
    if asked.foreground:
        from memsup.supervisor.cli.wait import stay_beside

        return stay_beside(paths, child)
    message(*moved)
    try:
        message(*answer.postmortem)
        if answer.fence == "none" and (sentence := unfenced(answer.fence, answer.fence_reason)):
            message(f"! {sentence}")
        if plan.command is not None and has_input():
            message(f"! {NO_INPUT}.")
        plan = as_claimed(plan, answer.others)
        tell(paths, plan, record, asked, run_id=fresh_record.run_id, postmortem=answer.postmortem)
        if answer.waits:
            return NOT_STARTED
        if fresh_record.settings.nodes.count > 1:
            how = joining.how_to_join(paths, fresh_record.settings.nodes)
            message("To be typed on each other machine, which needs memsup as well:", f"  {how}")
        return _look_on(paths, fresh_record, asked, from_step)
    except KeyboardInterrupt:  # before anybody looked on; the run has begun
        from memsup.supervisor.cli.wait import goes_on

        return goes_on(paths)


def _supervised_here(paths: RunPaths, record: RunRecord, asked: Asked) -> int:
    """Has a child become the run's supervisor, in this terminal, and returns its pid. Where there is no terminal this very
    process does: it is the one that whoever started it knows.
    """
    from memsup.supervisor.client import spawning

    does = "checkpoints and stops" if record.command is None else "tells the command to end"
    message(f"In the foreground: Ctrl-C {does}, a second one stops at once.")
    if not asked.as_json:
        if sys.stderr.isatty():
            return os.fork() or spawning.become(paths)
        from memsup.supervisor.cli.wait import follow_from_beside

        follow_from_beside(paths)
    return spawning.become(paths)


def _look_on(paths: RunPaths, record: RunRecord, asked: Asked, from_step: int) -> int:
    """Shows how a run that has been started does, for as long as was asked for, and what to type next; returns the exit code.
    `from_step` is the step at which it goes on.
    """
    if asked.wait:
        from memsup.supervisor.cli.wait import follow

        return follow(paths, asked.as_json)
    saves = record.command is None or from_step > 0
    if asked.looks_on and record.wanted is not Wanted.PAUSED and record.queued is None:
        from memsup.supervisor.cli.first_step import look_on

        seen = look_on(paths, from_step=from_step, is_command=record.command is not None)
        if seen.state in OVER:
            return 0 if seen.state is RunState.FINISHED else NOT_STARTED
        saves = saves or (seen.program is not None and bool(seen.program.saves))
    if not asked.as_json:
        tell_next(paths, record, saves=saves, is_seen=asked.looks_on)
    return 0


def _run_id(record: RunRecord | None) -> str | None:
    return record.run_id if record else None


def _where_it_is(paths: RunPaths, aside: Path) -> str:
    return f"The earlier run {paths.name!r} is called {aside.name!r} now, in {aside}. To remove it: memsup rm {aside.name}"


def _set_aside(paths: RunPaths) -> Path | None:
    from memsup.supervisor.client import spawning

    try:
        return spawning.set_aside(paths)
    except OSError as error:
        raise RefusedError(
            f"{paths.state} cannot be moved aside: {error.strerror}. Move or delete it, then start again."
        ) from None
