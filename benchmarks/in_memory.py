"""What it costs to keep the newest state in memory: BERT 6 x 384, trained in this process, with it and without it in turns.

    python benchmarks/in_memory.py [--pairs 5] [--seconds 20]

By account: the time and the processor time in which the state is written, sealed and handed over, the median of five, as parts
of the seconds between two that the supervisor chooses for that. By the clock: a pair is twice the same number of steps, about
so many seconds; after one half of it, first or second by turns, the state is handed over once, and what the halves took makes a
ratio. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit.lone_supervisor import tiny_settings
from kit.one_life import one_life

from memsup.shared.descriptors import receive_with_descriptor
from memsup.supervisor.decide.run.in_memory import interval_s
from memsup.worker import saving, train
from memsup.worker.kept import Lifeline
from memsup.worker.training import Training

LAYERS, HIDDEN, WORDS = 6, 384, 21_128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsup-in-memory-") as folder:
        os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        threads = len(os.sched_getaffinity(0))
        settings = tiny_settings(
            Path(folder), rows=4000, words=40, hidden=HIDDEN, training__threads=threads, training__effective_batch=16
        )
        file = Path(str(settings.task.model)) / "config.json"
        size = {"num_hidden_layers": LAYERS, "num_attention_heads": 6, "intermediate_size": 4 * HIDDEN, "vocab_size": WORDS}
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | size), encoding="utf-8")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one_life(settings) as training, ours:
            training.session.lifeline = Lifeline(theirs.detach())
            compare(training, ours, options.pairs, options.seconds)


def compare(training: Training, supervisor: socket.socket, pairs: int, seconds: float) -> None:
    steps_for(training, 2)
    held, found = -1, []
    for _ in range(5):
        found.append(keep(training))
        held = take(supervisor, held)
    wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
    every_s, lifeline = interval_s(wall), training.session.lifeline
    assert lifeline is not None
    of_processors = cpu / every_s / len(os.sched_getaffinity(0))
    print("| state | written in | processor time | each | of the time | of the processors |\n|---|---|---|---|---|---|")
    print(
        f"| {lifeline.size_bytes >> 20} MiB | {wall:.2f} s | {cpu:.2f} s | {every_s:.0f} s | {wall / every_s:.2%} "
        f"| {of_processors:.2%} |\n",
        flush=True,
    )
    steps = max(1, round(seconds / (steps_for(training, 5) / 5))) if pairs else 0
    ratios = []
    for pair in range(pairs):
        took = {}
        for with_it in (True, False) if pair % 2 else (False, True):
            took[with_it] = steps_for(training, steps)
            if with_it:
                took[True] += keep(training)[0]
                held = take(supervisor, held)
        ratios.append(took[True] / took[False])
        print(f"pair {pair + 1}: {took[False]:.2f} s without, {took[True]:.2f} s with it: {ratios[-1]:.4f}", flush=True)
    if ratios:
        print(f"\nWith / without, by the clock: {statistics.median(ratios):.4f} (median of {pairs} pairs).")


def steps_for(training: Training, steps: int) -> float:
    """Takes so many steps, and returns how long that took."""
    began_s = time.monotonic()
    for _ in range(steps):
        train.take_step(training)
    return time.monotonic() - began_s


def take(supervisor: socket.socket, held: int) -> int:
    """Takes the state that was handed over, and lets go of the one `held` before, as the supervisor does; returns its
    descriptor.
    """
    _, fd = receive_with_descriptor(supervisor, 512)
    assert fd is not None
    if held >= 0:
        os.close(held)
    return fd


def keep(training: Training) -> tuple[float, float]:
    """Hands the state over, and returns the seconds and the processor time that this took."""
    lifeline = training.session.lifeline
    assert lifeline is not None
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    lifeline.every_s = 1e-9
    saving.keep_if_due(training)
    took = time.monotonic() - began_s, time.process_time() - began_cpu_s
    lifeline.every_s = None
    return took


if __name__ == "__main__":
    main()
