"""What `status --watch` shows: one run over time, all others above it, and what its keys do. Pure.

A `Board` and the size of the terminal in, as many lines out. What is most worth knowing is kept where there are few lines; with
many, the curves grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from memsup.shared.printable import printable
from memsup.shared.status import Status
from memsup.supervisor.cli import picture
from memsup.supervisor.cli.screen import drawn, paint, shown
from memsup.supervisor.words import cut, duration, pad, percent, plural, reached, size, steps, width

SIDE_BY_SIDE = 100
"""From this width on the two curves stand beside one another."""
MOST_CURVE_LINES = 14
ROOMY_LINES = 20
KEYS = "p pause   f free memory   r resume   c checkpoint   s stop   q quit   ? help"
KEYS_SHORT = "p f r c s q ? = keys"
HELP = (
    ("p", "pause: stop computing, keep the memory (memsup pause)"),
    ("f", "free memory: save, and end the worker (memsup pause --release)"),
    ("r", "resume: go on after a pause (memsup resume)"),
    ("c", "write and verify a checkpoint now (memsup checkpoint)"),
    ("s", "checkpoint and stop; asks first (memsup stop)"),
    ("↑ ↓", "look at another run"),
    ("q", "leave this screen; the run goes on"),
    ("?", "this help, and away again"),
)
_BLOCKS = " ▁▂▃▄▅▆▇█"
LEAST_COLUMNS = 8
NEAR = 4
"""The curve of memory ends at the limit where a fourth of it was used, so that it can be read where little is."""
Fitted = Callable[..., list[str]]
Colour = tuple[str, ...]
Reading = tuple[float, float | None, float | None]
"""The Unix time in seconds, the bytes that the worker takes, and the loss. What is not known is None."""


@dataclass
class Board:
    """All that the screen is made of."""

    chosen: Status
    others: Sequence[Status] = ()
    """Every run there is, the chosen one too, in the order in which they are listed."""
    readings: Sequence[Reading] = ()
    note: str = ""
    """What became of the last key that was pressed, or what it asks."""
    helps: bool = False
    now_unix_s: float = 0.0


def board(of: Board, cells: int, lines: int, *, in_colour: bool) -> list[str]:
    """The screen's lines, `lines` at most, none of them wider than `cells`."""

    def fitted(*given: str | tuple[str, ...]) -> list[str]:
        return list(drawn(given, cells, in_colour=in_colour))

    keys = fitted(paint(KEYS if width(KEYS) <= cells else KEYS_SHORT, "dim"))[:1]
    if of.helps:
        return [*fitted(paint("Keys", "bold"), *HELP)[: max(0, lines - 1)], *keys]
    note = fitted(paint(of.note, "bold"))[:2] if of.note else []
    top = [*_runs(of, cells, lines, fitted), *fitted(picture.head(of.chosen, of.now_unix_s))[:1]]
    calls = fitted(*picture.attention(of.chosen))
    top += calls[: max(1, lines // 8)]
    top += fitted(*_progress(of.chosen, cells))
    rows = _rows(of, cells, lines, fitted)
    room = lines - len(top) - len(note) - len(keys) - len(rows)
    if room < 2:  # the curves give way last: what they show is on no other line
        rows = rows[: max(0, len(rows) - (2 - room))]
        room = 2
    curves = _curves(of, cells, room, fitted)
    blank = [""] * max(0, lines - len(top) - len(curves) - len(rows) - len(note) - len(keys))
    body = [*top, *curves, *rows, *blank][: max(0, lines - len(note) - len(keys))]
    return [*body, *note, *keys][-max(1, lines) :]


def _rows(of: Board, cells: int, lines: int, fitted: Fitted) -> list[str]:
    """What is worth knowing beside the curves; on a small terminal each in one line."""
    vitals = picture.vitals(of.chosen, of.now_unix_s)
    if lines >= ROOMY_LINES:
        return fitted(*vitals)
    names = max((width(name) for name, _ in vitals), default=0)
    rows = [fitted((pad(name, names), text)) for name, text in vitals]
    return [row[0] if len(row) == 1 else f"{row[0][: cells - 1]}…" for row in rows]


def _runs(of: Board, cells: int, lines: int, fitted: Fitted) -> list[str]:
    """All runs: a table where there is room for one, or one line."""
    if len(of.others) < 2:
        return []
    most = lines // 6
    names = [run.run for run in of.others]
    at = names.index(of.chosen.run) if of.chosen.run in names else 0
    if most < 3:
        others = [f"{run.run} {run.state}" for run in of.others]
        line = " · ".join([f"▸ {others[at]}", *others[:at], *others[at + 1 :]])
        return fitted(paint(cut(printable(line), cells), "dim"))[:1]
    first = max(0, min(at - most // 2, len(of.others) - most))
    table = []
    for run in of.others[first : first + most]:
        is_chosen, found = run.run == of.chosen.run, reached(run)
        far = "" if found is None else steps(found.step, run.progress.total_steps)
        cells_of = (f"{'▸' if is_chosen else ' '} {printable(run.run)}", str(run.state), far)
        table.append(tuple(paint(cell, "bold") if is_chosen else cell for cell in cells_of))
    left = len(of.others) - len(table)
    return [*fitted(*table), *(fitted(paint(f"    and {plural(left, 'run')} more", "dim")) if left else []), ""]


def _progress(status: Status, cells: int) -> list[str]:
    """The bar, as wide as there is room, and how quickly it grows."""
    told = picture.steps_of(status)
    found, total = reached(status), status.progress.total_steps
    out = []
    if found is not None and total and told:
        room = cells - width(told) - 2
        out.append(f"{picture.bar(found.step / total, room)}  {told}" if room >= 8 else told)
    elif told:
        out.append(told)
    details = picture.speed(status)
    return [*out, *([details] if details else [])]


# --------------------------------------------------------------------------------------------------------------------
# Curves


class Curve(NamedTuple):
    """Readings over time, as they are drawn. `low` and `high` are what the bottom and the top of the curve stand for."""

    title: str
    readings: Sequence[tuple[float, float | None]]
    fold: Callable[[list[float]], float]
    """What stands for the readings of one column."""
    low: float
    high: float
    scale: str
    """What `low` and `high` are, for people."""
    colour: Callable[[float], Colour]

    def lines(self, cells: int, lines: int, back: str) -> list[str]:
        """A title and the curve below it; with a single line both beside one another."""
        if lines < 2:
            values = binned(self.readings, max(0, cells - width(self.title) - 2), self.fold)
            return [f"{self.title}  {self._drawn(values, 1)[0]}"] if len(values) >= LEAST_COLUMNS else [cut(self.title, cells)]
        aside = ", ".join(part for part in (self.scale, back) if part)
        gap = cells - width(self.title) - width(aside)
        title = cut(self.title, cells) if gap < 2 else f"{self.title}{' ' * gap}{paint(aside, 'dim')}"
        return [title, *self._drawn(binned(self.readings, cells, self.fold), lines - 1)]

    def _drawn(self, values: Sequence[float | None], lines: int) -> list[str]:
        span = (self.high - self.low) or 1.0
        heights = [None if v is None else (v - self.low) / span for v in values]
        return _columns(heights, lines, [() if v is None else self.colour(v) for v in values])


def _curves(of: Board, cells: int, room: int, fitted: Fitted) -> list[str]:
    """Memory and loss over time, in so many lines at most."""
    back = f"last {duration(of.readings[-1][0] - of.readings[0][0])}" if len(of.readings) > 1 else ""
    beside = cells >= SIDE_BY_SIDE and room > 1
    wide = (cells - 2) // 2 if beside else cells
    lines = min(MOST_CURVE_LINES, room if beside else room // 2)
    if lines < 1:
        return []
    memory, loss = (curve.lines(wide, lines, back) for curve in (_memory(of), _loss(of)))
    if not beside:
        return fitted(*memory, *loss)
    return fitted(*(f"{_padded(left, wide)}  {right}" for left, right in zip(memory, loss, strict=True)))


def _padded(painted: str, cells: int) -> str:
    return painted + " " * max(0, cells - width(shown(painted, in_colour=False)))


def _memory(of: Board) -> Curve:
    """What the worker takes, against its limit where it comes anywhere near it, else against the most that it took."""
    memory, limit = of.chosen.memory, of.chosen.memory.limit_bytes
    readings = [(at, used) for at, used, _ in of.readings]
    most = max((used for _, used in readings if used is not None), default=None)
    is_near = limit is not None and most is not None and most >= limit / NEAR
    high = limit if is_near and limit else most * 1.25 if most else 1.0
    title = "memory"
    if memory.worker_bytes is not None and of.chosen.worker_pid is not None:
        title += f" {size(memory.worker_bytes)} of {size(limit)}"
        title += f" ({percent(memory.worker_bytes / limit)})" if limit else ""

    def colour(used: float) -> Colour:
        return (picture.danger(used / limit) if limit else ()) or ("green",)

    scale = "up to its limit" if is_near else "" if most is None else f"up to {size(high)}"
    return Curve(title, readings, max, 0.0, high, scale, colour)


def _loss(of: Board) -> Curve:
    readings = [(at, loss) for at, _, loss in of.readings]
    known = [loss for _, loss in readings if loss is not None and math.isfinite(loss)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    now = of.chosen.progress.loss
    title = "loss" if now is None else f"loss {now:.4g}"
    scale = f"{low:.3g} to {high:.3g}" if known else ""
    return Curve(title, readings, lambda found: sum(found) / len(found), low, high, scale, lambda _: ("blue",))


def _columns(heights: Sequence[float | None], lines: int, colours: Sequence[Colour]) -> list[str]:
    """A filled curve of so many lines, one column a value between 0 and 1. None is a gap."""
    drawn_lines = []
    for floor in range(lines - 1, -1, -1):
        blocks = [
            " " if height is None else _BLOCKS[max(0, min(8, max(1, round(min(1.0, height) * lines * 8)) - floor * 8))]
            for height in heights
        ]
        same = groupby(zip(blocks, colours, strict=True), key=lambda cell: cell[1])
        drawn_lines.append("".join(paint("".join(block for block, _ in cells), *colour) for colour, cells in same))
    return drawn_lines


def binned(readings: Iterable[tuple[float, float | None]], bins: int, of: Callable[[list[float]], float]) -> list[float | None]:
    """The readings in so many stretches of equal time, each as one value. None where nothing was read; a stretch between two
    that are known, and not longer than the readings are apart, has the one before.
    """
    known = [(at, value) for at, value in readings if value is not None and math.isfinite(value)]
    if not known or bins < 1:
        return [None] * max(0, bins)
    begin, end = known[0][0], known[-1][0]
    span = max(end - begin, 1e-9)
    found: list[list[float]] = [[] for _ in range(bins)]
    for at, value in known:
        found[min(bins - 1, max(0, int((at - begin) / span * bins)))].append(value)
    values: list[float | None] = [of(those) if those else None for those in found]
    usual = max(1, math.ceil(3 * bins / len(known)))
    gap = bins
    for place in range(1, bins):
        gap = 0 if values[place] is not None else gap + 1
        if 0 < gap <= usual:
            values[place] = values[place - 1]
    return values
