"""What a start would do, before anything is written: settings merged, data and machine looked at, limits resolved.

A new run takes the settings as given now. A run that exists keeps those it was created with, since other ones would be other
training; only limits and the rhythm of checkpoints are taken over. Raises the sentences that a person gets; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memsup.shared.loading import Loaded, load, user_settings_file
from memsup.shared.model.libraries import is_installed
from memsup.shared.paths import RunPaths, current_folder
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings, Share, Written, keys
from memsup.supervisor.client.demos import JOB_FILE, file_of_demo
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.decide.claims import Beside, Claim, sharing
from memsup.supervisor.decide.disk import disk_floor_bytes
from memsup.supervisor.decide.readings import Machine
from memsup.supervisor.decide.run import hours
from memsup.supervisor.decide.tiers import Resolution, created_with, resolve, resolve_limits
from memsup.supervisor.decide.variables import AS_BEFORE, Variables, compared
from memsup.supervisor.record.earlier_life import newest_checkpoint
from memsup.supervisor.sense.gpu.facts import facts
from memsup.supervisor.sense.machine import disk_free_bytes, look
from memsup.supervisor.words import duration, percent, size

if TYPE_CHECKING:
    from memsup.shared.data.check import TaskSummary
    from memsup.shared.data.doubts import Doubt
    from memsup.supervisor.decide.estimate import Shape

GPU_BUDGET_S = 10.0
"""A driver that nobody has open takes seconds to wake, and the tier depends on what it says; where there is none, the answer is
there in a fraction of a second."""
CHECKPOINT_SHARES = 3
"""A checkpoint holds the weights and two moments of Adam for each."""


class DoubtfulDataError(Exception):
    """The data are doubtful, and nobody has accepted that yet."""

    def __init__(self, task: TaskSummary, doubts: Sequence[Doubt]) -> None:
        super().__init__(" ".join(doubt.what for doubt in doubts))
        self.task = task
        self.doubts = doubts


class Difference(NamedTuple):
    """A setting given now that is not what the run has."""

    key: str
    has: Any
    asked: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be started, with all checks passed."""

    settings: Settings
    """The settings with every value filled in."""
    origins: Mapping[str, str]
    """For each setting that is no default, the place that set it."""
    resolution: Resolution
    machine: Machine
    task: TaskSummary | None
    """What was found of the data and the model. It is None for a foreign command."""
    command: list[str] | None
    taken: tuple[Difference, ...] = ()
    """What of the settings given now a run that exists takes over."""
    variables: Variables = AS_BEFORE
    """How the environment of a command that goes on differs from that of its first start."""


def job_file(*, demo: str | None = None) -> Path | None:
    """The file that describes the job: that of a built-in one, or `memsup.toml` in this folder, if there is one."""
    if demo is not None:
        return file_of_demo(demo)
    here = current_folder() / JOB_FILE
    return here if os.path.lexists(here) else None


def load_settings(
    *, demo: str | None = None, tier: str | None, assignments: Sequence[str], environment: Mapping[str, str], job: bool = True
) -> Loaded:
    """The settings as given now; without `job` whatever file describes one in this folder. Raises `SettingsError`."""
    flags = ([f"tier={tier}"] if tier else []) + list(assignments)
    of_job, own = job_file(demo=demo) if job else None, user_settings_file()
    if of_job and own and _is_same(of_job, own):
        of_job = None
    return load(job_file=of_job, flags=flags, environment=environment, user_file=own)


def _is_same(file: Path, other: Path) -> bool:
    """Whether both are one file. A link that leads nowhere is none; whoever reads it says so."""
    try:
        return file.samefile(other)
    except OSError:
        return False


def look_around(state: Path, settings: Settings) -> Machine:
    """This machine with its GPUs, which their probe looks at unless they are not to be used."""
    if settings.training.device == "cpu":
        return look(state, gpu_note="not looked at: training.device is cpu")
    gpus, note = facts(GPU_BUDGET_S)
    return look(state, gpus, note)


def _look_at_task(settings: Settings, *, checkpoint: Path | None = None) -> tuple[TaskSummary, Shape | None]:
    """What there is of data and model, and the model's numbers. They are None where its folder does not tell them. Raises
    `InputError`.
    """
    from memsup.supervisor.client.task import look_at_task, model_shape  # which a command has no use for

    task = look_at_task(settings, checkpoint=checkpoint)
    return task, model_shape(str(task.model.folder or ""), task, settings)


def plan_new(paths: RunPaths, loaded: Loaded, command: list[str] | None, beside: Beside, *, accept: bool = False) -> Plan:
    """What a run that does not exist yet would be, with the claims of those `beside` which it begins; with `accept` whatever is
    doubtful about its data is taken as it is. Raises `RefusedError`, `SettingsError`, `InputError`, and of doubts
    `DoubtfulDataError`.
    """
    settings = loaded.settings
    if command is None and settings.task.model is None and settings.task.train is None and job_file() is None:
        raise RefusedError(
            f"There is no {JOB_FILE} in {current_folder()} and no task in the settings. Go on with one of:",
            more=(
                "  memsup start --demo                                        a built-in job, from anywhere",
                "  memsup start --model MODEL --train FILE                    your model and your data",
                "  memsup start -- python train.py                            a training command of your own",
            ),
        )
    hours.check(settings.hours)
    task, shape = (None, None) if command else _look_at_task(settings)
    if task is not None:
        if accept:
            _accept(settings, task)
        if doubts := task.verdict.unsettled(settings.task.accept):
            raise DoubtfulDataError(task, doubts)
    _check_folder(settings)  # of a command as well, whose program may call memsup.guard
    _refuse_shared_folder(paths, settings, beside)
    if settings.checkpoint.resume_from:
        _check_resume(Path(settings.checkpoint.resume_from))
    if command is None:
        check_curves(settings)
    machine = look_around(paths.state, settings)
    resolution = resolve(settings, loaded.origins, machine, shape, beside, is_command=bool(command))
    _check_disk(paths, settings, machine, task)
    return Plan(
        settings=resolution.settings,
        origins=loaded.origins,
        resolution=resolution,
        machine=machine,
        task=task,
        command=command,
    )


def plan_continued(paths: RunPaths, record: RunRecord, loaded: Loaded, beside: Beside, *, accept: bool = False) -> Plan:
    """What the run of `record` would go on with: its own settings, but for those that may change; the rest as for a new one.
    Doubts about the data do not keep it from going on: what it has learnt is its own, and where it has not begun, its worker
    refuses them. Raises `RefusedError`, `SettingsError` and `InputError`.
    """
    if record.command_folder is not None and not os.path.isdir(record.command_folder):
        raise RefusedError(f"The folder in which the run's command runs is gone: make {record.command_folder} again.")
    settings, taken, _ = merge(record.settings, loaded, is_command=record.command is not None)
    hours.check(settings.hours)
    _check_folder(settings)
    if record.command is None:
        check_curves(settings)
    _refuse_shared_folder(paths, settings, beside)
    newest = None if record.command else newest_checkpoint(paths, record)
    task, shape = (None, None) if record.command else _look_at_task(settings, checkpoint=newest.path if newest else None)
    if task is not None and accept:
        _accept(settings, task)
    machine = look_around(paths.state, settings)
    origins = created_with(settings) | {difference.key: difference.origin for difference in taken}
    resolution = resolve(settings, origins, machine, shape, beside, is_command=bool(record.command))
    _check_disk(paths, settings, machine, None)
    return Plan(
        settings=resolution.settings,
        origins=origins,
        resolution=resolution,
        machine=machine,
        task=task,
        command=record.command,
        taken=tuple(taken),
        variables=compared(record.command_environment, os.environ),
    )


def as_claimed(plan: Plan, others: tuple[Claim, ...]) -> Plan:
    """The plan with the limits that its supervisor has come to. Another run may have claimed memory since they were planned."""
    found = plan.resolution
    if others == found.limits.beside.others:
        return plan
    beside, is_command = Beside(others=others), bool(plan.command)
    limits = resolve_limits(found.asked, found.origins, found.machine, found.gpu, beside, is_command=is_command)
    return replace(plan, resolution=replace(found, limits=limits))


def merge(has: Settings, loaded: Loaded, *, is_command: bool) -> tuple[Settings, list[Difference], list[Difference]]:
    """The settings to go on with, what was taken over into them, and what was asked for and would be another training.

    A command learns nothing from a file's settings for the built-in training, so those are not asked of it.
    """
    settings = deepcopy(has)
    taken, kept = [], []
    for name, origin in loaded.origins.items():
        key = keys()[name]
        now, asked = key.value(settings), key.value(loaded.settings)
        if now == asked or (asked is None and key.section == "training"):
            continue
        difference = Difference(name, "hidden" if key.is_secret else now, "hidden" if key.is_secret else asked, origin)
        if key.may_change:
            key.set(settings, asked)
            taken.append(difference)
        elif not is_command or origin in ("flag", "environment"):
            kept.append(difference)
    return settings, taken, kept


def shown(name: str, value: Any) -> str:
    """The value of the key with this name, as a person would write it; the command is no key."""
    match value, keys()[name].written if name in keys() else None:
        case None, _:
            return "unset"
        case bool(), _:
            return str(value).lower()  # as TOML has it
        case Share(), _:
            return percent(value.fraction)
        case [_, *_], Written.WORDS | Written.NAMES:
            return (" " if keys()[name].written is Written.WORDS else ",").join(map(str, value))
        case int(), Written.SIZE:
            return size(value)
        case int() | float(), Written.DURATION:
            return duration(value)
        case _:
            return str(value)


def _accept(settings: Settings, task: TaskSummary) -> None:
    settings.task.accept = sorted({*settings.task.accept, *(doubt.kind for doubt in task.verdict.doubts)})


def _check_folder(settings: Settings) -> None:
    """Raises `RefusedError` where `checkpoint.folder` neither is a folder into which this user can write nor can become one."""
    if settings.checkpoint.folder is None:
        return
    folder = Path(settings.checkpoint.folder)
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    problem = None
    if not there.is_dir():
        problem = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"you may not write into {there}"
    if problem:
        raise RefusedError(f"checkpoint.folder = {folder} cannot be used: {problem}. Choose another one.")


def _refuse_shared_folder(paths: RunPaths, settings: Settings, beside: Beside) -> None:
    """Raises `RefusedError` where a living run keeps its checkpoints where this one would."""
    folder = os.path.realpath(settings.checkpoint.folder or paths.checkpoints)
    if (why := sharing(beside.others, folder)) is not None:
        raise RefusedError(why)


def _check_resume(folder: Path) -> None:
    from memsup.checkpoint.errors import CheckpointError
    from memsup.checkpoint.reading import verify

    try:
        verify(folder, full=False)
    except CheckpointError as error:
        raise RefusedError(f"checkpoint.resume_from = {folder} cannot be used: {error}") from None


def check_curves(settings: Settings) -> None:
    """Raises `RefusedError` where what is to write the curves is not installed."""
    missing = [str(kind) for kind in settings.training.curves if not is_installed(kind)]
    if missing:
        raise RefusedError(
            f"training.report_to names {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed: "
            f"pip install 'memsup[{','.join(missing)}]'"
        )


def _check_disk(paths: RunPaths, settings: Settings, machine: Machine, task: TaskSummary | None) -> None:
    """Raises `RefusedError` unless there is room for the logs, and for a new run's checkpoints as far as their size can be told
    from the model's folder. Those of a run that joins another machine's are written there.
    """
    folder = Path(settings.checkpoint.folder) if settings.checkpoint.folder else paths.state
    needed = disk_floor_bytes(None)
    why = "logs and the last words of a run"
    weights = 0
    if task is not None and settings.nodes.join is None:
        from memsup.supervisor.client.task import weights_bytes

        weights = weights_bytes(task.model)
    if weights:
        needed += weights * (CHECKPOINT_SHARES * (settings.checkpoint.keep + 1) + 1)
        why = f"{settings.checkpoint.keep} checkpoints of this model, one being written, and its result"
    for place, free in ((paths.state, machine.disk_free_bytes), (folder, disk_free_bytes(folder))):
        if free is not None and free < needed:
            raise RefusedError(
                f"Only {size(free)} are free in {place}, but {why} need {size(needed)}: "
                "free some space, or choose another disk with MEMSUP_STATE_DIR."
            )
