"""Rows of a data file, one by one and in bounded memory, with the line on which each begins.

Covers CSV, TSV, JSONL, Parquet and files of texts, and what can be wrong with one row of them. Which files there are is
`sources.py`; which columns hold text and label, `columns.py`; whether the rows make a task, `check.py`. Only the standard
library is imported, and pyarrow where a Parquet file is opened.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from memsup.shared.bounded import bounded_memory
from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import MAX_LINE_BYTES, lines
from memsup.shared.data.sources import DataFile, Kind, Source

MOST_COLUMNS = 4096
MOST_BATCH_BYTES = 768 << 20
"""What so many rows of a Parquet file as are unpacked at a time may take. Less than the GiB that pyarrow's allocator would
reserve at once, and that would leave nothing for the rest; it takes smaller pieces then."""
_BATCH_ROWS = 64
_PLAIN_TSV_PROBE_CHARS = 1 << 20


class Row(NamedTuple):
    """A row as the file has it, and where it stands."""

    file: Path
    line: int
    """The line on which the row begins, from 1; of a Parquet file the number of the row."""
    values: dict[str, object]
    """Column → value as the format has it: text in CSV and TSV, anything in JSONL and Parquet."""


def read_rows(source: Source, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """All rows of the files in their order. `columns` lets Parquet skip the others. None of it reads all columns.

    Raises InputError for an empty file and for the first row that is broken.
    """
    for file in source.files:
        yield from _file_rows(file, columns)


def _file_rows(file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    path = file.path
    if file.label is None and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: put the data into it.")
    match file.kind:
        case Kind.CSV:
            return _csv_rows(path, _csv_delimiter(path))
        case Kind.TSV:
            return _plain_tsv_rows(path) if _is_plain_tsv(path) else _csv_rows(path, "\t")
        case Kind.JSON:
            return _json_rows(path)
        case Kind.PARQUET:
            return _parquet_rows(path, columns)
        case Kind.TEXTS:
            assert file.label is not None
            return _text_rows(path, file.label)


def names_columns_in_first_line(source: Source) -> bool:
    """Whether its files name their columns in the first line."""
    return any(file.kind in (Kind.CSV, Kind.TSV) for file in source.files)


# --------------------------------------------------------------------------------------------------------------------
# Formats


def _text_rows(file: Path, label: str) -> Iterator[Row]:
    """Columns `text` and `label`. Empty lines are no rows."""
    rows = 0
    for line, text in enumerate(lines(file), start=1):
        text = text.rstrip("\r\n")
        if text and not text.isspace():
            rows += 1
            yield Row(file, line, {"text": text, "label": label})
    if not rows:
        raise InputError(f"{file} is empty: put the texts with the label {label!r} into it, or delete it.")


def _column_names(path: Path, fields: list[str]) -> list[str]:
    """A column without a name, such as pandas' index, is called by its place."""
    if len(fields) > MOST_COLUMNS:
        raise InputError(
            f"{path} has {len(fields):,} columns, and {MOST_COLUMNS:,} are read at most: keep text and label alone."
        )
    names = [name.strip() or f"column {place}" for place, name in enumerate(fields, start=1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has two columns named {twice[0]!r} in its first line: rename one of them.")
    return names


def _wrong_width(path: Path, line: int, found: int, names: list[str], advice: str) -> InputError:
    return InputError(f"{path}, line {line} has {found} fields and not the {len(names)} that the first line names: {advice}.")


def _csv_delimiter(path: Path) -> str:
    """A comma, unless the first line has none but semicolons or tabs, as spreadsheets of some countries write them."""
    header = next(lines(path), "")
    return next((sign for sign in ",;\t" if sign in header), ",")


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines(path), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}: the row that begins on line {line} is broken ({error}); a quotation mark inside a quoted text must "
                "be doubled, and each one that opens must close."
            ) from None
        if not fields:
            continue
        if not names:
            names = _column_names(path, fields)
        elif len(fields) != len(names):
            raise _wrong_width(path, line, len(fields), names, f"put a text that contains {delimiter!r} in quotation marks")
        else:
            yield Row(path, line, dict(zip(names, fields, strict=True)))


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


def _plain_tsv_rows(path: Path) -> Iterator[Row]:
    names: list[str] = []
    for number, line in enumerate(lines(path), start=1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        fields = [_unquoted(field) for field in line.split("\t")]
        if not names:
            names = _column_names(path, fields)
        elif len(fields) != len(names):
            raise _wrong_width(path, number, len(fields), names, "replace the tabs inside a text by spaces")
        else:
            yield Row(path, number, dict(zip(names, fields, strict=True)))


def _unquoted(field: str) -> str:
    """The text without the quotation marks that a program put around a whole field."""
    if field.startswith('"') and re.fullmatch(r'"(?:[^"]|"")*"', field):
        return field[1:-1].replace('""', '"')
    return field


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path), start=1):
        if line.isspace():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not valid JSON ({error}): write one object on each line.") from None
        if not isinstance(values, dict):
            example = '{"text": "…", "label": "…"}'
            raise InputError(f"{path}, line {number} is no JSON object: write one on each line, such as {example}")
        yield Row(path, number, values)


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"Reading {path} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with bounded_memory(MOST_BATCH_BYTES):
            file = parquet.ParquetFile(path, memory_map=True)
        with file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
            while True:
                with bounded_memory(MOST_BATCH_BYTES):  # its few bytes may unpack to any number
                    batch = next(batches, None)
                    rows = batch.to_pylist() if batch is not None else []
                if batch is None:
                    break
                del batch
                for values in rows:
                    number += 1
                    yield Row(path, number, values)
    except MemoryError:
        raise InputError(
            f"{path} is no file of texts: the {_BATCH_ROWS} rows after row {number:,} take more than "
            f"{MOST_BATCH_BYTES >> 20:,} MiB of memory. Look for what is so long there."
        ) from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be read as Parquet after row {number} ({what}): write the file again.") from None
