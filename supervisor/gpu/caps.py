"""Power limits that the probe has lowered, and the promise to give back what was there before.

The original limit is on disk before it is changed, so that whoever starts next can restore it when this process was killed:
the driver itself keeps a limit until the machine or the driver restarts. Runs in the probe alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pynvml  # type: ignore[import-untyped]

from memsup.shared.files import replace_file
from memsup.supervisor.gpu.frames import Cap, Capped

_SAME_MW = 1000
"""A driver may round a limit; one that differs by more was set by somebody else, who is not overruled."""


class Lowered(msgspec.Struct):
    original_mw: int
    ours_mw: int


class Record(msgspec.Struct):
    boot: str
    """Limits do not survive a boot, so a record of another boot is void."""
    devices: dict[str, Lowered] = {}


class PowerCaps:
    def __init__(self, file: Path | None) -> None:
        """`file` is the record; without one nothing is ever capped."""
        self._file = file
        self._record = _read(file)

    def apply(self, wanted: Cap, handles: dict[str, object]) -> Capped:
        """Makes the devices' limits what `wanted` says, never higher than they were; all others get theirs back."""
        for uuid in [uuid for uuid in self._record.devices if uuid not in wanted.watts]:
            self._restore(uuid, handles)
        in_force: dict[str, float] = {}
        refused: dict[str, str] = {}
        for uuid, watts in wanted.watts.items():
            if uuid not in handles:
                refused[uuid] = "there is no such GPU"
                continue
            try:
                in_force[uuid], why = self._lower(uuid, handles[uuid], watts)
                if why:
                    refused[uuid] = why
            except pynvml.NVMLError as error:
                refused[uuid] = str(error)
            except OSError as error:
                refused[uuid] = f"its own limit cannot be recorded first ({error.strerror})"
        return Capped(ask_id=wanted.ask_id, watts=in_force, refused=refused)

    def restore_all(self, handles: dict[str, object]) -> None:
        """Gives back every limit that this or an earlier probe lowered. One that fails stays on record for the next start."""
        for uuid in list(self._record.devices):
            self._restore(uuid, handles)

    def _lower(self, uuid: str, handle: object, watts: float) -> tuple[float, str | None]:
        if self._file is None:
            raise OSError(0, "there is no state folder")
        now_mw = int(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
        known = self._record.devices.get(uuid)
        original_mw = known.original_mw if known else now_mw
        least_mw, _ = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        target_mw = min(original_mw, max(int(least_mw), round(watts * 1000)))
        if target_mw != now_mw:
            self._record.devices[uuid] = Lowered(original_mw=original_mw, ours_mw=target_mw)
            self._write()
            try:
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, target_mw)
            except pynvml.NVMLError:
                self._record.devices[uuid].ours_mw = now_mw  # so that restoring knows it again, or forgets it
                if not known:
                    del self._record.devices[uuid]
                self._write()
                raise
        if target_mw > round(watts * 1000):
            return target_mw / 1000, f"{target_mw / 1000:.0f} W is the least it can be set to"
        return target_mw / 1000, None

    def _restore(self, uuid: str, handles: dict[str, object]) -> None:
        lowered = self._record.devices[uuid]
        if uuid not in handles:
            return
        try:
            now_mw = int(pynvml.nvmlDeviceGetPowerManagementLimit(handles[uuid]))
            if abs(now_mw - lowered.ours_mw) <= _SAME_MW:
                pynvml.nvmlDeviceSetPowerManagementLimit(handles[uuid], lowered.original_mw)
            del self._record.devices[uuid]
            self._write()
        except (pynvml.NVMLError, OSError):
            pass  # stays on record

    def _write(self) -> None:
        if self._file is None:
            return
        if self._record.devices:
            replace_file(self._file, msgspec.json.encode(self._record))
        else:
            self._file.unlink(missing_ok=True)


def _read(file: Path | None) -> Record:
    boot = _boot_id()
    try:
        if file is not None:
            record = msgspec.json.decode(file.read_bytes(), type=Record)
            if record.boot == boot:
                return record
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        pass
    return Record(boot=boot)


def _boot_id() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode("ascii").strip()
    finally:
        os.close(fd)
