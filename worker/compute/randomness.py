"""Randomness without a history: every generator's state is derived from (seed, step, position).

What a micro-batch draws does not depend on what was drawn before it, so a step can be redone at any time, and a run that was
killed draws what it would have drawn. Each thread that computes has a *stream* of its own (`next_seed`), from which dropout
(`dropout.py`) takes its seeds: torch's generators are one for the whole process, and rows that are computed side by side would
draw from them in whatever order they came. Python's `random` and numpy's global generator are left alone: nothing draws from
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator

import torch


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits that `numbers` determine; others give another one."""
    words = b"".join(number.to_bytes(8, "little") for number in numbers)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


class _Stream(threading.local):
    seed = 0
    taken = 0


_stream = _Stream()


def seed_stream(seed: int, step: int, position: int) -> None:
    """Begins this thread's stream anew. `position` is the first row's place within the step."""
    _stream.seed, _stream.taken = derived_seed(seed, step, position), 0


def next_seed() -> int:
    """The next seed of this thread's stream, 63 bits."""
    _stream.taken += 1
    return derived_seed(_stream.seed, _stream.taken)


def seed_everything(seed: int, step: int, position: int) -> None:
    """Begins this thread's stream anew, and torch's generators of the CPU and every CUDA device."""
    seed_stream(seed, step, position)
    torch.manual_seed(_stream.seed)


def repeated() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Two contexts; in the second the stream gives what it gave in the first (`context_fn` of `torch.utils.checkpoint`)."""
    began: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        began.append((_stream.seed, _stream.taken))
        yield

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        now = _stream.seed, _stream.taken
        _stream.seed, _stream.taken = began[0]
        try:
            yield
        finally:
            _stream.seed, _stream.taken = now

    return first(), again()
