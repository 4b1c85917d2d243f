"""Promise: whenever a program with Trainer is killed in what it saves, at any system call that changes the disk, a whole
checkpoint is found, what the user sees is whole or not there, and it ends with the bits of one that was left alone.

A life goes on from step 7, saves steps 14 and 15, in its folder and in the user's, and ends. strace lists its calls, then kills
it on entering one of them, for each of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.nursery import Nursery
from kit.trainer_program import BornLives, differences, needs_trainer

from memsup.checkpoint.reading import verify
from memsup.checkpoint.store import Store as BuiltIn
from memsup.store import verified

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("trainer"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="NOT RUN: strace is not installed (apt install strace)"),
]
CALLS = (
    "mkdir",
    "openat",
    "write",
    "writev",
    "ftruncate",
    "fsync",
    "rename",
    "renameat",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
)
OTHERS = ("pwrite64", "pwritev", "pwritev2", "fdatasync", "renameat2", "mkdirat", "truncate", "fallocate", "link", "sendfile",
          "copy_file_range", "symlink", "symlinkat", "sync", "syncfs", "msync", "io_uring_enter")  # fmt: skip
"""Other ways to change a disk. A life uses none of them; if it ever does, the calls above are no longer all."""
DIES_AFTER_A_SAVE = {"IN_A_STEP": "if self.state.global_step == 9: os.kill(os.getpid(), 9)"}


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BornLives]:
    """With `alone`, which was left alone, and `begun`, which has saved step 7 and was killed in step 10."""
    needs_trainer()
    with Nursery("trainer") as nursery:
        found = BornLives(nursery, tmp_path_factory.mktemp("lives"))
        found.whole("alone", guarded=False)
        assert found.begin("begun", **DIES_AFTER_A_SAVE).wait(60) == -9
        yield found


def traced(lives: BornLives, *strace: str) -> tuple[int, list[str]]:
    """A life that goes on from `begun`, under strace: its exit status and the calls."""
    for path in (lives.folder / "killed", lives.folder / "killed-kept"):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(lives.folder / path.name.replace("killed", "begun"), path)
    life, log = lives.begin("killed", WAITS=""), lives.folder / "trace"
    until(life.pid, r"State:\s+T")
    with subprocess.Popen(["strace", "-y", "-o", log, *strace, "-p", str(life.pid)], stderr=subprocess.DEVNULL) as watching:
        until(life.pid, r"TracerPid:\s+[1-9]")
        life.send_signal(18)
        status = life.wait(60)
        watching.wait(timeout=60)
    return status, log.read_text(errors="replace").splitlines()


def until(pid: int, pattern: str) -> None:
    end_s = time.monotonic() + 30
    while not re.search(pattern, Path(f"/proc/{pid}/status").read_text()):
        assert time.monotonic() < end_s, pattern
        time.sleep(0.001)


def points(lives: BornLives) -> list[tuple[str, int, str]]:
    """Each call that changes what is saved: its name, the how manyth of that name it is, and its line."""
    status, lines = traced(lives, "-e", f"trace={','.join(CALLS + OTHERS)}")
    assert status == 0
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        name = line.partition("(")[0]
        seen[name] += 1
        changes = name != "openat" or "O_CREAT" in line
        if changes and re.search(r'killed-kept|"(out1|\S*/killed)/|</\S*/killed/(?!printed)', line):
            found.append((name, seen[name], line))
    assert {name for name, _, _ in found} <= set(CALLS), [line for name, _, line in found if name not in CALLS][:3]
    return found


def assert_whole(lives: BornLives) -> None:
    """What was killed has left a whole checkpoint, and nothing to the user that is half one; going on leads to the same end."""
    kept, out = lives.folder / "killed-kept", lives.folder / "killed" / "out1"
    info, aside = BuiltIn(kept).newest_valid()
    assert info is not None
    assert info.step >= 7
    assert not aside
    verify(info.path, from_disk=True)
    for path in out.glob("checkpoint-*"):
        verified(str(path), int(path.name.rpartition("-")[2]))
    lives.whole("killed")
    assert differences(lives.folder / "alone", lives.folder / "killed") == []
    assert not list(kept.glob("damaged-*"))


def killed_at(lives: BornLives, name: str, number: int) -> None:
    status, lines = traced(lives, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}")
    assert status == -9
    assert "killed by SIGKILL" in lines[-1]
    try:
        assert_whole(lives)
    except AssertionError as error:
        raise AssertionError(f"killed on entering {lines[-2]}") from error


def test_killed_at_some_of_the_calls_that_save(lives: BornLives) -> None:
    """The first of each name in each of the two folders; `nightly` has all of them."""
    first: dict[tuple[str, bool], tuple[str, int]] = {}
    for name, number, line in points(lives):
        first.setdefault((name, "kept" in line), (name, number))
    assert {name for name, _ in first.values()} >= {"mkdir", "openat", "write", "fsync", "rename", "linkat", "unlink", "rmdir"}
    for name, number in first.values():
        killed_at(lives, name, number)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(20))
def test_killed_at_every_call_that_saves(lives: BornLives, part: int) -> None:
    for name, number, _ in points(lives)[part::20]:
        killed_at(lives, name, number)


@pytest.mark.parametrize("how", ["flip", *(pytest.param(how, marks=pytest.mark.nightly) for how in ("cut", "empty", "gone"))])
def test_damage_of_any_file_of_the_newest_is_seen_and_the_one_before_is_used(lives: BornLives, how: str) -> None:
    """Trainer alone loads a flipped bit without a word."""
    if not (lives.folder / "twice").exists():
        assert lives.begin("twice", IN_A_STEP="if self.state.global_step == 14: os.kill(os.getpid(), 9)").wait(60) == -9
    kept, damaged = lives.folder / "killed-kept", "step-00000014"
    names = sorted(path.name for path in (lives.folder / "twice-kept" / damaged).glob("[!.]*"))
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(names)
    for name in names:
        for path in (lives.folder / "killed", kept):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(lives.folder / path.name.replace("killed", "twice"), path)
        content = bytearray((kept / damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (kept / damaged / name).unlink()
        if how != "gone":
            (kept / damaged / name).write_bytes({"flip": bytes(content), "cut": content[:-1], "empty": b""}[how])
        lives.whole("killed")
        assert (kept / f"damaged-{damaged}" / "WHY.txt").exists(), name
        assert differences(lives.folder / "alone", lives.folder / "killed") == [], name
