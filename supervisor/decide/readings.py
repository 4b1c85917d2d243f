"""What the sensors saw, as values: the words in which `memory.py`, `ladder.py`, the ledger and the black box talk.

Every field may be None: unknown, which is neither fine nor zero. Nothing here reads anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """Host memory at one instant (`at_s`, monotonic)."""

    at_s: float
    ram_total_bytes: int | None = None
    """What this process may use: the smallest of the machine's RAM and every enclosing cgroup's limit."""
    ram_available_bytes: int | None = None
    """The smallest of MemAvailable and what is left, page cache not counted, in every enclosing cgroup."""
    swap_free_bytes: int | None = None
    worker_bytes: int | None = None
    """Memory that only the death of the worker's tree would give back (anonymous and shared, no page cache)."""
    pressure_fraction: float | None = None
    """Share of the time since the last reading in which some process of the machine waited for memory (PSI `some`)."""
    worker_pressure_fraction: float | None = None
    """The same within the fence's cgroup, where it has a PSI file."""
    fence_oom_kills: int | None = None
    """Processes that the kernel killed inside the fence since the fence was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReading:
    """Free space where the run's state lies."""

    at_s: float
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU as its probe saw it at `at_s`."""

    at_s: float
    index: int
    uuid: str | None = None
    name: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    worker_bytes: int | None = None
    """The share of the worker's own processes."""
    temperature_c: float | None = None
    slowdown_c: float | None = None
    """Where the device slows itself down, from the device."""
    shutdown_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    """The limit that the device comes with."""
    slowed_by_heat: bool | None = None
    """Its hardware holds its clocks down because of heat now."""
    lost: bool = False
    """Fallen off the bus (NVML_ERROR_GPU_IS_LOST, Xid 79)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureReading:
    """A CPU or board sensor (hwmon)."""

    at_s: float
    name: str
    celsius: float | None = None
    high_c: float | None = None
    critical_c: float | None = None


THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """None: not known. An empty tuple: looked, and there is none (`gpu_note` says why there are no GPUs)."""

    ram_total_bytes: int
    """What this process may use: the smallest of the machine's RAM and every enclosing cgroup's limit."""
    ram_available_bytes: int | None
    """The smallest of MemAvailable and what is left, page cache not counted, in every enclosing cgroup."""
    machine_ram_bytes: int | None = None
    """All RAM of the machine, whatever a cgroup allows."""
    ram_source: str = THIS_MACHINE
    """Where `ram_total_bytes` comes from: "this machine", or "cgroup NAME"."""
    cgroup_limits: tuple[tuple[str, int], ...] = ()
    """Every enclosing cgroup that allows less than the machine has: its name and its bytes, innermost first."""
    swap_total_bytes: int | None = None
    cpus: int = 1
    """CPUs that can be kept busy: those this process may run on, or the whole part of a cgroup's quota."""
    cpu_source: str = THIS_MACHINE
    cpu_model: str | None = None
    cpu_bf16: bool | None = None
    """The CPU multiplies bfloat16 numbers in hardware."""
    gpus: tuple[GpuReading, ...] = ()
    gpu_note: str | None = None
    temperatures: tuple[TemperatureReading, ...] = ()
    disk_free_bytes: int | None = None
    """Where the run's state lies, for this user."""
    kernel: str | None = None
    is_wsl: bool = False
    on_battery: bool | None = None
    """None where there is no battery."""
    can_sleep: bool | None = None
    """The kernel can suspend this machine."""
    ends_with_ssh: bool = False
    """This is a login by ssh, and with the last of them systemd ends what this user runs."""
