"""What was found on the machine and in the data, as rows for `start` and `check`, and as JSON. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from memsup.shared.data.doubts import Answer
from memsup.shared.data.seen import SeenRows
from memsup.shared.model.folder import ModelSource
from memsup.shared.settings import CurveKind
from memsup.supervisor.client.trust import contacts
from memsup.supervisor.decide.readings import THIS_MACHINE
from memsup.supervisor.words import count, cut, gpu_line, pad, percent, plural, size, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from memsup.shared.data.check import DataSummary, TaskSummary
    from memsup.shared.data.doubts import Doubt, Verdict
    from memsup.shared.data.errors import NoTaskError
    from memsup.shared.model.folder import ModelSummary
    from memsup.shared.settings import Settings
    from memsup.supervisor.decide.readings import Machine, TemperatureReading
    from memsup.supervisor.decide.tiers import Limits, Resolution

Row = tuple[str, str]
_MODEL_SOURCES = {
    "folder": "a folder with weights",
    "config only": "a config without weights: trained from nothing",
    "hub": "a hub id; the worker fetches it",
}
MOST_SHOWN = 6
"""Sensors and labels beyond that many are counted, not listed."""


def machine_rows(machine: Machine) -> list[Row]:
    rows = [
        ("RAM", f"{size(machine.ram_total_bytes)}, {size(machine.ram_available_bytes)} of it free{_of(machine.ram_source)}"),
        *(("cgroup", f"{name} allows {size(limit)}") for name, limit in machine.cgroup_limits),
        ("swap", "none" if machine.swap_total_bytes == 0 else size(machine.swap_total_bytes)),
        ("CPUs", f"{machine.cpus} usable{_of(machine.cpu_source)}" + (f", {machine.cpu_model}" if machine.cpu_model else "")),
        *((f"GPU {gpu.index}", gpu_line(gpu)) for gpu in machine.gpus),
    ]
    if not machine.gpus:
        rows.append(("GPUs", machine.gpu_note or "none"))
    rows.append(("sensors", _temperatures(machine.temperatures)))
    rows.append(("disk", f"{size(machine.disk_free_bytes)} free where the run's state lies"))
    return rows


def brief_rows(task: TaskSummary | None, resolution: Resolution, settings: Settings, tier: str, folder: str) -> list[Row]:
    """What matters most of a start, in three lines: memory, how it is trained, and where it is kept."""
    limits, training, needs = resolution.limits, settings.training, resolution.needs
    rows = [("memory", f"at most {size(limits.worker_limit_bytes)}, from {limits.worker_limit_origin}")]
    if task is not None:
        if needs is not None and not resolution.on_gpu:
            rows = [("memory", f"{rows[0][1]}; about {size(resolution.ranks * needs.micro_batch_bytes)} to begin with")]
        gpu = resolution.gpu
        device = (gpu.name or "the GPU") if gpu is not None else "the GPU" if resolution.on_gpu else "the CPU"
        device += f" in {resolution.ranks} ranks" if resolution.ranks > 1 else ""
        passes = "1 pass" if training.epochs == 1 else f"{training.epochs:g} passes"
        if training.max_steps is not None:
            passes = plural(training.max_steps, "step")
        how = f"{passes}, {training.effective_batch} samples a step, texts of up to {count(training.max_length)} tokens"
        rows.append(("training", f"{how}, on {device} (tier {tier})"))
    return [*rows, ("kept in", folder)]


def curve_rows(settings: Settings, folder: str) -> list[Row]:
    """The commands that show the curves which are written below `folder`, where some are wanted."""
    shown = {
        CurveKind.TENSORBOARD: f"tensorboard --logdir {shlex.quote(f'{folder}/tensorboard')}",
        CurveKind.TRACKIO: f"TRACKIO_DIR={shlex.quote(f'{folder}/trackio')} trackio show",
    }
    return [("curves", shown[kind]) for kind in settings.training.curves]


def brief_task(task: TaskSummary, settings: Settings) -> str:
    """What is trained on what, in one line."""
    rows = f"{plural(task.train.rows, 'row')}{'' if task.train.complete else ' at least'}"
    if isinstance(task.train, SeenRows):
        return f"{settings.task.model} on {task.train.source}: {rows}, {task.train.learnt}"
    is_score = settings.task.problem_type == "regression"
    labels = f"a number, {task.train.columns.label!r}" if is_score else plural(len(task.train.labels), "label")
    return f"{settings.task.model} on {task.train.source}: {rows}, {labels}"


def data_rows(task: TaskSummary, settings: Settings) -> list[Row]:
    rows = [
        ("model", f"{settings.task.model or '?'} ({_model_source(task.model)})"),
        ("train", _data(task.train)),
    ]
    if task.evaluation is not None:
        rows.append(("evaluate", _data(task.evaluation)))
    rows += task.train.about if isinstance(task.train, SeenRows) else [("labels", _labels(task.train))]
    rows.append(("texts", _texts(task.train, settings.training.max_length)))
    return rows


def data_notes(task: TaskSummary) -> list[str]:
    """What was decided about the files that a person might have meant otherwise, each a sentence."""
    return [note for data in (task.train, task.evaluation) if data is not None for note in data.notes]


WHAT_IT_DOES = {
    "task.text": "train on that column's texts",
    "task.text_pair": "train on both texts of a row",
    "task.label": "learn that column",
    "task.problem_type": "learn numbers as numbers, or several labels a text",
    "task.labels": "learn these alone; rows with other labels are left out, and counted",
    "task.train": "hold out a share of these in the place of what lies beside them",
    "task.eval": "hold out a share of the training data in its place",
}
"""What a setting that settles a doubt means for the training."""


def settings_of(doubts: Iterable[Doubt]) -> list[str]:
    """What can be set to settle them, as KEY=VALUE."""
    return list(dict.fromkeys(setting for doubt in doubts for setting in doubt.settle))


def example_lines(verdict: Verdict, cells: int) -> list[str]:
    """The rows that show what would be trained, one a line of so many cells at most."""
    labels = [cut(shown.label, cells // 3) for shown in verdict.examples]
    margin = max([width(label) for label in labels], default=0)
    lines = []
    for label, shown in zip(labels, verdict.examples, strict=True):
        text = shown.text if shown.text_pair is None else f"{shown.text} + {shown.text_pair}"
        lines.append(f"{pad(label, margin)}  ← {cut(text, max(20, cells - margin - 4))}")
    return lines


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.answer,
        "looked_at_all": verdict.complete,
        "doubts": [
            {"kind": doubt.kind, "what": doubt.what, "settle": [*(f"--set {shlex.quote(s)}" for s in doubt.settle), "--accept"]}
            for doubt in verdict.doubts
        ],
        "examples": [
            {
                "text": shown.text,
                "text_pair": shown.text_pair,
                "label": shown.label,
                "file": shown.file,
                "line": shown.line,
            }
            for shown in verdict.examples
        ],
    }


def no_task_document(error: NoTaskError) -> dict[str, Any]:
    return {"verdict": Answer.NO_TASK, "looked_at_all": True, "doubts": [], "examples": [], "why": str(error)}


def reach_rows(settings: Settings, origins: Mapping[str, str], task: TaskSummary | None) -> list[Row]:
    """What a run contacts, writes and deletes beyond its own folder, and the place that says so."""
    rows = []
    if task is not None and task.model.source is ModelSource.HUB and task.model.folder is None:
        rows.append(("fetches", f"the model {settings.task.model} from the hub", "task.model"))
    rows += [("pings" if name == "notify.ping_url" else "messages", f"to {to}", name) for name, to in contacts(settings)]
    if settings.checkpoint.folder and task is not None:  # a command has its own
        rows.append(
            ("checkpoints", f"in {settings.checkpoint.folder}, where its own older ones are deleted", "checkpoint.folder")
        )
    return [(what, f"{where}  ← {origins.get(name, 'default')}") for what, where, name in rows]


def machine_document(machine: Machine) -> dict[str, Any]:
    from memsup.supervisor.record.status import temperature_status

    return {
        "ram_total_bytes": machine.ram_total_bytes,
        "ram_available_bytes": machine.ram_available_bytes,
        "ram_source": machine.ram_source,
        "cgroup_limits": [{"name": name, "bytes": limit} for name, limit in machine.cgroup_limits],
        "swap_total_bytes": machine.swap_total_bytes,
        "cpus": machine.cpus,
        "cpu_model": machine.cpu_model,
        "gpus": [
            {"index": g.index, "name": g.name, "total_bytes": g.total_bytes, "used_bytes": g.used_bytes} for g in machine.gpus
        ],
        "gpu_note": machine.gpu_note,
        "temperatures": [temperature_status(reading) for reading in machine.temperatures],
        "disk_free_bytes": machine.disk_free_bytes,
        "kernel": machine.kernel,
        "wsl": machine.is_wsl,
        "on_battery": machine.on_battery,
        "can_sleep": machine.can_sleep,
    }


def unfenced(kind: str, why: str) -> str | None:
    """The sentence that says what the kernel does not enforce, and why. It is None where the kernel bounds the whole tree."""
    unproved = "that this machine survives a worker that leaks in ever more processes is not proved"
    if kind == "rlimit":
        return f"The kernel bounds each process here, not their sum ({why}). memsup watches the sum itself; {unproved}."
    if kind == "none":
        return (
            f"The kernel enforces no limit on the worker's RAM here ({why}). memsup watches and kills by itself; {unproved}. "
            "With a cgroup it would: start from a login under systemd, as root, or in a container that may make cgroups; until "
            "then leave the machine more room with limits.ram_reserve."
        )
    return None


def limits_document(limits: Limits) -> dict[str, Any]:
    return {
        "worker_bytes": limits.worker_limit_bytes,
        "worker_origin": limits.worker_limit_origin,
        "reserve_bytes": limits.reserve_bytes,
        "reserve_origin": limits.reserve_origin,
        "fence_bytes": limits.fence_bytes,
        "vram_bytes": limits.vram_bytes,
        "other_runs": [{"run": claim.run, "worker_bytes": claim.ram_bytes} for claim in limits.beside.others],
    }


def _of(source: str) -> str:
    return "" if source == THIS_MACHINE else f" ({source})"


def _temperatures(readings: tuple[TemperatureReading, ...]) -> str:
    if not readings:
        return "no temperature sensor (normal in a virtual machine, a container or WSL)"
    shown = [f"{r.name} {'?' if r.celsius is None else f'{r.celsius:g} °C'}" for r in readings[:MOST_SHOWN]]
    more = [] if len(readings) <= MOST_SHOWN else [f"{len(readings) - MOST_SHOWN} more"]
    return ", ".join(shown + more)


def _model_source(model: ModelSummary) -> str:
    if model.source is ModelSource.HUB and model.folder is not None:
        return "a hub id, fetched before"
    return _MODEL_SOURCES[model.source.value]


def _data(data: DataSummary | SeenRows) -> str:
    more = "" if data.complete else " at least (looked at for a moment only)"
    if isinstance(data, SeenRows):
        left_out = "".join(f", {plural(rows, 'row')} left out, since {why}" for why, rows in data.left_out.items())
        return f"{data.source}: {plural(data.rows, 'row')}{more}, {data.learnt}{left_out}"
    blank = f", {plural(data.blank_texts, 'row')} without a text left out" if data.blank_texts else ""
    if others := sum(data.other_labels.values()):
        names = ", ".join(list(data.other_labels)[:MOST_SHOWN])
        blank += f", {plural(others, 'row')} with other labels left out ({names})"
    pair = "" if data.columns.text_pair is None else f" and {data.columns.text_pair!r}"
    columns = f"text in {data.columns.text!r}{pair}, label in {data.columns.label!r}"
    return f"{data.source}: {plural(data.rows, 'row')}{more}, {columns}{blank}"


def _labels(data: DataSummary) -> str:
    if data.evidence.table.problem_type == "regression":
        return f"{data.columns.label!r} is a number, {data.evidence.lowest:g} to {data.evidence.highest:g}"
    shown = [f"{name!r} {count(rows)}" for name, rows in list(data.labels.items())[:MOST_SHOWN]]
    more = [] if len(data.labels) <= MOST_SHOWN else [f"{len(data.labels) - MOST_SHOWN} more"]
    return ", ".join(shown + more)


def _texts(data: DataSummary | SeenRows, max_length: int | None) -> str:
    median, _, nearly_all, longest = data.text_chars
    text = f"{count(median)} characters in the middle, {count(nearly_all)} at 99 %, {count(longest)} at most"
    if max_length is None:
        return text
    share = data.share_cut(max_length)
    cut = "none" if share == 0 else f"about {percent(share)}" if share >= 0.01 else "less than 1 %"
    done = data.when_too_long if isinstance(data, SeenRows) else "cut"
    return f"{text}; {cut} of them are {done} at {count(max_length)} tokens"
