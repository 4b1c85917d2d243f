"""Rows of CSV and TSV files: between which signs, under which names, and what can be wrong with one."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import FIRST, MAX_LINE_BYTES, Begin, lines, something_else
from memsup.shared.data.row import Row

MOST_COLUMNS = 4096
_MOST_EMPTY_ROWS = 1 << 20
"""As many as a sheet has; they make no rows, at which a reader could look at the clock."""
_SEVERAL_NAMES = re.compile(r"\w+(?:\s*[^\w\s.-]+\s*\w+)+")
"""Names with a sign between them that no table is known to have."""
_PLAIN_TSV_PROBE_CHARS = 1 << 20


def table_rows(path: Path, columns: Sequence[str] | None, *, tsv: bool, begin: Begin = FIRST) -> Iterator[Row]:
    """All rows, or those from `begin` on. Where `columns` has names such as `column 2` that the first line has not, that is a
    row as well. Raises InputError.
    """
    first = next(lines(path), None)
    if first is None:
        raise InputError(f"{path} is empty: put the data into it.")
    header = _Header(path, columns)
    # Excel says the sign between the columns in a line of its own.
    if said := re.fullmatch(r'"?sep=(.)"?[,;\t|]*', first.rstrip("\r\n"), re.IGNORECASE):
        return _csv_rows(path, said[1], header, begin, skipped=1)
    signs = "\t,;|" if tsv else ",;\t|"  # a later one only where the first line has none of the earlier
    delimiter = next((sign for sign in signs if sign in first), signs[0])
    if tsv and delimiter == "\t" and _is_plain_tsv(path):
        return _plain_tsv_rows(path, header, begin)
    return _csv_rows(path, delimiter, header, begin)


def is_place(name: str) -> bool:
    """Whether the name of a column is its place, as one has that no line names."""
    return re.fullmatch(r"column [1-9][0-9]{0,3}", name) is not None


class _Header:
    """The names of a table's columns from its first row, or where that is a row as well, by their places."""

    def __init__(self, path: Path, wanted: Sequence[str] | None) -> None:
        self._path = path
        self._by_place = [name for name in wanted or () if is_place(name)]
        self._first: list[str] | None = None
        """The first row. It is None until it was read, and where it is no line of names."""
        self._names: list[str] = []

    def row(self, line: int, fields: list[str], advice: str) -> Row | None:
        """The row of these fields. None means that they are the names. Raises InputError."""
        if not self._names:
            self._names = _column_names(self._path, fields, are_names=not self._by_place)
            if all(name in self._names for name in self._by_place):
                self._first = fields
                return None
            self._names = [f"column {place}" for place in range(1, len(fields) + 1)]
        if len(fields) != len(self._names):
            raise InputError(
                f"{self._path}, line {line} has {len(fields)} fields and not the {len(self._names)} that the first line "
                f"names: {advice}."
            )
        if self._first is not None and [fields[0].removeprefix("\ufeff"), *fields[1:]] == self._first:
            raise InputError(
                f"{self._path}, line {line} repeats the first line, as where files were put together. If that names the "
                f"columns, delete the other: sed -i {line}d {shlex.quote(str(self._path))}; if it is a row, put a line with "
                "names such as text,label above it."
            )
        return Row(self._path, line, dict(zip(self._names, fields, strict=True)))


def _column_names(path: Path, fields: list[str], *, are_names: bool) -> list[str]:
    """A column without a name, such as pandas' index, is called by its place."""
    if len(fields) > MOST_COLUMNS:
        raise InputError(
            f"{path} has {len(fields):,} columns, and {MOST_COLUMNS:,} are read at most: keep text and label alone."
        )
    names = [name.strip() or f"column {place}" for place, name in enumerate(fields, start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and are_names:
        raise InputError(f"{path} has two columns named {twice[0]!r} in its first line: rename one of them.")
    if len(names) == 1 and (instead := something_else(path)) is not None:
        raise InputError(f"{path} {instead}")
    if len(names) == 1 and _SEVERAL_NAMES.fullmatch(names[0]):
        raise InputError(
            f"{path} has one column only, {names[0][:100]!r}: put a comma, a semicolon, a tab or | between the columns."
        )
    return names


def _csv_rows(path: Path, delimiter: str, header: _Header, begin: Begin, skipped: int = 0) -> Iterator[Row]:
    if begin != FIRST:  # what the first row says of all others is read there
        next(_csv_rows(path, delimiter, header, FIRST, skipped), None)
        skipped = 0
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(islice(lines(path, begin), skipped, None), delimiter=delimiter, strict=True)
    advice = f"put a text that contains {delimiter!r} in quotation marks"
    empty = 0
    while True:
        line = reader.line_num + begin.line + skipped
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}: the row that begins on line {line} is broken ({error}); a quotation mark inside a quoted text must "
                "be doubled, and each one that opens must close."
            ) from None
        if not any(map(str.strip, fields)):  # a spreadsheet exports as many of them as it has ever had
            empty += 1
            if empty > _MOST_EMPTY_ROWS:
                raise InputError(f"{path} has {empty:,} rows without anything up to line {line:,}: delete them.")
        elif (row := header.row(line, fields, advice)) is not None:
            yield row


def _is_plain_tsv(path: Path) -> bool:
    """Whether each line at the beginning, cut at its tabs, is a row: then quotation marks are just characters, as the format
    has it. Otherwise it is CSV with tabs, as pandas writes texts that have tabs or line breaks in them.
    """
    tabs, seen = None, 0
    for line in lines(path):
        if line.strip("\r\n"):
            tabs = line.count("\t") if tabs is None else tabs
            if line.count("\t") != tabs:
                return False
        seen += len(line)
        if seen > _PLAIN_TSV_PROBE_CHARS:
            break
    return True


def _plain_tsv_rows(path: Path, header: _Header, begin: Begin) -> Iterator[Row]:
    if begin != FIRST:
        next(_plain_tsv_rows(path, header, FIRST), None)
    for number, line in enumerate(lines(path, begin), start=begin.line):
        line = line.rstrip("\r\n")
        if line.strip():
            fields = [_unquoted(field) for field in line.split("\t")]
            if (row := header.row(number, fields, "replace the tabs inside a text by spaces")) is not None:
                yield row


def _unquoted(field: str) -> str:
    """The text without the quotation marks that a program put around a whole field."""
    if field.startswith('"') and re.fullmatch(r'"(?:[^"]|"")*"', field):
        return field[1:-1].replace('""', '"')
    return field
