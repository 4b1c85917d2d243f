"""A night on the fake device, second by second: the real probe child, the real client and the real heat control, in a loop.

The device's time is the loop's: a night takes as long as its questions and answers do. `best_constant_duty` searches, on the
same device and knowing the whole night beforehand, what the control is measured against.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kit.fake_nvml import FakeNvml, Fault
from memsup.shared.descriptors import wait_ready
from memsup.supervisor.decide.heat import HeatControl, HeatDecision
from memsup.supervisor.sense.gpu.client import GpuClient, ProbeState
from memsup.supervisor.sense.gpu.devices import heat_sources

PATIENCE_S = 60.0


@dataclass
class Night:
    """What happened in each second: the device's true temperature, what the control was told, and what it decided."""

    celsius: list[float] = field(default_factory=list)
    seen_c: list[float | None] = field(default_factory=list)
    duty: list[float] = field(default_factory=list)
    decisions: list[HeatDecision] = field(default_factory=list)
    notes: list[str | None] = field(default_factory=list)

    @property
    def mean_duty(self) -> float:
        return sum(self.duty) / len(self.duty)


def controlled_night(
    fake: FakeNvml, client: GpuClient, seconds: int, each_second: Callable[[int], None] = lambda _: None
) -> Night:
    """`each_second` may change the device, or break it. The worker follows each decision one second later."""
    night, control, duty = Night(), HeatControl(), 1.0
    client.wake()
    for second in range(1, seconds + 1):
        now_s = fake.control.clock_s = float(second)
        fake.set(0, duty=duty)
        each_second(second)
        _ask(fake, client, now_s)
        gpus = client.readings(now_s)
        decision = control.step(now_s, heat_sources(gpus))
        night.celsius.append(fake[0].celsius)
        night.seen_c.append(gpus[0].temperature_c if gpus else None)
        night.duty.append(duty)
        night.decisions.append(decision)
        night.notes.append(client.note)
        duty = 0.0 if decision.hold else decision.duty_fraction
    return night


def _ask(fake: FakeNvml, client: GpuClient, now_s: float) -> None:
    """One tick, and the wait for its answer; a probe that hangs is not waited for."""
    client.ask(now_s)
    client.on_tick(now_s)
    patience_s = 0.005 if fake[0].fault == Fault.HANG else PATIENCE_S
    give_up_s = time.monotonic() + patience_s
    while client.state in (ProbeState.ASKED, ProbeState.LEAVING) and (left_s := give_up_s - time.monotonic()) > 0:
        if wait_ready([client], left_s):
            client.on_readable(now_s)


def best_constant_duty(library: Path, fake: FakeNvml, seconds: int, limit_c: float) -> float:
    """The largest fixed duty that keeps the device at or below `limit_c` all night. The device is left as at its beginning."""
    low, high = 0.0, 1.0
    if hottest(library, fake, seconds, 1.0) <= limit_c:
        return 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if hottest(library, fake, seconds, middle) <= limit_c else (low, middle)
    return low


def hottest(library: Path, fake: FakeNvml, seconds: int, duty: float) -> float:
    """The highest true temperature of a night at this fixed duty; the library is loaded here, into the caller's process."""
    os.environ |= fake.environment
    nvml = ctypes.CDLL(str(library / "libnvidia-ml.so.1"))
    handle, celsius = ctypes.c_void_p(), ctypes.c_uint()
    assert nvml.nvmlInitWithFlags(0) == 0
    assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
    beginning = bytes(fake.control)
    fake.set(0, duty=duty)
    most = 0.0
    for second in range(1, seconds + 1):
        fake.control.clock_s = float(second)
        nvml.nvmlDeviceGetTemperature(handle, 0, ctypes.byref(celsius))
        most = max(most, fake[0].celsius)
    ctypes.memmove(ctypes.byref(fake.control), beginning, len(beginning))
    nvml.nvmlShutdown()
    return most
