"""What the processes that a program has started hold and compute is seen, and the soft limit is not theirs."""

from __future__ import annotations

import resource
import subprocess
import sys

from kit.cli_process import eventually

from memsup.activity import cpu_s
from memsup.memory import SoftLimit, held, lift, others_bytes, read_memory

MIB = 1 << 20


def test_what_a_child_holds_and_computes_counts() -> None:
    before_bytes, before_s = others_bytes(), cpu_s()
    computes = f"held = bytearray({64 * MIB}); held[::4096] = b'x' * len(held[::4096])\nwhile True: pass"
    child = subprocess.Popen([sys.executable, "-S", "-c", computes])
    try:
        eventually(lambda: others_bytes() - before_bytes >= 60 * MIB, 30)
        eventually(lambda: cpu_s() - before_s >= 0.05, 30)
    finally:
        child.kill()
        child.wait()
    assert others_bytes() <= before_bytes + MIB


def test_the_soft_limit_is_seen_and_can_be_lifted() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        SoftLimit(held().anonymous_bytes + 512 * MIB).renew()
        assert read_memory()["data_limit_bytes"] is not None
        lift()
        assert resource.getrlimit(resource.RLIMIT_DATA) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert read_memory()["resident_bytes"] > MIB
