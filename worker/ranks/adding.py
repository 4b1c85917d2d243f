"""The collectives: what all ranks have of a gradient is added up, and what rank 0 has is given to the others.

They are torch's own (c10d). On CPUs they go over gloo, which adds each number up along a ring whose order does not depend on
who was faster, and hands the one result on to all: the bits are the same on all ranks, and the same from run to run. Whoever
enters knows that the others enter as well, so there is no time after which it gives up: a rank that dies ends the connection,
which all see at once.

Ranks on GPUs add up over NCCL, where torch has it, in whatever order that has; else over gloo, through host memory (`Way`).
NCCL does not see that a rank dies, and whoever waits for the device waits for ever then. So nobody does: the collective is
asked again and again whether it is over, and is called off when rank 0 knows that another is gone.

On one machine gloo connects over the loopback interface, which no other machine reaches, and ranks find each other by a file in
the run's runtime folder, which is its user's alone. Several machines find each other by torch's TCPStore at the first one's
address. Neither gloo's sockets nor that store have a lock: see docs/ranks.md.
"""

from __future__ import annotations

import datetime
import enum
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as c10d

from memsup.worker.memory import DeviceMemory

MEETS_WITHIN = datetime.timedelta(minutes=5)
"""The time in which all ranks are there, of which each has said before that it is about to come."""
NEVER = datetime.timedelta(days=366)
_IN_PLACE_NUMBERS = 1 << 18
"""Gradients of so many numbers or more are added up where they lie, smaller ones together in a buffer."""


_LOOK_S = 0.05
_ASK_S = 0.0002
"""So often a collective on GPUs is asked whether it is over; most are within a few milliseconds."""
_PIECE_NUMBERS = 8 << 20
"""Gradients go through host memory in pieces of so many numbers, which is 32 MiB in float32."""

T = TypeVar("T")
_CPU = torch.device("cpu")


class Way(enum.Enum):
    """How what lies in several ranks is added up."""

    IN_PLACE = "in_place"
    """On CPUs, where it lies."""
    NCCL = "nccl"
    """From GPU to GPU; what lies in host memory goes over gloo."""
    THROUGH_HOST = "through_host"
    """From GPUs by way of host memory, where torch has no NCCL."""

    @property
    def backend(self) -> str:
        """As c10d names it."""
        return "cpu:gloo,cuda:nccl" if self is Way.NCCL else "gloo"


def way_for(device: torch.device, memory: DeviceMemory | None) -> Way:
    """The way of ranks that compute on `device`. None of `memory` means that it is a CPU."""
    if memory is None:
        return Way.IN_PLACE
    return Way.NCCL if device.type == "cuda" and c10d.is_nccl_available() else Way.THROUGH_HOST


def _nothing() -> None:
    """What others than rank 0 do meanwhile: rank 0 ends them when a collective is called off."""


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
        device: torch.device = _CPU,
        memory: DeviceMemory | None = None,
        meanwhile: Callable[[], None] = _nothing,
    ) -> None:
        """Waits for the others. `memory` is that of a GPU; None means that CPUs compute. `meanwhile` is called again and again
        while a collective on GPUs is waited for, and what it raises goes through. Raises RuntimeError where another rank goes
        away.
        """
        self.way, self._meanwhile = way_for(device, memory), meanwhile
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        found_by.set_timeout(MEETS_WITHIN)
        more = {}
        if self.way is Way.NCCL:
            os.environ["NCCL_SOCKET_IFNAME"] = interface  # by which its ranks find each other; nobody else is to reach that
            # What is over, and what is called off, is seen to here; and a machine that stood still has hung nothing.
            os.environ |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
            torch.cuda.set_device(device)  # of this thread
            more = {"device_id": device}  # it connects now, while those who wait can be told that somebody has died
        c10d.init_process_group(self.way.backend, store=found_by, rank=rank, world_size=count, timeout=NEVER, **more)
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        small = [parameter.numel() for parameter in self._parameters if parameter.numel() < _IN_PLACE_NUMBERS]
        self._small = torch.zeros(sum(small) + len(self._parameters) + 1, device=device)
        """The small gradients, a number for each parameter that says whether it has a gradient, and the loss."""
        self._host: torch.Tensor | None = None
        if self.way is Way.THROUGH_HOST:
            assert memory is not None
            most = max([self._small.numel(), *(parameter.numel() for parameter in self._parameters)])
            self._host = memory.page_locked(4 * min(_PIECE_NUMBERS, most)).view(torch.float32)
        self._is_called_off = False

    def give(self, tensors: Iterable[torch.Tensor]) -> None:
        """Has the others' `tensors` be those of rank 0."""
        for tensor in tensors:
            whole = tensor.detach()
            content = whole if whole.is_contiguous() else whole.contiguous()
            if content.numel():
                self._give(content.view(-1).view(torch.uint8))
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
        self._add([small])
        has_gradient = (flags > 0).tolist()
        place = 0
        large = []
        for parameter, has in zip(self._parameters, has_gradient, strict=True):
            if has and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.numel() < _IN_PLACE_NUMBERS:
                if has:
                    parameter.grad.view(-1).copy_(small[place : place + parameter.numel()])
                place += parameter.numel()
            elif has:
                large.append(parameter.grad)
        self._add(large)
        return small[-1].clone()

    def call_off(self) -> None:
        """Ends a collective on GPUs that another rank has left: what waits for the device would wait for ever behind it."""
        if self.way is Way.NCCL and not self._is_called_off:
            self._is_called_off = True
            abort()

    def close(self) -> None:
        """Ends the connections; no rank waits for another."""
        if not self._is_called_off:
            c10d.destroy_process_group()

    def _add(self, tensors: list[torch.Tensor]) -> None:
        """Adds up what all ranks have of each of these, in place."""
        match self.way:
            case Way.IN_PLACE:
                for tensor in tensors:
                    c10d.all_reduce(tensor)
            case Way.NCCL:
                self._over([c10d.all_reduce(tensor, async_op=True) for tensor in tensors])
            case Way.THROUGH_HOST:
                for piece, host in self._pieces(tensors):
                    c10d.all_reduce(host.copy_(piece))
                    piece.copy_(host)

    def _give(self, content: torch.Tensor) -> None:
        match self.way:
            case Way.IN_PLACE:
                c10d.broadcast(content, 0)
            case Way.NCCL:
                self._over([c10d.broadcast(content, 0, async_op=True)])
            case Way.THROUGH_HOST:
                for piece, host in self._pieces([content]):
                    c10d.broadcast(host.copy_(piece), 0)
                    piece.copy_(host)

    def _over(self, collectives: list[Any]) -> None:
        """Waits until these are over; not in the device's queue, from which nobody comes back."""
        pause = threading.Event().wait
        while not all(collective.is_completed() for collective in collectives):
            self._meanwhile()
            pause(_ASK_S)
        for collective in collectives:
            collective.wait()  # what is queued from now on comes behind it

    def _pieces(self, tensors: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """These tensors piece by piece, each with the host memory that it goes through."""
        assert self._host is not None
        for tensor in tensors:
            room = self._host.view(tensor.dtype)
            for piece in tensor.view(-1).split(room.numel()):
                yield piece, room[: piece.numel()]


def abort() -> None:
    """Ends all collectives of this process."""
    from torch.distributed.distributed_c10d import _abort_process_group  # torch has no public name for it

    _abort_process_group()
