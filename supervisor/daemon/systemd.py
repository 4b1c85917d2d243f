"""The systemd unit of a run, as text. Pure, but for what `__main__` reads; `cli/service.py` installs it.

A user's unit belongs to their own service manager and needs no privilege; root's is a system unit. Both begin the supervisor
at boot and again whenever it dies, as long as the run is wanted: `ExecCondition` asks for that before each start, so a run that
was stopped, or has finished, is not begun again by a reboot.

The supervisor's exit status tells systemd what is meant: 0 means that the run is over (or was stopped by a person), 3 that
another supervisor guards it; then it is not started again. After any other status it is, also after 75 (it was told to go while
the run is wanted).
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memsup.shared.printable import printable
from memsup.shared.record import RunRecord
from memsup.shared.status import RunState, Status, Wanted

OVER, GUARDED, GO_ON = 0, 3, 75
"""The exit statuses of the supervisor that the unit knows."""
WATCHDOG_S = 60
"""A supervisor that is silent for this long is stuck: it is twenty times the longest stall that is ever to be seen."""
STOP_S = 150
"""The time for the checkpoint that a stop writes. At a shutdown the system grants less (90 s; `user@.service`: 120 s)."""
START_S = 900
"""The time until the supervisor is ready. At a boot several begin at once on a machine that is busy with itself, and one that
is ended for being late only comes later."""
SUPERVISOR_MIB = 64
_PASSED_ON = (
    "MEMSUP_STATE_DIR",
    "MEMSUP_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "XDG_CONFIG_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "CUDA_HOME",
)
_LONGEST_NAME = 200


class UnitError(Exception):
    """No unit can be written; the text is one plain sentence with what to do."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    run: str
    python: str
    """The absolute path of the interpreter."""
    environment: Mapping[str, str]
    for_root: bool


def unit_name(run: str) -> str:
    """The unit's name, such as `memsup-default.service`. Names in other scripts are escaped as systemd-escape(1) does, or, if
    too long, hashed.
    """
    escaped = "".join(
        chr(byte) if chr(byte).isascii() and re.match(r"[\w.]", chr(byte)) else f"\\x{byte:02x}" for byte in run.encode()
    )
    if len(escaped) > _LONGEST_NAME:
        escaped = hashlib.sha256(run.encode()).hexdigest()[:16]
    return f"memsup-{escaped}.service"


def unit_text(unit: Unit) -> str:
    """The unit as it is written to its file. Raises `UnitError` for a path that no unit can name."""
    if re.search(r"[\"'\\$]", unit.python):
        raise UnitError(f"systemd runs no program whose path has a quote, a backslash or a dollar sign in it: {unit.python}")
    run_it = [unit.python, "-P", "-m", "memsup.supervisor", "--run", unit.run]
    ask = [unit.python, "-P", "-m", "memsup.supervisor.daemon.systemd", unit.run]
    lines = [
        "# Written by: memsup service install. Removed by: memsup service remove.",
        "[Unit]",
        f"Description=memsup, run {_specifiers(unit.run)}",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=20",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecCondition={_command(ask)}",
        f"ExecStart={_command(run_it)}",
        *(f"Environment={_quoted(f'{name}={unit.environment[name]}')}" for name in _PASSED_ON if name in unit.environment),
        "WorkingDirectory=/",
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=always",
        "RestartSec=5",
        f"RestartPreventExitStatus={OVER} {GUARDED}",
        f"SuccessExitStatus={GUARDED} {GO_ON}",
        "# The supervisor alone is told to end; it has its worker write a checkpoint first.",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        f"TimeoutStartSec={START_S}",
        "# The worker is meant to die of its own memory limit without taking this unit along.",
        "OOMPolicy=continue",
        f"OOMScoreAdjust={-800 if unit.for_root else 100}",
        f"MemoryMin={SUPERVISOR_MIB}M",
        "MemorySwapMax=0",
        "# The fence makes a cgroup of its own below this unit's.",
        "Delegate=yes",
        *(["# Below system.slice, which has none, MemoryMin would protect nothing.", "Slice=-.slice"] if unit.for_root else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if unit.for_root else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def exit_status(terminal: RunState | None, wanted: Wanted) -> int:
    """What the supervisor's end means to systemd. `terminal` is the state in which the run has ended. It is None where the run
    has not ended.
    """
    told_to_go = terminal is RunState.STOPPED and wanted is not Wanted.STOPPED
    return GO_ON if told_to_go else OVER


def is_wanted(record: RunRecord | None, status: Status | None) -> bool:
    """Whether a boot should begin the run."""
    if record is None or record.wanted is Wanted.STOPPED:
        return False
    of_this_run = status is not None and status.run_id == record.run_id
    return not (of_this_run and status is not None and status.state in (RunState.FINISHED, RunState.FAILED))


def _command(words: Sequence[str]) -> str:
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """The word as systemd.syntax(7) wants it: quotes, C escapes, and `%` doubled, since it begins a specifier."""
    if any(ord(character) < 32 or ord(character) == 127 for character in word):
        raise UnitError(f"{word!r} has a control character, which a systemd unit cannot name; move memsup to another folder.")
    if re.fullmatch(r"[\w./=:@,+-]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_specifiers(escaped)}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def main(arguments: Sequence[str]) -> int:
    """Answers `ExecCondition`: 0 lets the start go on, 1 leaves the unit alone, which is no failure."""
    from memsup.shared.files import UnreadableError, read_document
    from memsup.shared.paths import PathError, run_paths
    from memsup.shared.record import RecordError
    from memsup.shared.run_file import read_record, settle
    from memsup.shared.status import decode_status

    try:
        paths = run_paths(arguments[0])
        settle(paths)
        record = read_record(paths.record)
        status = read_document(paths.status, decode_status)
    except (PathError, RecordError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    except (FileNotFoundError, UnreadableError):
        status = None
    return 0 if is_wanted(record, status) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
