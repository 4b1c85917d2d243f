"""Heat, power and GPU memory, joined: what is read of GPUs, CPU and battery, and what the ladder is asked for because of it.

Covers when the GPU probe is awake, which devices are the worker's, the hand-over of readings to the pure controls in `decide/`
(`heat.py`, `vram.py`, `battery.py`), whose answers become the ladder's `Proposal`s and the probe's power limits, and the proof
of what a worker that is gone gave back. This module decides none of that itself, and waits for nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from memsup.shared.messages import Failed, WorkerMemory
from memsup.shared.readings import RankReading
from memsup.shared.settings import Limits
from memsup.shared.status import Trouble, TroubleKind
from memsup.supervisor.decide.after_power_loss import UNRESTRAINED, Restraint
from memsup.supervisor.decide.battery import BatteryControl
from memsup.supervisor.decide.heat import LEAST_CAP, HeatControl, HeatDecision
from memsup.supervisor.decide.ladder import HoldReason, MemoryLimits, Proposal
from memsup.supervisor.decide.readings import GpuReading, MemoryReading, TemperatureReading
from memsup.supervisor.decide.run.card import MOVING, CardView, Place, room_bytes
from memsup.supervisor.decide.run.freed import PROOF_WITHIN_S, GivenBack, Held, Proof, held_by
from memsup.supervisor.decide.vram import CardControl, SpillWatch, VramControl, VramDecision
from memsup.supervisor.sense.gpu.client import GpuClient
from memsup.supervisor.sense.gpu.devices import XID_LOST, XIDS, heat_sources, of_worker, power_limits
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.sense.temperatures import TemperatureSensors, sensor_sources
from memsup.supervisor.words import plural

MOST_LASTING = 3
"""`status` shows this many of the troubles that do not pass by themselves; the ledger has them all."""
FAR_C = 15.0
"""A CPU's sensor that is this far below its pace level may be read half as often."""
ON_BATTERY = Trouble(
    TroubleKind.BATTERY, "The machine runs on its battery, so training waits. Go on all the same: --set limits.on_battery=run"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What matters of the worker for heat and GPU memory."""

    alive: bool
    computing: bool
    """Whether the worker would compute now if heat let it."""
    pids: tuple[int, ...]
    memory: WorkerMemory | None
    samples_per_s: float | None = None
    """How fast it trains. It is None where it does not, or that is not known."""
    ranks: tuple[RankReading, ...] = ()
    """Its ranks, where there are several."""
    place: Place | None = None
    """Where a command that takes no orders has its GPU memory. It is None where the worker does take them."""


@dataclass
class Devices:
    """Everything of the machine that gets warm, runs empty or holds the worker's memory, but for the RAM.

    A run on the CPU does not watch GPUs and leaves them asleep. The file `power_record` remembers lowered power limits.
    """

    limits: Limits
    watches_gpus: bool
    power_record: Path
    is_wsl: bool = False
    has_own_pids: bool = False
    restraint: Restraint = UNRESTRAINED
    gpus: tuple[GpuReading, ...] = ()
    workers: tuple[GpuReading, ...] = ()
    """The GPUs that the worker computes on."""
    temperatures: tuple[TemperatureReading, ...] = ()
    lost: str | None = None
    """The sentence that says which of the worker's GPUs has fallen off the bus, where it stays until the machine starts anew.
    It is None while none has.
    """
    heat: HeatDecision = field(default_factory=HeatDecision)
    """The last decision about heat."""
    is_cool: bool = True
    """Whether no GPU is computed on and every CPU's sensor is far from where something is done about it."""
    _news: list[str] = field(default_factory=list)
    _lasting: list[Trouble] = field(default_factory=list)
    """The troubles that do not pass by themselves, each once, the newest last."""
    _held: Held = field(default_factory=Held)
    """What the worker held before it was asked to leave or died."""
    _proof: Proof | None = None
    """What the worker that is gone gave back, as far as the device has told. It is None while there is nothing to be asked."""
    _crowded: str | None = None
    _crowded_at_its_end: str | None = None
    """What the worker that gives up saw of others, until it is gone."""
    _spills: str | None = None
    """That GPU memory lies in RAM, a sentence. It is None where that is not so, or not known."""
    _on_battery: bool = False
    _asked_until_s: float = -math.inf
    _calm: bool = True

    def __post_init__(self) -> None:
        self.client = GpuClient(self.power_record)
        self._sensors, self._supply = TemperatureSensors(), PowerSupply()
        self._heat, self._battery = HeatControl(), BatteryControl()
        self._vram, self._card = VramControl(self.limits.vram), CardControl(self.limits.vram)
        self._vram_of_ranks: dict[int, VramControl] = {}
        self._spill = SpillWatch()
        self._visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    @property
    def note(self) -> str | None:
        """The sentence that says why there is nothing about GPUs. It is None where there is something."""
        return self.client.note if self.watches_gpus else "No GPU is watched: this run computes on the CPU."

    @property
    def crowded(self) -> str | None:
        """The clause that says how much more GPU memory other programs hold than before. It is None where that is not much."""
        return self._crowded_at_its_end or self._crowded

    def fileno(self) -> int:
        """The descriptor that is readable when the probe has answered; it stays the same."""
        return self.client.fileno()

    def due_s(self, now_s: float) -> float:
        """The time at which the probe wants to be asked again."""
        return self.client.due_s(now_s)

    def on_tick(self, now_s: float) -> None:
        self.client.on_tick(now_s, calm=self._calm)

    def on_readable(self, now_s: float) -> None:
        self.client.on_readable(now_s)

    def leave_gpus(self) -> None:
        """From now on the run computes on the CPU, and GPUs are left asleep."""
        self.watches_gpus = False

    def take_over(self, limits: Limits) -> None:
        """Other limits count from now on."""
        if limits.vram != self.limits.vram:
            self._vram, self._card.limit = VramControl(limits.vram), limits.vram
            self._vram_of_ranks.clear()
        self.limits = limits

    def step(self, now_s: float, load: Load, *, calm: bool) -> tuple[Proposal, ...]:
        """Reads everything and says what the ladder is asked for; to be called about once a second.

        Without `calm` memory is short, so no probe is started.
        """
        self._calm = calm
        self._tend_probe(now_s, load)
        self.gpus = self.client.readings(now_s)
        self.temperatures = self._sensors.read(now_s)
        named = [rank.gpu for rank in load.ranks if rank.gpu is not None] if load.alive else []
        self.workers = workers = of_worker(self.gpus, self._visible, named=named, before=self.workers)
        sources = heat_sources(workers, self.limits.gpu_temperature_c)
        sources += sensor_sources(self.temperatures, self._sensors.cpu_use, self.limits.cpu_temperature_c)
        sources = [replace(source, limits=source.limits.cooler(self.restraint.cooler_by_c)) for source in sources]
        self.is_cool = not workers and all(
            source.temperature_c is not None and source.temperature_c < source.limits.pace_c - FAR_C for source in sources
        )
        self.heat = self._heat.step(now_s, sources, computing=load.computing, may_cap=self.client.may_cap)
        self._note_trouble(now_s, workers, load)
        power_fraction = max(LEAST_CAP, self.restraint.power_fraction * self.heat.power_fraction)
        self.client.cap(power_limits(workers, power_fraction, self.limits.power_w))
        return tuple(self._proposals(now_s, workers, load))

    def note_failed(self, failed: Failed) -> None:
        """Sees others by what the worker saw of them as it gave up: they may have come after the probe's last look."""
        others_bytes = failed.device_others_bytes
        if others_bytes is None:
            return
        if (known := self._vram_of_ranks.get(failed.rank or 0)) is not None:
            self._crowded_at_its_end = known.crowded_by(others_bytes)
        elif self.workers:
            self._crowded_at_its_end = self._vram.crowded_by(others_bytes)

    def note_held(self, memory: MemoryReading, own: WorkerMemory | None) -> None:
        """Keeps what the worker holds now, to be compared with what is there when it is gone."""
        self._held = held_by(memory, self.workers, own)

    def worker_gone(self, now_s: float, ram_left_bytes: int | None, standby_bytes: int = 0) -> GivenBack | None:
        """What the worker gave back; the last two are those of `Proof`. Returns None where the device is still to be asked:
        `given_back` will say it.
        """
        proof = Proof(held=self._held, ram_left_bytes=ram_left_bytes, since_s=now_s, standby_bytes=standby_bytes)
        self._held, self._crowded_at_its_end = Held(), None
        given_back = proof.step(now_s, ())
        if given_back is None:
            self._proof = proof
            self._asked_until_s = now_s + PROOF_WITHIN_S
            self.client.ask(now_s)
        return given_back

    def card_view(
        self, now_s: float, memory: MemoryReading, limits: MemoryLimits, pids: tuple[int, ...] | None = None
    ) -> CardView:
        """What the worker has on GPUs, whose processes are `pids` now, and the room in RAM for that. None of `pids` means that
        they are those of the last second.
        """
        if pids is not None:
            self.client.worker_pids = pids
        holders = self.client.holders(now_s) if self.watches_gpus else {}
        hides = self.has_own_pids and self.watches_gpus and not holders
        return CardView(holders=None if hides else holders, is_hidden=hides, room_bytes=room_bytes(memory, limits))

    def card_leaves(self, now_s: float, held_bytes: int) -> None:
        """Keeps what a program holds on the card that it is about to leave, to be compared with what is there afterwards."""
        used = {gpu.index: gpu.used_bytes for gpu in self.client.readings(now_s) if gpu.used_bytes is not None}
        self._held = Held(vram_bytes=held_bytes, used_bytes=used)

    def card_left(self, now_s: float) -> GivenBack | None:
        """What came back of the card that a program has left, which is still there. Returns None as `worker_gone` does."""
        return self.worker_gone(now_s, None)

    def given_back(self, now_s: float) -> GivenBack | None:
        """What came back, once the device itself says so or has had its time. Returns None before that, and where nothing is
        open.
        """
        given_back = self._proof.step(now_s, self.client.readings(now_s)) if self._proof is not None else None
        if given_back is not None:
            self._proof = None
        return given_back

    def take_news(self) -> list[str]:
        """The sentences for the ledger since the last call, each trouble once."""
        news, self._news = self._news, []
        return news

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What a person should look at now."""
        heat = [Trouble(TroubleKind.HEAT, sentence, about) for about, sentence in self.heat.troubles]
        gently = [] if self.restraint.sentence is None else [Trouble(TroubleKind.GENTLE, self.restraint.sentence)]
        spills = [] if self._spills is None else [Trouble(TroubleKind.VRAM_SPILLS, self._spills)]
        return (*gently, *self._lasting[-MOST_LASTING:], *spills, *heat, *([ON_BATTERY] if self._on_battery else []))

    def close(self) -> None:
        self.client.close()

    def _tend_probe(self, now_s: float, load: Load) -> None:
        if load.alive:
            self.client.worker_pids = load.pids
        if self.watches_gpus and (load.alive or now_s < self._asked_until_s):
            self.client.wake()
        else:
            self.client.rest(now_s)

    def _note_trouble(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> None:
        for gpu in workers:
            if gpu.lost and self.lost is None:
                self.lost = f"GPU {gpu.index} ({gpu.name or 'name unknown'}) is lost: {XIDS[XID_LOST]}."
                self._note(TroubleKind.GPU_LOST, self.lost, str(gpu.index))
        for index, xid in self.client.take_xids():
            sentence = f"GPU {index} reported error {xid}: {XIDS.get(xid, 'see the Xid list of NVIDIA')}."
            self._note(TroubleKind.GPU_ERROR, sentence, f"{index}:{xid}")
        if errors := self.client.take_memory_errors():
            sentence = f"GPU memory had {plural(errors, 'error')} that could not be corrected; results may be wrong."
            self._note(TroubleKind.GPU_ERROR, sentence, "memory")
        for uuid, why in self.client.cap_notes.items():
            self._note(TroubleKind.POWER_LIMIT, f"The power limit of {uuid} is not in force: {why}.", uuid)
        for sensor in self._sensors.left_out:
            sentence = f"The temperature sensor {sensor} answers too slowly and is not watched any more."
            self._note(TroubleKind.SENSOR, sentence, sensor)
        spills = self._spill.step(now_s, workers[0], load.samples_per_s) if self.is_wsl and workers else None
        if spills is not None and self._spills is None:
            self._news.append(spills)
        self._spills = spills
        if self.heat.tell is not None:
            self._news.append(self.heat.tell)

    def _note(self, kind: TroubleKind, sentence: str, subject: str) -> None:
        trouble = Trouble(kind, sentence, subject)
        if trouble not in self._lasting:
            self._lasting = [*(earlier for earlier in self._lasting if earlier.key != trouble.key), trouble]
            self._news.append(sentence)

    def _proposals(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> Iterator[Proposal]:
        heat = self.heat
        yield Proposal(duty_fraction=heat.duty_fraction, hold=HoldReason.HEAT if heat.hold else None, reason=heat.reason)
        on_battery = self._battery.step(now_s, self._supply.on_battery())
        self._on_battery = on_battery and self.limits.on_battery == "pause"
        if self._on_battery:
            yield Proposal(hold=HoldReason.POWER, reason="the machine runs on its battery")
        if load.alive and load.place is not None:
            at = {"on_card": load.place is Place.ON_CARD, "moves": load.place in MOVING}
            card = self._card.step(now_s, self.gpus, **at)
            if card.leave:
                yield Proposal(leave_card=True, reason=card.reason)
        yield from self._of_ranks(now_s, workers, load)
        vram = self._vram_decision(now_s, workers, load)
        if vram is not None:
            self._crowded = vram.crowded
            yield Proposal(shrink=vram.shrink, may_grow=vram.may_grow, vram_limit_bytes=vram.limit_bytes, reason=vram.reason)

    def _of_ranks(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> Iterator[Proposal]:
        """What the control of GPU memory says of each of several ranks, which has a card of its own. Of a rank whose card is
        not known nothing is said: torch's own limit stands.
        """
        crowded = []
        for rank, reading in enumerate(load.ranks if load.alive else ()):
            card = next((gpu for gpu in workers if reading.gpu is not None and gpu.uuid == reading.gpu), None)
            if card is None:
                continue
            control = self._vram_of_ranks.setdefault(rank, VramControl(self.limits.vram))
            vram = control.step(now_s, card, reading.cuda_allocated_bytes, reading.cuda_reserved_bytes)
            crowded += [vram.crowded] if vram.crowded is not None else []
            reason = f"rank {rank}: {vram.reason}" if vram.reason else ""
            yield Proposal(
                shrink=vram.shrink, may_grow=vram.may_grow, vram_limit_bytes=vram.limit_bytes, rank=rank, reason=reason
            )
        if load.alive and load.ranks:
            self._crowded = "; ".join(crowded) or None

    def _vram_decision(self, now_s: float, workers: tuple[GpuReading, ...], load: Load) -> VramDecision | None:
        """What the control of GPU memory says. Returns None while the worker has nothing on a GPU."""
        if not load.alive or load.memory is None or load.memory.cuda_allocated_bytes is None or not workers or load.ranks:
            return None
        return self._vram.step(now_s, workers[0], load.memory.cuda_allocated_bytes, load.memory.cuda_reserved_bytes)
