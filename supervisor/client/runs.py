"""All runs of this user, at a glance: what their files say, without asking any supervisor.

A run is a folder with a `run.json` beside the others in the state folder. Whoever wants to know what is so of one this very
moment asks it (`contact.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from memsup.shared.files import UnreadableError, read_document
from memsup.shared.paths import PathError, RunPaths, check_private, run_paths, state_root
from memsup.shared.status import OVER, RunState, Status, decode_status
from memsup.supervisor.client.contact import is_held


def all_runs() -> Iterator[RunPaths]:
    """Every run there is, by name. What is no run's folder, or not this user's own to look into, is passed over."""
    try:
        names = sorted(os.listdir(state_root()))
    except OSError:
        return
    for name in names:
        with contextlib.suppress(PathError, OSError):
            paths = run_paths(name)
            if paths.record.is_file():
                check_private(paths.state)
                yield paths


def glance(paths: RunPaths) -> Status | None:
    """What a run's supervisor last wrote, corrected by whether it still guards the run. Returns None where it has written
    nothing that can be read.
    """
    try:
        status = read_document(paths.status, decode_status)
        held = is_held(paths)
    except (FileNotFoundError, UnreadableError, PathError):
        return None
    if not held and status.state not in OVER:
        status.state, status.pid, status.worker_pid = RunState.STOPPED, None, None
    status.run = paths.name
    return status
