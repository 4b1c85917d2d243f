"""Several runs of one person on one machine: their limits share it, whoever starts first or at the same moment."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, a_run, end_supervisors, eventually, memsup
from kit.lone_supervisor import tiny_job
from kit.run_state import ledger, status

from memsup.shared.paths import run_paths
from memsup.supervisor.client.contact import is_held

pytestmark = pytest.mark.slow
REST = ["--", "sleep", "1000"]


@pytest.fixture(autouse=True)
def supervisors_end() -> Iterator[None]:
    yield
    end_supervisors()


def limit_of(run: str) -> int:
    """What the run's own supervisor says that its worker may take."""
    return int(status(run)["memory"]["limit_bytes"])


def test_limits_share_the_machine() -> None:
    """The second takes what the first leaves, the third is refused; a stop frees the share, and a boot keeps it."""
    alone = memsup("start", "--json", "--dry-run", *REST).document["limits"]
    room = alone["worker_bytes"]
    half = room // 2 >> 20
    assert alone["other_runs"] == []
    assert memsup("start", "--run", "first", f"--set=limits.ram={half}MiB", *REST).returncode == 0
    second = memsup("start", "--run", "second", *REST)
    assert second.returncode == 0
    assert "run 'first' may take" in second.stdout
    assert limit_of("first") == half << 20
    assert room - limit_of("first") - (1 << 20) <= limit_of("second") <= room - limit_of("first") + (1 << 20)
    assert [line["reason"] for line in ledger("second") if line["event"] == "shared"]

    refused = memsup("start", "--run", "third", *REST)
    assert refused.returncode == 2
    assert "run 'first' may take" in refused.stderr
    assert "memsup stop --run first" in refused.stderr or "memsup stop --run second" in refused.stderr
    assert not run_paths("third").state.exists()
    checked = memsup("check")
    assert checked.returncode == 1
    assert "There is no room beside what runs already: run 'first' may take" in checked.stdout

    memsup("pause", "--run", "first")
    assert memsup("start", "--run", "third", *REST).returncode == 2  # it has to find its share when it is resumed
    memsup("stop", "--run", "first")
    asked = memsup("start", "--run", "third", f"--set=limits.ram={half + 1024}MiB", *REST)
    assert asked.returncode == 2
    assert f"--set limits.ram={half // 1024}GiB" in asked.stderr

    kept = limit_of("second")
    memsup("stop", "--run", "second")
    memsup("start", "--run", "second", *REST)
    assert limit_of("second") > kept  # a person was there, and it is alone now


def test_what_a_run_claimed_is_kept_where_nobody_starts_it() -> None:
    """As at a boot: each supervisor begins by itself, in any order, and both fit beside each other as before."""
    memsup("start", "--run", "first", "--set=limits.ram=50%", *REST)
    memsup("start", "--run", "second", *REST)
    before = {run: limit_of(run) for run in ("first", "second")}
    for run in before:
        os.kill(int(run_paths(run).lock.read_text()), 15)  # as at a shutdown
        eventually(lambda run=run: not is_held(run_paths(run)))
    supervisors = []
    for run in ("second", "first"):
        supervisors.append(
            subprocess.Popen([sys.executable, "-P", "-m", "memsup.supervisor", "--run", run], stderr=subprocess.DEVNULL)
        )
        eventually(lambda run=run: (seen := status(run)) and seen["state"] == "running")
    assert {run: limit_of(run) for run in before} == before
    end_supervisors()
    assert [supervisor.wait() for supervisor in supervisors] == [0, 0]


def test_two_that_start_at_the_same_moment_do_not_both_take_what_is_left() -> None:
    """Each has looked while the other had claimed nothing: the supervisors take turns."""
    room = memsup("start", "--json", "--dry-run", *REST).document["limits"]["worker_bytes"]
    starts = [
        subprocess.Popen(
            [*MEMSUP, "start", "--json", "--run", f"twin{number}", *REST],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    said = [start.communicate() for start in starts]
    codes = sorted(start.returncode for start in starts)
    assert codes[0] == 0, said
    assert codes[1] > 0, said
    assert sum(limit_of(f"twin{n}") for n, start in enumerate(starts) if start.returncode == 0) <= room
    assert all("may take" in err for (_, err), start in zip(said, starts, strict=True) if start.returncode)


def test_two_living_runs_never_share_a_folder_of_checkpoints(tmp_path: Path) -> None:
    """Each would sweep the other's unfinished save away, and count the other's checkpoints among its own older ones."""
    tiny_job(tmp_path, epochs=1, more="")
    other = a_run("other")
    fd = os.open(other.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    (tmp_path / "link").symlink_to(other.state)
    done = memsup("start", "--dry-run", "--set", "checkpoint.folder=link/checkpoints", cwd=tmp_path)
    assert done.returncode == 2, done
    assert f"Run 'other' is guarded now and keeps its checkpoints in {other.checkpoints}" in done.stderr
    os.close(fd)
    done = memsup("start", "--dry-run", "--set", "checkpoint.folder=link/checkpoints", cwd=tmp_path)
    assert done.returncode == 0, done
