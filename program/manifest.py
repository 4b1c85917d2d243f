"""The words of a checkpoint's manifest, for both who write one: `checkpoint/manifest.py`, which also reads all of them, for the
built-in training, and `store.py` for programs of a person's own. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NAME = "manifest.json"
MOST_BYTES = 1 << 20
"""No honest manifest is larger; a larger one is not even read."""
FORMAT, PROGRAMS_FORMAT = "memsup-checkpoint-1", "memsup-checkpoint-2"
"""The built-in training's, and that of a program of a person's own."""
XXH3_DIGITS, SHA256_DIGITS = 32, 64
SEAL, PROGRAMS_SEAL = '  "xxh3_128": "', '  "sha256": "'
"""What comes before the document's own hash, which is its last line but one."""
END = '"\n}\n'

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_FILE_NAME, _PATH = re.compile(_NAME), re.compile(rf"{_NAME}(?:/{_NAME}){{0,3}}")


class File(NamedTuple):
    """A file of a program's checkpoint."""

    name: str
    """Its name within the checkpoint's folder: a program may have put it into a folder there."""
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What stands in a program's manifest before its own hash."""

    format: str
    step: int
    created_unix_s: float
    metric: float | None
    files: list[File]


def is_file_name(name: str) -> bool:
    """Whether `name` is the name of a file directly in a checkpoint: plain ASCII, not hidden, not the manifest's own."""
    return _FILE_NAME.fullmatch(name) is not None and name != NAME


def is_path(name: str) -> bool:
    """Whether `name` may stand in a manifest: as `is_file_name`, or such a file in a folder, or folders, with such names."""
    return _PATH.fullmatch(name) is not None and name != NAME
