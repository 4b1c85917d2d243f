"""At which share of what this machine can multiply a training step computes, and where the rest of its time goes.

    python benchmarks/peak.py [--lengths 128 512] [--steps 6] [--amp off bf16] [--operations]

All in one process and one minute, so that what is compared is the same machine. *Peak* is the rate at which the matrix products
of the job's own layers are made, one after the other and nothing between them: forward, and both of the backward pass, each at
the quickest of many times; with one thread, with two threads, and in two lanes of one thread each. *Copy* is how fast a tensor
larger than all caches is copied. Then steps of BERT 6 x 384 on real reviews, 16 samples each, in two lanes and without padding
(`packing.py`): useful operations are those of its real tokens by torch's own count, and the share is useful operations /
seconds / peak, the better of two threads and two lanes. `--operations` adds which kinds of work take the time, by torch's
profiler. Prints Markdown.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from boxed import CONFIG
from lanes import CPU, EFFECTIVE, reviews
from packing import Packed
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from memsup.worker.hardware import start_threads

TOKENS, WARM_UP_STEPS, PEAK_S, COPY_BYTES = 512, 2, 0.25, 1 << 28
PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16}
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--amp", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        of_job(Path(options.job[0]), int(options.job[1]), options.job[2])
        return
    threads = len(os.sched_getaffinity(0))
    start_threads(threads, CPU)
    rows = reviews(EFFECTIVE * (options.steps + WARM_UP_STEPS))
    peaks = {}
    print(f"| AMP | 1 thread | {threads} threads | 2 lanes |\n|---|---|---|---|", flush=True)
    for amp in options.amp:
        found = peak(PRECISIONS[amp], threads)
        peaks[amp] = max(found)
        print(f"| {amp} | " + " | ".join(f"{rate / 1e9:.0f} GFLOP/s" for rate in found) + " |", flush=True)
    print(f"\nCopy: {copy_rate() / 1e9:.1f} GB/s read and as much written.\n")
    print("| cut at | AMP | useful, a sample | a step | samples/s | share of the peak |\n|---|---|---|---|---|---|", flush=True)
    for length in options.lengths:
        cut = [row[:length] for row in rows]
        useful = useful_operations([len(row) for row in cut[EFFECTIVE * WARM_UP_STEPS :]])
        for amp in options.amp:
            way, took_s = Packed(amp, 2), []
            for step in range(options.steps + WARM_UP_STEPS):
                took_s.append(way.step(cut[EFFECTIVE * step :][:EFFECTIVE]))
            in_all_s = sum(took_s[WARM_UP_STEPS:])
            samples = EFFECTIVE * options.steps
            print(
                f"| {length} | {amp} | {useful / samples / 1e9:.2f} GFLOP | {1e3 * statistics.median(took_s):.0f} ms "
                f"| {samples / in_all_s:.1f} | {useful / in_all_s / peaks[amp]:.0%} |",
                flush=True,
            )
    if options.operations:
        for length in options.lengths:
            for amp in options.amp:
                operations(amp, [row[:length] for row in rows])


def of_job(folder: Path, length: int, amp: str) -> None:
    """Prints the useful operations of a sample of `tiers.py`'s rows, cut at `length`, and the peak now."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lengths = [len(row) for row in tokenizer(texts, truncation=True, max_length=length)["input_ids"]]
    print(json.dumps([useful_operations(lengths) / len(lengths), max(peak(PRECISIONS[amp], len(os.sched_getaffinity(0))))]))


def peak(dtype: torch.dtype, threads: int) -> tuple[float, float, float]:
    """Floating point operations a second with one thread, with all of them, and in two lanes of half of them each."""
    torch.set_num_threads(1)
    one = rate(dtype)
    torch.set_num_threads(threads)
    every = rate(dtype)
    torch.set_num_threads(max(1, threads // 2))
    with ThreadPoolExecutor(2) as pool:
        for other in [pool.submit(torch.set_num_threads, max(1, threads // 2)) for _ in range(2)]:
            other.result()
        both = sum(pool.map(rate, [dtype, dtype]))
    torch.set_num_threads(threads)
    return one, every, both


def rate(dtype: torch.dtype) -> float:
    """Operations a second of the three products of all layers of a job's model, each at its quickest."""
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    operations = seconds = 0.0
    for inputs, outputs, count in ((width, width, 4), (width, inner, 1), (inner, width, 1)):
        x, gradient = torch.randn(TOKENS, inputs).to(dtype), torch.randn(TOKENS, outputs).to(dtype)
        weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
        ways: list[Work] = [
            lambda x=x, weight=weight, bias=bias: torch.nn.functional.linear(x, weight, bias),
            lambda gradient=gradient, weight=weight: gradient @ weight,
            lambda gradient=gradient, x=x: gradient.T @ x,
        ]
        for way in ways:
            operations += count * 2 * TOKENS * inputs * outputs
            seconds += count * quickest(way)
    return operations / seconds


def quickest(work: Work) -> float:
    """Seconds."""
    until_s, best_s = time.perf_counter() + PEAK_S / 3, float("inf")
    while (began_s := time.perf_counter()) < until_s:
        work()
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s


def copy_rate() -> float:
    """Bytes a second that are read, and as many written."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    return COPY_BYTES / min(quickest(lambda: target.copy_(source)) for _ in range(3))


def useful_operations(lengths: list[int]) -> float:
    """Of forward and backward pass of rows of these lengths, none of them padded. It is counted for three lengths, each without
    computing (on "meta"), and is a polynomial of the second degree in between.
    """
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**CONFIG, attn_implementation="eager"))
    counted = {length: _counted(model, length) for length in (64, 128, 256)}
    import numpy as np

    line = np.polyfit(list(counted), list(counted.values()), 2)
    return float(sum(np.polyval(line, length) for length in lengths))


def _counted(model: torch.nn.Module, length: int) -> int:
    ids = torch.ones(1, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=torch.zeros(1, dtype=torch.long, device="meta")).loss.backward()
    return counter.get_total_flops()


KINDS = {
    "attention, its own products included": ("_PackedAttention", "_Attention"),
    "dropout": ("_Drop",),
    "linear layers: products": ("aten::mm", "aten::addmm"),
    "activation function": ("aten::gelu",),
    "normalisation": ("aten::native_layer_norm",),
    "embedding": ("_LookUp",),
    "optimizer and the gradient's norm": ("aten::_fused_adamw_", "aten::_foreach_norm"),
    "linear layers: biases, adding to the gradient": ("_Multiply",),
    "rounding, and back": ("aten::_to_copy", "aten::_foreach_copy_", "aten::copy_"),
    "sums of the residual stream and its gradients": ("aten::add", "aten::add_"),
}
"""Kinds of work by the names of operations. An operation belongs to the kind of the outermost one around it that is in here,
but products belong to themselves."""


def operations(amp: str, rows: list[list[int]]) -> None:
    """Prints what takes the time of a step, in one lane on one thread, since profiling two at a time says little."""
    way = Packed(amp, 1)
    torch.set_num_threads(1)
    for step in range(WARM_UP_STEPS):
        way.step(rows[EFFECTIVE * step :][:EFFECTIVE])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for step in range(WARM_UP_STEPS, len(rows) // EFFECTIVE):
            way.step(rows[EFFECTIVE * step :][:EFFECTIVE])
    spent: Counter[str] = Counter()
    for event in profiler.events():
        spent[_kind(event)] += event.self_cpu_time_total
    print(f"\n| {amp}, cut at {max(map(len, rows))} | part of the time |\n|---|---|")
    for kind, took in spent.most_common():
        print(f"| {kind} | {took / spent.total():.1%} |", flush=True)


def _kind(event: Any) -> str:
    found, around = "everything else", event
    while around is not None:
        for kind, names in KINDS.items():
            if around.name.removesuffix("Backward").removesuffix("_backward") in names:
                found = kind
        around = around.cpu_parent
        if found == "linear layers: products":
            break
    return found


if __name__ == "__main__":
    main()
