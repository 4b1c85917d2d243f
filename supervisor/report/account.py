"""What the night came to: where the time went, every intervention with its price, and the figures above them. Pure.

Times on the page are `x`: Unix seconds, made to run forward only. Within a boot the supervisor's own clock gives the distances,
so a wall clock that was set back folds nothing over; a sleeping machine, whose own clock stands still, leaves its gap.

A price is the time in which training did not get on because of something: frozen, held, started again, or busy with steps that
it had done before. What is not known has no price (`None`), and what a person asked for is not charged to memsup.
"""

from __future__ import annotations

import bisect
import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memsup.supervisor.record.history import Activity, Point, thin
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.report.gather import LAST_SECOND, Material
from memsup.supervisor.words import duration, plural

MOST_POINTS = 1_500
"""More than a plot has pixels to show."""
_LONGEST_SLEEP_S = 7 * 86400.0
"""The wall clock ran further ahead than this within one boot: it was set, nobody slept."""
_BY_USER = "the user asked"
"""The reason that `lifecycle.py` gives for what a person ordered."""


class Gap(enum.StrEnum):
    """Why nobody recorded anything for a while."""

    OFF = "off"
    STOPPED = "stopped"
    UNGUARDED = "unguarded"


class Kind(enum.StrEnum):
    MEMORY = "memory"
    HEAT = "heat"
    DISK = "disk"
    DEATH = "death"
    MACHINE = "machine"
    USER = "user"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One thing that was done to the run, and what it cost. Lasts from `x` to `until` (None: an instant, or not over)."""

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


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point of the history at its place on the page."""

    x: float
    point: Point
    begins_life: bool
    """The first of a supervisor's life: there is a gap before it."""


@dataclass(frozen=True, kw_only=True)
class GapSpan:
    begin: float
    end: float
    why: Gap


@dataclass(frozen=True, kw_only=True)
class Account:
    begin: float
    end: float
    moments: tuple[Moment, ...]
    ledger: tuple[tuple[float, Entry], ...]
    gaps: tuple[GapSpan, ...]
    interventions: tuple[Intervention, ...]
    spent_s: dict[str, float]
    """Seconds by `Activity` and `Gap`, only what is not nought; empty where no history was kept."""
    step_s: float | None
    """What one step took, as measured."""

    @property
    def cost_s(self) -> float:
        """Of all interventions that nobody asked for."""
        return sum(i.cost_s or 0.0 for i in self.interventions if not i.asked)

    @property
    def redone_steps(self) -> int:
        return sum(i.redone_steps for i in self.interventions)

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "schema": 1,
            "begin": self.begin,
            "end": self.end,
            "spent_s": self.spent_s,
            "step_s": self.step_s,
            "cost_s": self.cost_s,
            "redone_steps": self.redone_steps,
            "interventions": [asdict(intervention) for intervention in self.interventions],
        }


def account(material: Material) -> Account:
    points, entries = thin(material.points, MOST_POINTS), material.entries
    stamps = [(p.boot, p.mono, p.at) for p in points] + [(e.boot, e.mono, e.at) for e in entries]
    xs = place(stamps, _boots_in_order(points, entries))
    begins_life = [not p.spent_s and i > 0 for i, p in enumerate(points)]
    moments = sorted(
        (Moment(x=x, point=p, begins_life=b) for x, p, b in zip(xs, points, begins_life, strict=False)), key=lambda m: m.x
    )
    ledger = sorted(zip(xs[len(points) :], entries, strict=True), key=lambda pair: pair[0])
    gaps = _gaps(moments, ledger)
    step_s = _step_s(moments)
    return Account(
        begin=min(xs, default=material.now_unix_s),
        end=max(xs, default=material.now_unix_s),
        moments=tuple(moments),
        ledger=tuple(ledger),
        gaps=tuple(gaps),
        interventions=tuple(_interventions(ledger, moments, step_s)),
        spent_s=_spent(moments, gaps),
        step_s=step_s,
    )


# --------------------------------------------------------------------------------------------------------------------
# One axis

Stamp = tuple[str, float, float]
"""Boot, monotonic seconds, Unix seconds."""


def place(stamps: Sequence[Stamp], boots: Sequence[str]) -> list[float]:
    """Where each stamp lies on the page. `boots`: all boots, in order."""
    rank = {boot: i for i, boot in enumerate(boots)}
    order = sorted(range(len(stamps)), key=lambda i: (rank[stamps[i][0]], stamps[i][1]))
    xs = [0.0] * len(stamps)
    before: Stamp | None = None
    x = 0.0
    for i in order:
        boot, mono, at = stamps[i]
        if before is None:
            x = at
        elif boot != before[0]:
            x += max(0.0, at - before[2])
        else:
            by_own_clock, by_wall_clock = mono - before[1], at - before[2]
            slept = 0 <= by_wall_clock - by_own_clock < _LONGEST_SLEEP_S
            x += by_wall_clock if slept else by_own_clock
        x = min(x, LAST_SECOND)
        xs[i], before = x, stamps[i]
    return xs


def _boots_in_order(points: Sequence[Point], entries: Sequence[Entry]) -> list[str]:
    """As they follow each other in the two files, which are only ever appended to; dates may be wrong."""
    boots = list(dict.fromkeys(entry.boot for entry in entries))
    after = 0
    for boot in dict.fromkeys(point.boot for point in points):
        if boot not in boots:
            boots.insert(after, boot)
        after = boots.index(boot) + 1
    return boots


# --------------------------------------------------------------------------------------------------------------------
# Where time went


def _gaps(moments: Sequence[Moment], ledger: Sequence[tuple[float, Entry]]) -> list[GapSpan]:
    gaps = []
    ledger_xs = [x for x, _ in ledger]
    for before, moment in itertools.pairwise(moments):
        if not moment.begins_life:
            continue
        until = bisect.bisect_right(ledger_xs, moment.x)
        last = next(
            (e for _, e in reversed(ledger[:until]) if e.boot == before.point.boot and e.mono < _own(moment, before)), None
        )
        if last is not None and last.event == "end":
            why = Gap.STOPPED
        else:
            why = Gap.OFF if moment.point.boot != before.point.boot else Gap.UNGUARDED
        gaps.append(GapSpan(begin=before.x, end=moment.x, why=why))
    return gaps


def _own(moment: Moment, before: Moment) -> float:
    return moment.point.mono if moment.point.boot == before.point.boot else float("inf")


def _spent(moments: Sequence[Moment], gaps: Sequence[GapSpan]) -> dict[str, float]:
    spent = {str(name): 0.0 for name in [*Activity, *Gap]}
    for moment in moments:
        for name, seconds in moment.point.spent_s.items():
            if name in spent and 0 < seconds < _LONGEST_SLEEP_S:
                spent[name] += seconds
    for gap in gaps:
        spent[gap.why] += gap.end - gap.begin
    return {name: seconds for name, seconds in spent.items() if seconds > 0}


def _step_s(moments: Sequence[Moment]) -> float | None:
    """Seconds of training for each step that was new."""
    seconds, steps, highest, waiting_s = 0.0, 0, None, 0.0
    for moment in moments:
        point = moment.point
        trained_s = point.spent_s.get(Activity.TRAINING, 0.0)
        waiting_s += trained_s if 0 < trained_s < _LONGEST_SLEEP_S else 0.0
        if point.step is None:
            continue
        if highest is not None and point.step > highest:
            steps += point.step - highest
            seconds += waiting_s
        if highest is None or point.step >= highest:
            highest, waiting_s = point.step, 0.0
    return seconds / steps if steps else None


# --------------------------------------------------------------------------------------------------------------------
# Interventions


def _interventions(
    ledger: Sequence[tuple[float, Entry]], moments: Sequence[Moment], step_s: float | None
) -> list[Intervention]:
    found: list[Intervention] = []
    for i, (x, entry) in enumerate(ledger):
        before = ledger[i - 1][1] if i else None
        if before is not None and entry.boot != before.boot:
            found.append(_machine_death(ledger[i - 1], (x, entry), moments, step_s))
            if entry.event == "postmortem":
                continue
        made = _intervention(x, entry, ledger[i + 1 : i + 1 + _LOOK_AHEAD], step_s)
        if made is None:
            continue
        if entry.event == "death" and found and found[-1].what == _KILL and x - found[-1].x < _KILL_TAKES_S:
            killed = found.pop()
            cost_s = None if made.cost_s is None else made.cost_s + made.x - killed.x
            made = replace(made, x=killed.x, what=f"{killed.what}, then {made.what}", why=killed.why or made.why, cost_s=cost_s)
        found.append(made)
    found.sort(key=lambda i: i.x)
    return [replace(intervention, number=n) for n, intervention in enumerate(found, 1)]


_LOOK_AHEAD = 2_000
"""The end of something is looked for among so many lines; what takes longer to end has no price."""
_KILL = "killed the whole tree"
_KILL_TAKES_S = 30.0


def _intervention(x: float, entry: Entry, later: Sequence[tuple[float, Entry]], step_s: float | None) -> Intervention | None:
    """None: the entry tells of a reading, of the end of something, or of the second half of it."""
    action = entry.action or ""
    base = Intervention(number=0, x=x, kind=_kind(entry), what=action, why=entry.reason, step=entry.step, result=entry.result)
    match entry.event:
        case "freeze" if entry.reason.startswith(_BY_USER):
            return None  # as a foreign command is paused; told by its "wanted"
        case "freeze":
            until = _first(later, entry.boot, lambda e: e.event in ("thaw", "kill", "death"))
            return replace(base, what="froze the worker", until=until, cost_s=_lasted(x, until))
        case "order" if entry.reason == _BY_USER:
            return None  # told by its "wanted"
        case "order" if action.startswith("pause"):
            until = _first(later, entry.boot, lambda e: e.action in ("resume", "kill the whole tree") or e.event == "death")
            return replace(base, what="held the worker, its memory kept", until=until, cost_s=_lasted(x, until))
        case "order" if action.startswith("compute "):
            until = _first(later, entry.boot, lambda e: (e.action or "").startswith("compute ") or e.event in ("death", "end"))
            idle = 1 - _percentage(action)
            if idle == 0:
                return None
            return replace(base, until=until, cost_s=None if until is None else (until - x) * idle)
        case "order" if action == "resume":
            return None
        case "out_of_memory":
            return replace(base, cost_s=step_s)
        case "kill":
            return replace(base, what=_KILL)
        case "death":
            return _death(base, entry, later, step_s)
        case "wanted" if action.startswith("paused"):
            until = _first(later, entry.boot, lambda e: e.event == "wanted")
            mode = "its memory given back" if "release" in action else "its memory kept"
            return replace(base, what=f"paused, {mode}", until=until, cost_s=_lasted(x, until), asked=True)
        case "wanted" if action == "stopped":
            return replace(base, what="asked to stop", asked=True)
        case "wanted" | "smaller" | "rung" | "end" | "thaw" | "recovered":
            return None
        case "postmortem":
            # In the same boot: only the supervisor died. What a new boot says of the one before is `_machine_death`'s.
            return replace(base, kind=Kind.OTHER, what="found out what the last death was")
        case _ if action:
            return base
    return None


def _death(base: Intervention, entry: Entry, later: Sequence[tuple[float, Entry]], step_s: float | None) -> Intervention:
    smaller = next((e.action for _, e in later[:3] if e.event == "smaller"), None)
    ends = next(((x, e) for x, e in later if e.boot == entry.boot and e.event in ("recovered", "death", "end")), None)
    again = ends is not None and ends[1].event == "recovered"
    redone, until = 0, ends[0] if ends else None
    if again and ends is not None and entry.step is not None and ends[1].step is not None:
        redone = max(0, entry.step - ends[1].step)
    cost_s = _lasted(base.x, until)
    if cost_s is not None and redone and step_s is not None:
        cost_s += redone * step_s
    parts = [smaller, f"{plural(redone, 'step')} done again" if redone else None]
    if again:
        parts.insert(0, f"training again after {duration(_lasted(base.x, until))}")
    return replace(
        base,
        what=base.what or "the worker ended",
        result=", ".join(part for part in parts if part) or None,
        until=until,
        cost_s=cost_s,
        redone_steps=redone,
    )


def _machine_death(
    last: tuple[float, Entry], first: tuple[float, Entry], moments: Sequence[Moment], step_s: float | None
) -> Intervention:
    """Between `last` and `first`, of another boot, the machine was started again, asked for or not."""
    before, (x, after) = last[1], first
    last_x = min(x, max((m.x for m in moments if m.point.boot == before.boot), default=last[0]))
    last_x = max(last_x, last[0])
    reached = max((m.point.step for m in moments if m.x <= last_x and m.point.step is not None), default=before.step)
    trained = next((m for m in moments if m.x >= x and m.point.spent_s.get(Activity.TRAINING)), None)
    redone = 0
    if trained is not None and trained.point.step is not None and reached is not None:
        redone = max(0, reached - trained.point.step)
    asked = before.event == "end"
    cost_s = None if trained is None else trained.x - last_x + (redone * step_s if step_s else 0.0)
    why = "the run had ended in good order before" if asked else "it went down without a word to memsup"
    return Intervention(
        number=0,
        x=last_x,
        kind=Kind.MACHINE,
        what="the machine was started again",
        why=after.reason if after.event == "postmortem" else why,
        step=reached,
        result=f"{plural(redone, 'step')} done again" if redone else None,
        until=trained.x if trained else None,
        cost_s=None if asked else cost_s,
        redone_steps=redone,
        asked=asked,
    )


def _kind(entry: Entry) -> Kind:
    action = entry.action or ""
    if entry.event in ("death", "hang"):
        return Kind.DEATH
    if entry.event == "wanted":
        return Kind.USER
    if action.startswith("compute ") or entry.state == "cooling" or "°C" in entry.reason:
        return Kind.HEAT
    if "disk" in entry.reason:
        return Kind.DISK
    if entry.event in ("freeze", "out_of_memory", "smaller") or entry.rung or "micro-batch" in action:
        return Kind.MEMORY
    return Kind.OTHER


def _first(later: Sequence[tuple[float, Entry]], boot: str, test: Callable[[Entry], bool]) -> float | None:
    return next((x for x, entry in later if entry.boot == boot and test(entry)), None)


def _lasted(begin: float, until: float | None) -> float | None:
    return None if until is None else max(0.0, until - begin)


def _percentage(action: str) -> float:
    """Of `compute 80% of the time`; 1 where there is none."""
    digits = action.removeprefix("compute ").partition("%")[0]
    return min(1.0, int(digits) / 100) if digits.isdecimal() and len(digits) < 4 else 1.0
