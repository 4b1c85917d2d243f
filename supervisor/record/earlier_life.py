"""What an earlier supervisor of the run left on the disk, read once before the loop begins: the budget of restarts, the newest
checkpoint, how far the run was. Nothing here raises for what is missing or damaged. Its worker, if one still lives, is found at
the fence.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from memsup.checkpoint.info import Info
from memsup.checkpoint.store import Store
from memsup.shared.files import UnreadableError, read_document
from memsup.shared.messages import CheckpointNote
from memsup.shared.paths import RunPaths
from memsup.shared.readings import KnownProgress, narrow
from memsup.shared.record import RunRecord
from memsup.shared.status import Status, decode_status
from memsup.supervisor.decide.run.restarts import Budget

_budget = msgspec.json.Decoder(Budget)


def read_budget(file: Path) -> Budget:
    """The budget that is left; a whole one where the file is missing or damaged, so that at worst a run is restarted a few
    times too often.
    """
    try:
        return read_document(file, _budget.decode)
    except (FileNotFoundError, UnreadableError):
        return Budget()


def checkpoint_folder(paths: RunPaths, record: RunRecord | None) -> Path:
    """Where the run's checkpoints lie: in `checkpoint.folder`, else in its state folder. `record` is None where it is not
    known.
    """
    chosen = record.settings.checkpoint.folder if record else None
    return Path(chosen) if chosen else paths.checkpoints


def newest_checkpoint(paths: RunPaths, record: RunRecord) -> Info | None:
    """The newest checkpoint, judged by its manifest alone; the worker verifies it in full when it loads it. Returns None where
    there is none.
    """
    folder = checkpoint_folder(paths, record)
    if not os.path.isdir(folder):
        return None
    return next((info for info in Store(folder).list() if info.problem is None), None)  # the newest comes first


def progress_at(newest: CheckpointNote | None, paths: RunPaths, record: RunRecord) -> KnownProgress:
    """How far the run is at its newest checkpoint: its step, and what else the last status says of the run at that step."""
    if newest is None:
        return KnownProgress()
    status = _last_status(paths, record)
    if status is None:
        return KnownProgress(step=newest.step)
    if status.progress.step != newest.step:
        return KnownProgress(step=newest.step, total_steps=status.progress.total_steps)
    return narrow(KnownProgress, status.progress, phase=None, samples_per_s=None)


def was_attached_before(paths: RunPaths, record: RunRecord) -> bool:
    """Whether the last status says that the run's command was attached."""
    status = _last_status(paths, record)
    return status is not None and status.program is not None and status.program.attached


def _last_status(paths: RunPaths, record: RunRecord) -> Status | None:
    """What an earlier supervisor of this run last showed. Returns None where there is no such thing."""
    try:
        status = read_document(paths.status, decode_status)
    except (FileNotFoundError, UnreadableError):
        return None
    return status if status.run_id == record.run_id else None


def note_of(newest: Info | None) -> CheckpointNote | None:
    """The checkpoint as the worker would tell of it. Returns None where nothing is known that could be told."""
    if newest is None or newest.step is None or newest.created_unix_s is None:
        return None
    return CheckpointNote(
        path=str(newest.path),
        step=newest.step,
        at_unix_s=newest.created_unix_s,
        verified=False,
        save_s=None,
        size_bytes=newest.bytes,
    )
