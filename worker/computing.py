"""At which share of what this machine can multiply a run computes, and where the rest of a step's time goes: measured in one
step from time to time, and told in `status` and `report`.

How fast the machine makes products like the model's is tried between two steps, once a life. Of a step that is looked at, the
clock says what attention, the optimizer and loading took and how long lanes waited; what padding took is what its products
would take at that speed; what it takes to start operations is in the planner's line of time. What is left over are the
operations that are no products (normalisation, dropout, activation functions, sums), and products that are slower than they can
be. Covers CPUs; of a GPU nothing is known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from memsup.shared.readings import Computing
from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.peak import Work, product_rate, work_of
from memsup.worker.compute.spent import Part, Spent, note

FIRST_STEP, EVERY_STEPS = 32, 256
"""The step of a life that is looked at first, when the planner has mostly settled, and how often one is later."""


class Looking:
    """Looks at a step from time to time, in one life of the worker."""

    def __init__(self, model: object, device: torch.device, dtype: torch.dtype | None) -> None:
        """`dtype` is the type that is computed in. None means that of the weights."""
        self._work: Work | None = work_of(model) if device.type == "cpu" else None
        self._dtype = dtype or torch.float32
        self._steps = 0
        self._peak: float | None = None
        self.found: Computing | None = None
        """What was found last. None means that nothing was looked at yet, or that the work of such a model is not known."""

    @contextlib.contextmanager
    def step(self, lanes: Lanes) -> Iterator[Spent | None]:
        """Stands around a step. Gives what is noted in it; None means that this step is not looked at."""
        self._steps += 1
        if self._work is None or self._steps % EVERY_STEPS != FIRST_STEP:
            yield None
            return
        if self._peak is None:
            self._peak = peak_of(self._work, self._dtype, lanes)
        with note() as spent:
            yield spent

    def take(self, step: int, spent: Spent, lengths: Sequence[int], targets: float, took_s: float, start: float | None) -> None:
        """Takes in what was noted in a step of these rows that took so long. `start` is the part of the time in which
        operations are started, by the planner's line; None means that it has none yet.
        """
        assert self._work is not None
        assert self._peak is not None
        useful = self._work.of(lengths, targets)
        in_attention = self._work.per_square * sum(int(length) ** 2 for length in lengths)
        whole = self._peak * took_s
        parts = {part: spent.seconds(part) / took_s for part in Part}
        self.found = Computing(
            step=step,
            peak_per_s=self._peak,
            useful=useful / whole,
            padding=(sum(spent.padded_tokens) - sum(map(int, lengths))) * self._work.per_token / whole,
            attention=max(0.0, parts[Part.ATTENTION] - in_attention / whole),
            optimizer=parts[Part.OPTIMIZER],
            loading=parts[Part.LOADING],
            waiting=parts[Part.WAITING],
            starting=start,
        )


def peak_of(work: Work, dtype: torch.dtype, lanes: Lanes) -> float:
    """Operations a second that this machine makes of products like the model's: with all threads, or side by side in all lanes,
    whichever are more.
    """
    together = product_rate(work, dtype)
    if len(lanes) == 1:
        return together
    return max(together, sum(lanes.run([lambda _: product_rate(work, dtype)] * len(lanes))))
