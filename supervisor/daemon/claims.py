"""The claims of runs on this machine's memory: one file in each run's folder. It counts while the run has a supervisor, and
while a worker that its supervisor left behind still runs.

Covers who lives (the lock that its supervisor holds says so, and where that died the mark that its worker carries), what each
may take, and the turn that supervisors take so that two which start at once do not both take what is left. How limits follow
from claims is decided in `decide/tiers.py`. Seen are the runs in the same state folder; other users' are not visible. The
ladder's look at the whole machine stands behind all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from memsup.shared.files import UnreadableError, read_document, replace_file
from memsup.shared.paths import PathError, RunPaths, open_private
from memsup.shared.status import decode_status
from memsup.supervisor.daemon.lock import is_taken
from memsup.supervisor.decide.claims import Beside, Claim
from memsup.supervisor.kernel.processes import fence_name, marks

_MOST_BYTES = 16 << 10
"""The folder's name may be as long as any path, and escaped."""


def beside(paths: RunPaths, *, keep_own: bool = False) -> Beside:
    """What the other runs that live may take. With `keep_own` also what this run claimed itself before."""
    own = _read(paths.claim) if keep_own else None
    return Beside(others=tuple(_others(paths)), own_bytes=own.ram_bytes if own else None)


@contextlib.contextmanager
def turn(paths: RunPaths, *, waits: bool = True) -> Iterator[None]:
    """While this lasts nobody else claims anything. Raises `PathError`, and BlockingIOError where it is not to wait and it is
    somebody else's turn.
    """
    fd = open_private(paths.state.parent)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def claim(paths: RunPaths, claimed: Claim, *, durable: bool = True) -> None:
    """Writes down what the run may take. On a full disk other runs do not learn of it, and training goes on. `replace_file`
    tells what `durable` means.
    """
    try:
        replace_file(paths.claim, msgspec.json.encode(claimed), durable=durable)
    except OSError as error:
        from memsup.shared.log import log

        log.warning("What this run may take could not be written down for other runs", why=error.strerror)


def claim_and_end(paths: RunPaths, claimed: Claim, turn: contextlib.ExitStack) -> None:
    """Writes down what the run may take, and ends the `turn` in which that was found; the disk may take its time for it."""
    with turn:
        claim(paths, claimed)


def give_up(paths: RunPaths) -> None:
    """Says that the run takes nothing any more; what it claimed stays known to its next supervisor. After a power cut nothing
    of it lives, so this is not flushed, and waits for no disk.
    """
    if (claimed := _read(paths.claim)) is not None:
        claim(paths, msgspec.structs.replace(claimed, is_over=True), durable=False)


def _others(paths: RunPaths) -> Iterator[Claim]:
    seen: frozenset[str] | None = None
    try:
        folders = sorted(folder for folder in paths.state.parent.iterdir() if folder.is_dir() and folder != paths.state)
    except OSError:  # no run was ever started here
        return
    for folder in folders:
        try:
            fd = open_private(folder)
        except PathError:  # no folder of memsup's
            continue
        try:
            lives = is_taken(fd)
        finally:
            os.close(fd)
        found = _read(folder / paths.claim.name)
        if found is not None and (found.is_over or found.waits):
            continue
        if not lives:
            if found is None or found.run_id is None:
                continue
            seen = marks() if seen is None else seen
            if fence_name(found.run_id) not in seen:
                continue
        found = msgspec.structs.replace(found or Claim(run=""), run=folder.name, is_left=not lives)
        yield msgspec.structs.replace(found, holds_bytes=_held_bytes(folder / paths.status.name))


def _held_bytes(file: Path) -> int | None:
    """What the worker took when the run's status was written last. None where that is not known."""
    try:
        return read_document(file, decode_status).memory.worker_bytes
    except (OSError, UnreadableError):
        return None


def _read(file: Path) -> Claim | None:
    """The claim in `file`. Returns None where there is none that can be read."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(fd, _MOST_BYTES), type=Claim)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    finally:
        os.close(fd)
