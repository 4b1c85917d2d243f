"""Which tier a machine earns, and what it makes of every value that was left open: limits, reserve, batch, threads. Pure.

Covers the table of tiers, `auto`, and the limits with the place that each came from; `tier_lines.py` puts them into words. A
tier is a starting point: within it the worker's planner moves. Refuses what makes no sense on this machine (`SettingsError`).
What the machine has is looked up in `sense/machine.py`; what a person may write is checked in `shared/settings.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from memsup.shared.lanes import BASE_BYTES, lanes_for
from memsup.shared.ranks import count_of_ranks, names_one, refuse_ranks_of_machines
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings, SettingsError, Share, TierName, keys
from memsup.supervisor.decide.claims import ALONE, Beside, Claim, about, rounded, sensible, taken, ways_to_share
from memsup.supervisor.decide.estimate import (
    KEPT_BYTES,
    MOMENTS_BYTES,
    Estimate,
    Shape,
    apart,
    device_bytes,
    estimate,
    grown_bytes,
    longest_that_fits,
)
from memsup.supervisor.decide.readings import GpuReading, Machine
from memsup.supervisor.words import percent, size

AS_CREATED = "as the run was created"
MIB = 2**20
GIB = 2**30
GB = 10**9
WORKER_NEEDS_BYTES = 512 * MIB
"""Python with torch and transformers imported and a small model takes most of this before the first batch."""
COMMAND_NEEDS_BYTES = 16 * MIB
"""A command may be as small as it likes; with less hardly any interpreter begins."""
LEAST_RESERVE_BYTES = 64 * MIB
"""Twice what the supervisor may take itself; with less there is nobody left to act."""
MOST_HELD_FRACTION = 0.75
"""The part of the worker's share of a GPU that weights, gradients and moments may hold before the moments go to the host:
activations need the rest."""
FIRST_FRACTION = 0.75
"""The part of the worker's limit that a decoder's first micro-batch may take as it is estimated."""
KEPT_FRACTION = 0.8
"""The part that one of its longest rows may take for a run to begin with activations that are kept. What they take cannot be
told from rows computed twice, of which most is the scores of the vocabulary."""
RESERVE_FRACTION = 0.1
RESERVE_FLOOR_BYTES = 512 * MIB
CGROUP_RESERVE_FLOOR_BYTES = 96 * MIB
"""Inside a cgroup the rest of the machine lies outside; what has to live beside the worker is the supervisor and a command."""
OWN_BYTES = 64 * MIB
"""What the supervisor and a command take of the reserve inside a cgroup."""


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
ORDER: tuple[TierName, ...] = ("low", "safe", "full")

# Memory is sold in round numbers, of which firmware and drivers keep a part: a machine "with 8 GB" reports 7.6 GiB, and a card
# "with 8 GB" has 8 GiB. So "at least" is read as 10^9 bytes each, and "more than" as 2^30.
_SAFE_FROM = {"RAM": 8 * GB, "VRAM": 4 * GB}
_FULL_ABOVE = {"RAM": 16 * GIB, "VRAM": 8 * GIB}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the worker may take, and the place that each limit came from."""

    worker_limit_bytes: int
    """What the worker's whole tree may use; the ladder's rungs lie below it."""
    worker_limit_origin: str
    reserve_bytes: int
    """What the rest of the machine keeps, whatever the worker does."""
    reserve_origin: str
    reserve_free_bytes: int
    """The part of the reserve that has to be free: all of it on a machine, but in a cgroup of our own we live in the rest."""
    fence_bytes: int
    """What the kernel lets the worker's tree use, behind the ladder. It never reaches into the reserve."""
    vram_bytes: int | None
    """The GPU's memory that the worker may hold, CUDA's own context included. It is None where there is no GPU, or its
    size is not known."""
    beside: Beside
    """What other runs may take at the same time."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What was asked for, on which machine, and what came of it. `tier_lines.py` tells it."""

    asked: Settings
    origins: Mapping[str, str]
    """Where each key was set (`training.epochs` → "flag"); absent ones are defaults."""
    machine: Machine
    gpu: GpuReading | None
    """The GPU whose memory counts. It is None where the CPU trains, or no GPU was seen."""
    settings: Settings
    """What was asked for, with every value filled in that the tier decides."""
    tier: TierName
    reason: str
    """Why it is this tier, in one clause."""
    earned: TierName
    """The tier that `auto` would have chosen."""
    earned_reason: str
    limits: Limits
    lanes: int | None
    """Parts of a micro-batch that the CPU will compute side by side. It is None where the model is not known before it is
    loaded."""
    needs: Estimate | None
    """What training will take. It is None where the model is not known before it is loaded."""
    ranks: int
    """How many processes compute a step together."""

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU trains, one that was seen or one that was asked for by name."""
        return self.gpu is not None or self.asked.training.device.startswith("cuda")


def resolve(
    settings: Settings,
    origins: Mapping[str, str],
    machine: Machine,
    shape: Shape | None = None,
    beside: Beside = ALONE,
    *,
    is_command: bool = False,
) -> Resolution:
    """What `settings` mean on `machine`, `beside` other runs. `origins` tells where each key was set; `shape` is the model's.
    It is None where that is not known before the model is loaded. `is_command`: what runs is a command of the user's own.
    Raises `SettingsError`.
    """
    gpu = deciding_gpu(settings, machine)
    earned, earned_reason = earned_tier(machine, gpu)
    tier = earned if settings.tier == "auto" else settings.tier
    reason = earned_reason if settings.tier == "auto" else f"asked for ({origin_of('tier', origins)})"
    limits = resolve_limits(settings, origins, machine, gpu, beside, is_command=is_command)
    filled = _filled(settings, tier, machine)
    has = cards(settings, machine)
    ranks = 1 if is_command else count_of_ranks(filled, has)
    if not is_command:
        _refuse_ranks(filled, ranks, has)
        _refuse_shard(filled, gpu, ranks)
        _refuse_nodes(filled, gpu)
    if shape is not None and filled.training.shard and not is_command:
        shape = dataclasses.replace(shape, shared_by=ranks)
    of_rank = dataclasses.replace(limits, worker_limit_bytes=limits.worker_limit_bytes // ranks)
    lanes = None if shape is None else 1 if gpu is not None else _lanes(shape, filled, of_rank, machine, ranks)
    needs = None if shape is None else _estimate(shape, filled, lanes or 1)
    if needs is not None and gpu is not None:
        filled.training.optimizer_on_host = _fit_gpu(needs, of_rank, gpu, filled)
    elif needs is not None and not settings.training.device.startswith("cuda"):
        _check_fits(needs, of_rank, filled, ranks)
        if settings.training.gradient_checkpointing is None and needs.row_bytes > of_rank.worker_limit_bytes:
            filled.training.gradient_checkpointing = True
            needs = _estimate(needs.shape, filled, lanes or 1)
        keeps = needs.row_bytes + needs.lane_bytes <= KEPT_FRACTION * of_rank.worker_limit_bytes
        if needs.shape.is_decoder and settings.training.gradient_checkpointing is None and keeps:
            filled.training.gradient_checkpointing = False
            needs = _estimate(needs.shape, filled, lanes or 1)
        if needs.shape.is_decoder and settings.training.micro_tokens is None:
            filled.training.micro_tokens = _first_tokens(needs, filled, of_rank, lanes or 1)
            needs = _estimate(needs.shape, filled, lanes or 1)
    return Resolution(
        asked=settings,
        origins=origins,
        machine=machine,
        gpu=gpu,
        settings=filled,
        tier=tier,
        reason=reason,
        earned=earned,
        earned_reason=earned_reason,
        limits=limits,
        lanes=lanes,
        needs=needs,
        ranks=ranks,
    )


def cards(settings: Settings, machine: Machine) -> int | None:
    """How many GPUs the run may compute on: those that there are, as far as `CUDA_VISIBLE_DEVICES` lets torch see them. 0 means
    that CPUs compute; None that GPUs do, and nobody knows how many.
    """
    device, gpus = settings.training.device, [gpu for gpu in machine.gpus if not gpu.lost]
    if device == "cpu" or (not gpus and device == "auto"):
        return 0
    if names_one(device):
        return 1
    if not gpus:
        return None
    visible = machine.visible_gpus
    return len(gpus) if visible is None else min(len(gpus), len([name for name in visible.split(",") if name.strip()]))


def deciding_gpu(settings: Settings, machine: Machine) -> GpuReading | None:
    """The GPU whose memory counts: the smallest of those there are, since CUDA numbers them in another order than NVML."""
    if settings.training.device == "cpu":
        return None
    return min((g for g in machine.gpus if not g.lost), key=lambda g: g.total_bytes or 0, default=None)


def earned_tier(machine: Machine, gpu: GpuReading | None) -> tuple[TierName, str]:
    """The tier by the smaller of the two memories, and why. Without a GPU (or with one of unknown size) RAM alone decides."""
    vram_bytes = gpu.total_bytes if gpu else None
    views = [("RAM", machine.ram_total_bytes)] + ([("VRAM", vram_bytes)] if vram_bytes is not None else [])
    name, size_bytes = min(views, key=lambda view: ORDER.index(_tier_of(*view)))
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


def resolve_limits(
    settings: Settings,
    origins: Mapping[str, str],
    machine: Machine,
    gpu: GpuReading | None,
    beside: Beside,
    *,
    is_command: bool = False,
) -> Limits:
    total, needs = machine.ram_total_bytes, _Needs(COMMAND_NEEDS_BYTES if is_command else WORKER_NEEDS_BYTES, is_command)
    reserve, reserve_origin = _reserve(settings, origins, machine)
    asked = bytes_of(settings.limits.ram, total)
    origin = f"limits.ram = {share_text(settings.limits.ram, total)} ({origin_of('limits.ram', origins)})"
    if asked > total - reserve:
        limit, limit_origin = total - reserve, "what the reserve leaves"
    else:
        limit, limit_origin = asked, origin
    if limit < needs.least_bytes:
        if asked < needs.least_bytes:
            raise SettingsError(
                f"{origin} is less than the {needs.sentence}: "
                f"give it more, for example --set limits.ram={rounded(total - reserve)}."
            )
        raise SettingsError(
            f"Of {size(total)} RAM ({machine.ram_source}) the reserve of {size(reserve)} leaves {size(limit)}, less than the "
            f"{needs.sentence}: lower limits.ram_reserve or find more memory."
        )
    is_given = _is_given(settings, origins)
    beside = replace(beside, others=sensible(beside.others, total, needs.least_bytes))
    if beside.own_bytes is not None and not is_given and needs.least_bytes <= beside.own_bytes < limit:
        limit, limit_origin = beside.own_bytes, "what other runs left when it was started"
    if beside.others:
        room = total - max(reserve, beside.reserve_bytes)
        limit, limit_origin = _beside_others(limit, limit_origin, room, beside, origin if is_given else None, needs)
    _check_temperature(settings, origins, gpu)
    return Limits(
        worker_limit_bytes=limit,
        worker_limit_origin=limit_origin,
        reserve_bytes=reserve,
        reserve_origin=reserve_origin,
        reserve_free_bytes=reserve - min(OWN_BYTES, reserve * 2 // 3) if _is_contained(machine) else reserve,
        fence_bytes=limit,
        vram_bytes=_vram_bytes(settings.limits.vram, gpu),
        beside=beside,
    )


def claim_of(record: RunRecord, limits: Limits, *, on_gpu: bool, checkpoints: str | None = None) -> Claim:
    """What the run may take with these limits, and the folder in which its checkpoints lie, for other runs."""
    needs = record.estimate
    return Claim(
        run=record.run,
        run_id=record.run_id,
        ram_bytes=limits.worker_limit_bytes,
        reserve_bytes=limits.reserve_bytes,
        on_gpu=on_gpu,
        checkpoints=checkpoints,
        waits=record.queued is not None,
        is_command=record.command is not None,
        is_given=_is_given(record.settings, {}),
        needs_bytes=needs.peak_bytes(needs.most_tokens) if needs else None,
    )


def _is_given(settings: Settings, origins: Mapping[str, str]) -> bool:
    """Whether a person said what the worker may take."""
    return "limits.ram" in origins or settings.limits.ram != Settings().limits.ram


class _Needs(NamedTuple):
    """What a run needs at the least."""

    least_bytes: int
    is_command: bool

    @property
    def sentence(self) -> str:
        return f"{size(self.least_bytes)} that a {'command' if self.is_command else 'worker'} needs to start at all"


def _beside_others(limit: int, origin: str, room: int, beside: Beside, given: str | None, needs: _Needs) -> tuple[int, str]:
    """The limit and its origin beside other runs; all of them share `room` bytes. `given` says what a person asked for, which
    is not made less behind their back: it fits, or it is refused. It is None for the default, which is lowered. Raises
    `SettingsError`.
    """
    left = max(0, room - beside.claimed_bytes)
    if limit <= left:
        return limit, origin
    of_room = f"{taken(beside.others)} of the {size(room)} that are there for training"
    leaves = f"which leaves {size(left)}" if left >= MIB else "which leaves nothing"
    ways = ways_to_share(beside.others, left, limit if given else None, needs.least_bytes)
    if left < needs.least_bytes:
        why = f"There is no room beside what runs already: {of_room}, {leaves}"
        need = f"less than the {needs.sentence}."
        raise SettingsError(f"{why}, {need} {about(beside.others)}".rstrip(), more=ways)
    if given is not None:
        why = f"{given} does not fit beside what runs already: {of_room}, {leaves}."
        less = f"Ask for no more than that: --set limits.ram={rounded(left)}."
        raise SettingsError(f"{why} {less} {about(beside.others)}".rstrip(), more=ways)
    return left, f"what other runs leave: {of_room}"


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
    reserve = bytes_of(asked, total)
    origin = f"limits.ram_reserve = {share_text(asked, total)} ({origin_of('limits.ram_reserve', origins)})"
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
    """Whether a cgroup bounds us so tightly that the machine keeps its usual reserve even when that cgroup is full."""
    outside = (machine.machine_ram_bytes or 0) - machine.ram_total_bytes
    return outside > 0 and outside >= _usual_reserve_bytes(machine.machine_ram_bytes or 0)


def _vram_bytes(asked: Share | int, gpu: GpuReading | None) -> int | None:
    if gpu is None or not gpu.total_bytes:
        return None
    return min(bytes_of(asked, gpu.total_bytes), gpu.total_bytes)


def _check_temperature(settings: Settings, origins: Mapping[str, str], gpu: GpuReading | None) -> None:
    asked = settings.limits.gpu_temperature_c
    if asked is not None and gpu is not None and gpu.slowdown_c is not None and asked >= gpu.slowdown_c:
        raise SettingsError(
            f"limits.gpu_temperature_c = {asked:g} ({origin_of('limits.gpu_temperature_c', origins)}) would never act: "
            f"{gpu.name or 'the GPU'} slows itself down at {gpu.slowdown_c:g} °C. Choose less, or leave it unset."
        )


def bytes_of(value: Share | int, total: int) -> int:
    return int(total * value.fraction) if isinstance(value, Share) else value


def share_text(value: Share | int, total: int) -> str:
    return f"{percent(value.fraction)} of {size(total)}" if isinstance(value, Share) else size(value)


# --------------------------------------------------------------------------------------------------------------------
# What the tier fills in


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
        amp=or_else(asked.amp, default_amp(settings, machine)[0]),
    )
    if not training.tune:
        training.threads = asked.threads or machine.cpus
    return msgspec.structs.replace(settings, training=training)


def default_amp(settings: Settings, machine: Machine) -> tuple[str, str]:
    """The mixed precision that is taken where none was asked for, and why. It changes results, so it is kept for the run.

    bfloat16 has float32's range, and the weights stay float32, so that nothing has to be scaled. Of several GPUs all have to
    compute it, since CUDA numbers them in an order of its own.
    """
    device, gpus = settings.training.device, [gpu for gpu in machine.gpus if not gpu.lost]
    if device.startswith("cuda") or (device != "cpu" and machine.gpus):
        if gpus and all(gpu.bf16 for gpu in gpus):
            return "bf16", "this GPU computes bfloat16 itself, and the weights stay float32 (default)"
        if any(gpu.bf16 is False for gpu in gpus):
            return "off", "this GPU does not compute bfloat16 itself (default)"
        return "off", "it is not known whether this GPU computes bfloat16 itself (default)"
    if machine.cpu_bf16:
        return "bf16", "this CPU computes bfloat16 itself, and the weights stay float32 (default)"
    return "off", "this CPU does not compute bfloat16 itself (default)"


# --------------------------------------------------------------------------------------------------------------------
# What the model needs


def _refuse_ranks(filled: Settings, ranks: int, has: int | None) -> None:
    """Raises `SettingsError` for more ranks than can compute, on so many cards."""
    training = filled.training
    if ranks > 1 and names_one(training.device):
        raise SettingsError(
            f"training.ranks is {ranks}, but training.device is {training.device}, which is one GPU, and each rank takes one: "
            "set training.device to cuda, or training.ranks to 1."
        )
    if ranks > 1 and has and has < ranks:
        there = "is 1 GPU" if has == 1 else f"are {has} GPUs"
        raise SettingsError(
            f"training.ranks is {ranks}, but there {there} that it may compute on, and each rank takes one: set training.ranks "
            f"to {has}, or training.device to cpu."
        )
    if ranks > 1 and filled.task.stream:
        raise SettingsError(
            f"training.ranks is {ranks}, but several ranks cannot read a stream: set task.stream to false, or training.ranks "
            "to 1."
        )
    if ranks > (training.effective_batch or ranks):
        raise SettingsError(
            f"training.ranks is {ranks}, but a step has {training.effective_batch} samples, so some ranks would have nothing "
            "to do: choose fewer."
        )


def _refuse_shard(filled: Settings, gpu: GpuReading | None, ranks: int) -> None:
    """Raises `SettingsError` for a model that cannot be shared out."""
    training = filled.training
    if not training.shard:
        return
    if gpu is not None or training.device.startswith("cuda"):
        raise SettingsError("training.shard is built for CPUs only: set training.device to cpu, or leave training.shard out.")
    if ranks == 1:
        raise SettingsError(
            "training.shard has the ranks of one machine share the model, and there is one rank: add --ranks 2, or leave "
            "training.shard out."
        )
    if filled.task.kind == "causal-lm":
        raise SettingsError(
            "training.shard is built for text-classification and token-classification only, not for causal-lm: leave it out."
        )


def _refuse_nodes(filled: Settings, gpu: GpuReading | None) -> None:
    """Raises `SettingsError` for what several machines cannot compute together."""
    nodes, training = filled.nodes, filled.training
    if nodes.count == 1 and nodes.join is None:
        return
    if gpu is not None or training.device.startswith("cuda"):
        raise SettingsError("Several machines compute on CPUs only: set training.device to cpu, or leave the others out.")
    refuse_ranks_of_machines(filled)
    if filled.task.stream:
        raise SettingsError("Several machines cannot read a stream: set task.stream to false, or leave the others out.")
    if nodes.count > (training.effective_batch or nodes.count):
        raise SettingsError(
            f"nodes.count is {nodes.count}, but a step has {training.effective_batch} samples, so some machines would have "
            "nothing to do: choose fewer."
        )


def _lanes(shape: Shape, filled: Settings, limits: Limits, machine: Machine, ranks: int) -> int:
    """The lanes that the worker will decide on, if it takes as many threads as there are CPUs."""
    training = filled.training
    if training.shard:
        return 1
    return training.lanes or lanes_for(
        parameters=shape.parameters,
        trained=shape.trained,
        apart=apart(shape),
        amp=training.amp or "off",
        threads=training.threads or max(1, machine.cpus // ranks),
        limit_bytes=limits.worker_limit_bytes,
    )


def _estimate(shape: Shape, filled: Settings, lanes: int) -> Estimate:
    """What training with these settings takes. `filled` has every value."""
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


def _first_tokens(needs: Estimate, filled: Settings, limits: Limits, lanes: int) -> int:
    """The tokens of the first micro-batch, in each lane: the tier's, or as many as are sure to fit, at least one row. A decoder
    keeps so much of each token that the tier's would often be far beyond what there is.
    """
    training, beside_bytes = filled.training, needs.lane_bytes + KEPT_BYTES
    room_bytes = FIRST_FRACTION * limits.worker_limit_bytes - beside_bytes
    if needs.micro_batch_bytes - beside_bytes <= room_bytes:
        return training.micro_tokens or 0
    amp, on = training.amp or "off", bool(training.gradient_checkpointing)
    fits = (
        rows
        for rows in range(needs.rows, 0, -1)
        if grown_bytes(needs.shape, amp=amp, rows=rows, length=needs.length, checkpointing=on) <= room_bytes
    )
    return max(1, next(fits, 1) // lanes) * needs.length


def _check_fits(needs: Estimate, limits: Limits, filled: Settings, ranks: int) -> None:
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
    if ranks > 1:
        ways.insert(0, f"lower training.ranks from {ranks}, each of which has its part of the limit")
    raise SettingsError(
        f"This model cannot be trained here: its {millions:,.3g} million weights with gradients and optimizer take about "
        f"{size(needs.held_bytes)}, and one text of {needs.length} tokens {of_a_row} more even with activation checkpointing, "
        f"but the worker may use {size(limit)} ({limits.worker_limit_origin}): {', '.join(ways[:-1])}, or {ways[-1]}."
    )


def _fit_gpu(needs: Estimate, limits: Limits, gpu: GpuReading, filled: Settings) -> bool:
    """Whether the optimizer's moments lie in host memory. Raises `SettingsError` where the model does not even fit so."""
    has, asked = limits.vram_bytes, filled.training.optimizer_on_host
    if has is None or gpu.total_bytes is None:
        return bool(asked)
    amp = filled.training.amp or "off"
    on_host = device_bytes(needs.shape, amp=amp, optimizer_on_host=False) > MOST_HELD_FRACTION * has if asked is None else asked
    held, on_the_host = device_bytes(needs.shape, amp=amp, optimizer_on_host=on_host), MOMENTS_BYTES * needs.shape.parameters
    millions, name = f"{needs.shape.parameters / 1e6:,.3g} million", gpu.name or "this GPU"
    if held > has:
        what = "weights and gradients alone" if on_host else "weights, gradients and optimizer state"
        ways = [] if on_host else ["set training.optimizer_on_host = true"]
        ways += ["choose a smaller model", "train on the CPU with training.device = cpu"]
        raise SettingsError(
            f"This model cannot be trained on {name}: its {millions} {what} take {size(held)}, but the worker may use "
            f"{share_text(filled.limits.vram, gpu.total_bytes)}: {', '.join(ways[:-1])}, or {ways[-1]}."
        )
    if on_host and BASE_BYTES + on_the_host > limits.worker_limit_bytes:
        raise SettingsError(
            f"This model's optimizer does not fit: {name} has no room for the state of {millions} weights, and neither has "
            f"host memory: it takes {size(on_the_host)} there, and the worker may use {size(limits.worker_limit_bytes)} "
            f"({limits.worker_limit_origin}): choose a smaller model, or raise limits.ram."
        )
    return on_host


def created_with(settings: Settings) -> dict[str, str]:
    """Where each value of a run that goes on comes from; defaults stay defaults."""
    default = Settings()
    differs = (name for name, key in keys().items() if key.value(settings) != key.value(default))
    return dict.fromkeys(differs, AS_CREATED)


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Where the value of `key` was set."""
    return origins.get(key, "default")
