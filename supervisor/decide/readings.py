"""What the sensors saw, as values: the words in which `sense/`, what decides, the ledger and the black box talk.

A field that is None is not known, which is neither fine nor zero. Nothing here reads anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.readings import KnownGpu, KnownMemory


class MemoryReading(KnownMemory, frozen=True, kw_only=True):
    """Host memory at one instant (`at_s`, monotonic)."""

    at_s: float
    swap_free_bytes: int | None = None
    pressure_fraction: float | None = None
    """The share of the time since the last reading in which some process of the machine waited for memory (PSI `some`)."""
    worker_pressure_fraction: float | None = None
    """That share within the fence's cgroup. It is None where that has no PSI file."""
    fence_oom_kills: int | None = None
    """Processes that the kernel killed inside the fence since the fence was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReading:
    """Free space where the run's state lies, at `at_s` (monotonic)."""

    at_s: float
    free_bytes: int | None = None


class GpuReading(KnownGpu, frozen=True, kw_only=True):
    """One GPU as its probe saw it at `at_s` (monotonic)."""

    at_s: float
    uuid: str | None = None
    bf16: bool | None = None
    """Whether it multiplies bfloat16 numbers in hardware."""
    worker_bytes: int | None = None
    """The memory that the worker's own processes hold."""
    shutdown_c: float | None = None
    """The temperature at which the device switches itself off, as it says itself."""
    power_limit_w: float | None = None
    power_default_w: float | None = None
    """The power limit that the device comes with."""
    slowed_by_heat: bool | None = None
    """Whether its hardware holds its clocks down because of heat now."""
    lost: bool = False
    """Whether the device has fallen off the bus (NVML_ERROR_GPU_IS_LOST, Xid 79)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureReading:
    """A sensor of the CPU or the board (hwmon) at `at_s` (monotonic)."""

    at_s: float
    name: str
    celsius: float | None = None
    high_c: float | None = None
    critical_c: float | None = None


def limit_c(reading: TemperatureReading) -> float | None:
    """What is shown as the sensor's limit: its critical temperature, else what it calls high. Returns None where it names
    neither.

    The critical one comes first since *high* says little: k10temp called 70 high for years, and laptops name there what they
    run at all day.
    """
    return reading.critical_c if reading.critical_c is not None else reading.high_c


THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine has. A field that is None is not known; an empty tuple means that there is none (`gpu_note` says why
    there are no GPUs).
    """

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
    """Whether the CPU multiplies bfloat16 numbers in hardware."""
    gpus: tuple[GpuReading, ...] = ()
    gpu_note: str | None = None
    visible_gpus: str | None = None
    """What `CUDA_VISIBLE_DEVICES` says. It is None where it says nothing, so that all are for torch."""
    temperatures: tuple[TemperatureReading, ...] = ()
    disk_free_bytes: int | None = None
    """What this user may still write where the run's state lies."""
    kernel: str | None = None
    is_wsl: bool = False
    has_own_pids: bool = False
    """Whether processes have other numbers here than the kernel itself, and so a driver, knows them by, as in a container."""
    on_battery: bool | None = None
    """Whether the machine runs on its battery. It is None where the machine has none."""
    can_sleep: bool | None = None
    """Whether the kernel can suspend this machine."""
    ends_with_ssh: bool = False
    """Whether this is a login by ssh, with the last of which systemd ends what this user runs."""
