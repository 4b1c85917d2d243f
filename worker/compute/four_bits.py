"""Frozen weights of linear layers in four bits each (NF4, Dettmers et al. 2023): a quarter of what bfloat16 takes.

Each 64 weights share one float32, their largest, and each of them is one of 16 parts of it. A layer makes its weights anew from
that, in the precision that is computed in, in each forward pass and in each backward pass, and keeps nothing of them. So it is
slower, and what is learnt beside such weights is not what would be learnt beside the weights as they came: a person chooses it
(`lora.base_bits`), and nothing falls back to it.

Rounding and its reverse are bitsandbytes'. Its layer is not used: on a CPU with AVX-512 BF16 that turns its weights around when
it is first asked without a gradient, and has no gradient in training from then on. The last layer and the table of tokens stay
as they came, and a layer whose weights cannot be shared out to whole blocks. The same weights give the same bits, in each life
anew.

Not seen on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 64
"""So many weights share their largest."""
_KIND = "nf4"


class FourBits(torch.nn.Module):
    """In place of a linear layer whose weights are frozen."""

    codes: torch.Tensor
    largest: torch.Tensor

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, largest = _rounded(layer.weight.detach())
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("largest", largest, persistent=False)
        self.bias = layer.bias

    @property
    def weight(self) -> torch.Tensor:
        """For models that look at a layer's weights past the layer."""
        return self.weight_in(torch.float32)

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights, made anew."""
        return _widened(self.codes, self.largest, (self.out_features, self.in_features), dtype)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        kind = given.device.type
        if torch.is_autocast_enabled(kind):
            given = given.to(torch.get_autocast_dtype(kind))
        found: torch.Tensor = _Product.apply(given, self)
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, given: torch.Tensor, layer: FourBits) -> torch.Tensor:
        context.layer = layer
        bias = None if layer.bias is None else layer.bias.to(given.dtype)
        return torch.nn.functional.linear(given, layer.weight_in(given.dtype), bias)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ context.layer.weight_in(gradients[0].dtype), None


def hold_in_four_bits(model: Any) -> int:
    """Has the frozen linear layers of `model` hold their weights so, but for the last; returns how many weights that were."""
    made: dict[torch.nn.Linear, FourBits] = {}
    for parent, name, layer in _layers(model):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            if layer not in made:
                made[layer] = FourBits(layer)
            setattr(parent, name, made[layer])
    return sum(layer.weight.numel() for layer in made)


def held_in_four_bits(model: torch.nn.Module) -> int:
    """How many weights `model` holds so."""
    return sum(one.in_features * one.out_features for one in model.modules() if isinstance(one, FourBits))


def round_to_four_bits(model: Any) -> None:
    """Gives these layers the weights that they would compute with, in the type that they have."""
    for layer in dict.fromkeys(layer for _, _, layer in _layers(model)):
        layer.weight.data = _widened(*_rounded(layer.weight.detach()), layer.weight.shape, layer.weight.dtype)


def _layers(model: Any) -> list[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Each with what holds it, and its name there; what several hold comes with each of them. Weights that something else has
    as well, such as the table of tokens, are not theirs alone.
    """
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    layers = {module for module in model.modules() if type(module) is torch.nn.Linear and module is not head}
    others = [module for module in model.modules() if module not in layers]
    elsewhere = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent._modules.items()
        if layer in layers and layer.weight.numel() % BLOCK == 0 and id(layer.weight) not in elsewhere
    ]


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two weights in each byte, and the largest of each block. From float32, so that the type they came in does not matter."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.float().contiguous(), blocksize=BLOCK, quant_type=_KIND)
    return codes, state.absmax


def _widened(codes: torch.Tensor, largest: torch.Tensor, shape: Any, dtype: torch.dtype) -> torch.Tensor:
    """A row is asked for each block: of a layer of 48 inputs the library's kernel for CPUs (0.50.2) makes wrong numbers."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    rows = torch.Size((len(largest), BLOCK))
    state = QuantState(largest, shape=rows, blocksize=BLOCK, quant_type=_KIND, dtype=dtype)
    found: torch.Tensor = dequantize_4bit(codes, state)
    return found.view(shape)
