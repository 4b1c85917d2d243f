"""Rows of unequal length with and without padding on the card: how far the gradients are apart, and how long they take.

    python packing.py DEVICE

One line of JSON. A BERT-base of random weights without dropout, so that nothing is drawn; in float32, and in bfloat16 as
training computes it. On a CPU a tiny one.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.packing import pack
from memsup.worker.compute.randomness import seed_stream
from memsup.worker.hardware import autocast

device = torch.device(sys.argv[1])
rows, times = (64, 10) if device.type == "cuda" else (8, 2)
sizes: dict[str, Any] = {} if device.type == "cuda" else {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64
}  # fmt: skip
lengths = sorted(np.clip(np.random.default_rng(1).lognormal(4.0, 0.9, rows), 4, 512).astype(int).tolist(), reverse=True)


def wait() -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gradient(model: Any, *, packs: bool, amp: str) -> torch.Tensor:
    model.zero_grad()
    seed_stream(1, 1, range(rows), lengths, packs=packs)
    with autocast(device, amp):
        loss = model(**batch, labels=labels).loss
    loss.backward()
    return torch.cat([one.grad.flatten().float() for one in model.parameters() if one.grad is not None])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def seconds(model: Any, *, packs: bool) -> float:
    gradient(model, packs=packs, amp="bf16")
    began_s = wait()
    for _ in range(times):
        gradient(model, packs=packs, amp="bf16")
    return (wait() - began_s) / times


attend_in_blocks()
torch.manual_seed(1)
none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
model = BertForSequenceClassification(BertConfig(**sizes, **none)).to(device).train()
ids = torch.randint(3, 1000, (rows, lengths[0]), device=device)
mask = (torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]).long().to(device)
batch, labels = {"input_ids": ids, "attention_mask": mask}, torch.arange(rows, device=device) % 2
exact, rounded = (gradient(model, packs=False, amp=amp) for amp in ("off", "bf16"))
padded_s = seconds(model, packs=False)
can = pack(model, torch.bfloat16)
print(
    json.dumps(
        {
            "packs": can,
            "float32_apart": apart(gradient(model, packs=True, amp="off"), exact),
            "bf16_apart": apart(gradient(model, packs=True, amp="bf16"), exact),
            "bf16_padded_apart": apart(rounded, exact),
            "padded_s": padded_s,
            "packed_s": seconds(model, packs=True),
            "tokens": sum(lengths),
            "padded_tokens": rows * lengths[0],
        }
    )
)
