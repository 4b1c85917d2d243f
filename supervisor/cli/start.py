"""`memsup start`: looks at everything, says what it found and decided, and leaves a supervisor behind. Idempotent.

Everything that can be wrong is found before anything is written (`preparing.py`); `spawning.py` writes and starts.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from memsup.shared.commands import command as typed
from memsup.shared.data.errors import NoTaskError
from memsup.shared.data.layout import kind_by_name
from memsup.shared.loading import Loaded
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths, current_folder, current_umask
from memsup.shared.record import Awaited, MemoryEstimate, NotBefore, RecordError, RunRecord, encode_settings
from memsup.shared.run_file import new_run_id, read_record
from memsup.shared.settings import Settings, keys
from memsup.shared.status import OVER, RunState, Status, TroubleKind, Wanted, encode_status
from memsup.supervisor.cli import INTERRUPTED
from memsup.supervisor.cli.findings import (
    WHAT_IT_DOES,
    Row,
    brief_rows,
    brief_task,
    data_notes,
    data_rows,
    example_lines,
    limits_document,
    machine_document,
    machine_rows,
    no_task_document,
    reach_rows,
    settings_of,
    unfenced,
    verdict_document,
)
from memsup.supervisor.cli.options import (
    FLAGS,
    TrainingCommand,
    flag_options,
    json_option,
    paths_of,
    run_names,
    run_option,
    setting_names,
)
from memsup.supervisor.cli.picture import one_line
from memsup.supervisor.cli.screen import data, json_data, message, moves, paint
from memsup.supervisor.cli.streams import has_input
from memsup.supervisor.client.contact import (
    LOOK_AGAIN_S,
    Contact,
    NoAnswerError,
    NobodyThereError,
    Presence,
    is_held,
    observe,
    still_there,
)
from memsup.supervisor.client.errors import REFUSED, RefusedError
from memsup.supervisor.client.preparing import (
    Difference,
    DoubtfulDataError,
    Plan,
    as_claimed,
    job_file,
    load_settings,
    merge,
    plan_continued,
    plan_new,
    shown,
)
from memsup.supervisor.client.trust import contacts, refuse_strangers
from memsup.supervisor.daemon import claims
from memsup.supervisor.decide.claims import ALONE
from memsup.supervisor.decide.run.waiting import what_for
from memsup.supervisor.decide.tier_lines import lines, memory_lines, notes
from memsup.supervisor.decide.tiers import AS_CREATED
from memsup.supervisor.words import count, finished_lines

NOT_STARTED = 1
IF_ATTACHED = (
    "A program with Hugging Face's Trainer, or one that calls memsup.guard, is saved, and goes on where it was; any other one "
    "is fenced only (docs/own-programs.md)."
)
NO_INPUT = (
    "What is on standard input does not reach the command, which may be begun again: write it to a file, and name that "
    "(memsup start -- python train.py)"
)
GOES_WITHIN_S = 60.0
"""A supervisor that is about to go and does not answer any more has this long: its last messages take their time."""
TAKES_OVER_WITHIN_S = 10.0
"""A supervisor answers at once what it takes over; one of an earlier version never does."""
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
@click.option("--demo", is_flag=True, help="The built-in job: a small BERT on real reviews.")
@click.option("--wait", is_flag=True, help="Show progress until the run ends. Ctrl-C leaves it running.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for the first step, as on a terminal it does.")
@click.option("--foreground", is_flag=True, help="Stay in this terminal. Ctrl-C checkpoints and stops, a second one forces.")
@click.option("--fresh", is_flag=True, help="Begin anew; the earlier run's folder is moved aside.")
@click.option("--trust", is_flag=True, help="Send messages where the memsup.toml in this folder says; it is yours.")
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
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("-v", "--verbose", is_flag=True, help="All that was found, and where each limit came from.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
def start(
    *,
    run_name: str,
    as_json: bool,
    tier: str | None,
    assignments: tuple[str, ...],
    demo: bool,
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
    _refuse_data_for_command(command, flags["train"])
    assignments += settings_of_flags(flags, assignments, accumulation, is_command=bool(command))
    if use_amp:
        assignments += _mixed_precision(flags["device"])
    argv = _checked_command(command)
    loaded = load_settings(demo=demo, tier=tier, assignments=assignments, environment=os.environ)
    asked = Asked(
        loaded,
        argv,
        assignments,
        fresh=fresh,
        trust=trust,
        wait=wait,
        foreground=foreground,
        attaches=attaches,
        queued=_queue(paths, after, after_ok),
        not_before=_time(not_before),
        looks_on=not detach and not as_json and moves(sys.stderr),
        dry_run=dry_run,
        verbose=verbose or dry_run,
        as_json=as_json,
    )
    try:
        ends = _ends(paths, waits=not dry_run)
    except KeyboardInterrupt:
        message(f"Nothing was started; the run goes on stopping. Then start it with: {typed('start', run_name)}")
        return INTERRUPTED
    if not ends and is_held(paths) and not (dry_run and fresh):
        return _already(paths, asked)
    if fresh:
        _refuse_left_worker(paths)
    else:
        observe(paths)  # which writes down what its last supervisor could not
    before = record = None if fresh else read_record(paths.record)
    if record is not None and (over := _finished(paths)) is not None:
        if not _kept(record, asked):
            return _tell_finished(paths, over, asked)
        record = None  # another training: it is kept, and gives its name to the one that is asked for now
    if record is not None and (kept := _kept(record, asked)):
        _refuse(record, kept, asked, is_up=False)
    if not trust:
        refuse_strangers(loaded, record.settings if record else None, typed("start", paths.name))
    queued, begins_at = _queued(asked, record)
    beside = claims.beside(paths) if queued is None else ALONE  # what others leave is seen when it is its turn
    if asked.looks_on:
        message("Looking at this machine, the model and the data …")
    try:
        if record is None:
            plan = plan_new(paths, loaded, argv, beside, accept=accept)
        else:
            plan = plan_continued(paths, record, loaded, beside, accept=accept)
    except DoubtfulDataError as doubtful:
        return _tell_doubts(doubtful, as_json)
    except NoTaskError as error:
        if as_json:
            json_data({"schema": 1} | no_task_document(error))
        raise
    if dry_run:
        _tell(paths, plan, record, asked)
        if before is not None and record is None:
            message(f"Run {paths.name!r} is finished; it would be kept under another name.")
        if queued is not None:
            message(f"It would wait {what_for(queued, begins_at)}.")
        message("Dry run: nothing was written, nothing was started.")
        return 0
    return _go(paths, plan, record, asked, before)


def settings_of_flags(
    flags: Mapping[str, str | None], assignments: Sequence[str], accumulation: int | None, *, is_command: bool
) -> tuple[str, ...]:
    """The options that are settings, as `--set` has them. Raises `click.UsageError` where two say different things, and where
    they are for a command, which has them of its own.
    """
    set_too = {assignment.partition("=")[0].strip() for assignment in assignments}
    given = []
    for flag in FLAGS:
        value = flags[flag.argument]
        if value is None:
            continue
        if flag.setting in set_too:
            raise click.UsageError(f"{flag.option} is {flag.setting}, which --set gives as well. Choose one.")
        if is_command and flag.setting != "training.device":
            raise click.UsageError(
                f"{flag.option} is for the built-in training; what your command takes stands behind the two dashes."
            )
        if flag.setting == "training.effective_batch" and accumulation is not None:
            value = _times(flag.option, value, accumulation)
        given.append(f"{flag.setting}={value}")
    if accumulation is not None and flags["batch_size"] is None:
        raise click.UsageError(
            "--gradient-accumulation-steps goes with --batch-size: a step has batch size × accumulation samples, and memsup "
            "cuts it by itself so that it fits."
        )
    return tuple(given)


def _times(option: str, value: str, accumulation: int) -> str:
    if not value.isdecimal():
        raise click.UsageError(f"{option} is {value!r}; write a whole number.")
    return str(int(value) * accumulation)


def _mixed_precision(device: str | None) -> tuple[str, ...]:
    """What the usual `use_amp` means here: float16 on a GPU. On a CPU memsup chooses by itself what is faster there."""
    has_gpu = device != "cpu" and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
    return ("training.amp=fp16",) if has_gpu or (device or "").startswith("cuda") else ()


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a person asks of `start`."""

    loaded: Loaded
    command: list[str] | None
    assignments: Sequence[str]
    """The settings that were given as options, each as `--set` has it."""
    fresh: bool
    trust: bool
    wait: bool
    foreground: bool
    attaches: bool | None
    """Whether a Trainer is to be guarded by itself. It is None where nothing was said."""
    queued: list[Awaited] | None
    """The runs that are to be waited for; empty where those that were named are over. It is None where none was named."""
    not_before: NotBefore | None
    """When it may begin. It is None where nothing was said of that."""
    looks_on: bool
    """Whether somebody is there who waits for the first step. A script or a service is not kept waiting."""
    dry_run: bool
    verbose: bool
    as_json: bool


def _queue(paths: RunPaths, after: Sequence[str], after_ok: Sequence[str]) -> list[Awaited] | None:
    """The runs that are to be waited for, and None where none was named. Raises `RefusedError`."""
    if not (after or after_ok):
        return None
    from memsup.supervisor.client.queueing import to_wait_for

    awaited, said = to_wait_for(paths, after, after_ok)
    if said:
        message(said)
    return awaited


def _time(not_before: str | None) -> NotBefore | None:
    if not_before is None:
        return None
    from memsup.supervisor.client.queueing import next_time

    return next_time(not_before, time.time())


def _queued(asked: Asked, record: RunRecord | None) -> tuple[list[Awaited] | None, NotBefore | None]:
    """What the run waits for before it begins, and until when: what is given now, else what it waited for, unless it was
    stopped. Both are None where it begins now.
    """
    if asked.queued is not None or asked.not_before is not None:
        return (asked.queued or []) if asked.queued or asked.not_before else None, asked.not_before
    if record is None or record.wanted is Wanted.STOPPED:
        return None, None
    return record.queued, record.not_before


def _go(paths: RunPaths, plan: Plan, record: RunRecord | None, asked: Asked, found: RunRecord | None) -> int:
    """Starts what was planned; returns the exit code. `record` is the run's that goes on, and `found` what was there. Each
    is None where there is none.
    """
    from memsup.supervisor.client import spawning

    as_json = asked.as_json

    with spawning.only_start(paths):
        # Another start may have come first while the data were looked at.
        if is_held(paths) or (not asked.fresh and _run_id(read_record(paths.record)) != _run_id(found)):
            return _already(paths, dataclasses.replace(asked, fresh=False))
        queued, begins_at = _queued(asked, record)
        before = copy.deepcopy(record)  # the record that goes on is changed in its place
        aside = _set_aside(paths) if record is None else None
        fresh_record = _new_record(paths, plan) if record is None else _continued_record(record, plan)
        fresh_record.queued, fresh_record.not_before = queued, begins_at
        fresh_record.attaches = fresh_record.attaches if asked.attaches is None else asked.attaches
        spawning.write_run(paths, fresh_record)
        moved = [_where_it_is(paths, aside)] if aside else []
        if asked.foreground:
            message(*moved)
            _tell(paths, plan, record, asked, run_id=fresh_record.run_id)
            ends = "checkpoints and stops" if plan.command is None else "tells the command to end"
            message(f"In the foreground: Ctrl-C {ends}, a second one stops at once.")
            if not as_json:
                from memsup.supervisor.cli.wait import follow_from_beside

                follow_from_beside(paths)
            spawning.become(paths)
        from_step = 0 if record is None or (was := observe(paths).status) is None else was.checkpoint.step or 0
        try:
            answer = spawning.spawn(paths)
        except spawning.NotStartedError:
            spawning.take_back(paths, before, aside)
            raise
        except RefusedError:
            message(*moved)
            raise
    message(*moved)
    plan = as_claimed(plan, answer.others)
    try:
        for line in answer.postmortem:
            message(line)
        if answer.fence == "none" and (sentence := unfenced(answer.fence, answer.fence_reason)):
            message(f"! {sentence}")
        if plan.command is not None and has_input():
            message(f"! {NO_INPUT}.")
        _tell(paths, plan, record, asked, run_id=fresh_record.run_id, postmortem=answer.postmortem)
        if answer.waits:
            return spawning.NOT_STARTED
        if asked.wait:
            from memsup.supervisor.cli.wait import follow

            return follow(paths, as_json)
        saves = fresh_record.command is None or from_step > 0
        if asked.looks_on and fresh_record.wanted is not Wanted.PAUSED and queued is None:
            from memsup.supervisor.cli.first_step import look_on

            seen = look_on(paths, from_step=from_step, is_command=fresh_record.command is not None)
            if seen.state in OVER:
                return 0 if seen.state is RunState.FINISHED else spawning.NOT_STARTED
            saves = saves or (seen.program is not None and bool(seen.program.saves))
        if not as_json:
            _tell_next(paths, fresh_record, saves=saves, is_seen=asked.looks_on)
    except KeyboardInterrupt:  # before anybody looked on; the run has begun
        from memsup.supervisor.cli.wait import goes_on

        return goes_on(paths)
    return 0


def _run_id(record: RunRecord | None) -> str | None:
    return record.run_id if record else None


def _where_it_is(paths: RunPaths, aside: Path) -> str:
    delete = "delete that folder when you need it no longer"
    return f"The earlier run {paths.name!r} is called {aside.name!r} now, in {aside}; {delete}."


def _set_aside(paths: RunPaths) -> Path | None:
    from memsup.supervisor.client import spawning

    try:
        return spawning.set_aside(paths)
    except OSError as error:
        raise RefusedError(
            f"{paths.state} cannot be moved aside: {error.strerror}. Move or delete it, then start again."
        ) from None


# --------------------------------------------------------------------------------------------------------------------
# Runs that are there already


def _ends(paths: RunPaths, *, waits: bool) -> bool:
    """Whether the supervisor that is there is about to go. With `waits` it has gone when this returns, since what is asked for
    now is to come after that. Raises `RefusedError` where it does not get to its end.
    """
    told = False
    until_s = time.monotonic() + GOES_WITHIN_S
    while is_held(paths):
        observed = observe(paths)
        status = observed.status
        if status is None or status.state not in (RunState.STOPPING, *OVER):
            return False
        if not waits:
            return True
        sentences = dict(zip(status.attention_kinds, status.attention, strict=False))
        if (cannot := sentences.get(TroubleKind.CANNOT_LEAVE)) is not None:
            raise RefusedError(f"Run {paths.name!r} is to stop first, and does not get there. {cannot}", NOT_STARTED)
        if observed.presence is Presence.ANSWERS:
            until_s = time.monotonic() + GOES_WITHIN_S
        elif time.monotonic() > until_s:
            raise RefusedError(
                f"Run {paths.name!r} is {status.state}, but its supervisor does not end. Its log: {paths.supervisor_log}",
                NOT_STARTED,
            )
        if not told:
            message(f"Run {paths.name!r} is stopping; it is started as soon as that is done.")
            told = True
        time.sleep(LOOK_AGAIN_S)
    return told


def _refuse_left_worker(paths: RunPaths) -> None:
    """Raises `RefusedError` where what the earlier run's worker started still runs: nobody would ever end it."""
    try:
        observed = observe(paths)
    except RecordError:
        return
    if observed.worker_is_left and observed.record is not None:
        left = still_there(paths.name, observed.status) if observed.status is not None else ""
        stop = f"To begin anew, stop it first: {typed('start', paths.name)}, then {typed('stop', paths.name)}"
        raise RefusedError(f"Run {paths.name!r} has no supervisor any more. {left} {stop}", NOT_STARTED)


def _refuse_queueing(record: RunRecord, asked: Asked) -> None:
    """Raises `RefusedError` where a run that is up is to wait for something else than it does."""
    runs = {(one.run, one.must_finish) for one in asked.queued or ()}
    waits_for = {(one.run, one.must_finish) for one in record.queued or ()}
    if runs <= waits_for and asked.not_before in (None, record.not_before):
        return
    does = "has begun" if record.queued is None else f"waits {what_for(record.queued, record.not_before)}"
    stop, start = typed("stop", record.run), typed("start", record.run)
    raise RefusedError(f"Run {record.run!r} {does}. To queue it otherwise: {stop}, then {start} with the same.")


def _already(paths: RunPaths, asked: Asked) -> int:
    """Has a run that has a living supervisor take over what may change, and says how it does; returns the exit code.

    Raises `RefusedError` for what would be another training, and where the supervisor refuses.
    """
    if asked.fresh:
        raise RefusedError(f"Run {paths.name!r} is running. Stop it before it can begin anew: {typed('stop', paths.name)}")
    taken: list[Difference] = []
    text = ""
    if (record := read_record(paths.record)) is not None:
        if kept := _kept(record, asked):
            _refuse(record, kept, asked, is_up=True)
        _refuse_queueing(record, asked)
        settings, taken, _ = merge(record.settings, asked.loaded, is_command=record.command is not None)
        if taken and not asked.trust:
            refuse_strangers(asked.loaded, record.settings, typed("start", paths.name))
        if taken and not asked.dry_run:
            text = _take_over(paths, settings)
    status = observe(paths).status
    if asked.as_json:
        json_data({"schema": 1, "run": paths.name, "already_running": True, "taken": _documents(taken), "text": text})
    elif status is not None:
        is_queued = status.state is RunState.WAITING
        data(f"Run {paths.name!r} {'is queued' if is_queued else 'already runs'}: {one_line(status)}.")
        _tell_taken(taken, text, asked)
        paused = status.wanted is Wanted.PAUSED
        message(f"Look at it: {typed('status', paths.name)}" + (f"   Go on: {typed('resume', paths.name)}" if paused else ""))
    if asked.wait:
        from memsup.supervisor.cli.wait import follow

        return follow(paths, asked.as_json)
    return 0


def _take_over(paths: RunPaths, settings: Settings) -> str:
    """Has the run's supervisor go on with these settings; returns what came of it. Raises `RefusedError`."""
    stop, start = typed("stop", paths.name), typed("start", paths.name)
    try:
        with Contact(paths) as contact:
            reply = contact.ask(RequestKind.TAKE_OVER, TAKES_OVER_WITHIN_S, settings_json=encode_settings(settings))
    except (NoAnswerError, NobodyThereError):
        raise RefusedError(
            f"The supervisor of run {paths.name!r} has not taken that over; nothing is known to have changed. "
            f"Once more, or with a stop between: {stop}, then {start} with the same.",
            NOT_STARTED,
        ) from None
    if not reply.ok:
        first, *more = reply.text.split("\n")
        raise RefusedError(f"{first} Nothing was changed.", more=tuple(more))
    return reply.text


def _tell_taken(taken: Sequence[Difference], text: str, asked: Asked) -> None:
    if not taken:
        return
    data("Dry run: it would go on with:" if asked.dry_run else "From now on it goes on with:")
    rows = [(d.key, _change(d), f"({d.origin})") for d in taken]
    data(*rows, *([text] if text else []))


def _change(d: Difference) -> str:
    secret = keys()[d.key].is_secret
    return "given anew, and not shown" if secret else f"{shown(d.key, d.has)} → {shown(d.key, d.asked)}"


def _kept(record: RunRecord, asked: Asked) -> list[Difference]:
    """What was given now and would be another training than that of `record`."""
    _, _, kept = merge(record.settings, asked.loaded, is_command=record.command is not None)
    if asked.command is not None and asked.command != record.command:
        had = "the built-in training" if record.command is None else " ".join(record.command)
        kept.append(Difference("the command", had, " ".join(asked.command), "given now"))
    return kept


def _refuse(record: RunRecord, kept: Sequence[Difference], asked: Asked, *, is_up: bool) -> NoReturn:
    """Raises `RefusedError`, which names what would be another training, and what to type."""
    stop, start = typed("stop", record.run), typed("start", record.run)
    does = "runs" if is_up else "is not finished"
    lines: list[str | Row] = [f"Run {record.run!r} {does}, and not with what was given now; nothing was changed."]
    lines += [f"  {d.key}: {shown(d.key, d.asked)} ({d.origin}), but it has {shown(d.key, d.has)}" for d in kept]
    other = "another training" if record.command is None else "another run"
    lines.append(f"That would be {other}. To have it, give the same once more with one of these:")
    fresh = f"{stop}; {start} --fresh" if is_up else f"{start} --fresh"
    ways = [
        (fresh, "begins anew in its place; the earlier one is kept"),
        ("memsup start --run NAME", "begins another one beside it"),
    ]
    lines += ways
    if (goes_on := _without(start, kept, asked)) is not None:
        lines.append(f"To go on as it was: {goes_on}")
    raise RefusedError(str(lines[0]), more=tuple(lines[1:]))


def _without(start: str, kept: Sequence[Difference], asked: Asked) -> str | None:
    """What goes on with a run that was not given what differs: `start`, from a folder where no file says it, with the limits
    that were typed, but for what a secret is. Returns None where it would be given that anywhere.
    """
    origins, here = {d.origin for d in kept}, str(job_file(demo=False))
    if not origins <= {"flag", "given now", here}:
        return None
    names = {assignment: assignment.partition("=")[0].strip() for assignment in asked.assignments}
    given = {name: f"{name}=…" if keys()[name].is_secret else shlex.quote(one) for one, name in names.items()}
    may = [f"--set {words}" for name, words in given.items() if keys()[name].may_change]
    start = " ".join([start, *may])
    return f"(cd / && {start})" if here in origins else start


def _finished(paths: RunPaths) -> Status | None:
    status = observe(paths).status
    return status if status is not None and status.state is RunState.FINISHED else None


def _tell_finished(paths: RunPaths, status: Status, asked: Asked) -> int:
    if asked.as_json:
        json_data(encode_status(status))
        return 0
    data(*finished_lines(status, f"Run {paths.name!r} is finished"))
    message(f"To begin anew: {typed('start', paths.name)} --fresh")
    return 0


# --------------------------------------------------------------------------------------------------------------------
# The record


def _checked_command(command: tuple[str, ...]) -> list[str] | None:
    if not command:
        return None
    if shutil.which(command[0]) is None:
        if os.path.dirname(command[0]) and os.path.lexists(command[0]):
            raise RefusedError(_why_not_run(command[0]))
        raise RefusedError(
            f"There is no command {command[0]!r}. To guard a training command, write it behind two dashes: "
            "memsup start -- python train.py"
        )
    if has_input() and not {"-", "/dev/stdin"}.isdisjoint(command[1:]):
        raise RefusedError(f"{NO_INPUT}, so it would find nothing to do.")
    return list(command)


def _refuse_data_for_command(words: Sequence[str], train: str | None) -> None:
    """Raises `RefusedError` where data stand in the place of a command: a file, or a pattern that the shell has taken apart."""
    if not words or not all(kind_by_name(word) is not None and os.path.isfile(word) for word in words):
        return
    names = ",".join([*([train] if train else []), *words])
    raise RefusedError(
        f"{words[0]} is no command. To train on it: memsup start --model MODEL --train {shlex.quote(names)}"
        + ("   (several files have commas between them, a pattern stands in quotes)" if train or len(words) > 1 else "")
    )


def _why_not_run(file: str) -> str:
    if not os.path.isfile(file):
        return f"{file} is {'a folder' if os.path.isdir(file) else 'no file'}, not a command."
    return f"{file} is not executable: chmod +x {shlex.quote(file)}, or name its interpreter: memsup start -- python {file}"


def _new_record(paths: RunPaths, plan: Plan) -> RunRecord:
    return RunRecord(
        run=paths.name,
        run_id=new_run_id(),
        created_unix_s=time.time(),
        wanted=Wanted.RUNNING,
        tier=plan.resolution.tier,
        tier_reason=plan.resolution.reason,
        settings=plan.settings,
        estimate=_memory_estimate(plan),
        command=plan.command,
        command_folder=str(current_folder()) if plan.command else None,
        command_umask=current_umask() if plan.command else None,
    )


def _continued_record(record: RunRecord, plan: Plan) -> RunRecord:
    """The record to go on with: a pause outlives the supervisor, a stop ends with a start."""
    # Whoever stopped the run knows of a death of the machine; it goes on gently only if that was asked for and is chosen now.
    if record.wanted is Wanted.STOPPED:
        asked = record.settings.recovery.after_power_loss == "ask"
        record.gentle = record.gentle and asked and plan.settings.recovery.after_power_loss == "gentle"
    if record.wanted is not Wanted.PAUSED:
        record.wanted = Wanted.RUNNING
    record.settings = plan.settings
    return record


def _memory_estimate(plan: Plan) -> MemoryEstimate | None:
    needs, training = plan.resolution.needs, plan.settings.training
    if needs is None or plan.resolution.on_gpu:
        return None
    return MemoryEstimate(
        held_bytes=needs.held_bytes + needs.lane_bytes,
        token_bytes=(needs.micro_batch_bytes - needs.held_bytes - needs.lane_bytes) / (needs.rows * needs.length),
        most_tokens=(training.effective_batch or 1) * needs.length,
    )


# --------------------------------------------------------------------------------------------------------------------
# What is said


def _tell(
    paths: RunPaths,
    plan: Plan,
    record: RunRecord | None,
    asked: Asked,
    run_id: str | None = None,
    postmortem: Sequence[str] = (),
) -> None:
    for sentence in _notes(plan):
        message(f"! {sentence}")
    if asked.as_json:
        json_data(_document(paths, plan, record, run_id, _queued(asked, record)[0]) | {"postmortem": postmortem})
        return
    if not asked.verbose:
        _tell_briefly(paths, plan, record)
        return
    resolution = plan.resolution
    tier, reason = (
        (resolution.tier, resolution.reason) if record is None else (record.tier, f"{AS_CREATED}: {record.tier_reason}")
    )
    _section("This machine", machine_rows(plan.machine))
    if plan.task is not None:
        _section("The task", data_rows(plan.task, plan.settings))
    if plan.command is not None:
        _section("The command", [("run", " ".join(plan.command))])
    if rows := reach_rows(plan.settings, plan.origins, plan.task):
        _section("What it reaches", rows)
    limits = lines(resolution) if plan.command is None else memory_lines(resolution)
    data("", f"Tier {tier}: {reason}")
    data(*((name, value, paint(f"← {origin}", "dim")) for name, value, origin in limits))


def _tell_briefly(paths: RunPaths, plan: Plan, record: RunRecord | None) -> None:
    """Four lines, and what is reached beyond the run's own folder. All that was found is shown by `-v`."""
    what = " ".join(plan.command or ()) if plan.task is None else brief_task(plan.task, plan.settings)
    data(f"Run {paths.name!r}{'' if record is None else ' goes on'}: {what}")
    tier = plan.resolution.tier if record is None else record.tier
    rows = brief_rows(plan.task, plan.resolution, plan.settings, tier, str(paths.state))
    data(*rows, *reach_rows(plan.settings, plan.origins, plan.task))


def _tell_doubts(doubtful: DoubtfulDataError, as_json: bool) -> int:
    verdict = doubtful.task.verdict
    if as_json:
        json_data({"schema": 1} | verdict_document(verdict))
        return REFUSED
    seen = "" if verdict.complete else f" (of the first {count(doubtful.task.train.rows)} rows; there was no time for more)"
    message(f"memsup: It is doubtful that these data are meant as they would be trained{seen}; nothing was started.")
    message(*(f"! {sentence}" for sentence in (*(doubt.what for doubt in doubtful.doubts), *data_notes(doubtful.task))))
    message(
        "As they would be trained:", *("  " + line for line in example_lines(verdict, shutil.get_terminal_size().columns - 2))
    )
    rows = [
        (f"--set {shlex.quote(setting)}", WHAT_IT_DOES[setting.partition("=")[0]]) for setting in settings_of(doubtful.doubts)
    ]
    rows.append(("--accept", "train on them as shown; the run keeps this answer"))
    message("To settle it, type the same command with this behind it:", *rows)
    return REFUSED


def _section(title: str, rows: list[Row]) -> None:
    data(title, *rows)


def _notes(plan: Plan) -> list[str]:
    sentences = notes(plan.resolution)
    if plan.task is not None:
        sentences += data_notes(plan.task)
        sentences += [f"Accepted ({doubt.kind}): {doubt.what}" for doubt in plan.task.verdict.doubts]
        sentences += plan.task.model.notes
    if plan.machine.is_wsl:
        sentences.append("WSL ends everything some time after its last window is closed: keep one open.")
    for key, has, asked, origin in plan.taken:
        if keys()[key].is_secret:
            sentences.append(f"{key} was given anew ({origin}).")
        else:
            sentences.append(f"{key} is now {shown(key, asked)} ({origin}); it was {shown(key, has)}.")
    return sentences


def _tell_next(paths: RunPaths, record: RunRecord, *, saves: bool, is_seen: bool) -> None:
    """What to type next. `saves`: as far as is known, memsup has it saved. `is_seen`: it was looked at until it worked, or was
    over.
    """
    if record.wanted is Wanted.PAUSED:
        data("", f"Supervised, and still paused, as you left it. Go on with: {typed('resume', paths.name)}")
        return
    look, pause, stop = (typed(name, paths.name) for name in ("status", "pause", "stop"))
    if record.queued is not None:
        waits = what_for(record.queued, record.not_before)
        data("", f"It is queued: it waits {waits}, and begins by itself. This terminal may be closed. Next:")
        data(("memsup list", "all runs"), (stop, "takes it out of the queue; start begins it at once"))
        return
    rows = [(f"{look} --watch", "look at it")]
    if saves:
        rows += [(f"{pause} --release", "when you need the machine"), (stop, "checkpoint and stop; start continues")]
    else:
        rows += [(pause, "it stands still, its memory is kept"), (stop, "ends it; start begins the command anew")]
    if not is_seen:
        data("", "Started in the background; its first step is still to come. Next:")
    data(*rows)
    if not saves:
        data(IF_ATTACHED)


def _document(
    paths: RunPaths, plan: Plan, record: RunRecord | None, run_id: str | None, queued: Sequence[Awaited] | None
) -> dict[str, Any]:
    return {
        "schema": 1,
        "run": paths.name,
        "run_id": run_id,
        "already_running": False,
        "continued": record is not None,
        "waits_for": [one.run for one in queued or ()],
        "dry_run": run_id is None,
        "tier": plan.resolution.tier if record is None else record.tier,
        "tier_reason": plan.resolution.reason if record is None else record.tier_reason,
        "machine": machine_document(plan.machine),
        "limits": limits_document(plan.resolution.limits),
        "needs": plan.resolution.needs and dataclasses.asdict(plan.resolution.needs),
        "values": [line._asdict() for line in lines(plan.resolution)],
        "settings": plan.settings,
        "command": plan.command,
        **(verdict_document(plan.task.verdict) if plan.task is not None else {}),
        "contacts": dict(contacts(plan.settings)),
        "notes": _notes(plan),
        "taken": _documents(plan.taken),
    }


def _documents(taken: Sequence[Difference]) -> list[dict[str, str]]:
    return [{"key": d.key, "has": shown(d.key, d.has), "asked": shown(d.key, d.asked), "origin": d.origin} for d in taken]
