"""Adding an embedding's gradient where it is kept (`worker/compute/embedding.py`): steps with and without, taking turns.

    python benchmarks/embedding.py [--rounds 12]

BERT 6 x 384 with 30,522 words, a step of eight micro-batches, on all CPUs; each pair of steps gives a ratio. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from memsup.worker.__main__ import LIBRARIES

os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded

import torch
from transformers import BertConfig, BertForSequenceClassification

from memsup.worker.compute import embedding
from memsup.worker.hardware import autocast, start_threads

MICRO_BATCHES, WORDS = 8, 30_522
SHAPES = ((1, 16), (4, 64), (2, 256))
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    start_threads(len(os.sched_getaffinity(0)), torch.device("cpu"))
    config = BertConfig(vocab_size=WORDS, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    usual, in_place = BertForSequenceClassification(config).train(), BertForSequenceClassification(config).train()
    for table in filter(embedding.is_plain, in_place.modules()):
        embedding.add_in_place(table)
    print("| micro-batch | AMP | usual | in place | ratio of time, median |\n|---|---|---|---|---|", flush=True)
    for amp in ("off", "bf16"):
        for rows, length in SHAPES:
            pairs = [(step_s(usual, amp, rows, length), step_s(in_place, amp, rows, length)) for _ in range(options.rounds + 1)]
            before, after = (statistics.median(times) for times in zip(*pairs[1:], strict=True))  # the first generates code
            ratio = statistics.median(after_s / before_s for before_s, after_s in pairs[1:])
            print(f"| {rows} x {length} | {amp} | {before * 1e3:.1f} ms | {after * 1e3:.1f} ms | {ratio:.2f} |", flush=True)


def step_s(model: torch.nn.Module, amp: str, rows: int, length: int) -> float:
    """Seconds of a micro-batch, on average over a step."""
    model.zero_grad(set_to_none=True)
    ids, labels = torch.randint(1, WORDS, (rows, length)), torch.zeros(rows, dtype=torch.long)
    began_s = time.perf_counter()
    with autocast(CPU, amp):
        for _ in range(MICRO_BATCHES):
            loss = model(input_ids=ids, labels=labels).loss
            with autocast(CPU, None):
                loss.backward()
    return (time.perf_counter() - began_s) / MICRO_BATCHES


if __name__ == "__main__":
    main()
