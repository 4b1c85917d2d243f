"""Every intervention with its reason and its price, and the facts that a reader of the morning has to know. Pure.

A price is the time in which training did not get on because of something: frozen, held, started again, or busy with steps that
it had done before. What is not known has no price (`None`), and what a person asked for is not charged to memsup.

The ledger's enums and typed fields say what a line is about. Its sentences are shown, and never looked into.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from memsup.shared.messages import PauseMode
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By, Event, OrderKind
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.record.history import Activity
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.report.axis import Moment
from memsup.supervisor.words import count, duration, plural

Placed = tuple[float, Entry]
"""A line of the ledger at its place on the page."""

_LOOK_AHEAD = 2_000
"""The end of something is looked for among so many lines; what takes longer to end has no price."""
_KILL_TAKES_S = 30.0
_MICRO_BATCH = {OrderKind.HALVE, OrderKind.STOP_GROWING, OrderKind.GROW, OrderKind.LIMIT_TOKENS, OrderKind.LIMIT_RAM}


class Kind(enum.StrEnum):
    """What an intervention was about; its colour on the page."""

    MEMORY = "memory"
    HEAT = "heat"
    DISK = "disk"
    DEATH = "death"
    MACHINE = "machine"
    USER = "user"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One thing that was done to the run, and what it cost. It lasts from `x` to `until`, which is None for an instant and for
    what is not over.
    """

    number: int
    x: float
    kind: Kind
    what: str
    why: str
    step: int | None = None
    result: str | None = None
    until: float | None = None
    cost_s: float | None = None
    redone_steps: int = 0
    asked: bool = False
    """A person asked for it."""
    by_memsup: bool = True
    """memsup did something to the run, as opposed to what befell it: a death that nothing follows, or that of the machine."""
    restarted: bool = False
    """The worker was started again after it."""
    waits: bool = False
    """The worker is to be started again after it, and has not been yet."""
    event: Event | None = None
    """The kind of line that tells of it. It is None for a start of the machine that no line tells of."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that the worker decided by itself and that changes what was trained, or how."""

    x: float
    event: Event
    text: str
    """The worker's own sentence."""
    checkpoint: str | None = None
    """The folder of the checkpoint that was used."""
    checkpoint_step: int | None = None
    """The step that this checkpoint holds."""
    rows: int | None = None
    """How many rows of the data were left out."""


# --------------------------------------------------------------------------------------------------------------------
# Interventions


def interventions_of(
    ledger: Sequence[Placed], moments: Sequence[Moment], step_s: float | None, *, waits: bool
) -> list[Intervention]:
    """All interventions, in order. `step_s` is what one step took; with None, steps that were done again have no price. `waits`
    says that the run is guarded and has no worker now, so that the life after the last death has not begun.
    """
    found: list[Intervention] = []
    for i, (x, entry) in enumerate(ledger):
        before = ledger[i - 1][1] if i else None
        if before is not None and entry.boot != before.boot:
            found.append(_machine_death(ledger[i - 1], (x, entry), moments, step_s))
            if entry.event is Event.POSTMORTEM:
                continue
        made = _intervention(x, entry, ledger[i + 1 : i + 1 + _LOOK_AHEAD], step_s, waits=waits)
        if made is None:
            continue
        if entry.event is Event.DEATH and found and found[-1].event is Event.KILL and x - found[-1].x < _KILL_TAKES_S:
            killed = found.pop()
            cost_s = None if made.cost_s is None else made.cost_s + made.x - killed.x
            what = f"{killed.what}, then {made.what}"
            made = replace(made, x=killed.x, what=what, why=killed.why or made.why, cost_s=cost_s, by_memsup=True)
        found.append(made)
    found.sort(key=lambda i: i.x)
    return [replace(intervention, number=n) for n, intervention in enumerate(found, 1)]


def _intervention(x: float, entry: Entry, later: Sequence[Placed], step_s: float | None, *, waits: bool) -> Intervention | None:
    """The intervention that `entry` tells of. Returns None where it tells of a reading, or of the end or second half of
    something.
    """
    base = Intervention(
        number=0,
        x=x,
        kind=_kind(entry),
        what=entry.action or "",
        why=entry.reason,
        step=entry.step,
        result=entry.result,
        event=entry.event,
    )
    match entry.event:
        case Event.FREEZE | Event.ORDER | Event.KILL if entry.by in (By.USER, By.HOURS):
            return None  # told by its WANTED, or HOURS_END; a foreign command is paused by a freeze, and `stop --now` kills
        case Event.FREEZE:
            until = _first(later, entry.boot, lambda e: e.event in (Event.THAW, Event.KILL, Event.DEATH))
            return replace(base, what="froze the worker", until=until, cost_s=_lasted(x, until))
        case Event.ORDER:
            return _order(base, entry, later)
        case Event.OUT_OF_MEMORY:
            return replace(base, cost_s=step_s)
        case Event.KILL:
            return replace(base, what="killed the whole tree")
        case Event.DEATH:
            return _death(base, entry, later, step_s, waits=waits)
        case Event.WANTED:
            return _wanted(base, entry, later)
        case Event.HOURS_END:
            until = _first(later, entry.boot, lambda e: e.event is Event.HOURS_BEGIN)
            return replace(base, what="paused by its hours", until=until, cost_s=_lasted(x, until), asked=True, by_memsup=False)
        case Event.HOURS_BEGIN | Event.SMALLER | Event.RUNG | Event.END | Event.THAW | Event.RECOVERED:
            return None
        case Event.POSTMORTEM:
            # In the same boot: only the supervisor died. What a new boot says of the one before is `_machine_death`'s.
            return replace(base, kind=Kind.OTHER, what="the supervisor ended and was started again", by_memsup=False)
        case Event.CHECKPOINT_DAMAGED:
            return _damaged(base, entry, later)
        case _:
            return base if entry.action else None


def _order(base: Intervention, entry: Entry, later: Sequence[Placed]) -> Intervention | None:
    match entry.order:
        case OrderKind.HOLD | OrderKind.RELEASE:
            until = _first(later, entry.boot, lambda e: e.order is OrderKind.RESUME or e.event in (Event.KILL, Event.DEATH))
            kept = "kept" if entry.order is OrderKind.HOLD else "given back"
            return replace(base, what=f"held the worker, its memory {kept}", until=until, cost_s=_lasted(base.x, until))
        case OrderKind.PACE:
            until = _first(later, entry.boot, lambda e: e.order is OrderKind.PACE or e.event in (Event.DEATH, Event.END))
            duty = 1.0 if entry.duty_fraction is None else min(1.0, max(0.0, entry.duty_fraction))
            if duty == 1.0:
                return None
            return replace(base, until=until, cost_s=None if until is None else (until - base.x) * (1 - duty))
        case OrderKind.RESUME:
            return None
        case _:
            return base if entry.action else None


def _wanted(base: Intervention, entry: Entry, later: Sequence[Placed]) -> Intervention | None:
    if entry.wanted is Wanted.PAUSED:
        until = _first(later, entry.boot, lambda e: e.event is Event.WANTED)
        mode = "its memory given back" if entry.pause_mode is PauseMode.RELEASE else "its memory kept"
        return replace(base, what=f"paused, {mode}", until=until, cost_s=_lasted(base.x, until), asked=True, by_memsup=False)
    if entry.wanted is Wanted.STOPPED and entry.by is By.SUPERVISOR:
        return replace(base, what="waited for a person to start it again")
    return replace(base, what="asked to stop", asked=True, by_memsup=False) if entry.wanted is Wanted.STOPPED else None


def _death(base: Intervention, entry: Entry, later: Sequence[Placed], step_s: float | None, *, waits: bool) -> Intervention:
    smaller = next((e.action for _, e in later[:3] if e.event is Event.SMALLER), None)
    ends = next(
        ((x, e) for x, e in later if e.boot == entry.boot and e.event in (Event.RECOVERED, Event.DEATH, Event.END)), None
    )
    again = entry.again is not False and ends is not None and ends[1].event is Event.RECOVERED
    waits = waits and entry.again is True and ends is None
    follows = entry.again is True and not waits
    if ends is not None and ends[1].event is Event.END and ends[0] - base.x < (entry.delay_s or 0.0):
        follows = False  # it was stopped before the next life began
    redone, until = 0, ends[0] if ends else None
    if again and ends is not None and entry.step is not None and ends[1].step is not None:
        redone = max(0, entry.step - ends[1].step)
    cost_s = _lasted(base.x, until) if follows else None
    if cost_s is not None and redone and step_s is not None:
        cost_s += redone * step_s
    lost = entry.lost_steps if ends is not None and ends[1].event is Event.END else None
    if lost and entry.lost_s is not None:
        cost_s = (cost_s or 0.0) + entry.lost_s
    parts = [
        smaller,
        f"{plural(redone, 'step')} done again" if redone else None,
        f"{plural(lost, 'step')} lost" if lost else None,
    ]
    if again and ends is not None:
        does = "running" if ends[1].step is None else "training"  # a command has no steps
        parts.insert(0, f"{does} again after {duration(_lasted(base.x, until))}")
    return replace(
        base,
        what="the worker ended, and was stopped before it was started again"
        if entry.again and not (follows or waits)
        else base.what or "the worker ended",
        by_memsup=follows,
        restarted=follows,
        waits=waits,
        result=", ".join(part for part in parts if part) or None,
        until=until,
        cost_s=cost_s,
        redone_steps=redone,
    )


def _damaged(base: Intervention, entry: Entry, later: Sequence[Placed]) -> Intervention:
    """The damage of a checkpoint. Which one was used instead is told by a line of its own, before the worker trains again."""
    used = None
    for _, e in later:
        if e.boot != entry.boot or e.event in (Event.CHECKPOINT_USED, Event.RECOVERED, Event.DEATH, Event.END):
            used = e if e.boot == entry.boot and e.event is Event.CHECKPOINT_USED else None
            break
    which = "" if entry.checkpoint_step is None else f" of step {count(entry.checkpoint_step)}"
    return replace(
        base,
        kind=Kind.DISK,
        what=f"set the damaged checkpoint{which} aside",
        result=base.result if used is None else f"went on from {_checkpoint(used)}",
    )


def _machine_death(last: Placed, first: Placed, moments: Sequence[Moment], step_s: float | None) -> Intervention:
    """The start of the machine between `last` and `first`, which is of another boot, whether somebody asked for it or not."""
    before, (x, after) = last[1], first
    last_x = min(x, max((m.x for m in moments if m.point.boot == before.boot), default=last[0]))
    last_x = max(last_x, last[0])
    reached = max((m.point.step for m in moments if m.x <= last_x and m.point.step is not None), default=before.step)
    works = (Activity.TRAINING, Activity.RUNNING)
    trained = next((m for m in moments if m.x >= x and any(m.point.spent_s.get(name) for name in works)), None)
    redone = 0
    if trained is not None and trained.point.step is not None and reached is not None:
        redone = max(0, reached - trained.point.step)
    asked = before.event is Event.END
    cost_s = None if trained is None else trained.x - last_x + (redone * step_s if step_s else 0.0)
    told = after.event is Event.POSTMORTEM
    why = "the run had ended in good order before" if asked else "it went down without a word to memsup"
    return Intervention(
        number=0,
        x=last_x,
        kind=Kind.MACHINE,
        what="the machine was started again",
        why=after.reason if told else why,
        step=reached,
        result=f"{plural(redone, 'step')} done again" if redone else None,
        until=trained.x if trained else None,
        cost_s=None if asked else cost_s,
        redone_steps=redone,
        asked=asked,
        by_memsup=False,
        event=Event.POSTMORTEM if told else None,
    )


def _kind(entry: Entry) -> Kind:
    if entry.event in (Event.DEATH, Event.HANG):
        return Kind.DEATH
    if entry.event in (Event.WANTED, Event.HOURS_END):
        return Kind.USER
    if entry.order is OrderKind.PACE or entry.state == RunState.COOLING or HoldReason.HEAT in entry.pressures:
        return Kind.HEAT
    if HoldReason.DISK in entry.pressures:
        return Kind.DISK
    if entry.event in (Event.FREEZE, Event.OUT_OF_MEMORY, Event.SMALLER) or entry.rung or entry.order in _MICRO_BATCH:
        return Kind.MEMORY
    return Kind.OTHER


def _first(later: Sequence[Placed], boot: str, test: Callable[[Entry], bool]) -> float | None:
    return next((x for x, entry in later if entry.boot == boot and test(entry)), None)


def _lasted(begin: float, until: float | None) -> float | None:
    return None if until is None else max(0.0, until - begin)


# --------------------------------------------------------------------------------------------------------------------
# Facts

_DECISIONS = {
    Event.CHECKPOINT_USED,
    Event.MEMORY_USED,
    Event.MEMORY_DAMAGED,
    Event.BEST_LOST,
    Event.STOPPED_EARLY,
    Event.ROWS_LEFT_OUT,
    Event.CUT_REFUSED,
}


def facts_of(ledger: Sequence[Placed]) -> list[Fact]:
    """What the worker decided by itself, each once and as it was told last: it says them anew in each of its lives."""
    newest: dict[tuple[Event, str | None, int | None], Fact] = {}
    for x, entry in ledger:
        if entry.event in _DECISIONS:
            fact = Fact(
                x=x,
                event=entry.event,
                text=entry.reason,
                checkpoint=entry.checkpoint,
                checkpoint_step=entry.checkpoint_step,
                rows=entry.rows,
            )
            newest[fact.event, fact.checkpoint, fact.rows] = fact
    return sorted(newest.values(), key=lambda fact: fact.x)


def _checkpoint(entry: Entry) -> str:
    name = "an older checkpoint" if entry.checkpoint is None else f"the checkpoint {PurePath(entry.checkpoint).name}"
    return name if entry.checkpoint_step is None else f"{name}, of step {count(entry.checkpoint_step)}"
