"""What the supervisor does for itself holds where it says so, and says so where it doesn't. Each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memsup.supervisor.daemon import self_protection

CODE = """
import json, resource, sys
from pathlib import Path
from memsup.supervisor.daemon.self_protection import protect
lines = [[line.holds, line.text] for line in protect()]
# Locked or not, memory must still be had afterwards: mlockall(MCL_FUTURE) at its limit would make this fail.
block = bytearray(b"x" * (64 << 20))
import threading
threads = [threading.Thread(target=lambda: None) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([lines, int(status["VmLck"].split()[0]), int(status["VmRSS"].split()[0]),
                  int(Path("/proc/self/oom_score_adj").read_text())]))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to give privileges up")
may_raise_limits = pytest.mark.skipif(
    not int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> 24 & 1,
    reason="needs CAP_SYS_RESOURCE, to allow more than this process may have itself",
)
# Stay root by name, so that files may be read, but without a capability.
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def protected(prefix: list[str], before: Callable[[], None] | None = None) -> tuple[list[tuple[bool, str]], int, int, int]:
    done = subprocess.run([*prefix, sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, preexec_fn=before)
    assert done.returncode == 0, done.stderr
    lines, locked_kib, resident_kib, score = json.loads(done.stdout)
    return [tuple(line) for line in lines], locked_kib, resident_kib, score


@needs_root
def test_with_privileges_it_is_locked() -> None:
    (locked, scored), locked_kib, _, score = protected([])
    assert locked[0] is True
    assert locked_kib > 8000
    assert scored[0] is True
    assert score <= 0


@may_raise_limits
def test_with_privileges_it_is_the_last_victim() -> None:
    assert protected([])[3] == -800


@needs_root
@pytest.mark.parametrize("limit_mib", [0, 8, pytest.param(64, marks=may_raise_limits)])
def test_without_privileges_it_says_so_and_can_still_allocate(limit_mib: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_mib << 20, limit_mib << 20))

    (locked, scored), locked_kib, _, score = protected(WITHOUT_CAPABILITIES, limit)
    assert score == 0
    assert scored[0] is True
    if locked_kib == 0:
        assert f"this user may lock {limit_mib} MiB" in locked[1]
    if limit_mib == 64:
        assert locked_kib > 8000
        assert locked[0] is True


@needs_root
@may_raise_limits
def test_an_unlimited_allowance_is_as_good_as_a_privilege() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    (locked, _), locked_kib, _, _ = protected(WITHOUT_CAPABILITIES, limit)
    assert locked[0] is True
    assert locked_kib > 64 << 10, "what was allocated afterwards is locked as well"


@needs_root
def test_a_score_that_cannot_be_lowered_enough_is_a_warning() -> None:
    def raise_it() -> None:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")

    (_, scored), _, _, score = protected(WITHOUT_CAPABILITIES, raise_it)
    assert scored[0] is (score <= 200)
    assert str(score) in scored[1]


@needs_root
def test_locking_does_not_swell_it() -> None:
    """Without ONFAULT every thread would lock a stack of 8 MiB."""
    _, _, resident_kib, _ = protected([])
    assert resident_kib < (64 + 40) << 10


KEPT = """
import ctypes, hashlib, json, os, threading
from pathlib import Path
import memsup.supervisor.main
from memsup.supervisor.daemon import self_protection
def programs():
    digest = hashlib.sha256()
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for begin, end, writable in self_protection._private_files():
            if not writable:
                memory.seek(begin)
                digest.update(memory.read(end - begin))
    return digest.hexdigest()
def kib(name):
    return int(dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())[name].split()[0])
digest, before = programs(), (kib("RssFile"), kib("VmRSS"))
kept = self_protection.keep_programs()
after = kib("RssFile"), kib("VmRSS")
print(json.dumps([kept, before, after, digest == programs()]))
"""


@needs_root
def test_who_may_not_lock_makes_the_programs_it_runs_its_own() -> None:
    """So that the kernel, which first drops what it can read again from files, finds nothing to drop."""
    done = subprocess.run([*WITHOUT_CAPABILITIES, sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kept, (of_files_kib, resident_kib), (of_files_after_kib, resident_after_kib), unchanged = json.loads(done.stdout)
    assert kept is True
    assert unchanged is True
    assert of_files_kib > 8 << 10
    assert of_files_after_kib < 1 << 10
    assert resident_after_kib < resident_kib + (2 << 10)


def test_what_can_be_swapped_is_not_called_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the supervisor's own cgroup has no swap limit, or there is no such cgroup."""
    texts = {"/proc/swaps": "Filename Type Size Used Priority\n/dev/vda2 partition 1048572 0 -2\n"}
    monkeypatch.setattr(self_protection, "_text", lambda path: texts.get(path, ""))
    assert self_protection._may_be_swapped() is True
    texts["/proc/swaps"] = "Filename Type Size Used Priority\n"
    assert self_protection._may_be_swapped() is False
