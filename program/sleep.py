"""The machine's sleep, and CUDA's death in it: when a laptop wakes up, CUDA is often dead in a process (pytorch/pytorch#88639).

It is told by the error's class, and by the machine's two clocks, of which one stands still in sleep. For the built-in training
and for programs of a person's own; what follows from it is the supervisor's.
"""

from __future__ import annotations

import time

from memsup.memory import is_out_of_memory

LEAST_SLEEP_S = 1.0
"""The machine slept where its two clocks parted by this much."""


class Sleep:
    """The machine's sleep since this was made."""

    def __init__(self) -> None:
        self._before_s = asleep_s()

    def killed_cuda(self, error: BaseException, where: str) -> str | None:
        """Why what ended in `error` is nobody's fault, a sentence: the machine slept, and CUDA is dead `where` it computes.
        Returns None where that is not so.
        """
        if asleep_s() - self._before_s < LEAST_SLEEP_S or not is_cuda_dead(error):
            return None
        said = next(iter(str(error).splitlines()), type(error).__name__)
        then = "a new one goes on from the newest checkpoint"
        return f"The machine slept, and CUDA is dead in {where} since then ({said}): {then}."


def asleep_s() -> float:
    """Seconds that the machine has slept since its boot (clock_gettime(2): of the two clocks, one goes on in sleep)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def is_cuda_dead(error: BaseException) -> bool:
    """Whether a call of CUDA's failed, for another reason than memory: then all that follow in this process do as well. torch
    has a class for that since 2.8; cuBLAS and its like have a RuntimeError with these words.
    """
    is_of_cuda = type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")
    return isinstance(error, RuntimeError) and is_of_cuda and not is_out_of_memory(error)
