"""Data that are read as a stream: in their order, as training goes on, and never as a whole.

Covers what can be read so, and the head by which such data are judged: their first rows, in which columns, labels and doubts
are looked for. What follows is met as it comes. How rows are shuffled and where a run is in them is the worker's business
(`worker/tasks/stream.py`).
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from memsup.shared.data.errors import InputError
from memsup.shared.data.json_rows import is_spread
from memsup.shared.data.layout import Kind
from memsup.shared.data.rows import HEAD_ROWS
from memsup.shared.data.sources import Source

if TYPE_CHECKING:
    from memsup.shared.settings import Settings

_IN_LINES = (Kind.CSV, Kind.TSV, Kind.JSON, Kind.TEXTS, Kind.NUMBERED, Kind.TAGGED, Kind.SLASHED)


def head_of(source: Source) -> Source:
    """The first rows of training data that are read as a stream, without what lies beside them. Raises InputError for what is
    not written in lines, in which no place can be found again.
    """
    for file in source.files:
        if file.kind not in _IN_LINES:
            raise InputError(
                f"{file.path} is no file of lines, and a stream is read by lines (task.stream): write its rows as JSON lines, "
                "or leave task.stream away."
            )
        if file.kind is Kind.JSON and is_spread(file.path):
            raise InputError(
                f"{file.path} has JSON over several lines or in an array, and a stream is read by lines (task.stream). This "
                f"writes a row on each: jq -c '.[]?' {shlex.quote(str(file.path))} > rows.jsonl"
            )
    return replace(source, head_rows=HEAD_ROWS, evaluation=None)


def refuse_endless(settings: Settings) -> None:
    """Raises InputError where it is not said how long a stream is trained on, or what evaluates it."""
    task, training = settings.task, settings.training
    if not task.stream:
        if task.shuffle_buffer is not None:
            raise InputError(
                "task.shuffle_buffer is for data that are read as a stream, and task.stream is not set: leave it away, all "
                "rows are shuffled together."
            )
        return
    if training.max_steps is None:
        raise InputError(
            "Of a stream it is not known how many rows it has, so say how many steps are trained: "
            "--set training.max_steps=10000 (each step sees training.effective_batch rows; where the data end before that, "
            "they begin again)."
        )
    if task.eval is None:
        raise InputError(
            "Nothing can be held out of a stream, which is never seen as a whole: name a file of other rows with "
            "--set task.eval=FILE"
        )
