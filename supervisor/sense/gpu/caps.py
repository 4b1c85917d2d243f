"""Power limits that probes have lowered, and the promise to give back what was there before.

The original limit is on disk before it is changed, so that whoever starts next can restore it when this process was killed:
the driver itself keeps a limit until the machine or the driver restarts. All runs share one record, since they may share a
device: the lowest limit that a living probe wants is in force, and the last one to leave restores the original. Runs in the
probe alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import pynvml  # type: ignore[import-untyped]

from memsup.shared.files import UnreadableError, read_document, replace_file
from memsup.supervisor.sense.gpu.frames import Cap, Capped

_SAME_MW = 1000
"""A driver may round a limit; one that differs by more was set by somebody else, who is not overruled."""


class Lowered(msgspec.Struct):
    original_mw: int
    ours_mw: list[int]
    """The limits that memsup has set: two while one is being changed."""
    wanted_mw: dict[str, int] = {}
    """The limit that each living probe wants, by its `_identity`."""


class Record(msgspec.Struct):
    boot: str
    """The boot that the record is of: limits do not survive one, so a record of another boot is void."""
    devices: dict[str, Lowered] = {}


class PowerCaps:
    def __init__(self, file: Path | None) -> None:
        """`file` is the record. None means that nothing is ever capped."""
        self._file = file
        self._me = _identity(os.getpid()) or str(os.getpid())

    def apply(self, wanted: Cap, handles: dict[str, object]) -> Capped:
        """Makes the devices' limits what `wanted` says, never higher than they were; all others get theirs back."""
        in_force: dict[str, float] = {}
        refused = {uuid: "there is no such GPU" for uuid in wanted.watts if uuid not in handles}
        denied = False
        try:
            with self._record() as record:
                self._give_back(record, handles, keep=wanted.watts.keys())
                for uuid, watts in wanted.watts.items():
                    if uuid in refused:
                        continue
                    try:
                        in_force[uuid], why = self._lower(record, uuid, handles[uuid], watts)
                        if why:
                            refused[uuid] = why
                    except pynvml.NVMLError as error:
                        refused[uuid] = str(error)
                        denied = denied or error.value == pynvml.NVML_ERROR_NO_PERMISSION
        except OSError as error:
            denied = denied or isinstance(error, PermissionError)
            for uuid in wanted.watts.keys() - in_force.keys():
                refused.setdefault(uuid, f"its own limit cannot be recorded first ({error.strerror})")
        return Capped(ask_id=wanted.ask_id, watts=in_force, refused=refused, denied=denied)

    def restore_all(self, handles: dict[str, object]) -> None:
        """Gives back every limit that this probe or a dead one lowered. One that fails stays on record for the next start."""
        if self._file is not None and self._file.exists():
            with contextlib.suppress(OSError), self._record() as record:
                self._give_back(record, handles)

    @contextlib.contextmanager
    def _record(self) -> Iterator[Record]:
        """The record as it is now, without the dead; nobody else changes it meanwhile. Raises OSError."""
        if self._file is None:
            raise OSError(0, "there is no state folder")
        lock = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a probe that hangs while it has it is killed at its deadline
            record = _read(self._file)
            for lowered in record.devices.values():
                lowered.wanted_mw = {who: mw for who, mw in lowered.wanted_mw.items() if _lives(who)}
            yield record
        finally:
            os.close(lock)

    def _give_back(self, record: Record, handles: dict[str, object], keep: Collection[str] = ()) -> None:
        for uuid, lowered in list(record.devices.items()):
            if uuid in keep:
                continue
            lowered.wanted_mw.pop(self._me, None)
            if uuid in handles:
                with contextlib.suppress(pynvml.NVMLError):  # it stays on record
                    self._settle(record, uuid, handles[uuid])
        self._write(record)

    def _lower(self, record: Record, uuid: str, handle: object, watts: float) -> tuple[float, str | None]:
        """The limit in force then, and why it is not the one wanted. Raises `pynvml.NVMLError`, OSError."""
        now_mw = int(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
        lowered = record.devices.get(uuid)
        if lowered is None or not _is_ours(now_mw, lowered):
            others = lowered.wanted_mw if lowered else {}
            lowered = record.devices[uuid] = Lowered(original_mw=now_mw, ours_mw=[now_mw], wanted_mw=others)
        lowered.wanted_mw[self._me] = round(watts * 1000)
        try:
            in_force_mw = self._settle(record, uuid, handle)
        except pynvml.NVMLError:
            del lowered.wanted_mw[self._me]
            if not lowered.wanted_mw and now_mw == lowered.original_mw:
                del record.devices[uuid]
            self._write(record)
            raise
        if in_force_mw > round(watts * 1000):
            return in_force_mw / 1000, f"{in_force_mw / 1000:.0f} W is the least it can be set to"
        return in_force_mw / 1000, None

    def _settle(self, record: Record, uuid: str, handle: object) -> int:
        """Makes the limit the lowest that is wanted, or the original where none is, unless somebody else has set another since.
        Returns what is in force. Raises `pynvml.NVMLError`, OSError.
        """
        lowered = record.devices[uuid]
        now_mw = int(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
        target_mw = lowered.original_mw
        if lowered.wanted_mw:
            least_mw, _ = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            target_mw = min(target_mw, max(int(least_mw), min(lowered.wanted_mw.values())))
        if target_mw != now_mw and _is_ours(now_mw, lowered):
            before = lowered.ours_mw
            lowered.ours_mw = [now_mw, target_mw]
            self._write(record)
            try:
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, target_mw)
            except pynvml.NVMLError:
                lowered.ours_mw = before
                raise
            lowered.ours_mw, now_mw = [target_mw], target_mw
        if not lowered.wanted_mw:
            del record.devices[uuid]
        self._write(record)
        return now_mw

    def _write(self, record: Record) -> None:
        assert self._file is not None
        if record.devices:
            replace_file(self._file, msgspec.json.encode(record))
        else:
            self._file.unlink(missing_ok=True)


def _is_ours(now_mw: int, lowered: Lowered) -> bool:
    return any(abs(now_mw - ours_mw) <= _SAME_MW for ours_mw in lowered.ours_mw)


_record = msgspec.json.Decoder(Record)
_MOST_PID_DIGITS = 10


def _read(file: Path) -> Record:
    boot = _text("/proc/sys/kernel/random/boot_id")
    try:
        record = read_document(file, _record.decode)
        if record.boot == boot:
            return record
    except (FileNotFoundError, UnreadableError):
        pass
    return Record(boot=boot)


def _lives(who: str) -> bool:
    pid = who.partition(" ")[0]
    return pid.isdecimal() and len(pid) <= _MOST_PID_DIGITS and _identity(int(pid)) == who


def _identity(pid: int) -> str | None:
    """The pid and when it was started (proc_pid_stat(5)). Returns None for a process that is no more, or a zombie."""
    try:
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return None
    return f"{pid} {fields[19]}" if len(fields) > 19 and fields[0] not in "ZX" else None


def _text(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1024).decode(errors="replace").strip()
    finally:
        os.close(fd)
