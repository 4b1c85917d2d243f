"""The systemd unit begins the run at boot, survives odd paths, and knows when a run is no longer wanted."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.files import replace_file
from memsup.shared.messages import PauseMode
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import RunState, Status, Wanted, encode_status
from memsup.supervisor.cli import service as cli
from memsup.supervisor.daemon.sd_notify import Notifier
from memsup.supervisor.daemon.systemd import GO_ON, OVER, Unit, UnitError, exit_status, is_wanted, unit_name, unit_text

ODD = "a b 100%h 中文 (x); 'y'"
ODD_PROGRAM = "a b 100%h 中文 (x); y"


def record_of(wanted: Wanted = Wanted.RUNNING) -> RunRecord:
    return RunRecord(
        run="default",
        run_id="0123456789ab",
        created_unix_s=1.0,
        wanted=wanted,
        pause_mode=PauseMode.HOLD,
        tier="safe",
        tier_reason="so",
        settings=Settings(),
    )


def status_of(state: RunState, run_id: str = "0123456789ab") -> Status:
    return Status(run="default", run_id=run_id, state=state, wanted=Wanted.RUNNING)


def settings_of(text: str) -> dict[str, list[str]]:
    """The unit's assignments, as written."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# --------------------------------------------------------------------------------------------------------------------
# The unit


@pytest.mark.parametrize("for_root", [False, True])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not run: no systemd-analyze here")
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, for_root: bool) -> None:
    """Also with spaces, percent and Chinese in every path: it finds the program that is meant."""
    python = tmp_path / ODD_PROGRAM / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    text = unit_text(
        Unit(run="夜-1", python=str(python), environment={"MEMSUP_STATE_DIR": str(tmp_path / ODD)}, for_root=for_root)
    )
    file = tmp_path / unit_name("夜-1")
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--user" if not for_root else "--system", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "LC_ALL": "C.UTF-8"},
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if file.name in line or "not executable" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not run: no systemd-analyze here")
def test_this_check_would_notice_a_wrong_path(tmp_path: Path) -> None:
    """Without the escaping systemd looks for another program, and says so."""
    file = tmp_path / "memsup-wrong.service"
    python = tmp_path / "100%h" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    file.write_text(f"[Service]\nExecStart={python} -V\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--system", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0


def test_the_unit_keeps_what_it_promises() -> None:
    """Ready and watchdog, started again by all but an end that is meant, a victim later than its worker, no shell."""
    text = unit_text(Unit(run="default", python="/usr/bin/python3", environment={}, for_root=False))
    found = settings_of(text)
    assert found["ExecStart"] == ["/usr/bin/python3 -P -m memsup.supervisor --run default"]
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == ["0 3"]
    assert found["OOMPolicy"] == ["continue"]
    assert found["TimeoutStartSec"] == ["900"]
    assert found["KillMode"] == ["mixed"]
    assert found["WantedBy"] == ["default.target"]
    root = settings_of(unit_text(Unit(run="default", python="/usr/bin/python3", environment={}, for_root=True)))
    assert root["WantedBy"] == ["multi-user.target"]
    assert root["OOMScoreAdjust"] == ["-800"]


def test_only_what_is_needed_of_the_environment_is_written_down() -> None:
    """No key and no token ends up in a file that others can read."""
    environment = {"MEMSUP_STATE_DIR": "/s", "WANDB_API_KEY": "secret", "HF_TOKEN": "secret", "MEMSUP_NOTIFY_URLS": "secret"}
    text = unit_text(Unit(run="default", python="/p", environment=environment, for_root=False))
    assert "secret" not in text
    assert "Environment=MEMSUP_STATE_DIR=/s" in text


@pytest.mark.parametrize("python", ["/a\nExecStartPre=/bin/evil/python", '/a"b/python', "/a$HOME/python", "/a\\x41/python"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(python: str) -> None:
    """It would add a line of somebody's choice to the unit, or run another program."""
    with pytest.raises(UnitError):
        unit_text(Unit(run="default", python=python, environment={}, for_root=False))


@given(st.from_regex(r"[^\W_][\w.-]{0,63}", fullmatch=True))
def test_every_run_has_a_unit_of_its_own_name(run: str) -> None:
    """In characters and a length that systemd allows (systemd.unit(5))."""
    name = unit_name(run)
    assert len(name) <= 255
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\")
    assert unit_name(run + "x") != name


# --------------------------------------------------------------------------------------------------------------------
# Wanted or not


@pytest.mark.parametrize(
    ("record", "status", "wanted"),
    [
        (None, None, False),
        (record_of(), None, True),
        (record_of(Wanted.PAUSED), status_of(RunState.PAUSED), True),
        (record_of(Wanted.STOPPED), status_of(RunState.STOPPED), False),
        (record_of(), status_of(RunState.RUNNING), True),
        (record_of(), status_of(RunState.STOPPED), True),
        (record_of(), status_of(RunState.FINISHED), False),
        (record_of(), status_of(RunState.FAILED), False),
        (record_of(), status_of(RunState.FINISHED, run_id="an earlier one"), True),
    ],
)
def test_a_boot_begins_only_what_is_still_wanted(record: RunRecord | None, status: Status | None, wanted: bool) -> None:
    """A reboot brings neither a stopped run back nor trains a finished one again."""
    assert is_wanted(record, status) is wanted


def written(wanted: Wanted, state: RunState) -> RunPaths:
    paths = run_paths("default")
    prepare(paths)
    write_record(paths.record, record_of(wanted))
    replace_file(paths.status, encode_status(status_of(state)))
    return paths


def test_the_condition_answers_as_a_process(private_folders: Path) -> None:
    """As systemd runs it, in a folder that holds a trap for imports."""
    (private_folders / "memsup.py").write_text("raise SystemExit('the wrong memsup')")
    asked = [sys.executable, "-P", "-m", "memsup.supervisor.daemon.systemd", "default"]
    for wanted, state, code in ((Wanted.RUNNING, RunState.RUNNING, 0), (Wanted.STOPPED, RunState.STOPPED, 1)):
        paths = written(wanted, state)
        assert subprocess.run(asked, cwd=private_folders, timeout=60, check=False).returncode == code
    paths.status.write_bytes(b"torn")
    paths.record.write_bytes(b"torn")
    assert subprocess.run(asked, cwd=private_folders, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode == 1


@pytest.mark.parametrize(
    ("terminal", "wanted", "status"),
    [
        (RunState.STOPPED, Wanted.RUNNING, GO_ON),  # told to go, as at a shutdown
        (RunState.STOPPED, Wanted.PAUSED, GO_ON),
        (RunState.STOPPED, Wanted.STOPPED, OVER),
        (RunState.FINISHED, Wanted.RUNNING, OVER),
        (RunState.FAILED, Wanted.RUNNING, OVER),
    ],
)
def test_only_who_was_told_to_go_while_the_run_is_wanted_is_to_begin_again(
    terminal: RunState, wanted: Wanted, status: int
) -> None:
    assert exit_status(terminal, wanted) == status


# --------------------------------------------------------------------------------------------------------------------
# sd_notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path, abstract: bool) -> None:
    """On a socket of the file system and on an abstract one."""
    name = f"@memsup-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(10)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "1"}
        notifier = Notifier(environment)
        assert environment == {"OTHER": "1"}, "no child speaks in our name"
        assert notifier.watchdog_every_s == 10
        notifier.ready()
        for now_s in range(100, 130):
            notifier.alive(float(now_s))
        notifier.tell("running,\nstep 3")
        notifier.stopping()
        heard = [manager.recv(500) for _ in range(6)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STATUS=running, step 3", b"STOPPING=1"]


def test_a_manager_that_does_not_read_does_not_hold_up_the_guard(tmp_path: Path) -> None:
    """Its queue is full after a few datagrams; thousands more cost nothing but are lost."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        begun_s = time.monotonic()
        for _ in range(5_000):
            notifier.tell("x" * 400)
        assert time.monotonic() - begun_s < 20, "a blocking one would never have come here"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "@"},
        {"NOTIFY_SOCKET": "/" + "x" * 300},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_systemd_it_is_silent(environment: dict[str, str]) -> None:
    """Nobody asked, or nobody is there, or somebody else was meant: no error, no watchdog."""
    notifier = Notifier(environment)
    notifier.ready()
    notifier.alive(1e9)
    notifier.stopping()
    assert notifier.watchdog_every_s is None


# --------------------------------------------------------------------------------------------------------------------
# memsup service


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it was asked and is content; this process is taken for a user's."""
    asked = tmp_path / "asked"
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> "{asked}"\ncase "$2" in is-enabled) echo enabled;; is-active) echo active;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return asked


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.service, list(words), standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    code = result.return_value
    return code if isinstance(code, int) else result.exit_code, result.output


def test_install_status_remove(systemctl: Path, private_folders: Path) -> None:
    """The unit is written, enabled and begun; status knows it; remove takes it away again."""
    written(Wanted.RUNNING, RunState.STOPPED)
    code, text = invoke("install")
    file = private_folders / "config" / "systemd" / "user" / "memsup-default.service"
    assert code == 0
    assert f"Written: {file}" in text
    assert "loginctl enable-linger" in text
    assert systemctl.read_text().splitlines() == ["--user daemon-reload", "--user enable --now memsup-default.service"]
    assert invoke("status")[0] == 0
    assert '"current":true' in invoke("status", "--json")[1]
    monkey = file.read_text().replace("ExecStart=", "ExecStart=/elsewhere")
    file.write_text(monkey)
    assert '"current":false' in invoke("status", "--json")[1]
    assert invoke("remove")[0] == 0
    assert not file.exists()
    assert invoke("remove")[0] == 3
    assert invoke("status")[0] == 3


def test_a_run_that_is_stopped_is_not_begun_by_installing(systemctl: Path, private_folders: Path) -> None:
    """Nor is one that somebody guards already."""
    written(Wanted.STOPPED, RunState.STOPPED)
    assert invoke("install")[0] == 0
    assert systemctl.read_text().splitlines()[-1] == "--user enable memsup-default.service"


def test_without_systemd_install_says_so(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit is there, the exit code says that nothing begins it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(private_folders))
    written(Wanted.RUNNING, RunState.STOPPED)
    code, text = invoke("install")
    assert code == 1
    assert "there is no systemctl here" in text


def test_print_writes_nothing(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, text = invoke("install", "--print")
    assert code == 0
    assert text.startswith("# Written by: memsup service install")
    assert not (private_folders / "config" / "systemd").exists()
