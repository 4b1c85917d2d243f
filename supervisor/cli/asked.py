"""What a person asks of `start`, and what of it is refused before anything is looked at: above all what cannot be a command."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from memsup.shared.data.layout import kind_by_name
from memsup.shared.loading import Loaded
from memsup.shared.record import Awaited, NotBefore
from memsup.supervisor.cli.streams import has_input
from memsup.supervisor.client.errors import RefusedError

NO_INPUT = (
    "What is on standard input does not reach the command, which may be begun again: write it to a file, and name that "
    "(memsup start -- python train.py)"
)


@dataclass(frozen=True)
class Asked:
    """What a person asks of `start`."""

    loaded: Loaded
    command: list[str] | None
    assignments: Sequence[str]
    """The settings that were given as options, each as `--set` has it."""
    fresh: bool
    trust: bool
    wait: bool
    foreground: bool
    attaches: bool | None
    """Whether a Trainer is to be guarded by itself. It is None where nothing was said."""
    queued: list[Awaited] | None
    """The runs that are to be waited for; empty where those that were named are over. It is None where none was named."""
    not_before: NotBefore | None
    """When it may begin. It is None where nothing was said of that."""
    looks_on: bool
    """Whether somebody is there who waits for the first step. A script or a service is not kept waiting."""
    dry_run: bool
    verbose: bool
    as_json: bool


def checked_command(command: tuple[str, ...]) -> list[str] | None:
    if not command:
        return None
    if shutil.which(command[0]) is None:
        if os.path.dirname(command[0]) and os.path.lexists(command[0]):
            raise RefusedError(_why_not_run(command[0]))
        raise RefusedError(
            f"There is no command {command[0]!r}. To guard a training command, write it behind two dashes: "
            "memsup start -- python train.py"
        )
    if has_input() and not {"-", "/dev/stdin"}.isdisjoint(command[1:]):
        raise RefusedError(f"{NO_INPUT}, so it would find nothing to do.")
    return list(command)


def refuse_data_for_command(words: Sequence[str], train: str | None) -> None:
    """Raises `RefusedError` where data stand in the place of a command: a file, or a pattern that the shell has taken apart."""
    if not words or not all(kind_by_name(word) is not None and os.path.isfile(word) for word in words):
        return
    names = ",".join([*([train] if train else []), *words])
    raise RefusedError(
        f"{words[0]} is no command. To train on it: memsup start --model MODEL --train {shlex.quote(names)}"
        + ("   (several files have commas between them, a pattern stands in quotes)" if train or len(words) > 1 else "")
    )


def _why_not_run(file: str) -> str:
    if not os.path.isfile(file):
        return f"{file} is {'a folder' if os.path.isdir(file) else 'no file'}, not a command."
    return f"{file} is not executable: chmod +x {shlex.quote(file)}, or name its interpreter: memsup start -- python {file}"
