"""Promise: a damaged checkpoint is never loaded as if it were whole; the one before is used, and the reason is told.

Each class of file takes each kind of damage. Flipped bits are drawn at random; the seed is printed with a failure and can be
set again with MEMSUP_TEST_SEED.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import small_state
from kit.small_state import assert_holds, save

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.reading import verify
from memsup.checkpoint.store import Store
from memsup.folders import MARK

FILES = {
    "weights": "model-00001-of-00002.safetensors",
    "index of the weights": "model.safetensors.index.json",
    "optimizer": "optimizer-00002-of-00003.safetensors",
    "index of the optimizer": "optimizer.safetensors.index.json",
    "state": "state.json",
    "file of a library": "tokenizer.json",
    "manifest": "manifest.json",
}
SEED = int(os.environ.get("MEMSUP_TEST_SEED") or random.randrange(2**32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with steps 1 and 2, in shards; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        small_state.scale_down(patch.setattr)
        store = Store(tmp_path_factory.mktemp("whole") / "checkpoints")
        for step in (1, 2):
            save(store, step)
        yield store.folder


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    shutil.copytree(whole, tmp_path / "checkpoints")
    return Store(tmp_path / "checkpoints")


def assert_the_older_one_is_used(store: Store, name: str) -> None:
    info, set_aside = store.newest_valid()
    assert info is not None
    assert info.step == 1
    assert_holds(info.path, 1)
    (found,) = set_aside
    assert name in found.reason or (name == "manifest.json" and "manifest" in found.reason)
    assert found.reason.endswith(".")
    assert found.path == store.folder / "damaged-step-00000002"
    assert (found.path / "WHY.txt").read_text().strip() == found.reason


def test_the_classes_are_all_there_are(whole: Path) -> None:
    kinds = {name.partition("-")[0] for name in FILES.values()}
    assert {path.name.partition("-")[0] for path in (whole / "step-00000002").iterdir() if path.name != MARK} == kinds


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_a_missing_file(store: Store, name: str) -> None:
    (store.folder / "step-00000002" / name).unlink()
    assert_the_older_one_is_used(store, name)


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    "left", [0.0, 0.001, 0.3, 0.99, -1], ids=["all of it", "to a few bytes", "to a third", "a little", "one byte"]
)
def test_a_truncated_file(store: Store, name: str, left: float) -> None:
    """The 0-byte file that a power cut leaves on some file systems, and every other length."""
    file = store.folder / "step-00000002" / name
    size = file.stat().st_size
    os.truncate(file, size - 1 if left < 0 else int(size * left))
    assert_the_older_one_is_used(store, name)


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_a_file_with_something_behind_it(store: Store, name: str) -> None:
    with open(store.folder / "step-00000002" / name, "ab") as file:
        file.write(b"\0")
    assert_the_older_one_is_used(store, name)


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_zeros_where_content_was(store: Store, name: str) -> None:
    """Right size, no data: what some file systems make of a file after a power cut."""
    file = store.folder / "step-00000002" / name
    file.write_bytes(bytes(file.stat().st_size))
    assert_the_older_one_is_used(store, name)


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
def test_the_older_checkpoints_file_in_place_of_the_new_one(store: Store, name: str) -> None:
    """Well-formed in every way, and of another step."""
    older = (store.folder / "step-00000001" / name).read_bytes()
    newer = store.folder / "step-00000002" / name
    if older == newer.read_bytes():
        assert "index" in name  # the same in every step
        return
    newer.write_bytes(older)
    info, set_aside = store.newest_valid()
    assert info is not None
    assert info.step == 1
    assert len(set_aside) == 1


@pytest.mark.parametrize("name", FILES.values(), ids=FILES)
@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.nightly)])
def test_any_flipped_bit(store: Store, name: str, flips: int) -> None:
    """One at a time, anywhere in the file: each is found when the checkpoint is verified."""
    path = store.folder / "step-00000002"
    chance = random.Random(f"{SEED} {name}")
    with open(path / name, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for number in range(flips):
            place, bit = chance.randrange(size), 1 << chance.randrange(8)
            (byte,) = os.pread(file.fileno(), 1, place)
            os.pwrite(file.fileno(), bytes([byte ^ bit]), place)
            assert is_refused(path), f"flip {number} with MEMSUP_TEST_SEED={SEED}: bit {bit:#04x} of byte {place} was not seen"
            os.pwrite(file.fileno(), bytes([byte]), place)
        assert verify(path).step == 2, "all flips were undone"
        os.pwrite(file.fileno(), bytes([byte ^ bit]), place)
    assert_the_older_one_is_used(store, name)


def is_refused(path: Path) -> bool:
    try:
        verify(path)
    except Damaged:
        return True
    return False


def test_all_are_damaged(store: Store) -> None:
    """Then nothing is loaded, and both reasons are told."""
    for step in (1, 2):
        (store.folder / f"step-0000000{step}" / "state.json").unlink()
    info, set_aside = store.newest_valid()
    assert info is None
    assert [found.reason for found in set_aside] == ["state.json is missing."] * 2
    assert store.newest_valid() == (None, [])


def test_training_goes_on_after_damage(store: Store) -> None:
    """A step done again is saved again, and what was set aside is not in its way."""
    (store.folder / "step-00000002" / "state.json").unlink()
    store.newest_valid()
    save(store, 2)
    info, set_aside = store.newest_valid()
    assert info is not None
    assert (info.step, set_aside) == (2, [])
    assert_holds(info.path, 2)


def test_a_quick_look_finds_what_sizes_show_and_only_a_full_one_finds_flipped_bits(store: Store) -> None:
    """Sizes only is for those who ask for it; the default reads every byte."""
    path = store.folder / "step-00000002"
    content = bytearray((path / "tokenizer.json").read_bytes())
    content[100] ^= 1
    (path / "tokenizer.json").write_bytes(content)
    assert verify(path, full=False).step == 2
    with pytest.raises(Damaged):
        verify(path)
    os.truncate(path / "tokenizer.json", 7)
    with pytest.raises(Damaged, match="has 7 bytes, but 5000 were written"):
        verify(path, full=False)


def test_a_header_that_is_no_text_is_damage_like_any_other(store: Store) -> None:
    """Found by a random flip: the decoder's own error for bad UTF-8 is another one than for bad JSON."""
    for name in ("model-00001-of-00002.safetensors", "manifest.json"):
        path = store.folder / "step-00000002" / name
        whole = path.read_bytes()
        place = whole.index(b'"') + 1
        path.write_bytes(whole[:place] + b"\xe7" + whole[place + 1 :])
        with pytest.raises(Damaged):
            verify(path.parent, full=False)
        path.write_bytes(whole)
    verify(path.parent)
