"""The checkpoints of a program are those of the built-in training, but for the hash: both judge them alike."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from kit import ROOT
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.reading import verify
from memsup.checkpoint.store import Store as BuiltIn
from memsup.manifest import END, PROGRAMS_SEAL
from memsup.places import PLACE, this_program
from memsup.store import CheckpointError, Store
from memsup.training import place_in

CONTENT = os.urandom(100_000)


def write(folder: str) -> None:
    (Path(folder) / "model.bin").write_bytes(CONTENT)
    (Path(folder) / "place.json").write_text("{}")
    (Path(folder) / "adapter" / "deeper").mkdir(parents=True)
    (Path(folder) / "adapter" / "deeper" / "weights.bin").write_bytes(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "checkpoints"), keep=2)


def test_what_a_program_saves_is_whole_to_both_and_two_are_kept(store: Store) -> None:
    for step in (3, 5, 7):
        saved = store.save(step, write)
        assert store.newest() == (saved._replace(save_s=None), [])
        assert verify(Path(saved.path), from_disk=True).step == step
    found = BuiltIn(Path(store.folder)).list()
    assert [(info.step, info.problem) for info in found] == [(7, None), (5, None)]
    assert BuiltIn(Path(store.folder)).newest_valid()[0] == found[0]
    again = store.save(7, write)
    assert Path(again.path).name == "step-00000007.2"
    assert store.newest()[0] == again._replace(save_s=None)


@pytest.mark.parametrize(
    ("name", "bytes_", "step"),
    [
        ("model.bin\n", 2, 5),
        ("\ud800", 2, 5),
        ("x" * 300, 2, 5),
        ("../x", 2, 5),
        ({"a": 1}, 2, 5),
        ("model.bin", "2", 5),
        ("x", 2, "5"),
    ],
    ids=["line feed", "half a letter", "long", "elsewhere", "no text", "no number", "no step"],
)
def test_a_manifest_that_somebody_made_up_is_damage(store: Store, name: object, bytes_: object, step: object) -> None:
    """Its seal is right: anybody can compute it."""
    before, forged = store.save(3, write), store.save(5, write)
    files = [{"name": name, "bytes": bytes_, "sha256": "0"}]
    document = {"format": "memsup-checkpoint-2", "step": step, "created_unix_s": 1.0, "metric": None, "files": files}
    covered = json.dumps(document)[:-1].encode() + b",\n" + PROGRAMS_SEAL.encode()
    (Path(forged.path) / "manifest.json").write_bytes(covered + hashlib.sha256(covered).hexdigest().encode() + END.encode())
    newest, aside = store.newest()
    assert newest == before._replace(save_s=None)
    assert [damaged.reason for damaged in aside] == ["Its manifest is not what memsup writes."]


@pytest.mark.parametrize("kind", ["pipe", "link", "deep", "a text for a number"])
def test_a_place_that_is_none_keeps_nobody_waiting(tmp_path: Path, kind: str) -> None:
    place = tmp_path / PLACE
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to("/dev/zero")
    else:
        fields = {"run_id": "r", "program": [], "step": 3, "epoch": 0, "in_epoch": 0, "is_complete": True, "begun_with": None}
        document = json.dumps({**fields, "generators": {}})
        place.write_text("[" * 100_000 if kind == "deep" else document.replace("3", '"3"'))
    assert place_in(str(tmp_path)) is None


@pytest.mark.parametrize("file", ["model.bin", "place.json", "manifest.json", "adapter/deeper/weights.bin"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone", "link", "longer"])
def test_whatever_is_damaged_is_set_aside_and_the_one_before_used(store: Store, file: str, how: str, tmp_path: Path) -> None:
    before, damaged = store.save(3, write), Path(store.save(5, write).path) / file
    content = damaged.read_bytes()
    at = len(content) // 2
    changed = {
        "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "cut": content[:-1],
        "empty": b"",
        "longer": content + b"\n",
    }
    if how in changed:
        damaged.write_bytes(changed[how])
    else:
        damaged.unlink()
    if how == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        damaged.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged):
        verify(Path(store.folder) / "step-00000005")
    newest, aside = store.newest()
    assert newest == before._replace(save_s=None)
    assert [(one.step, Path(one.path).name) for one in aside] == [(5, "damaged-step-00000005")]
    assert (Path(aside[0].path) / "WHY.txt").read_text().strip() == aside[0].reason
    assert store.newest() == (newest, []), "it is told once"
    (found,) = [info for info in BuiltIn(Path(store.folder)).list() if info.problem]
    assert found.path == Path(aside[0].path)


def test_what_a_save_that_was_killed_has_left_is_removed_and_nothing_else(store: Store) -> None:
    """Somebody's own folders of such names stay as they are."""
    store.save(3, write)
    folder = Path(store.folder)
    for name in (".draft-00000005-abcdef01", ".gone-step-00000001"):
        (folder / name).mkdir()
        (folder / name / ".made-by-memsup").touch()
        (folder / name / "model.bin").write_bytes(b"half")
    (folder / ".draft-mine").mkdir()
    (folder / ".draft-mine" / "notes.txt").touch()
    (folder / "step-00000009").mkdir()
    (folder / "step-00000009" / "notes.txt").touch()
    store.sweep()
    assert sorted(os.listdir(folder)) == [".draft-mine", "step-00000003", "step-00000009"]
    newest, aside = store.newest()
    assert newest is not None
    assert newest.step == 3
    assert aside == []


def test_a_checkpoint_of_the_built_in_training_is_neither_used_nor_touched(store: Store) -> None:
    """A folder that a person has named for two runs."""
    with BuiltIn(Path(store.folder)).draft(5) as draft:
        draft.write_bytes("state.json", b"{}")
        theirs = draft.commit().path
    with pytest.raises(CheckpointError, match="built-in training"):
        store.newest()
    assert os.listdir(store.folder) == [theirs.name]


def test_a_save_that_fails_leaves_nothing_and_the_ones_before_count(store: Store) -> None:
    first = store.save(3, write)

    def crashes(folder: str) -> None:
        write(folder)
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        store.save(5, crashes)
    with pytest.raises(CheckpointError, match="plain files"):
        store.save(5, lambda folder: (Path(folder) / "further").mkdir())
    with pytest.raises(CheckpointError, match="could not be written"):
        store.save(5, lambda folder: (Path(folder) / "x" / "y").write_text("no such folder"))
    assert os.listdir(store.folder) == [Path(first.path).name]


SAVES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from memsup.store import Store

def write(folder):
    for name in ("model.bin", "place.json"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x" * 10_000)

Store(sys.argv[2], 2).save(3, write)
"""
CALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlink", "unlinkat", "rmdir")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="NOT RUN: strace is not installed (apt install strace)")
def test_a_save_that_is_killed_at_any_of_its_calls_leaves_a_whole_checkpoint(store: Store, tmp_path: Path) -> None:
    """The new one or the one before, and nothing that looks like one and is none; the next save finds its way."""
    for step in (1, 2):
        store.save(step, write)
    links = tmp_path / "links"
    links.mkdir()
    (links / "memsup").symlink_to(ROOT / "program")
    log, scene = tmp_path / "trace", tmp_path / "scene"

    def saves(*strace: str) -> int:
        shutil.rmtree(scene, ignore_errors=True)
        shutil.copytree(store.folder, scene)
        child = [sys.executable, "-S", "-B", "-c", SAVES, str(links), str(scene)]
        return subprocess.run(["strace", "-f", "-o", str(log), *strace, *child], capture_output=True, check=False).returncode

    assert saves("-e", f"trace={','.join(CALLS)}") == 0
    seen: Counter[str] = Counter()
    kills: list[tuple[str, int]] = []
    for line in log.read_text().splitlines():
        name = line.split(maxsplit=1)[1].partition("(")[0]
        if name in CALLS:
            seen[name] += 1
            if str(scene) in line or (name in {"write", "fsync", "unlinkat"} and kills):
                kills.append((name, seen[name]))
    assert {"mkdir", "openat", "write", "fsync", "rename", "rmdir"} <= {name for name, _ in kills}
    steps = set()
    for name, number in kills:
        assert saves("-e", f"inject={name}:signal=KILL:when={number}") != 0
        killed = Store(str(scene), 2)
        killed.sweep()
        newest, aside = killed.newest()
        assert newest is not None, (name, number)
        assert aside == [], (name, number)
        steps.add(newest.step)
        assert verify(Path(newest.path), from_disk=True).step == newest.step
        assert all(info.problem is None for info in BuiltIn(scene).list())
        assert killed.save(4, write).step == 4
        assert len(os.listdir(scene)) == 2, (name, number)
    assert steps == {2, 3}


def test_a_full_disk_is_called_so_whatever_the_library_that_writes_makes_of_it(tmp_path: Path) -> None:
    """As torch does, whose `save` says of it no more than "unexpected pos 896 vs 790"."""

    def writes_too_much(folder: str) -> None:
        fill(Path(folder))
        raise RuntimeError("unexpected pos 896 vs 790")

    def play() -> None:
        store = Store(str(tmp_path / "checkpoints"), keep=2)
        before = store.save(3, write)
        with pytest.raises(CheckpointError, match=r"step 5 could not be written: No space left on device\."):
            store.save(5, writes_too_much)
        assert os.listdir(store.folder) == [Path(before.path).name]

    on_a_small_disk(tmp_path, 4 * MIB, play)


def test_a_notebook_is_the_same_program_whatever_its_kernel_is_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it has saved would be another program's, and it would begin anew in each life."""
    launcher = "/env/lib/python3.11/site-packages/ipykernel_launcher.py"
    found = []
    for notebook, connection in (("a.ipynb", "/tmp/1.json"), ("a.ipynb", "/tmp/2.json"), ("b.ipynb", "/tmp/2.json")):
        monkeypatch.setattr(sys, "argv", [launcher, "-f", connection])
        monkeypatch.setenv("JPY_SESSION_NAME", notebook)
        found.append(this_program())
    assert found[0] == found[1] != found[2]
    monkeypatch.setattr(sys, "argv", ["train.py", "-f", "/tmp/1.json"])
    assert this_program()[1:] == ["-f", "/tmp/1.json"]
