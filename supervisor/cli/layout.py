"""Lines and rows at a terminal's width. Pure.

A row is a tuple of cells; rows that follow one another are a table. Where a table is wider than the terminal, its cells run on
below themselves; where even that leaves them too narrow, what a row says after its name stands below one another. A word is
never broken; only a path, or whatever else has no blank and is wider than the terminal, goes on after one of its slashes.

Cells and lines may hold colours (SGR sequences), which take no room. Not on a terminal (a width of None) nothing is broken, so
that other programs find a line where there is one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from memsup.supervisor.words import width

Line = str | tuple[str, ...]
"""What is printed: a line of its own, or a row of a table."""

INDENT, GAP, HANG = 2, 2, 2
NARROWEST, NARROW = 22, 10
"""Cells that a column of sentences is given at least, or it stands below; and one of a table of four columns or more, which has
names and figures.
"""
_COLOUR, _PLAIN = re.compile(r"\x1b\[\d+m"), "\x1b[0m"
_UNIT = r"( *)([^ ]*\d (?:[KMGT]iB|B|min|ms|h|s|d|%|°C|W)(?![A-Za-z0-9])[^ ]*|[^ ]*)"
"""Blanks and a word. A number and the sign of what it counts are one."""
_WIDE = (
    "\u2e80-\u3000\u3003-\u3007\u3012-\ua4cf\uac00-\ud7a3\uf900-\ufaff"
    "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\U00020000-\U0003fffd"
)
_CLOSING = "，。、；：！？）》」』】〉〕”’…,.;:!?)"
_SGR = r"(?:\x1b\[\d+m)*"
_SCRIPT = rf"{_SGR}(?:[{_WIDE}]|[^{_WIDE}]+)[{_CLOSING}]*{_SGR}"
_AFTER = r"[^/=,;&?]*[/=,;&?]+|[^/=,;&?]+"
# These are made when a line has to be broken, which many a command never has to, and which takes some milliseconds.
_pattern = functools.cache(re.compile)


def laid_out(lines: Iterable[Line], cells: int | None, hang: int = 0) -> Iterator[str]:
    """The lines as they stand on a terminal of so many cells; None is no terminal. What goes on below a line that is no row
    begins `hang` cells further in, or where that line's text began.
    """
    for is_row, group in groupby(lines, lambda line: isinstance(line, tuple)):
        if is_row:
            yield from _table([row for row in group if isinstance(row, tuple)], cells)
        else:
            for line in group:
                assert isinstance(line, str)
                yield from paragraph(line, cells, hang)


def paragraph(text: str, cells: int | None, hang: int = 0) -> Iterator[str]:
    """A line; what does not fit goes on below it, a little further in than the line itself."""
    if cells is None or _width(text) <= cells:
        yield text
        return
    margin = len(text) - len(text.lstrip(" "))
    hanging = max(margin + HANG, min(hang, cells // 2))
    yield from _wrapped(text[margin:], cells, " " * margin, " " * hanging)


def _width(text: str) -> int:
    return width(_COLOUR.sub("", text) if "\x1b" in text else text)


def _padded(text: str, cells: int) -> str:
    return text + " " * max(0, cells - _width(text))


# --------------------------------------------------------------------------------------------------------------------
# Tables


def _table(rows: Sequence[tuple[str, ...]], cells: int | None) -> Iterator[str]:
    widths = [max(_width(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    if cells is not None and INDENT + sum(widths) + GAP * (len(widths) - 1) > cells:
        fitting = _fitting(rows, widths, cells)
        if fitting is None:
            for row in rows:
                yield from _below_one_another(row, widths[0], cells)
            return
        widths = fitting
    for row in rows:
        if any(_longest_word(cell) > widths[i] for i, cell in enumerate(row) if cells is not None):
            yield from _below_one_another(row, widths[0], cells or 0)
        else:
            yield from _row(row, widths if cells is not None else [*widths[:-1], max(map(_width, row))])


def _fitting(rows: Sequence[tuple[str, ...]], widths: Sequence[int], cells: int) -> list[int] | None:
    """How wide the columns may be so that the table fits. The first keeps its width, for it has names. Returns None where one
    of them would be too narrow to be read.
    """
    fitting = list(widths)
    narrowest = NARROWEST if len(widths) < 4 else NARROW
    least = [width if i == 0 else min(width, narrowest) for i, width in enumerate(widths)]
    if len(widths) > 2:  # between two columns a word that is too long has no place
        words = [max(_longest_word(row[i]) for row in rows if i < len(row)) for i in range(len(widths))]
        least = [max(pair) for pair in zip(least, words, strict=True)]
    while (over := INDENT + sum(fitting) + GAP * (len(fitting) - 1) - cells) > 0:
        free = [i for i, width in enumerate(fitting) if width > least[i]]
        if not free:
            return None
        widest = max(free, key=lambda i: fitting[i])
        others = max((fitting[i] for i in free if fitting[i] < fitting[widest]), default=0)
        fitting[widest] = max(least[widest], fitting[widest] - over, min(others, fitting[widest] - 1))
    return fitting


def _row(row: tuple[str, ...], widths: Sequence[int]) -> Iterator[str]:
    columns = [list(_wrapped(cell, widths[i], "", "")) for i, cell in enumerate(row)]
    for number in range(max(map(len, columns))):
        parts = [column[number] if number < len(column) else "" for column in columns]
        padded = [_padded(part, widths[i]) for i, part in enumerate(parts)]
        yield (" " * INDENT + (" " * GAP).join(padded)).rstrip(" ")


def _below_one_another(row: tuple[str, ...], name_cells: int, cells: int) -> Iterator[str]:
    """The first cell, and beside it, or below it where there is too little room, all others, each in lines of its own."""
    name, *others = row
    margin = INDENT + name_cells + GAP
    widest = max((_longest_word(cell) for cell in others), default=0)
    if cells - margin >= max(NARROWEST, widest + HANG):
        lines = [line for cell in others if cell for line in _wrapped(cell, cells - margin, "", " " * HANG)]
        for number, line in enumerate(lines or [""]):
            first = _padded(name, name_cells) if number == 0 else " " * name_cells
            yield (" " * INDENT + first + " " * GAP + line).rstrip(" ")
        return
    yield from _wrapped(name, cells, " " * INDENT, " " * (INDENT + HANG))
    for cell in others:
        if cell:
            yield from _wrapped(cell, cells, " " * (INDENT + HANG), " " * (INDENT + HANG + HANG))


# --------------------------------------------------------------------------------------------------------------------
# Words


def _wrapped(text: str, cells: int, first: str, hanging: str) -> Iterator[str]:
    """`text` in lines of at most so many cells, their margins included. A colour ends with each line and begins again on the
    next, for there may be something else beside it.
    """
    if "\x1b" not in text:
        yield from _broken(text, cells, first, hanging)
        return
    colours: list[str] = []
    for line in _broken(text, cells, first, hanging):
        begun = "".join(colours)
        for colour in _COLOUR.findall(line):
            colours = [] if colour == _PLAIN else [*colours, colour]
        yield begun + line + (_PLAIN if colours else "")


def _broken(text: str, cells: int, first: str, hanging: str) -> Iterator[str]:
    """The lines of `_wrapped`, whatever colours they have."""
    line, used, is_empty = first, len(first), True
    for gap, unit in _units(text, cells - len(hanging)):
        room = _width(unit)
        if not is_empty and used + gap + room > cells:
            yield line
            line, used, is_empty = hanging, len(hanging), True
        between = 0 if is_empty else gap
        line, used, is_empty = line + " " * between + unit, used + between + room, False
    yield line


def _units(text: str, cells: int) -> Iterator[tuple[int, str]]:
    """What is never broken, each with the blanks before it: words, the characters of a script that is written without blanks,
    and the parts of what would be wider than so many cells.
    """
    for blanks, word in _pattern(_UNIT).findall(text):
        gap = len(blanks)
        for unit in _by_script(word):
            parts = [unit] if _width(unit) <= cells else _by_cells(unit, cells)
            for part in parts:
                if part:
                    yield gap, part
                    gap = 0


def _by_script(word: str) -> Sequence[str]:
    """A word of letters whole; of Chinese and Japanese each character, with the marks that must not begin a line."""
    return [word] if word.isascii() else _pattern(_SCRIPT).findall(word)


def _by_cells(unit: str, cells: int) -> Iterator[str]:
    """A unit that is too wide, broken after its slashes, and where there are none anywhere."""
    for part in _pattern(_AFTER).findall(unit):
        while _width(part) > max(cells, 1):
            kept = part[: max(cells, 1)]
            while _width(kept) > max(cells, 1):
                kept = kept[:-1]
            kept = kept or part[0]
            yield kept
            part = part[len(kept) :]
        yield part


def _longest_word(text: str) -> int:
    return max((_width(unit) for _, word in _pattern(_UNIT).findall(text) for unit in _by_script(word)), default=0)
