"""`memsup check`: what this machine has, the tier it earns, and whether the fence holds: tried out, not looked up.

Starts small processes to rehearse the kill path; writes nothing and needs no run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import click

from memsup.shared.commands import command
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.loading import Loaded
from memsup.shared.paths import PathError, RunPaths, check_private, run_paths
from memsup.shared.record import RecordError
from memsup.shared.run_file import read_record
from memsup.shared.settings import Settings, SettingsError
from memsup.supervisor.cli.findings import (
    Row,
    limits_document,
    machine_document,
    machine_rows,
    no_task_document,
    unfenced,
    verdict_document,
)
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, paint
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.preparing import job_file, load_settings, look_around
from memsup.supervisor.client.task import look_at_task, model_shape
from memsup.supervisor.client.trust import refuse_strangers
from memsup.supervisor.daemon.claims import beside
from memsup.supervisor.decide.disk import disk_floor_bytes
from memsup.supervisor.decide.readings import Machine
from memsup.supervisor.decide.tier_lines import lines, notes
from memsup.supervisor.decide.tiers import Resolution, resolve
from memsup.supervisor.sense.machine import MemoryUser, largest_users
from memsup.supervisor.words import plural, size

READY, WARNINGS = 0, 1
KEEPS_AWAKE = "systemd-inhibit --what=idle:sleep memsup wait"


class FenceFound(NamedTuple):
    """What the rehearsal showed. `kill_s` is the time from the order to kill to the last exit. It is None where that did not
    work.
    """

    kind: str
    kill_s: float | None
    refused: list[tuple[str, str]]
    problem: str | None


class Checked(NamedTuple):
    """Everything that the check found."""

    machine: Machine
    users: list[MemoryUser]
    resolution: Resolution | None
    """What the settings mean here. It is None where they make no sense here, and a warning says why."""
    fence: FenceFound | None
    warnings: list[str]
    verdict: dict[str, Any] | None
    """What the data of the settings are, as a document. It is None where the settings name none, or none that can be read."""
    command: str
    is_refused: bool
    """Whether `start` refuses the settings or the job of this folder, as a warning says."""
    runs: str | None
    """What shows the run that is there already. It is None where none lives that a start would begin."""


@click.command(epilog="Exit code: 0 ready, 1 there are warnings.")
@run_option
@json_option
@click.option("--tier", type=click.Choice(["auto", "low", "safe", "full"]), help="As for start.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As for start.")
def check(*, run_name: str, as_json: bool, tier: str | None, assignments: tuple[str, ...]) -> int:
    """What this machine has, what memsup would make of it, and a rehearsal of the kill path."""
    paths = run_paths(run_name)
    state = paths.state
    loaded, resolution, fence = Loaded(settings=Settings(), origins={}), None, None
    wrong: list[str] = []
    try:
        loaded = load_settings(tier=tier, assignments=assignments, environment=os.environ)
    except SettingsError as error:
        wrong.append(str(error))
    else:
        wrong += _refused(paths, loaded)
    machine = look_around(state, loaded.settings)
    verdict = _look_at_data(loaded.settings, wrong)
    warnings = wrong + _warnings(machine, state)
    try:
        shape = model_shape(loaded.settings.task.model, settings=loaded.settings)
        resolution = resolve(loaded.settings, loaded.origins, machine, shape, beside(paths))
    except SettingsError as error:
        warnings += [str(error), *error.more]
    else:
        fence = _try_fence(resolution)
        warnings += [*notes(resolution), *_fence_warnings(fence)]
    found = Checked(
        machine=machine,
        users=largest_users(without=[os.getpid()]),
        resolution=resolution,
        fence=fence,
        warnings=warnings,
        verdict=verdict,
        command=command("start", run_name) + ("" if job_file() else " --demo"),
        runs=command("status", run_name) if is_held(paths) else None,
        is_refused=bool(wrong),
    )
    if as_json:
        json_data(_document(found))
    else:
        _print(found)
    return WARNINGS if warnings else READY


def _look_at_data(settings: Settings, wrong: list[str]) -> dict[str, Any] | None:
    """Judges data and model of the settings as `start` does; what is wrong with them goes to `wrong`, a sentence each."""
    if settings.task.model is None and settings.task.train is None:
        return None
    try:
        verdict = look_at_task(settings).verdict
    except NoTaskError as error:
        wrong.append(str(error))
        return no_task_document(error)
    except InputError as error:
        wrong.append(str(error))
        return None
    wrong += [f"{doubt.what} ({doubt.kind})" for doubt in verdict.unsettled(settings.task.accept)]
    return verdict_document(verdict)


def _refused(paths: RunPaths, loaded: Loaded) -> list[str]:
    """Why `start` refuses the job of this folder, its data and model apart, in lines; empty where it does not."""
    if job_file() is None:
        return []
    try:
        record = read_record(paths.record)
        refuse_strangers(loaded, record.settings if record else None, command("start", paths.name))
    except RefusedError as error:
        return [str(error), *(line if isinstance(line, str) else "   ".join(line) for line in error.more)]
    except RecordError as error:
        return [str(error)]
    return []


def _try_fence(resolution: Resolution) -> FenceFound:
    """Puts a small process into the best fence there is, freezes it, kills it, and measures."""
    from memsup.supervisor.fence import FenceError, choose_fence, rehearse

    chosen = choose_fence(f"check_{os.getpid()}", resolution.limits.fence_bytes, device_is_cuda=resolution.on_gpu)
    refused = [(str(kind), why) for kind, why in chosen.refused]
    try:
        return FenceFound(str(chosen.fence.kind), rehearse(chosen.fence), refused, None)
    except FenceError as error:
        return FenceFound(str(chosen.fence.kind), None, refused, str(error))


def _warnings(machine: Machine, state: Path) -> list[str]:
    warnings = []
    for folder in (state.parent, state):
        if os.path.lexists(folder):
            try:
                check_private(folder)
            except PathError as error:
                warnings.append(str(error))
    if machine.disk_free_bytes is not None and machine.disk_free_bytes < disk_floor_bytes(None):
        warnings.append(f"Only {size(machine.disk_free_bytes)} are free in {state}: a run would hold at once. Free some space.")
    if machine.on_battery:
        warnings.append("This machine runs on its battery: a night of training needs the mains.")
    if machine.is_wsl:
        warnings.append(
            "WSL sees neither temperatures nor the rest of Windows' memory, and ends everything some time after its last "
            "window is closed: keep one open, and keep an eye on the heat from Windows."
        )
    return warnings


def _fence_warnings(fence: FenceFound) -> list[str]:
    if fence.problem is not None:
        return [f"The kill path does not work here: {fence.problem}."]
    sentence = unfenced(fence.kind, "; ".join(f"{kind}: {reason}" for kind, reason in fence.refused))
    return [] if sentence is None else [sentence]


def _sleep_row(machine: Machine) -> Row:
    if machine.is_wsl:
        return "sleep", "Windows decides: switch its sleep off for the night"
    if machine.can_sleep is False:
        return "sleep", "this machine cannot suspend"
    how = (
        f"to keep it awake while it trains: {KEEPS_AWAKE}"
        if shutil.which("systemd-inhibit")
        else "switch that off for the night"
    )
    return "sleep", f"this machine can suspend; {how}"


def _fence_rows(fence: FenceFound | None) -> list[Row]:
    if fence is None:
        return []
    tried = (
        "did not work"
        if fence.kill_s is None
        else f"frozen, killed and gone within {fence.kill_s * 1000:.1f} ms in a rehearsal"
    )
    unproved = "; not proved to survive a leaking fork bomb" if fence.kind in ("rlimit", "none") else ""
    better = [(kind, f"would be better, and cannot be used: {why}") for kind, why in fence.refused]
    return [("fence", f"{fence.kind}, {tried}{unproved}"), *better]


def _print(found: Checked) -> None:
    machine, resolution = found.machine, found.resolution
    power = {True: "battery", False: "mains", None: "mains (no battery)"}[machine.on_battery]
    kernel = f"Linux {machine.kernel}" + (", WSL" if machine.is_wsl else "")
    rows = [*machine_rows(machine), ("kernel", kernel), ("power", power), _sleep_row(machine), *_fence_rows(found.fence)]
    data("This machine", *rows)
    used = [(user.name, size(user.size_bytes), plural(user.processes, "process", "processes")) for user in found.users]
    data("", "Largest users of RAM", *used)
    if resolution is not None:
        data("", f"Tier {resolution.tier}: {resolution.reason}")
        data(*((name, value, paint(f"← {origin}", "dim")) for name, value, origin in lines(resolution)))
    data("")
    for sentence in found.warnings:
        data(paint(f"! {sentence}", "yellow"))
    if found.runs is not None:
        data(f"This run lives already; look at it with: {found.runs}")
        return
    ready = "Refused until that is mended" if found.is_refused else "It can be tried" if found.warnings else "Ready"
    data(f"{ready}: {found.command}")


def _document(found: Checked) -> dict[str, Any]:
    resolution, fence = found.resolution, found.fence
    return {
        "schema": 1,
        "machine": machine_document(found.machine),
        "largest_users": [{"name": u.name, "bytes": u.size_bytes, "processes": u.processes} for u in found.users],
        "fence": fence
        and {"kind": fence.kind, "kill_s": fence.kill_s, "refused": dict(fence.refused), "problem": fence.problem},
        "tier": resolution and resolution.tier,
        "tier_reason": resolution and resolution.reason,
        "limits": resolution and limits_document(resolution.limits),
        "values": resolution and [line._asdict() for line in lines(resolution)],
        "warnings": found.warnings,
        **(found.verdict or {}),
        "command": found.command,
    }
