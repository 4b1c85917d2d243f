"""Two parts of a micro-batch computed side by side (`worker/compute/lanes.py`) against one: taking turns, step against step.

    python benchmarks/lanes.py [--steps 20]

BERT 6 x 384 on real reviews, 16 a step, cut at 512 tokens. *One lane* cuts a step into micro-batches of up to 512 tokens, each
computed with all threads; *two lanes* takes twice as many tokens and computes the halves side by side with half of the threads
each. Both train the same rows of the same model in each pair of steps; the ratio is of the pair, the median over the pairs is
told. Memory is how far the process rose above what it held before the first step of a kind. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from boxed import CONFIG, VOCABULARY, make_job

from memsup.worker.__main__ import LIBRARIES

os.environ.update(LIBRARIES | dict(os.environ))  # read once, when torch is loaded

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from memsup.worker.compute import embedding
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.in_place import add_in_place
from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.randomness import seed_stream
from memsup.worker.hardware import autocast, make_optimizer, start_threads
from memsup.worker.memory import Peak, hand_back
from memsup.worker.plan.batches import cut, split
from memsup.worker.plan.cost import Costs
from memsup.worker.plan.entry import Entry

CPU = torch.device("cpu")
EFFECTIVE, TOKENS, WARM_UP_STEPS = 16, 512, 3
COSTS = Costs(start=40.0, per_square=0.0005, per_size=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rows = reviews(EFFECTIVE * (options.steps + WARM_UP_STEPS))
    print(
        "| AMP | one lane, a step | two lanes | ratio, median | one lane's rise | two lanes' |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for amp in ("off", "bf16"):
        pairs, rises = [], [0, 0]
        ways = [Way(amp, lanes) for lanes in (1, 2)]
        for step in range(options.steps + WARM_UP_STEPS):
            batch = rows[EFFECTIVE * step :][:EFFECTIVE]
            took = [way.step(batch) for way in (ways if step % 2 else reversed(ways))]
            pairs.append(took if step % 2 else took[::-1])
        del pairs[:WARM_UP_STEPS]
        rises = [way.rise_bytes >> 20 for way in ways]
        one_ms, two_ms = (1e3 * statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(two / one for one, two in pairs)
        print(
            f"| {amp} | {one_ms:.0f} ms | {two_ms:.0f} ms | {ratio:.2f} | {rises[0]} MiB | {rises[1]} MiB |",
            flush=True,
        )


def reviews(count: int) -> list[list[int]]:
    """Their tokens."""
    import csv

    with tempfile.TemporaryDirectory() as folder:
        make_job(Path(folder), count)
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
        with (Path(folder) / "train.csv").open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
    found: list[list[int]] = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    return found


class Way:
    """One model with its optimizer, trained in so many lanes."""

    def __init__(self, amp: str, lanes: int, *, in_place: bool = True) -> None:
        """Without `in_place` linear layers are torch's own."""
        threads = start_threads(len(os.sched_getaffinity(0)), torch.device("cpu"))
        model = BertForSequenceClassification(BertConfig(**CONFIG | {"vocab_size": VOCABULARY})).train()
        if in_place:
            add_in_place(model)
        else:
            for table in filter(embedding.is_plain, model.modules()):
                embedding.add_in_place(table)
        draw_by_row()
        attend_in_blocks()
        self.amp, self.lanes, self.optimizer = amp, Lanes(model, lanes, threads), make_optimizer(model, weight_decay=0.01)
        self.plan = Entry(step=1, start=TOKENS * lanes, lanes=lanes, costs=COSTS, cause="", at_unix_s=0.0)
        self.rise_bytes = 0

    def step(self, rows: list[list[int]]) -> float:
        """Seconds."""
        lengths, numbers = np.array([len(row) for row in rows], np.int32), np.arange(len(rows))
        hand_back()
        peak = Peak(None)
        held_bytes = peak.begin()
        began_s = time.perf_counter()
        with self.lanes.step(partial(autocast, CPU, self.amp)):
            for micro in cut(numbers, lengths, self.plan):
                parts = split(micro, lengths[micro], self.plan)
                self.lanes.run([partial(self.part, [rows[number] for number in part]) for part in parts])
        self.lanes.gather()
        self.optimizer.step()
        self.lanes.drop()
        took_s = time.perf_counter() - began_s
        self.rise_bytes = max(self.rise_bytes, peak.end() - held_bytes)
        return took_s

    def part(self, rows: list[list[int]], model: Any) -> None:
        lengths = [len(row) for row in rows]
        seed_stream(1, 1, range(len(rows)), lengths, packs=self.plan.packed)
        longest = max(lengths)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=torch.zeros(len(rows), dtype=torch.long)).loss
        with autocast(CPU, None):
            loss.backward()


if __name__ == "__main__":
    main()
