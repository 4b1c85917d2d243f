"""The GPU probe: a small child process that alone loads NVIDIA's library (NVML, through nvidia-ml-py) and answers questions.

The library may hang or crash: then this process is killed, and the supervisor starts another. It leaves when the supervisor
closes its end of the link, or dies: the devices are let go, so that a laptop's GPU can sleep, and power limits it lowered are
given back. It judges nothing: what a device does not support is None, and what it says is passed on as it is.

    python -P -m memsup.supervisor.sense.gpu.probe [FILE]    link on descriptor 0; FILE records lowered power limits (`caps.py`)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pynvml  # type: ignore[import-untyped]

from memsup.supervisor.sense.gpu.caps import PowerCaps
from memsup.supervisor.sense.gpu.frames import (
    MAX_FRAME_BYTES,
    Absent,
    Answer,
    Broken,
    Cap,
    Device,
    Look,
    Question,
    Seen,
    decode_question,
    encode,
)
from memsup.supervisor.sense.gpu.library import NO_DRIVER

LONGEST_ANSWER_S = 40
"""After this the kernel ends a process that hangs in the library although nobody is left to kill it. It is longer than any
deadline of the client."""
OOM_SCORE_ADJ = 300
"""The kernel takes this process rather than the supervisor, which can start another."""
_EVENTS = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
_HEAT = pynvml.nvmlClocksEventReasonHwThermalSlowdown
"""The software's thermal slowdown is the driver keeping its own set point, and normal: an MX330 does it from 57 °C on."""
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_MOST_EVENTS = 32


class LostError(Exception):
    """The device is there in name only."""


class Gpus:
    """The library from its opening to its end. Raises `pynvml.NVMLError`."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._events = _told(pynvml.nvmlEventSetCreate)
        self._gpus = [_Gpu(index, self._events) for index in range(pynvml.nvmlDeviceGetCount())]

    def __len__(self) -> int:
        return len(self._gpus)

    def handles(self) -> dict[str, object]:
        """The handles of the devices that can be reached, by UUID."""
        return {gpu.uuid: gpu.handle for gpu in self._gpus if gpu.uuid is not None and gpu.handle is not None}

    def look(self, *, fully: bool) -> list[Device]:
        xids, memory_errors = self._happened() if fully else ({}, {})
        return [gpu.look(fully, xids.get(gpu.index, []), memory_errors.get(gpu.index, 0)) for gpu in self._gpus]

    def close(self) -> None:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _happened(self) -> tuple[dict[int, list[int]], dict[int, int]]:
        """The Xids and memory errors since the last call, by the device's index."""
        xids: dict[int, list[int]] = {}
        memory_errors: dict[int, int] = {}
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            event = _told(pynvml.nvmlEventSetWait, self._events, 0)
            if event is None:
                break
            address = _address(event.device)
            index = next((gpu.index for gpu in self._gpus if gpu.address == address), -1)
            if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                xids.setdefault(index, []).append(int(event.eventData))
            else:
                memory_errors[index] = memory_errors.get(index, 0) + 1
        return xids, memory_errors


class _Gpu:
    """One device. What never changes is asked once, when it can first be reached."""

    def __init__(self, index: int, events: object) -> None:
        self.index = index
        self.handle: Any = None
        self.address: int | None = None
        self.uuid: str | None = None
        self._events = events
        self._fixed: dict[str, Any] = {}
        with contextlib.suppress(LostError):
            self._introduce()

    def look(self, fully: bool, xids: list[int], memory_errors: int) -> Device:
        answers: dict[str, Any] = {}
        lost = False
        try:
            if self.handle is None:
                self._introduce()
            if self.handle is not None:
                answers |= self._memory()
                if fully:
                    answers |= self._state()
        except LostError:
            lost = True
        return Device(
            index=self.index, uuid=self.uuid, lost=lost, xids=xids, memory_errors=memory_errors, **self._fixed, **answers
        )

    def _introduce(self) -> None:
        self.handle = handle = _told(pynvml.nvmlDeviceGetHandleByIndex, self.index)
        if handle is None:
            return
        self.address = _address(handle)
        self.uuid = _told(pynvml.nvmlDeviceGetUUID, handle)
        slowdown, shutdown = _margins(handle)
        constraints = _told(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        self._fixed = {
            "name": _told(pynvml.nvmlDeviceGetName, handle),
            "compute_capability": _told(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
            "slowdown_margin_c": slowdown,
            "shutdown_margin_c": shutdown,
            "slowdown_threshold_c": _told(
                pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            ),
            "shutdown_threshold_c": _told(
                pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
            ),
            "power_least_w": constraints[0] / 1000 if constraints else None,
            "power_default_w": _watts(_told(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
        }
        supported = _told(pynvml.nvmlDeviceGetSupportedEventTypes, handle)
        if self._events is not None and supported is not None and supported & _EVENTS:
            _told(pynvml.nvmlDeviceRegisterEvents, handle, supported & _EVENTS, self._events)

    def _memory(self) -> dict[str, Any]:
        """Asks for memory together with whose it is, or what the worker takes between two looks would seem to be others'."""
        memory = _told(pynvml.nvmlDeviceGetMemoryInfo, self.handle)
        processes = _told(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, self.handle)
        answers = {"total_bytes": memory.total, "free_bytes": memory.free} if memory else {}
        if processes is not None:
            answers["processes"] = [(process.pid, process.usedGpuMemory) for process in processes]
        return answers

    def _state(self) -> dict[str, Any]:
        handle = self.handle
        reasons = _told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:  # its name before driver 535
            reasons = _told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        temperature = _told(pynvml.nvmlDeviceGetTemperatureV, handle, pynvml.NVML_TEMPERATURE_GPU)
        if temperature is None:  # before driver 565
            temperature = _told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        return {
            "temperature_c": temperature,
            "margin_c": _told(pynvml.nvmlDeviceGetMarginTemperature, handle),
            "power_w": _watts(_told(pynvml.nvmlDeviceGetPowerUsage, handle)),
            "power_limit_w": _watts(_told(pynvml.nvmlDeviceGetPowerManagementLimit, handle)),
            "slowed_by_heat": None if reasons is None else bool(reasons & _HEAT),
        }


def _told(call: Callable[..., Any], *arguments: object) -> Any:
    """The answer. Returns None where the device or the driver does not give one. Raises `LostError`."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _LOST:
            raise LostError from None
        return None
    except UnicodeDecodeError:
        return None


def _margins(handle: object) -> tuple[float | None, float | None]:
    """The slowdown and shutdown temperatures as T.Limit margins (signed; Ada and later, and Hopper)."""
    wanted = (pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT, pynvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT)
    fields = _told(pynvml.nvmlDeviceGetFieldValues, handle, wanted)
    if fields is None:
        return None, None
    slowdown, shutdown = (_signed(field) if field.nvmlReturn == pynvml.NVML_SUCCESS else None for field in fields)
    return slowdown, shutdown


def _signed(field: Any) -> float | None:
    """The number that the bits stand for: drivers have declared these as signed and as unsigned; the bits are a signed number's
    either way.
    """
    kind = field.valueType
    if kind in (pynvml.NVML_VALUE_TYPE_SIGNED_INT, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT):
        return float(field.value.siVal)
    if kind == pynvml.NVML_VALUE_TYPE_DOUBLE:
        return float(field.value.dVal)
    return float(field.value.sllVal)


def _address(handle: object) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value  # type: ignore[arg-type]


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


# --------------------------------------------------------------------------------------------------------------------
# The process


def answer_to(question: Question, gpus: Gpus, caps: PowerCaps) -> Answer:
    match question:
        case Look():
            devices = gpus.look(fully=question.fully)
            may_cap = os.geteuid() == 0
            return Seen(question.ask_id, question.fully, devices, may_cap=may_cap)
        case Cap():
            return caps.apply(question, gpus.handles())


def cannot(question: Question, error: Any) -> Answer:
    """The answer that says what a library which does not open means."""
    match error.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return Absent(ask_id=question.ask_id, text=NO_DRIVER)
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return Absent(ask_id=question.ask_id, text="the NVIDIA driver is not loaded")
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return Broken(ask_id=question.ask_id, text="the NVIDIA driver was updated; it works again after a reboot")
        case _:
            return Broken(ask_id=question.ask_id, text=f"the NVIDIA driver says: {error}")


def serve(link: socket.socket, caps: PowerCaps) -> None:
    """Answers questions until the other end is closed."""
    gpus: Gpus | None = None
    try:
        while packet := link.recv(MAX_FRAME_BYTES):
            signal.alarm(LONGEST_ANSWER_S)
            question = decode_question(packet)
            try:
                if gpus is None:
                    gpus = Gpus()
                    caps.restore_all(gpus.handles())
                answer = answer_to(question, gpus, caps) if len(gpus) else Absent(question.ask_id, "no NVIDIA GPU found")
            except pynvml.NVMLError as error:
                answer = cannot(question, error)
            link.send(encode(answer))
            if isinstance(answer, Absent | Broken):
                return
            signal.alarm(0)
    finally:
        signal.alarm(LONGEST_ANSWER_S)
        if gpus is not None:
            caps.restore_all(gpus.handles())
            gpus.close()


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through `serve`'s end, like everything else
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        if int(score.read_text(encoding="ascii")) < OOM_SCORE_ADJ:
            score.write_text(f"{OOM_SCORE_ADJ}\n", encoding="ascii")
    link = socket.socket(fileno=os.dup(0))
    caps = PowerCaps(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    try:
        serve(link, caps)
    except (ConnectionError, msgspec.DecodeError, UnicodeDecodeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
