"""Which tier a machine earns, and what it makes of every value that was left open: limits, reserve, batch, threads. Pure.

Covers the table of the design, `auto`, and the limits with the place that each came from, as `start` prints them. A tier is
a starting point: within it the worker's planner moves. Refuses what makes no sense on this machine (`SettingsError`). What
the machine has is looked up in `machine.py`; what a person may write is checked in `shared/settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from memsup.shared.lanes import BASE_BYTES, MOST_FRACTION, lanes_for
from memsup.shared.settings import Settings, SettingsError, Share, TierName
from memsup.supervisor.decide.estimate import MOMENTS_BYTES, Estimate, Shape, device_bytes, estimate, longest_that_fits
from memsup.supervisor.decide.readings import GpuReading, Machine
from memsup.supervisor.decide.thresholds import ASSUMED_SLOWDOWN_C
from memsup.supervisor.words import percent, size

MIB = 2**20
GIB = 2**30
GB = 10**9
WORKER_NEEDS_BYTES = 512 * MIB
"""Python with torch and transformers imported and a small model takes most of this before the first batch."""
LEAST_RESERVE_BYTES = 64 * MIB
"""Twice what the supervisor may take itself; with less there is nobody left to act."""
DISK_FLOOR_BYTES = 256 * MIB
"""For logs, ledger and the last words of a run. Room for checkpoints, whose size is known then, is `checkpoint/room.py`."""
MOST_HELD_FRACTION = 0.75
"""Of the worker's share of a GPU that weights, gradients and moments may hold before the moments go to the host: activations
need the rest."""
RESERVE_FRACTION = 0.1
RESERVE_FLOOR_BYTES = 512 * MIB
CGROUP_RESERVE_FLOOR_BYTES = 96 * MIB
"""Inside a cgroup the rest of the machine lies outside; what has to live beside the worker is the supervisor and a command."""
OWN_BYTES = 64 * MIB
"""What these two take of it."""


class TierValues(NamedTuple):
    """One row of the table. The micro-batch at the start is `rows × max_length` tokens."""

    rows: int
    max_length: int
    effective_batch: int
    gradient_checkpointing: bool


TIERS: dict[TierName, TierValues] = {
    "low": TierValues(rows=1, max_length=128, effective_batch=16, gradient_checkpointing=True),
    "safe": TierValues(rows=4, max_length=256, effective_batch=16, gradient_checkpointing=False),
    "full": TierValues(rows=8, max_length=512, effective_batch=16, gradient_checkpointing=False),
}
_ORDER: tuple[TierName, ...] = ("low", "safe", "full")

# Memory is sold in round numbers, of which firmware and drivers keep a part: a machine "with 8 GB" reports 7.6 GiB, and a card
# "with 8 GB" has 8 GiB. So "at least" is read as 10^9 bytes each, and "more than" as 2^30.
_SAFE_FROM = {"RAM": 8 * GB, "VRAM": 4 * GB}
_FULL_ABOVE = {"RAM": 16 * GIB, "VRAM": 8 * GIB}


@dataclass(frozen=True, kw_only=True)
class Limits:
    worker_limit_bytes: int
    """What the worker's whole tree may use; the ladder's rungs lie below it."""
    worker_limit_origin: str
    reserve_bytes: int
    """What the rest of the machine keeps, come what may."""
    reserve_origin: str
    reserve_free_bytes: int
    """The part of the reserve that has to be free. On a machine all of it; in a cgroup of our own we live in the rest."""
    fence_bytes: int
    """Where the kernel stands behind the ladder. Never reaches into the reserve."""
    vram_fraction: float | None
    """Of the GPU's memory; None where a limit in bytes was given and the GPU's size is not known."""
    disk_floor_bytes: int = DISK_FLOOR_BYTES
    """With less free disk, training holds."""


class Line(NamedTuple):
    """A value as `start` prints it, and where it came from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Resolution:
    settings: Settings
    """As asked, with every value filled in that the tier decides."""
    tier: TierName
    reason: str
    limits: Limits
    lines: tuple[Line, ...]
    needs: Estimate | None
    """None: the model is not known before it is loaded."""
    notes: tuple[str, ...]
    """Sentences about what was asked for and does not do here what it says."""


def resolve(settings: Settings, origins: Mapping[str, str], machine: Machine, shape: Shape | None = None) -> Resolution:
    """`origins`: where each key was set (`training.epochs` → "flag"), absent ones are defaults. `shape`: of the model, where it
    is known. Raises `SettingsError`.
    """
    gpu = deciding_gpu(settings, machine)
    earned, earned_reason = earned_tier(machine, gpu)
    tier = earned if settings.tier == "auto" else settings.tier
    reason = earned_reason if settings.tier == "auto" else f"asked for ({_origin('tier', origins)})"
    limits = resolve_limits(settings, origins, machine, gpu)
    filled = _filled(settings, tier, machine)
    lanes = 1 if shape is None or gpu is not None else _lanes(shape, filled, limits, machine)
    needs = None if shape is None else _estimate(shape, filled, lanes)
    if needs is not None and gpu is not None:
        filled.training.optimizer_on_host = _fit_gpu(needs, limits, gpu, filled.training.optimizer_on_host)
    elif needs is not None and not settings.training.device.startswith("cuda"):
        _check_fits(needs, limits, filled)
        if settings.training.gradient_checkpointing is None and needs.row_bytes > limits.worker_limit_bytes:
            filled.training.gradient_checkpointing = True
            needs = _estimate(needs.shape, filled, lanes)
    *training_lines, last_line = _training_lines(settings, filled, origins, tier, machine)
    lines = (
        *_limit_lines(settings, origins, limits, gpu),
        *training_lines,
        *_lane_lines(filled, origins, None if shape is None else lanes, on_gpu=gpu is not None),
        last_line,
        *_needs_lines(filled, needs, on_gpu=gpu is not None or settings.training.device.startswith("cuda")),
    )
    return Resolution(
        settings=filled,
        tier=tier,
        reason=reason,
        limits=limits,
        lines=lines,
        needs=needs,
        notes=tuple(_notes(settings, machine, limits, tier=tier, earned=earned, earned_reason=earned_reason)),
    )


def deciding_gpu(settings: Settings, machine: Machine) -> GpuReading | None:
    """The GPU whose memory counts: the smallest of those there are, since CUDA numbers them in another order than NVML."""
    if settings.training.device == "cpu":
        return None
    return min((g for g in machine.gpus if not g.lost), key=lambda g: g.total_bytes or 0, default=None)


def earned_tier(machine: Machine, gpu: GpuReading | None) -> tuple[TierName, str]:
    """The tier by the smaller of the two memories, and why. Without a GPU (or with one of unknown size) RAM alone decides."""
    vram_bytes = gpu.total_bytes if gpu else None
    views = [("RAM", machine.ram_total_bytes)] + ([("VRAM", vram_bytes)] if vram_bytes is not None else [])
    name, size_bytes = min(views, key=lambda view: _ORDER.index(_tier_of(*view)))
    tier = _tier_of(name, size_bytes)
    bound = {
        "low": f"less than {_SAFE_FROM[name] // GB} GB",
        "safe": f"between {_SAFE_FROM[name] // GB} and {_FULL_ABOVE[name] // GIB} GB",
        "full": f"more than {_FULL_ABOVE[name] // GIB} GB",
    }[tier]
    has = f"{size(size_bytes)} {name}" + (f" of {machine.ram_source}" if name == "RAM" and machine.cgroup_limits else "")
    if len(views) == 2 and tier == "full":
        return tier, f"{size(machine.ram_total_bytes)} RAM and {size(vram_bytes)} VRAM are more than 16 and 8 GB"
    why_alone = "without a GPU, RAM alone decides" if gpu is None else "the GPU's memory is not known"
    return tier, f"{has} is {bound}" + ("" if len(views) == 2 else f" ({why_alone})")


def _tier_of(name: str, size_bytes: int) -> TierName:
    if size_bytes < _SAFE_FROM[name]:
        return "low"
    return "full" if size_bytes > _FULL_ABOVE[name] else "safe"


# --------------------------------------------------------------------------------------------------------------------
# Limits


def resolve_limits(settings: Settings, origins: Mapping[str, str], machine: Machine, gpu: GpuReading | None) -> Limits:
    total = machine.ram_total_bytes
    reserve, reserve_origin = _reserve(settings, origins, machine)
    asked = _bytes_of(settings.limits.ram, total)
    origin = f"limits.ram = {_share_text(settings.limits.ram, total)} ({_origin('limits.ram', origins)})"
    if asked > total - reserve:
        limit, limit_origin = total - reserve, "what the reserve leaves"
    else:
        limit, limit_origin = asked, origin
    if limit < WORKER_NEEDS_BYTES:
        if asked < WORKER_NEEDS_BYTES:
            raise SettingsError(
                f"{origin} is less than the {size(WORKER_NEEDS_BYTES)} that a worker needs to start at all: "
                f"give it more, for example --set limits.ram={_round_gib(total - reserve)}."
            )
        raise SettingsError(
            f"Of {size(total)} RAM ({machine.ram_source}) the reserve of {size(reserve)} leaves {size(limit)}, less than the "
            f"{size(WORKER_NEEDS_BYTES)} that a worker needs to start at all: lower limits.ram_reserve or find more memory."
        )
    _check_temperature(settings, origins, gpu)
    return Limits(
        worker_limit_bytes=limit,
        worker_limit_origin=limit_origin,
        reserve_bytes=reserve,
        reserve_origin=reserve_origin,
        reserve_free_bytes=reserve - min(OWN_BYTES, reserve * 2 // 3) if _is_contained(machine) else reserve,
        fence_bytes=limit,
        vram_fraction=_vram_fraction(settings.limits.vram, gpu),
    )


def _reserve(settings: Settings, origins: Mapping[str, str], machine: Machine) -> tuple[int, str]:
    total, asked = machine.ram_total_bytes, settings.limits.ram_reserve
    if asked is None and _is_contained(machine):
        default = max(int(total * RESERVE_FRACTION), CGROUP_RESERVE_FLOOR_BYTES)
        return default, f"a tenth of {machine.ram_source}, at least 96 MiB: the rest of the machine lies outside (default)"
    if asked is None:
        default = _usual_reserve_bytes(total)
        if default > total // 2:
            return total // 2, "half of the RAM: there is little (default)"
        return default, "a tenth of the RAM, at least 512 MiB (default)"
    reserve = _bytes_of(asked, total)
    origin = f"limits.ram_reserve = {_share_text(asked, total)} ({_origin('limits.ram_reserve', origins)})"
    if reserve < LEAST_RESERVE_BYTES:
        raise SettingsError(
            f"{origin} leaves the rest of the machine too little to live on: give it {size(LEAST_RESERVE_BYTES)} or more."
        )
    if reserve >= total:
        raise SettingsError(
            f"{origin} is all of the {size(total)} RAM there is, so that nothing is left to train with: lower it."
        )
    return reserve, origin


def _usual_reserve_bytes(total: int) -> int:
    return max(int(total * RESERVE_FRACTION), RESERVE_FLOOR_BYTES)


def _is_contained(machine: Machine) -> bool:
    """A cgroup bounds us so tightly that the machine keeps its usual reserve even when that cgroup is full."""
    outside = (machine.machine_ram_bytes or 0) - machine.ram_total_bytes
    return outside > 0 and outside >= _usual_reserve_bytes(machine.machine_ram_bytes or 0)


def _vram_fraction(asked: Share | int, gpu: GpuReading | None) -> float | None:
    if isinstance(asked, Share):
        return asked.fraction
    if gpu is None or not gpu.total_bytes:
        return None
    return min(1.0, asked / gpu.total_bytes)


def _check_temperature(settings: Settings, origins: Mapping[str, str], gpu: GpuReading | None) -> None:
    asked = settings.limits.gpu_temperature_c
    if asked is not None and gpu is not None and gpu.slowdown_c is not None and asked >= gpu.slowdown_c:
        raise SettingsError(
            f"limits.gpu_temperature_c = {asked:g} ({_origin('limits.gpu_temperature_c', origins)}) would never act: "
            f"{gpu.name or 'the GPU'} slows itself down at {gpu.slowdown_c:g} °C. Choose less, or leave it unset."
        )


def _bytes_of(value: Share | int, total: int) -> int:
    return int(total * value.fraction) if isinstance(value, Share) else value


def _share_text(value: Share | int, total: int) -> str:
    return f"{percent(value.fraction)} of {size(total)}" if isinstance(value, Share) else size(value)


def _round_gib(size_bytes: int) -> str:
    return f"{max(1, size_bytes // GIB)}GiB" if size_bytes >= GIB else f"{size_bytes // MIB}MiB"


# --------------------------------------------------------------------------------------------------------------------
# What the tier fills in, and how it is told


def _filled(settings: Settings, tier: TierName, machine: Machine) -> Settings:
    row, asked = TIERS[tier], settings.training

    def or_else(value: object, default: object) -> object:
        return default if value is None else value

    training = msgspec.structs.replace(
        asked,
        effective_batch=or_else(asked.effective_batch, row.effective_batch),
        max_length=or_else(asked.max_length, row.max_length),
        micro_tokens=or_else(asked.micro_tokens, row.rows * row.max_length),
        tune=or_else(asked.tune, asked.micro_tokens is None),
        gradient_checkpointing=or_else(asked.gradient_checkpointing, row.gradient_checkpointing),
        amp=or_else(asked.amp, _default_amp(settings, machine)[0]),
        # Tokenised rows are read from a memory-mapped cache, which no further process makes faster.
    )
    if not training.tune:
        training.threads = asked.threads or machine.cpus
    return msgspec.structs.replace(settings, training=training)


def _default_amp(settings: Settings, machine: Machine) -> tuple[str, str]:
    """Mixed precision changes results, so it is chosen here, once, and kept for the run; and why.

    bfloat16 has float32's range, and the weights stay float32, so that nothing has to be scaled. On a GPU the gain depends on
    its generation: there only who asks for it gets it.
    """
    device = settings.training.device
    if device.startswith("cuda") or (device != "cpu" and machine.gpus):
        return "off", "on a GPU only where training.amp asks for it (default)"
    if machine.cpu_bf16:
        return "bf16", "this CPU computes bfloat16 itself, and the weights stay float32 (default)"
    return "off", "this CPU does not compute bfloat16 itself (default)"


def _limit_lines(settings: Settings, origins: Mapping[str, str], limits: Limits, gpu: GpuReading | None) -> list[Line]:
    lines = [
        Line("worker memory", f"at most {size(limits.worker_limit_bytes)}", limits.worker_limit_origin),
        Line("reserve", f"{size(limits.reserve_bytes)} for everything else", limits.reserve_origin),
    ]
    if gpu is not None:
        vram = settings.limits.vram
        of = (
            f"{percent(limits.vram_fraction)} of {size(gpu.total_bytes)}"
            if limits.vram_fraction is not None
            else _share_text(vram, 0)
        )
        lines.append(Line("worker VRAM", f"at most {of}", f"limits.vram ({_origin('limits.vram', origins)})"))
        asked_c, slowdown_c = settings.limits.gpu_temperature_c, gpu.slowdown_c
        if asked_c is not None:
            lines.append(
                Line(
                    "GPU heat", f"{asked_c:g} °C", f"limits.gpu_temperature_c ({_origin('limits.gpu_temperature_c', origins)})"
                )
            )
        else:
            origin = "where it slows itself down" if slowdown_c is not None else "assumed, for the device names no limit"
            lines.append(Line("GPU heat", f"below {slowdown_c or ASSUMED_SLOWDOWN_C:g} °C", f"{origin} (default)"))
    for key, name, unit in (("cpu_temperature_c", "CPU heat", "°C"), ("power_w", "GPU power", "W")):
        value = getattr(settings.limits, key)
        if value is not None:
            lines.append(Line(name, f"{value:g} {unit}", f"limits.{key} ({_origin('limits.' + key, origins)})"))
    return lines


def _training_lines(
    asked: Settings, filled: Settings, origins: Mapping[str, str], tier: TierName, machine: Machine
) -> list[Line]:
    row, training = TIERS[tier], filled.training

    def origin(key: str, default: str) -> str:
        return default if getattr(asked.training, key) is None else f"training.{key} ({_origin('training.' + key, origins)})"

    by_tier = f"tier {tier}"
    micro_default = f"{by_tier}: {row.rows} × {row.max_length}; moves to what is fastest and fits"
    fastest = "" if training.threads else "the fastest number is found out by trying and "
    cpus = f"usable CPUs ({machine.cpu_source}); {fastest}kept for the run"
    to_begin_with = " to begin with" if training.tune else ""
    switch = {True: "on", False: "off", None: "?"}
    return [
        Line("effective batch", f"{training.effective_batch} samples a step, always", origin("effective_batch", by_tier)),
        Line("micro-batch", f"{training.micro_tokens:,} tokens{to_begin_with}", origin("micro_tokens", micro_default)),
        Line("longest text", f"{training.max_length} tokens", origin("max_length", by_tier)),
        Line(
            "activation checkpointing",
            switch[training.gradient_checkpointing],
            origin(
                "gradient_checkpointing",
                by_tier if training.gradient_checkpointing is row.gradient_checkpointing else "one text would not fit without",
            ),
        ),
        Line("mixed precision", f"{training.amp}", origin("amp", _default_amp(asked, machine)[1])),
        Line("threads", f"{training.threads or f'at most {machine.cpus}'}", origin("threads", cpus)),
    ]


def _lane_lines(filled: Settings, origins: Mapping[str, str], lanes: int | None, *, on_gpu: bool) -> list[Line]:
    """`lanes` None: the model is not known yet."""
    if on_gpu or filled.training.device.startswith("cuda"):
        return []
    if filled.training.lanes is not None:
        return [Line("lanes", f"{filled.training.lanes}", f"training.lanes ({_origin('training.lanes', origins)})")]
    if lanes is None:
        return [Line("lanes", "as many as memory allows", "decided when the model is loaded (default)")]
    if lanes > 1:
        tokens = f" and {filled.training.micro_tokens:,} tokens" if filled.training.tune else ""
        value = f"{lanes}, each with half of the threads{tokens}"
        return [Line("lanes", value, "there is room for another gradient (default)")]
    return [
        Line(
            "lanes",
            f"{lanes}",
            f"a second needs an even number of threads, and {percent(MOST_FRACTION)} of the memory (default)",
        )
    ]


# --------------------------------------------------------------------------------------------------------------------
# What the model needs


def _lanes(shape: Shape, filled: Settings, limits: Limits, machine: Machine) -> int:
    """As the worker will decide, if it takes as many threads as there are CPUs."""
    training = filled.training
    return training.lanes or lanes_for(
        parameters=shape.parameters,
        amp=training.amp or "off",
        threads=training.threads or machine.cpus,
        limit_bytes=limits.worker_limit_bytes,
    )


def _estimate(shape: Shape, filled: Settings, lanes: int) -> Estimate:
    """`filled` has every value."""
    training = filled.training
    return estimate(
        shape,
        amp=training.amp or "off",
        max_length=training.max_length or 0,
        micro_tokens=(training.micro_tokens or 0) * (lanes if training.tune else 1),
        effective_batch=training.effective_batch or 1,
        checkpointing=bool(training.gradient_checkpointing),
        lanes=lanes,
    )


def _check_fits(needs: Estimate, limits: Limits, filled: Settings) -> None:
    """Raises `SettingsError` for a job that cannot be trained in the worker's memory, however small its micro-batches."""
    limit = limits.worker_limit_bytes
    if needs.least_bytes <= limit:
        return
    shorter = longest_that_fits(needs.shape, amp=filled.training.amp or "off", below=needs.length, limit_bytes=limit)
    ways = [] if shorter is None else [f"lower training.max_length to {shorter}"]
    ways += [
        f"raise limits.ram (or lower limits.ram_reserve) so that it has {size(needs.least_bytes)}",
        "choose a smaller model",
    ]
    millions, of_a_row = needs.shape.parameters / 1e6, size(needs.least_bytes - needs.held_bytes)
    raise SettingsError(
        f"This model cannot be trained here: its {millions:,.3g} million weights with gradients and optimizer take about "
        f"{size(needs.held_bytes)}, and one text of {needs.length} tokens {of_a_row} more even with activation checkpointing, "
        f"but the worker may use {size(limit)} ({limits.worker_limit_origin}): {', '.join(ways[:-1])}, or {ways[-1]}."
    )


def _fit_gpu(needs: Estimate, limits: Limits, gpu: GpuReading, asked: bool | None) -> bool:
    """Whether the optimizer's moments lie in host memory. Raises `SettingsError` where the model does not even fit so."""
    if limits.vram_fraction is None or gpu.total_bytes is None:
        return bool(asked)
    has = int(limits.vram_fraction * gpu.total_bytes)
    on_host = device_bytes(needs.shape, optimizer_on_host=False) > MOST_HELD_FRACTION * has if asked is None else asked
    held, on_the_host = device_bytes(needs.shape, optimizer_on_host=on_host), MOMENTS_BYTES * needs.shape.parameters
    millions, name = f"{needs.shape.parameters / 1e6:,.3g} million", gpu.name or "this GPU"
    if held > has:
        what = "weights and gradients alone" if on_host else "weights, gradients and optimizer state"
        ways = [] if on_host else ["set training.optimizer_on_host = true"]
        ways += ["choose a smaller model", "train on the CPU with training.device = cpu"]
        raise SettingsError(
            f"This model cannot be trained on {name}: its {millions} {what} take {size(held)}, but the worker may use "
            f"{percent(limits.vram_fraction)} of {size(gpu.total_bytes)}: {', '.join(ways[:-1])}, or {ways[-1]}."
        )
    if on_host and BASE_BYTES + on_the_host > limits.worker_limit_bytes:
        raise SettingsError(
            f"This model's optimizer does not fit: {name} has no room for the state of {millions} weights, and neither has "
            f"host memory: it takes {size(on_the_host)} there, and the worker may use {size(limits.worker_limit_bytes)} "
            f"({limits.worker_limit_origin}): choose a smaller model, or raise limits.ram."
        )
    return on_host


def _needs_lines(settings: Settings, needs: Estimate | None, *, on_gpu: bool) -> list[Line]:
    if settings.task.model is None:
        return []
    if needs is None:
        return [Line("memory needed", "not known before the model is loaded", "its folder does not tell, or it is at a hub")]
    origin = f"estimated: {needs.shape.parameters / 1e6:,.3g} million parameters"
    if on_gpu:
        on_host = bool(settings.training.optimizer_on_host)
        held = size(device_bytes(needs.shape, optimizer_on_host=on_host))
        optimizer = f"the optimizer's {size(MOMENTS_BYTES * needs.shape.parameters)} on the host" if on_host else "optimizer"
        return [Line("memory needed", f"{held} of VRAM, and its activations", f"{origin}, with gradients and {optimizer}")]
    value = f"about {size(needs.micro_batch_bytes)} to begin with, at least {size(needs.least_bytes)}"
    return [Line("memory needed", value, f"{origin}; {needs.rows} × {needs.length} tokens, and one text")]


def _notes(
    settings: Settings, machine: Machine, limits: Limits, *, tier: TierName, earned: TierName, earned_reason: str
) -> list[str]:
    notes = []
    if _ORDER.index(tier) > _ORDER.index(earned):
        notes.append(f"Tier {tier} was asked for, but this machine earns {earned}: {earned_reason}. Micro-batches will shrink.")
    asked = _bytes_of(settings.limits.ram, machine.ram_total_bytes)
    if asked > machine.ram_total_bytes:
        notes.append(f"limits.ram asks for {size(asked)}, more than there is; the limit is {size(limits.worker_limit_bytes)}.")
    free = machine.ram_available_bytes
    if free is not None and free - limits.reserve_bytes < WORKER_NEEDS_BYTES:
        notes.append(
            f"Only {size(free)} RAM are free now, and the reserve is {size(limits.reserve_bytes)}: "
            "training will hold until others give memory back (memsup check names the largest users)."
        )
    if machine.ends_with_ssh:
        notes.append(
            "This is a login by ssh, and your account does not linger: systemd ends the run when your last login ends. "
            "So that it goes on: loginctl enable-linger"
        )
    device, threads = settings.training.device, settings.training.threads
    if device.startswith("cuda") and not machine.gpus:
        notes.append(f"training.device is {device}, but no GPU was seen ({machine.gpu_note or 'there is none'}).")
    if threads is not None and threads > machine.cpus:
        notes.append(
            f"training.threads is {threads}, but only {machine.cpus} CPUs can be used: they will get in each other's way."
        )
    lanes = settings.training.lanes or 1
    if (threads or machine.cpus) % lanes:
        notes.append(f"training.lanes is {lanes}, which does not divide {threads or machine.cpus} threads: one lane is used.")
    return notes


def _origin(key: str, origins: Mapping[str, str]) -> str:
    return origins.get(key, "default")
