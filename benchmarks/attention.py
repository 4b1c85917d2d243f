"""What it saves to draw dropout and to compute attention as `worker/compute/dropout.py` and `attention.py` do: taking turns.

    python benchmarks/attention.py [--rounds 8] [--dropout 0.1]
    python benchmarks/attention.py --alone [--rounds 8]

BERT 6 x 384 with dropout, micro-batches of several shapes, on all CPUs; each pair gives a ratio. Memory is how far the
process rose above what it held before, at most. Then the error of attention itself in bfloat16, result and gradients, as a part
of what they are in float64, for scores of several sizes, beside transformers' "eager" way and torch's; there without dropout,
which each draws in its own way. Prints Markdown.

`--alone` is attention without dropout under mixed precision, forward and backward, nine heads of 64 as SmolLM2-135M has, on one
thread, by the time of the processor, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from memsup.worker.__main__ import LIBRARIES

os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, BertConfig, BertForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from memsup.worker.compute.attention import _attend, _Attention, attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.in_place import add_in_place
from memsup.worker.hardware import autocast, start_threads
from memsup.worker.memory import Peak, hand_back

WORDS = 21_128
SHAPES = ((16, 32), (8, 128), (2, 200), (1, 512), (4, 512))
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    if options.alone:
        alone(options.rounds)
        return
    start_threads(len(os.sched_getaffinity(0)), torch.device("cpu"))
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    drops = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    config = BertConfig(vocab_size=WORDS, **sizes, **drops)
    torchs_dropout = torch.nn.functional.dropout
    usual, cheap = (BertForSequenceClassification(config).train() for _ in range(2))
    for model in (usual, cheap):
        add_in_place(model)
        micro_batch(model, "off", 1, 8)  # its gradients have their memory
    print("| micro-batch | AMP | torch's | memsup's | ratio of time, median | torch's rise | memsup's |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    for amp in ("off", "bf16"):
        for rows, length in SHAPES:
            pairs = []
            for _ in range(options.rounds + 1):
                AttentionInterface.register("sdpa", sdpa_attention_forward)
                torch.nn.functional.dropout = torchs_dropout
                before = micro_batch(usual, amp, rows, length)
                attend_in_blocks()
                draw_by_row()
                pairs.append((before, micro_batch(cheap, amp, rows, length)))
            times = pairs[1:]  # the first generates code
            (before_s, after_s), ratio = (
                [statistics.median(pair[side][0] for pair in times) for side in (0, 1)],
                statistics.median(after[0] / before[0] for before, after in times),
            )
            rises = [max(pair[side][1] for pair in times) >> 20 for side in (0, 1)]
            print(
                f"| {rows} x {length} | {amp} | {before_s * 1e3:.0f} ms | {after_s * 1e3:.0f} ms | {ratio:.2f} "
                f"| {rises[0]} MiB | {rises[1]} MiB |",
                flush=True,
            )
    print("\n| standard deviation of the scores | memsup's | eager | torch's |\n|---|---|---|---|", flush=True)
    for deviation in (1, 3, 6):
        print(f"| {deviation} | " + " | ".join(f"{error:.2%}" for error in errors(deviation)) + " |", flush=True)


def alone(rounds: int) -> None:
    torch.set_num_threads(1)
    decoder = torch.nn.Identity()
    decoder.is_causal = True
    print("| micro-batch | torch's | memsup's | ratio of time, median |\n|---|---|---|---|", flush=True)
    for rows, length in ((1, 64), (4, 64), (16, 48), (2, 256), (1, 512), (1, 1024)):
        inputs = [torch.randn(rows, 9, length, 64, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        direction = torch.randn(rows, length, 9, 64, dtype=torch.bfloat16)
        pairs = []
        for _ in range(rounds + 1):
            took_s = []
            for way in (sdpa_attention_forward, _attend):
                began_s = time.process_time()
                with autocast(CPU, "bf16"):
                    way(decoder, *inputs, None)[0].backward(direction)
                took_s.append(time.process_time() - began_s)
            pairs.append(took_s)
        torchs, memsups = (statistics.median(pair[side] for pair in pairs[1:]) for side in (0, 1))
        ratio = statistics.median(after / before for before, after in pairs[1:])
        print(f"| {rows} x {length} | {torchs * 1e3:.2f} ms | {memsups * 1e3:.2f} ms | {ratio:.2f} |", flush=True)


def errors(deviation: float) -> list[float]:
    """The largest of result and three gradients, each by its norm."""
    torch.manual_seed(1)
    query, key, value, direction = (torch.randn(2, 6, 200, 64) for _ in range(4))
    inputs = [part.bfloat16() for part in (query * deviation, key, value)]

    def memsups(*parts: torch.Tensor) -> torch.Tensor:
        return _Attention.apply(*parts, None, 64**-0.5, 2**-18).transpose(1, 2)  # a probability that is rounded to none

    def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.transpose(2, 3) * 64**-0.5
        return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value

    def found(way: Callable[..., torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        parts = [part.to(dtype).requires_grad_() for part in inputs]
        result = way(*parts)
        return [result.detach(), *torch.autograd.grad(result, parts, direction.bfloat16().to(dtype))]

    exact = found(scaled_dot_product_attention, torch.float64)
    return [
        max(
            float((part.double() - right).norm() / right.norm())
            for part, right in zip(found(way, torch.bfloat16), exact, strict=True)
        )
        for way in (memsups, eager, scaled_dot_product_attention)
    ]


def micro_batch(model: torch.nn.Module, amp: str, rows: int, length: int) -> tuple[float, int]:
    """Seconds and bytes."""
    ids, labels = torch.randint(1, WORDS, (rows, length)), torch.zeros(rows, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[-1, length - length // 16 :] = 0
    hand_back()
    peak = Peak(None)
    held_bytes = peak.begin()
    began_s = time.perf_counter()
    with autocast(CPU, amp):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        with autocast(CPU, None):
            loss.backward()
    return time.perf_counter() - began_s, peak.end() - held_bytes


if __name__ == "__main__":
    main()
