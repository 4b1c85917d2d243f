"""How many lanes a micro-batch is computed in on a CPU (`worker/compute/lanes.py`). Pure; the supervisor tells it before the
model is loaded, the worker asks it when it is.
"""

from __future__ import annotations

import math
from typing import TypedDict

BASE_BYTES = 340 << 20
"""Python with torch, transformers and the tokenised data, and what the allocator keeps; without the pages of mapped files."""
BYTES_PER_PARAMETER = 16
"""float32: the weight, its gradient, and Adam's two moments."""
FROZEN_BYTES, ROUNDED_BYTES = 4, 2
"""A weight that is not trained, in float32, and where mixed precision has it rounded (`worker/compute/frozen.py`)."""
MOST_LANES = 2
GRADIENT_BYTES = 4
"""Bytes of a weight's gradient, in each lane beyond the first, of weights whose gradient lanes do not share
(`worker/compute/in_place.py`); a copy in a lower precision, where there is one, takes `COPY_BYTES` more."""
COPY_BYTES = 2
MOST_FRACTION, MOST_HELD_FRACTION = 0.1, 0.5
"""The parts of the worker's limit that further lanes may take, and that may then be held all the time: what is faster must not
be what fills the memory. With 0.7 a limit that fell to 60 % cost a death (`benchmarks/squeeze.py --limit 1.5`)."""


class SizeForLanes(TypedDict):
    """What of a model decides how many lanes have room, as arguments of `lanes_for`."""

    parameters: int
    trained: int
    apart: int
    amp: str


def lanes_for(
    *, parameters: int, apart: int, amp: str, threads: int, limit_bytes: int | None, trained: int | None = None
) -> int:
    """The number of lanes for a model of so many parameters, of which so many are `trained`, and of so many each lane has a
    gradient `apart`. None of `trained` means all. None of `limit_bytes` means that nobody knows what there is, and one lane is
    used.
    """
    if threads % MOST_LANES or limit_bytes is None:
        return 1
    return MOST_LANES if limit_bytes >= least_limit_bytes(parameters=parameters, trained=trained, apart=apart, amp=amp) else 1


def least_limit_bytes(*, parameters: int, apart: int, amp: str, trained: int | None = None) -> int:
    """The least limit that has room for a second lane beside the first, of such a model as in `lanes_for`."""
    trained = parameters if trained is None else trained
    further_bytes = lane_bytes(apart=apart, amp=amp)
    held_bytes = BASE_BYTES + weights_bytes(parameters=parameters, trained=trained) + further_bytes
    return math.ceil(max(further_bytes / MOST_FRACTION, held_bytes / MOST_HELD_FRACTION))


def weights_bytes(*, parameters: int, trained: int, rounded: int = 0) -> int:
    """What weights take with the gradients and moments of those that are trained; of the others so many are `rounded`."""
    frozen = max(0, parameters - trained)
    return BYTES_PER_PARAMETER * trained + FROZEN_BYTES * frozen - (FROZEN_BYTES - ROUNDED_BYTES) * min(rounded, frozen)


def lane_bytes(*, apart: int, amp: str) -> int:
    """The bytes that a lane beyond the first takes, activations aside, with gradients of its own for so many weights."""
    return apart * (GRADIENT_BYTES + (COPY_BYTES if amp != "off" else 0))
