"""Randomness without a history: every generator's state is derived from (seed, step, position).

What a micro-batch draws does not depend on what was drawn before it, so a step can be redone at any time, and a run that was
killed draws what it would have drawn. Python's `random` and numpy's global generator are left alone: nothing draws from them.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, step: int, position: int) -> int:
    """63 bits; other arguments give others."""
    words = b"".join(number.to_bytes(8, "little") for number in (seed, step, position))
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int, step: int, position: int) -> None:
    """Seeds torch's generators of CPU and every CUDA device. `position` is the first row's place within the step."""
    torch.manual_seed(derived_seed(seed, step, position))
