"""The child that has NVIDIA's driver move the GPU memory of processes into RAM, or back: the only one that loads `libcuda`.

    python -P -m memsup.supervisor.fence.card_driver to_ram|to_card PID …

It asks the driver where each process is and takes it on from there, tells through its stdin, a socket, what came of it (one
packet, `Report`), and ends. It may hang or crash; `card.py` gives it a time. All are locked before the first is moved, always
in the order of its arguments, and what fails on the way into RAM is undone at once. Where nobody is there any more to be told
that everything is in RAM, it is brought back: nobody else would do so.

The calls are those of CUDA's driver API, "CUDA Checkpointing" (display driver 570 and later).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from memsup.supervisor.decide.run.card import LOCK_WITHIN_S, Whole

OOM_SCORE_ADJ = 300
"""The kernel takes this process rather than the supervisor, which can start another."""
LONGEST_S = 3600
"""After this the kernel ends a process that hangs in the library although nobody is left to kill it."""
MAX_REPORT_BYTES = 4096
_RUNNING, _LOCKED, _CHECKPOINTED, _FAILED = range(4)
"""CUprocessState."""
_NOT_SUPPORTED, _NOT_READY = 801, 600
_SAID = {
    2: "there is not enough memory for it",
    46: "the card is not free",
    100: "there is no such card",
    401: "the program is in a state in which it cannot be moved",
    _NOT_READY: f"what the program had given the card to do was not done within {LOCK_WITHIN_S:.0f} s",
    800: "it is not permitted",
    _NOT_SUPPORTED: "this driver cannot move what the program uses: unified memory, memory shared with another process, or "
    "NCCL, perhaps",
}
"""What the driver's error numbers (CUresult) mean here."""


class Report(msgspec.Struct, frozen=True):
    """What came of a move."""

    whole: Whole
    why: str | None = None
    never: bool = False


class DriverError(Exception):
    """The driver did not do it; the text is one clause that says why. `code` is its number (CUresult). It is None where there
    was no call.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class _LockArgs(ctypes.Structure):
    """CUcheckpointLockArgs."""

    _fields_ = (("timeout_ms", ctypes.c_uint), ("reserved0", ctypes.c_uint), ("reserved1", ctypes.c_uint64 * 7))


class Driver:
    """NVIDIA's driver, as far as it is needed here. Everything raises `DriverError`."""

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise DriverError("there is no CUDA driver (libcuda.so.1)") from None
        if not hasattr(self._cuda, "cuCheckpointProcessLock"):
            raise DriverError("this driver cannot do it: version 570 is the first one that can")
        self._call("cuInit", 0)

    def state(self, pid: int) -> int:
        """Where the process is (CUprocessState)."""
        state = ctypes.c_int(-1)
        self._call("cuCheckpointProcessGetState", pid, ctypes.byref(state))
        return state.value

    def lock(self, pid: int) -> None:
        """No call into CUDA that concerns the card is begun by the process any more, and what was begun is over."""
        arguments = _LockArgs(timeout_ms=int(LOCK_WITHIN_S * 1000))
        self._call("cuCheckpointProcessLock", pid, ctypes.byref(arguments))

    def checkpoint(self, pid: int) -> None:
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int) -> None:
        self._call("cuCheckpointProcessRestore", pid, None)

    def unlock(self, pid: int) -> None:
        self._call("cuCheckpointProcessUnlock", pid, None)

    def _call(self, name: str, *arguments: object) -> None:
        code: int = getattr(self._cuda, name)(*arguments)
        if code:
            called = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(called))
            name_of_code = (called.value or b"").decode("ascii", "replace") or f"error {code}"
            said = _SAID.get(code)
            raise DriverError(f"{said} ({name_of_code})" if said else f"the driver says {name_of_code}", code)


def to_ram(driver: Driver, pids: Sequence[int]) -> Report:
    """Moves all that these processes have on the card into RAM; or nothing, where that fails."""
    try:
        for pid in _alive(pids):
            if driver.state(pid) == _RUNNING:
                driver.lock(pid)
        for pid in _alive(pids):
            if driver.state(pid) == _LOCKED:
                driver.checkpoint(pid)
    except DriverError as error:
        undone = to_card(driver, pids)
        never = error.code == _NOT_SUPPORTED or undone.never
        return Report(undone.whole, str(error), never)
    return Report(_whole(driver, pids))


def to_card(driver: Driver, pids: Sequence[int]) -> Report:
    """Moves all of it back onto the card, wherever it is now. One that cannot be moved keeps no other back."""
    whys = []
    for pid in _alive(pids):
        try:
            if driver.state(pid) == _CHECKPOINTED:
                driver.restore(pid)
            if driver.state(pid) == _LOCKED:
                driver.unlock(pid)
        except DriverError as error:
            whys.append(str(error))
    return Report(_whole(driver, pids), whys[0] if whys else None)


def _whole(driver: Driver, pids: Sequence[int]) -> Whole:
    states = set()
    for pid in _alive(pids):
        try:
            states.add(driver.state(pid))
        except DriverError:
            states.add(-1)
    if _FAILED in states:
        return Whole.FAILED
    if states <= {_RUNNING}:
        return Whole.RUNNING
    return Whole.CHECKPOINTED if states == {_CHECKPOINTED} else Whole.BETWEEN


def _alive(pids: Sequence[int]) -> Iterator[int]:
    """Those of them that have not ended; the driver knows nothing of the dead."""
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
            if state not in "ZX":
                yield pid


def main() -> int:
    signal.alarm(LONGEST_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE_ADJ}\n", encoding="ascii")
    link = socket.socket(fileno=os.dup(0))
    into_ram, pids = sys.argv[1] == "to_ram", [int(word) for word in sys.argv[2:]]
    try:
        driver = Driver()
    except DriverError as error:
        report = Report(Whole.RUNNING if into_ram else Whole.BETWEEN, str(error), never=True)
    else:
        report = to_ram(driver, pids) if into_ram else to_card(driver, pids)
    try:
        link.send(msgspec.msgpack.encode(report))
    except OSError:
        if into_ram and report.whole is not Whole.RUNNING:
            to_card(driver, pids)
    return 0


if __name__ == "__main__":
    sys.exit(main())
