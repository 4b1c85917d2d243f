"""`memsup check`: measured, not looked up; warnings are counted in the exit code."""

from __future__ import annotations

import os
from pathlib import Path

from kit.cli_process import memsup

from memsup.supervisor.sense.machine import look


def test_check_shows_the_machine_and_rehearses_the_kill_path(tmp_path: Path) -> None:
    """RAM, CPUs, sensors, disk, users, tier, and a fence that froze and killed a real process; nothing is written."""
    done = memsup("check", cwd=tmp_path)
    assert done.returncode in {0, 1}, done.stderr
    for words in (
        "RAM",
        "CPUs",
        "GPU",
        "sensors",
        "disk",
        "sleep",
        "fence",
        "Largest users of RAM",
        "Tier ",
        "memsup start --demo",
    ):
        assert words in done.stdout
    found = memsup("check", "--json", cwd=tmp_path).document
    machine = look(tmp_path)
    assert found["machine"]["ram_total_bytes"] == machine.ram_total_bytes
    assert found["machine"]["cpus"] == machine.cpus
    assert 0 <= found["fence"]["kill_s"] < 60
    assert found["fence"]["kind"] not in found["fence"]["refused"]
    assert found["largest_users"][0]["bytes"] >= found["largest_users"][-1]["bytes"] > 0
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "runtime").exists()


def test_warnings_are_exit_1(tmp_path: Path) -> None:
    """A limit that makes no sense, and a state folder that is open to all, are named."""
    done = memsup("check", "--set", "limits.ram=1MiB", cwd=tmp_path)
    assert done.returncode == 1
    assert "limits.ram" in done.stdout
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    done = memsup("check", cwd=tmp_path)
    assert done.returncode == 1
    assert "chmod 700" in done.stdout
    assert os.listdir(tmp_path / "state") == []


def test_nothing_is_called_ready_that_start_refuses(tmp_path: Path) -> None:
    """Data that are not there, and messages to where a file in this folder says."""
    job = tmp_path / "memsup.toml"
    for content, why in (
        ('[task]\nmodel = "x"\ntrain = "gone.csv"\n', "gone.csv"),
        ('[notify]\nping_url = "http://127.0.0.1:9/x"\n', "--trust"),
    ):
        job.write_text(content)
        done = memsup("check", cwd=tmp_path)
        assert done.returncode == 1
        assert why in done.stdout
        assert "Refused until that is mended: memsup start\n" in done.stdout
        assert memsup("start", "--dry-run", cwd=tmp_path).returncode == 2


def test_with_a_job_here_the_command_is_plain_start(tmp_path: Path) -> None:
    """What to type next fits the folder."""
    (tmp_path / "memsup.toml").write_text('tier = "safe"\n')
    found = memsup("check", "--json", cwd=tmp_path).document
    assert found["command"] == "memsup start"
    assert found["tier"] == "safe"
