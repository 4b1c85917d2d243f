"""What a resolution is told as: each value with the place that it came from, and what does not do here what it says. Pure.

`tiers.py` decides; here it is put into words, for `start`, `check`, and their `--json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memsup.shared.lanes import MOST_FRACTION
from memsup.shared.settings import Share
from memsup.supervisor.decide.claims import notes_on, taken
from memsup.supervisor.decide.estimate import MOMENTS_BYTES, device_bytes
from memsup.supervisor.decide.thresholds import ASSUMED_SLOWDOWN_C
from memsup.supervisor.decide.tiers import (
    ORDER,
    TIERS,
    WORKER_NEEDS_BYTES,
    Resolution,
    bytes_of,
    default_amp,
    origin_of,
)
from memsup.supervisor.words import percent, size

_SWITCH = {True: "on", False: "off", None: "?"}


class Line(NamedTuple):
    """A value as `start` prints it, and where it came from."""

    name: str
    value: str
    origin: str


def lines(found: Resolution) -> tuple[Line, ...]:
    """Every value of a built-in training with its origin."""
    return (
        *memory_lines(found),
        *_device_lines(found),
        *_training_lines(found),
        *_lane_lines(found),
        *_needs_lines(found),
    )


def memory_lines(found: Resolution) -> tuple[Line, ...]:
    """The limits of memory, which are kept whatever is trained, a supervised command as well."""
    limits = found.limits
    others = limits.beside.others
    return (
        *([Line("other runs", taken(others), "they run now, and share the machine with this one")] if others else []),
        Line("worker memory", f"at most {size(limits.worker_limit_bytes)}", limits.worker_limit_origin),
        Line("reserve", f"{size(limits.reserve_bytes)} for everything else", limits.reserve_origin),
    )


def notes(found: Resolution) -> list[str]:
    """Sentences about what was asked for and does not do here what it says."""
    others = notes_on(found.limits.beside.others, on_gpu=found.on_gpu)
    return [*_memory_notes(found), *others, *_machine_notes(found)]


# --------------------------------------------------------------------------------------------------------------------
# Values and their origins


def _set_at(found: Resolution, key: str) -> str:
    """The place of a value that was set: `limits.vram (flag)`."""
    return f"{key} ({origin_of(key, found.origins)})"


def _device_lines(found: Resolution) -> Iterator[Line]:
    asked, gpu = found.asked.limits, found.gpu
    if gpu is not None:
        whole = "the GPU's memory" if gpu.total_bytes is None else size(gpu.total_bytes)
        of = f"{percent(asked.vram.fraction)} of {whole}" if isinstance(asked.vram, Share) else size(asked.vram)
        yield Line("worker VRAM", f"at most {of}", _set_at(found, "limits.vram"))
        if asked.gpu_temperature_c is not None:
            yield Line("GPU heat", f"{asked.gpu_temperature_c:g} °C", _set_at(found, "limits.gpu_temperature_c"))
        elif gpu.slowdown_c is not None:
            yield Line("GPU heat", f"below {gpu.slowdown_c:g} °C", "where it slows itself down (default)")
        else:
            yield Line("GPU heat", f"below {ASSUMED_SLOWDOWN_C:g} °C", "assumed, for the device names no limit (default)")
    if asked.cpu_temperature_c is not None:
        yield Line("CPU heat", f"{asked.cpu_temperature_c:g} °C", _set_at(found, "limits.cpu_temperature_c"))
    if asked.power_w is not None:
        yield Line("GPU power", f"{asked.power_w:g} W", _set_at(found, "limits.power_w"))


def _training_lines(found: Resolution) -> Iterator[Line]:
    row, training, cpus = TIERS[found.tier], found.settings.training, found.machine.cpus
    by_tier = f"tier {found.tier}"

    def origin(field: str, default: str) -> str:
        return default if getattr(found.asked.training, field) is None else _set_at(found, f"training.{field}")

    yield Line("effective batch", f"{training.effective_batch} samples a step, always", origin("effective_batch", by_tier))
    micro = f"{by_tier}: {row.rows} × {row.max_length}; moves to what is fastest and fits"
    to_begin_with = " to begin with" if training.tune else ""
    yield Line("micro-batch", f"{training.micro_tokens:,} tokens{to_begin_with}", origin("micro_tokens", micro))
    yield Line("longest text", f"{training.max_length} tokens", origin("max_length", by_tier))
    as_in_the_table = training.gradient_checkpointing is row.gradient_checkpointing
    checkpointing = by_tier if as_in_the_table else "one text would not fit without"
    yield Line(
        "activation checkpointing",
        _SWITCH[training.gradient_checkpointing],
        origin("gradient_checkpointing", checkpointing),
    )
    yield Line("mixed precision", f"{training.amp}", origin("amp", default_amp(found.asked, found.machine)[1]))
    if found.settings.lora.base_bits is not None:
        value = f"in {found.settings.lora.base_bits} bits each, rounded: what is learnt beside them is not quite the same"
        yield Line("frozen weights", value, _set_at(found, "lora.base_bits"))
    fastest = "" if training.threads else "the fastest number is found out by trying and "
    usable = f"usable CPUs ({found.machine.cpu_source}); {'' if found.on_gpu else fastest}kept for the run"
    yield Line("threads", f"{training.threads or f'at most {cpus}'}", origin("threads", usable))


def _lane_lines(found: Resolution) -> Iterator[Line]:
    training, lanes = found.settings.training, found.lanes
    if found.on_gpu:
        return
    if training.lanes is not None:
        yield Line("lanes", f"{training.lanes}", _set_at(found, "training.lanes"))
    elif lanes is None:
        yield Line("lanes", "as many as memory allows", "decided when the model is loaded (default)")
    elif lanes > 1:
        tokens = f" and {training.micro_tokens:,} tokens" if training.tune else ""
        value = f"{lanes}, each with half of the threads{tokens}"
        yield Line("lanes", value, "memory has room (default)")
    else:
        needed = f"a second needs an even number of threads, and {percent(MOST_FRACTION)} of the memory (default)"
        yield Line("lanes", f"{lanes}", needed)


def _needs_lines(found: Resolution) -> Iterator[Line]:
    needs = found.needs
    if found.asked.task.model is None:
        return
    if needs is None:
        why = "its folder does not tell, or it is at a hub"
        yield Line("memory needed", "not known before the model is loaded", why)
        return
    origin = f"estimated: {needs.shape.parameters / 1e6:,.3g} million parameters"
    if found.on_gpu:
        on_host = bool(found.settings.training.optimizer_on_host)
        held = size(device_bytes(needs.shape, amp=found.settings.training.amp or "off", optimizer_on_host=on_host))
        moments = f"the optimizer's {size(MOMENTS_BYTES * needs.shape.parameters)} on the host" if on_host else "optimizer"
        yield Line("memory needed", f"{held} of VRAM, and its activations", f"{origin}, with gradients and {moments}")
        return
    ranks = found.ranks
    value = f"about {size(ranks * needs.micro_batch_bytes)} to begin with, at least {size(ranks * needs.least_bytes)}"
    in_each = f", in each of {ranks} ranks" if ranks > 1 else ""
    if needs.shape.shared_by > 1:
        in_each += ", which share the weights"
    yield Line("memory needed", value, f"{origin}; {needs.rows} × {needs.length} tokens, and one text{in_each}")


# --------------------------------------------------------------------------------------------------------------------
# What does not do here what it says


def _memory_notes(found: Resolution) -> Iterator[str]:
    machine, limits = found.machine, found.limits
    if ORDER.index(found.tier) > ORDER.index(found.earned):
        yield (
            f"Tier {found.tier} was asked for, but this machine earns {found.earned}: {found.earned_reason}. "
            "Micro-batches will shrink."
        )
    vram, gpu = found.asked.limits.vram, found.gpu
    if gpu is not None and gpu.total_bytes is not None and not isinstance(vram, Share) and vram > gpu.total_bytes:
        yield f"limits.vram asks for {size(vram)}, more than the {size(gpu.total_bytes)} there are."
    asked = bytes_of(found.asked.limits.ram, machine.ram_total_bytes)
    if asked > machine.ram_total_bytes:
        yield f"limits.ram asks for {size(asked)}, more than there is; the limit is {size(limits.worker_limit_bytes)}."
    free = machine.ram_available_bytes
    if free is not None and free - limits.reserve_bytes < WORKER_NEEDS_BYTES:
        yield (
            f"Only {size(free)} RAM are free now, and the reserve is {size(limits.reserve_bytes)}: "
            "training will hold until others give memory back (memsup check names the largest users)."
        )


def _machine_notes(found: Resolution) -> Iterator[str]:
    machine, training = found.machine, found.asked.training
    if machine.ends_with_ssh:
        yield (
            "This is a login by ssh, and your account does not linger: systemd ends the run when your last login ends. "
            "So that it goes on: loginctl enable-linger"
        )
    if training.device.startswith("cuda") and not machine.gpus:
        yield f"training.device is {training.device}, but no GPU was seen ({machine.gpu_note or 'there is none'})."
    if training.threads is not None and training.threads > machine.cpus:
        yield (
            f"training.threads is {training.threads}, but only {machine.cpus} CPUs can be used: "
            "they will get in each other's way."
        )
    threads, lanes = training.threads or machine.cpus, training.lanes or 1
    if threads % lanes:
        yield f"training.lanes is {lanes}, which does not divide {threads} threads: one lane is used."
