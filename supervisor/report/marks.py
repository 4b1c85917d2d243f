"""Text and numbers as they stand in HTML and SVG, and the marks on an axis. Pure.

Everything that others wrote (the ledger, file names, a worker's last words) goes through `text`: no markup of theirs survives.
"""

from __future__ import annotations

import html
import math
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

from memsup.shared.printable import printable

_STEPS_S = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)
_LONGEST_TEXT = 600
_WITH_UNIT = re.compile(r"(?<=\d) (?=(?:[KMGT]iB|B|d|h|min|s|ms|%|°C|W)\b|%|°C)")
"""The blank between a number and the sign of what it counts, at which no line ends."""
MOST_LINES = 40


def text(value: object) -> str:
    """The value as harmless text, not longer than a person would read."""
    shown = printable(" ".join(str(value).split("\n")))
    if len(shown) > _LONGEST_TEXT:
        shown = shown[:_LONGEST_TEXT] + " …"
    return html.escape(_WITH_UNIT.sub("\u00a0", shown), quote=True)


def lines(value: str) -> str:
    """The same of what has several lines, each in a line of its own."""
    return "<br>".join(text(line) for line in value.strip("\n").split("\n")[:MOST_LINES])


def at(x: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{x:.1f}".removesuffix(".0")


def clock(x: float, *, with_day: bool = False) -> str:
    """The time of day, `23:05` or `Tue 23:05`, where the page is read."""
    return datetime.fromtimestamp(x).strftime("%a %H:%M" if with_day else "%H:%M")


def time_ticks(begin: float, end: float, most: int = 9) -> Iterator[tuple[float, str]]:
    """Round times of day between two Unix times, each with its label, which at midnight is the day's name."""
    step_s = next((step for step in _STEPS_S if (end - begin) / step <= most), (end - begin) / most)
    if step_s < 86_400:
        first = datetime.fromtimestamp(begin).replace(hour=0, minute=0, second=0, microsecond=0)
    else:
        first = datetime.fromtimestamp(begin).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    moment = first
    while True:
        x = moment.timestamp()
        if x > end:
            return
        if x >= begin:
            is_midnight = moment.hour == 0 and moment.minute == 0
            yield x, moment.strftime("%a %d %b") if is_midnight else moment.strftime("%H:%M")
        moment += timedelta(seconds=step_s)


def value_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, some `most` of them."""
    rough = (high - low) / most
    if not rough > sys.float_info.min:  # no range at all, or one that no number has the digits for
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 10) for i in range(most * 3) if (first + i) * step <= high * (1 + 1e-9)]


def number(value: float) -> str:
    """The number in few characters, for an axis: `0.25`, `1,024`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
