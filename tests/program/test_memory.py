"""What the processes that a program has started hold and compute is seen, and the soft limit is not theirs."""

from __future__ import annotations

import resource
import subprocess
import sys

from kit.cli_process import eventually

from memsup.activity import cpu_s
from memsup.life import last_words
from memsup.memory import SoftLimit, explained, held, lift, others_bytes, read_memory
from memsup.sleep import Sleep
from memsup.store import CheckpointError

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


def test_that_memory_did_not_suffice_is_told_as_such_with_what_memsup_knows_of_it() -> None:
    error = RuntimeError("CUDA out of memory.")
    error.add_note("Somebody else's.")
    explained(error, "One row does not fit.")
    told = last_words(error, "its stack", 3, Sleep())
    assert told["cause"] == "out_of_memory"
    assert told["message"] == "The program ended with RuntimeError after step 3: CUDA out of memory. One row does not fit."
    assert last_words(ValueError("no such word"), "", 0, Sleep())["cause"] == "crash"
    assert last_words(CheckpointError("It is damaged."), "", 0, Sleep())["cause"] == "bad_input"
