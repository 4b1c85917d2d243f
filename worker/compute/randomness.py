"""Randomness without a history and without neighbours: what is drawn for a row is derived from (seed, step, row, call, place).

What a row draws does not depend on what was drawn before it, so a step can be redone at any time, and a run that was killed
draws what it would have drawn. Nor does it depend on the rows it is computed with, or on how far it is padded, so a step that
is cut in another way draws the same. Each thread that computes has a *stream* of its own, of which each call of dropout
(`dropout.py`) is the next number (`next_call`): torch's generators are one for the whole process, and rows that are computed
side by side would draw from them in whatever order they came. Python's `random` and numpy's global generator are left alone:
nothing draws from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

_WORD = struct.Struct("<Q")


def _derived(*numbers: int, key: bytes = b"") -> bytes:
    """16 bytes that `numbers` and `key` determine; others give others."""
    words = b"".join(map(_WORD.pack, numbers))
    return hashlib.blake2b(words, key=key, digest_size=16).digest()


class Packed(NamedTuple):
    """Where the tokens of rows without padding are, on the device that computes."""

    places: torch.Tensor
    """Of each token, among those of padded rows."""
    starts: torch.Tensor
    """Of each row, and the end, as 32-bit numbers."""


class Rows(NamedTuple):
    """The rows of a micro-batch, as its tensors have them."""

    keys: list[bytes]
    """That from which each row draws."""
    lengths: list[int]
    """The tokens of each row, padding left out."""
    longest: int
    """The tokens of each row, padding included."""
    is_left: bool
    """Whether the padding is in front."""
    packs: bool = False
    """Whether layers may do without the padding (`packing.py`)."""
    packed: Packed | None = None
    """Where the tokens of all rows are, which stand one behind the other now, without padding, as one row. It is None while
    rows are padded."""


class Call(NamedTuple):
    """One time that something is drawn in a forward pass. Drawn from anew, it gives the same."""

    number: int
    key: bytes
    """That from which is drawn what belongs to no row: the same in each micro-batch of a step."""
    rows: Rows | None
    """The rows that are computed. None means that they are not known."""

    def stream(self, row: int | None) -> np.random.SFC64:
        """The bits for one of `rows`, or None for what belongs to none."""
        key = self.key if row is None or self.rows is None else self.rows.keys[row]
        words: Any = _Words(hashlib.blake2b(_WORD.pack(self.number), key=key, digest_size=24).digest())
        return np.random.SFC64(words)  # takes any `ISeedSequence`, though its annotation does not say so


class _Words(ISeedSequence):
    """A state that is as good as random already. numpy's own way to make one takes ten times as long."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        words = np.frombuffer(self._content, dtype)
        assert len(words) == n_words
        return words


class _Stream(threading.local):
    key = bytes(16)
    rows: Rows | None = None
    taken = 0
    is_still = False


_stream = _Stream()


def seed_stream(
    seed: int,
    step: int,
    rows: Sequence[int] = (),
    lengths: Sequence[int] = (),
    *,
    is_left: bool = False,
    packs: bool = False,
) -> None:
    """Begins this thread's stream anew, for a forward pass of these `rows` of the data, of so many tokens each, which are
    padded to the longest of them; with `is_left` in front. No rows means that nobody knows which they are. With `packs` layers
    may do without the padding.
    """
    _stream.key, _stream.rows, _stream.taken = _derived(seed, step), None, 0
    if len(rows):
        keys = [_derived(int(row), key=_stream.key) for row in rows]
        _stream.rows = Rows(keys, [*map(int, lengths)], int(max(lengths)), is_left, packs)


def seed_everything(
    seed: int, step: int, rows: Sequence[int], lengths: Sequence[int], *, is_left: bool = False, packs: bool = False
) -> None:
    """Begins this thread's stream anew, as `seed_stream` does, and torch's generators of the CPU and every CUDA device."""
    seed_stream(seed, step, rows, lengths, is_left=is_left, packs=packs)
    torch.manual_seed(int.from_bytes(_derived(int(rows[0]), key=_stream.key)[:8], "little") >> 1)


def rows_of_pass() -> Rows | None:
    """The rows that this thread computes. None means that they are not known."""
    return _stream.rows


def pack_rows(packed: Packed | None) -> None:
    """Tells that the tokens of this thread's rows stand one behind the other from now on, and where, or that they are padded
    again.
    """
    assert _stream.rows is not None
    _stream.rows = _stream.rows._replace(packed=packed)


def next_call() -> Call:
    """The next call of this thread's stream."""
    _stream.taken += 1
    return Call(_stream.taken, _stream.key, _stream.rows)


def repeated() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Two contexts; in the second the stream gives what it gave in the first (`context_fn` of `torch.utils.checkpoint`)."""
    began: list[Call] = []

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        began.append(_now())
        yield

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        now = _now()
        _stream.taken, _stream.key, _stream.rows = began[0]
        try:
            yield
        finally:
            _stream.taken, _stream.key, _stream.rows = now

    return first(), again()


def _now() -> Call:
    return Call(_stream.taken, _stream.key, _stream.rows)


@contextlib.contextmanager
def nothing_drawn() -> Iterator[None]:
    """Has nothing dropped in this thread, so that a model in training can be compared with itself."""
    _stream.is_still = True
    try:
        yield
    finally:
        _stream.is_still = False


def draws_nothing() -> bool:
    """Whether nothing is to be dropped in this thread now."""
    return _stream.is_still
