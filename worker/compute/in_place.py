"""Which layers of a model add their gradients where they are kept (`linear.py`, `embedding.py`), and which lanes may share.

Lanes share the gradient of a weight that nothing but such layers uses. A model may also use a layer's weight in a way of its
own, past the layer: torch adds to the same gradient then, at any time. Which weights these are is found out by computing a
gradient once (`keep_apart_what_else_is_used`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from memsup.worker.compute import embedding, linear
from memsup.worker.compute.turns import add_in_turn, is_added_in_turn


def add_in_place(model: Any) -> int:
    """Has the layers of `model` that can add their gradients in place do so; returns how many they are."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    tables = [module for module in model.modules() if embedding.is_plain(module)]
    layers = list(_layers(model))
    for table in tables:
        embedding.add_in_place(table)
    for layer in layers:
        linear.add_in_place(layer)
    for module in (*tables, *layers):
        for parameter in module.parameters(recurse=False):
            add_in_turn(parameter, in_turn=uses[id(parameter)] == 1)
    return len(tables) + len(layers)


def _layers(model: Any) -> Iterator[torch.nn.Linear]:
    """The last layer of a language model is left out: its scores are computed in pieces (`token_loss.py`)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for module in model.modules():
        if linear.is_plain(module) and module is not head:
            yield module


def kept_apart(model: torch.nn.Module) -> int:
    """How many weights that learn each lane has a gradient of its own for."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad and not is_added_in_turn(one))


def keep_apart_what_else_is_used(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Has lanes not share the gradients of weights that `model` also uses past its layers, which the gradient of `loss()`
    shows; returns how many they are. All gradients are dropped.
    """
    found: set[torch.Tensor] = set()

    def note(parameter: torch.Tensor, gradient: torch.Tensor | None) -> None:
        if gradient is not None:  # layers that add in place have none
            found.add(parameter)

    shared = [parameter for parameter in model.parameters() if is_added_in_turn(parameter)]
    hooks = [parameter.register_hook(partial(note, parameter)) for parameter in shared]
    try:
        loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    for parameter in found:
        add_in_turn(parameter, in_turn=False)
    return len(found)
