"""Promise: what is saved is what is loaded; a save that does not come about leaves no trace; only rubbish is ever deleted."""

# ruff: noqa: PT012, SIM117 - a draft is a block of several statements, and what is raised may come from its end

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import ROOT, small_state
from kit.small_state import assert_holds, leftovers, save

from memsup import folders
from memsup.checkpoint import durable
from memsup.checkpoint.errors import CheckpointError, Damaged, DamagedWhenWritten, DiskFull, NotWritten
from memsup.checkpoint.header import DTYPE_BYTES
from memsup.checkpoint.reading import read_json, verify
from memsup.checkpoint.room import SPARE_BYTES, Verdict
from memsup.checkpoint.store import Store, free_bytes
from memsup.checkpoint.tensors import Tensor, open_tensors
from memsup.folders import MARK


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run" / "checkpoints")


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def tensor_of(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> Tensor:
    return Tensor(name, dtype, shape, lambda: iter([memoryview(content)]))


# --------------------------------------------------------------------------------------------------------------------
# What is saved is what is loaded


def test_what_is_saved_is_what_is_loaded(store: Store) -> None:
    saved = save(store, 120, metric=0.5)
    info, set_aside = store.newest_valid()
    assert info is not None
    assert (info.path, info.step, info.bytes, info.metric, info.problem) == (saved.path, 120, saved.bytes, 0.5, None)
    assert saved.path == store.folder / "step-00000120"
    assert saved.note is None
    assert set_aside == []
    assert_holds(saved.path, 120)


def test_a_small_model_is_one_file_and_a_large_one_shards_with_an_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hugging Face names them, so that from_pretrained finds them."""
    assert {path.name for path in save(store, 1).path.glob("model*")} == {"model.safetensors"}
    small_state.scale_down(monkeypatch.setattr)
    path = save(store, 2).path
    assert {found.name for found in path.glob("model*")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    index = json.loads((path / "model.safetensors.index.json").read_bytes())
    assert index["weight_map"]["embeddings.weight"] == "model-00001-of-00002.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor_bytes(path, "model"))
    assert_holds(path, 2)


def tensor_bytes(path: Path, stem: str) -> Iterator[int]:
    for tensor in open_tensors(path, stem):
        yield sum(len(chunk) for chunk in tensor.chunks())


def test_every_type_is_read_by_the_safetensors_library_and_the_other_way_round(store: Store, tmp_path: Path) -> None:
    """The library is the judge of the format: it reads our files, and we read its."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    kinds = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "F16": torch.float16,
             "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32, "I64": torch.int64, "F64": torch.float64,
             "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32,
             "U64": torch.uint64, "C64": torch.complex64}  # fmt: skip
    assert kinds.keys() == DTYPE_BYTES.keys()
    torch.manual_seed(0)
    tensors = {f"t.{name}": torch.randint(0, 2, (3, 5)).to(kind) for name, kind in kinds.items()}
    raw = {name: bytes(tensor.view(-1).view(torch.uint8).numpy()) for name, tensor in tensors.items()}
    with store.draft(1) as draft:
        draft.write_tensors("model", [tensor_of(name, name[2:], (3, 5), raw[name]) for name in tensors])
        path = draft.commit().path
    loaded = load_file(path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)
    assert all(bytes(loaded[name].view(-1).view(torch.uint8).numpy()) == raw[name] for name in tensors)

    save_file(tensors, tmp_path / "other.safetensors", metadata={"format": "pt"})
    found = {t.name: (t.dtype, t.shape, b"".join(t.chunks())) for t in open_tensors(tmp_path, "other")}
    assert found == {name: (name[2:], (3, 5), raw[name]) for name in tensors}


@pytest.mark.slow
def test_from_pretrained_loads_a_checkpoint_as_it_stands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    small_state.scale_down(monkeypatch.setattr)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config)
    with store.draft(1) as draft:
        content = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        draft.write_tensors(
            "model",
            [
                tensor_of(name, {"float32": "F32", "int64": "I64"}[str(t.dtype)[6:]], tuple(t.shape), t.numpy().tobytes())
                for name, t in content.items()
            ],
        )
        config.architectures = ["BertForSequenceClassification"]
        config.save_pretrained(draft.folder)
        path = draft.commit().path
    assert len(list(path.glob("model-*"))) > 1
    loaded = AutoModelForSequenceClassification.from_pretrained(path).state_dict()
    assert loaded.keys() == content.keys()
    assert all(torch.equal(loaded[name], content[name]) for name in content)


def test_a_tensor_may_come_and_go_in_pieces_of_any_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "PIECE_BYTES", 1000)
    monkeypatch.setattr(durable, "SPAN_BYTES", 4096)
    content = os.urandom(40_004)
    cuts = [0, 1, 1, 7, 5_000, 39_999, 40_004]
    parts = [memoryview(content)[a:b] for a, b in itertools.pairwise(cuts)]
    with store.draft(1) as draft:
        draft.write_tensors("model", [Tensor("a", "F32", (73, 137), lambda: iter(parts))])
        path = draft.commit().path
    (read,) = open_tensors(path, "model")
    assert (read.name, read.shape) == ("a", (73, 137))
    (read,) = [b"".join(t.chunks()) for t in open_tensors(path, "model")]
    assert read == content


def test_a_tensor_that_lies_about_its_size_is_a_mistake_and_no_checkpoint(store: Store) -> None:
    save(store, 1)
    with pytest.raises(ValueError, match="gave 5 bytes but claims to have 8"), store.draft(2) as draft:
        draft.write_tensors("model", [tensor_of("a", "F32", (2,), b"12345")])
    assert names(store) == ["step-00000001"]


def test_two_checkpoints_of_one_step_are_both_kept_and_the_later_one_is_newer(store: Store) -> None:
    """A step may be saved again, with an evaluation or a new plan."""
    first, second = save(store, 7), save(store, 7)
    assert (first.path.name, second.path.name) == ("step-00000007", "step-00000007.2")
    info, _ = store.newest_valid()
    assert info is not None
    assert info.path == second.path
    third = save(store, 7)
    assert third.path.name == "step-00000007.3"
    assert names(store) == ["step-00000007.2", "step-00000007.3"]


# --------------------------------------------------------------------------------------------------------------------
# The files of a library


def test_what_a_library_wrote_is_part_of_the_checkpoint(store: Store) -> None:
    """Taken in by name, or at the latest by commit; damage to it is seen."""
    with store.draft(1) as draft:
        (draft.folder / "tokenizer.json").write_text("{}")
        (draft.folder / "config.json").write_text("{}")
        draft.adopt("tokenizer.json")
        path = draft.commit().path
    assert {file["name"] for file in json.loads((path / "manifest.json").read_bytes())["files"]} == {
        "tokenizer.json",
        "config.json",
    }
    (path / "config.json").write_text("{ }")
    with pytest.raises(Damaged, match=r"config\.json has 3 bytes, but 2 were written"):
        verify(path)


def test_a_folder_or_a_link_cannot_be_part_of_it(store: Store, tmp_path: Path) -> None:
    """A link planted in the draft would otherwise pull in, or overwrite, a file elsewhere."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(ValueError, match="not a regular file"), store.draft(1) as draft:
        (draft.folder / "tokenizer.json").symlink_to(secret)
        draft.commit()
    with pytest.raises(ValueError, match="not a regular file"), store.draft(1) as draft:
        (draft.folder / "templates").mkdir()
        draft.commit()
    with pytest.raises(NotWritten), store.draft(1) as draft:
        (draft.folder / "state.json").symlink_to(secret)
        draft.write_json("state.json", {})
    assert secret.read_text() == "secret"
    assert names(store) == []


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "manifest.json", ".x", ""])
def test_names_that_lead_elsewhere_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"), store.draft(1) as draft:
        draft.write_bytes(name, b"")


def test_a_name_can_be_used_once(store: Store) -> None:
    with pytest.raises(ValueError, match="already"), store.draft(1) as draft:
        draft.write_json("state.json", {})
        draft.write_json("state.json", {})


# --------------------------------------------------------------------------------------------------------------------
# A save that does not come about


def test_an_unfinished_draft_leaves_no_trace(store: Store) -> None:
    save(store, 1)
    with store.draft(2) as draft:
        small_state.write(draft, 2)
    with pytest.raises(ZeroDivisionError), store.draft(2) as draft:
        small_state.write(draft, 2)
        raise ZeroDivisionError
    assert names(store) == ["step-00000001"]


def test_the_tokenizers_way_of_saying_disk_full_is_understood(store: Store) -> None:
    """It raises a bare Exception with Rust's text."""
    with pytest.raises(DiskFull, match="No space left"), store.draft(1):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(NotWritten, match="Read-only"), store.draft(1):
        raise Exception("Read-only file system (os error 30)")
    assert names(store) == []


def test_the_next_start_sweeps_up_what_a_killed_save_left(store: Store, tmp_path: Path) -> None:
    """Without following links out of it."""
    save(store, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    torn = store.folder / ".draft-00000002-abcd"
    torn.mkdir()
    (torn / MARK).touch()
    (torn / "model.safetensors").write_bytes(b"half")
    (torn / "link").symlink_to(elsewhere)
    (store.folder / ".draft-00000003-0123abcd").mkdir()  # a kill before the mark
    (store.folder / ".gone-step-00000000").mkdir()  # and one behind it
    swept = store.sweep()
    assert names(store) == ["step-00000001"]
    assert (elsewhere / "precious").exists()
    assert len(swept) == 3
    assert swept[0] == ".draft-00000002-abcd, an unfinished checkpoint of a process that was killed, was removed."
    assert store.sweep() == []


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_what_memsup_did_not_make_is_neither_deleted_nor_renamed_nor_written_to(store: Store, tmp_path: Path) -> None:
    """Whoever names a folder of theirs as `checkpoint.folder`, or is led to, keeps all that lies there, whatever its name."""
    templates = (folders.DRAFT, folders.GONE, folders.DAMAGED, "step-")
    endings = ("novel", "00000001", "00000009", "00000002-0123abcd", "step-00000003")
    store.folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for place, name in enumerate(template + ending for template in templates for ending in endings):
        theirs = store.folder / name
        match place % 4:
            case 0:
                theirs.write_text("a file")
            case 1:
                theirs.symlink_to(tmp_path / "elsewhere")
            case _:
                theirs.mkdir()
                (theirs / ("manifest.json" if place % 2 else "chapter.txt")).write_text("{}")
    (store.folder / ".draft-empty").mkdir()
    before = everything_in(store.folder)
    assert store.sweep() == []
    newest, told = store.newest_valid()
    assert newest is None
    assert all(found.path.is_dir() and (found.path / "manifest.json").exists() for found in told)
    for step in (10, 11, 12, 13):
        save(store, step)
    after = everything_in(store.folder)
    assert {name: after.get(name, "gone") for name in before} == before
    assert {"step-00000012", "step-00000013"} <= set(names(store))
    assert not {"step-00000010", "step-00000011"} & set(names(store))
    newest, _ = store.newest_valid()
    assert newest is not None
    assert newest.step == 13
    assert [info.step for info in store.list()] == [13, 12]


def test_checkpoints_of_before_there_were_marks_are_still_kept_and_deleted_in_turn(store: Store) -> None:
    """Their manifest tells that they are memsup's."""
    for step in (1, 2):
        (save(store, step).path / MARK).unlink()
    save(store, 3)
    assert names(store) == ["step-00000002", "step-00000003"]
    flip(store.folder / "step-00000002" / "state.json")
    flip(store.folder / "step-00000003" / "state.json")
    assert {found.path.name for found in store.newest_valid()[1]} == {"damaged-step-00000002", "damaged-step-00000003"}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_store_that_does_not_exist_is_empty(store: Store) -> None:
    assert store.newest_valid() == (None, [])
    assert store.list() == []
    assert store.sweep() == []
    assert store.room() is None


# --------------------------------------------------------------------------------------------------------------------
# Deleting


def test_the_newest_two_and_the_best_are_kept_also_by_a_store_that_remembers_nothing(store: Store) -> None:
    for step, metric in enumerate([0.1, 0.9, 0.3, None, 0.2], start=1):
        save(Store(store.folder), step, metric=metric)
    assert names(store) == ["step-00000002", "step-00000004", "step-00000005"]
    save(store, 6, metric=0.95)
    assert names(store) == ["step-00000005", "step-00000006"]


def test_nothing_is_deleted_for_a_checkpoint_that_does_not_read_back(store: Store) -> None:
    """The disk (here: a library that goes on writing) gives back something else: the new one is set aside, all others stay."""
    for step in (1, 2):
        save(store, step)
    complaint = r"the disk gives back something else: tokenizer\.json is not what was written"
    with pytest.raises(DamagedWhenWritten, match=complaint) as found:
        with store.draft(3) as draft:
            small_state.write(draft, 3)
            with open(draft.folder / "tokenizer.json", "r+b") as file:
                file.write(b"later")
            draft.commit()
    assert names(store) == ["damaged-step-00000003", "step-00000001", "step-00000002"]
    assert "hash does not match" in (store.folder / "damaged-step-00000003" / "WHY.txt").read_text()
    assert (found.value.path, found.value.step) == (store.folder / "damaged-step-00000003", 3)
    info, set_aside = store.newest_valid()
    assert info is not None
    assert (info.step, set_aside) == (2, [])


def test_reading_back_reads_the_disk(store: Store) -> None:
    """Not the page cache, which knows what was meant: the kernel counts what came from the device."""
    if not Path("/proc/self/io").exists() or on_memory(store.folder):
        pytest.skip("NOT RUN: the kernel does not count reads here, or the temporary folder is not on a disk")

    def read_from_disk() -> int:
        return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])

    before = read_from_disk()
    with store.draft(1) as draft:
        draft.write_bytes("content.bin", os.urandom(8 << 20))
        path = draft.commit().path
    assert read_from_disk() - before >= 8 << 20
    (path / "content.bin").read_bytes()  # now it is in the page cache
    before = read_from_disk()
    verify(path, from_disk=True)
    assert read_from_disk() - before >= 8 << 20


def on_memory(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    found = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    return found in ("tmpfs", "ramfs")


# --------------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little; a real one, which only root may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    size = SPARE_BYTES + (4 << 20)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "memsup-test", place], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("NOT RUN: a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path, leave_bytes: int) -> None:
    with open(disk / "other", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - leave_bytes)


def save_bytes(store: Store, step: int, size: int, *, emergency: bool = False, known: bool = True) -> None:
    with store.draft(step, size if known else None, emergency=emergency) as draft:
        draft.write_bytes("content.bin", os.urandom(size))
        draft.commit()


def test_a_disk_that_runs_full_in_the_middle_costs_nothing(small_disk: Path) -> None:
    """Somebody else took the room: the save says so, nothing of it is left, and the one before loads."""
    store = Store(small_disk / "checkpoints")
    save_bytes(store, 1, 1000)
    fill(small_disk, SPARE_BYTES + 100_000)
    with pytest.raises(DiskFull, match=r"step 2 could not be written: No space left on device\. Nothing of it is left"):
        with store.draft(2) as draft:
            draft.write_bytes("content.bin", os.urandom(SPARE_BYTES + (1 << 20)))
    assert names(store) == ["step-00000001"]
    info, _ = store.newest_valid()
    assert info is not None
    assert info.step == 1


def test_the_last_room_is_kept_for_the_emergency_checkpoint(small_disk: Path) -> None:
    """An ordinary save is refused before anything is written; the emergency one still fits; then nothing does."""
    store = Store(small_disk / "checkpoints")
    save_bytes(store, 1, 1 << 20)
    fill(small_disk, SPARE_BYTES + (3 << 19))
    found = store.room()
    assert found is not None
    assert found.verdict is Verdict.PAUSE
    with pytest.raises(DiskFull, match="more would do"):
        save_bytes(store, 2, 1 << 20, known=False)
    save_bytes(store, 2, 1 << 20, emergency=True)
    with pytest.raises(DiskFull):
        save_bytes(store, 3, 1 << 20, emergency=True)
    assert names(store) == ["step-00000001", "step-00000002"]


def test_what_is_dispensable_goes_before_training_pauses(small_disk: Path) -> None:
    """First what was set aside, then what is kept beyond two; the newest two and the best stay."""
    store = Store(small_disk / "checkpoints", keep=4)
    for step, metric in ((1, 0.5), (2, 0.9), (3, None), (4, None)):
        with store.draft(step) as draft:
            draft.write_bytes("content.bin", os.urandom(500_000))
            draft.commit(metric)
    (store.folder / "step-00000004" / "content.bin").write_bytes(b"torn")
    store.newest_valid()
    save_bytes(store, 5, 500_000)
    assert names(store) == ["damaged-step-00000004", *(f"step-0000000{n}" for n in (1, 2, 3, 5))]
    fill(small_disk, SPARE_BYTES + 600_000)
    save_bytes(store, 6, 500_000)
    assert names(store) == [f"step-0000000{n}" for n in (2, 3, 5, 6)]


# --------------------------------------------------------------------------------------------------------------------
# Folders that are not to be trusted


def test_a_checkpoint_of_another_step_is_not_believed(store: Store) -> None:
    save(store, 1)
    save(store, 2).path.rename(store.folder / "step-00000009")
    info, set_aside = store.newest_valid()
    assert info is not None
    assert info.step == 1
    assert [found.reason for found in set_aside] == ["it is named step-00000009 but holds step 2."]


def test_links_and_pipes_are_set_aside_and_never_followed_or_waited_for(store: Store, tmp_path: Path) -> None:
    save(store, 1)
    outside = save(Store(tmp_path / "outside"), 5).path
    (store.folder / "step-00000005").symlink_to(outside)
    linked = save(store, 6).path
    (linked / "state.json").unlink()
    (linked / "state.json").symlink_to(outside / "state.json")
    waiting = save(store, 7).path
    (waiting / "state.json").unlink()
    os.mkfifo(waiting / "state.json")
    (store.folder / "step-00000008").write_text("a file")
    empty = save(store, 9).path
    for file in empty.iterdir():
        if file.name != MARK:
            file.unlink()
    info, set_aside = store.newest_valid()
    assert info is not None
    assert info.step == 1
    reasons = {found.path.name: found.reason for found in set_aside}
    assert reasons.keys() == {f"damaged-step-0000000{n}" for n in (6, 7, 9)} | {"step-00000005"}
    assert reasons["damaged-step-00000006"] == "state.json is a link, and links are not followed."
    assert reasons["damaged-step-00000007"] == "state.json is not a file."
    assert "no manifest" in reasons["damaged-step-00000009"]
    assert sorted(path.name for path in outside.parent.iterdir()) == ["step-00000005"]
    assert not (outside / "WHY.txt").exists()


def test_what_was_set_aside_stays_and_is_listed_with_its_reason(store: Store) -> None:
    save(store, 1)
    (save(store, 2).path / "state.json").unlink()
    assert [(info.step, info.problem) for info in store.list()] == [(2, "state.json is missing."), (1, None)]
    store.newest_valid()
    assert [(info.step, info.problem) for info in store.list()] == [(1, None), (2, "state.json is missing.")]
    save(store, 2)
    (store.folder / "step-00000002" / "state.json").unlink()
    store.newest_valid()
    assert names(store) == ["damaged-step-00000002", "damaged-step-00000002_2", "step-00000001"]


def test_an_index_must_find_its_tensors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that lies there whole but lacks what the index looks for in it would load as random weights."""
    small_state.scale_down(monkeypatch.setattr)
    with store.draft(1) as draft:
        small_state.write(draft, 1)
        index = draft.folder / "other.safetensors.index.json"
        index.write_text('{"weight_map": {"missing": "model-00001-of-00002.safetensors"}}')
        with pytest.raises(Damaged, match="looks for 'missing'"):
            draft.commit()
    assert leftovers(store) == []


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_store(tmp_path: Path) -> None:
    """Or a run would start from nothing because of a wrong permission."""
    place = tmp_path / "checkpoints"
    place.write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        Store(place).newest_valid()


def test_json_is_read_with_a_limit_and_a_type(store: Store, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": "x"}')
    with pytest.raises(Damaged, match=r"state\.json makes no sense"):
        read_json(tmp_path, "state.json", dict[str, int])
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Damaged, match="no real one has more"):
        read_json(tmp_path, "huge.json")
    (tmp_path / "deep.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(Damaged, match="makes no sense"):
        read_json(tmp_path, "deep.json")
    with pytest.raises(Damaged, match="is missing"):
        read_json(tmp_path, "none.json")
    with pytest.raises(Damaged, match="zero byte"):
        read_json(tmp_path / "\0", "state.json")


# --------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.slow
@pytest.mark.parametrize("way", ["save", "load"])
def test_extra_memory_stays_below_64_mib_for_a_state_of_a_gigabyte(way: str, tmp_path: Path) -> None:
    """Peak resident memory beyond the state itself, measured by the kernel in a child process."""
    benchmark = ROOT / "benchmarks" / "save_memory.py"
    command = [sys.executable, benchmark, "--only", way, "--folder", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["extra_mib"] <= 64
