"""How many lanes a micro-batch is computed in on a CPU (`worker/lanes.py`). Pure; the supervisor tells it before the model is
loaded, the worker asks it when it is.
"""

from __future__ import annotations

MOST_LANES = 2
GRADIENT_BYTES = 4
"""Of a weight, in each lane beyond the first; its copy in a lower precision takes half as much again."""
COPY_BYTES = 2
MOST_FRACTION = 0.1
"""Of the worker's limit that further lanes may take: what is faster must not be what fills the memory."""


def lanes_for(*, parameters: int, amp: str, threads: int, limit_bytes: int | None) -> int:
    """`limit_bytes` None: nobody knows, and nothing is spent."""
    if threads % MOST_LANES or limit_bytes is None:
        return 1
    return MOST_LANES if lane_bytes(parameters=parameters, amp=amp) <= MOST_FRACTION * limit_bytes else 1


def lane_bytes(*, parameters: int, amp: str) -> int:
    """What a lane beyond the first takes, activations apart."""
    return parameters * (GRADIENT_BYTES + (COPY_BYTES if amp != "off" else 0))
