"""A night as data: what a supervisor would have recorded, second by second, through the real `Recorder` and `ledger.line`.

`Night` is driven like a tape: `run(seconds, ...)` lets time pass, `say(...)` writes to the ledger, `new_boot()` is a new boot.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from memsup.shared.messages import PauseMode
from memsup.shared.paths import RunPaths, prepare
from memsup.shared.readings import KnownBatch, KnownGpu
from memsup.shared.status import (
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
    Wanted,
)
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.record import ledger
from memsup.supervisor.record.history import Recorder, sample_of

GIB = 2**30
TOTAL_STEPS = 6_000
MEMORY = (HoldReason.MEMORY,)


@dataclass
class Night:
    paths: RunPaths
    at: float = 1_780_000_000.0
    mono: float = 500.0
    boot_id: str = "boot-a"
    state: RunState = RunState.STARTING
    phase: str | None = "loading"
    step: int = 0
    step_s: float = 2.0
    micro_tokens: int = 2048
    worker_bytes: int = 3 * GIB
    gpu_c: float = 61.0
    duty_fraction: float = 1.0
    gpu: bool = True
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        prepare(self.paths)
        self._recorder = Recorder(self.at)
        self._worked_s = 0.0

    def run(self, seconds: float, state: RunState | None = None, phase: str | None = None, **changes: float) -> None:
        self.state, self.phase = state or self.state, phase or self.phase
        for name, value in changes.items():
            setattr(self, name, value)
        for _ in range(int(seconds)):
            self.note()
            self.at += 1
            self.mono += 1
            if self.state is RunState.RUNNING and self.phase == "training":
                self._worked_s += self.duty_fraction
                while self._worked_s >= self.step_s:
                    self._worked_s -= self.step_s
                    self.step += 1
        self.note()

    def note(self) -> None:
        line = self._recorder.note(
            sample_of(
                self.status(),
                at=self.at,
                mono=self.mono,
                boot=self.boot_id,
                duty_fraction=self.duty_fraction,
                reserve_bytes=2 * GIB,
            )
        )
        self._append("history.jsonl", line)

    def rest(self) -> None:
        self._append("history.jsonl", self._recorder.rest())

    def say(self, event: Event, reason: str, action: str | None = None, result: str | None = None, **fields: Any) -> None:
        record = Record(event=event, reason=reason, action=action, result=result, **fields)
        self._append(
            "ledger.jsonl",
            ledger.line(
                record,
                at=self.at,
                mono=self.mono,
                boot=self.boot_id,
                state=str(self.state),
                step=self.step,
                memory=None,
                disk=None,
            ),
        )

    def pass_unrecorded(self, seconds: float, *, slept: bool = False) -> None:
        """Time passes in which nobody records. When it `slept`, the machine's own clock stood still."""
        self.at += seconds
        if not slept:
            self.mono += seconds

    def new_supervisor(self) -> None:
        self._recorder = Recorder(1_780_000_000.0)

    def new_boot(self, name: str) -> None:
        self.boot_id, self.mono = name, 25.0
        self.new_supervisor()

    def status(self) -> Status:
        wobble = self.chance.uniform(-1, 1)
        trains = self.state is RunState.RUNNING and self.phase == "training"
        return Status(
            run=self.paths.name,
            run_id="0123456789ab",
            state=self.state,
            wanted=Wanted.RUNNING,
            tier="safe",
            worker_pid=4712,
            progress=ProgressStatus(
                phase=self.phase,
                step=self.step,
                total_steps=TOTAL_STEPS,
                samples=self.step * 16,
                loss=0.18 + 0.55 * math.exp(-self.step / 900) + 0.03 * wobble if self.step else None,
                samples_per_s=(16 / self.step_s * self.duty_fraction + wobble * 0.4) if trains else None,
            ),
            batch=KnownBatch(effective=16, micro_tokens=self.micro_tokens, micro_rows=8),
            memory=MemoryStatus(
                ram_total_bytes=16 * GIB,
                ram_available_bytes=int(13 * GIB - self.worker_bytes + wobble * GIB / 8),
                worker_bytes=int(self.worker_bytes * (1 + 0.03 * wobble)),
                limit_bytes=12 * GIB,
                fence="scope",
                fence_bytes=13 * GIB,
            ),
            gpus=[
                KnownGpu(
                    index=0,
                    name="GTX 1080",
                    used_bytes=6 * GIB,
                    total_bytes=8 * GIB,
                    temperature_c=round(self.gpu_c + wobble),
                    slowdown_c=96.0,
                    power_w=170.0,
                )
            ]
            if self.gpu
            else [],
            temperatures=[TemperatureStatus(name="k10temp", celsius=66 + wobble, limit_c=95.0)],
        )

    def _append(self, name: str, line: bytes | None) -> None:
        if line is not None:
            with open(self.paths.state / name, "ab") as file:
                file.write(line)


def eventful(paths: RunPaths) -> Night:
    """Seven hours with everything in them: squeeze, heat, a kill, a person's pause, a power cut, and a good end."""
    night = Night(paths)
    night.run(40)
    night.run(3600, RunState.RUNNING, "training")
    night.say(
        Event.RUNG,
        "the worker uses 10.9 GiB of its 12 GiB (91 %)",
        "ladder up",
        rung="shrink",
        move=Move.UP,
        by=By.LADDER,
        pressures=MEMORY,
    )
    night.run(30, worker_bytes=int(10.9 * GIB))
    night.say(
        Event.ORDER,
        "the worker uses 10.9 GiB of its 12 GiB (91 %)",
        "halve the micro-batch",
        "done: 1,024 tokens",
        by=By.LADDER,
        order=OrderKind.HALVE,
        outcome=Outcome.DONE,
        pressures=MEMORY,
    )
    night.run(3000, micro_tokens=1024, worker_bytes=int(2.4 * GIB))
    night.run(12, phase="saving")
    night.run(1500, phase="training", gpu_c=84)
    pace = {"by": By.LADDER, "order": OrderKind.PACE, "outcome": Outcome.DONE, "pressures": (HoldReason.HEAT,)}
    night.say(Event.ORDER, "GPU 0 is at 90 °C", "compute 70 % of the time", "done: pacing", duty_fraction=0.7, **pace)
    night.run(2400, duty_fraction=0.7, gpu_c=87)
    night.say(Event.ORDER, "GPU 0 is cooler", "compute 100 % of the time", "done: full speed", duty_fraction=1.0, **pace)
    night.run(900, duty_fraction=1.0, gpu_c=80)
    use = "the worker uses 11.7 GiB of its 12 GiB (97 %)"
    night.say(Event.FREEZE, use, "freeze", rung="freeze", by=By.LADDER, pressures=MEMORY)
    night.run(2, RunState.RECOVERING, worker_bytes=int(11.7 * GIB))
    use = "the worker uses 11.9 GiB of its 12 GiB (99 %)"
    night.say(Event.KILL, use, "kill the whole tree", rung="kill", by=By.LADDER, cause=Cause.MEMORY, pressures=MEMORY)
    night.run(1)
    why = "Memory stayed short although it was frozen, and it was killed."
    night.say(Event.DEATH, why, "restart in 1 s (memory)", cause=Cause.MEMORY, again=True, delay_s=1.0)
    night.say(Event.SMALLER, why, "micro-batch 1,024 → 512 tokens", tokens=(1024, 512))
    reached = night.step
    night.run(21, phase="loading", worker_bytes=GIB)
    night.step = reached - 120
    night.say(Event.RECOVERED, f"training again at step {night.step:,}")
    night.run(1800, RunState.RUNNING, "training", micro_tokens=512, worker_bytes=2 * GIB)
    paused = {"wanted": Wanted.PAUSED, "pause_mode": PauseMode.RELEASE}
    night.say(Event.WANTED, "the user asked", "paused (release)", by=By.USER, **paused)
    night.run(2700, RunState.PAUSED, "holding", worker_bytes=0)
    night.say(Event.WANTED, "the user asked", "running", by=By.USER, wanted=Wanted.RUNNING)
    night.run(15, RunState.STARTING, "loading")
    night.run(1500, RunState.RUNNING, "training", worker_bytes=2 * GIB, gpu_c=79)
    reached = night.step
    night.pass_unrecorded(780)
    night.new_boot("boot-b")
    why = "The machine went down 13 min ago without shutting down: most likely the power was cut."
    night.say(Event.POSTMORTEM, why, machine_died=True)
    night.run(30, RunState.STARTING, "loading", worker_bytes=GIB, gpu_c=45)
    night.step = reached - 300
    night.run(4000, RunState.RUNNING, "training", worker_bytes=2 * GIB, gpu_c=74)
    night.run(60, phase="evaluating")
    night.run(8, phase="finishing")
    night.state = RunState.FINISHED
    night.note()
    night.rest()
    night.say(Event.END, "finished")
    return night
