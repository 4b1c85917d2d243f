"""Where the rows of a corpus come from, so that messages name their file and line: eight bytes a row, memory-mapped.

origins.bin      int64: for each row the number of its file among the names, times 2 ** 40, plus its line
names.bin        the names of the files, each with a zero byte behind it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memsup.shared.data.layout import counted_in

FILES = ("origins", "names")
_LINE_BITS = 40
_MOST_NAMED = 8

Ints = NDArray[np.int64]


class Placed(Protocol):
    """A row that knows where it comes from."""

    @property
    def file(self) -> Path: ...

    @property
    def line(self) -> int: ...


class OriginsWriter:
    """Writes down where rows come from, in their order. A file's rows come one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[Ints] = []
        self._names = (folder / "names.bin").open("wb")
        self._file: Path | None = None
        self._number = -1

    def add(self, rows: Sequence[Placed]) -> None:
        """Raises OSError."""
        part = np.empty(len(rows), np.int64)
        for place, row in enumerate(rows):
            if row.file != self._file:
                self._names.write(os.fsencode(row.file) + b"\0")
                self._file, self._number = row.file, self._number + 1
            part[place] = (self._number << _LINE_BITS) + row.line
        self._parts.append(part)

    def finish(self) -> None:
        """Raises OSError."""
        self._names.close()
        (self._folder / "origins.bin").write_bytes(np.concatenate([np.empty(0, np.int64), *self._parts]).data)


class Origins:
    """What an `OriginsWriter` wrote."""

    def __init__(self, folder: Path) -> None:
        self._names = folder / "names.bin"
        self._of_row = np.asarray(np.memmap(folder / "origins.bin", dtype=np.int64, mode="r"))

    def where(self, rows: Ints) -> str:
        """Files and lines of these rows of the corpus for a sentence; of many rows only some are named."""
        origins = np.unique(self._of_row[rows])  # in the order of the data
        named, left = origins[:_MOST_NAMED], len(origins) - _MOST_NAMED
        names = self._names.read_bytes().split(b"\0")
        lines: dict[int, list[int]] = {}
        for origin in named.tolist():
            lines.setdefault(origin >> _LINE_BITS, []).append(origin & ((1 << _LINE_BITS) - 1))
        said = [_in_words(os.fsdecode(names[number]), of_file) for number, of_file in lines.items()]
        return "; ".join(said) + (f" and {left} more" if left > 0 else "")


def _in_words(file: str, lines: Sequence[int]) -> str:
    word = counted_in(file)
    *before, last = map(str, lines)
    return f"{file}, {word}s {', '.join(before)} and {last}" if before else f"{file}, {word} {last}"
