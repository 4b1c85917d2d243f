"""Lanes: two parts of a micro-batch computed side by side, each by half of the threads, instead of one after the other by all.

Threads that share each single operation wait for one another some thousand times a micro-batch, and for whichever of them the
kernel has put aside. Lanes wait once (`benchmarks/lanes.py` has what that saves). Each has a copy of the model that shares its
weights. Of most layers the lanes share the gradient as well, and add to it in turn (`in_place.py`); of the others each has its
own, which are added in the order of the lanes when a step is done. Either way the bits do not depend on who was faster.

Covers CPUs. Which rows a lane computes is in `batches.py`; how many lanes there are is asked of `shared/lanes.py`, and where
memory becomes short one has to do (`Entry.one_lane`). Lanes need a model that draws its random numbers from `randomness.py`'s
streams: torch's generators belong to all threads at once (`draws_elsewhere`).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch

from memsup.worker.compute import linear
from memsup.worker.compute.spent import noted
from memsup.worker.compute.turns import Turns, is_added_in_turn

Model = Any
Result = TypeVar("Result")


class Lanes:
    """Copies of a model and the threads that compute with them. The main thread is the first lane; no lane computes anything
    but inside of `run`.
    """

    def __init__(self, model: Model, count: int, threads: int) -> None:
        """Makes `count` lanes of `threads` threads together. From now on the weights of `model` must stay where they lie."""
        self._threads = threads
        self._rounded = [module for module in model.modules() if linear.is_in_place(module)]
        self.models = [model, *(_sharing(model) for _ in range(count - 1))]
        self._others = [ThreadPoolExecutor(1, f"lane-{number}") for number in range(2, count + 1)]
        for other in self._others:
            other.submit(_start, threads // count).result()

    def __len__(self) -> int:
        return len(self.models)

    @contextlib.contextmanager
    def step(self, precision: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Stands around all `run`s of a step. `precision` is entered in each lane, so that it converts the weights once, and
        those of layers that add in place once for all lanes.
        """
        with precision():
            linear.round_weights(self._rounded)
        entered = [precision() for _ in self._others]
        for other, context in zip(self._others, entered, strict=True):
            other.submit(context.__enter__).result()
        try:
            with precision():
                yield
        finally:
            for other, context in zip(self._others, entered, strict=True):
                other.submit(context.__exit__, None, None, None).result()

    def run(self, parts: Sequence[Callable[[Model], Result]]) -> list[Result]:
        """Computes each part in a lane of its own, with that lane's model; a single part has all threads. Raises what a part
        raised, when all have ended.
        """
        assert len(parts) <= len(self), "a part without a lane would be left out"
        if len(parts) == 1:
            return [parts[0](self.models[0])]
        if (spent := noted()) is not None:
            with spent.side_by_side(len(parts)) as ended_s:
                return self._run([partial(_until, part, ended_s) for part in parts])
        return self._run(parts)

    def _run(self, parts: Sequence[Callable[[Model], Result]]) -> list[Result]:
        futures: list[Future[Result]] = []
        turns = Turns(len(parts))
        torch.set_num_threads(self._threads // len(self))
        try:
            for number, (other, model, part) in enumerate(zip(self._others, self.models[1:], parts[1:], strict=False), 1):
                futures.append(other.submit(_in_turn, turns, number, part, model))
            first = _in_turn(turns, 0, parts[0], self.models[0])
        finally:
            wait(futures)
            torch.set_num_threads(self._threads)
        return [first, *(future.result() for future in futures)]

    def gather(self) -> None:
        """Adds the gradients of all lanes that are not shared into the first one's, and forgets them."""
        for parameter, *others in zip(*(model.parameters() for model in self.models), strict=True):
            for other in others:
                if other is parameter:
                    continue
                if parameter.grad is None:
                    parameter.grad = other.grad
                elif other.grad is not None:
                    parameter.grad.add_(other.grad)
                other.grad = None

    def drop(self) -> None:
        """Forgets all gradients."""
        for model in self.models:
            model.zero_grad(set_to_none=True)


def _in_turn(turns: Turns, number: int, part: Callable[[Model], Result], model: Model) -> Result:
    with turns.lane(number):
        return part(model)


def _until(part: Callable[[Model], Result], ended_s: list[float], model: Model) -> Result:
    try:
        return part(model)
    finally:
        ended_s.append(time.perf_counter())


def draws_elsewhere(forward: Callable[[], object]) -> bool:
    """Whether `forward()`, of a model that is trained, draws from torch's generator, which it leaves as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        forward()
        return not torch.equal(before, torch.get_rng_state())


def _sharing(model: Model) -> Model:
    """A copy whose weights and buffers are the same memory. Its gradients are its own, but for those that are added in turn."""
    same: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        own = torch.nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
        for hook in (parameter._backward_hooks or {}).values():
            own.register_hook(hook)
        same[id(parameter)] = parameter if is_added_in_turn(parameter) else own
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                same[id(value)] = value.detach()  # torch copies nothing that was computed; the copy computes its own
    return copy.deepcopy(model, same)


def _start(threads: int) -> None:
    """Starts the threads of a lane, called in the lane's own thread: their number is a setting of that thread."""
    torch.set_num_threads(threads)
    square = torch.ones(256, 256)
    (square @ square).add_(1).exp_()
