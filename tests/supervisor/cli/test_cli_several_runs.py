"""Several runs of one person on one machine: their limits share it, whoever starts first or at the same moment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from kit.cli_process import MEMSUP, a_run, end_supervisors, eventually, memsup
from kit.lone_supervisor import tiny_job
from kit.run_state import ledger, status, until

from memsup.shared.messages import RequestKind
from memsup.shared.paths import run_paths
from memsup.shared.settings import Checkpoint, Settings
from memsup.shared.status import Wanted
from memsup.supervisor.cli.orders import WRITTEN_WITHIN_S
from memsup.supervisor.client.contact import ask, is_held
from memsup.supervisor.client.spawning import NotStartedError, spawn
from memsup.supervisor.daemon.claims import beside
from memsup.supervisor.decide.claims import Claim

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
    too_much = memsup("start", "--run", "first", "--set=limits.ram=90%", *REST)
    assert too_much.returncode == 2
    assert "does not fit beside what runs already: run 'second' may take" in too_much.stderr
    assert limit_of("first") == half << 20
    other = memsup("start", "--run", "first", "--", "sleep", "1")
    assert "  the command: sleep 1 (given now), but it has sleep 1000\nThat would be another run" in other.stderr
    assert "lives already" in memsup("check", "--run", "first").stdout

    refused = memsup("start", "--run", "third", *REST)
    assert refused.returncode == 2
    assert "run 'first' may take" in refused.stderr
    assert "\n  this start once more" in refused.stderr
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


def test_who_is_told_that_a_run_has_stopped_finds_its_share_free() -> None:
    """At that instant: its supervisor still has its last words to say, and a slow disk takes its time for them."""
    for _ in range(3):
        memsup("start", "--run", "first", *REST)
        assert [claim.run for claim in beside(run_paths("second")).others] == ["first"]
        assert ask(run_paths("first"), RequestKind.STOP).ok
        assert beside(run_paths("second")).others == ()


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
    for number, ((_, err), start) in enumerate(zip(said, starts, strict=True)):
        if start.returncode:
            assert "may take" in err
            assert not run_paths(f"twin{number}").state.exists()  # as if it had not been started


def test_a_start_that_comes_to_nothing_leaves_the_run_as_it_was() -> None:
    """With the settings it had, stopped, as a person left it; and nothing of a new run. Here the sockets cannot be made."""
    memsup("start", "--run", "old", *REST)
    memsup("stop", "--run", "old")
    for run in ("old", "new"):
        paths = run_paths(run)
        paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths.runtime.chmod(0o700)
        eventually(lambda socket=paths.runtime / "control.sock": not socket.exists())  # who was stopped takes its sockets along
        (paths.runtime / "control.sock").mkdir()
    before = memsup("status", "--json", "--run", "old").document
    record = run_paths("old").record.read_bytes()
    for more in ((), ("--fresh",)):
        refused = memsup("start", "--run", "old", "--set", "limits.ram=1GiB", *more, *REST)
        assert refused.returncode == 1, refused
        assert run_paths("old").record.read_bytes() == record
    assert memsup("status", "--json", "--run", "old").document["state"] == before["state"] == "stopped"
    assert memsup("start", "--run", "new", *REST).returncode == 1
    assert not run_paths("new").state.exists()


def test_a_command_whose_supervisor_was_killed_keeps_its_share_and_is_told_of() -> None:
    """It is not stopped, whatever the words for the run are; and nobody begins anew beside it."""
    memsup("start", *REST)
    seen = status("default")
    if seen["memory"]["fence"] in ("rlimit", "none"):
        pytest.skip("NOT RUN: without a cgroup the deadman ends what a supervisor leaves")
    os.kill(seen["pid"], 9)
    eventually(lambda: not is_held(run_paths("default")))
    refused = memsup("start", "--run", "second", *REST)
    assert refused.returncode == 2
    assert "what is left of run 'default' may take" in refused.stderr
    assert "\n  memsup start\n  memsup stop\n" in refused.stderr
    still = "Its command still runs, and nobody guards it: memsup start ends it and begins it anew."
    assert still in memsup("status").stdout
    stopped = memsup("stop")
    assert stopped.returncode == 1
    assert still in stopped.stderr
    anew = memsup("start", "--fresh", *REST)
    assert anew.returncode == 1
    assert still in anew.stderr
    os.kill(seen["worker_pid"], 0)

    again = memsup("start", *REST)
    assert again.returncode == 0
    assert "The command is begun anew." in again.stderr
    assert "checkpoint" not in again.stderr, "nobody knows what a command saves"
    assert memsup("stop").returncode == 0
    assert "still runs" not in memsup("status").stdout
    assert memsup("start", "--run", "second", *REST).returncode == 0


def test_what_cannot_be_taken_away_is_a_sentence() -> None:
    """A folder where the claim should lie."""
    memsup("start", *REST)
    memsup("stop")
    eventually(lambda: not is_held(run_paths("default")))  # it has stopped, and is about to go
    run_paths("default").claim.unlink(missing_ok=True)
    run_paths("default").claim.mkdir()
    refused = memsup("start", *REST)
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]  # the supervisor that was stopped may still have been there
    assert last.startswith("memsup: ")
    assert "claim.json" in last


def test_a_run_that_is_over_takes_nothing_while_its_last_message_is_on_its_way() -> None:
    """Its supervisor tries to deliver that for minutes. `stop` has nothing to wait for either."""
    words = ["--set", "notify.urls=json://127.0.0.1:9/x", "--", "true"]
    assert memsup("start", "--run", "over", *words).returncode == 0
    over = run_paths("over")
    until(lambda seen: seen["state"] == "finished", run="over")
    eventually(lambda: msgspec.json.decode(over.claim.read_bytes())["is_over"])
    began_s = time.monotonic()
    stopped = memsup("stop", "--run", "over")
    assert (stopped.returncode, time.monotonic() - began_s < WRITTEN_WITHIN_S) == (3, True), stopped
    assert "is finished" in stopped.stderr
    assert is_held(over)
    assert memsup("start", "--dry-run", "--", "true").returncode == 0
    os.kill(int(over.lock.read_text()), signal.SIGKILL)


def test_a_supervisor_looks_itself_whether_another_run_has_its_folder(tmp_path: Path) -> None:
    """Two that start at the same moment do not see each other before. It says so to whoever starts it by hand."""
    tiny_job(tmp_path, epochs=1, more="")
    other, folder = a_run("other"), str(tmp_path / "kept")
    fd = os.open(other.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    other.claim.write_bytes(msgspec.json.encode(Claim(run="other", ram_bytes=1 << 30, checkpoints=folder)))
    a_run("late", settings=Settings(checkpoint=Checkpoint(folder=folder)))
    done = subprocess.run(
        [sys.executable, "-m", "memsup.supervisor", "--run", "late"], capture_output=True, text=True, check=False
    )
    os.close(fd)
    assert done.returncode == 1, done
    assert f"Run 'other' is not over and keeps its checkpoints in {folder}" in done.stderr
    assert not run_paths("late").claim.exists()


def test_a_run_that_somebody_stops_while_it_is_started_is_not_said_to_be_started() -> None:
    """Nobody guards it yet, so the stop is written down, and the supervisor that comes up finds it. It would wait for ever, and
    keep its share of the memory from other runs. Whoever starts one by hand finds the same.
    """
    a_run(wanted=Wanted.STOPPED, command=["sleep", "1000"], command_folder="/")
    by_hand = [sys.executable, "-m", "memsup.supervisor", "--run", "default"]
    done = subprocess.run(by_hand, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done
    assert "The run was stopped. Go on with: memsup start" in done.stderr
    assert not run_paths("default").claim.exists()
    with pytest.raises(NotStartedError, match="The run was stopped"):
        spawn(run_paths("default"))  # which is what `start` does once it has written the run


def test_two_living_runs_never_share_a_folder_of_checkpoints(tmp_path: Path) -> None:
    """Each would sweep the other's unfinished save away, and count the other's checkpoints among its own older ones."""
    tiny_job(tmp_path, epochs=1, more="")
    other = a_run("other")
    fd = os.open(other.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    other.claim.write_bytes(msgspec.json.encode(Claim(run="other", checkpoints=str(other.checkpoints))))
    (tmp_path / "link").symlink_to(other.state)
    done = memsup("start", "--dry-run", "--set", "checkpoint.folder=link/checkpoints", cwd=tmp_path)
    assert done.returncode == 2, done
    assert f"Run 'other' is not over and keeps its checkpoints in {other.checkpoints}" in done.stderr
    os.close(fd)
    done = memsup("start", "--dry-run", "--set", "checkpoint.folder=link/checkpoints", cwd=tmp_path)
    assert done.returncode == 0, done
