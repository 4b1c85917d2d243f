"""The report in a screenful, for a terminal or a mail. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from memsup.shared.printable import printable
from memsup.supervisor.record.history import Point, thin
from memsup.supervisor.report.account import Account
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.marks import clock
from memsup.supervisor.report.outcome import figures, headline, period, summary
from memsup.supervisor.report.page import price
from memsup.supervisor.report.plots import DESCRIPTIONS
from memsup.supervisor.words import duration, percent, size

Line = str | tuple[str, ...]
"""What `cli/screen.py` prints: a line, or a row of a table."""
CELLS = 60
MOST_INTERVENTIONS = 12
_BLOCKS = "▁▂▃▄▅▆▇█"


def screen(material: Material, account: Account) -> list[Line]:
    """Lines, and rows of tables."""
    title, _ = headline(material, account)
    out: list[Line] = [f"{printable(material.run)}: {title} ({period(account)})", printable(summary(material, account))]
    if material.status:
        out += [f"! {printable(sentence)}" for sentence in material.status.attention]
    out += [f"! {printable(sentence)}" for sentence in material.unreadable]
    out += ["", *((figure.value, figure.meaning) for figure in figures(material, account))]
    out += _curves([moment.point for moment in account.moments])
    out += _time(account)
    out += _interventions(account)
    out += _facts(account)
    out += _answers(material)
    return out


def _curves(points: Sequence[Point]) -> Iterator[Line]:
    thinned = thin(points, CELLS)
    rows = [
        _curve("loss", [p.loss for p in thinned], lambda v: f"{v:.3g}"),
        _curve("memory", [p.worker_bytes for p in thinned], size),
        _curve("samples/s", [p.samples_per_s for p in thinned], lambda v: f"{v:.3g}"),
        _curve("GPU °C", [max((g.temperature_c or 0 for g in p.gpus), default=None) for p in thinned], lambda v: f"{v:.0f}"),
    ]
    shown = [row for row in rows if row]
    if shown:
        yield ""
        yield from shown


def _curve(name: str, values: Sequence[float | None], shown: Callable[[float], str]) -> tuple[str, str, str] | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return name, sparkline(values), f"{shown(min(known))} to {shown(max(known))}"


def sparkline(values: Sequence[float | None]) -> str:
    """A curve with one cell a value. None, a value that is not known, is a blank."""
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    known = [value for value in finite if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span, top = high - low, len(_BLOCKS) - 1
    flat = not 0 < span < math.inf
    return "".join(" " if v is None else _BLOCKS[0 if flat else round((v - low) / span * top)] for v in finite)


def _time(account: Account) -> Iterator[Line]:
    total_s = sum(account.spent_s.values())
    if not total_s:
        return
    yield ""
    ordered = sorted(account.spent_s.items(), key=lambda item: -item[1])
    yield from ((duration(seconds), percent(seconds / total_s), DESCRIPTIONS[name]) for name, seconds in ordered)


def _first_line(text: str) -> str:
    """The first line of a text. The rest, evidence or a traceback, is on the page and in the ledger."""
    return text.partition("\n")[0]


def _interventions(account: Account) -> Iterator[Line]:
    if not account.interventions:
        return
    dearest = sorted(account.interventions, key=lambda i: -(i.cost_s or 0.0))[:MOST_INTERVENTIONS]
    left = len(account.interventions) - len(dearest)
    yield ""
    yield from (
        (
            clock(i.x, with_day=True),
            price(i),
            printable(f"{i.what} ({i.why})" + (f" → {_first_line(i.result)}" if i.result else "")),
        )
        for i in sorted(dearest, key=lambda i: i.number)
    )
    if left:
        yield f"… and {left} more, which cost less"


def _answers(material: Material) -> Iterator[Line]:
    """What a language model says to questions that were not trained on."""
    for answered in material.answers:
        yield ""
        for name, words in (("asked", answered.asked), ("before", answered.before), ("now", answered.after)):
            if words is not None:
                yield name, printable(" ".join(words.split())) or "nothing"


def _facts(account: Account) -> Iterator[Line]:
    if account.facts:
        yield ""
        yield from ((clock(fact.x, with_day=True), printable(_first_line(fact.text))) for fact in account.facts)
