"""Asks the model that a run has made, in a process of its own under a limit of memory: texts in, labels with scores out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from memsup.shared.data.chat import Form
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.shared.settings import SettingsError
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.spawning import environment
from memsup.supervisor.daemon.claims import beside
from memsup.supervisor.decide.tiers import WORKER_NEEDS_BYTES, created_with, resolve_limits
from memsup.supervisor.sense.machine import look
from memsup.supervisor.words import size

NOT_DONE = 1
ROWS_AT_ONCE = 256
LOG = "predict.log"
_TOLD_ABOVE = 0.5


class Predicted(NamedTuple):
    """What the model says of one row. Label and scores are None for a row that has no text that it knows."""

    label: str | None
    """What a language model answers. Where several labels were learnt it is those above a half, joined by bars, and empty where
    none is."""
    score: float | None
    """The probability that the model gives the label. Where a number was learnt it is that number, and the label its name."""
    scores: dict[str, float] | None
    spans: list[dict[str, Any]] | None = None
    """Of a model that tags words, the spans that it sees, with label, text, start, end and score each. The label then has them
    all, and the score is the lowest one. None for any other model.
    """


def predict(
    paths: RunPaths,
    record: RunRecord,
    model: Path,
    rows: Iterator[Sequence[str]],
    *,
    device: str = "cpu",
    at_once: int = ROWS_AT_ONCE,
    answers: Form | None = None,
) -> Iterator[Predicted]:
    """What `model` says of each row, which is one text or two; it is asked about `at_once` of them. With `answers` it is a
    language model, whose training data were of that form. Raises `RefusedError`, in one sentence.
    """
    command = [sys.executable, "-P", "-m", "memsup.worker.predict", "--model", str(model), "--device", device]
    if device == "cpu":
        command += ["--limit-bytes", str(limit_bytes(paths, record))]
    if answers is not None:
        command += ["--answers", answers]
    if record.settings.training.max_length is not None:
        command += ["--max-length", str(record.settings.training.max_length)]
    try:
        log = (paths.state / LOG).open("wb")
    except OSError as error:
        raise RefusedError(f"{paths.state / LOG} cannot be written: {error.strerror}.", NOT_DONE) from None
    with log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/", env=environment(paths), text=True
        )
    try:
        while some := list(islice(rows, at_once)):
            yield from _asked(process, some, paths)
    finally:
        process.kill()
        process.communicate()


def _asked(process: subprocess.Popen[str], rows: Sequence[Sequence[str]], paths: RunPaths) -> Iterator[Predicted]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(rows) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # its last words say why
    answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
    if (why := answer.get("error")) is not None:
        raise RefusedError(str(why), NOT_DONE)
    if not answer:
        ended = process.wait()
        why = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
        raise RefusedError(f"The process that asks the model has ended ({why}). Its log: {paths.state / LOG}", NOT_DONE)
    if "spans" in answer:
        yield from map(_tagged, answer["spans"])
        return
    if "answers" in answer:
        yield from (Predicted(said, None, None) for said in answer["answers"])
        return
    for shares in answer["rows"]:
        if shares is None:
            yield Predicted(None, None, None)
        else:
            scores = dict(zip(answer["labels"], shares, strict=True))
            if answer["is_several"]:
                yield Predicted("|".join(name for name, share in scores.items() if share > _TOLD_ABOVE), None, scores)
                continue
            label = max(scores, key=scores.__getitem__)
            yield Predicted(label, scores[label], scores)


def _tagged(spans: list[dict[str, Any]] | None) -> Predicted:
    if spans is None:
        return Predicted(None, None, None)
    label = ", ".join(f"{span['label']}: {span['text']}" for span in spans)
    return Predicted(label, min((span["score"] for span in spans), default=None), None, spans)


def limit_bytes(paths: RunPaths, record: RunRecord) -> int:
    """What the process may take: as a run that started now, and no more than is free beside the reserve. Raises `RefusedError`
    where that is not enough for any model.
    """
    machine = look(paths.state)
    try:
        limits = resolve_limits(record.settings, created_with(record.settings), machine, None, beside(paths))
    except SettingsError as error:
        raise RefusedError(str(error), NOT_DONE, more=error.more) from None
    free = machine.ram_available_bytes
    limit = limits.worker_limit_bytes if free is None else min(limits.worker_limit_bytes, free - limits.reserve_bytes)
    if limit < WORKER_NEEDS_BYTES:
        raise RefusedError(
            f"Only {size(free)} of RAM are free, and the reserve is {size(limits.reserve_bytes)}: close something, or pause "
            "another run (memsup list).",
            NOT_DONE,
        )
    return limit
