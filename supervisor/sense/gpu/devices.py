"""What a probe's answers say, as readings; which GPUs are the worker's; what of them concerns heat and power limits. Pure.

What a driver says is doubted here: a temperature of 0 or 4,000 °C, more memory free than there is and power beyond any supply
count as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from msgspec.structs import replace

from memsup.supervisor.decide.heat import HeatSource
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.decide.thresholds import device_limits, heat_limits
from memsup.supervisor.sense.gpu.frames import Device

XID_LOST = 79
XIDS = {
    13: "a fault in what was computed",
    31: "a fault in what was computed: memory that is not its own",
    43: "a fault in what was computed stopped it",
    45: "its work was cleaned up after an earlier error",
    48: "an uncorrectable memory error",
    62: "its own controller halted",
    63: "a bad page of memory was retired",
    74: "an error of NVLink",
    XID_LOST: "it has fallen off the bus: power, seating or heat; only a reboot brings it back",
    94: "an uncorrectable memory error, contained in one program",
    95: "an uncorrectable memory error",
    119: "its firmware does not answer; a reboot helps",
}
"""What the driver's error numbers mean, the usual ones (https://docs.nvidia.com/deploy/xid-errors)."""
_BF16_SINCE = (8, 0)
"""The compute capability of the first devices that multiply bfloat16, and TF32, in hardware: Ampere's."""
_HOTTEST_C = 150.0
_MOST_POWER_W = 5000.0
_MOST_MEMORY_BYTES = 1 << 50


def reading_of(
    device: Device, at_s: float, *, fully: bool, worker_pids: Collection[int] = (), before: GpuReading | None = None
) -> GpuReading:
    """The reading that `device` makes. After a look at memory alone (not `fully`), everything else is as it was `before`.

    Memory of the worker is None where the driver names no processes, or none of them is the worker's (in a container the
    driver's process numbers are the host's).
    """
    if device.lost:
        return _lost(device, at_s, before)
    total, used = _memory(device)
    if not fully and before is not None:
        worker = _workers_share(device, worker_pids)
        return replace(before, at_s=at_s, total_bytes=total, used_bytes=used, worker_bytes=worker)
    temperature = _between(device.temperature_c, 0.0, _HOTTEST_C)
    limits = device_limits(
        temperature_c=temperature,
        margin_c=device.margin_c,
        slowdown_margin_c=device.slowdown_margin_c,
        shutdown_margin_c=device.shutdown_margin_c,
        slowdown_threshold_c=device.slowdown_threshold_c,
        shutdown_threshold_c=device.shutdown_threshold_c,
    )
    return GpuReading(
        at_s=at_s,
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        bf16=None if device.compute_capability is None else device.compute_capability >= _BF16_SINCE,
        total_bytes=total,
        used_bytes=used,
        worker_bytes=_workers_share(device, worker_pids),
        temperature_c=temperature,
        slowdown_c=limits.slowdown_c,
        shutdown_c=limits.shutdown_c,
        power_w=_between(device.power_w, 0.0, _MOST_POWER_W),
        power_limit_w=_between(device.power_limit_w, 0.0, _MOST_POWER_W),
        power_default_w=_between(device.power_default_w, 0.0, _MOST_POWER_W),
        slowed_by_heat=device.slowed_by_heat,
        lost=XID_LOST in device.xids or (before is not None and before.lost and total is None),
    )


def holders_of(devices: Iterable[Device], worker_pids: Collection[int]) -> dict[int, int | None] | None:
    """What each of the worker's processes holds on all devices together; None where the driver does not tell how much. Returns
    None where a device does not name its processes.
    """
    held: dict[int, int | None] = {}
    for device in devices:
        if device.processes is None:
            return None
        for pid, size in device.processes:
            if pid in worker_pids:
                known, before = size is not None and 0 <= size <= (device.total_bytes or 0), held.get(pid, 0)
                held[pid] = before + (size or 0) if known and before is not None else None
    return held


def unknown(reading: GpuReading) -> GpuReading:
    """The same device, of which nothing is known just now."""
    return GpuReading(
        at_s=reading.at_s,
        index=reading.index,
        uuid=reading.uuid,
        name=reading.name,
        bf16=reading.bf16,
        total_bytes=reading.total_bytes,
        power_default_w=reading.power_default_w,
        lost=reading.lost,
    )


def of_worker(
    readings: Iterable[GpuReading], visible: str | None, *, named: Collection[str] = (), before: Iterable[GpuReading] = ()
) -> tuple[GpuReading, ...]:
    """The GPUs that the worker computes on: where it has memory, or its ranks say that they compute (`named`, UUIDs), else
    those that `CUDA_VISIBLE_DEVICES` names, else all. One that was among them `before` and is lost is still among them, though
    it has nobody's memory any more.

    CUDA's numbers are not the driver's (it puts the fastest first), so that a number tells nothing where there are several.
    """
    everything = tuple(readings)
    earlier = {gpu.index for gpu in before}
    own = tuple(gpu for gpu in everything if gpu.worker_bytes or gpu.uuid in named or (gpu.lost and gpu.index in earlier))
    if own or len(everything) < 2 or visible is None:
        return own or everything
    names = [name.strip() for name in visible.split(",") if name.strip()]
    of_names = tuple(gpu for gpu in everything if gpu.uuid and any(_names(name, gpu.uuid) for name in names))
    return of_names or everything


def heat_sources(gpus: Iterable[GpuReading], chosen_c: float | None = None) -> list[HeatSource]:
    """The sources of heat that are to be kept cool. `chosen_c` is the user's `limits.gpu_temperature_c`."""
    return [
        HeatSource(
            name=f"GPU {gpu.index}",
            temperature_c=gpu.temperature_c,
            limits=heat_limits(gpu.slowdown_c, chosen_c),
            heat=gpu.power_w,
            slowed=gpu.slowed_by_heat,
            cappable=gpu.power_default_w is not None,
        )
        for gpu in gpus
    ]


def power_limits(gpus: Iterable[GpuReading], power_fraction: float = 1.0, chosen_w: float | None = None) -> dict[str, float]:
    """The power limits to be set (UUID → watts): the smaller of the user's `limits.power_w` and the heat control's part."""
    limits = {}
    for gpu in gpus:
        wanted = [chosen_w] if chosen_w is not None else []
        if power_fraction < 1.0 and gpu.power_default_w is not None:
            wanted.append(power_fraction * gpu.power_default_w)
        if wanted and gpu.uuid is not None:
            limits[gpu.uuid] = min(wanted)
    return limits


def _names(name: str, uuid: str) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` names the device: CUDA takes any unambiguous beginning of a UUID."""
    return bool(re.fullmatch(r"(GPU|MIG)-[0-9a-fA-F-]+", name)) and uuid.lower().startswith(name.lower())


def _lost(device: Device, at_s: float, before: GpuReading | None) -> GpuReading:
    known = before or GpuReading(at_s=at_s, index=device.index, uuid=device.uuid, name=device.name)
    return replace(unknown(known), at_s=at_s, lost=True)


def _memory(device: Device) -> tuple[int | None, int | None]:
    total, free = device.total_bytes, device.free_bytes
    if total is None or not 0 < total < _MOST_MEMORY_BYTES:
        return None, None
    return total, total - free if free is not None and 0 <= free <= total else None


def _workers_share(device: Device, worker_pids: Collection[int]) -> int | None:
    shares = [size for pid, size in device.processes or () if pid in worker_pids]
    known = [size for size in shares if size is not None and 0 <= size <= (device.total_bytes or 0)]
    return sum(known) if known and len(known) == len(shares) else None


def _between(value: float | None, low: float, high: float) -> float | None:
    """The value. Returns None unless low < value < high."""
    return value if value is not None and low < value < high else None
