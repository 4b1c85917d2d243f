"""The collectives: what all ranks have of a gradient is added up, and what rank 0 has is given to the others.

They are torch's own (c10d) over gloo. gloo adds each number up along a ring whose order does not depend on who was faster, and
hands the one result on to all: the bits are the same on all ranks, and the same from run to run. Whoever enters knows that the
others enter as well, so there is no time after which it gives up: a rank that dies ends the connection, which all see at once.

On one machine gloo connects over the loopback interface, which no other machine reaches, and ranks find each other by a file in
the run's runtime folder, which is its user's alone. Several machines find each other by torch's TCPStore at the first one's
address. Neither gloo's sockets nor that store have a lock: see docs/ranks.md.
"""

from __future__ import annotations

import datetime
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as c10d

MEETS_WITHIN = datetime.timedelta(minutes=5)
"""The time in which all ranks are there, of which each has said before that it is about to come."""
NEVER = datetime.timedelta(days=366)
_IN_PLACE_NUMBERS = 1 << 18
"""Gradients of so many numbers or more are added up where they lie, smaller ones together in a buffer."""


_LOOK_S = 0.05

T = TypeVar("T")


def store_in(file: Path, count: int) -> c10d.Store:
    """What the ranks of one machine find each other by."""
    return c10d.FileStore(str(file), count)


def store_at(host: str, count: int) -> tuple[c10d.Store, int]:
    """What the ranks of several machines find each other by, and its port. It listens at this address of this machine alone.
    Raises OSError and RuntimeError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        fd = server.detach()
    store = c10d.TCPStore(host, port, count, True, MEETS_WITHIN, wait_for_workers=False, master_listen_fd=fd)
    return store, port


def store_of(host: str, port: int, count: int) -> c10d.Store:
    """The store at the first machine, as another one has it. Raises RuntimeError where that does not answer."""
    return c10d.TCPStore(host, port, count, False, MEETS_WITHIN, wait_for_workers=False)


def interface_of(host: str) -> str:
    """The name of the interface that has this address. Raises OSError."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == host for one in addresses):
            return name
    raise OSError(f"no interface of this machine has the address {host}")


class Apart:
    """A thread for what waits for other machines, so that orders are carried out meanwhile. A machine may be gone for as long
    as TCP takes to notice; what waits for it then is left behind when the process ends.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="apart", daemon=True).start()

    def do(self, work: Callable[[], T], meanwhile: Callable[[], None]) -> T:
        """What `work` gives or raises; `meanwhile` is called again and again, and what it raises goes through."""
        self._work.put(work)
        while True:
            try:
                found, error = self._done.get(timeout=_LOOK_S)
            except queue.Empty:
                meanwhile()
                continue
            if error is not None:
                raise error
            return found

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                self._done.put((work(), None))
            except BaseException as error:
                self._done.put((None, error))


class Adding:
    """The meeting place of all ranks, for the gradients of `parameters`; what it needs of memory is taken when it is made."""

    def __init__(
        self,
        found_by: c10d.Store,
        rank: int,
        count: int,
        parameters: Iterable[torch.nn.Parameter],
        *,
        interface: str = "lo",
    ) -> None:
        """Waits for the others. Raises RuntimeError where one of them goes away."""
        os.environ["GLOO_SOCKET_IFNAME"] = interface
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
