"""A fake NVML library for tests: `build` compiles it, `FakeNvml` drives its devices and their faults through a mapped file.

The product is not told: it finds the library as it finds NVIDIA's. The layout below is that of `fake_nvml.c`.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this is imported by processes that are no test
    import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
UNSUPPORTED = -1e6
MAGIC = 0x6D656D7375703131
MOST_DEVICES = 4
MOST_PROCESSES = 8


class Fault(enum.IntEnum):
    NONE = 0
    LOST = 1
    HANG = 2
    CRASH = 3
    GARBAGE = 4
    FROZEN = 5
    ERROR = 6


def _doubles(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_double) for name in names.split()]


class Process(ctypes.Structure):
    _fields_ = _doubles("pid bytes")


class Device(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 64),
        ("uuid", ctypes.c_char * 64),
        *_doubles("fault slowdown_c shutdown_c max_operating_c limit_c slowdown_margin_c shutdown_margin_c"),
        *_doubles("has_temperature has_power has_processes has_old_temperature_only"),
        *_doubles("compute_capability total_bytes others_bytes worker_bytes worker_pid counts_processes frees_of_dead"),
        ("processes", Process * MOST_PROCESSES),
        *_doubles("ambient_c ambient_c_per_h duty idle_w full_w degrees_per_w cooler_s die_s die_fraction noise_c"),
        *_doubles("power_limit_w power_least_w power_default_w may_cap xid ecc_errors"),
        *_doubles("cooler_c die_c at_s slowdowns frozen_c power_sets"),
    ]

    @property
    def celsius(self) -> float:
        """The model's own temperature, before noise and rounding."""
        return float(self.cooler_c + self.die_c)


class Control(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        *_doubles("clock_s speed devices init_result init_hangs opens calls random"),
        ("device", Device * MOST_DEVICES),
    ]


GEFORCE = {
    "name": b"NVIDIA GeForce RTX 3080",
    "slowdown_c": 95,
    "shutdown_c": 98,
    "max_operating_c": 93,
    "limit_c": UNSUPPORTED,
    "slowdown_margin_c": UNSUPPORTED,
    "shutdown_margin_c": UNSUPPORTED,
    "has_temperature": 1,
    "has_power": 1,
    "has_processes": 1,
    "compute_capability": 8.6,
    "total_bytes": 10 << 30,
    "others_bytes": 512 << 20,
    "ambient_c": 30,
    "idle_w": 25,
    "full_w": 320,
    "degrees_per_w": 0.22,
    "cooler_s": 90,
    "die_s": 2,
    "die_fraction": 0.15,
    "noise_c": 0.3,
    "power_limit_w": 320,
    "power_least_w": 100,
    "power_default_w": 320,
    "may_cap": 1,
}


class FakeNvml:
    """The devices, as the library sees them. Its own time stands still until `clock_s` is moved, unless it is below 0."""

    def __init__(self, library_folder: Path, control_file: Path, devices: int = 1) -> None:
        self._library_folder, self._file = library_folder, control_file
        control_file.write_bytes(bytes(ctypes.sizeof(Control)))
        with control_file.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._map)
        self.control.clock_s, self.control.speed, self.control.devices, self.control.random = -1, 1, devices, 4711
        for index in range(devices):
            self.set(index, uuid=f"GPU-{index:08x}-0000-4000-8000-000000000000".encode(), **GEFORCE)
        self.control.magic = MAGIC

    def __getitem__(self, index: int) -> Device:
        device: Device = self.control.device[index]
        return device

    def set(self, index: int = 0, **values: object) -> None:
        for name, value in values.items():
            setattr(self.control.device[index], name, value)

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to find this library instead of NVIDIA's."""
        return {"LD_LIBRARY_PATH": str(self._library_folder), "FAKE_NVML": str(self._file)}


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, *, devices: int = 1) -> FakeNvml:
    """The library, made in `folder`, that every process below the test finds. The test is skipped where it cannot be made."""
    import pytest

    if compiler() is None:
        pytest.skip("NOT RUN: no C compiler (cc) to build the NVML library")
    (folder / "lib").mkdir()
    fake = FakeNvml(build(folder / "lib"), folder / "control", devices=devices)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


def attach(control_file: str) -> Control:
    """The devices of a library that another process drives."""
    with open(control_file, "r+b") as file:
        return Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(Control)))


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def build(folder: Path, *extra: str) -> Path:
    """Compiles the library into `folder`, which is what LD_LIBRARY_PATH must name. Raises `subprocess.CalledProcessError`."""
    return compiled(SOURCE, folder / "libnvidia-ml.so.1", "-lm", *extra)


def compiled(source: Path, library: Path, *options: str) -> Path:
    """Makes a library of one file in C; returns its folder. Raises `subprocess.CalledProcessError`."""
    cc = compiler()
    assert cc is not None
    command = [cc, "-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(source)]
    subprocess.run([*command, *options], check=True)
    return library.parent
