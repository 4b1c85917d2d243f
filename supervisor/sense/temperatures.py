"""CPU and board temperatures, from the kernel's hwmon files (kernel docs, hwmon/sysfs-interface: millidegrees).

Covers finding the sensors once, reading them again and again through kept descriptors, and which limits follow for them. psutil
reads the same files but opens each of them every time. A sensor that is missing, absurd or never moves is unknown; one that
takes long to read (some firmware answers slowly) is left out, since the loop that reads it has more urgent work. GPUs are
`gpu/`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from memsup.shared.clock import monotonic_s
from memsup.supervisor.decide.heat import HeatSource
from memsup.supervisor.decide.readings import TemperatureReading
from memsup.supervisor.decide.stuck_sensor import StuckSensorWatch
from memsup.supervisor.decide.thresholds import PACE_BELOW_C, HeatLimits, heat_limits
from memsup.supervisor.decide.uses import HOLD_BELOW_C
from memsup.supervisor.kernel.kernel_file import KernelFile, number_of, text_of

SLOW_READ_S = 0.01
SLOW_READS = 3
"""A sensor that took longer than this so many times in a row is read no more."""
CPU_CHIPS = ("coretemp", "k10temp", "k8temp", "zenpower", "fam15h_power", "cpu_thermal", "cpu", "soc_thermal", "x86_pkg_temp")
CRITICAL_PACE_BELOW_C = 3.0
"""Pacing begins this much below the critical temperature: CPUs are made to run right up to it (a Ryzen 7000 sits at 95 by
design), so nothing is done before, and nothing at all where the sensor names no critical temperature and the user no limit.
Boards are watched as well: one reset its machine at 95 °C while its GPU was at 80."""
_LEAST_LIMIT_C, _MOST_C = 40.0, 150.0


@dataclass(slots=True)
class _Sensor:
    name: str
    file: KernelFile
    high_c: float | None
    critical_c: float | None
    watch: StuckSensorWatch
    slow_reads: int = 0
    is_seen: bool = False
    """Whether it has told a temperature once."""


class TemperatureSensors:
    """Every sensor of this machine; it may have none. `root` is where `/sys` and `/proc` are found."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._sensors = list(_find(root))
        self._use = _CpuUse(root)
        self.left_out: list[str] = []
        """The names of sensors that are too slow to be read."""

    def read(self, now_s: float) -> tuple[TemperatureReading, ...]:
        """Reads every sensor that is not left out. Takes some 10 µs for each."""
        if not self._sensors:
            return ()
        use = self._use.since_last_time()
        return tuple(self._read(sensor, now_s, use) for sensor in list(self._sensors))

    @property
    def cpu_use(self) -> float | None:
        """The part of all CPUs in use between the last two readings, 0 to 1. It is None where that is not known."""
        return self._use.fraction

    def _read(self, sensor: _Sensor, now_s: float, use: float | None) -> TemperatureReading:
        began_s = monotonic_s()
        celsius = _sensible(sensor.file.number() if sensor.file.read() else None, 0.0)
        sensor.slow_reads = sensor.slow_reads + 1 if monotonic_s() - began_s > SLOW_READ_S else 0
        if sensor.slow_reads >= SLOW_READS:
            self._sensors.remove(sensor)
            sensor.file.close()
            self.left_out.append(sensor.name)
        if not sensor.is_seen and celsius is not None:
            sensor.is_seen = True
            if sensor.critical_c is not None and celsius >= sensor.critical_c and not _is_of_cpu(sensor.name):
                sensor.critical_c = None  # the machine runs all the same, so it is not what it says
        if not sensor.watch.trusts(now_s, celsius, use):
            celsius = None
        return TemperatureReading(
            at_s=now_s, name=sensor.name, celsius=celsius, high_c=sensor.high_c, critical_c=sensor.critical_c
        )


def sensor_limits(reading: TemperatureReading, chosen_c: float | None) -> HeatLimits | None:
    """The temperatures at which to act for a sensor: its own critical one, and for a CPU's also what the user has chosen.
    Returns None where nothing is done about this sensor.

    `high` is not used: k10temp called 70 high for years, and laptops name there what they run at all day.
    """
    if chosen_c is not None and _is_of_cpu(reading.name):
        return heat_limits((reading.critical_c or chosen_c) + HOLD_BELOW_C, chosen_c)  # never past the critical one
    if reading.critical_c is None:
        return None
    return heat_limits(reading.critical_c - CRITICAL_PACE_BELOW_C + PACE_BELOW_C)


def sensor_sources(
    readings: Iterable[TemperatureReading], cpu_use: float | None, chosen_c: float | None = None
) -> list[HeatSource]:
    """The sources of heat that are to be kept cool besides GPUs. `chosen_c` is the user's `limits.cpu_temperature_c`.

    What a sensor of the board measures may come from anything, so the CPU's use says nothing of it; and one of which nothing is
    known, since it has never moved, keeps nothing back.
    """
    sources = []
    for reading in readings:
        limits, of_cpu = sensor_limits(reading, chosen_c), _is_of_cpu(reading.name)
        if limits is not None and (of_cpu or reading.celsius is not None):
            heat = cpu_use if of_cpu else None
            sources.append(HeatSource(name=reading.name, temperature_c=reading.celsius, limits=limits, heat=heat))
    return sources


def _is_of_cpu(name: str) -> bool:
    return name.split(" ", 1)[0].startswith(CPU_CHIPS)


# --------------------------------------------------------------------------------------------------------------------
# The files


class _CpuUse:
    """The use of all CPUs, from the ticks in the first line of /proc/stat (proc_stat(5))."""

    def __init__(self, root: Path) -> None:
        self._file = KernelFile(root / "proc/stat", size_bytes=256)
        self._busy = self._all = 0
        self.fraction: float | None = None

    def since_last_time(self) -> float | None:
        if not self._file.read():
            self.fraction = None
            return None
        words = self._file.text().split("\n", 1)[0].split()
        ticks = [int(word) for word in words[1:9] if word.isdigit()]
        if words[:1] != ["cpu"] or len(ticks) < 5:
            self.fraction = None
            return None
        everything, busy = sum(ticks), sum(ticks) - ticks[3] - ticks[4]  # without idle and iowait
        passed = everything - self._all
        self.fraction = min(1.0, max(0.0, (busy - self._busy) / passed)) if self._all and passed > 0 else None
        self._busy, self._all = busy, everything
        return self.fraction


def _find(root: Path) -> Iterable[_Sensor]:
    """The sensors, each by a name of its own: of two sockets, or two disks, the second is `k10temp Tctl (2)`."""
    named: Counter[str] = Counter()
    for chip_folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = text_of(chip_folder / "name") or chip_folder.name
        for file in sorted(chip_folder.glob("temp*_input")):
            stem = file.name.removesuffix("_input")
            label = text_of(chip_folder / f"{stem}_label") or stem
            name = f"{chip} {label}"
            named[name] += 1
            yield _Sensor(
                name=name if named[name] == 1 else f"{name} ({named[name]})",
                file=KernelFile(file, size_bytes=64),
                high_c=_sensible(number_of(chip_folder / f"{stem}_max"), _LEAST_LIMIT_C),
                critical_c=_sensible(number_of(chip_folder / f"{stem}_crit"), _LEAST_LIMIT_C),
                watch=StuckSensorWatch(),
            )


def _sensible(millidegrees: int | None, least_c: float) -> float | None:
    """The temperature in °C. Returns None for what no chip survives or no limit can be: 0, -128 and 65261.85 mean that a sensor
    is not connected.
    """
    celsius = None if millidegrees is None else millidegrees / 1000
    return celsius if celsius is not None and least_c < celsius < _MOST_C else None
