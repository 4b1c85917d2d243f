"""Heat, power and GPU memory, joined: what is read of GPUs, CPU and battery, and what the ladder is asked for because of it.

Covers when the GPU probe is awake, which devices are the worker's, and the hand-over of readings to the pure controls
(`heat.py`, `gpu/vram.py`, `battery.py`); their answers become the ladder's `Proposal`s, and power limits go to the probe.
Decides nothing of that itself, and waits for nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from memsup.shared.messages import WorkerMemory
from memsup.shared.settings import Limits
from memsup.supervisor.decide.after_power_loss import AS_EVER, Footing
from memsup.supervisor.decide.battery import BatteryControl
from memsup.supervisor.decide.heat import LEAST_CAP, HeatControl, HeatDecision
from memsup.supervisor.decide.ladder import HoldReason, Proposal
from memsup.supervisor.decide.readings import GpuReading, TemperatureReading
from memsup.supervisor.decide.vram import VramControl, VramDecision
from memsup.supervisor.sense.gpu.client import GpuClient
from memsup.supervisor.sense.gpu.devices import XID_LOST, XIDS, heat_sources, of_worker, power_limits
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.sense.temperatures import TemperatureSensors, cpu_sources

MOST_LASTING = 3
"""Sentences that `status` shows; the ledger has them all."""
FAR_C = 15.0
"""So far below its pace level a CPU's sensor may be read half as often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What of the worker matters for heat and GPU memory."""

    alive: bool
    computing: bool
    """It has work and is not held by somebody else."""
    pids: tuple[int, ...]
    memory: WorkerMemory | None


@dataclass
class Cooling:
    """`watches_gpus` False: a run on the CPU leaves GPUs asleep. `power_record` remembers lowered power limits."""

    limits: Limits
    watches_gpus: bool
    vram_fraction: float | None
    power_record: Path
    footing: Footing = AS_EVER
    gpus: tuple[GpuReading, ...] = ()
    workers: tuple[GpuReading, ...] = ()
    """Those of them that the worker computes on."""
    temperatures: tuple[TemperatureReading, ...] = ()
    lost: str | None = None
    """Which of the worker's GPUs has fallen off the bus, in one sentence; it stays lost until the machine starts anew."""
    heat: HeatDecision = field(default_factory=HeatDecision)
    """The last one."""
    _news: list[str] = field(default_factory=list)
    _lasting: list[str] = field(default_factory=list)
    """What does not pass by itself, each once, the newest last."""
    crowded: str | None = None
    """How much more GPU memory other programs hold than before, in one clause, where that is much."""
    is_cool: bool = True
    """No GPU is computed on, and every CPU's sensor is far from where something is done about it."""
    _on_battery: bool = False
    _asked_until_s: float = -math.inf
    _calm: bool = True

    def __post_init__(self) -> None:
        self.client = GpuClient(self.power_record)
        self._sensors, self._supply = TemperatureSensors(), PowerSupply()
        self._heat, self._battery = HeatControl(), BatteryControl()
        self._vram = VramControl() if self.vram_fraction is None else VramControl(self.vram_fraction)
        self._visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    @property
    def note(self) -> str | None:
        """Why there is nothing about GPUs, where that is so."""
        return self.client.note if self.watches_gpus else "No GPU is watched: this run computes on the CPU."

    def due_s(self, now_s: float) -> float:
        """When the probe wants to be asked again."""
        return self.client.due_s(now_s)

    def on_tick(self, now_s: float) -> None:
        self.client.on_tick(now_s, calm=self._calm)

    def on_readable(self, now_s: float) -> None:
        self.client.on_readable(now_s)

    def ask_until(self, until_s: float, now_s: float) -> None:
        """The worker is gone; the device is to be asked what that has freed."""
        self._asked_until_s = until_s
        self.client.ask(now_s)

    def step(self, now_s: float, load: Load, *, calm: bool) -> tuple[Proposal, ...]:
        """About once a second. `calm` False: memory is short, so no probe is started now."""
        self._calm = calm
        self._tend_probe(now_s, load)
        self.gpus = self.client.readings(now_s)
        self.temperatures = self._sensors.read(now_s)
        self.workers = workers = of_worker(self.gpus, self._visible)
        sources = heat_sources(workers, self.limits.gpu_temperature_c)
        sources += cpu_sources(self.temperatures, self._sensors.cpu_use, self.limits.cpu_temperature_c)
        sources = [replace(source, limits=source.limits.cooler(self.footing.cooler_by_c)) for source in sources]
        self.is_cool = not workers and all(
            source.temperature_c is not None and source.temperature_c < source.limits.pace_c - FAR_C for source in sources
        )
        self.heat = self._heat.step(now_s, sources, computing=load.computing, may_cap=self.client.may_cap)
        self._note_trouble(workers)
        power_fraction = max(LEAST_CAP, self.footing.power_fraction * self.heat.power_fraction)
        self.client.cap(power_limits(workers, power_fraction, self.limits.power_w))
        return tuple(self._proposals(now_s, workers, load))

    def take_news(self) -> list[str]:
        """Sentences for the ledger since the last call, each trouble once."""
        news, self._news = self._news, []
        return news

    @property
    def attention(self) -> tuple[str, ...]:
        """Sentences about what a person should look at now."""
        battery = ("The machine runs on its battery, so training waits. Go on all the same: --set limits.on_battery=run",)
        return (*self._lasting[-MOST_LASTING:], *self.heat.troubles, *(battery if self._on_battery else ()))

    def close(self) -> None:
        self.client.close()

    def _tend_probe(self, now_s: float, load: Load) -> None:
        if load.alive:
            self.client.worker_pids = load.pids
        if self.watches_gpus and (load.alive or now_s < self._asked_until_s):
            self.client.wake()
        else:
            self.client.rest(now_s)

    def _note_trouble(self, workers: tuple[GpuReading, ...]) -> None:
        for gpu in workers:
            if gpu.lost and self.lost is None:
                self.lost = f"GPU {gpu.index} ({gpu.name or 'name unknown'}) is lost: {XIDS[XID_LOST]}."
                self._note(self.lost)
        for index, xid in self.client.take_xids():
            self._note(f"GPU {index} reported error {xid}: {XIDS.get(xid, 'see the Xid list of NVIDIA')}.")
        if errors := self.client.take_memory_errors():
            self._note(f"GPU memory had {errors} errors that could not be corrected; results may be wrong.")
        for uuid, why in self.client.cap_notes.items():
            self._note(f"The power limit of {uuid} is not in force: {why}.")
        for sensor in self._sensors.left_out:
            self._note(f"The temperature sensor {sensor} answers too slowly and is not watched any more.")
        if self.heat.tell is not None:
            self._news.append(self.heat.tell)

    def _note(self, sentence: str) -> None:
        if sentence not in self._lasting:
            self._lasting.append(sentence)
            self._news.append(sentence)

    def _proposals(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> Iterator[Proposal]:
        heat = self.heat
        yield Proposal(duty_fraction=heat.duty_fraction, hold=HoldReason.HEAT if heat.hold else None, reason=heat.reason)
        on_battery = self._battery.step(now_s, self._supply.on_battery())
        self._on_battery = on_battery and self.limits.on_battery == "pause"
        if self._on_battery:
            yield Proposal(hold=HoldReason.POWER, reason="the machine runs on its battery")
        vram = self._vram_decision(now_s, workers, load)
        if vram is not None:
            self.crowded = vram.crowded
            yield Proposal(shrink=vram.shrink, may_grow=vram.may_grow, vram_limit_bytes=vram.limit_bytes, reason=vram.reason)

    def _vram_decision(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> VramDecision | None:
        """None while the worker has nothing on a GPU."""
        if not load.alive or load.memory is None or load.memory.cuda_allocated_bytes is None or not workers:
            return None
        return self._vram.step(now_s, workers[0], load.memory.cuda_allocated_bytes, load.memory.cuda_reserved_bytes)
