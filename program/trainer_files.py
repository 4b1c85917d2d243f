"""A Trainer's checkpoints as folders: written in Trainer's own format where memsup wants them, and given to the user where
Trainer would have put them.

memsup keeps the checkpoints that a training goes on from where it keeps all (`training.py`). What the user wants saved,
`checkpoint-120` in the output folder, is the same files once more, by hard links where both lie on one file system: it appears
whole or not at all, and deleting one leaves the other. Of the user's folder only what this training has put there is ever
rotated out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from memsup.folders import MARK
from memsup.places import give_gradients, gradients_of, read_document

STATE, GRADIENTS = "trainer_state.json", "memsup-gradients.pt"
_DRAFT, _GONE, _EARLIER = ".memsup-draft-", ".memsup-gone-", "earlier-"
_OURS = re.compile(r"\.memsup-(?:draft|gone)-checkpoint-\d{1,18}-[0-9a-f]{8}")
"""The names of what is on its way: with eight digits drawn at random nobody else's folder has one."""
_MOST_STATE_BYTES = 256 << 20
_MOST_HEADER_BYTES = 100 << 20
_PIECE_BYTES = 4 << 20


def write_gradients(model: Any, folder: str) -> None:
    """Writes the gradients that a model has."""
    sys.modules["torch"].save(gradients_of(model), os.path.join(folder, GRADIENTS))


def read_gradients(model: Any, folder: str) -> bool:
    """Gives a model the gradients that were written, if there are any; returns whether there are."""
    path = os.path.join(folder, GRADIENTS)
    if not os.path.lexists(path):
        return False
    give_gradients(model, sys.modules["torch"].load(path, map_location="cpu", weights_only=True))
    return True


@contextlib.contextmanager
def written_into(trainer: Any, folder: str) -> Iterator[None]:
    """Has what Trainer saves inside lie in `folder` afterwards, and not in the output folder."""
    own = vars(trainer).get("_get_output_dir")
    trainer._get_output_dir = lambda *_arguments, **_named: folder
    try:
        yield
    finally:
        if own is None:
            del trainer._get_output_dir
        else:
            trainer._get_output_dir = own
    for name in os.listdir(folder):
        inner = os.path.join(folder, name)
        if name.startswith("checkpoint-") and os.path.isdir(inner):
            for each in os.listdir(inner):
                os.rename(os.path.join(inner, each), os.path.join(folder, each))
            os.rmdir(inner)


def give(path: str, target: str, run_id: str) -> str | None:
    """Has the files of the checkpoint at `path` lie at `target` as well: all of them or none. What lies there of an earlier run
    of the user's is moved aside; returns where it is then. Raises OSError.
    """
    folder, name = os.path.split(target)
    tail = f"{name}-{os.urandom(4).hex()}"
    draft = os.path.join(folder, _DRAFT + tail)
    try:
        _copy(path, draft)
        moved = None
        if os.path.lexists(target):
            is_ours = is_of(target, run_id)
            moved = os.path.join(folder, (_GONE if is_ours else _EARLIER) + (tail if is_ours else _free(folder, name)))
            os.rename(target, moved)
        try:
            os.rename(draft, target)
        except OSError:
            if moved is not None:
                os.rename(moved, target)
            raise
        _flush(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if moved is not None and os.path.basename(moved).startswith(_GONE):
        shutil.rmtree(moved, ignore_errors=True)
        return None
    return moved


def take_away(target: str, run_id: str) -> None:
    """Deletes a checkpoint of the user's that this run has given: renamed first, so that half of one is none. What cannot be
    deleted stays.
    """
    if not is_of(target, run_id):
        return
    gone = os.path.join(os.path.dirname(target), f"{_GONE}{os.path.basename(target)}-{os.urandom(4).hex()}")
    with contextlib.suppress(OSError):
        os.rename(target, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: str) -> None:
    """Removes what was being given or taken away when the program was killed; nobody else may do so meanwhile."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if _OURS.fullmatch(name):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def is_of(path: str, run_id: str) -> bool:
    """Whether the checkpoint at `path` is one of the run."""
    return run_of(path) == run_id


def run_of(path: str) -> str | None:
    """The run whose checkpoint lies at `path`. It is None where that is none of memsup's."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(read_document(path)["run_id"])
    return None


def _copy(source: str, target: str) -> None:
    os.mkdir(target)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name != MARK):
        there = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            _copy(entry.path, there)
            continue
        try:
            os.link(entry.path, there, follow_symlinks=False)
        except OSError:  # another file system, or one that knows no links
            shutil.copyfile(entry.path, there, follow_symlinks=False)
            _flush(there)
    _flush(target)


def _free(folder: str, name: str) -> str:
    number, free = 1, name
    while os.path.lexists(os.path.join(folder, _EARLIER + free)):
        number += 1
        free = f"{name}_{number}"
    return free


def _flush(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def stamp(path: str) -> dict[str, tuple[int, int]]:
    """What tells whether anybody has written to the files of a checkpoint: sizes and times, by name."""
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            state = os.stat(os.path.join(folder, name), follow_symlinks=False)
            found[os.path.relpath(os.path.join(folder, name), path)] = (state.st_size, state.st_mtime_ns)
    return found


# --------------------------------------------------------------------------------------------------------------------
# Checkpoints of a time before memsup


def state_in(path: str) -> dict[str, Any]:
    """What `trainer_state.json` says. Raises OSError and ValueError."""
    fd = os.open(os.path.join(path, STATE), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, encoding="utf-8") as file:
        of_file = os.fstat(fd)
        if not stat.S_ISREG(of_file.st_mode) or of_file.st_size > _MOST_STATE_BYTES:
            raise ValueError("it is no file, or larger than any real one")
        try:
            found = json.load(file)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def why_damaged(path: str) -> str | None:
    """What is wrong with a checkpoint that has no manifest, as far as its files tell; a clause. It is None where nothing is."""
    try:
        names = sorted(os.listdir(path))
        state_in(path)
        for name in names:
            file = os.path.join(path, name)
            if not stat.S_ISREG(os.stat(file).st_mode):
                continue
            if name.endswith(".safetensors"):
                _check_safetensors(file)
            elif name.endswith((".pt", ".pth", ".bin")) and zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    if (broken := archive.testzip()) is not None:
                        return f"{broken} in {name} is not what was written"
            elif os.stat(file).st_size == 0:
                return f"{name} is empty"
    except Exception as error:  # what somebody else has written may be wrong in ways that no library names
        return f"it cannot be read: {error}"
    lacking = {"optimizer.pt", "scheduler.pt", "rng_state.pth"} - set(names)
    return f"{min(lacking)} is missing" if lacking else None


def _check_safetensors(path: str) -> None:
    """Raises ValueError where the file is cut off or its header is none."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"{os.path.basename(path)} is cut off")
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"{os.path.basename(path)} is cut off")
