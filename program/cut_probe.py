"""May a step of this program be computed in parts, and how are their losses to be weighted? Asked of the program itself.

Some programs are refused by what they consist of (`refused_by_type`), the others are tried on their first batch: the loss of up
to 8 rows whole, and in two parts, in evaluation mode and without gradients (`look`); and once in training mode without dropout,
where that draws nothing then (`look_in_training`). Modes, buffers and generators are then as they were before; what else a loss
function changes, a counter of its own say, is not put back.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

from memsup import cut_generators
from memsup.cut_generators import Generators
from memsup.cut_ranks import Replicas, without_others
from memsup.cut_tree import loaded_torch
from memsup.cut_weighting import CLOSE, CLOSE_IN_LOW_NUMBERS, CLOSE_IN_LOW_PRECISION, Seen, Split, best_cuts, most_telling
from memsup.memory import give_back, is_out_of_memory

MOST_ROWS = 8


class Refusal(enum.Enum):
    """Why no step is computed in parts. Everything else that a program gets is not concerned."""

    IN_BATCH = "its loss compares the rows of a batch with each other"
    BATCH_STATISTICS = "the model normalizes by statistics of its batch (BatchNorm)"
    CHANGES_ITSELF = "the model changes its own buffers in each forward pass"
    AUXILIARY_LOSS = "its loss has a part that belongs to the whole batch, as for the experts of a mixture"
    DATA_PARALLEL = "DataParallel shares batches out to several devices; torchrun would do it so that they can be cut"
    SEVERAL_RANKS = "several ranks compute its steps, and not with DistributedDataParallel on CPUs alone"
    DRAWN_COMPLETIONS = "it learns from completions that it draws for the whole batch"
    STEPS_IN_BACKWARD = "its optimizer steps during the backward pass, so a step cannot be done again"
    NOT_A_SCALAR = "its loss is not one number in a tensor"
    NO_ROWS = "the tensors of its batches have no rows in common"
    FAILED_IN_PROBE = "its loss could not be computed for some rows of a batch"
    NO_BOUNDARY = "its training loop is one of its own, so where a step begins is not known"
    UNKNOWN = "no weighting of the parts' losses gives the loss of the whole batch"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return f"Batches that do not fit into memory cannot be computed in parts: {self.value}."


class NotAScalarError(TypeError):
    """A loss is not one number in a tensor."""


# --------------------------------------------------------------------------------------------------------------------
# By what a program consists of


def refused_by_type(modules: Sequence[Any], optimizers: Sequence[Any], replicas: Replicas) -> Refusal | None:
    """Why this program is not to be cut, by the types of what it consists of. It is None where they don't say. `replicas` are
    those of its `modules` that each rank has whole.
    """
    torch = loaded_torch()
    names = {_name(module) for module in modules}
    if "DataParallel" in names:
        return Refusal.DATA_PARALLEL
    distributed = getattr(torch, "distributed", None)
    is_shared = distributed is not None and distributed.is_available() and distributed.is_initialized()
    has_others = distributed is not None and is_shared and distributed.get_world_size() > 1
    is_wrapped = bool(names & {"DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"})
    if (has_others or is_wrapped) and not replicas.are_all:
        return Refusal.SEVERAL_RANKS
    if any(name.endswith("Lomo") or name == "LOMO" for name in map(_name, map(innermost, optimizers))):
        return Refusal.STEPS_IN_BACKWARD
    for module in modules:
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in module.parameters()):
            return Refusal.STEPS_IN_BACKWARD
        for part in module.modules():
            if _has_batch_statistics(part, module):
                return Refusal.BATCH_STATISTICS
            if _has_auxiliary_loss(part):
                return Refusal.AUXILIARY_LOSS
    return None


def _name(thing: Any) -> str:
    return type(thing).__name__


def innermost(optimizer: Any) -> Any:
    """The optimizer that a wrapper (accelerate's, say) steps."""
    inner = getattr(optimizer, "optimizer", None)
    return innermost(inner) if hasattr(inner, "param_groups") else optimizer


def _has_batch_statistics(part: Any, root: Any) -> bool:
    """Whether `part` computes statistics of its batch when `root` trains. Those that are frozen are in evaluation mode then;
    where nothing trains yet that is not to be seen.
    """
    torch = loaded_torch()
    is_kind = isinstance(part, torch.nn.modules.batchnorm._BatchNorm) or (
        "BatchNorm" in _name(part) and "Frozen" not in _name(part) and hasattr(part, "running_mean")
    )
    return is_kind and (part.training or not root.training)


def _has_auxiliary_loss(part: Any) -> bool:
    """Whether a configuration like that of transformers, or a gate like DeepSeek's, says that routing has a loss of its own, or
    that experts take only so many tokens of a batch.
    """
    if "MoEGate" in _name(part) and getattr(part, "alpha", None) and not getattr(part, "seq_aux", False):
        return True
    config = getattr(part, "config", None)
    for some in (config, getattr(config, "text_config", None)):
        coefficients = [getattr(some, name, None) for name in ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef")]
        if getattr(some, "output_router_logits", False) and any(coefficients):
            return True
        if getattr(some, "expert_capacity", None):
            return True
    return False


def has_experts(modules: Iterable[Any]) -> bool:
    """Whether something in these is called like the parts of a mixture of experts."""
    names = {_name(part).lower() for module in modules for part in module.modules()}
    return any(word in name for name in names for word in ("moe", "expert", "router"))


# --------------------------------------------------------------------------------------------------------------------
# By trying


def look(split: Split, values_of: Callable[[Any], list[float]], modules: Sequence[Any]) -> list[list[Seen]]:
    """What is seen of each value, a loss say, that `values_of` gives for some rows of a batch. Empty where not even two rows
    fit into memory. Raises what `values_of` raises otherwise.
    """
    rows = min(split.count, MOST_ROWS)
    while rows >= 2:
        begin = most_telling(split, rows)
        some = split.some(begin, begin + rows)
        try:
            with undisturbed(modules):
                return _looked(some, values_of)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        give_back()
        rows //= 2
    return []


def look_in_training(split: Split, values_of: Callable[[Any], list[float]], modules: Sequence[Any]) -> list[list[Seen]]:
    """As `look`, but in training mode, with all dropout left out: so it sees what only training has, an auxiliary loss or
    statistics of a batch. Empty where that cannot be computed, or draws random numbers all the same.
    """
    rows = min(split.count, MOST_ROWS)
    begin = most_telling(split, rows)
    seen: list[list[Seen]] = []
    with contextlib.suppress(Exception), undisturbed(modules, modes_too=False), _without_dropout():
        for module in modules:
            if not module.training:  # nothing trains yet, and who trains it will say so
                module.train()
        before = cut_generators.take()
        with warnings.catch_warnings():  # of what is computed twice without gradients, say
            warnings.simplefilter("ignore")
            found = _looked(split.some(begin, begin + rows), values_of)
        if _are_torchs_same(before, cut_generators.take()):
            seen = found
    return seen


def _are_torchs_same(some: Generators, others: Generators) -> bool:
    states = [[taken["torch"], *taken.get("cuda", [])] for taken in (some, others)]
    return len(states[0]) == len(states[1]) and all(map(_is_equal, *states))


def _without_dropout() -> Any:
    """A context in which torch's functions drop nothing. What drops in code of its own (an LSTM) does, and is noticed."""
    torch = loaded_torch()

    class NoDropout(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name, named = getattr(function, "__name__", ""), dict(kwargs or {})
            if name in {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}:
                return args[0] if args else named["input"]
            if name == "scaled_dot_product_attention" and len(args) < 5:
                named["dropout_p"] = 0.0
            elif name == "multi_head_attention_forward":
                named["training"] = False
            return function(*args, **named)

    return NoDropout()


def _looked(some: Split, values_of: Callable[[Any], list[float]]) -> list[list[Seen]]:
    whole = values_of(some.part(0, some.count))
    seen: list[list[Seen]] = [[] for _ in whole]
    for cut in best_cuts(some):
        first, second = values_of(some.part(0, cut)), values_of(some.part(cut, some.count))
        for values, each, one, other in zip(seen, whole, first, second):
            values.append(Seen(each, (one, other), some, cut))
    return seen


def scalar(loss: Any) -> Any:
    """A loss, if it is one number in a tensor. Raises `NotAScalarError`."""
    torch = loaded_torch()
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
        raise NotAScalarError(f"The loss is a {_name(loss)}, not a tensor of one number.")
    return loss.detach()


@contextlib.contextmanager
def undisturbed(modules: Sequence[Any], *, modes_too: bool = True) -> Iterator[None]:
    """Computes without gradients inside, and with `modes_too` in evaluation mode. Afterwards modes, buffers and generators are
    as before.

    Modes are set one by one, since `eval()` may do more than that (LoRA that is merged for it).
    """
    torch = loaded_torch()
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    modes = [(part, part.training) for part in parts]
    buffers = [(part, name, buffer, None if buffer is None else buffer.clone()) for part, name, buffer in _buffers(parts)]
    generators = cut_generators.take()
    try:
        for part in parts if modes_too else ():
            part.training = False
        with torch.no_grad(), _eagerly(parts), without_others():
            yield
    finally:
        for part, was_training in modes:
            part.training = was_training
        for part, name, buffer, before in buffers:
            if buffer is not None and not _is_equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)
            part._buffers[name] = buffer
        cut_generators.put_back(generators)


def _buffers(parts: Iterable[Any]) -> list[tuple[Any, str, Any]]:
    return [(part, name, buffer) for part in parts for name, buffer in list(part._buffers.items())]


def _is_equal(one: Any, other: Any) -> bool:
    return bool(loaded_torch().equal(one, other))


def _eagerly(parts: Iterable[Any]) -> contextlib.AbstractContextManager[Any]:
    """Has compiled models computed as they are written, since each new shape would be compiled for once."""
    set_stance = getattr(getattr(sys.modules.get("torch"), "compiler", None), "set_stance", None)  # torch 2.6 and newer
    return set_stance("force_eager") if set_stance is not None and is_compiled(parts) else contextlib.nullcontext()


def is_compiled(parts: Iterable[Any]) -> bool:
    """Whether a model, or a part of it, is compiled."""
    return any(_name(part) == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None for part in parts)


class Precision:
    """How exactly a program computes its loss: noticed while it does."""

    def __init__(self) -> None:
        self.close = CLOSE
        """The relative error up to which two results are the same."""

    def noted(self, value: Any) -> float:
        """The number that a result is, whose type is noted."""
        if _is_low(getattr(value, "dtype", None)):
            self.close = CLOSE_IN_LOW_NUMBERS
        return float(value)

    @contextlib.contextmanager
    def of(self, modules: Sequence[Any]) -> Iterator[None]:
        """Notes with what numbers these compute inside."""
        torch = loaded_torch()

        def note(part: Any, _inputs: Any) -> None:
            parameters = list(part.parameters(recurse=False))
            device = parameters[0].device.type
            is_rough = device == "cuda" and (_computes_in_tf32(torch) or "Conv" in _name(part))
            if is_rough or any(map(_is_low, [_autocast_dtype(torch, device), *(parameter.dtype for parameter in parameters)])):
                self.close = max(self.close, CLOSE_IN_LOW_PRECISION)

        with contextlib.ExitStack() as hooks:
            for module in modules:
                for part in module.modules():
                    if next(iter(part.parameters(recurse=False)), None) is not None:
                        hooks.callback(part.register_forward_pre_hook(note).remove)
            yield


def _is_low(dtype: Any) -> bool:
    """Whether these numbers have fewer digits than float32, as those of 8 and 4 bits have that are computed with in 16."""
    return dtype is not None and not str(dtype).endswith(("float32", "float64"))


def _computes_in_tf32(torch: Any) -> bool:
    """Whether a GPU multiplies matrices with fewer digits than float32 has. Convolutions it does so unless told otherwise."""
    try:
        return bool(torch.get_float32_matmul_precision() != "highest")
    except RuntimeError:  # both of torch's ways to say so were used
        return True


def _autocast_dtype(torch: Any, device: str) -> Any:
    """What is computed with instead of float32. It is None where nothing is."""
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and newer
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


class Buffers:
    """The buffers of a model at one time, to see whether training changes them."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._parts = list({id(part): part for module in modules for part in module.modules()}.values())
        self._before = [
            (part, name, buffer, buffer._version) for part, name, buffer in _buffers(self._parts) if buffer is not None
        ]

    def have_changed(self) -> bool:
        """Whether one of them has other values now."""
        for part, name, buffer, version in self._before:
            now = part._buffers.get(name)
            if buffer._version != version:
                return True
            if now is not None and now is not buffer and (now.shape != buffer.shape or not _is_equal(now, buffer)):
                return True
        return False
