"""What can go wrong with a checkpoint. The text of each is one plain sentence or two, fit to be shown to a person."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class CheckpointError(Exception):
    """Base of the errors of this package."""


class Damaged(CheckpointError):  # noqa: N818 - what happened, not what kind of object it is
    """What lies on disk is not what was written, or is not a checkpoint. Whoever loads must use another one."""


class DamagedWhenWritten(Damaged):
    """A checkpoint was not on the disk what had been written; it was set aside, and the ones before it count."""

    def __init__(self, message: str, path: Path, step: int) -> None:
        super().__init__(message)
        self.path = path
        """The folder in which it lies now."""
        self.step = step


class DiskFull(CheckpointError):  # noqa: N818
    """There is no room (or no quota) for a checkpoint. The ones before it are untouched; nothing of the new one is left."""


class NotWritten(CheckpointError):  # noqa: N818
    """The disk refused the write for another reason. The checkpoints before are untouched."""


_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def as_write_error(error: Exception, what: str) -> CheckpointError | None:
    """`error`, met while writing `what`, as one of this package's. None means that it has nothing to do with the disk, or is
    one already.

    The tokenizers library raises a bare Exception whose text ends with Rust's "(os error 28)", hence the look into the text.
    """
    if isinstance(error, CheckpointError):
        return None
    if isinstance(error, OSError):
        number = error.errno
        reason = error.strerror or str(error)
    else:
        match = _RUST_ERRNO.search(str(error))
        number = int(match[1]) if match else None
        reason = str(error)
    if number is None:
        return None
    text = f"{what} could not be written: {reason}. Nothing of it is left and older checkpoints are untouched."
    return DiskFull(f"{text} Free some space.") if number in _NO_ROOM else NotWritten(text)
