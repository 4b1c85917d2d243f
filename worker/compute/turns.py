"""The order in which lanes add to one gradient: always the same, whoever is faster.

Lanes (`lanes.py`) compute side by side. Where a layer adds its gradient where it is kept (`linear.py`, `embedding.py`), all add
to the same one, so that there is no second. Sums in floating point depend on their order, so each waits for its turn: the first
lane adds first, then the second, each time a layer is used.

A lane that has ended is waited for no more. Where all lanes wait for one another, as in a model of which each uses the layers
in another order, the first of them goes on. What all wait for does not depend on who was faster, so neither does the order.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

import torch

_OWN_TURN = "_memsup_in_turn"
"""The attribute of a parameter all of whose gradients are added in turn."""
_here = threading.local()


def add_in_turn(parameter: torch.nn.Parameter, *, in_turn: bool) -> None:
    """Says of a parameter whether all of its gradients are added inside of `own_turn`, so that lanes may share it."""
    setattr(parameter, _OWN_TURN, in_turn)


def learns_here(weight: torch.Tensor) -> bool:
    """Whether who computes the gradient of `weight` may add it where it is kept: on a CPU, of a weight that learns itself (and
    is not made of others in each pass, as by `weight_norm`), lies in one piece, and whose gradient nobody asked to see first.
    """
    if not isinstance(weight, torch.nn.Parameter) or not weight.requires_grad or weight.device.type != "cpu":
        return False
    return weight.is_contiguous() and not weight._backward_hooks and not weight._post_accumulate_grad_hooks


def is_added_in_turn(parameter: torch.Tensor) -> bool:
    """Whether lanes may share the gradient of `parameter`."""
    return getattr(parameter, _OWN_TURN, False)


class Turns:
    """Who has added to what in one micro-batch that lanes compute."""

    def __init__(self, lanes: int) -> None:
        self._changed = threading.Condition()
        self._added = [Counter[int]() for _ in range(lanes)]
        self._waited_for: list[int | None] = [None] * lanes
        self._has_ended = [False] * lanes

    @contextlib.contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """Stands around all that a lane computes, in the lane's thread."""
        _here.turns, _here.number = self, number
        try:
            yield
        finally:
            _here.turns = None
            with self._changed:
                self._has_ended[number] = True
                self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self, lane: int, parameter: torch.Tensor) -> Iterator[None]:
        """Waits until it is the lane's turn to add to the gradient of `parameter`, and stands around the adding."""
        key = id(parameter)
        with self._changed:
            self._waited_for[lane] = key
            try:
                if not self._may(lane):
                    self._changed.notify_all()  # perhaps now all wait
                    self._changed.wait_for(lambda: self._may(lane))
            finally:
                self._waited_for[lane] = None  # or the others would take a lane that has ended for one that waits
        try:
            yield
        finally:
            with self._changed:
                self._added[lane][key] += 1
                self._changed.notify_all()

    def _may(self, lane: int) -> bool:
        waiting = [number for number, key in enumerate(self._waited_for) if key is not None]
        if self._is_next(lane):
            return True
        all_wait = len(waiting) == self._has_ended.count(False)
        return all_wait and lane == waiting[0] and not any(map(self._is_next, waiting))

    def _is_next(self, lane: int) -> bool:
        key = self._waited_for[lane]
        assert key is not None
        times = self._added[lane][key]
        return all(
            has_ended or other == lane or added[key] >= times + (other < lane)
            for other, (has_ended, added) in enumerate(zip(self._has_ended, self._added, strict=True))
        )


@contextlib.contextmanager
def own_turn(parameter: torch.Tensor) -> Iterator[None]:
    """Stands around what adds to the gradient of `parameter`; waits for the lane's turn where several add to it."""
    turns: Turns | None = getattr(_here, "turns", None)
    if turns is None or not is_added_in_turn(parameter):
        yield
        return
    with turns.turn(_here.number, parameter):
        yield
