"""`memsup service`: a systemd unit that begins the run at boot and the supervisor again whenever it dies."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from memsup.shared.commands import command
from memsup.shared.files import replace_file
from memsup.shared.paths import paths_of, run_paths
from memsup.shared.run_file import read_record
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.contact import Presence, observe
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.daemon.systemd import Unit, UnitError, is_wanted, unit_name, unit_text

ANSWERS_WITHIN_S = 30.0
DONE, NOT_DONE, NOT_INSTALLED = 0, 1, 3


@click.group()
def service() -> None:
    """Begin a run at boot, and its supervisor again whenever it dies (systemd)."""


@service.command(short_help="Have systemd begin the run at boot.")
@run_option
@json_option
@click.option("--print", "only_print", is_flag=True, help="Show the unit; write nothing.")
def install(run_name: str, as_json: bool, only_print: bool) -> int:
    """Write the unit and have systemd begin it at boot; begin it now, unless the run is guarded already.

    Exit code: 0 done, 1 written, but systemd does not answer here, 2 refused.
    """
    paths = paths_of(run_name)
    try:
        unit = Unit(run=run_name, python=_python(), environment=_environment(), for_root=_is_root())
        text = unit_text(unit)
    except UnitError as error:
        raise RefusedError(str(error)) from None
    if only_print:
        data(*text.rstrip("\n").split("\n"))
        return DONE
    record = read_record(paths.record)
    if record is None:
        raise RefusedError(f"There is no run {run_name!r} yet. Start it first: {command('start', run_name)}")
    file = _unit_file(run_name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text.encode())
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}.") from None
    file.chmod(0o644)
    observed = observe(paths)
    begin = observed.presence is Presence.GONE and is_wanted(record, observed.status)
    problem = _systemctl("daemon-reload") or _systemctl("enable", *(["--now"] if begin else []), file.name)
    if as_json:
        json_data(_document(run_name) | {"begun": begin and not problem})
    else:
        data(f"Written: {file}")
    if problem:
        message(
            f"systemd did not take it: {problem}",
            f"Once it answers: {_shown(['systemctl', *_scope(), 'enable', file.name])}",
        )
        return NOT_DONE
    if not as_json:
        data("It begins with the machine." if not _lacks_lingering() else _LINGERING)
        data("It was begun now." if begin else "It was not begun now: the run is guarded already, or not wanted.")
    return DONE


@service.command(short_help="Take the unit away; the run goes on.")
@run_option
@json_option
def remove(run_name: str, as_json: bool) -> int:
    """Take the unit away; the run goes on until it is stopped or the machine is.

    Exit code: 0 done, 3 there was none.
    """
    file = _unit_file(run_name)
    if not file.is_file():
        message(f"There is no unit {file}.")
        return NOT_INSTALLED
    problem = _systemctl("disable", file.name)
    file.unlink()
    problem = problem or _systemctl("daemon-reload")
    if as_json:
        json_data(_document(run_name))
    else:
        data(f"Removed: {file}")
    if problem:
        message(f"systemd did not answer: {problem}")
    return DONE


@service.command(short_help="Whether the unit is there and what it does.")
@run_option
@json_option
def status(run_name: str, as_json: bool) -> int:
    """Whether the unit is there, whether it begins at boot, and what it does.

    Exit code: 0 installed, 3 not.
    """
    known = _document(run_name)
    if as_json:
        json_data(known)
    elif not known["installed"]:
        data(f"Not installed. Install it with: {command('service install', run_name)}")
    else:
        data(f"{known['unit']}: {known['active'] or 'systemd does not answer'}, at boot: {known['enabled'] or '?'}")
        data(f"  {known['file']}")
        if not known["current"]:
            message(
                f"It was written for another Python or another folder; renew it with: {command('service install', run_name)}"
            )
        if _lacks_lingering():
            message(_LINGERING)
    return DONE if known["installed"] else NOT_INSTALLED


def _document(run_name: str) -> dict[str, str | bool | int | None]:
    """What `--json` prints: the unit as it lies there, and what systemd says of it, which is None where it does not answer."""
    file = _unit_file(run_name)
    installed = file.is_file()
    return {
        "schema": 1,
        "unit": file.name,
        "file": str(file),
        "installed": installed,
        "current": installed and _is_current(run_name, file),
        "enabled": _answer("is-enabled", file.name) if installed else None,
        "active": _answer("is-active", file.name) if installed else None,
        "lingering": None if _is_root() else not _lacks_lingering(),
    }


_LINGERING = (
    "It begins when you log in, and ends with your last session, since your account does not linger. "
    "So that it begins with the machine: loginctl enable-linger"
)


def _is_current(run_name: str, file: Path) -> bool:
    unit = Unit(run=run_name, python=_python(), environment=_environment(), for_root=_is_root())
    try:
        return file.read_text(encoding="utf-8") == unit_text(unit)
    except (OSError, UnicodeDecodeError, UnitError):
        return False


def _python() -> str:
    """This Python's path, not resolved: a virtual environment's python is a link, and only as that link does it find its
    packages.

    Raises `RefusedError`.
    """
    if not os.path.isabs(sys.executable):
        raise RefusedError("This Python does not know where it lies, so no unit can name it.")
    return sys.executable


def _environment() -> dict[str, str]:
    """The environment with folders as absolute paths, since the unit has another working directory."""
    folders = ("MEMSUP_STATE_DIR", "MEMSUP_RUNTIME_DIR")
    return {name: os.path.abspath(value) if name in folders else value for name, value in os.environ.items() if value}


def _is_root() -> bool:
    return os.geteuid() == 0


def _scope() -> list[str]:
    return [] if _is_root() else ["--user"]


def _unit_file(run_name: str) -> Path:
    """Where the run's unit lies. Raises `PathError` for a name that cannot be a run's."""
    run_paths(run_name)
    if _is_root():
        return Path("/etc/systemd/system") / unit_name(run_name)
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(config) / "systemd" / "user" / unit_name(run_name)


def _lacks_lingering() -> bool:
    """Whether this account does not linger: loginctl(1) keeps a file for each user who does."""
    return not _is_root() and not Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def _systemctl(*words: str) -> str | None:
    """Has systemctl do something, and tells what went wrong, in a line. Returns None when nothing did."""
    done = _run([*_scope(), *words])
    if isinstance(done, str):
        return done
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _answer(*words: str) -> str | None:
    done = _run([*_scope(), *words])
    return None if isinstance(done, str) else done.stdout.strip() or None


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str] | str:
    if shutil.which("systemctl") is None:
        return "there is no systemctl here."
    try:
        return subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWERS_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWERS_WITHIN_S:.0f} s."


def _shown(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(words)
