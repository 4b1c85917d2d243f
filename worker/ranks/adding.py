"""The collectives: what all ranks have of a gradient is added up, and what rank 0 has is given to the others.

They are torch's own (c10d) over gloo. gloo adds each number up along a ring whose order does not depend on who was faster, and
hands the one result on to all: the bits are the same on all ranks, and the same from run to run. Whoever enters knows that the
others enter as well, so there is no time after which it gives up: a rank that dies ends the connection, which all see at once.

gloo connects over the loopback interface, which no other machine reaches. Its sockets have no lock: see docs/ranks.md. The file
by which the ranks find each other lies in the run's runtime folder, which is its user's alone.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as c10d

MEETS_WITHIN = datetime.timedelta(minutes=5)
"""The time in which all ranks are there, of which each has said before that it is about to come."""
NEVER = datetime.timedelta(days=366)
_IN_PLACE_NUMBERS = 1 << 18
"""Gradients of so many numbers or more are added up where they lie, smaller ones together in a buffer."""


class Adding:
    """The meeting place of all ranks, for the gradients of `parameters`; what it needs of memory is taken when it is made."""

    def __init__(self, store: Path, rank: int, count: int, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Waits for the others. Raises RuntimeError where one of them goes away."""
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        found_by = c10d.FileStore(str(store), count)
        found_by.set_timeout(MEETS_WITHIN)
        c10d.init_process_group("gloo", store=found_by, rank=rank, world_size=count, timeout=NEVER)
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        small = [parameter.numel() for parameter in self._parameters if parameter.numel() < _IN_PLACE_NUMBERS]
        self._small = torch.zeros(sum(small) + len(self._parameters) + 1)
        """The small gradients, a number for each parameter that says whether it has a gradient, and the loss."""

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        """Has the others' `tensors` be those of rank 0."""
        for tensor in tensors:
            whole = tensor.detach()
            content = whole if whole.is_contiguous() else whole.contiguous()
            if content.numel():
                c10d.broadcast(content.view(-1).view(torch.uint8), 0)
            if content is not whole:
                whole.copy_(content)

    def add(self, loss: torch.Tensor) -> torch.Tensor:
        """Adds up the gradients of all ranks, in place, and returns the sum of their losses. A parameter has a gradient
        afterwards if it had one in any rank.
        """
        small = self._small.zero_()
        place = 0
        for parameter in self._parameters:
            if parameter.numel() < _IN_PLACE_NUMBERS:
                if parameter.grad is not None:
                    small[place : place + parameter.numel()].copy_(parameter.grad.view(-1))
                place += parameter.numel()
        flags = small[place : place + len(self._parameters)]
        flags.copy_(torch.tensor([float(parameter.grad is not None) for parameter in self._parameters]))
        small[-1] = loss
        c10d.all_reduce(small)
        has_gradient = (flags > 0).tolist()
        place = 0
        for parameter, has in zip(self._parameters, has_gradient, strict=True):
            if has and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.numel() < _IN_PLACE_NUMBERS:
                if has:
                    parameter.grad.view(-1).copy_(small[place : place + parameter.numel()])
                place += parameter.numel()
            elif has:
                c10d.all_reduce(parameter.grad)
        return small[-1].clone()

    def close(self) -> None:
        """Ends the connections; no rank waits for another."""
        c10d.destroy_process_group()
