"""Claims: who lives counts, with what its folder says, and a claim that makes no sense is unknown, not nought."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.cli_process import a_run, eventually

from memsup.shared.paths import RunPaths, run_paths
from memsup.supervisor.daemon import claims
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.decide.claims import Beside, Claim
from memsup.supervisor.kernel.processes import MARK, fence_name, marks

GIB = 2**30


@pytest.fixture
def other() -> RunPaths:
    """Another run that has claimed 3 GiB."""
    paths = a_run("other")
    claims.claim(paths, Claim(run="other", ram_bytes=3 * GIB, reserve_bytes=GIB))
    return paths


def test_a_claim_counts_while_its_supervisor_lives_and_for_its_own_run_never(other: RunPaths) -> None:
    """It stays in the folder: the supervisor that comes next begins with it, where nobody starts it anew."""
    mine = run_paths("mine")
    assert claims.beside(mine) == Beside()
    lock = Lock(other)
    claim = Claim(run="other", ram_bytes=3 * GIB, reserve_bytes=GIB)
    assert claims.beside(mine) == Beside(others=(claim,))
    assert claims.beside(other) == Beside()
    assert claims.beside(other, keep_own=True) == Beside(own_bytes=3 * GIB)
    other.state.rename(other.state.with_name("renamed"))
    assert claims.beside(mine).others[0].run == "renamed"  # what a command has to name
    lock.release()
    assert claims.beside(mine) == Beside()


def test_a_worker_whose_supervisor_died_keeps_its_share(other: RunPaths) -> None:
    """It still holds its memory, whoever looks after it: what it may take goes to nobody else until it has left."""
    claims.claim(other, Claim(run="other", run_id="0123456789ab", ram_bytes=3 * GIB))
    mine = run_paths("mine")
    assert claims.beside(mine) == Beside()
    worker = subprocess.Popen(["sleep", "1000"], env={MARK: fence_name("0123456789ab"), "PATH": os.environ["PATH"]})
    try:
        eventually(lambda: fence_name("0123456789ab") in marks())
        (left,) = claims.beside(mine).others
        assert (left.run, left.ram_bytes, left.is_left) == ("other", 3 * GIB, True)
    finally:
        worker.kill()
        worker.wait()
    assert claims.beside(mine) == Beside()


def write(text: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: None,
        lambda file: os.mkfifo(file),
        lambda file: file.mkdir(),
        lambda file: file.symlink_to("/dev/zero"),
        write(b""),
        write(b'{"run":"other","ram_bytes":-5}'),
        write(b'{"run":"other","ram_bytes":1e300}'),
        write(b'{"run":"other","ram_bytes":' + b"9" * 4000 + b"}"),
        write(b'{"run":"\xff"}'),
        write(b'{"run":"other","more":' + b"[" * 4000),
        write(b"x" * (1 << 20)),
    ],
    ids=["gone", "pipe", "folder", "link", "empty", "negative", "infinite", "digits", "not UTF-8", "deep", "long"],
)
def test_a_claim_that_makes_no_sense_is_unknown(other: RunPaths, spoil: Callable[[Path], object]) -> None:
    """The run lives nevertheless, and is named."""
    other.claim.unlink()
    spoil(other.claim)
    lock = Lock(other)
    try:
        assert claims.beside(run_paths("mine")) == Beside(others=(Claim(run="other"),))
    finally:
        lock.release()
