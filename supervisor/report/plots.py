"""The plots, as SVG. Pure: an `Account` in, text out; nothing in them needs a script or a network.

All share one time axis and the same marks: a band for each stretch in which nothing was computed, and a line for each
intervention, numbered as on the page. Colours are the page's (`style.py`), by class. Each is drawn for a frame as wide as the
page is on a desk or on a phone, so that no text in it is scaled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memsup.supervisor.record.history import Activity
from memsup.supervisor.report.account import Account, Gap
from memsup.supervisor.report.axis import Moment
from memsup.supervisor.report.interventions import Intervention
from memsup.supervisor.report.marks import at, clock, number, text, time_ticks, value_ticks
from memsup.supervisor.report.panels import Panel, Series
from memsup.supervisor.words import duration

BAR_WIDTH = 1000
MOST_MARKS = 400
"""More lines than this are no longer marks but a wall; the dearest are drawn."""

# --------------------------------------------------------------------------------------------------------------------
# Drawing


@dataclass(frozen=True)
class Frame:
    """How wide a plot is drawn, in pixels, and what its axis leaves free at either side."""

    name: str
    """The CSS class of where it is shown."""
    width: int
    left: int
    right: int
    ticks: int
    most_points: int


FRAMES = (Frame("on-desk", 1000, 58, 12, 9, 750), Frame("on-phone", 330, 40, 6, 4, 250))


@dataclass(frozen=True)
class Axis:
    """An axis maps time to pixels."""

    begin: float
    end: float
    frame: Frame

    def __call__(self, x: float) -> float:
        share = (x - self.begin) / max(1e-9, self.end - self.begin)
        return self.frame.left + min(1.0, max(0.0, share)) * (self.frame.width - self.frame.left - self.frame.right)

    def ticks(self, y: float) -> Iterator[str]:
        """Times of day below the plot, each wholly within the frame."""
        for x, label in time_ticks(self.begin, self.end, self.frame.ticks):
            half = len(label) * 3.4
            middle = min(self.frame.width - half, max(half, self(x)))
            yield f'<text class="tick" x="{at(middle)}" y="{at(y)}" text-anchor="middle">{label}</text>'


def drawn(panel: Panel, account: Account) -> str | None:
    """The panel with its name and legend. None means that nothing of it is known."""
    shown = [(series, _values(series, account.moments, log2=panel.log2)) for series in panel.series]
    shown = [(series, values) for series, values in shown if any(value is not None for value in values)]
    known = [value for series, values in shown if series.scales for value in values if value is not None]
    known += [value for _, value in panel.dots]
    if not known:
        return None
    low, high = _range(panel, known)
    shown = [(series, values) for series, values in shown if any(v is not None and low <= v <= high for v in values)]
    figures = "".join(_figure(panel, account, shown, (low, high), frame) for frame in FRAMES)
    return f"<figure><figcaption>{_legend(panel, [series for series, _ in shown])}</figcaption>{figures}</figure>"


def _figure(
    panel: Panel, account: Account, shown: list[tuple[Series, list[float | None]]], span: tuple[float, float], frame: Frame
) -> str:
    (low, high), (top, bottom) = span, (8, panel.height - 20)
    axis = Axis(account.begin, account.end, frame)

    def y(value: float) -> float:
        return bottom - (min(high, max(low, value)) - low) / (high - low) * (bottom - top)

    ticks = (
        _log2_ticks(low, high) if panel.log2 else [(v, number(v)) for v in value_ticks(low, high, most=(bottom - top) // 26)]
    )
    parts = [_bands(account, axis, top, bottom)]
    parts += [
        f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{at(y(v))}" y2="{at(y(v))}"/>'
        f'<text class="tick" x="{frame.left - 7}" y="{at(y(v) + 3.5)}" text-anchor="end">{label}</text>'
        for v, label in ticks
    ]
    parts += axis.ticks(panel.height - 5)
    for x, _ in time_ticks(account.begin, account.end, frame.ticks):
        parts.append(f'<line class="grid" x1="{at(axis(x))}" x2="{at(axis(x))}" y1="{bottom}" y2="{bottom + 4}"/>')
    parts.append(_saves(account, axis, bottom))
    for series, values in shown:
        few = _peaks(list(zip(account.moments, values, strict=True)), frame.most_points)
        placed = [(m, axis(m.x), None if v is None else y(v)) for m, v in few]
        parts.append(_line(series, placed, bottom))
    parts += [f'<circle class="dot" cx="{at(axis(x))}" cy="{at(y(value))}" r="3.5"/>' for x, value in panel.dots]
    parts += _marks(account.interventions, axis, top, bottom)
    name = text(f"{panel.title} over time" + (f", in {panel.unit}" if panel.unit else ""))
    return _svg(frame, panel.height, name, parts)


def strip(account: Account) -> str:
    """The night at a glance: what was done when, with the interventions' numbers above."""
    return "".join(_strip(account, frame) for frame in FRAMES)


def _strip(account: Account, frame: Frame) -> str:
    axis, top, bottom, height = Axis(account.begin, account.end, frame), 30, 62, 84
    parts = []
    for name, begin, end in _spans(account):
        title = f"{clock(begin)}–{clock(end)}: {DESCRIPTIONS[name]} ({duration(end - begin)})"
        parts.append(_rect(_CLASSES[name], (axis(begin), axis(end)), (top, bottom), title))
    parts += _marks(account.interventions, axis, top - 5, bottom)
    parts += _pins(account.interventions, axis)
    parts += axis.ticks(height - 5)
    return _svg(frame, height, "What was done when, with the interventions", parts, "strip")


def _svg(frame: Frame, height: int, name: str, parts: Iterable[str], *classes: str) -> str:
    styles = " ".join(["plot", *classes, frame.name])
    shape = f'viewBox="0 0 {frame.width} {height}" role="img" aria-label="{name}"'
    return f'<svg class="{styles}" {shape}>{"".join(parts)}</svg>'


def bar(spent_s: dict[str, float]) -> str:
    """Where the time went, as one bar of a hundred per cent."""
    total = sum(spent_s.values())
    parts, x = [], 0.0
    for name, seconds in spent_s.items():
        width = BAR_WIDTH * seconds / total
        title = f"{DESCRIPTIONS[name]}: {duration(seconds)}"
        parts.append(_rect(_CLASSES[name], (x, x + width), (0, 26), title))
        x += width
    return f'<svg class="bar" viewBox="0 0 {BAR_WIDTH} 26" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


DESCRIPTIONS: dict[str, str] = {
    Activity.TRAINING: "training",
    Activity.RUNNING: "running",
    Activity.EVALUATING: "evaluating",
    Activity.SAVING: "writing checkpoints",
    Activity.STARTING: "starting and loading",
    Activity.COOLED: "gaps to stay cool",
    Activity.COOLING: "held until it was cooler",
    Activity.RECOVERING: "held, frozen or started again",
    Activity.PAUSED: "paused by you",
    Activity.WAITING: "queued behind other runs",
    Activity.ENDING: "finishing and stopping",
    Activity.ASLEEP: "machine asleep",
    Gap.STOPPED: "stopped",
    Gap.UNGUARDED: "no supervisor",
    Gap.OFF: "machine off",
}
_CLASSES: dict[str, str] = {str(name): f"s-{name}" for name in [*Activity, *Gap]}
_IDLE = {Activity.WAITING, Activity.PAUSED, Activity.COOLING, Activity.RECOVERING, Activity.ASLEEP, *Gap}


def swatch(name: str) -> str:
    """The colour of one activity, for a legend."""
    rect = f'<rect class="{_CLASSES[name]}" width="10" height="10"/>'
    return f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">{rect}</svg>'


def _values(series: Series, moments: Sequence[Moment], *, log2: bool) -> list[float | None]:
    values = []
    for moment in moments:
        value = series.value(moment.point)
        usable = value is not None and math.isfinite(value) and abs(value) < 1e15 and (not log2 or value > 0)
        values.append((math.log2(value) if log2 else float(value)) if usable and value is not None else None)
    return _smooth(values) if series.smooth else values


def _peaks(placed: list[tuple[Moment, float | None]], most: int) -> list[tuple[Moment, float | None]]:
    """Of neighbours those with the highest values, no more than there are pixels for. Where something begins or ends, all."""
    size = math.ceil(len(placed) / most)
    if size <= 1:
        return placed
    kept: list[tuple[Moment, float | None]] = []
    for begin in range(0, len(placed), size):
        group = placed[begin : begin + size]
        whole = all(value is not None and not moment.begins_life for moment, value in group)
        kept += [max(group, key=lambda pair: pair[1] or 0.0)] if whole else group
    return kept


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """Each value as the mean of those around it, a fortieth of all to either side. What is not known stays so."""
    reach = max(1, len(values) // 40)
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    smoothed: list[float | None] = []
    for place, value in enumerate(values):
        begin, end = max(0, place - reach), min(len(values), place + reach + 1)
        known = counts[end] - counts[begin]
        smoothed.append(None if value is None else (sums[end] - sums[begin]) / known)
    return smoothed


def _range(panel: Panel, known: list[float]) -> tuple[float, float]:
    low = min(known) if panel.low is None else panel.low
    high = max(known) if panel.high is None else panel.high
    if panel.log2:
        return math.floor(low), max(math.floor(low) + 1, math.ceil(high))
    margin = (high - low) * 0.06 or max(abs(high) * 0.1, 0.5)
    return low if panel.low is not None else low - margin, high if panel.high is not None else high + margin


def _log2_ticks(low: float, high: float) -> list[tuple[float, str]]:
    step = max(1, math.ceil((high - low) / 5))
    return [(float(power), number(2.0**power)) for power in range(int(low), int(high) + 1, step)]


def _line(series: Series, placed: Iterable[tuple[Moment, float, float | None]], bottom: float) -> str:
    """The line through `placed`, each moment with its pixels across and down. None is a value that is not known, and a hole."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for moment, across, down in placed:
        if down is None or moment.begins_life:
            pieces.append([])
        if down is not None:
            pieces[-1].append((across, down))
    drawn_pieces = []
    for piece in pieces:
        if not piece:
            continue
        d = _path(piece, stepped=series.stepped)
        if series.filled:
            shape = f"{d}L{at(piece[-1][0])},{at(bottom)}L{at(piece[0][0])},{at(bottom)}Z"
            drawn_pieces.append(f'<path class="area {series.style}" d="{shape}"/>')
        drawn_pieces.append(f'<path class="line {series.style}" d="{d}"/>')
    return "".join(drawn_pieces)


def _path(piece: list[tuple[float, float]], *, stepped: bool) -> str:
    """A point stands for the time before it, so a step is taken at once and held until the point."""
    d = f"M{at(piece[0][0])},{at(piece[0][1])}"
    for x, y in piece[1:]:
        d += f"V{at(y)}H{at(x)}" if stepped else f"L{at(x)},{at(y)}"
    return d if len(piece) > 1 else f"{d}h0.5"


def _spans(account: Account) -> list[tuple[str, float, float]]:
    """What was done from when to when; neighbouring stretches of the same become one."""
    spans: list[tuple[str, float, float]] = []
    for before, moment in itertools.pairwise(account.moments):
        spent = moment.point.spent_s
        most = max(spent, key=lambda name: spent[name]) if spent else ""
        if most not in _CLASSES:
            continue
        if spans and spans[-1][0] == most and spans[-1][2] == before.x:
            spans[-1] = (most, spans[-1][1], moment.x)
        else:
            spans.append((most, before.x, moment.x))
    return spans + [(gap.why, gap.begin, gap.end) for gap in account.gaps]


def _bands(account: Account, axis: Axis, top: float, bottom: float) -> str:
    """The stretches in which nothing was computed."""
    return "".join(
        _rect(
            f"band {_CLASSES[name]}", (axis(begin), axis(end)), (top, bottom), f"{DESCRIPTIONS[name]} ({duration(end - begin)})"
        )
        for name, begin, end in _spans(account)
        if name in _IDLE
    )


def _saves(account: Account, axis: Axis, bottom: float) -> str:
    """A small tick on the axis wherever a checkpoint was being written."""
    saves = [moment.x for moment in account.moments if moment.point.spent_s.get(Activity.SAVING)]
    return "".join(
        f'<path class="save" d="M{at(axis(x))},{bottom}l-3,5h6z"><title>checkpoint, {clock(x)}</title></path>' for x in saves
    )


def _marks(interventions: Sequence[Intervention], axis: Axis, top: float, bottom: float) -> list[str]:
    return [
        f'<line class="mark k-{i.kind}" x1="{at(axis(i.x))}" x2="{at(axis(i.x))}" y1="{top}" y2="{bottom}">'
        f"<title>{i.number}. {text(i.what)}: {text(i.why)}</title></line>"
        for i in _dearest(interventions)
    ]


def _pins(interventions: Sequence[Intervention], axis: Axis) -> list[str]:
    """Numbers above the strip, as many as do not overlap; the dear ones first."""
    taken: list[float] = []
    pins = []
    for i in sorted(interventions, key=lambda i: -(i.cost_s or 0.0)):
        x = axis(i.x)
        if len(taken) >= MOST_MARKS or any(abs(x - other) < 20 for other in taken):
            continue
        taken.append(x)
        pins.append(
            f'<a href="#i{i.number}"><title>{text(i.what)}: {text(i.why)}</title>'
            f'<circle class="pin k-{i.kind}" cx="{at(x)}" cy="15" r="9.5"/>'
            f'<text class="pin-text" x="{at(x)}" y="18.6" text-anchor="middle">{i.number}</text></a>'
        )
    return pins


def _dearest(interventions: Sequence[Intervention]) -> list[Intervention]:
    if len(interventions) <= MOST_MARKS:
        return list(interventions)
    return sorted(interventions, key=lambda i: -(i.cost_s or 0.0))[:MOST_MARKS]


def _legend(panel: Panel, shown: list[Series]) -> str:
    unit = f" ({text(panel.unit)})" if panel.unit else ""
    parts = [f"<b>{text(panel.title)}{unit}</b>"]
    if len(shown) + bool(panel.dots) > 1:
        parts += [f'<span><i class="key {series.style}"></i>{text(series.name)}</span>' for series in shown]
        parts += [f'<span><i class="key-dot"></i>{text(panel.dots_name)}</span>'] if panel.dots else []
    parts += [f'<span class="note">{text(panel.note)}</span>'] if panel.note else []
    return " ".join(parts)


def _rect(style: str, across: tuple[float, float], down: tuple[float, float], title: str) -> str:
    (left, right), (top, bottom) = across, down
    width = max(0.6, right - left)
    return (
        f'<rect class="{style}" x="{at(left)}" y="{at(top)}" width="{at(width)}" height="{at(bottom - top)}">'
        f"<title>{text(title)}</title></rect>"
    )
