"""What each step did, in one line, and a rolling digest of all lines: two runs that differ are found out at their first step.

The digest has two halves of 64 bits. The first covers what must never change whatever memory, heat or kills do to a run: rows,
loss weight and learning rate of each step. The second covers the exact bits of loss and gradient norm as well, which also
depend on the cuts. Both are rolled from step to step, so heartbeats and checkpoints carry the whole history in 33 characters.

Lines have one length, so the line of a step is found without reading, a resumed run overwrites what it redoes, and `cmp`
names the first difference of two runs. They are not flushed: after a power cut some may be zeros, but the digest is not
computed from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memsup.shared.files import open_regular
from memsup.shared.log import log

BEFORE_FIRST = "0" * 16 + "." + "0" * 16

_LINE = "{step:10d} {rows:16} {weight:>24} {learning_rate:>24} {loss:>24} {gradient_norm:>24} {digest:33}\n"


class Step(NamedTuple):
    """What is audited of a step. The floats are Python's: 64 bits, written so that they read back the same."""

    step: int
    rows: NDArray[np.int64]
    """The effective batch, in its order."""
    weight: float
    learning_rate: float
    loss: float
    gradient_norm: float


def rolled(digest: str, taken: Step) -> str:
    """The digest after `taken`, from the one before it. Pure."""
    plan_half, exact_half = digest.split(".")
    planned = struct.pack("<qdd", taken.step, taken.weight, taken.learning_rate) + _hash(taken.rows.astype("<i8").tobytes())
    exact = planned + struct.pack("<dd", taken.loss, taken.gradient_norm)
    return f"{_hash(bytes.fromhex(plan_half) + planned).hex()}.{_hash(bytes.fromhex(exact_half) + exact).hex()}"


def line(taken: Step, digest: str) -> bytes:
    """The line of a step, after which the digest is `digest`."""
    return _LINE.format(
        step=taken.step,
        rows=_hash(taken.rows.astype("<i8").tobytes()).hex(),
        weight=repr(taken.weight),
        learning_rate=repr(taken.learning_rate),
        loss=repr(taken.loss),
        gradient_norm=repr(taken.gradient_norm),
        digest=digest,
    ).encode()


LINE_BYTES = len(_LINE.format(step=0, rows="", weight="", learning_rate="", loss="", gradient_norm="", digest=""))


def read_steps(file: Path, steps: Iterable[int]) -> Iterator[Step]:
    """Those of `steps` that the file has, without their rows. What is no line, as after a power cut, is passed over, and so is
    all of a file that cannot be read.
    """
    try:
        fd, _ = open_regular(file, follow_links=False)
    except OSError:
        return
    try:
        for step in steps:
            with contextlib.suppress(ValueError):
                number, _, weight, rate, loss, norm, _ = (
                    os.pread(fd, LINE_BYTES, (step - 1) * LINE_BYTES).decode("ascii").split()
                )
                if int(number) == step:
                    yield Step(step, np.empty(0, np.int64), float(weight), float(rate), float(loss), float(norm))
    finally:
        os.close(fd)


class Audit:
    """The digest so far, and the file of lines."""

    def __init__(self, file: Path) -> None:
        """Opens `file`, or creates it. Raises OSError."""
        self.digest = BEFORE_FIRST
        self._complained = False
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._fd)

    def last_step(self) -> int:
        """How far the run had come when the file was last written, as far as the file knows."""
        return os.fstat(self._fd).st_size // LINE_BYTES

    def resume(self, step: int, digest: str = BEFORE_FIRST) -> None:
        """Goes on after `step` steps: what was written of later ones is cut off, as they are redone."""
        self.digest = digest
        os.ftruncate(self._fd, min(step * LINE_BYTES, os.fstat(self._fd).st_size))

    def record(self, taken: Step) -> None:
        """Rolls the digest on, and writes the step's line; a full disk costs the line alone."""
        self.digest = rolled(self.digest, taken)
        try:
            os.pwrite(self._fd, line(taken, self.digest), (taken.step - 1) * LINE_BYTES)
        except OSError as error:  # the disk is full: the digest goes on without the line
            if not self._complained:
                log.warning("The audit lacks lines", from_step=taken.step, why=error.strerror)
            self._complained = True


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
