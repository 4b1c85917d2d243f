"""The gradients of several ranks with torch's DistributedDataParallel, where a step is computed in parts.

That adds gradients up while it computes them, so whoever runs out of memory in the middle leaves the others in a collective
that nobody can do again. Here each rank computes its gradients by itself, all parts of a window, as often as it has to, and
they are added up when the last of them is there; a rank that takes longer is waited for. What is added up is what would have
been.

Where gradients lie on a GPU it is left as it is: there computing and adding up overlap, and that would be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from memsup.cut_tree import loaded_torch

_IN_PLACE_NUMBERS = 1 << 18
"""Gradients of so many numbers or more are added up where they lie, smaller ones together."""


class TalksToOthersError(Exception):
    """A loss asks other ranks for something. The text is a clause."""


class Replicas:
    """The models of a program that DistributedDataParallel has copied to each rank; often none."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules = [module for module in modules if _is_replica(module)]
        self.are_all = bool(self._modules) and len(self._modules) == len(modules)
        """Whether all that the program computes with is such, so that ranks may differ in how they compute."""
        if not self.are_all:
            self._modules = []

    @contextlib.contextmanager
    def apart(self) -> Iterator[bool]:
        """Each rank computes by itself inside. What it yields is whether gradients would have been added up."""
        replicas = self._modules
        were_due = [module.require_backward_grad_sync for module in replicas]
        for module in replicas:
            if module.will_sync_module_buffers():
                module._sync_buffers()
            module.require_backward_grad_sync = module.require_forward_param_sync = False
        try:
            yield any(were_due)
        finally:
            for module, was_due in zip(replicas, were_due):
                module.require_backward_grad_sync = module.require_forward_param_sync = was_due

    def add_up(self) -> None:
        """Has each gradient be the mean of those of all ranks, in place. A parameter has one if any rank had."""
        for module in self._modules:
            _add_up(module)


def _is_replica(module: Any) -> bool:
    """Whether a model is copied to each rank, on CPUs, and nothing of its own is done when gradients are added up."""
    if type(module).__name__ != "DistributedDataParallel":
        return False
    parameters = list(module.module.parameters())
    is_dense = not any(getattr(part, "sparse", False) for part in module.modules())
    is_plain = not getattr(module, "_comm_hooks", None) and getattr(module, "mixed_precision", None) is None
    is_joining = module.static_graph or getattr(getattr(module, "_join_config", None), "enable", False)
    on_host = all(parameter.device.type == "cpu" for parameter in parameters)
    return on_host and is_dense and is_plain and not is_joining and not getattr(module, "_delay_all_reduce_params", [])


def _add_up(module: Any) -> None:
    torch = loaded_torch()
    group, ignored = module.process_group, module.parameters_to_ignore
    named = module.module.named_parameters()
    learned = [parameter for name, parameter in named if parameter.requires_grad and name not in ignored]
    has = torch.tensor([float(parameter.grad is not None) for parameter in learned])
    torch.distributed.all_reduce(has, group=group)
    found = [parameter for parameter, any_has in zip(learned, (has > 0).tolist()) if any_has]
    small = []
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.div_(group.size())
        if parameter.numel() < _IN_PLACE_NUMBERS or not parameter.grad.is_contiguous():
            small.append(parameter.grad)
        else:
            torch.distributed.all_reduce(parameter.grad, group=group)
    for dtype in {gradient.dtype for gradient in small}:
        _add_up_together([gradient for gradient in small if gradient.dtype == dtype], group)


def _add_up_together(gradients: list[Any], group: Any) -> None:
    torch = loaded_torch()
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat, group=group)
    for gradient, added in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(added.view_as(gradient))


def without_others() -> contextlib.AbstractContextManager[Any]:
    """A context in which asking other ranks for anything raises `TalksToOthersError`, before it is done: they may not do the
    same. Where there are none it does nothing.
    """
    torch = loaded_torch()
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized() or not _has_modes(torch):
        return contextlib.nullcontext()

    class WithoutOthers(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
        def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(operation, "namespace", "") in {"c10d", "_c10d_functional"}:
                raise TalksToOthersError("its loss asks the other ranks for something")
            return operation(*args, **(kwargs or {}))

    return WithoutOthers()


def _has_modes(torch: Any) -> bool:
    return hasattr(getattr(torch.utils, "_python_dispatch", None), "TorchDispatchMode")
