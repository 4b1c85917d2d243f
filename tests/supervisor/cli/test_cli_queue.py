"""`memsup start --after`: runs that begin by themselves when those before them are over, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.cli_process import MEMSUP, Done, a_run, end_supervisors, eventually, memsup, said
from kit.faults.night_clock import NightClock
from kit.own_program import endless_loop
from kit.run_state import ledger, status, step_of, until

from memsup.shared.paths import run_paths
from memsup.shared.record import Awaited
from memsup.shared.run_file import read_record, write_record
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.daemon import claims

PROGRAM = """
import os, sys, time
with open(sys.argv[1] + ".log", "a") as log:
    log.write("begun\\n")
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
sys.exit(int(open(sys.argv[1]).read()))
"""
"""It ends with the exit code that a file says, once that is there."""


def start(folder: Path, run: str, *options: str) -> str:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-S", str(program), str(folder / run)]
    done = memsup("start", "--run", run, *options, "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def end(folder: Path, run: str, code: int = 0) -> None:
    (folder / f"{run}.new").write_text(str(code))
    (folder / f"{run}.new").rename(folder / run)


def kill_supervisor(run: str) -> None:
    paths = run_paths(run)
    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))


def runs(folder: Path, run: str, *, times: int = 1) -> None:
    """Waits until the run's program has begun so many times, and its supervisor says so."""
    until(lambda seen: seen["state"] == "running", run=run)
    eventually(lambda: begun(folder, run) == times)


def claimed(run: str) -> Any:
    return json.loads(run_paths(run).claim.read_text())


def begun(folder: Path, run: str) -> int:
    log = folder / f"{run}.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_a_queue_of_five_runs_ends_as_it_should_whatever_is_killed_in_between(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second fails; the third comes after it all the same, the fourth only if the second had finished, the fifth after
    all. The first and the third lose their supervisors while others wait for them, the fifth loses its own while it waits.
    """
    try:
        start(tmp_path, "a")
        runs(tmp_path, "a")
        told = start(tmp_path, "b", "--after", "a")
        assert "waits for run 'a'" in told
        start(tmp_path, "c", "--after", "b")
        start(tmp_path, "d", "--after-ok", "b")
        start(tmp_path, "e", "--after", "all")
        assert status("e")["waiting"]["runs"] == ["a", "b", "c", "d"]
        assert {run: status(run)["state"] for run in "abcde"} == {"a": "running"} | dict.fromkeys("bcde", "waiting")
        assert [claimed(run)["waits"] for run in "abcde"] == [False, True, True, True, True]
        code, text = said(capfd, "list")
        assert code == 0
        assert "for run 'b' to finish" in text

        kill_supervisor("e")
        assert "has it wait on for run 'a'" in " ".join(status("e")["attention"])
        kill_supervisor("a")  # whose command nobody guards any more, and which is not over
        seen = until(lambda seen: seen["attention"], run="b")
        assert "awaited:a" in seen["attention_kinds"]
        assert seen["state"] == "waiting"
        assert memsup("start", "--run", "a").returncode == 0
        assert "waits for run 'a'" in memsup("start", "--run", "e").stdout
        runs(tmp_path, "a", times=2)
        end(tmp_path, "a")

        runs(tmp_path, "b")
        eventually(lambda: not claimed("b")["waits"])
        assert begun(tmp_path, "c") == 0
        end(tmp_path, "b", 3)
        until(lambda seen: seen["state"] == "failed", run="b")

        failed = until(lambda seen: seen["state"] == "failed", run="d")
        assert "only if run 'b' finished, and that one failed" in failed["failure"]
        assert begun(tmp_path, "d") == 0
        runs(tmp_path, "c")
        kill_supervisor("c")
        assert memsup("start", "--run", "c").returncode == 0
        until(lambda seen: seen["waiting"]["runs"] == ["c"], run="e")
        end(tmp_path, "c")

        runs(tmp_path, "e")
        end(tmp_path, "e")
        done = memsup("wait", "--run", "e")
        assert done.returncode == 0, done.stderr
        states = {run: status(run)["state"] for run in "abcde"}
        assert states == {"a": "finished", "b": "failed", "c": "finished", "d": "failed", "e": "finished"}
        assert {run: begun(tmp_path, run) for run in "abcde"} == {"a": 2, "b": 1, "c": 2, "d": 0, "e": 1}
        assert [line["event"] for line in ledger("e") if line["event"] in ("waits", "begins")][-1] == "begins"
        assert memsup("wait", "--run", "d").returncode == 1
    finally:
        end_supervisors()


@pytest.mark.slow
def test_a_run_that_waits_is_paused_resumed_asked_and_taken_out_of_the_queue(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It stays paused when its turn has come, and waits where another one has taken all the room."""
    try:
        start(tmp_path, "a")
        start(tmp_path, "b", "--after", "a")
        start(tmp_path, "c", "--after", "a")
        assert "is queued: waiting for run 'a'" in start(tmp_path, "b", "--after", "a")
        code, text = said(capfd, "start", "--run", "b", "--after-ok", "a")
        assert (code, "To queue it otherwise" in text) == (2, True)
        code, text = said(capfd, "start", "--run", "a", "--after", "b")
        assert (code, "Run 'a' has begun" in text or "run 'b' waits for run 'a'" in text) == (2, True)
        code, text = said(capfd, "checkpoint", "--run", "b")
        assert (code, "nothing to save" in text) == (1, True)
        code, text = said(capfd, "resume", "--run", "b")
        assert (code, "It waits for run 'a', and begins by itself." in text) == (0, True)
        code, text = said(capfd, "rm", "b", "--yes")
        assert (code, "is up" in text) == (1, True)
        code, text = said(capfd, "pause", "--run", "b")
        assert (code, "does not begin after that" in text) == (0, True)
        assert memsup("stop", "--run", "a").returncode == 0  # which ends the waiting as well as any other end
        until(lambda seen: seen["waiting"]["runs"] == [], run="b")
        assert (status("b")["state"], begun(tmp_path, "b")) == ("paused", 0)
        until(lambda seen: seen["state"] == "running", run="c")  # and takes all that there is for training
        assert said(capfd, "resume", "--run", "b")[0] == 0
        seen = until(lambda seen: seen["waiting"]["no_room"], run="b")
        assert seen["state"] == "waiting"
        assert "run 'c' may take" in seen["waiting"]["no_room"]
        end(tmp_path, "c")
        runs(tmp_path, "b")

        start(tmp_path, "d", "--after", "all")
        assert status("d")["waiting"]["what_for"] == "for run 'b'"
        code, text = said(capfd, "stop", "--run", "d")
        assert (code, "it waited for run 'b', and had not begun" in text) == (0, True)
        record = read_record(run_paths("d").record)
        assert record is not None
        assert record.queued is None
    finally:
        end_supervisors()


@pytest.mark.slow
def test_a_time_that_has_come_while_nobody_was_up_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the supervisor did not live to see it, as over a reboot."""
    paths = run_paths("n")
    try:
        later = time.localtime(time.time() + 7200)
        options = ("--not-before", time.strftime("%H:%M", later))
        told = start(tmp_path, "n", *options)
        assert f"it waits until {time.strftime('%a %H:%M', later)}, and begins by itself" in told
        assert "is queued: waiting until" in start(tmp_path, "n", *options)
        code, text = said(capfd, "start", "--run", "n", "--not-before", time.strftime("%H:%M", time.localtime()))
        assert (code, "waits until" in text) == (2, True)
        kill_supervisor("n")
        record = read_record(paths.record)
        assert record is not None
        assert record.not_before is not None
        assert record.not_before.at_unix_s == status("n")["waiting"]["not_before"]
        record.not_before = msgspec.structs.replace(record.not_before, at_unix_s=time.time() - 1)
        write_record(paths.record, record)
        end(tmp_path, "n")
        assert memsup("start", "--run", "n", "--wait").returncode == 0
        assert begun(tmp_path, "n") == 1
    finally:
        end_supervisors()


@pytest.mark.slow
def test_of_two_starts_at_the_same_instant_that_would_wait_for_each_other_one_is_refused(tmp_path: Path) -> None:
    """Neither waits yet when both are looked at; they are held up until both have come to where the run is written."""
    for run, run_id in (("a", "aaa"), ("b", "bbb")):  # killed ones, which are to go on
        a_run(run, run_id=run_id, command=["true"], command_folder=str(tmp_path))
    paths, done = run_paths("a"), dict[str, Done]()

    def begin(run: str, other: str) -> None:
        done[run] = memsup("start", "--run", run, "--after", other)

    starts = [threading.Thread(target=begin, args=names) for names in (("a", "b"), ("b", "a"))]
    try:
        with claims.turn(paths):
            for one in starts:
                one.start()
            inode = str(paths.state.parent.stat().st_ino)
            eventually(
                lambda: sum("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()) == 2
            )
        for one in starts:
            one.join()
        assert sorted(one.returncode for one in done.values()) == [0, 2]
        (refused,) = [one.stderr for one in done.values() if one.returncode]
        assert "or both would wait for ever" in " ".join(refused.split())
    finally:
        end_supervisors()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="NOT RUN: setpriv is needed to be as weak as an ordinary user")
def test_a_umask_that_closes_files_to_their_own_user_closes_none_of_memsups(tmp_path: Path) -> None:
    """Root without any capability is held up by rights as any other user is."""
    weak = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

    def masked(*arguments: str) -> str:
        words = [*weak, "sh", "-c", 'umask 777 && exec "$@"', "sh", *MEMSUP, *arguments]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    try:
        masked("start", "--run", "a", "--", "sh", "-c", "umask; until [ -e go ]; do sleep 0.05; done; echo x > made; cat made")
        assert "waits for run 'a'" in masked("start", "--run", "b", "--after", "all", "--", "true")
        (tmp_path / "go").touch()
        masked("wait", "--run", "b")
        assert (status("a")["state"], status("b")["state"]) == ("finished", "finished")
        assert "0077" in masked("logs", "--run", "a")
    finally:
        end_supervisors()


@pytest.mark.slow
def test_a_run_with_hours_is_saved_before_they_end_and_goes_on_by_itself_when_they_begin(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], night_clock: NightClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 23:00 to 7:00, over two nights, a kill in the day and a person who wants it at noon. What is attached leaves with a
    checkpoint, what is not stands still; another run that waits has to wait for its end.
    """
    here = datetime.now(UTC)  # and it is 1:00, in a time zone of the test's own
    ahead_s = (3600 - (here.hour * 3600 + here.minute * 60 + here.second)) % 86400
    monkeypatch.setenv("TZ", f"HERE-{ahead_s // 3600}:{ahead_s // 60 % 60:02}:{ahead_s % 60:02}")
    hours = ("--not-before", "23:00", "--until", "07:00")
    try:
        told = memsup("start", "--run", "n", *hours, "--set", "limits.ram=512MiB", "--", *endless_loop(tmp_path), cwd=tmp_path)
        assert told.returncode == 0, told.stderr
        assert "07:00 it is paused" in told.stdout
        memsup("start", "--run", "f", *hours, "--set", "limits.ram=512MiB", "--", "sleep", "100000")
        seen = until(lambda seen: step_of(seen) > 2, run="n")
        assert seen["hours"]["rests"] is False
        until(lambda seen: seen["state"] == "running", run="f")
        start(tmp_path, "w", "--after", "n", "--set", "limits.ram=512MiB")

        night_clock.jump(5 * 3600 + 58 * 60 + 30)
        seen = until(lambda seen: seen["state"] == "paused", run="n")
        assert seen["worker_pid"] is None
        assert seen["checkpoint"]["step"] >= 2
        assert seen["hours"]["until"] - night_clock.unix_s() == pytest.approx(16 * 3600, abs=120)
        assert seen["hours"]["until"] - 16 * 3600 > night_clock.unix_s(), "it is done before 7:00"
        eventually(lambda: claimed("n")["waits"])
        frozen = until(lambda seen: seen["state"] == "paused", run="f")
        assert "its memory is kept, since memsup cannot have it saved" in frozen["hours"]["what"]
        assert not claimed("f")["waits"]
        code, text = said(capfd, "list")
        assert (code, "by its hours (23:00 to 07:00)" in " ".join(text.split())) == (0, True)

        night_clock.jump(5 * 3600)
        kill_supervisor("n")
        done = subprocess.run([*MEMSUP, "start", "--run", "n"], capture_output=True, text=True, timeout=120, check=False)
        assert "by its hours (23:00 to 07:00), and begins by itself" in " ".join(done.stdout.split()), done.stderr
        assert "resume --run n" in done.stdout
        assert (status("n")["state"], status("w")["state"]) == ("paused", "waiting")
        saved = seen["checkpoint"]["step"]
        night_clock.jump(11 * 3600 + 120)
        seen = until(lambda seen: seen["state"] == "running" and step_of(seen) > saved, run="n")
        assert seen["attention"] == []
        until(lambda seen: seen["state"] == "running", run="f")

        night_clock.jump(13 * 3600)
        until(lambda seen: seen["state"] == "paused", run="n")
        code, text = said(capfd, "resume", "--run", "n")
        assert (code, "goes on" in text or "Running" in text) == (0, True), text
        until(lambda seen: seen["state"] == "running", run="n")
        assert "as you asked, outside of its hours" in status("n")["hours"]["what"]
        assert said(capfd, "start", "--run", "n", "--until", "off")[0] == 0
        assert status("n")["hours"] is None
        assert [line["by"] for line in ledger("n") if line["event"] in ("hours_end", "hours_begin")] == [
            *("hours", "hours", "hours", "user")
        ]
        assert said(capfd, "start", "--run", "n", *hours)[0] == 0
        until(lambda seen: seen["state"] == "paused", run="n")
        assert memsup("stop", "--run", "n").returncode == 0
        until(lambda seen: seen["state"] == "running", run="w")
    finally:
        end_supervisors()


def test_hours_that_make_no_sense_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        code, text = said(capfd, "start", "--run", "h", *options, "--", "true")
        assert code == 2
        return text

    assert "write a time of the day such as 07:00, or off" in refused("--until", "7")
    assert "begin and end at 07:00" in refused("--until", "07:00", "--not-before", "07:00")
    assert "needs hours.end" in refused("--set", "hours.begin=23:00")
    assert "which --set gives as well" in refused("--until", "07:00", "--set", "hours.end=08:00")
    assert not run_paths("h").state.exists()
    now = time.localtime(time.time() + 7200)
    begin, end = time.strftime("%H:%M", now), time.strftime("%H:%M", time.localtime(time.time() + 10800))
    text = said(capfd, "start", "--run", "h", "--not-before", begin, "--until", end, "--dry-run", "--", "true")[1]
    assert f"It would wait until {time.strftime('%a %H:%M', now)}, by its hours ({begin} to {end})." in " ".join(text.split())
    text = said(capfd, "start", "--run", "h", "--until", end, "--dry-run", "--", "true")[1]
    until_end = rf"Hours: by (\w+ )?{end} it is paused \(saved, .* frozen in memory\), until you resume it\."
    assert re.search(until_end, " ".join(text.split())), text


def test_what_could_never_begin_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        code, text = said(capfd, "start", "--run", "b", *options, "--", "true")
        assert code == 2
        assert not run_paths("c").state.exists()
        return text

    a_run("b", run_id="bbb")
    a_run("a", run_id="aaa", queued=[Awaited(run="d", run_id="ddd")])
    a_run("d", run_id="ddd", queued=[Awaited(run="b", run_id="bbb")])
    assert "cannot wait for itself" in refused("--after", "b")
    assert "There is no run 'x'" in refused("--after", "x")
    text = refused("--after-ok", "a")
    assert "run 'a' waits for run 'd', and run 'd' waits for run 'b'" in text
    assert "memsup stop --run a" in text
    a_run("e", wanted="stopped")
    assert "Run 'e' was stopped" in refused("--after-ok", "e")
    text = said(capfd, "start", "--run", "n", "--after", "e", "--dry-run", "--", "true")[1]
    assert "run 'e' was stopped" in text
    assert "It would wait" not in text
    assert "no time of the day" in refused("--not-before", "25:00")
    later = time.localtime(time.time() + 7200)
    text = said(capfd, "start", "--run", "n", "--not-before", time.strftime("%H:%M", later), "--dry-run", "--", "true")[1]
    assert f"It would wait until {time.strftime('%a %H:%M', later)}." in text
    assert "It would wait for run 'a'" in said(capfd, "start", "--run", "n", "--after", "a", "--dry-run", "--", "true")[1]
