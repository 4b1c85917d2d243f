"""A row of data, and where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A row as the file has it, and where it stands."""

    file: Path
    line: int
    """The line on which the row begins, from 1; of a Parquet or Arrow file the number of the row."""
    values: dict[str, object]
    """Column → value as the format has it: text in CSV and TSV, anything in JSON, Parquet and Arrow."""
