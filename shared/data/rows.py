"""All rows of a source, one by one and in bounded memory, with the file and the line on which each begins.

Each format has a reader: `tables.py` for CSV and TSV, `json_rows.py`, `columnar.py` for Parquet and Arrow; files and folders of
texts are read here. Which files there are is `sources.py`; which columns hold text and label, `columns.py`; whether the rows
make a task, `check.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from memsup.shared.data.columnar import arrow_rows, parquet_rows
from memsup.shared.data.errors import InputError
from memsup.shared.data.json_rows import json_rows
from memsup.shared.data.layout import DataFile, Kind, documents
from memsup.shared.data.lines import FIRST, MAX_LINE_BYTES, Begin, lines, writing_of
from memsup.shared.data.row import Row
from memsup.shared.data.sources import Source
from memsup.shared.data.tables import table_rows
from memsup.shared.data.tag_files import slashed_rows, tagged_rows

_HAVE_COLUMNS = (Kind.CSV, Kind.TSV, Kind.PARQUET, Kind.ARROW)
HEAD_ROWS = 10_000
_HEAD_CHARS = 32 << 20
"""What the head of a source has at most; with the row that goes beyond it."""
_MOST_LOOKED_AT = 16
"""So many files of a source say in which encoding they are."""


def read_rows(source: Source, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """All rows of the files in their order, or the first ones where its head is meant. `columns` lets Parquet and Arrow skip
    the others, and says by names such as `column 1` that a table has no line with names. None of it reads all columns.

    Raises InputError for an empty file, for the first row that is broken, and for files whose columns differ.
    """
    rows = _all_rows(source, columns)
    return rows if source.head_rows is None else _first_rows(rows, source.head_rows)


def _first_rows(rows: Iterator[Row], most: int) -> Iterator[Row]:
    chars = 0
    for row in islice(rows, most):
        yield row
        chars += sum(len(value) if isinstance(value, str) else len(str(value)) for value in row.values.values())
        if chars > _HEAD_CHARS:
            return


def _all_rows(source: Source, columns: Sequence[str] | None) -> Iterator[Row]:
    first: tuple[Path, frozenset[str]] | None = None
    for file in source.files:
        rows = _file_rows(file, columns)
        row = next(rows, None)
        if row is None:
            continue
        if file.kind in _HAVE_COLUMNS:
            names = frozenset(row.values)
            if first is not None and names != first[1]:
                differing = ", ".join(repr(name) for name in sorted(names ^ first[1])[:6])
                raise InputError(
                    f"{row.file} has other columns than {first[0]} ({differing}): name files that belong together."
                )
            first = first or (row.file, names)
        yield row
        yield from rows


def _file_rows(file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    match file.kind:
        case Kind.CSV | Kind.TSV:
            return table_rows(file.path, columns, tsv=file.kind is Kind.TSV, begin=file.begin)
        case Kind.JSON:
            return json_rows(file.path, file.begin)
        case Kind.PARQUET:
            return parquet_rows(file.path, columns)
        case Kind.ARROW:
            return arrow_rows(file.path, columns)
        case Kind.NUMBERED:
            return _numbered_rows(file.path, file.label_names, file.begin)
        case Kind.TEXTS:
            assert file.label is not None
            return _text_rows(file.path, file.label, file.begin)
        case Kind.TAGGED | Kind.SLASHED:
            rows = tagged_rows if file.kind is Kind.TAGGED else slashed_rows
            return rows(file.path, file.begin)
        case Kind.DOCUMENTS:
            assert file.label is not None
            return _document_rows(file.path, file.label)


def names_columns_in_first_line(source: Source) -> bool:
    """Whether its files name their columns in the first line."""
    return any(file.kind in (Kind.CSV, Kind.TSV) for file in source.files)


def notes_on(source: Source) -> tuple[str, ...]:
    """What was decided about the files and the encoding of their texts, each a sentence. Raises InputError."""
    encodings: dict[str, list[Path]] = {}
    for file in source.files[:_MOST_LOOKED_AT]:
        if file.kind not in (Kind.PARQUET, Kind.ARROW):
            read = file.path if file.kind is not Kind.DOCUMENTS else next(documents(file.path), None)
            if read is not None:
                encodings.setdefault(writing_of(read).name, []).append(file.path)
    encodings.pop("UTF-8", None)
    read_as = (
        f"{paths[0]} is read as {name}." if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more are read as {name}."
        for name, paths in encodings.items()
    )
    return (*source.notes, *read_as)


# --------------------------------------------------------------------------------------------------------------------
# Texts, with columns `text` and `label`


def _text_rows(file: Path, label: str, begin: Begin) -> Iterator[Row]:
    """Empty lines are no rows."""
    rows = 0
    for line, text in enumerate(lines(file, begin), start=begin.line):
        text = text.rstrip("\r\n")
        if text and not text.isspace():
            rows += 1
            yield Row(file, line, {"text": text, "label": label})
    if not rows and begin == FIRST:
        raise InputError(f"{file} is empty: put the texts with the label {label!r} into it, or delete it.")


def _document_rows(folder: Path, label: str) -> Iterator[Row]:
    """One row a file."""
    try:
        for file in documents(folder):
            parts, left = [], MAX_LINE_BYTES
            for line in lines(file):
                parts.append(line)
                left -= len(line)
                if left < 0:
                    raise InputError(f"{file} has more than {MAX_LINE_BYTES >> 20} million characters: it is no single text.")
            yield Row(file, 1, {"text": "".join(parts).strip(), "label": label})
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from None


def _numbered_rows(path: Path, names: Sequence[str], begin: Begin) -> Iterator[Row]:
    """Lines of a text, a tab and a number, or the other way round as the first line of the file has it."""
    first = next((line for line in map(_bare, lines(path)) if line), "")
    number_first = not first.rpartition("\t")[2].strip().isdigit()
    for number, line in enumerate(map(_bare, lines(path, begin)), start=begin.line):
        if not line:
            continue
        before, _, behind = line.partition("\t") if number_first else line.rpartition("\t")
        place, text = (before.strip(), behind) if number_first else (behind.strip(), before)
        if not re.fullmatch(r"[0-9]{1,6}", place) or int(place) >= len(names):
            raise InputError(
                f"{path}, line {number}: {place[:40]!r} is none of the numbers 0 to {len(names) - 1} that have a name: write a "
                "text, a tab and such a number."
            )
        yield Row(path, number, {"text": text, "label": names[int(place)]})


def _bare(line: str) -> str:
    return line.rstrip("\r\n")
