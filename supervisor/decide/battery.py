"""Mains or battery: what the kernel says (sysfs-class-power), and the hold while a laptop runs on its battery.

A laptop that is unplugged at night would be empty, and off, within an hour or two of training. The reading is I/O, the decision
pure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from memsup.supervisor.kernel.kernel_file import KeptFile

HOLD_AFTER_S = 10.0
"""A plug that is pulled and put back costs nothing."""
RESUME_AFTER_S = 30.0


class PowerSupply:
    """`on_battery()`; None where there is no battery or it does not say. `root` is where `/sys` is found."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._batteries: list[KeptFile] = []
        self._mains: list[KeptFile] = []
        for supply in sorted((root / "sys/class/power_supply").glob("*")):
            kind = _word(supply / "type")
            if kind == "Battery" and _word(supply / "scope") != "Device":  # a mouse's battery says nothing about the machine
                self._batteries.append(KeptFile(supply / "status", size_bytes=64))
            elif kind in ("Mains", "USB"):
                self._mains.append(KeptFile(supply / "online", size_bytes=64))

    def on_battery(self) -> bool | None:
        plugged = [file.number() for file in self._mains if file.read()]
        states = [file.text().strip() for file in self._batteries if file.read()]
        if not states:
            return None
        return "Discharging" in states and 1 not in plugged


@dataclass
class BatteryControl:
    """Whether to hold because of the battery. Unknown changes nothing."""

    holding: bool = False
    _other_since_s: float | None = None

    def step(self, now_s: float, on_battery: bool | None) -> bool:
        if on_battery is None or on_battery is self.holding:
            self._other_since_s = None
        elif self._other_since_s is None:
            self._other_since_s = now_s
        elif now_s - self._other_since_s >= (HOLD_AFTER_S if on_battery else RESUME_AFTER_S):
            self.holding, self._other_since_s = on_battery, None
        return self.holding


def _word(file: Path) -> str | None:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 64).decode(errors="replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)
