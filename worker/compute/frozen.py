"""Frozen weights in the precision in which they are computed with, where that is lower: the same numbers in half the memory.

Mixed precision rounds each weight of a linear layer on its way into the product. What learns is rounded once a step and kept;
what is frozen would be rounded again in each forward pass, and each copy kept for the backward pass. Rounded once for all, it
gives the same bits.

Covers the weights that mixed precision rounds anyway: of linear layers, and of the kind that GPT-2 has. A table of tokens is
not rounded on its way. Where its numbers are exact in the lower precision all the same, as those of a model that came in it
are, it is held so, and what is looked up in it is float32 again. Else it stays as it is; where the last layer shares it, that
one gets a rounded copy beside it.

A model that comes in the lower precision is loaded in it, and never there in float32 as a whole (`keep_lower`). What it is
asked before it trains, it computes in float32, one layer at a time (`widened`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding
from transformers.pytorch_utils import Conv1D

ROUNDED = "rounded_weight"
"""The buffer of a head whose weight is the table of tokens: the same, rounded (`token_loss.py` computes with it)."""
_ROWS_AT_A_TIME = 4096


def round_frozen(model: Any, dtype: torch.dtype) -> int:
    """Rounds what is frozen to `dtype`; returns how many weights that were."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    rounded = sum(_hold_exactly(module, dtype) for module in model.modules() if isinstance(module, torch.nn.Embedding))
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or id(module.weight) in tables:
            continue
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
            rounded += parameter.numel()
    head = model.get_output_embeddings()
    is_table = type(head) is torch.nn.Linear and id(head.weight) in tables and not head.weight.requires_grad
    if is_table and head.weight.dtype is not dtype:
        head.register_buffer(ROUNDED, head.weight.detach().to(dtype), persistent=False)
    return rounded


def _hold_exactly(table: torch.nn.Embedding, dtype: torch.dtype) -> int:
    """Holds a frozen table in `dtype` if that has all of its numbers; returns how many that were."""
    weight = table.weight
    if weight.requires_grad or not _is_plain(table):
        return 0
    if weight.dtype is dtype:
        return weight.numel()  # it was loaded so
    if not all(torch.equal(rows.to(dtype).to(rows.dtype), rows) for rows in weight.detach().split(_ROWS_AT_A_TIME)):
        return 0
    weight.data = weight.data.to(dtype)
    table.forward = partial(_look_up, table)
    return weight.numel()


def _is_plain(table: torch.nn.Module) -> bool:
    return type(table) is torch.nn.Embedding and table.max_norm is None


def _look_up(table: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    return embedding(ids, table.weight, table.padding_idx).float()


def keep_lower(model: Any) -> bool:
    """Makes float32 of all that a model has which was loaded in a lower precision, but for the weights that are held so.
    Returns False where it is not the model that it would be if it was loaded in float32: it has made numbers of its own.
    """
    if any(buffer.is_floating_point() and buffer.dtype is not torch.float32 for buffer in model.buffers()):
        return False
    held: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            held |= set(map(id, module.parameters(recurse=False)))
        elif _is_plain(module):
            held.add(id(module.weight))
            module.forward = partial(_look_up, module)
    for module in model.modules():  # a table of another kind computes with its numbers, whoever shares them
        if isinstance(module, torch.nn.Embedding) and not _is_plain(module):
            held.discard(id(module.weight))
    for parameter in model.parameters():
        if id(parameter) not in held:
            parameter.data = parameter.data.float()
    return True


@contextlib.contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """Has layers whose weights are held in a lower precision compute in float32 meanwhile, from the same numbers."""
    hooks: list[Any] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module.weight.dtype is not torch.float32:
            hooks += [module.register_forward_pre_hook(_widen), module.register_forward_hook(_narrow, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(module: Any, _given: Any) -> None:
    module.held = [parameter.data for parameter in module.parameters(recurse=False)]
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.float()


def _narrow(module: Any, _given: Any, _found: Any) -> None:
    for parameter, held in zip(module.parameters(recurse=False), module.held, strict=True):
        parameter.data = held
    del module.held


@contextlib.contextmanager
def seen_as_float32(model: torch.nn.Module) -> Iterator[None]:
    """Has all weights look as if they were float32, with no numbers, for who makes others beside them of the same type."""
    held = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in held:
            if data.dtype is not torch.float32:
                parameter.data = torch.zeros((), dtype=torch.float32, device=data.device).expand(data.shape)
        yield
    finally:
        for parameter, data in held:
            parameter.data = data
