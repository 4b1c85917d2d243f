"""A file of texts, row by row, and the file that they are written to with their labels: all of it or none."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import locate
from memsup.shared.paths import absolute
from memsup.supervisor.client.errors import RefusedError

LABEL, SCORE = "predicted", "score"
"""The columns that are added."""


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    """The rows with all of their columns; of a `.txt` each line is one. Raises InputError."""
    path = str(absolute(file))
    if path.lower().endswith(".txt"):
        with open(path, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - read line by line
            for line in lines:
                yield {"text": line.rstrip("\n")}
        return
    for row in read_rows(locate(path)):
        yield dict(row.values)


def write_labelled(file: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Writes the rows, all or none; returns how many have a label, and how many have none. Raises `RefusedError`."""
    is_table = file.suffix.lower() in (".csv", ".tsv")
    if not is_table and file.suffix.lower() not in (".jsonl", ".json"):
        raise RefusedError(f"{file.name}: name it .csv or .jsonl, so that it is clear how it is written.")
    if os.path.lexists(file):
        raise RefusedError(f"{file} is there already: choose another name, or move it away.")
    draft, counts = file.with_name(f".{file.name}.part"), [0, 0]
    try:
        with draft.open("w", encoding="utf-8-sig" if is_table else "utf-8", newline="") as opened:
            first = next(rows, None)
            if first is None:
                raise RefusedError("There is no row to ask the model about.")
            table = csv.DictWriter(opened, list(first), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            if is_table:
                table.writeheader()
            for row in chain([first], rows):
                counts[row[LABEL] is None] += 1
                if is_table:
                    table.writerow({name: row.get(name) for name in first})
                else:
                    opened.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        os.replace(draft, file)
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}.", 1) from None
    finally:
        draft.unlink(missing_ok=True)
    return counts[0], counts[1]
