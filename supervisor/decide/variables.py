"""Which environment variables of a command's first start it has in its later lives as well. Pure.

A run goes on as it was begun, from another terminal, after a stop or a boot, whose environment may lack what the first one had
(`SEED=2 memsup start -- python train.py`, or the virtual environment that was active). So what is set no more is kept, and what
is set otherwise now counts. Not kept is what belongs to a login or a terminal, what is memsup's own, and what looks like a
secret, of which only the name is remembered, so that it can be asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from memsup.shared.record import CommandEnvironment

MOST_BYTES, MOST_VALUE_BYTES = 8192, 4096
"""What is longer is not kept; with all of it `run.json` still fits into the room that is kept for it."""
_OF_A_LOGIN = re.compile(
    r"_|PWD|OLDPWD|SHLVL|HOME|USER|LOGNAME|SHELL|MAIL|HOSTNAME|HOSTTYPE|TMPDIR|LINES|COLUMNS|LANG|LANGUAGE|TZ|EDITOR|VISUAL|PAGER|LESS.*|"
    r"TERM.*|COLORTERM|NO_COLOR|LS_COLORS|PS[0-9]|PROMPT.*|BASH.*|HIST.*|SSH_.*|GPG_.*|DISPLAY|WAYLAND_.*|XAUTHORITY|WINDOWID|"
    r"DBUS_.*|DESKTOP.*|GDM.*|GNOME.*|GTK_.*|QT_.*|KDE_.*|KONSOLE_.*|VTE_.*|WT_.*|WSL.*|TMUX.*|STY|VSCODE_.*|XDG_.*|LC_.*|"
    r"INVOCATION_ID|JOURNAL_STREAM|NOTIFY_SOCKET|WATCHDOG_.*|MANAGERPID|SYSTEMD_.*|LISTEN_.*|MAINPID|SUDO_.*|PYTEST.*|"
    r"_?MEMSUP.*|PYTHONUNBUFFERED"
)
_SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|BEARER|COOKIE|SIGNATURE|DSN|WEBHOOK|PRIVATE|CONN(?:ECTION)?_?STR|"
    r"(?:^|_)(?:PAT|PW|SAS|JWT)(?:_|$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"://[^/\s]*:[^/\s]*@|://[^/\s:@]{16,}@|-----BEGIN|^(?:hf|sk|gh[a-z]|glpat|xox.)[_-]|"
    r"(?<![A-Za-z0-9])(?:hf_|sk[-_]|gh[a-z]_|github_pat_|glpat-|xox[a-z]-|npm_|pypi-|AKIA|AIza|eyJ)(?=[A-Za-z_-]*[0-9])[\w-]{16,}|"
    r"(?:^|[?&;,\s-])[\w-]{0,40}(?i:key|token(?!s)|secret|passw|pwd|signature|credential)[\w-]{0,20}=|"
    r"(?:^|[?&])sig=|--[\w-]{0,40}(?:key|token(?!s)|secret|passw)[\w-]{0,20}\s"
)
"""An address with a password, a key of a kind that is known, and what is called one within a value: `AccountKey=…`."""
_WHERE_PROGRAMS_ARE = (
    "PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "PYTHONHOME",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
)
_ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX")
"""One of these is set where a Python environment is active."""


class Variables(NamedTuple):
    """How the variables of a command that goes on are, beside those of its first start. Names, sorted."""

    kept: list[str]
    """Not set now, so what they were counts."""
    changed: list[str]
    """Set otherwise now, which counts."""
    missing: list[str]
    """Secrets that were set, and are not now."""


AS_BEFORE = Variables([], [], [])
"""None differs."""


def to_keep(environment: Mapping[str, str], before: CommandEnvironment | None = None) -> CommandEnvironment:
    """What is remembered of `environment`, the one that a command is started with, and of what was `before`."""
    values: dict[str, str] = {}
    secrets = set(before.secrets) if before is not None else set()
    left = MOST_BYTES
    for name, value in sorted(environment.items(), key=lambda item: len(item[1])):
        if _OF_A_LOGIN.fullmatch(name) or not _is_text(name + value):
            continue
        if _SECRET.search(name) or _SECRET_VALUE.search(value[:MOST_VALUE_BYTES]):
            secrets.add(name[:100])
            continue
        size = len(name.encode()) + len(value.encode())
        if size <= min(left, MOST_VALUE_BYTES):
            values[name] = value
            left -= size
    return CommandEnvironment(values=values, secrets=sorted(secrets)[:50])


def joined(kept: CommandEnvironment | None, now: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command, of what was kept and what is set now."""
    if kept is None:
        return dict(now)
    found = kept.values | dict(now)
    if _is_active(kept.values) and not _is_active(now):
        found |= {name: kept.values[name] for name in _WHERE_PROGRAMS_ARE if name in kept.values}
    return found


def compared(kept: CommandEnvironment | None, now: Mapping[str, str]) -> Variables:
    """How what was kept differs from what is set now."""
    if kept is None:
        return AS_BEFORE
    found = joined(kept, now)
    return Variables(
        kept=sorted(name for name, value in kept.values.items() if found[name] == value and now.get(name) != value),
        changed=sorted(name for name, value in kept.values.items() if found[name] != value),
        missing=sorted(name for name in kept.secrets if name not in now),
    )


def _is_active(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in _ACTIVE)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are none, as os.environ has them
        return False
    return True
