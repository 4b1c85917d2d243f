"""A file of texts, row by row, and the file that they are written to with their labels: all of it or none."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Container, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import MAX_LINE_BYTES
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import locate
from memsup.shared.paths import absolute
from memsup.supervisor.client.errors import RefusedError

LABEL, SCORE = "predicted", "score"
"""The columns that are added, with a number behind where the file has such a one."""
MOST_COLUMNS = 1_000


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows with all of their columns; of a `.txt` each line is one. Raises InputError."""
    path = str(absolute(file))
    if path.lower().endswith(".txt"):
        with open(path, encoding="utf-8", errors="replace") as opened:  # noqa: PTH123 - read line by line
            yield from ({"text": line} for line in lines_of(opened))
        return
    for row in read_rows(locate(path)):
        yield dict(row.values)


def lines_of(stream: TextIO) -> Iterator[str]:
    """The lines without their ends. Raises InputError for one that is no text by its length."""
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise InputError(f"A line has {MAX_LINE_BYTES >> 20} million characters or more: it is no single text.")
        yield line.rstrip("\r\n")


class Columns(NamedTuple):
    """The columns of a file and those that are added to them, which have names that the file does not use."""

    given: list[str]
    label: str
    score: str


def columns_of(file: str) -> Columns:
    """All columns that any row has: each line of JSON may have others. Raises InputError."""
    given: dict[str, None] = {}
    for row in rows_of(file):
        given.update(dict.fromkeys(row))
        if len(given) > MOST_COLUMNS:
            raise InputError(f"{file} has more than {MOST_COLUMNS:,} columns; give one with the texts alone.")
    return Columns(list(given), _free(LABEL, given), _free(SCORE, given))


def _free(name: str, taken: Container[str]) -> str:
    return next(each for each in chain([name], (f"{name}_{number}" for number in count(2))) if each not in taken)


def write_labelled(file: Path, columns: Columns, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Writes the rows, all or none; returns how many have a label, and how many have none. Raises `RefusedError`."""
    is_table = file.suffix.lower() in (".csv", ".tsv")
    if not is_table and file.suffix.lower() not in (".jsonl", ".json"):
        raise RefusedError(f"{file.name}: name it .csv or .jsonl, so that it is clear how it is written.")
    if os.path.lexists(file):
        raise RefusedError(f"{file} is there already: choose another name, or move it away.")
    draft, counts = file.with_name(f".{file.name}.part"), [0, 0]
    try:
        with draft.open("w", encoding="utf-8-sig" if is_table else "utf-8", newline="") as opened:
            table = csv.writer(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            names = [*columns.given, columns.label, columns.score]
            if is_table:
                table.writerow(names)
            for row in rows:
                counts[row[columns.label] is None] += 1
                if is_table:
                    table.writerow([_cell(row.get(name)) for name in names])
                else:
                    opened.write(_json(row) + "\n")
        if not any(counts):
            raise RefusedError("There is no row to ask the model about.")
        os.replace(draft, file)
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}.", 1) from None
    finally:
        draft.unlink(missing_ok=True)
    return counts[0], counts[1]


def _cell(value: Any) -> Any:
    """A value as a table has it: what JSON nests stays JSON."""
    return _json(value) if isinstance(value, list | dict) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
