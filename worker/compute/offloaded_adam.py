"""AdamW whose moments lie in host memory, for a GPU that has no room for them: half of what training holds there all the time.

Exact: a step brings the moments of one parameter at a time to the device, where the same kernel works on the same numbers, and
takes them back. It costs the way there and back of eight bytes for each parameter, once for each effective batch. Tensors keep
their names and types, so checkpoints are the same with and without. On which machine this is done is the supervisor's to say
(`training.optimizer_on_host`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW, fused and without AMSGrad, whose moments lie in host memory. The room on the device, twice the largest parameter,
    is taken once, at the start: so a step allocates nothing, as with moments that live there.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.0, fused=True)
        largest = max((parameter for group in groups for parameter in group["params"]), key=torch.Tensor.numel)
        self._room = [torch.zeros(largest.numel(), dtype=largest.dtype, device=largest.device) for _ in MOMENTS]

    def host_moment(self, parameter: torch.Tensor) -> torch.Tensor:
        """A moment of zeros in host memory, page-locked where that makes the way to the device faster."""
        return torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu", pin_memory=parameter.is_cuda)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Takes the step, one parameter after the other; as `hardware.begin_step` has it. `closure` has to be None.

        It is queued, not waited for: whoever reads moments on the host waits for the device first, as reading the step's
        figures does.
        """
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, group)

    def _step_of(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        moments = [room[: parameter.numel()].view(parameter.shape) for room in self._room]
        for name, moment in zip(MOMENTS, moments, strict=True):
            moment.copy_(state[name], non_blocking=True)
        beta1, beta2 = group["betas"]
        adamw(
            [parameter],
            [parameter.grad],
            *([moment] for moment in moments),
            [],
            [state["step"]],
            fused=True,
            found_inf=getattr(self, "found_inf", None),
            grad_scale=getattr(self, "grad_scale", None),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, moment in zip(MOMENTS, moments, strict=True):
            state[name].copy_(moment, non_blocking=True)  # the device takes the room again only after this, in its own order
