"""Dropout on a CPU in a fraction of torch's time, and without keeping what was drawn (Srivastava et al. 2014).

torch draws a number of 53 bits for each unit on one core, and keeps the outcome, as wide as the units themselves, for the
backward pass. Here 16 bits decide, and the backward pass draws them again from the same seed (`benchmarks/attention.py` has
the difference). A probability is rounded to a multiple of 1/65,536, and what is kept is scaled by the rounded one, so that the
expectation is exact.

Covers `torch.nn.Dropout` itself, and the draws for `attention.py`. On a GPU, where drawing costs nothing, and for the kinds
that drop whole channels torch's way stays. Each seed is the next of the thread's stream (`randomness.py`), so rows that are
computed side by side draw as they would alone, and activations that are computed twice drop the same units twice.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch.nn.functional import dropout

from memsup.worker.compute.randomness import next_seed

_CHANCES = 1 << 16


class Draws:
    """Which units are kept, drawn a part after the other; from the same seed they are the same again."""

    def __init__(self, seed: int, probability: float) -> None:
        """Begins the draws of `seed`; `probability` is that of being dropped, see `can_draw`."""
        self.seed, self.probability = seed, probability
        kept = round((1 - probability) * _CHANCES)
        self.scale = _CHANCES / kept
        """How many times what is kept counts, in place of what is dropped."""
        self._last_kept = kept - 1 - _CHANCES // 2
        self._bits = np.random.SFC64(seed)

    @classmethod
    def new(cls, probability: float) -> Draws:
        """The draws of the next seed of this thread's stream."""
        return cls(next_seed(), probability)

    def again(self) -> Draws:
        """The same draws from the beginning."""
        return Draws(self.seed, self.probability)

    def kept(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The next draws: 1 for kept and 0 for dropped. They are no booleans, by which torch multiplies ten times as slowly."""
        count = prod(shape)
        words = self._bits.random_raw((count + 3) // 4)
        bits = torch.from_numpy(words.view(np.int16))[:count].view(shape)
        return torch.le(bits, self._last_kept, out=torch.empty(shape, dtype=dtype))


def can_draw(probability: float) -> bool:
    """Whether anything would be dropped, and anything kept."""
    return probability > 0.0 and round((1 - probability) * _CHANCES) > 0


def draw_cheaply(model: torch.nn.Module) -> int:
    """Makes the dropout layers of `model` draw by `Draws` when they are on a CPU; returns how many they are."""
    layers = [module for module in model.modules() if type(module) is torch.nn.Dropout and not module.inplace]
    for layer in layers:
        layer.forward = partial(_drop, layer)
    return len(layers)


def _drop(layer: torch.nn.Dropout, units: torch.Tensor) -> torch.Tensor:
    if not layer.training or units.device.type != "cpu" or not can_draw(layer.p):
        return dropout(units, layer.p, layer.training)
    dropped: torch.Tensor = _Drop.apply(units, layer.p)
    return dropped


class _Drop(torch.autograd.Function):
    """Dropout whose backward pass draws again instead of having kept the outcome."""

    @staticmethod
    def forward(context: Any, units: torch.Tensor, probability: float) -> torch.Tensor:
        context.draws = Draws.new(probability)
        return _thinned(units, context.draws)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _thinned(gradients[0], context.draws.again()), None


def _thinned(units: torch.Tensor, draws: Draws) -> torch.Tensor:
    return draws.kept(units.shape, units.dtype).mul_(units).mul_(draws.scale)
