"""The fence: a limit around the worker's whole tree that the kernel enforces, also when nobody watches.

`base.py` says what every fence can do; there is one file a kind (`scope.py`, `cgroup2.py`, `cgroup1.py`, and `rlimit.py` for
rlimits and nothing at all); `choice.py` takes the best that works here. `card.py` and its child `card_driver.py` have NVIDIA's
driver move what a program has on the GPU. When to freeze, kill or move is decided in `decide/`.
"""

from memsup.supervisor.fence.base import Fence, FenceError, Kind
from memsup.supervisor.fence.choice import Chosen, choose_fence, rehearse

__all__ = ["Chosen", "Fence", "FenceError", "Kind", "choose_fence", "rehearse"]
