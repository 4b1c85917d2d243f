"""Part e: AdamW with its moments in host memory: the same bits as with moments on the card, and what it costs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from lines import Finding
from stage import BASE, MIB, TINY, Stage
from transformers import BertConfig, BertForSequenceClassification

from memsup.worker.hardware import make_optimizer

TITLE = "e. The optimizer in host memory"
DEADLINE_S = 40.0
STEPS = 12
PROMISES = {
    "same_bits": "Weights and moments are the same to the last bit.",
    "room": "The moments' eight bytes for each weight are not held on the card.",
    "price": "A step costs at most 0.25 s for 100 million weights.",
}


def prove(stage: Stage) -> Iterator[Finding]:
    ends, step_s, held = {}, {}, {}
    for on_host in (False, True):
        ends[on_host], step_s[on_host], held[on_host], weights = _train(stage, on_host)
    differ = [name for name, tensor in ends[False].items() if not torch.equal(tensor, ends[True][name])]
    yield Finding(
        key="same_bits",
        held=not differ,
        measured=f"{len(differ)} of {len(ends[False])} tensors differ after {STEPS} steps",
        figures={"tensors": len(ends[False]), "different": len(differ)},
    )
    saved = held[False] - held[True]
    if stage.rehearses:
        yield Finding(key="room", held=None, measured="this needs CUDA")
    else:
        told = f"{saved / MIB:.0f} MiB less are held, of 8 bytes for each of {weights / 1e6:.0f} million weights"
        yield Finding(
            key="room", held=saved >= 0.7 * 8 * weights, measured=told, figures={"saved_bytes": saved, "weights": weights}
        )
    price_s = step_s[True] - step_s[False]
    yield Finding(
        key="price",
        held=stage.judged(price_s * 1e8 / weights <= 0.25),
        measured=f"{step_s[True] * 1000:.1f} ms for the optimizer's step in place of {step_s[False] * 1000:.2f}",
        figures={"on_host_s": step_s[True], "on_device_s": step_s[False], "weights": weights},
    )


def _train(stage: Stage, on_host: bool) -> tuple[dict[str, torch.Tensor], float, int, int]:
    """Tensors at the end, seconds of an optimizer's step, bytes held on the card between steps, weights."""
    gc.collect()
    torch.manual_seed(7)
    device = torch.device(stage.device)
    before = _allocated(device)
    model = BertForSequenceClassification(BertConfig(**(TINY if stage.rehearses else BASE | {"vocab_size": 21128}))).to(device)
    optimizer = make_optimizer(model, weight_decay=0.01, on_host=on_host)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    took_s: list[float] = []
    for step in range(STEPS):
        generator = torch.Generator(device).manual_seed(step)
        for parameter in model.parameters():  # made up: the way back through a model need not give the same bits twice
            parameter.grad = torch.randn(parameter.shape, device=device, generator=generator)
        _wait(device)
        began_s = time.perf_counter()
        optimizer.step()
        _wait(device)
        took_s.append(time.perf_counter() - began_s)
        optimizer.zero_grad(set_to_none=True)
    held = _allocated(device) - before
    tensors: dict[str, torch.Tensor] = {name: value.detach().cpu() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        state: Any = optimizer.state[value]
        tensors |= {f"{name}.{moment}": state[moment].cpu() for moment in ("exp_avg", "exp_avg_sq")}
    return tensors, statistics.median(took_s[2:]), held, sum(p.numel() for p in model.parameters())


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
