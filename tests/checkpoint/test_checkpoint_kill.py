"""Promise: a save that is killed, or refused by the disk, at any of its system calls costs nothing that was saved before.

A child (small_state.py) saves step 3 into a store that has steps 1 and 2, deleting step 1 at the end. strace lets it run once
to list its calls, then once for each of them: killed on entering the call, or with the call answered by an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit import small_state

from memsup.checkpoint.errors import DiskFull
from memsup.checkpoint.store import Store
from memsup.folders import MARK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="NOT RUN: strace is not installed (apt install strace)"),
]

SCRIPT = Path(small_state.__file__)
MAKING = ("mkdir", "openat", "write", "sync_file_range", "fsync", "rename")
"""What brings the new checkpoint about. Of `openat` only a part creates something."""
DELETING = ("unlink", "rmdir")
READING = ("pread64", "preadv2", "getdents64", "statfs")
OTHERS = ("pwrite64", "writev", "pwritev", "pwritev2", "fdatasync", "renameat", "renameat2", "mkdirat", "ftruncate", "truncate",
          "fallocate", "copy_file_range", "sendfile", "link", "linkat", "symlink", "symlinkat", "unlinkat", "sync", "syncfs",
          "msync", "io_uring_enter")  # fmt: skip
"""Other ways to change a disk. A save uses none of them; if it ever does, the calls above are no longer all of them."""


@dataclass(frozen=True)
class Call:
    name: str
    line: str

    @property
    def changes_the_disk(self) -> bool:
        return self.name not in READING and (self.name != "openat" or "O_CREAT" in self.line)

    @property
    def finds_it_there(self) -> bool:
        """The store's folder is made unless it exists; here it always does, so that an error changes nothing."""
        return self.name == "mkdir" and ".draft-" not in self.line


@dataclass(frozen=True)
class Trace:
    before: list[Call]
    """Python's own start."""
    within: list[Call]
    """The save."""

    def count(self, name: str) -> int:
        return sum(call.name == name for call in self.within)


@dataclass(frozen=True)
class Outcome:
    folder: Path
    code: int
    """3: the save was refused with a sentence, which is in `text`."""
    text: str
    hit: Call
    """The call that was killed or got the error."""
    made_public: bool
    """It came after the new checkpoint was there for good."""


def run_save(folder: Path, names: tuple[str, ...], inject: str | None = None) -> tuple[subprocess.CompletedProcess[str], Trace]:
    log = folder.parent / "trace"
    command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={','.join({*names, 'openat', 'rename', 'fsync'})}"]
    if inject:
        command += ["-e", f"inject={inject}"]
    command += [sys.executable, "-B", str(SCRIPT), str(folder), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    trace = Trace([], [])
    calls = trace.before
    for line in log.read_text(errors="replace").splitlines():
        if small_state.END in line:
            break
        if match := re.match(r"\d+ +(\w+)\(", line):
            calls.append(Call(match[1], line))
        if small_state.BEGIN in line:
            calls = trace.within
    return done, trace


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("store") / "checkpoints"
    for step in (1, 2):
        subprocess.run([sys.executable, SCRIPT, folder, str(step)], check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def undisturbed(two_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("undisturbed") / "checkpoints"
    shutil.copytree(two_steps, folder)
    done, trace = run_save(folder, MAKING + DELETING + READING + OTHERS)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"step-00000002", "step-00000003"}
    return trace


def each_call(name: str, how: str, two_steps: Path, undisturbed: Trace, tmp_path: Path, *, every: int) -> Iterator[Outcome]:
    """Runs the save once for each call `name` that changes the disk, and for each `every`-th other one, disturbed there.

    0: for none of the others. A kill at a call that only reads finds the disk as a kill at the next one that changes it.
    """
    points = [call for call in undisturbed.within if call.name == name]
    before = sum(call.name == name for call in undisturbed.before)
    for number, call in enumerate(points, start=1):
        if not call.changes_the_disk and (every == 0 or number % every):
            continue
        for _ in range(4):
            folder = tmp_path / str(number) / "checkpoints"
            shutil.copytree(two_steps, folder)
            done, trace = run_save(folder, (name,), f"{name}:{how}:when={before + number}")
            began = sum(found.name == name for found in trace.before)
            if trace.within and began == before:
                break
            # strace counts from the start of Python, which looked for a file more or less this time (someone edits the code).
            before = began if trace.within else before + 1
            shutil.rmtree(folder.parent)
        hits = [place for place, found in enumerate(trace.within) if "INJECTED" in found.line or "= ?" in found.line]
        assert len(hits) == 1, "the call that was meant was not hit"
        assert trace.within[hits[0]].name == name
        published = [place for place, found in enumerate(trace.within) if found.name == "rename" and ".draft-" in found.line]
        flushed = [
            place for place, found in enumerate(trace.within) if found.name == "fsync" and place > min(published, default=0)
        ]
        public = bool(published and flushed) and hits[0] > flushed[0]
        yield Outcome(folder, done.returncode, done.stdout + done.stderr, trace.within[hits[0]], public)
        shutil.rmtree(folder.parent)


def assert_sound(folder: Path, *, reached: set[int]) -> int:
    """The newest valid checkpoint is one of `reached` and all there; another valid one lies beside it; no rubbish is left."""
    store = Store(folder)
    store.sweep()
    assert small_state.leftovers(store) == []
    info, set_aside = store.newest_valid()
    assert info is not None
    assert set_aside == []
    assert info.step in reached
    small_state.assert_holds(info.path, info.step)
    assert len([found for found in store.list() if found.problem is None]) >= 2
    return info.step


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", MAKING + DELETING)
def test_killed_at_every_call(name: str, two_steps: Path, undisturbed: Trace, tmp_path: Path) -> None:
    """After a kill at any call that changes the disk the old or the new checkpoint loads, whole; the next start sweeps up."""
    found = []
    for outcome in each_call(name, "signal=SIGKILL", two_steps, undisturbed, tmp_path, every=0):
        assert outcome.code == -9, outcome
        found.append(assert_sound(outcome.folder, reached={3} if outcome.made_public else {2, 3}))
    assert found
    assert found == sorted(found), "once the new checkpoint exists, no later kill may lose it"


@pytest.mark.parametrize("name", MAKING)
def test_disk_full_at_every_call(name: str, two_steps: Path, undisturbed: Trace, tmp_path: Path) -> None:
    """ENOSPC: the save says so in a sentence, nothing of it is left, and what was there is untouched. Once the new checkpoint
    is there, deleting an old one may fail, which is worth a note.
    """
    refused = 0
    for outcome in each_call(name, "error=ENOSPC", two_steps, undisturbed, tmp_path, every=0):
        if outcome.made_public or outcome.hit.finds_it_there:
            assert outcome.code == 0, outcome
            assert_sound(outcome.folder, reached={3})
            continue
        assert outcome.code == 3, outcome
        assert outcome.text.startswith(DiskFull.__name__), outcome
        assert "No space left on device" in outcome.text
        assert names_in(outcome.folder) == ["step-00000001", "step-00000002"]
        assert assert_sound(outcome.folder, reached={2}) == 2
        refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", MAKING + DELETING + READING)
def test_io_error_at_every_call(name: str, two_steps: Path, undisturbed: Trace, tmp_path: Path) -> None:
    """EIO, also at calls that only read (every fifth of these): a sentence or a note, never a traceback; what was there loads.

    A new checkpoint that cannot be read back is set aside, since this cannot be told from a bad disk; an old one never is.
    """
    for outcome in each_call(
        name, "error=EIO", two_steps, undisturbed, tmp_path, every=5 if name in ("openat", "pread64") else 1
    ):
        assert outcome.code in (0, 3), outcome
        if outcome.hit.changes_the_disk and not outcome.made_public and not outcome.hit.finds_it_there:
            assert outcome.code == 3, outcome
            assert "Input/output error" in outcome.text
            assert names_in(outcome.folder) == ["step-00000001", "step-00000002"]
        if outcome.code == 3:
            assert re.match(r"(Damaged|DamagedWhenWritten|NotWritten|CheckpointError): .+\.$", outcome.text.strip()), outcome
        assert set(names_in(outcome.folder)) & {"damaged-step-00000001", "damaged-step-00000002"} == set()
        assert_sound(outcome.folder, reached={2, 3})


def test_no_other_call_changes_the_disk(undisturbed: Trace) -> None:
    """The lists above are complete: an undisturbed save makes no other call that writes, renames or removes."""
    assert {call.name for call in undisturbed.within} & set(OTHERS) == set()
    assert all(undisturbed.count(name) for name in MAKING + DELETING + READING)


def test_the_order_that_a_power_cut_needs(undisturbed: Trace) -> None:
    """A kill does not show whether something was flushed. So: each file before the manifest, the manifest before the draft
    folder, that before the rename, the store's folder after it, all of it read back, and nothing deleted before that.
    """
    calls = undisturbed.within

    def place(name: str, pattern: str) -> int:
        (found, *_) = [n for n, call in enumerate(calls) if call.name == name and re.search(pattern, call.line)]
        return found

    created = [re.search(r', "([^"]+)"', call.line)[1] for call in calls if call.name == "openat" and "O_EXCL" in call.line]  # type: ignore[index]
    assert created.pop(0).endswith(MARK)  # empty: the flush of the draft folder is all that it needs
    assert len(created) == 9
    assert created[-1] == "manifest.json"
    manifest_begun = place("openat", r'"manifest\.json".*O_CREAT')
    for name in [*created[:-1], "tokenizer.json"]:
        last_write = max(n for n, call in enumerate(calls) if call.name == "write" and f"/{name}>" in call.line)
        flushed = place("fsync", rf"\.draft-[^/]+/{re.escape(name)}>")
        assert last_write < flushed < manifest_begun
    manifest_flushed = place("fsync", r"\.draft-[^/]+/manifest\.json>")
    draft_flushed = place("fsync", r"\.draft-[^/]+>")
    renamed = place("rename", r"\.draft-")
    store_flushed = place("fsync", r"/checkpoints>")
    assert manifest_begun < manifest_flushed < draft_flushed < renamed < store_flushed
    read_back = [n for n, call in enumerate(calls) if call.name == "preadv2" and "/step-00000003/" in call.line]
    assert {re.search(r"/step-00000003/([^>]+)>", calls[n].line)[1] for n in read_back} == {*created[:-1], "tokenizer.json"}  # type: ignore[index]
    first_deleted = min(n for n, call in enumerate(calls) if ".gone-" in call.line)
    assert store_flushed < min(read_back) <= max(read_back) < first_deleted
    assert first_deleted < min(n for n, call in enumerate(calls) if call.name in DELETING and call.name != "unlink")
