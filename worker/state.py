"""The training state as a checkpoint's files, and back.

    config.json, model*.safetensors, tokenizer files    as Hugging Face lays them out: `from_pretrained` loads the folder
    optimizer*.safetensors                              each parameter's state, as `<parameter>.<exp_avg, exp_avg_sq, step>`
    state.json                                          `State`, below

Covers the way between torch's tensors and the store's, a bounded piece at a time; nothing is pickled. What lies on a device
passes through a piece of page-locked memory (`staging`), into which the device writes and the file is read; None of it means
that everything lies on the host. How a folder becomes
durable, verified and old is the business of `checkpoint/`; when one is written is decided in `saving.py`. What is kept in
memory between two checkpoints is the same without what stays as it is: configuration and tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from memsup.checkpoint import in_memory
from memsup.checkpoint.draft import Draft
from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.in_memory import InMemory
from memsup.checkpoint.reading import read_json
from memsup.checkpoint.tensors import Tensor, open_tensors
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding
from memsup.worker.plan.position import Position

FORMAT = 1
STATE_FILE = "state.json"
WEIGHTS, OPTIMIZER = "model", "optimizer"
"""Stems of the safetensors files."""

_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Tick = Callable[[], None]


class Evaluated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of an evaluation, and the step after which it was made."""

    step: int
    metrics: dict[str, float]


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything but tensors that the next step depends on, and what is told of the run, as it is after `step` steps."""

    format: int = FORMAT
    run_id: str
    fingerprint: str
    """The fingerprint of the data; see `tasks.Prepared`."""
    step: int
    seed: int
    effective_batch: int
    padding: Padding | None = None
    """Where rows are padded, as was found out of the model before it had learnt. None stands in checkpoints of an earlier
    version."""
    device: str | None = None
    """Where it was computed: cpu or cuda. None stands in checkpoints of an earlier version."""
    threads: int
    """How many threads computed; another number gives other bits."""
    torch_version: str
    shared: bool = False
    """Whether ranks shared the model (`ranks/sharded.py`), which has other bits."""
    plan: Entry
    """The plan that holds for the step after this one."""
    digest: str
    loss: float | None
    """The loss of the last step. None means that no step was taken."""
    loss_scale: float
    steps_at_scale: int
    evaluated: Evaluated | None
    best: Evaluated | None
    """The best result so far, of those that are finite."""
    without_rise: int = 0
    """How many evaluations in a row there were since the best one."""
    trained_s: float
    """The time of work in all lives of the run, pauses left out."""
    stream: Position | None = None
    """Where the run is in data that are read as a stream. None means that they are not."""


@dataclass(frozen=True)
class Rows:
    """What one rank has of a tensor (`ranks/sharded.py`)."""

    own: torch.Tensor
    shape: tuple[int, ...]
    """That of the whole tensor."""
    first: int | None
    """The row of the whole tensor with which `own` begins. None means that every rank has the whole."""

    @property
    def are_shared(self) -> bool:
        return self.first is not None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.own.element_size()


class SharedOut(Protocol):
    """A model that ranks share, as one that is saved (`ranks/sharded.py`)."""

    def __call__(self, stem: str, tick: Tick, staging: torch.Tensor | None) -> Iterator[tuple[str, list[Tensor]]]:
        """What is saved, as `_outgoing_tensors` gives it."""
        ...


class Weights(Protocol):
    """What of a model is saved, and in which files."""

    stem: str
    """That of the safetensors files."""
    is_whole: bool
    """Whether the folder has all that `from_pretrained` needs. Otherwise it needs other weights beside it."""

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """The tensors to save, and to read over, by the names that they have in the files."""
        ...

    def describe(self, model: Any, folder: Path) -> None:
        """Writes what belongs beside the tensors. Raises OSError."""
        ...


class WholeModel:
    """All weights, as `from_pretrained` of transformers finds them."""

    stem = WEIGHTS
    is_whole = True

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        return model_tensors(model)

    def describe(self, model: Any, folder: Path) -> None:
        # Otherwise `from_pretrained` of a bare AutoModel finds no class.
        model.config.architectures = [_class_of(model).__name__]
        model.config.save_pretrained(folder)


def _class_of(model: Any) -> type:
    """The model's own class: FSDP2 puts one of its own in front."""
    return next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.distributed."))


def write_state(
    draft: Draft,
    state: State,
    *,
    weights: Weights,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    tick: Tick,
    staging: torch.Tensor | None = None,
    shared_out: SharedOut | None = None,
) -> None:
    """Fills `draft`; calls `tick` with each piece written. `shared_out` gives the tensors of a model that ranks share. Raises
    OSError.
    """
    found = _outgoing_tensors(weights, model, optimizer, tick, staging)
    if shared_out is not None:
        found = shared_out(weights.stem, tick, staging)
    for stem, tensors in found:
        draft.write_tensors(stem, tensors, in_one=stem == weights.stem and not weights.is_whole)
    weights.describe(model, draft.folder)
    tokenizer.save_pretrained(draft.folder)
    draft.write_json(STATE_FILE, state)


def keep_state(
    draft: in_memory.Draft,
    state: State,
    *,
    weights: Weights,
    model: Any,
    optimizer: torch.optim.Optimizer,
    staging: torch.Tensor | None = None,
) -> None:
    """Fills a `draft` in memory with what changes from step to step; what else is in a checkpoint's folder does not. Raises
    OSError, and whatever the draft's `tick` raises.
    """
    for stem, outgoing in _outgoing_tensors(weights, model, optimizer, lambda: None, staging):
        draft.write_tensors(stem, outgoing)
    draft.write_json(STATE_FILE, state)


def read_state(source: Path | InMemory) -> State:
    """Reads the state of a verified checkpoint. Raises `Damaged` where it is of another format."""
    state: State = source.json(STATE_FILE, State) if isinstance(source, InMemory) else read_json(source, STATE_FILE, State)
    if state.format != FORMAT:
        raise Damaged(f"{STATE_FILE} has format {state.format}; this version of memsup reads {FORMAT}.")
    return state


def model_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that `from_pretrained` wants to find: of tied ones only the one that the others are tied to."""
    derived = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    written: dict[Any, str] = {}
    for name in sorted(tensors, key=lambda name: name in derived):  # stable: otherwise the model's own order
        tensor = tensors[name]
        written.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name, name)
    kept = set(written.values())
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of the optimizer's state, named `<parameter>.<key>`."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def read_tensors(
    source: Path | InMemory,
    stem: str,
    targets: Mapping[str, torch.Tensor | Rows],
    tick: Tick,
    staging: torch.Tensor | None = None,
) -> None:
    """Copies the checkpoint's tensors, or some of their rows, over `targets`, through a small buffer of host memory.

    Raises `Damaged` unless names, types and shapes are exactly those of `targets`.
    """
    missing = dict(targets)
    buffer = None if staging is None else memoryview(staging.numpy())
    for tensor in source.tensors(stem, buffer) if isinstance(source, InMemory) else open_tensors(source, stem, buffer):
        target = missing.pop(tensor.name, None)
        if target is None:
            raise Damaged(f"{stem} has {tensor.name}, which the model does not have.")
        rows = target if isinstance(target, Rows) else Rows(target, tuple(target.shape), None)
        if tensor.dtype != _SAFETENSORS_NAMES.get(rows.own.dtype) or tensor.shape != rows.shape:
            raise Damaged(
                f"{stem} has {tensor.name} as {tensor.dtype} {tensor.shape}, the model as {rows.own.dtype} {rows.shape}."
            )
        _copy_in(tensor, rows, tick)
    if missing:
        raise Damaged(f"{stem} lacks {len(missing)} tensors, among them {next(iter(missing))}.")


def _copy_in(tensor: Tensor, rows: Rows, tick: Tick) -> None:
    target = rows.own
    flat = target.detach().view(-1) if target.is_contiguous() else torch.empty(target.numel(), dtype=target.dtype)
    into = flat.view(torch.uint8)
    place = 0
    begin = (rows.first or 0) * rows.row_bytes
    for chunk in tensor.chunks() if rows.first is None else tensor.part(begin, begin + len(into)):
        into[place : place + len(chunk)].copy_(torch.frombuffer(chunk, dtype=torch.uint8))
        place += len(chunk)
        tick()
    if not target.is_contiguous():
        target.detach().copy_(flat.view(target.shape))


def _outgoing_tensors(
    weights: Weights, model: Any, optimizer: torch.optim.Optimizer, tick: Tick, staging: torch.Tensor | None
) -> Iterator[tuple[str, list[Tensor]]]:
    """What is saved of model and optimizer, with the stems of the files that it goes into."""
    for stem, tensors in ((weights.stem, weights.tensors(model)), (OPTIMIZER, optimizer_tensors(model, optimizer))):
        yield stem, [_outgoing(name, tensor, tick, staging) for name, tensor in tensors.items()]


def _outgoing(name: str, tensor: torch.Tensor, tick: Tick, staging: torch.Tensor | None = None) -> Tensor:
    return outgoing(name, tensor, tuple(tensor.shape), partial(pieces_of, tensor, tick, staging))


def outgoing(name: str, like: torch.Tensor, shape: tuple[int, ...], chunks: Callable[[], Iterator[memoryview]]) -> Tensor:
    """A tensor to be written, of the type of `like`."""
    return Tensor(name, _SAFETENSORS_NAMES[like.dtype], shape, chunks)


def pieces_of(tensor: torch.Tensor, tick: Tick, staging: torch.Tensor | None) -> Iterator[memoryview]:
    """Row-major bytes in small pieces: pieces of the tensor itself where it lies on the host, else of `staging`, each
    overwritten by the next.
    """
    stays = staging is None or tensor.is_pinned()
    for piece in _pieces(tensor.detach()):
        content = piece.view(torch.uint8)
        if not stays:
            assert staging is not None
            content = staging[: len(content)].copy_(content)
        yield memoryview(content.numpy())
        tick()


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Contiguous parts of `tensor` in row-major order, small ones."""
    if tensor.is_contiguous() or tensor.ndim == 1 or tensor.numel() * tensor.element_size() <= PIECE_BYTES:
        flat = tensor.contiguous().view(-1)
        count = PIECE_BYTES // tensor.element_size()
        yield from (flat[start : start + count] for start in range(0, len(flat), count))
    else:
        for row in tensor:
            yield from _pieces(row)
