"""Rows of JSON files: an object a line, or objects over several lines, with or without an array around them.

Nothing is held but one object and a piece of the file, whatever the array's size.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import FIRST, MAX_LINE_BYTES, Begin, lines, pieces
from memsup.shared.data.packing import PIECE_BYTES
from memsup.shared.data.row import Row

_BETWEEN = re.compile(r"[\s,]*")
"""What may stand between two objects; to be strict here would find nothing that matters."""
_EXAMPLE = '{"text": "…", "label": "…"}'


def json_rows(path: Path, begin: Begin = FIRST) -> Iterator[Row]:
    """All rows, or those from `begin` on of a file with an object a line. Raises InputError."""
    return _spread_rows(path) if is_spread(path) else _line_rows(path, begin)


def is_spread(path: Path) -> bool:
    """Whether the file does not have one object a line. Raises InputError."""
    head = next(pieces(path), None)
    if head is None:
        raise InputError(f"{path} is empty: put the data into it.")
    return _is_spread(head)


def _is_spread(head: str) -> bool:
    if re.match(r"\s*\[\s*(\{|\]|\Z)", head):
        return True
    first, _, more = head.lstrip().partition("\n")
    if not first.startswith("{") or not more.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return more.lstrip()[:1] != "{"  # else it is a broken line among others
    return False


def _line_rows(path: Path, begin: Begin) -> Iterator[Row]:
    for number, line in enumerate(lines(path, begin), start=begin.line):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not valid JSON ({error}): write one object on each line.") from None
        yield _row(path, number, values)


def _row(path: Path, number: int, values: object) -> Row:
    if not isinstance(values, dict):
        raise InputError(f"{path}, line {number} is no JSON object: write one on each line, such as {_EXAMPLE}")
    return Row(path, number, values)


def _spread_rows(path: Path) -> Iterator[Row]:
    window = _Window(path)
    in_array = ended = False
    rows = 0
    while (sign := window.next_sign()) is not None:
        if ended:
            raise InputError(f"{path}, line {window.line}: there is more behind the end of the array: delete it.")
        if sign == "[" and not in_array and not rows:
            in_array = True
            window.skip()
        elif sign == "]" and in_array:
            ended = True
            window.skip()
        else:
            line = window.line
            rows += 1
            yield _row(path, line, window.value())
    if in_array and not ended:
        raise InputError(f"{path} ends on line {window.line} in the middle of its array: copy it again.")


class _Window:
    """The part of a file that is being parsed."""

    def __init__(self, path: Path) -> None:
        self._path, self._pieces = path, pieces(path)
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self.line = 1
        """The line on which the next value, or whatever comes, begins."""

    def next_sign(self) -> str | None:
        """The first sign of what comes next. None means that the file is at its end. Raises InputError."""
        while True:
            between = _BETWEEN.match(self._text, self._at)
            assert between is not None, "it matches nothing as well"
            self._go_to(between.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(1):
                return None

    def skip(self) -> None:
        self._go_to(self._at + 1)

    def value(self) -> object:
        """The value that comes next. Raises InputError."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise InputError(f"{self._path}, line {self.line} is not valid JSON: it is nested too deeply.") from None
            except ValueError as error:
                # It may be the beginning of one. Twice as much each time, so that a long one is not parsed too often.
                held = len(self._text) - self._at
                if held <= MAX_LINE_BYTES and self._read(max(held, PIECE_BYTES)):
                    continue
                raise self._broken(error, held) from None
            self._go_to(end)
            return value

    def _broken(self, error: ValueError, held: int) -> InputError:
        if held > MAX_LINE_BYTES:
            return InputError(
                f"{self._path}, line {self.line}: one object of {held >> 20:,} MiB and more begins here. If the rows are in a "
                f"list inside of it, this writes one on each line: jq -c '.data[]' {shlex.quote(str(self._path))} > rows.jsonl"
            )
        reason = getattr(error, "msg", None) or str(error)
        return InputError(
            f"{self._path}: what begins on line {self.line} is not valid JSON ({reason}): write objects such as {_EXAMPLE}"
        )

    def _go_to(self, place: int) -> None:
        self.line += self._text.count("\n", self._at, place)
        self._at = place

    def _read(self, wanted: int) -> bool:
        """Reads at least `wanted` characters more, and lets go of what was parsed. False where there is nothing more."""
        parts = [self._text[self._at :]]
        while wanted > 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            wanted -= len(piece)
        self._text, self._at = "".join(parts), 0
        return len(parts) > 1
