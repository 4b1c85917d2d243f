"""How fast this machine can make a model's matrix products, and how many of their operations a row needs.

Operations are multiplications and additions, counted as `torch.utils.flop_counter` does. *Useful* are those of forward and
backward pass of a row's own tokens: neither padding, nor what is computed a second time, nor what is no product (normalisation,
dropout, activation functions). Covers models of one stack of layers that are made of linear layers; of any other nothing is
known. `benchmarks/peak.py` compares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

from memsup.worker.compute.four_bits import FourBits

PRODUCT_S = 0.02
"""For how long each product is repeated. The quickest time counts."""
_TOKENS = 512
_LINEAR = (torch.nn.Linear, Conv1D, FourBits)
_OTHERS = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)  # what is made of these has products of another kind


class Work(NamedTuple):
    """The useful operations of a model's step: a line in what its rows are."""

    per_row: int
    per_token: int
    per_target: int
    """Of a token that is learnt, by a model that gives a score to each word of its vocabulary."""
    per_square: int
    """Of a pair of a row's tokens, in attention."""
    inputs: int
    outputs: int
    """The largest linear layer of the stack, to try how fast products are."""

    def of(self, lengths: Iterable[int], targets: float) -> float:
        """The operations of rows of these lengths, of which so many tokens are learnt where tokens are."""
        lengths = [int(length) for length in lengths]
        squares = sum(length * length for length in lengths)
        products = len(lengths) * self.per_row + sum(lengths) * self.per_token + squares * self.per_square
        return products + targets * self.per_target


def work_of(model: Any) -> Work | None:
    """The operations that `model` needs. None means that it is built in a way of which that is not known."""
    config = model.config.get_text_config()
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    stacks = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == layers]
    if len(stacks) != 1 or not layers or not width or any(isinstance(module, _OTHERS) for module in model.modules()):
        return None
    in_stack = [module for module in stacks[0].modules() if isinstance(module, _LINEAR)]
    if not in_stack:
        return None
    inside, head = {id(module) for module in in_stack}, model.get_output_embeddings()
    elsewhere = [m for m in model.modules() if isinstance(m, _LINEAR) and id(m) not in inside and m is not head]
    largest = _shape(max(in_stack, key=lambda module: math.prod(_shape(module))))
    heads = getattr(config, "num_attention_heads", None)
    of_heads = heads * (getattr(config, "head_dim", None) or width // heads) if heads else width
    return Work(
        per_row=sum(map(_operations, elsewhere)),
        per_token=sum(map(_operations, in_stack)),
        per_target=_operations(head) if isinstance(head, _LINEAR) else 0,
        per_square=layers * 3 * 2 * 2 * of_heads,
        inputs=min(largest),
        outputs=max(largest),
    )


def _operations(module: Any) -> int:
    """Those of one token: forward, the gradient of the inputs, and that of the weight where it learns."""
    learns = not isinstance(module, FourBits) and module.weight.requires_grad
    return 2 * math.prod(_shape(module)) * (3 if learns else 2)


def _shape(module: Any) -> tuple[int, int]:
    return (module.out_features, module.in_features) if isinstance(module, FourBits) else tuple(module.weight.shape)


def product_rate(work: Work, dtype: torch.dtype) -> float:
    """Operations a second that the threads of the caller make of the three products of a linear layer, in the shape of the
    largest one, nothing else between them.
    """
    # No random numbers: the run's own are not to depend on whether anybody looks.
    x, gradient = torch.full((_TOKENS, work.inputs), 0.5, dtype=dtype), torch.full((_TOKENS, work.outputs), 0.5, dtype=dtype)
    weight, bias = torch.full((work.outputs, work.inputs), 0.5, dtype=dtype), torch.zeros(work.outputs, dtype=dtype)
    ways: list[Callable[[], object]] = [
        lambda: torch.nn.functional.linear(x, weight, bias),
        lambda: gradient @ weight,
        lambda: gradient.T @ x,
    ]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        took_s = sum(map(_quickest_s, ways))
    return len(ways) * 2 * _TOKENS * work.inputs * work.outputs / took_s


def _quickest_s(work: Callable[[], object]) -> float:
    until_s, best_s = time.perf_counter() + PRODUCT_S, float("inf")
    while True:
        began_s = time.perf_counter()
        work()
        ended_s = time.perf_counter()
        best_s = min(best_s, ended_s - began_s)
        if ended_s > until_s:
            return best_s
