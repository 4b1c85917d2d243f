"""The machine stays awake while there is work, may sleep when there is none, and no lock outlives its supervisor."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memsup.supervisor.daemon.keep_awake import SETTLED_AFTER_S, TRY_AGAIN_S, KeepAwake

FAKE = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
echo "$$ $*" >> "$LOG"
"$@"
echo "released" >> "$LOG"
"""
"""Takes options and runs its command, as systemd-inhibit does; the lock is what lies between its two lines."""


def wait_for(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    fake = folder / "bin" / "systemd-inhibit"
    fake.parent.mkdir()
    fake.write_text(script)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(folder / "log"))
    (folder / "log").touch()
    return folder / "log"


def test_awake_while_wanted_and_free_to_sleep_when_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lock, however often it is asked for; released with the pause, taken again afterwards at once."""
    log = install(tmp_path, monkeypatch, FAKE)
    awake = KeepAwake("night")
    for now_s in range(20):
        awake.step(float(now_s), True)
    wait_for(lambda: "cat" in log.read_text())
    assert awake.held(20.0)
    awake.step(21.0, False)
    wait_for(lambda: "released" in log.read_text())
    awake.step(22.0, True)
    wait_for(lambda: log.read_text().count("cat") == 2)
    awake.close()
    wait_for(lambda: log.read_text().count("released") == 2)


def test_a_lock_does_not_outlive_a_supervisor_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill -9 closes the pipe."""
    log = install(tmp_path, monkeypatch, FAKE)
    code = (
        "import sys, time; from memsup.supervisor.daemon.keep_awake import KeepAwake; i = KeepAwake('r'); i.step(0.0, True); "
        "print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    wait_for(lambda: "cat" in log.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for(lambda: "released" in log.read_text())


def test_a_refusal_is_told_and_not_repeated_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a login session: logind's own words, and the next try after ten minutes."""
    log = install(
        tmp_path, monkeypatch, '#!/bin/sh\necho "$*" >> "$LOG"\necho "Failed to inhibit: Access denied" >&2\nexit 1\n'
    )
    awake = KeepAwake("night")
    awake.step(0.0, True)
    wait_for(lambda: awake._process is not None and awake._process.poll() is not None)
    for now_s in range(1, 500):
        awake.step(float(now_s), True)
    assert awake.why_not == "The machine may fall asleep: logind gave no lock (Failed to inhibit: Access denied)."
    assert not awake.held(500.0)
    assert log.read_text().count("--what=sleep:idle") == 1
    awake.step(TRY_AGAIN_S, True)
    wait_for(lambda: log.read_text().count("--what=sleep:idle") == 2)
    awake.close()


def test_without_systemd_inhibit_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    awake = KeepAwake("night")
    awake.step(0.0, True)
    assert awake.why_not is not None
    assert "no systemd-inhibit" in awake.why_not
    assert not awake.held(SETTLED_AFTER_S + 1)


@pytest.mark.skipif(not Path("/usr/bin/systemd-inhibit").exists(), reason="not run: no systemd-inhibit here")
def test_the_real_one_holds_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with logind a lock, on one without it a reason."""
    awake = KeepAwake("test")
    awake.step(0.0, True)
    process = awake._process
    assert process is not None
    begun_s = time.monotonic()
    wait_for(lambda: process.poll() is not None or time.monotonic() - begun_s > SETTLED_AFTER_S)
    awake.step(SETTLED_AFTER_S, True)
    assert awake.held(SETTLED_AFTER_S) != (awake.why_not is not None)
    awake.close()
