"""The ladder: readings over time and the worker's state in, a stance out. Pure, and the whole of it on this page.

Covers host memory, disk, and what the heat and VRAM controls propose (`heat.py`, `vram.py`); joins them into one `Stance`. Does
not know what the user asked for and sends no orders: `run/lifecycle.py` turns the stance into orders and keeps the user's wish
apart. Behind every rung stands the fence (`fence/`), which the kernel enforces.

Memory is judged by *use*: the part of what the worker may have that is taken, 0 to 1, the worse of two views — the worker's
tree against its limit, and the machine's used memory against all but the reserve. Climbing is immediate, to the highest rung
whose `enter` is met; coming down is one rung at a time, after `calm_s` below that rung's `leave`.

What the worker may hold is told to it before any rung does something (`room_bytes`): as others take more of the machine, or its
limit falls, it plans with less, and need not be made smaller by halves.

Each step leaves in `Ladder.decided_on` what it was decided on besides the readings. The ledger keeps it with every decision,
and `replay` comes to the same stance from it.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

import msgspec

from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.room import Room, granted_bytes, room_bytes
from memsup.supervisor.decide.uses import HOLD_USE, SHRINK_USE, STOP_GROWING_USE
from memsup.supervisor.words import percent, size


class Rung(enum.IntEnum):
    """A rung of the ladder; the higher, the harder it is on the worker."""

    GROW = 1
    STOP_GROWING = 2
    SHRINK = 3
    PACE = 4
    HOLD = 5
    FREEZE = 6
    KILL = 7


class HoldReason(enum.StrEnum):
    """A pressure that the ladder answers, if need be by a hold."""

    MEMORY = "memory"
    HEAT = "heat"
    DISK = "disk"
    POWER = "power"


@dataclass(frozen=True)
class Step:
    """One memory rung: it is entered at `enter` use (kept for `hold_s`) and left below `leave` after `calm_s`."""

    rung: Rung
    enter: float
    hold_s: float
    leave: float
    calm_s: float


MEMORY_STEPS = (
    Step(Rung.STOP_GROWING, enter=STOP_GROWING_USE, hold_s=0.0, leave=0.78, calm_s=20.0),
    Step(Rung.SHRINK, enter=SHRINK_USE, hold_s=0.0, leave=0.82, calm_s=10.0),
    Step(Rung.HOLD, enter=HOLD_USE, hold_s=1.0, leave=0.85, calm_s=5.0),
)
FREEZE_USE = 0.97
"""The worker is frozen at this part of its own limit, or from `FREEZE_FROM_USE` on when the limit is nearer than an order
takes to work."""
FREEZE_FROM_USE = 0.90
ORDER_TAKES_S = 0.5
CRITICAL_RESERVE, LAST_RESERVE = 0.5, 0.25
"""With less than the first part of the reserve left the worker is frozen too, whoever fills the machine. If free memory does
not fall any more (a container's limit was lowered, say), the worker is thawed to obey; with less than the second part left it
stays frozen."""
STANDS_RESERVE = 0.05
"""Free memory counts as falling if it fell by this part of the reserve or more while the worker was frozen. If it does not, a
worker that limits itself is thawed to obey as long as so much is left, since it can be kept from taking more meanwhile."""
FREEZE_S = 0.5
"""A frozen worker is looked at again after this time: killed if it still stands at the limit, else thawed to obey."""
THAW_GRACE_S = 3.0
"""Racing towards the limit again within this time of a thaw is answered by the kill."""
SHRINK_SETTLES_S = 3.0
"""A halved micro-batch shows in memory after this time; only then is it halved again."""
HOLD_HELPS_WITHIN_S = 20.0
"""A worker that holds keeps its memory. If memory is still short after this time, it is asked to checkpoint, exit and give
everything back. It is given longer, up to `LONGEST_HOLD` times as long, the less of its own limit it takes, for as long as half
of the reserve is there: of several runs that hold for one machine the greediest goes first, and the others find it enough."""
LONGEST_HOLD = 3.0
RATE_WINDOW_S = 0.3
"""The fill rate is reckoned over this time."""
DISK_CALM_S = 30.0
"""Training goes on when there has been room on the disk for this long."""


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """The two limits that memory is judged by."""

    worker_bytes: int
    """The worker's tree may use this much."""
    reserve_bytes: int
    """The rest of the machine keeps this much."""


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A view of the worker: what the ladder must know of it. Where there is none, everything that it is or does is False."""

    alive: bool = False
    takes_orders: bool = False
    """Whether the worker has said Hello and answers; a command that is not attached and an unresponsive worker do not."""
    order_in_flight: bool = False
    """Whether the worker owes the answer to an order about its micro-batch."""
    can_shrink: bool = True
    """Whether a micro-batch has more than a single row."""
    limits_itself: bool = False
    """Whether the worker catches it when it runs out of memory, below a soft limit that may be lowered while it is frozen."""
    held: bool = False
    frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the controls of heat, VRAM and battery ask for."""

    duty_fraction: float = 1.0
    hold: HoldReason | None = None
    shrink: bool = False
    may_grow: bool = True
    vram_limit_bytes: int | None = None
    leave_card: bool = False
    """Whether a program that cannot be made smaller is to leave the whole card to others."""
    rank: int | None = None
    """The one of several ranks, each on a card of its own, that is to shrink or is limited. It is None where all are."""
    reason: str = ""

    @property
    def pressure(self) -> HoldReason | None:
        """What is short or too hot. It is None where nothing is."""
        if self.hold is not None:
            return self.hold
        if self.duty_fraction < 1.0:
            return HoldReason.HEAT
        return HoldReason.MEMORY if self.shrink or self.leave_card or not self.may_grow else None


@dataclass(frozen=True, kw_only=True)
class Stance:
    """What should be so now. `shrink` is asked once; everything else holds until a later stance says otherwise."""

    rung: Rung = Rung.GROW
    may_grow: bool = True
    shrink: bool = False
    duty_fraction: float = 1.0
    shrink_ranks: tuple[int, ...] | None = None
    """The ranks that are to shrink, where the others have room on their cards. It is None where all are to."""
    vram_limit_bytes: int | None = None
    """What torch may reserve of the GPU. It is None where nothing has to be said about that."""
    vram_limits: tuple[tuple[int, int], ...] = ()
    """The same of each of several ranks on GPUs: its number and its bytes."""
    limit_bytes: int | None = None
    """What the worker's tree may hold of the host's memory, by which it is to plan. It is None before anything was read."""
    holds: frozenset[HoldReason] = frozenset()
    leave_card: bool = False
    """Others need the card that a program computes on which takes no orders."""
    release: bool = False
    """Holding did not help: the worker is to checkpoint, exit, and come back when there is room."""
    freeze: bool = False
    kill: bool = False
    pressures: tuple[HoldReason, ...] = ()
    """All pressures that the stance answers, in the order of `HoldReason`."""
    reason: str = ""


class LadderState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a step was decided on, besides the readings: the ladder as it stood before, and what was asked of it."""

    now_s: float
    limits: MemoryLimits
    disk_floor_bytes: int = 0
    worker: WorkerView = WorkerView()
    proposals: tuple[Proposal, ...] = ()
    """The proposals that asked for something."""
    rung: int = Rung.GROW
    above_since: dict[int, float] = {}
    calm_since: float | None = None
    held_since: float | None = None
    frozen_at: float | None = None
    left_when_frozen: int | None = None
    thawed_at: float | None = None
    shrunk_at: float | None = None
    room: Room = Room()
    disk_low: bool = False
    disk_calm_since: float | None = None
    used: tuple[float, int] | None = None
    """An earlier time and the worker's bytes then, from which its fill rate was reckoned. It is None where there was none."""


@dataclass
class Ladder:
    """The ladder as it stands, from look to look."""

    limits: MemoryLimits
    disk_floor_bytes: int = 0
    """Training holds with less free disk than this, the room for one emergency checkpoint."""
    rung: Rung = Rung.GROW
    _above_since: dict[Rung, float] = field(default_factory=dict)
    _calm_since: float | None = None
    _held_since: float | None = None
    _frozen_at: float | None = None
    _left_when_frozen: int | None = None
    """The machine's free bytes when the worker was frozen. They are None where it never was, or they were not known."""
    _thawed_at: float | None = None
    _shrunk_at: float | None = None
    _room: Room = field(default_factory=Room)
    _disk_low: bool = False
    _disk_calm_since: float | None = None
    _used: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))
    decided_on: LadderState | None = None
    """What the last step was decided on, besides the readings. It is None where there was no step yet."""

    def step(
        self,
        now_s: float,
        memory: MemoryReading,
        disk: DiskReading | None,
        worker: WorkerView,
        proposals: tuple[Proposal, ...] = (),
    ) -> Stance:
        """One look at everything. Unknown readings keep the rung as it is: unknown is neither fine nor bad."""
        self.decided_on = self._state_before(now_s, memory, worker, proposals)
        use = memory_use(memory, self.limits)
        if use is not None:
            self._note_growth(memory)
            self._move(now_s, use)
        self._look_at_room(now_s, memory, use)
        freeze, kill = self._emergency(now_s, memory, worker)
        holds, release = self._holds(now_s, memory, disk, proposals)
        shrinks_all = self._shrink(now_s, worker) or any(p.shrink and p.rank is None for p in proposals)
        shrink_ranks = tuple(p.rank for p in proposals if p.shrink and p.rank is not None)
        limited = [(p.rank, p.vram_limit_bytes) for p in proposals if p.vram_limit_bytes is not None]
        duty = min((p.duty_fraction for p in proposals), default=1.0)
        reasons = [p.reason for p in proposals if p.reason]
        pressures = holds | {p.pressure for p in proposals}
        if self.rung is not Rung.GROW or freeze or kill:
            reasons.insert(0, use_in_words(memory, self.limits))
            pressures |= {HoldReason.MEMORY}
        if HoldReason.DISK in holds:
            reasons.append("the disk is nearly full")
        return Stance(
            rung=self._shown_rung(freeze, kill, holds, duty),
            may_grow=self.rung is Rung.GROW and all(p.may_grow for p in proposals),
            shrink=shrinks_all or bool(shrink_ranks),
            shrink_ranks=None if shrinks_all or not shrink_ranks else shrink_ranks,
            duty_fraction=duty,
            vram_limit_bytes=min((limit for rank, limit in limited if rank is None), default=None),
            vram_limits=tuple((rank, limit) for rank, limit in limited if rank is not None),
            limit_bytes=self._room.told_bytes,
            holds=holds,
            leave_card=any(p.leave_card for p in proposals),
            release=release,
            freeze=freeze,
            kill=kill,
            pressures=tuple(pressure for pressure in HoldReason if pressure in pressures),
            reason="; ".join(reasons),
        )

    def headroom_bytes(self, memory: MemoryReading) -> int | None:
        """The bytes to where emergencies begin, in the worse of the two views; negative beyond. Returns None where they are not
        known.
        """
        left = []
        if memory.worker_bytes is not None:
            left.append(int(FREEZE_FROM_USE * self.limits.worker_bytes) - memory.worker_bytes)
        if memory.ram_available_bytes is not None:
            left.append(memory.ram_available_bytes - self.limits.reserve_bytes)
        return min(left, default=None)

    def fill_rate_bytes_per_s(self) -> float | None:
        """How fast the worker's memory grew over the last moments. Returns None where it did not grow, or that is not known."""
        if len(self._used) < 2:
            return None
        (then_s, then_bytes), (now_s, now_bytes) = self._used[0], self._used[-1]
        if now_s <= then_s or now_bytes <= then_bytes:
            return None
        return (now_bytes - then_bytes) / (now_s - then_s)

    def _state_before(
        self, now_s: float, memory: MemoryReading, worker: WorkerView, proposals: tuple[Proposal, ...]
    ) -> LadderState:
        in_window = (seen for seen in self._used if memory.at_s - seen[0] <= RATE_WINDOW_S)
        return LadderState(
            now_s=now_s,
            limits=self.limits,
            disk_floor_bytes=self.disk_floor_bytes,
            worker=worker,
            proposals=tuple(proposal for proposal in proposals if proposal != Proposal()),
            rung=self.rung,
            above_since={int(rung): since_s for rung, since_s in self._above_since.items()},
            calm_since=self._calm_since,
            held_since=self._held_since,
            frozen_at=self._frozen_at,
            left_when_frozen=self._left_when_frozen,
            thawed_at=self._thawed_at,
            shrunk_at=self._shrunk_at,
            room=self._room,
            disk_low=self._disk_low,
            disk_calm_since=self._disk_calm_since,
            used=next(in_window, self._used[-1] if self._used else None),
        )

    # -- up at once, down one at a time -------------------------------------------------------------------------------

    def _move(self, now_s: float, use: float) -> None:
        highest = Rung.GROW
        for step in MEMORY_STEPS:
            if use < step.enter:
                self._above_since.pop(step.rung, None)
            elif now_s - self._above_since.setdefault(step.rung, now_s) >= step.hold_s:
                highest = step.rung
        if highest >= self.rung:
            self.rung, self._calm_since = highest, None
            return
        standing = next(step for step in MEMORY_STEPS if step.rung is self.rung)
        if use >= standing.leave:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now_s
        elif now_s - self._calm_since >= standing.calm_s:
            below = [step.rung for step in MEMORY_STEPS if step.rung < self.rung]
            self.rung, self._calm_since = max(below, default=Rung.GROW), now_s

    def _note_growth(self, memory: MemoryReading) -> None:
        if memory.worker_bytes is not None:
            self._used.append((memory.at_s, memory.worker_bytes))
            while len(self._used) > 2 and memory.at_s - self._used[0][0] > RATE_WINDOW_S:
                self._used.popleft()

    # -- the rungs that do something ----------------------------------------------------------------------------------

    def _look_at_room(self, now_s: float, memory: MemoryReading, use: float | None) -> None:
        """Sees what the worker may hold. When it is told that this is less, its plan is given the time of a halving to show.
        When it is more since a limit was raised, what the rungs were climbed for is over, and nobody has to wait for calm.
        """
        before, limit_bytes = self._room, self.limits.worker_bytes
        room = room_bytes(memory, limit_bytes=limit_bytes, reserve_bytes=self.limits.reserve_bytes)
        granted = granted_bytes(memory, limit_bytes=limit_bytes, reserve_bytes=self.limits.reserve_bytes)
        self._room = before.seen(now_s, room, limit_bytes, granted)
        if before.told_bytes is None or self._room.told_bytes is None:
            return
        if self._room.told_bytes < before.told_bytes:
            self._shrunk_at = now_s
        elif self._room.told_bytes > before.told_bytes and before.was_given(granted) and use is not None:
            held = max((step.rung for step in MEMORY_STEPS if use >= step.leave), default=Rung.GROW)
            if held < self.rung:
                self.rung, self._calm_since = held, None

    def _shrink(self, now_s: float, worker: WorkerView) -> bool:
        if self.rung < Rung.SHRINK or not worker.takes_orders or worker.order_in_flight or not worker.can_shrink or worker.held:
            return False
        if self._shrunk_at is not None and now_s - self._shrunk_at < SHRINK_SETTLES_S:
            return False
        if self._calm_since is not None:  # on the way down there is no need for less
            return False
        self._shrunk_at = now_s
        return True

    def _holds(
        self, now_s: float, memory: MemoryReading, disk: DiskReading | None, proposals: tuple[Proposal, ...]
    ) -> tuple[frozenset[HoldReason], bool]:
        holds = {p.hold for p in proposals if p.hold is not None}
        release = False
        if self.rung >= Rung.HOLD:
            holds.add(HoldReason.MEMORY)
            self._held_since = now_s if self._held_since is None else self._held_since
            release = self._calm_since is None and now_s - self._held_since >= self._hold_helps_within_s(memory)
        else:
            self._held_since = None
        if disk is not None and disk.free_bytes is not None:
            if disk.free_bytes < self.disk_floor_bytes:
                self._disk_low, self._disk_calm_since = True, None
            elif self._disk_low:
                self._disk_calm_since = now_s if self._disk_calm_since is None else self._disk_calm_since
                self._disk_low = now_s - self._disk_calm_since < DISK_CALM_S
        if self._disk_low:
            holds.add(HoldReason.DISK)
        return frozenset(holds), release

    def _hold_helps_within_s(self, memory: MemoryReading) -> float:
        """The time after which a worker that holds is asked to give its memory back."""
        of_worker, left = _views(memory, self.limits)[0], memory.ram_available_bytes
        if of_worker is None or left is None or left < CRITICAL_RESERVE * self.limits.reserve_bytes:
            return HOLD_HELPS_WITHIN_S
        hold = MEMORY_STEPS[-1].enter
        return HOLD_HELPS_WITHIN_S * (1.0 + (LONGEST_HOLD - 1.0) * max(0.0, hold - of_worker) / hold)

    def _emergency(self, now_s: float, memory: MemoryReading, worker: WorkerView) -> tuple[bool, bool]:
        """Whether to freeze, since memory falls faster than orders work, and to kill what is at the limit although frozen."""
        if not worker.alive:
            self._frozen_at = self._thawed_at = None
            self._used.clear()
            return False, False
        at_limit = self._at_limit(now_s, memory, worker)
        if self._frozen_at is None:
            if at_limit or self._racing(memory):
                self._frozen_at, self._left_when_frozen = now_s, memory.ram_available_bytes
            return self._frozen_at is not None, False
        if now_s - self._frozen_at < FREEZE_S or at_limit is None:
            return True, False
        if at_limit or (self._thawed_at is not None and self._frozen_at - self._thawed_at < THAW_GRACE_S):
            return True, True
        self._frozen_at, self._thawed_at = None, now_s
        self._used.clear()
        return False, False

    def _at_limit(self, now_s: float, memory: MemoryReading, worker: WorkerView) -> bool | None:
        """Whether the worker fills its limit, or somebody fills the machine. Returns None where nothing can be read."""
        left = memory.ram_available_bytes
        if self._fills_its_limit(memory):
            return True
        if left is None:
            return None if memory.worker_bytes is None else False
        return left < self._least_reserve(now_s, left, worker) * self.limits.reserve_bytes

    def _fills_its_limit(self, memory: MemoryReading) -> bool:
        return memory.worker_bytes is not None and memory.worker_bytes >= FREEZE_USE * self.limits.worker_bytes

    def _least_reserve(self, now_s: float, left_bytes: int, worker: WorkerView) -> float:
        """The part of the reserve below which somebody fills the machine."""
        if not (self._has_time_to_obey(now_s, worker) or self._no_longer_falls(left_bytes)):
            return CRITICAL_RESERVE
        return STANDS_RESERVE if worker.limits_itself and not worker.held else LAST_RESERVE

    def _has_time_to_obey(self, now_s: float, worker: WorkerView) -> bool:
        """Whether the worker holds already, or was thawed just now to give back what it has."""
        return worker.held or (self._thawed_at is not None and now_s - self._thawed_at < THAW_GRACE_S)

    def _no_longer_falls(self, left_bytes: int) -> bool:
        """Whether the machine lost little while the worker was frozen; False while it is not."""
        if self._frozen_at is None or self._left_when_frozen is None:
            return False
        return self._left_when_frozen - left_bytes < STANDS_RESERVE * self.limits.reserve_bytes

    def _racing(self, memory: MemoryReading) -> bool:
        if memory.worker_bytes is None or memory.worker_bytes < FREEZE_FROM_USE * self.limits.worker_bytes:
            return False
        rate = self.fill_rate_bytes_per_s()
        return rate is not None and self.limits.worker_bytes - memory.worker_bytes < rate * ORDER_TAKES_S

    def _shown_rung(self, freeze: bool, kill: bool, holds: frozenset[HoldReason], duty: float) -> Rung:
        if kill:
            return Rung.KILL
        if freeze:
            return Rung.FREEZE
        if holds:
            return Rung.HOLD
        return max(self.rung, Rung.PACE) if duty < 1.0 else self.rung


def replay(state: LadderState, memory: MemoryReading, disk: DiskReading | None) -> Stance:
    """The stance that the ladder came to in `state` on these readings."""
    ladder = Ladder(
        state.limits,
        state.disk_floor_bytes,
        Rung(state.rung),
        {Rung(rung): since_s for rung, since_s in state.above_since.items()},
        state.calm_since,
        state.held_since,
        state.frozen_at,
        state.left_when_frozen,
        state.thawed_at,
        state.shrunk_at,
        state.room,
        state.disk_low,
        state.disk_calm_since,
        deque([] if state.used is None else [state.used], maxlen=64),
    )
    return ladder.step(state.now_s, memory, disk, state.worker, state.proposals)


def memory_use(memory: MemoryReading, limits: MemoryLimits) -> float | None:
    """The worse of the two views of `memory`. Returns None where neither can be had."""
    return max((use for use in _views(memory, limits) if use is not None), default=None)


def use_in_words(memory: MemoryReading, limits: MemoryLimits) -> str:
    """The worse of the two views of `memory`, in a clause."""
    of_worker, of_machine = _views(memory, limits)
    if of_machine is not None and (of_worker is None or of_machine > of_worker):
        left, reserve = size(memory.ram_available_bytes), size(limits.reserve_bytes)
        return f"the machine has {left} left and {reserve} are its reserve ({percent(of_machine)} in use)"
    if of_worker is not None:
        return f"the worker uses {size(memory.worker_bytes)} of its {size(limits.worker_bytes)} ({percent(of_worker)})"
    return "memory cannot be read"


def _views(memory: MemoryReading, limits: MemoryLimits) -> tuple[float | None, float | None]:
    """The use of the worker's limit, and of the machine's memory without the reserve. Each is None where it is not known."""
    of_worker = None if memory.worker_bytes is None else memory.worker_bytes / limits.worker_bytes
    if memory.ram_total_bytes is None or memory.ram_available_bytes is None:
        return of_worker, None
    used = memory.ram_total_bytes - memory.ram_available_bytes
    return of_worker, used / max(1, memory.ram_total_bytes - limits.reserve_bytes)
