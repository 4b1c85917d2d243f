"""What `start` says: what was found and decided, in four lines or in full, what is doubtful, and what to type next."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from memsup.shared.clock import unix_s
from memsup.shared.commands import command as typed
from memsup.shared.paths import RunPaths
from memsup.shared.record import Awaited, RunRecord
from memsup.shared.settings import Settings, keys
from memsup.shared.status import Wanted
from memsup.supervisor.cli.asked import Asked
from memsup.supervisor.cli.findings import (
    WHAT_IT_DOES,
    Row,
    brief_rows,
    brief_task,
    curve_rows,
    data_notes,
    data_rows,
    example_lines,
    limits_document,
    machine_document,
    machine_rows,
    reach_rows,
    settings_of,
    verdict_document,
)
from memsup.supervisor.cli.queued import rest_now, waits_for
from memsup.supervisor.cli.screen import data, json_data, message, paint
from memsup.supervisor.client.errors import REFUSED
from memsup.supervisor.client.preparing import Difference, DoubtfulDataError, Plan, shown
from memsup.supervisor.client.trust import contacts
from memsup.supervisor.daemon.hours import clock_of
from memsup.supervisor.decide.run.waiting import what_for
from memsup.supervisor.decide.tier_lines import lines, memory_lines, notes
from memsup.supervisor.decide.tiers import AS_CREATED
from memsup.supervisor.decide.variables import Variables
from memsup.supervisor.words import count

IF_ATTACHED = (
    "Saved is a program with Hugging Face's Trainer, or one that calls memsup.guard; any other one is fenced only "
    "(docs/own-programs.md)."
)

_ENDS_IT = "ends it, saved where that can be; start goes on from there, else begins the command anew"


def tell(
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
        json_data(
            _document(paths, plan, record, run_id, waits_for(asked, record, plan.settings).awaited) | {"postmortem": postmortem}
        )
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
        _section("The task", [*data_rows(plan.task, plan.settings), *_curves(paths, plan)])
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
    data(*rows, *_curves(paths, plan), *reach_rows(plan.settings, plan.origins, plan.task))


def _curves(paths: RunPaths, plan: Plan) -> list[Row]:
    """How curves are looked at. A command of a person's own writes its own."""
    return [] if plan.task is None else curve_rows(plan.settings, str(paths.curves))


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
    return sentences + _on_variables(plan.variables)


def _on_variables(variables: Variables) -> list[str]:
    """What is said of the environment that a command goes on with; no value, which may be nobody else's business."""
    sentences = []
    if variables.kept:
        sentences.append(f"The command has what was set when it was first started, and is not now: {_some(variables.kept)}.")
    if variables.changed:
        sentences.append(f"Set otherwise than when it was first started, and used as it is now: {_some(variables.changed)}.")
    if variables.missing:
        sentences.append(
            f"Set when it was first started, and not now: {_some(variables.missing)}. memsup keeps no secrets: set what the "
            "command needs, and start again."
        )
    return sentences


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6:,} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


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
        "taken": documents(plan.taken),
    }


def documents(taken: Sequence[Difference]) -> list[dict[str, str]]:
    return [{"key": d.key, "has": shown(d.key, d.has), "asked": shown(d.key, d.asked), "origin": d.origin} for d in taken]


def tell_doubts(doubtful: DoubtfulDataError, as_json: bool) -> int:
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


def on_hours(settings: Settings, *, saves: bool) -> str:
    """When a run with these settings that begins now is paused by its hours, a sentence; empty where it has none. `saves`: as
    far as is known, memsup has it saved.
    """
    clock = clock_of(settings.hours, unix_s())
    if clock is None:
        return ""
    again = "until you resume it" if clock.begins is None else f"until {clock.begins}"
    kept = "saved, its memory given back" + ("" if saves else "; or, where memsup is not attached, frozen in memory")
    return f"Hours: by {clock.ends} it is paused ({kept}), {again}."


def tell_next(paths: RunPaths, record: RunRecord, *, saves: bool, is_seen: bool) -> None:
    """What to type next. `saves`: as far as is known, memsup has it saved. `is_seen`: it was looked at until it worked, or was
    over.
    """
    if record.wanted is Wanted.PAUSED:
        data("", f"Supervised, and still paused, as you left it. Go on with: {typed('resume', paths.name)}")
        return
    look, pause, stop = (typed(name, paths.name) for name in ("status", "pause", "stop"))
    if record.queued is not None:
        rest = rest_now(record.settings, record.waived_unix_s)
        waits = what_for(record.queued, record.not_before, rest)
        data("", f"It is queued: it waits {waits}, and begins by itself. This terminal may be closed. Next:")
        if rest is not None:
            data((typed("resume", paths.name), "has it begin, whatever its hours say"), (stop, "takes it out of the queue"))
        else:
            data(("memsup list", "all runs"), (stop, "takes it out of the queue; start begins it at once"))
        return
    if sentence := on_hours(record.settings, saves=saves):
        data("", sentence)
    rows = [(f"{look} --watch", "look at it")]
    if saves:
        rows += [(f"{pause} --release", "when you need the machine"), (stop, "checkpoint and stop; start continues")]
    else:
        rows += [(pause, "it stands still, its memory is kept"), (stop, _ENDS_IT)]
    if not is_seen:
        data("", "Started in the background; its first step is still to come. Next:")
    data(*rows)
    if not saves:
        data(IF_ATTACHED)
