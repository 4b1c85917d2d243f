"""What a run takes of the disk, and its removal.

Only what memsup made is removed: files by the names that it gives them, checkpoints by the mark that it leaves in them, and the
folders that it alone writes to. Whatever else lies in a run's folder stays, and the folder with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.store import Store
from memsup.shared.paths import RunPaths
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.spawning import only_start, remove_empty

_OUR_FILES = re.compile(
    r"run\.json(\.room)?|status\.json|claim\.json|told\.json|restarts\.json|audit\.txt|blackbox|report\.html|answers\.json"
    r"|(ledger|history|plan|plan\.rank\d+)(\.\d+)?\.jsonl|(worker|supervisor|predict|export)(\.\d+)?\.log(\.1)?(\.end[01])?"
    r"|\.[\w.-]+\.(tmp|new)"
)
_OUR_FOLDERS = ("cache", "curves", "model")
_LAST = "run.json"
"""It is removed after all else, so that what is left by a kill in between is a run that can be removed once more."""


def size_bytes(paths: RunPaths) -> int:
    """What the run takes of the disk, without checkpoints in a folder that a person chose. Links are not followed."""
    return sum(_sizes(paths.state))


def _sizes(folder: Path) -> Iterator[int]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        yield from _sizes(Path(entry.path))
                    else:
                        yield entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return


def remove(paths: RunPaths) -> list[str]:
    """Removes what memsup made of a run; returns the names of what else lies in its folder, which stays. Raises `RefusedError`
    where the run has a supervisor, and OSError.
    """
    with only_start(paths):
        if is_held(paths):
            raise RefusedError(f"Run {paths.name!r} was started in this moment; nothing of it was removed.", 1)
        for folder in _OUR_FOLDERS:
            _remove_folder(paths.state / folder)
        if paths.checkpoints.is_dir() and not paths.checkpoints.is_symlink():
            with contextlib.suppress(CheckpointError):
                for checkpoint in Store(paths.checkpoints).all_ours():
                    _remove_folder(checkpoint)
            with contextlib.suppress(OSError):  # something of somebody else's lies there
                paths.checkpoints.rmdir()
        ours = [name for name in os.listdir(paths.state) if _OUR_FILES.fullmatch(name)]
        for name in sorted(ours, key=lambda name: name == _LAST):
            with contextlib.suppress(IsADirectoryError, FileNotFoundError):
                (paths.state / name).unlink()
        left = sorted(os.listdir(paths.state))
    shutil.rmtree(paths.runtime, ignore_errors=True)  # sockets and links, none of which outlives a supervisor
    remove_empty([paths.runtime.parent, paths.state])
    return left


def _remove_folder(folder: Path) -> None:
    """Removes a folder of memsup's with all that is in it. A link in its place is nobody's order to delete what it leads to."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
