"""Would torch.compile pay on a CPU? What it takes of time and memory before the first step, and of each micro-batch afterwards.

    python benchmarks/compiled.py [--amp bf16] [--rounds 8]

BERT 6 x 384 as it is (`usual`), with memsup's attention, dropout and embeddings (`memsup`), and compiled by torch for any shape
(`compiled`, which needs a C++ compiler), each in a process of its own with all threads: micro-batches of several shapes, the
first of each kind apart. Compiling has to win back what it took: prints after how many samples it has. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from memsup.worker.__main__ import LIBRARIES

SHAPES = ((16, 24), (6, 60), (3, 120), (2, 200), (1, 400))
WAYS = ("usual", "memsup", "compiled")
SAMPLES = sum(rows for rows, _ in SHAPES)


def measure(way: str, amp: str, rounds: int) -> dict[str, Any]:
    os.environ.update(LIBRARIES | dict(os.environ))  # read once, when torch is loaded
    import torch
    from boxed import CONFIG, VOCABULARY
    from transformers import BertConfig, BertForSequenceClassification

    from memsup.worker.compute.attention import attend_in_blocks
    from memsup.worker.compute.dropout import draw_by_row
    from memsup.worker.compute.in_place import add_in_place
    from memsup.worker.hardware import autocast, start_threads

    start_threads(len(os.sched_getaffinity(0)), torch.device("cpu"))
    model: Any = BertForSequenceClassification(BertConfig(**CONFIG | {"vocab_size": VOCABULARY})).train()
    if way == "memsup":
        add_in_place(model)
        draw_by_row()
        attend_in_blocks()
    if way == "compiled":
        model = torch.compile(model, dynamic=True)

    def micro_batch(rows: int, length: int) -> float:
        ids = torch.randint(1, VOCABULARY, (rows, length))
        began_s = time.perf_counter()
        with autocast(torch.device("cpu"), amp):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.zeros(rows, dtype=torch.long)).loss
        loss.backward()
        return time.perf_counter() - began_s

    first_s = sum(micro_batch(*shape) for shape in SHAPES)
    again_s = [statistics.median(micro_batch(*shape) for _ in range(rounds)) for shape in SHAPES]
    held = [resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"first_s": first_s, "again_s": again_s, "peak_mib": held[0], "largest_child_mib": held[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amp", default="bf16", choices=["bf16", "off"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.amp, options.rounds)))
        return
    names = " | ".join(f"{rows} x {length}" for rows, length in SHAPES)
    print(f"| {options.amp} | first of each shape, together | {names} | samples/s | peak, MiB (largest child) |")
    print("|---" * (len(SHAPES) + 4) + "|", flush=True)
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--amp", options.amp, "--rounds", str(options.rounds), "--child", way]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"| {way} | failed: {done.stderr.strip().splitlines()[-1][:100]} |")
            continue
        found[way] = seen = json.loads(done.stdout.splitlines()[-1])
        times = " | ".join(f"{took_s * 1e3:.0f} ms" for took_s in seen["again_s"])
        rate = SAMPLES / sum(seen["again_s"])
        peak = f"{seen['peak_mib']:,} ({seen['largest_child_mib']:,})"
        print(f"| {way} | {seen['first_s']:.1f} s | {times} | {rate:.1f} | {peak} |", flush=True)
    if {"memsup", "compiled"} <= found.keys():
        saved_s = (sum(found["memsup"]["again_s"]) - sum(found["compiled"]["again_s"])) / SAMPLES
        lost_s = found["compiled"]["first_s"] - found["memsup"]["first_s"]
        won = f"after {lost_s / saved_s:,.0f} samples" if saved_s > 0 else "never"
        print(f"\nAgainst memsup's own ways compiling has won back its time {won}.")


if __name__ == "__main__":
    main()
