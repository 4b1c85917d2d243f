"""What a GPU's forward pass keeps for the backward pass, kept in host memory in between: for a row that does not fit otherwise.

Exact, as copies are. Slow, since all of it travels there and back once. It takes the place of computing activations twice,
where what is kept between layers is too much by itself. Weights stay where they are: they are there anyway.

Not seen on a device yet: on a CPU it was tested that gradients are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

_LEAST_BYTES = 1 << 16
"""Smaller tensors stay on the device: they save nothing."""


def kept_on_host(model: torch.nn.Module, empty: Callable[[int], torch.Tensor]) -> AbstractContextManager[None]:
    """A context for a forward pass. `empty` gives so many bytes of host memory, best page-locked."""
    stays = {tensor.untyped_storage().data_ptr() for tensor in _held(model)}

    def pack(tensor: torch.Tensor) -> Any:
        if tensor.nbytes < _LEAST_BYTES or tensor.untyped_storage().data_ptr() in stays:
            return tensor
        whole = tensor.detach().contiguous()
        room = empty(whole.nbytes).view(whole.dtype).view(whole.shape)
        return room.copy_(whole, non_blocking=True), tensor.device

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        room, device = packed
        back: torch.Tensor = room.to(device, non_blocking=True)
        return back

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _held(model: torch.nn.Module) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
