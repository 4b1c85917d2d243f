"""How long libgomp's threads should spin before they sleep (`LIBRARIES` in `worker/__main__.py`): steps in turns.

    python benchmarks/spinning.py [--rounds 6] [--turns 1000 30000 300000] [--beside 0 1]

One process for each number of turns has BERT 6 x 384 in bfloat16 and does a step of eight micro-batches of two rows, as long as
in real data, on all CPUs; one after the other, so that all meet the same machine. `--beside`: so many other programs that never
sleep. The ratio is the median, over the rounds, of a step's time against that of the first number. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

LENGTHS = (400, 300, 200, 150, 100, 80, 60, 40)
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turns", type=int, nargs="+", default=[1_000, 30_000, 300_000])
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        steps()
        return
    print("| others | turns | step, median | ratio |\n|---|---|---|---|", flush=True)
    with contextlib.ExitStack() as ends:
        children = [ends.enter_context(child(turns)) for turns in options.turns]
        for others in options.beside:
            with contextlib.ExitStack() as beside:
                for _ in range(others):
                    beside.enter_context(running(subprocess.Popen(BUSY)))
                rounds = [[step_s(one) for one in children] for _ in range(options.rounds + 1)][1:]
            for place, turns in enumerate(options.turns):
                step = statistics.median(times[place] for times in rounds)
                ratio = statistics.median(times[place] / times[0] for times in rounds)
                print(f"| {others} | {turns:,} | {step:.2f} s | {ratio:.2f} |", flush=True)


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def child(turns: int) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    environment = os.environ | {"GOMP_SPINCOUNT": str(turns)}
    command = [sys.executable, __file__, "--child"]
    return running(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True))


def step_s(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    return float(process.stdout.readline())


def steps() -> None:
    """A step for each line that is read; prints its seconds."""
    from memsup.worker.__main__ import LIBRARIES

    os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from memsup.worker.compute.attention import attend_in_blocks
    from memsup.worker.compute.dropout import draw_by_row
    from memsup.worker.compute.in_place import add_in_place
    from memsup.worker.hardware import autocast

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cpu = torch.device("cpu")
    config = BertConfig(vocab_size=21_128, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    model = BertForSequenceClassification(config).train()
    add_in_place(model)
    draw_by_row()
    attend_in_blocks()
    for _ in sys.stdin:
        began_s = time.perf_counter()
        with autocast(cpu, "bf16"):
            for length in LENGTHS:
                ids, labels = torch.randint(1, 21_128, (2, length)), torch.zeros(2, dtype=torch.long)
                mask = torch.ones_like(ids)
                mask[-1, length - 3 :] = 0
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                with autocast(cpu, None):
                    loss.backward()
        model.zero_grad(set_to_none=True)
        print(time.perf_counter() - began_s, flush=True)


if __name__ == "__main__":
    main()
