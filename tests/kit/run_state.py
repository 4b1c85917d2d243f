"""What is so of a run, seen from the test's own process: the supervisor is asked as the command line asks it, and no process is
started for the question. For waiting, and for what a test compares; what is promised of the command line is asked of that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.cli_process import eventually
from kit.lone_supervisor import tiny_job
from memsup.shared.paths import run_paths
from memsup.shared.status import encode_status
from memsup.supervisor.client.contact import observe

LOOK_EVERY_S = 0.05
"""A supervisor that is asked more often has little else to do."""


def status(run: str = "default") -> Any:
    """The document that `memsup status --json` prints. Returns None where there is no such run."""
    found = observe(run_paths(run)).status
    return None if found is None else json.loads(encode_status(found))


def until(wanted: Callable[[Any], Any], within_s: float = 150, run: str = "default") -> Any:
    """The first document for which `wanted` holds."""

    def look() -> Any:
        seen = status(run)
        return seen if seen is not None and wanted(seen) else None

    return eventually(look, within_s, every_s=LOOK_EVERY_S)


def as_scenery(seen: Any) -> Any:
    """Has the worker of `seen` give way to whoever else wants the cores, and returns `seen`. For a training that goes on
    while a test waits for something else.
    """
    os.setpriority(os.PRIO_PGRP, os.getpgid(seen["worker_pid"]), 10)
    return seen


def step_of(seen: Any) -> int:
    return seen["progress"]["step"] or 0


def trains_beyond(step: int, within_s: float = 150) -> Any:
    """The first document of a run that computes and has done more than `step` steps."""
    return until(lambda seen: seen["state"] == "running" and step_of(seen) > step, within_s)


def ledger(run: str = "default") -> list[dict[str, Any]]:
    """The lines of the ledger; none where there is no ledger yet."""
    file = run_paths(run).ledger
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def endless_job(folder: Path, more: str = "") -> Path:
    """A folder with the tiny job and a `memsup.toml` for far more passes than any test waits for; `more` is added to it."""
    tiny_job(folder, epochs=2000, more="threads = 1\n" + more)
    return folder
