"""Frozen weights in the precision in which they are computed with, where that is lower: the same numbers in half the memory.

Mixed precision rounds each weight of a linear layer on its way into the product. What learns is rounded once a step and kept;
what is frozen would be rounded again in each forward pass, and each copy kept for the backward pass. Rounded once for all, it
gives the same bits.

Covers the weights that mixed precision rounds anyway: of linear layers, and of the kind that GPT-2 has. A table of tokens is
not rounded on its way, so it stays as it is; where the last layer shares it, that one gets a rounded copy beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

ROUNDED = "rounded_weight"
"""The buffer of a head whose weight is the table of tokens: the same, rounded (`token_loss.py` computes with it)."""


def round_frozen(model: Any, dtype: torch.dtype) -> int:
    """Rounds what is frozen to `dtype`; returns how many weights that were."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    rounded = 0
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or id(module.weight) in tables:
            continue
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
            rounded += parameter.numel()
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and id(head.weight) in tables and not head.weight.requires_grad:
        head.register_buffer(ROUNDED, head.weight.detach().to(dtype), persistent=False)
    return rounded
