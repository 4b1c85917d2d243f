"""Does `torch.compile` pay on a CPU? Micro-batches of many shapes with and without it, taking turns, and what it costs before.

    python benchmarks/compile.py [--rounds 8]

BERT 6 x 384 with 21,128 words, on all CPUs, with dynamic shapes, since a run's micro-batches have hundreds of them. Needs a C++
compiler, as whoever compiles on a CPU does. Prints Markdown: the ratio of time for each shape, the seconds that compiling took,
what it added to resident memory, and after how long a run has that back.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path

from memsup.worker.__main__ import LIBRARIES

os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded

import torch
from transformers import BertConfig, BertForSequenceClassification

from memsup.worker.embedding import add_in_place
from memsup.worker.hardware import autocast, start_threads

MICRO_BATCHES, WORDS = 8, 21_128
SHAPES = ((1, 24), (8, 32), (4, 64), (3, 110), (2, 256), (1, 480))
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    start_threads(len(os.sched_getaffinity(0)))
    for amp in ("off", "bf16"):
        compare(amp, options.rounds)


def compare(amp: str, rounds: int) -> None:
    config = BertConfig(vocab_size=WORDS, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    eager = BertForSequenceClassification(config).train()
    compiled_from = BertForSequenceClassification(config).train()
    for model in (eager, compiled_from):
        add_in_place(model)
    compiled = torch.compile(compiled_from, dynamic=True)
    eager_s = MICRO_BATCHES * sum(step_s(eager, amp, shape) for shape in SHAPES)  # its first steps make code too, of oneDNN
    began_s, before_bytes = time.perf_counter(), resident_bytes()
    for shape in SHAPES:
        step_s(compiled, amp, shape)
    compiling_s, added_bytes = time.perf_counter() - began_s - eager_s, resident_bytes() - before_bytes
    print(f"\nAMP {amp}:\n\n| micro-batch | eager | compiled | ratio of time, median |\n|---|---|---|---|", flush=True)
    saved_fraction = []
    for shape in SHAPES:
        pairs = [in_turns(eager, compiled, amp, shape) for _ in range(rounds)]
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(compiled_s / eager_s for eager_s, compiled_s in pairs)
        saved_fraction.append(1 - ratio)
        print(f"| {shape[0]} x {shape[1]} | {before * 1e3:.1f} ms | {after * 1e3:.1f} ms | {ratio:.2f} |", flush=True)
    saved = statistics.mean(saved_fraction)
    pays = f"a run has it back after {compiling_s / saved / 60:.0f} min" if saved > 0 else "it never comes back"
    print(f"\nCompiling took {compiling_s:.0f} s and {added_bytes / 2**20:.0f} MiB; {pays}.", flush=True)


def in_turns(eager: torch.nn.Module, compiled: torch.nn.Module, amp: str, shape: tuple[int, int]) -> tuple[float, float]:
    """Seconds of a micro-batch of each, in an order that chance decides."""
    if random.random() < 0.5:
        first = step_s(eager, amp, shape)
        return first, step_s(compiled, amp, shape)
    second = step_s(compiled, amp, shape)
    return step_s(eager, amp, shape), second


def step_s(model: torch.nn.Module, amp: str, shape: tuple[int, int]) -> float:
    """Seconds of a micro-batch, on average over a step."""
    model.zero_grad(set_to_none=True)
    ids, labels = torch.randint(1, WORDS, shape), torch.zeros(shape[0], dtype=torch.long)
    began_s = time.perf_counter()
    with autocast(CPU, amp):
        for _ in range(MICRO_BATCHES):
            loss = model(input_ids=ids, labels=labels).loss
            with autocast(CPU, None):
                loss.backward()
    return (time.perf_counter() - began_s) / MICRO_BATCHES


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
