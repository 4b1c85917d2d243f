"""A model that is shared out to the ranks (`training.shard`): each has some rows of every weight, of its gradient and of its
moments, so a model is trained that no rank has room for alone.

torch's FSDP2 (`fully_shard`) does the computing: each layer's weights are gathered when it is their turn, and let go behind it;
its gradient is added up over the ranks at once, and each keeps the rows that are its own. Here is what stands around that: what
is gathered together, the own rows as plain tensors for the optimizer (which changes each number by itself, so any rows will
do), and how a checkpoint has all rows although no rank has: the others hand theirs over, a piece at a time, to the first, which
writes them as ever. So a checkpoint has the same files as any other, and any number of ranks goes on with it.

Whoever computes waits for the others within each layer. So all compute as many micro-batches, cut by one plan, which is rank
0's, and none can do its part again alone. Knows gloo and CPUs; nothing in it minds the device, and no other was tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import NotWritten
from memsup.checkpoint.tensors import Tensor
from memsup.shared.data.errors import InputError
from memsup.shared.log import log
from memsup.worker.compute.rounding import round_together
from memsup.worker.hardware import lower_precision, make_optimizer
from memsup.worker.state import OPTIMIZER, Rows, Weights, optimizer_tensors, outgoing, pieces_of

_LARGE_TABLE = 1 << 18
"""A table of tokens of so many numbers or more is gathered by itself."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK_BYTES, _KEPT_BYTES = 1 << 20, 16 << 20
"""What counts as a large block, and how much of what is free at the end of the heap is kept (mallopt(3))."""
_REQUEST = struct.Struct("<qI")
"""What rank 0 asks for: the step after which, and the tensor's place in `Sharded.tensors`."""

Tick = Callable[[], None]


def give_back_large_blocks() -> None:
    """Has the C library give a large block of memory back to the kernel as soon as it is free. Left alone it keeps what one
    layer had, and takes more for the next, which has other sizes: of a model of 8 x 768 some 440 MiB after three steps, more
    than is saved by sharing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


CALLS_LAYERS_BY_ITSELF = {"squeezebert"}
"""Kinds of models whose layers are used without being called, so that their weights would not be gathered."""


def gathered_apart(model: Any) -> list[torch.nn.Module]:
    """The parts of `model` whose weights are gathered by themselves, one after the other: its layers, and a large table of
    tokens. What is used in more than one place stays with the rest of the model, which is gathered for the whole of a pass; so
    do other tables, of which a model may take the weights without calling them (DeBERTa's of relative positions). Raises
    InputError where that is so of layers.
    """
    if model.config.model_type in CALLS_LAYERS_BY_ITSELF:
        raise InputError(
            f"{type(model).__name__} calls its layers in a way of its own, so it cannot be shared out to ranks: leave out "
            "training.shard, and each rank has all of it."
        )
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack if not isinstance(layer, torch.nn.ModuleList | torch.nn.ModuleDict)]
    within = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    table = None
    with contextlib.suppress(NotImplementedError):  # of some models transformers does not know which it is
        table = model.get_input_embeddings()
    is_large = isinstance(table, torch.nn.Embedding) and table.weight.numel() >= _LARGE_TABLE
    uses = Counter(id(own) for module in model.modules() for own in module.parameters(recurse=False))
    found = {id(part): part for part in (*layers, *([table] if is_large else [])) if id(part) not in within}
    return [part for part in found.values() if any(True for _ in part.parameters()) and _is_used_here_alone(part, uses)]


def _is_used_here_alone(part: torch.nn.Module, uses: Counter[int]) -> bool:
    return all(uses[id(parameter)] == 1 for parameter in part.parameters())


def rows_of(rank: int, ranks: int, rows: int) -> tuple[int, int]:
    """The first row of a tensor that `rank` has, and the one behind its last, as FSDP2 shares `rows` out."""
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)


class Sharded:
    """What this rank has of a model, and of its optimizer's state."""

    def __init__(self, model: Any, weights: Weights, device: torch.device, *, rank: int, ranks: int, settings: Any) -> None:
        """Shares `model` out, which all ranks have alike, and which are to have met. `settings` are those of the training."""
        self.rank, self.ranks = rank, ranks
        lower = lower_precision(settings.amp)
        if lower is not None and device.type == "cpu":
            round_together(model)
        if device.type == "cpu":
            give_back_large_blocks()
        saved = list(weights.tensors(model))
        mesh = DeviceMesh(device.type, list(range(ranks)))
        for part in (*gathered_apart(model), model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # each loss has its share of the whole already
                module.set_force_sum_reduction_for_comms(True)  # which gloo knows, and no other
        for buffer in model.buffers():
            buffer.data = buffer.data.clone(memory_format=torch.preserve_format)  # as `hardware.place_model` has it
        shared = {name: one for name, one in model.named_parameters() if isinstance(one, DTensor)}
        own = {name: _own_rows(one) for name, one in shared.items()}
        self._learns = {name: torch.nn.Parameter(own[name]) for name, one in shared.items() if one.requires_grad}
        self._pairs = [(parameter, shared[name]) for name, parameter in self._learns.items()]
        self.optimizer = make_optimizer(self, weight_decay=settings.weight_decay)
        others = dict(model.named_buffers(remove_duplicate=False))
        names = {id(one): name for name, one in shared.items()}
        by_name = {name: names.get(id(one)) for name, one in model.named_parameters(remove_duplicate=False)}
        self.weights: dict[str, Rows] = {}
        for name in saved:
            found = by_name.get(name)
            self.weights[name] = _whole(others[name]) if found is None else self._rows(own[found], shared[found])
        self.moments = {
            name: self._rows(tensor, shared[name.rpartition(".")[0]]) if tensor.ndim else _whole(tensor)
            for name, tensor in optimizer_tensors(self, self.optimizer).items()
        }
        self.tensors = [*self.weights.values(), *self.moments.values()]
        """What is saved, in the order in which rank 0 asks for it."""
        self._room = memoryview(bytearray(PIECE_BYTES))
        """What other ranks' rows pass through, taken now: where memory has run out there is something to be saved."""
        self._unread_bytes = [0] * ranks
        """What each rank still sends of a tensor that it was asked for, where a save was given up in the middle of it."""
        self._rest = threading.Condition()
        self._step = 0

    def _rows(self, own: torch.Tensor, whole: torch.Tensor) -> Rows:
        begin, end = rows_of(self.rank, self.ranks, whole.shape[0])
        assert len(own) == end - begin, "torch shares rows out otherwise than is known here"
        return Rows(own, tuple(whole.shape), begin)

    # ---------------------------------------------------------------------------------------------------------------
    # The own rows, for the optimizer

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The own rows of what learns."""
        yield from self._learns.values()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The same with the names of the model's."""
        yield from self._learns.items()

    def take_gradients(self) -> None:
        """Has the own rows have their gradients, of which FSDP2 keeps the sums."""
        for parameter, shared in self._pairs:
            if shared.grad is not None:
                parameter.grad, shared.grad = shared.grad.to_local(), None

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """The norm of the whole gradient, of which `own` is that of the own rows. All ranks are to ask."""
        squares = own.double().square().cpu()
        c10d.all_reduce(squares)
        return squares.sqrt().to(own)

    def has_taken(self, step: int) -> None:
        """Says that the state is that after `step`, until the next one is taken."""
        with self._rest:
            self._step = step
            self._rest.notify_all()

    # ---------------------------------------------------------------------------------------------------------------
    # A checkpoint has all rows

    def outgoing(
        self, stem: str, ends: list[socket.socket], step: int, tick: Tick, staging: torch.Tensor | None
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """For rank 0: what is saved, with the stems of its files. Whoever reads it reads the own rows first, then those of each
        other rank, from its end of `ends`. Reading raises `NotWritten` where a rank is gone.
        """
        place = 0
        for name_of_files, tensors in ((stem, self.weights), (OPTIMIZER, self.moments)):
            found = []
            for name, rows in tensors.items():
                chunks = partial(self._all_rows, place, rows, ends, step, tick, staging)
                found.append(outgoing(name, rows.own, rows.shape, chunks))
                place += 1
            yield name_of_files, found

    def _all_rows(
        self, place: int, rows: Rows, ends: list[socket.socket], step: int, tick: Tick, staging: torch.Tensor | None
    ) -> Iterator[memoryview]:
        yield from pieces_of(rows.own, tick, staging)
        if not rows.are_shared:
            return
        for rank, end in enumerate(ends, start=1):
            begin, behind = rows_of(rank, self.ranks, rows.shape[0])
            with _blamed_on(rank):
                for _ in self._rest_of(rank, end):  # or it would be taken for the beginning of what is asked for now
                    tick()
                end.sendall(_REQUEST.pack(step, place))
                self._unread_bytes[rank] = (behind - begin) * rows.row_bytes
                for piece in self._rest_of(rank, end):
                    yield piece
                    tick()

    def _rest_of(self, rank: int, end: socket.socket) -> Iterator[memoryview]:
        """What another rank still sends of what it was asked for. Raises OSError where it is gone."""
        while left := self._unread_bytes[rank]:
            count = end.recv_into(self._room[: min(left, PIECE_BYTES)])
            if count == 0:
                raise ConnectionError
            self._unread_bytes[rank] -= count
            yield self._room[:count]

    def hand_over(self, end: socket.socket, staging: torch.Tensor | None = None) -> None:
        """For another rank: hands over its rows of whatever rank 0 asks for, in a thread, whatever else is computed: they do
        not change before rank 0 says so. Where that fails this rank ends, or rank 0 would wait for the rest for ever.
        """
        threading.Thread(target=self._hand_over, args=(end, staging), name="parts", daemon=True).start()

    def _hand_over(self, end: socket.socket, staging: torch.Tensor | None) -> None:
        try:
            while len(asked := end.recv(_REQUEST.size, socket.MSG_WAITALL)) == _REQUEST.size:
                step, place = _REQUEST.unpack(asked)
                with self._rest:
                    while self._step < step:
                        self._rest.wait()
                for piece in pieces_of(self.tensors[place].own, _nothing, staging):
                    end.sendall(piece)
        except OSError:  # rank 0 is gone, which this one notices elsewhere
            pass
        except Exception:
            log.exception("This rank cannot hand over what it has, so it ends")
            os._exit(1)


def _nothing() -> None:
    """Nobody is told of a piece that is handed over."""


@contextlib.contextmanager
def _blamed_on(rank: int) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise NotWritten(
            f"The checkpoint could not be written: rank {rank} is gone, which had a part of each weight. Older ones count."
        ) from None


def _own_rows(parameter: DTensor) -> torch.Tensor:
    """The memory in which a rank has its rows."""
    return parameter.to_local().detach()


def _whole(tensor: torch.Tensor) -> Rows:
    """What all ranks have alike."""
    return Rows(tensor.detach(), tuple(tensor.shape), None)
