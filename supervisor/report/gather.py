"""What a report is made of, read from the run's folder: ledger, history, settings, checkpoints.

Forgives whatever is torn, missing or not ours in those files, and says so in `Material.unreadable`. Reads only.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from memsup.checkpoint.info import Info
from memsup.checkpoint.store import Store
from memsup.shared.answers import Answered, read_answers
from memsup.shared.files import open_regular
from memsup.shared.paths import RunPaths
from memsup.shared.record import RecordError, RunRecord
from memsup.shared.run_file import read_record
from memsup.shared.status import Status
from memsup.supervisor.record.earlier_life import checkpoint_folder
from memsup.supervisor.record.history import MOST_LINE_BYTES, Point, read_points
from memsup.supervisor.record.ledger import Entry, read_entry
from memsup.supervisor.record.output import LAST_SECOND, worker_log
from memsup.supervisor.record.rotation import parts_of
from memsup.supervisor.words import plural

MOST_ENTRIES = 50_000
"""So many of the ledger's newest lines are looked at: months of an eventful run."""
MOST_LOG_LINES = 20_000
"""So many of the worker's newest lines are looked at."""
MOST_STEPS = 1 << 53
EVALUATED = "Evaluated"
"""The worker's event that has an evaluation's step and metrics in its fields (`worker/train.py`)."""
MOST_FILE_BYTES = 256 << 20
"""So many of a file's last bytes are looked at: a history of ten months."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the worker measured on the evaluation data after a step."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Material:
    run: str
    record: RunRecord | None
    status: Status | None
    entries: tuple[Entry, ...]
    points: tuple[Point, ...]
    checkpoints: tuple[Info, ...]
    evaluations: tuple[Evaluation, ...] = ()
    """In the order of their steps, of each the newest."""
    answers: tuple[Answered, ...] = ()
    """What a language model answered before and after."""
    unreadable: tuple[str, ...]
    """These sentences say what could not be read."""
    now_unix_s: float


def gather(paths: RunPaths, status: Status | None, now_unix_s: float) -> Material:
    """All that is known of a run. `status` is what is so now. Damaged files raise nothing."""
    unreadable: list[str] = []
    record = None
    try:
        record = read_record(paths.record)
    except RecordError as error:
        unreadable.append(str(error))
    entries, bad_entries = _entries(paths.ledger)
    points, bad_points = read_points(_lines(paths.history))
    sane = [point for point in points if _is_sane(point.at, point.mono)]
    bad_points += len(points) - len(sane)
    for bad, file in ((bad_entries, paths.ledger), (bad_points, paths.history)):
        if bad:
            unreadable.append(f"{plural(bad, 'line')} of {file.name} could not be read and left out.")
    return Material(
        run=paths.name,
        record=record,
        status=status,
        entries=tuple(entries),
        points=tuple(sane),
        checkpoints=tuple(_checkpoints(paths, record, unreadable)),
        evaluations=tuple(_evaluations(paths)),
        answers=tuple(read_answers(paths.state)),
        unreadable=tuple(unreadable),
        now_unix_s=now_unix_s,
    )


def recorded(paths: RunPaths) -> list[Point]:
    """The readings over time, as far as they can be read."""
    points, _ = read_points(_lines(paths.history))
    return [point for point in points if _is_sane(point.at, point.mono)]


def _evaluations(paths: RunPaths) -> list[Evaluation]:
    """The evaluations that the worker's log tells of, which goes back over its present life and the one before."""
    found: dict[int, Evaluation] = {}
    for line in worker_log(paths).last(MOST_LOG_LINES):
        event = line.event
        if event is None or event.get("event") != EVALUATED:
            continue
        step = event.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < MOST_STEPS:
            metrics = {name: float(value) for name, value in event.items() if isinstance(value, float) and math.isfinite(value)}
            found[step] = Evaluation(step=step, metrics=metrics)
    return [found[step] for step in sorted(found)]


def _entries(ledger: Path) -> tuple[list[Entry], int]:
    entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
    bad = 0
    for file in parts_of(ledger):
        for line in _lines(file):
            try:
                entry = read_entry(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                bad += bool(line.strip())
                continue
            if _is_sane(entry.at, entry.mono):
                entries.append(entry)
            else:
                bad += 1
    return list(entries), bad


def _is_sane(at: float, mono: float) -> bool:
    return 0 <= at < LAST_SECOND and math.isfinite(mono) and 0 <= mono < LAST_SECOND


def _lines(file: Path) -> Iterator[bytes]:
    """The file's newest lines, in bounded memory; one too long comes in pieces, which nobody can decode. Follows no link."""
    try:
        fd, size_bytes = open_regular(file, follow_links=False)
    except OSError:
        return
    with os.fdopen(fd, "rb") as lines:
        lines.seek(max(0, size_bytes - MOST_FILE_BYTES))
        while line := lines.readline(MOST_LINE_BYTES):
            yield line


def _checkpoints(paths: RunPaths, record: RunRecord | None, unreadable: list[str]) -> list[Info]:
    folder = checkpoint_folder(paths, record)
    if not os.path.isdir(folder):
        return []
    try:
        return list(Store(folder).list())
    except OSError as error:
        unreadable.append(f"{folder} cannot be read: {error.strerror}.")
        return []
