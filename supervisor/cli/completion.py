"""`memsup completion`: has bash, zsh or fish complete commands, options, runs, settings and checkpoints.

click makes the script. It is written to a file of memsup's, once, so that no shell has to start Python to begin; bash and zsh
are told of it by one line at the end of their own file, which carries a mark and is taken away again.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import platformdirs

from memsup.shared.files import replace_file
from memsup.supervisor.cli.screen import data, message
from memsup.supervisor.client.errors import RefusedError

MARK = "# memsup completion"
_MOST_BYTES = 4 << 20
"""No shell's own file is as large."""
SHELLS = ("bash", "zsh", "fish")
_FOR_ZSH = "\n(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit }\n"
"""A fresh zsh completes nothing, and does not know the word with which click's script tells it to."""


class Place(NamedTuple):
    """Where a shell finds what completes memsup."""

    script: Path
    begins: Path | None
    """The file that the shell reads when it begins, in which it has to be told. It is None where the place alone tells it."""


def place_of(shell: str) -> Place:
    if shell == "fish":
        return Place(Path(platformdirs.user_config_path("fish")) / "completions/memsup.fish", None)
    home = Path(os.environ.get("ZDOTDIR", "") or Path.home()) if shell == "zsh" else Path.home()
    return Place(Path(platformdirs.user_data_path("memsup")) / f"completion.{shell}", home / f".{shell}rc")


@click.group()
def completion() -> None:
    """Have the shell complete commands, options, runs, settings and checkpoints."""


def _shell_argument(command: click.decorators.FC) -> click.decorators.FC:
    return click.argument("shell", type=click.Choice(SHELLS), required=False)(command)


@completion.command()
@_shell_argument
def install(shell: str | None) -> int:
    """Write the script, and have the shell read it when it begins. SHELL is the one you log in with, if not given."""
    shell = shell or own_shell()
    place = place_of(shell)
    try:
        place.script.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place.script, script_of(shell).encode())
        if place.begins is not None:
            _tell(place.begins, f"[ -f {shlex.quote(str(place.script))} ] && . {shlex.quote(str(place.script))}  {MARK}")
    except OSError as error:
        raise RefusedError(f"{error.filename} cannot be written: {error.strerror}.", 1) from None
    told = "" if place.begins is None else f", and {place.begins} reads it"
    data(f"{shell} completes memsup from its next start on: {place.script} has the script{told}.")
    message("Take it away with: memsup completion remove" + ("" if shell == own_shell_or_none() else f" {shell}"))
    return 0


@completion.command()
@_shell_argument
def remove(shell: str | None) -> int:
    """Take away what install wrote."""
    shell = shell or own_shell()
    place = place_of(shell)
    try:
        place.script.unlink(missing_ok=True)
        if place.begins is not None:
            _tell(place.begins, None)
    except OSError as error:
        raise RefusedError(f"{error.filename} cannot be changed: {error.strerror}.", 1) from None
    data(f"{shell} does not complete memsup any more from its next start on.")
    return 0


@completion.command()
@_shell_argument
def show(shell: str | None) -> int:
    """Print the script, and write nothing."""
    data(*script_of(shell or own_shell()).rstrip("\n").split("\n"))
    return 0


def script_of(shell: str) -> str:
    """What the shell has to read."""
    from click.shell_completion import get_completion_class

    from memsup.supervisor.cli.group import memsup

    kind = get_completion_class(shell)
    assert kind is not None, "click knows them all"
    script = kind(memsup, {}, "memsup", "_MEMSUP_COMPLETE").source()
    return script.replace("\n", _FOR_ZSH, 1) if shell == "zsh" else script  # behind the first line, which zsh reads itself


def own_shell_or_none() -> str | None:
    """The shell that the user logs in with. Returns None where it is none that can complete."""
    name = os.path.basename(os.environ.get("SHELL", ""))
    return name if name in SHELLS else None


def own_shell() -> str:
    """The shell that the user logs in with. Raises `RefusedError` where it is none that can complete."""
    if (name := own_shell_or_none()) is None:
        raise RefusedError(f"SHELL names none of {', '.join(SHELLS)}: write which one behind the command.")
    return name


def _tell(file: Path, line: str | None) -> None:
    """Has the shell's file end with `line`, or, where that is None, with no line of ours. A link keeps leading where it does.
    Raises OSError.
    """
    file = Path(os.path.realpath(file))
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        content = b""
    if len(content) > _MOST_BYTES:
        raise OSError(27, "it is too large for a shell's file", str(file))
    kept = [each for each in content.decode(errors="surrogateescape").splitlines(keepends=True) if MARK not in each]
    if line is not None:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append(line + "\n")
    new = "".join(kept).encode(errors="surrogateescape")
    if new != content:
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        replace_file(file, new)
        file.chmod(mode)
