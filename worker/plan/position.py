"""Where a run is in data that are read as a stream, as its checkpoints have it. Holds; `tasks/stream.py` goes by it."""

from __future__ import annotations

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the data were read: up to a row that is the last one taken, or that is not begun yet."""

    passes: int = 0
    """How many whole passes were made before."""
    file: int = 0
    """The file's number among those of the data."""
    line: int = 1
    """The line on which the row begins."""
    byte: int = 0
    """How many bytes of UTF-8 the lines before it have."""
    taken: int = 0
    """How many rows to learn from were taken of those that this row makes."""
    digest: str = ""
    """What all lines before it in this pass were."""
    row: str = ""
    """What the line on which the row begins was."""
    last_pass: str = ""
    """What all lines of the pass before were."""


class Position(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run is in a stream."""

    rows: int
    """How many rows a block has."""
    head_rows: int | None = None
    """By how many first rows the data were judged. It is None in what an earlier version wrote."""
    block: int
    """The block that the next step takes its rows from."""
    begin: Place
    end: Place | None
    """Where that block ends. None means that it was not read yet."""
    content: str | None
    """What changes when the numbers do that were made of its rows. None means that it was not read yet."""
    files: str
    """What changes when the size or time of a file does that was read."""
