"""Where streams, folders or descriptors are missing: no traceback, and exit codes that stay true."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, a_run, end_supervisors, eventually, memsup
from kit.run_state import until

from memsup.shared.paths import run_paths
from memsup.supervisor.cli import LEAST_DESCRIPTORS, main
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.daemon.sockets import LEAST_PEERS, RESERVED_DESCRIPTORS

BEYOND_BYTES = "x\udcff"
"""A name that is not UTF-8, as Python sees it."""


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def shell(command: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the shell, in which `m` is memsup."""
    script = f'm() {{ "${{memsup[@]}}" "$@"; }}; memsup=("${{@:1:{len(MEMSUP)}}}"); shift {len(MEMSUP)}; {command}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *MEMSUP, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )


LOST = {
    "closed": ">&-",
    "all closed": "<&- >&- 2>&-",
    "full": ">/dev/full",
    "both full": ">/dev/full 2>/dev/full",
    "a pipe without a reader": "| true",
}
WITHOUT_A_RUN = {"status": 4, "logs": 4, "wait": 1, "stop": 3, "--version": 0, "--nix": 2}


@pytest.mark.parametrize("lost", LOST)
def test_the_exit_code_stays_true_where_the_output_is_lost(lost: str) -> None:
    """Without a run: what a command has to say goes nowhere, and its code says the same as ever."""
    commands = "; ".join(f"m {command} {LOST[lost]}; echo ${{PIPESTATUS[0]}} >&3" for command in WITHOUT_A_RUN)
    done = shell(f"exec 3>&1; {commands}")
    assert done.stdout.split()[-len(WITHOUT_A_RUN) :] == [str(code) for code in WITHOUT_A_RUN.values()], done
    assert "Traceback" not in done.stderr


SMALL = "--set limits.ram=1GiB"
"""Two runs at the same time share the machine's memory, so neither may take all."""


def test_a_run_is_started_and_stopped_although_nobody_hears_of_it() -> None:
    """`memsup start` had begun the run, and exited with 1, which means that it had not."""
    done = shell(
        f"m start --run a {SMALL} -- sleep 1000 >/dev/full; echo $? >&2; "
        f"m start --run b {SMALL} -- sleep 1000 | true; echo ${{PIPESTATUS[0]}} >&2"
    )
    assert [line for line in done.stderr.splitlines() if line.isdigit()] == ["0", "0"], done
    assert "could not be written: No space left on device" in done.stderr
    for name in ("a", "b"):
        assert is_held(run_paths(name))
    done = shell(
        "m status --run a >/dev/full 2>&1; echo $?; m stop --now --run a >&- 2>&-; echo $?; m logs --run a >/dev/full; echo $?"
    )
    assert done.stdout.split() == ["0", "0", "1"], done  # to show the log is all that `logs` does
    assert until(lambda seen: seen["state"] == "stopped", run="a")


def test_who_follows_a_log_ends_when_its_reader_does() -> None:
    assert memsup("start", "--", "sh", "-c", "while echo tick; do sleep 0.1; done").returncode == 0
    done = shell("m logs -f --worker | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stdout.split() == ["tick", "141"], done


def _waiting_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_pipe_that_is_full_and_does_not_wait_loses_nothing(tmp_path: Path) -> None:
    """Some callers make the pipe non-blocking, and read late."""
    paths = a_run()
    paths.worker_log.write_text("".join(f'{{"event":"line {i:0100}","time":"2026-05-12T04:31:22Z"}}\n' for i in range(3000)))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    asked = subprocess.Popen([*MEMSUP, "logs", "--worker", "-n", "3000"], stdout=writer)
    os.close(writer)
    eventually(lambda: asked.poll() is not None or _waiting_bytes(reader) > 60_000)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read().count(b"\n") == 3000
    assert asked.wait() == 0


@pytest.mark.parametrize(
    "command", ["start -- true", "check", "start --dry-run -- true", "notify --test", "checkpoint --verify x"]
)
def test_a_current_folder_that_is_gone_is_said(command: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"rmdir ../gone; m {command}", cwd=gone)
    assert done.returncode == 2, done
    assert "current folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_current_folder_that_is_gone_matters_only_where_it_is_asked_for(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell("rmdir ../gone; m status; m --version", cwd=gone)
    assert done.returncode == 0, done
    assert "There is no run" in done.stderr


def test_a_runtime_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    for name in ("x" * 300, "x/" * 3000, "null"):
        (tmp_path / "null").touch()
        done = memsup("start", "--", "true", cwd=tmp_path, MEMSUP_RUNTIME_DIR=str(tmp_path / name))
        assert done.returncode == 2, done
        assert "MEMSUP_RUNTIME_DIR" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["MEMSUP_STATE_DIR", "MEMSUP_RUNTIME_DIR"])
def test_a_folder_below_what_is_none_is_said_by_every_command(variable: str) -> None:
    for words in (["status"], ["start", "--dry-run", "--", "true"]):
        done = memsup(*words, **{variable: "/dev/null/x"})
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr == f"memsup: /dev/null/x cannot be a folder: /dev/null is none. Choose another with {variable}.\n"


def test_a_command_that_needs_another_word_shows_its_help_in_lines() -> None:
    done = memsup("service")
    assert done.returncode == 2, done
    assert "\n  install" in done.stderr
    assert "�" not in done.stderr


def test_who_has_room_for_a_command_has_room_for_its_supervisor() -> None:
    """Otherwise `start` is refused only when the earlier run has been moved aside, and then with another number."""
    assert LEAST_DESCRIPTORS >= RESERVED_DESCRIPTORS + 2 * LEAST_PEERS


def test_too_few_descriptors_are_said_in_one_sentence(tmp_path: Path) -> None:
    done = shell("ulimit -n 30; m start -- true")
    assert done.returncode == 2, done
    assert "30 files" in done.stderr
    assert "ulimit -n 1024" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ('m start --fresh -- echo "$1"', {}),
        ('m start --fresh --set task.train="/tmp/$1.csv" -- true', {}),
        ('mkdir "$1"; cd "$1"; m start --fresh -- true', {}),
        ("m start --fresh -- true", {"MEMSUP_TASK_TEXT": BEYOND_BYTES}),
        ("m start --fresh -- true", {"MEMSUP_TASK_TEXT": "\udced\udca0\udc80"}),  # half a surrogate pair
        ("m start --fresh -- true", {"MEMSUP_RUNTIME_DIR": f"/tmp/{BEYOND_BYTES}"}),
        ('mkdir -p "$1/memsup"; touch "$1/memsup/memsup.toml"; XDG_CONFIG_HOME="$PWD/$1" m start --fresh -- true', {}),
    ],
)
def test_what_is_not_utf8_is_refused_before_anything_is_moved(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """It cannot be written into `run.json`; the earlier run had been moved aside by the time that this was found out."""
    paths = a_run()
    done = shell(command, BEYOND_BYTES, cwd=tmp_path, **environment)
    assert done.returncode == 2, done
    assert "UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert paths.record.is_file()
    assert [folder.name for folder in paths.state.parent.iterdir()] == ["default"]


def test_what_is_on_standard_input_is_not_lost_without_a_word(tmp_path: Path) -> None:
    """`python - < train.py` had found nothing to do, and the run was finished."""
    (tmp_path / "script").write_text("touch was-run\n")
    refused = shell("m start --run a -- sh - < script", cwd=tmp_path)
    assert refused.returncode != 0
    assert "write it to a file" in refused.stderr
    assert not run_paths("a").record.exists()
    told = shell(f"m start --run b {SMALL} -- true < script", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "! What is on standard input does not reach the command" in told.stderr
    silent = shell("m start --run a --dry-run -- sh - < /dev/null", cwd=tmp_path)
    assert silent.returncode == 0, silent.stderr


def test_who_calls_it_from_python_keeps_what_is_his() -> None:
    """How often that process looks for garbage: what holds files open in it would else be there for long."""
    before = gc.get_threshold()
    assert main(["--version"]) == 0
    assert gc.get_threshold() == before
