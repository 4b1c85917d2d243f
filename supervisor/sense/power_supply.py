"""Mains or battery, as the kernel says it (sysfs-class-power). What follows is decided in `decide/battery.py`."""

from __future__ import annotations

from pathlib import Path

from memsup.supervisor.kernel.kernel_file import KernelFile, text_of


class PowerSupply:
    """What the machine runs on. `root` is where `/sys` is found."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._batteries: list[KernelFile] = []
        self._mains: list[KernelFile] = []
        for supply in sorted((root / "sys/class/power_supply").glob("*")):
            kind = text_of(supply / "type")
            if kind == "Battery" and text_of(supply / "scope") != "Device":  # a mouse's battery says nothing about the machine
                self._batteries.append(KernelFile(supply / "status", size_bytes=64))
            elif kind in ("Mains", "USB"):
                self._mains.append(KernelFile(supply / "online", size_bytes=64))

    def on_battery(self) -> bool | None:
        plugged = [file.number() for file in self._mains if file.read()]
        states = [file.text().strip() for file in self._batteries if file.read()]
        if not states:
            return None
        return "Discharging" in states and 1 not in plugged
