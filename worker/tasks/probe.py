"""Does a model say the same of a row alone, beside others and padded? Found out by asking it, in place of a list of models.

The shortest and the longest row are computed alone, together, and together with rows of their own length, as in evaluation
and, with nothing dropped, as in training. A few forward passes without gradients: they take less memory than the gradient of
the longest row, and less time than a step. The model stays as it is: copies that share its weights are asked, since some models
change for good when they meet a row of another length.

Covers what a model computes. What it draws for a row is the same under any cut where `compute/dropout.py` draws;
`draws_by_cut` says where a model draws otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from memsup.worker.compute.lanes import draws_elsewhere
from memsup.worker.compute.randomness import nothing_drawn, seed_stream
from memsup.worker.plan.padding import Padding, Same

SAME_FRACTION, ROUNDING_FRACTION = 5e-4, 5e-5
"""The difference that counts as rounding: a part of that between two rows, and a part of the largest number."""
_DEAD = 1e-4
"""A matrix with no number above it says nothing, as a head may before it has learnt; the copies that are asked get others."""

Model = Any
Batch = dict[str, torch.Tensor]
Says = Callable[[Model, Batch], torch.Tensor]
"""What a model says of each row of a batch, a number or more each."""
BatchOf = Callable[[NDArray[np.int64], Padding], Batch]
"""Rows by number, padded on that side."""


class Said(NamedTuple):
    """What a model says of a row."""

    outputs: torch.Tensor
    hidden: torch.Tensor | None
    """The last hidden states of the row's own tokens, where a leak shows that hardly reaches the outputs yet. None means that
    the model has no such tensor of rows × tokens × units."""


class Probe:
    """A model, and the rows of which it is asked."""

    def __init__(
        self, model: Model, says: Says, batch: BatchOf, lengths: NDArray[np.int32], boundary: Callable[[], None]
    ) -> None:
        self._model, self._says, self._batch, self._boundary = model, says, batch, boundary
        self._lengths, self._short, self._long = lengths, int(lengths.argmin()), int(lengths.argmax())
        self._alike = _two_of_one_length(lengths)
        self._alive = {id(parameter): _alive(parameter) for parameter in model.parameters()}
        self._outputs_apart, self._outputs_most = 0.0, 0.0

    def same(self, sides: Sequence[Padding]) -> Same:
        """What does not change what the model says. Sides are tried in this order until one does not."""
        ways = [False] if self._draws_elsewhere() else [False, True]
        alone = {
            is_training: {row: self._asked([row], sides[0], is_training)[0] for row in (self._short, self._long)}
            for is_training in ways
        }
        short, long = (alone[False][row].outputs for row in (self._short, self._long))
        self._outputs_apart = float((short - long).abs().max())
        self._outputs_most = float(torch.maximum(short.abs(), long.abs()).max())

        padded: dict[Padding, bool] = {}
        beside = all(self._is_same_beside(is_training) for is_training in ways)
        after = beside and self._is_same_after(alone[False])
        for side in sides if after else ():
            padded[side] = self._lengths[self._short] == self._lengths[self._long] or all(
                self._is_same_padded(side, is_training, alone[is_training]) for is_training in ways
            )
            if padded[side]:
                break
        return Same(after_others=after or not beside, beside_others=beside, padded=padded)

    def draws_by_cut(self, padding: Padding) -> bool:
        """Whether what the model draws for a row in training depends on the rows it is computed with; asked after `same`."""
        rows = self._alike if padding is Padding.NONE else [self._long, self._short]
        if not rows:
            return False
        beside = self._asked(rows, padding, is_training=True, draws=True)
        alone = self._asked(rows[1:], padding, is_training=True, draws=True)
        return not self._is_same(beside[1], alone[0])

    def _draws_elsewhere(self) -> bool:
        """Whether the model in training draws from torch's generator, even if nothing is dropped."""
        model = self._fresh().train()
        with nothing_drawn():
            return draws_elsewhere(lambda: self._says(model, self._batch(np.array([self._short], np.int64), Padding.RIGHT)))

    def _is_same_beside(self, is_training: bool) -> bool:
        """Whether a row's neighbours of its own length change nothing."""
        together = self._asked(self._alike, Padding.RIGHT, is_training) if self._alike else []
        alone = [self._asked([row], Padding.RIGHT, is_training)[0] for row in self._alike]
        return all(map(self._is_same, together, alone))

    def _is_same_after(self, alone: dict[int, Said]) -> bool:
        """Whether rows that were computed before change nothing."""
        model = self._fresh()
        rows = self._long, self._short, self._long
        return all(self._is_same(self._asked([row], Padding.RIGHT, False, model=model)[0], alone[row]) for row in rows)

    def _is_same_padded(self, side: Padding, is_training: bool, alone: dict[int, Said]) -> bool:
        rows = [self._long, self._short]
        return all(map(self._is_same, self._asked(rows, side, is_training), [alone[row] for row in rows]))

    def _is_same(self, one: Said, other: Said) -> bool:
        rounding = SAME_FRACTION * self._outputs_apart + ROUNDING_FRACTION * self._outputs_most
        is_same = bool((one.outputs - other.outputs).abs().max() <= rounding)
        if one.hidden is not None and other.hidden is not None:
            is_same = is_same and bool((one.hidden - other.hidden).abs().max() <= SAME_FRACTION * other.hidden.abs().max())
        return is_same

    def _fresh(self) -> Model:
        """A copy that shares the weights, and nothing else that a forward pass might change."""
        return copy.deepcopy(self._model, dict(self._alive))

    def _asked(
        self, rows: list[int], side: Padding, is_training: bool, *, draws: bool = False, model: Model | None = None
    ) -> list[Said]:
        """What a fresh copy, or `model`, says of each of these rows, computed together."""
        self._boundary()
        model = (model or self._fresh()).train(is_training)
        numbers = np.array(rows, np.int64)
        lengths, hidden = self._lengths[numbers], [torch.empty(0)]

        def keep(_module: Any, _inputs: Any, found: Any) -> None:
            hidden[0] = found[0]

        hook = model.base_model.register_forward_hook(keep)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), nullcontext() if draws else nothing_drawn():
            torch.manual_seed(0)
            seed_stream(0, 0, rows, lengths.tolist(), is_left=side is Padding.LEFT)
            outputs = self._says(model, self._batch(numbers, side))
        hook.remove()
        (states,) = hidden
        if states.ndim != 3 or states.shape[:2] != (len(rows), lengths.max()):
            return [Said(of_row, None) for of_row in outputs]
        owns = [slice(-length, None) if side is Padding.LEFT else slice(length) for length in lengths]
        return [Said(of_row, row[own].float()) for of_row, row, own in zip(outputs, states, owns, strict=True)]


def _two_of_one_length(lengths: NDArray[np.int32]) -> list[int]:
    """Two rows of one length, or fewer where there are none."""
    (rows,) = np.nonzero(lengths == np.bincount(lengths).argmax())
    return [int(rows[0]), int(rows[-1])] if len(rows) > 1 else []


def _alive(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter itself, or other numbers in place of one that says nothing."""
    if parameter.ndim < 2 or bool(parameter.abs().max() > _DEAD):
        return parameter
    numbers = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    return torch.nn.Parameter(numbers.to(parameter.dtype), requires_grad=False)
