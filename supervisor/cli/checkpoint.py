"""`memsup checkpoint`: writes and verifies one now, lists what there is, or verifies a folder byte by byte."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.info import Info
from memsup.shared.commands import command
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths, absolute, paths_of
from memsup.shared.run_file import read_record
from memsup.shared.status import decode_status
from memsup.supervisor.cli.options import checkpoint_paths, json_option, run_option
from memsup.supervisor.cli.orders import DONE, NO_ANSWER, NOT_RUNNING, answer, request, seen_saved
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.record.earlier_life import checkpoint_folder
from memsup.supervisor.words import count, duration, share_right, size

DAMAGED = 1
MOST_DIGITS = 20
"""A step has fewer."""


@click.command()
@run_option
@json_option
@click.option("--list", "as_list", is_flag=True, help="What lies in the run's folder. Needs no supervisor.")
@click.option(
    "--verify",
    metavar="STEP|PATH",
    help="Compare every byte of a checkpoint with its manifest. Needs no supervisor.",
    shell_complete=checkpoint_paths,
)
def checkpoint(run_name: str, as_json: bool, as_list: bool, verify: str | None) -> int:
    """Write and verify a checkpoint at the next micro-batch boundary; prints its path.

    Exit code: 0 done, 1 no answer, refused or damaged, 3 not running.
    """
    if as_list and verify is not None:
        raise click.UsageError("--list and --verify are two different questions; ask one.")
    if verify is not None:
        return _verify(_named(paths_of(run_name), verify), as_json)
    if as_list:
        return _list(paths_of(run_name), as_json)
    paths = paths_of(run_name)
    reply = request(paths, RequestKind.CHECKPOINT)
    if reply.ok and reply.status_json:  # of an older one, that nobody has read since, every byte is compared
        reply = seen_saved(paths, reply, every_byte=decode_status(reply.status_json).worker_pid is None)
    if reply.ok and not as_json and reply.checkpoint_path:
        message(reply.text)
        data(reply.checkpoint_path)
        return DONE
    return answer(reply, as_json)


def _named(paths: RunPaths, named: str) -> Path:
    """The checkpoint that is meant: a folder, or of this run the one of that step, or with that name."""
    path = Path(named)
    record = None if os.path.exists(named) else read_record(paths.record)
    if record is None:
        return path
    from memsup.checkpoint.store import Store

    found = Store(checkpoint_folder(paths, record)).list()
    digits = named.replace(",", "")
    step = int(digits) if digits.isdecimal() and len(digits) < MOST_DIGITS else None
    meant = next((info.path for info in found if info.path.name == named or (step is not None and info.step == step)), None)
    if meant is None:
        there = [count(info.step) for info in found if info.step is not None]
        those = "that of step" if len(there) == 1 else "those of steps"
        has = f"It has {those} {', '.join(there)}." if there else "It has none."
        raise RefusedError(f"{named} is no folder, and no checkpoint of run {paths.name!r}. {has}", DAMAGED)
    return meant


def _verify(path: Path, as_json: bool) -> int:
    from memsup.checkpoint.reading import verify

    try:
        info = verify(absolute(str(path)))
    except CheckpointError as error:
        if as_json:
            json_data({"schema": 1, "ok": False, "path": str(path), "text": str(error)})
        else:
            message(f"memsup: {path} cannot be used: {error}")
        return DAMAGED
    if as_json:
        json_data({"schema": 1, "ok": True, **_document(info)})
    else:
        data(f"{path}: step {count(info.step)}, {size(info.bytes)}, every byte is what was written")
    return DONE


def _list(paths: RunPaths, as_json: bool) -> int:
    from memsup.checkpoint.store import Store

    record = read_record(paths.record)
    if record is None:
        raise RefusedError(f"There is no run {paths.name!r}. Start it with: {command('start', paths.name)}", NOT_RUNNING)
    try:
        found = Store(checkpoint_folder(paths, record)).list()
    except CheckpointError as error:
        raise RefusedError(str(error), DAMAGED) from None
    if as_json:
        json_data({"schema": 1, "run": paths.name, "checkpoints": [_document(info) for info in found]})
    elif not found:
        message("There is no checkpoint yet.")
    else:
        data(f"In {found[0].path.parent}:", *map(_row, found))
    return NO_ANSWER if any(info.problem for info in found) else DONE


def _row(info: Info) -> tuple[str, ...]:
    age = "" if info.created_unix_s is None else f"{duration(time.time() - info.created_unix_s)} old"
    name = info.path.name + (f": {info.problem}" if info.problem else "")
    return f"step {count(info.step)}", size(info.bytes), age, _metric(info), name


def _metric(info: Info) -> str:
    """What the evaluation at that step came to: an accuracy, or a loss where there is none, which is kept as a negative."""
    if info.metric is None:
        return ""
    return f"loss {-info.metric:.4g}" if info.metric < 0 else f"accuracy {share_right(info.metric)}"


def _document(info: Info) -> dict[str, Any]:
    return {
        "path": str(info.path),
        "step": info.step,
        "created": info.created_unix_s,
        "bytes": info.bytes,
        "metric": info.metric,
        "problem": info.problem,
    }
