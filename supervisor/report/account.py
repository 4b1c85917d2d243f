"""What the night came to: where the time went, every intervention with its price, and the figures above them. Pure.

`axis.py` says where things lie on the page, `interventions.py` what was done and what it cost.
"""

from __future__ import annotations

import bisect
import enum
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memsup.supervisor.decide.events import Event
from memsup.supervisor.record.history import Activity, thin
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.report.axis import LONGEST_SLEEP_S, Moment, boots_in_order, place
from memsup.supervisor.report.gather import Evaluation, Material
from memsup.supervisor.report.interventions import Fact, Intervention, facts_of, interventions_of

MOST_POINTS = 1_500
"""More points than this are more than a plot has pixels to show."""


class Gap(enum.StrEnum):
    """Why nobody recorded anything for a while."""

    OFF = "off"
    STOPPED = "stopped"
    UNGUARDED = "unguarded"


@dataclass(frozen=True, kw_only=True)
class GapSpan:
    """A stretch without any record, from one `x` to another."""

    begin: float
    end: float
    why: Gap


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the files of a run say of it, reckoned."""

    begin: float
    end: float
    moments: tuple[Moment, ...]
    ledger: tuple[tuple[float, Entry], ...]
    gaps: tuple[GapSpan, ...]
    interventions: tuple[Intervention, ...]
    facts: tuple[Fact, ...]
    evaluations: tuple[tuple[float, Evaluation], ...]
    """Each where its step was reached."""
    spent_s: dict[str, float]
    """The seconds by `Activity` and `Gap`, only what is not nought; empty where no history was kept."""
    step_s: float | None
    """The seconds that one step took, as measured. It is None where no step was seen."""

    @property
    def cost_s(self) -> float:
        """The price of all interventions that nobody asked for."""
        return sum(i.cost_s or 0.0 for i in self.interventions if not i.asked)

    @property
    def redone_steps(self) -> int:
        """How many steps were done a second time."""
        return sum(i.redone_steps for i in self.interventions)

    def as_document(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "schema": 1,
            "begin": self.begin,
            "end": self.end,
            "spent_s": self.spent_s,
            "step_s": self.step_s,
            "cost_s": self.cost_s,
            "redone_steps": self.redone_steps,
            "interventions": [asdict(intervention) for intervention in self.interventions],
            "facts": [asdict(fact) for fact in self.facts],
        }


def account(material: Material) -> Account:
    points, entries = thin(material.points, MOST_POINTS), material.entries
    stamps = [(p.boot, p.mono, p.at) for p in points] + [(e.boot, e.mono, e.at) for e in entries]
    xs = place(stamps, boots_in_order(points, entries))
    begins_life = [not p.spent_s and i > 0 for i, p in enumerate(points)]
    moments = sorted(
        (Moment(x=x, point=p, begins_life=b) for x, p, b in zip(xs, points, begins_life, strict=False)), key=lambda m: m.x
    )
    ledger = sorted(zip(xs[len(points) :], entries, strict=True), key=lambda pair: pair[0])
    gaps = _gaps(moments, ledger)
    step_s = _step_s(moments)
    status = material.status
    waits = status is not None and status.pid is not None and status.worker_pid is None
    return Account(
        begin=min(xs, default=material.now_unix_s),
        end=max(xs, default=material.now_unix_s),
        moments=tuple(moments),
        ledger=tuple(ledger),
        gaps=tuple(gaps),
        interventions=tuple(interventions_of(ledger, moments, step_s, waits=waits)),
        facts=tuple(facts_of(ledger)),
        evaluations=tuple(_placed(material.evaluations, moments)),
        spent_s=_spent(moments, gaps),
        step_s=step_s,
    )


# --------------------------------------------------------------------------------------------------------------------
# Where time went


def _placed(evaluations: Sequence[Evaluation], moments: Sequence[Moment]) -> Iterator[tuple[float, Evaluation]]:
    """The evaluations where their steps were reached for the last time, which is when they were made."""
    with_steps = [(moment.x, moment.point.step) for moment in moments if moment.point.step is not None]
    from_then_on = list(itertools.accumulate((step for _, step in reversed(with_steps)), min))[::-1]
    for evaluation in evaluations:
        place = bisect.bisect_left(from_then_on, evaluation.step)  # after the last moment at which less was done
        if place < len(with_steps):
            yield with_steps[place][0], evaluation


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
        if last is not None and last.event is Event.END:
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
            if name in spent and 0 < seconds < LONGEST_SLEEP_S:
                spent[name] += seconds
    for gap in gaps:
        spent[gap.why] += gap.end - gap.begin
    return {name: seconds for name, seconds in spent.items() if seconds > 0}


def _step_s(moments: Sequence[Moment]) -> float | None:
    """The seconds of training for each step that was new. Returns None where there was none."""
    seconds, steps, highest, waiting_s = 0.0, 0, None, 0.0
    for moment in moments:
        point = moment.point
        trained_s = point.spent_s.get(Activity.TRAINING, 0.0)
        waiting_s += trained_s if 0 < trained_s < LONGEST_SLEEP_S else 0.0
        if point.step is None:
            continue
        if highest is not None and point.step > highest:
            steps += point.step - highest
            seconds += waiting_s
        if highest is None or point.step >= highest:
            highest, waiting_s = point.step, 0.0
    return seconds / steps if steps else None
