"""Linear layers whose gradients are added where they are kept: the same numbers in less time and memory.

torch makes the gradient of each weight in a matrix of its own, under mixed precision once more in float32, and adds that to
what is there. Here the product is added to what is there; and lanes (`lanes.py`) add to one gradient, in turn (`turns.py`),
where torch would need one for each. Under mixed precision weights are rounded once a step, for all lanes (`round_weights`).

Covers `torch.nn.Linear` on a CPU, in float32 or under mixed precision; which layers of a model is in `in_place.py`. Bits are
torch's, but for sums of products in float32, which are rounded once less (`benchmarks/lanes.py` has what it saves).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from memsup.worker.compute.turns import learns_here, own_turn

_ROUNDED = "_memsup_rounded_weight"
"""The attribute of a weight under which its rounded copy lies, with the version of what was rounded."""
_NUMBERS_AT_A_TIME = 1 << 17
"""Of a rounded gradient so many numbers are made float32 at a time: what is made stays in a cache."""


def is_plain(module: torch.nn.Module) -> bool:
    """Whether `module` is a layer that learns, and of which it is known how."""
    if type(module) is not torch.nn.Linear or "forward" in vars(module):
        return False
    of_both = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
    return all(learns_here(one) and one.dtype is torch.float32 for one in of_both)


def add_in_place(layer: torch.nn.Linear) -> None:
    """Has `layer`, which is plain, add its gradients in place from now on."""
    layer.forward = partial(_multiply, layer)


def is_in_place(module: torch.nn.Module) -> bool:
    """Whether `module` adds its gradients in place."""
    return getattr(vars(module).get("forward"), "func", None) is _multiply


def round_weights(layers: Iterable[torch.nn.Linear]) -> None:
    """Rounds the weights of `layers`, which add in place, to the precision that is computed in, if that is lower. They are
    computed with until they change.
    """
    if not torch.is_autocast_enabled("cpu"):
        return
    lower, rounded, weights = torch.get_autocast_dtype("cpu"), [], []
    for weight in (layer.weight for layer in layers):
        _, kept = getattr(weight, _ROUNDED, (None, None))
        if kept is None or kept.dtype is not lower:
            kept = torch.empty_like(weight, dtype=lower, requires_grad=False)
        setattr(weight, _ROUNDED, (weight._version, kept))
        rounded.append(kept)
        weights.append(weight.detach())
    if weights:
        torch._foreach_copy_(rounded, weights)


def _multiply(layer: torch.nn.Linear, given: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return linear(given, layer.weight, layer.bias)
    lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    with torch.autocast("cpu", enabled=False):
        found: torch.Tensor = _Multiply.apply(given.to(lower), layer.weight, layer.bias, lower)
    return found


class _Multiply(torch.autograd.Function):
    """What a linear layer computes; backwards, straight into the `grad` of its weight and bias."""

    @staticmethod
    def forward(
        context: Any, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        version, rounded = getattr(weight, _ROUNDED, (None, None))
        if weight.dtype is dtype:
            taken = weight.detach()
        elif rounded is not None and rounded.dtype is dtype and version == weight._version:
            taken = rounded
        else:
            taken = weight.detach().to(dtype)
        context.save_for_backward(given)
        context.taken, context.weight, context.bias = taken, weight, bias
        return linear(given, taken, None if bias is None else bias.detach().to(dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (given,) = context.saved_tensors
        of_found = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_given = (of_found @ context.taken).view(given.shape) if context.needs_input_grad[0] else None
        _add_product(context.weight, of_found.T, given.reshape(-1, given.shape[-1]))
        if context.bias is not None:
            _add(context.bias, of_found.sum(dim=0))
        return of_given, None, None, None


def _add_product(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds `left @ right` to the gradient of `weight`."""
    if left.dtype is not weight.dtype:
        _add(weight, left @ right)
        return
    with own_turn(weight):
        if weight.grad is None:
            weight.grad = left @ right
        else:
            weight.grad.addmm_(left, right)


def _add(parameter: torch.Tensor, part: torch.Tensor) -> None:
    with own_turn(parameter):
        if parameter.grad is None:
            parameter.grad = part.to(parameter.dtype)
            return
        kept, added = parameter.grad.view(-1), part.reshape(-1)
        for some, of_part in zip(kept.split(_NUMBERS_AT_A_TIME), added.split(_NUMBERS_AT_A_TIME), strict=True):
            some.add_(of_part)
