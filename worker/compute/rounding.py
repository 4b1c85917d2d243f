"""What several layers take is rounded once for all of them, under mixed precision on a CPU: the same bits in less memory.

Mixed precision rounds the input of each linear layer, and the backward pass keeps each copy: of queries, keys and values, which
take the same numbers, and with adapters beside each of them, it keeps one more for every layer. Here the first one rounds, and
the others take what it has made. Their gradients are added as before, in float32 and in the same order.

On a GPU, where starting an operation costs more than the operation, it was not measured, and each layer rounds for itself.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from memsup.worker.compute.four_bits import FourBits

_KEPT = "_memsup_rounded"
"""The attribute of a tensor under which its rounded copy lies, so that the two end together."""


def round_together(model: torch.nn.Module) -> int:
    """Has the linear layers of `model` take inputs that were rounded once; returns how many layers that are."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D | FourBits)]
    for layer in layers:
        layer.register_forward_pre_hook(_round)
    return len(layers)


def _round(_layer: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What the layer takes in place of what it was given. None means the same."""
    if len(given) != 1 or not torch.is_autocast_enabled("cpu"):
        return None
    (full,) = given
    if not isinstance(full, torch.Tensor) or full.dtype is not torch.float32 or full.device.type != "cpu":
        return None
    lower = torch.get_autocast_dtype("cpu")
    if isinstance(full, torch.nn.Parameter):
        # It outlives the step, and a lane's own parameter does not notice that the optimizer has changed what it shows.
        return None
    version, rounded = getattr(full, _KEPT, (None, None))
    if rounded is None or version != full._version or rounded.dtype is not lower:
        rounded = full.detach().to(lower)
        setattr(full, _KEPT, (full._version, rounded))
    return (_Rounded.apply(full, [rounded]),) if torch.is_grad_enabled() and full.requires_grad else (rounded,)


class _Rounded(torch.autograd.Function):
    """Numbers that are rounded already; backwards, as rounding them would be."""

    @staticmethod
    def forward(_context: Any, _full: torch.Tensor, rounded: list[torch.Tensor]) -> torch.Tensor:
        return rounded[0].detach()

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].float(), None
