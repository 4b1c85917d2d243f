"""Files that grow for as long as the run does: cut into numbered parts, the oldest of which goes.

`ledger.jsonl` is the part in use, `ledger.1.jsonl` the one before it, `ledger.2.jsonl` older still. Only renames, from the
oldest on: a kill at any point loses no line and leaves at worst a number out. To be called by whoever writes the file, between
two lines.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 8 << 20
PARTS = 5
"""So many parts are kept besides the one in use: 48 MiB in all, some hundred thousand decisions."""


def rotate(file: Path, most_bytes: int = MOST_BYTES, parts: int = PARTS) -> bool:
    """Makes room for a new `file` when it has grown beyond `most_bytes`, and tells whether it did. Raises OSError."""
    try:
        if os.lstat(file).st_size <= most_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(parts, 0, -1):
        older, newer = part(file, number), part(file, number - 1) if number > 1 else file
        if number == parts:
            older.unlink(missing_ok=True)
        if os.path.lexists(newer):
            newer.rename(older)
    return True


def part(file: Path, number: int) -> Path:
    """The path of a part: `ledger.2.jsonl` for number 2 of `ledger.jsonl`."""
    return file.with_name(f"{file.stem}.{number}{file.suffix}")


def parts_of(file: Path) -> list[Path]:
    """The parts that there are, the oldest first, and `file` itself."""
    older = [found for found in file.parent.glob(f"{file.stem}.*{file.suffix}") if found.suffixes[0][1:].isdecimal()]
    return [*sorted(older, key=lambda found: int(found.suffixes[0][1:]), reverse=True), file]
