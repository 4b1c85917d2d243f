"""torch on this machine: threads, determinism, the device and its numbers' types. Nothing here knows of steps or orders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, cast

import torch

from memsup.shared.messages import FailureCause
from memsup.shared.settings import Share
from memsup.worker.compute.attention import without_idle_mask
from memsup.worker.compute.offloaded_adam import OffloadedAdamW
from memsup.worker.compute.randomness import repeated
from memsup.worker.compute.threads import find_threads
from memsup.worker.memory import CudaMemory, DeviceMemory, sent
from memsup.worker.plan.measuring import Clock, HostClock
from memsup.worker.session import GiveUp

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def start_threads(wanted: int | None, device: torch.device, *, ranks: int = 1) -> int:
    """Fixes the number of threads that compute on the host, and starts them; returns it. None means of at most
    `OMP_NUM_THREADS` the fastest number, found out by trying; where a GPU computes there is nothing to try, and it is all.
    Each of several ranks has its part of them: what they do to each other cannot be tried by one.

    Call it before memory is limited: a library that cannot start a thread aborts.
    """
    most = max(1, torch.get_num_threads() // ranks)
    threads = wanted or (find_threads(most) if device.type == "cpu" and ranks == 1 else most)
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # may be set once only
        torch.set_num_interop_threads(1)
    square = torch.ones(512, 512)
    (square @ square).add_(1).exp_()
    return threads


def choose_device(wanted: str, *, on_cpu: bool = False, or_cpu: bool = False) -> torch.device:
    """The device that `wanted` (auto, cpu, cuda or cuda:N) means here. With `on_cpu` it is the CPU all the same; with `or_cpu`
    the CPU will do where no GPU works. Raises `GiveUp`.
    """
    if on_cpu or (or_cpu and not torch.cuda.is_available()):
        wanted = "cpu"
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise GiveUp(FailureCause.BAD_INPUT, f"There is no device {wanted} here: set training.device to auto or cpu.")
    if device.type not in ("cpu", "cuda"):
        raise GiveUp(FailureCause.BAD_INPUT, f"memsup does not train on {wanted}: set training.device to auto, cpu or cuda.")
    if device.type == "cpu":
        # Costs nothing here: the same kernels in all but a few rare operations.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def cards(device: torch.device) -> int:
    """How many GPUs a run on `device` may compute on; 0 where that is a CPU."""
    if device.type != "cuda":
        return 0
    return 1 if device.index is not None else torch.cuda.device_count()


def device_of_rank(device: torch.device, rank: int, ranks: int) -> torch.device:
    """The device of one of several ranks: each has the GPU of its number, of those that torch sees. A CPU is everybody's."""
    if device.type != "cuda" or ranks == 1:
        return device
    own = torch.device("cuda", rank)
    torch.cuda.set_device(own)  # or what names no device would take memory of the first one
    return own


def device_memory(device: torch.device, limit: Share | int) -> DeviceMemory | None:
    """The memory of `device`, limited to `limit`, a share of it or bytes, beyond which torch itself says that memory is out.
    None means that it is a CPU.
    """
    if device.type != "cuda":
        return None
    memory = CudaMemory(device)
    memory.limit(int(limit.fraction * memory.total_bytes) if isinstance(limit, Share) else limit)
    return memory


def set_products(device: torch.device, amp: str | None) -> None:
    """Says how a GPU multiplies what mixed precision leaves in float32: as TF32, which rounds no more than bfloat16 does, where
    it has that. None of `amp`, and off, mean that float32 stays what it is.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = lower_precision(amp) is not None


def lower_precision(amp: str | None) -> torch.dtype | None:
    """The type that `amp` computes in. None means that nothing is lowered."""
    return _AMP.get(amp or "")


def autocast(device: torch.device, amp: str | None, *, keeps_weights: bool = True) -> AbstractContextManager[Any]:
    """Computes forward passes inside in the lower precision `amp`, if it is one. None means that nothing is lowered, as in a
    backward pass, which has the precision of each forward operation anyway. Weights that were rounded are kept to the end, or
    made anew each time.
    """
    return (
        torch.autocast(device.type, dtype=_AMP[amp], cache_enabled=keeps_weights)
        if amp in _AMP
        else torch.autocast(device.type, enabled=False)
    )


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Sends a batch on its way, without waiting for its arrival."""
    if device.type == "cpu":
        return batch
    return {name: sent(tensor, device) for name, tensor in without_idle_mask(batch).items()}


def read_figures(figures: torch.Tensor) -> list[float]:
    """Waits until the device has done all that it was given, `figures` included, and returns these."""
    return cast("list[float]", figures.tolist())


class CudaClock:
    """Time as a CUDA device passes it: a mark is reached when the device has done what it was given before. Nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record(torch.cuda.current_stream(self._device))  # not that of the first GPU
        return mark

    def elapsed_s(self, begin: Any, end: Any) -> float | None:
        return cast("float", begin.elapsed_time(end)) / 1000 if end.query() else None


def clock_of(device: torch.device) -> Clock:
    """The clock by which the work of `device` is timed."""
    return HostClock() if device.type == "cpu" else CudaClock(device)


def begin_step(optimizer: torch.optim.Optimizer, *, is_bad: torch.Tensor, divisor: torch.Tensor) -> None:
    """Has the next step of a fused `optimizer` divide gradients by `divisor`, and change nothing if `is_bad` is 1, and all if
    it is 0, as the device finds it when it comes to the step (as torch's `GradScaler` does it).
    """
    optimizer.found_inf, optimizer.grad_scale = is_bad, divisor


def set_activation_checkpointing(model: Any, on: bool) -> None:
    """Sets whether activations are computed a second time in the backward pass instead of kept: the same gradient in less
    memory.
    """
    if hasattr(model, "activation_checkpointing_enable"):  # transformers 5
        enable, disable = model.activation_checkpointing_enable, model.activation_checkpointing_disable
    else:
        enable, disable = model.gradient_checkpointing_enable, model.gradient_checkpointing_disable
    if on:
        enable({"use_reentrant": False, "context_fn": repeated})
    else:
        disable()


def place_model(model: Any, device: torch.device) -> None:
    """Moves the model to `device`, into memory of its own, one tensor at a time.

    Weights that a library read from a file may still lie in the mapped file, at whatever address its layout gave them. The last
    bits of a matrix product depend on how its operands are aligned (oneMKL, "Aligning Data for Consistent Results"), so a
    resumed run would drift. torch's own allocations all begin at a multiple of 64 bytes.
    """
    model.to(device)
    if device.type == "cpu":
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


def make_optimizer(model: Any, *, weight_decay: float, on_host: bool = False) -> torch.optim.Optimizer:
    """AdamW with all of its state allocated, and touched: it must not run out of memory when parameters change.

    Biases and normalisation weights are not decayed, as usual. It is fused, which computes in place, so that a step needs no
    memory of its own, and is the fastest on the CPU as well. The learning rate is set at each step. With `on_host` its moments
    lie in host memory (`compute/offloaded_adam.py`).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = OffloadedAdamW(groups) if on_host else torch.optim.AdamW(groups, lr=0.0, fused=True)
    new_moment = optimizer.host_moment if isinstance(optimizer, OffloadedAdamW) else torch.zeros_like
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": new_moment(parameter),
            "exp_avg_sq": new_moment(parameter),
        }
    return optimizer
