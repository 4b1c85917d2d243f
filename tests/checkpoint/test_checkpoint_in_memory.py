"""A state in memory: what is read is what was written, and nothing else is ever taken for it."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.in_memory import Draft, InMemory
from memsup.checkpoint.tensors import Tensor
from memsup.shared.descriptors import SEALS

CONTENT = {"a": bytes(range(200)), "b.exp_avg": b"\x01\x02" * 5, "c": b""}
STATE = {"step": 7, "loss": 0.25}


def tensor(name: str, content: bytes) -> Tensor:
    return Tensor(name, "U8", (len(content),), lambda: iter([memoryview(content)]))


@pytest.fixture
def sealed() -> Iterator[int]:
    with Draft(7, lambda: None) as draft:
        draft.write_tensors("model", [tensor(name, content) for name, content in CONTENT.items()])
        draft.write_tensors("optimizer", [tensor("step", b"\x09")])
        draft.write_json("state.json", STATE)
        fd = draft.seal()
    yield fd
    os.close(fd)


def read(state: InMemory, stem: str) -> dict[str, bytes]:
    return {found.name: b"".join(map(bytes, found.chunks())) for found in state.tensors(stem)}


def copy(content: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_what_was_written_is_read_and_cannot_be_changed_any_more(sealed: int) -> None:
    state = InMemory(sealed)
    assert (state.step, state.json("state.json", dict[str, Any])) == (7, STATE)
    assert read(state, "model") == CONTENT
    assert read(state, "optimizer") == {"step": b"\x09"}
    with pytest.raises(Damaged, match="missing"):
        state.json("config.json", dict[str, Any])
    for change in (lambda: os.pwrite(sealed, b"x", 0), lambda: os.ftruncate(sealed, 5), lambda: os.write(sealed, b"x")):
        with pytest.raises(PermissionError):
            change()


def test_each_flipped_bit_and_each_cut_is_refused(sealed: int) -> None:
    whole, draw = os.pread(sealed, os.fstat(sealed).st_size, 0), random.Random(7)
    garbled = [whole[:cut] for cut in (0, 1, 7, 8, len(whole) // 2, len(whole) - 1)] + [whole + b"\0", b"\xff" * 64]
    for place in {*range(len(whole) - 12, len(whole)), *draw.sample(range(len(whole)), 150)}:
        garbled.append(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
    for content in garbled:
        fd = copy(content)
        with pytest.raises(Damaged):
            InMemory(fd)
        os.close(fd)


@pytest.mark.parametrize("seals", [0, SEALS & ~fcntl.F_SEAL_WRITE, SEALS & ~fcntl.F_SEAL_SHRINK])
def test_what_somebody_could_still_change_is_refused(sealed: int, seals: int) -> None:
    fd = copy(os.pread(sealed, os.fstat(sealed).st_size, 0), seals)
    with pytest.raises(Damaged, match="sealed"):
        InMemory(fd)
    os.close(fd)
    with open(os.devnull, "rb") as other, pytest.raises(Damaged, match="sealed"):
        InMemory(other.fileno())


def test_a_draft_that_is_not_finished_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), Draft(7, refuse) as draft:
        draft.write_tensors("model", [tensor("a", b"abc")])
    assert len(os.listdir("/proc/self/fd")) == before
