"""How a store's folders are called, and what is known of each from outside. Pure.

step-00000120          a checkpoint; step-00000120.2 is a second one of the same step
.draft-…               being written; worthless once its process is gone
.gone-…                being deleted
damaged-step-00000120  set aside, with the reason in WHY.txt

A name alone does not make a folder memsup's: a person may have named one so, or been led to name a folder of theirs as
`checkpoint.folder`. Each that memsup makes has the empty file `.made-by-memsup` in it, from its first moment to its last. The
built-in training's store and that of a person's own program (`store.py`) call their folders alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MARK = ".made-by-memsup"
"""The file that tells memsup's own folders from others of the same name; nothing else is ever renamed or deleted."""
DRAFT = ".draft-"
GONE = ".gone-"
DAMAGED = "damaged-"
WHY = "WHY.txt"
"""The file in a folder set aside that says why, for whoever finds it."""

_UNMARKED = re.compile(r"\.draft-\d{8,18}-[0-9a-f]{8}|\.gone-step-\d{8,18}(?:\.\d{1,9})?")
_CHECKPOINT = re.compile(r"step-(\d{8,18})(?:\.(\d{1,9}))?")


def order(name: str) -> tuple[int, int] | None:
    """The step of a checkpoint's folder, and its number within the step: the greater, the newer. None means that it is the name
    of something else.
    """
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2] or 1)) if match else None


def may_lack_mark(name: str) -> bool:
    """Whether `name` is one of a folder that memsup makes before the mark and removes after it; empty, it is nobody's work."""
    return _UNMARKED.fullmatch(name) is not None


def next_name(step: int, taken: Iterable[str]) -> str:
    """The name for a new checkpoint of `step`: newer than every one of the same step that is there."""
    numbers = [found[1] for found in map(order, taken) if found and found[0] == step]
    return f"step-{step:08}" if not numbers else f"step-{step:08}.{max(numbers) + 1}"


def aside_name(name: str, taken: Iterable[str]) -> str:
    """The name under which the checkpoint `name` is set aside."""
    taken = set(taken)
    number = 1
    while (aside := f"{DAMAGED}{name}" + (f"_{number}" if number > 1 else "")) in taken:
        number += 1
    return aside


def aside_step(name: str) -> int | None:
    """The step that a checkpoint set aside was named after. None means that the name tells none."""
    found = order(name.removeprefix(DAMAGED).partition("_")[0])
    return found[0] if found else None
