"""Gradients of embeddings, added where they are kept: the same sum in less time and memory.

torch makes a matrix as large as the whole table for each micro-batch, all zeros but for the rows of its tokens, and adds it to
the gradient: 47 MB for BERT's 30,522 words at a width of 384, over and over (`benchmarks/embedding.py` has what that costs).
Here the rows of its tokens are added, and no others. The order of a sum differs, so its last bits do, the same each time.

Lanes add to one gradient, in turn (`turns.py`). Covers plain tables on a CPU, also one that another layer shares; lanes do not
share that. On a GPU the order in which rows are added would change from time to time; there, and for tables with rules of their
own (a largest norm, sparse or scaled gradients), torch's way stays.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from memsup.worker.compute.turns import learns_here, own_turn


def is_plain(module: torch.nn.Module) -> bool:
    """Whether `module` is a table that learns, and has no rules of its own."""
    if type(module) is not torch.nn.Embedding or module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    return "forward" not in vars(module) and learns_here(module.weight)


def add_in_place(table: torch.nn.Embedding) -> None:
    """Has `table`, which is plain, add its gradient in place from now on."""
    table.forward = partial(_look_up, table)


def _look_up(table: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _LookUp.apply(table.weight, ids, table.padding_idx)
    return found


class _LookUp(torch.autograd.Function):
    """Rows of a table by number; backwards, straight into the table's `grad`. That of the padding is left out, as in torch."""

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        context.save_for_backward(ids)
        context.weight, context.padding = weight, padding
        return embedding(ids, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        (ids,) = context.saved_tensors
        weight, ids = context.weight, ids.reshape(-1)
        rows = gradients[0].reshape(len(ids), weight.shape[1]).to(weight.dtype)
        if context.padding is not None:
            rows = rows.masked_fill((ids == context.padding).unsqueeze(1), 0)
        with own_turn(weight):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, ids, rows)
        return None, None, None
