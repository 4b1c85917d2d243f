"""Does a run learn the same however its steps are cut, dropout included, and what does it cost that it does.

    python benchmarks/cut.py [--steps 200] [--rounds 20]

The first half trains one model twice from the same seed, with dropout 0.1 in float32, once cut at 64 tokens and once at 1,024,
and says how far the weights are from each other. BERT 2 x 64 on made-up rows of 4 to 60 tokens in which the label can be
learnt. The second half times a micro-batch of BERT 6 x 384 with dropout drawn by row, and with the same draws from one
stream for all rows, taking turns; each pair gives a ratio. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from memsup.worker.__main__ import LIBRARIES

os.environ.update(LIBRARIES | os.environ)  # read once, when torch is loaded

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.in_place import add_in_place
from memsup.worker.compute.randomness import seed_stream
from memsup.worker.hardware import autocast, make_optimizer, start_threads
from memsup.worker.plan.batches import Order, Schedule, cut, learning_rate
from memsup.worker.plan.entry import Entry

CPU = torch.device("cpu")
CUTS = (64, 1024)
ROWS, WORDS, EFFECTIVE = 2000, 500, 16
SHAPES = ((16, 32), (8, 128), (2, 200), (1, 512))


def learn(micro_tokens: int, steps: int, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The weights before and after, and the mean loss of the last steps."""
    torch.manual_seed(1)
    config = BertConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    model = BertForSequenceClassification(config).train()
    add_in_place(model)
    before, optimizer = weights(model), make_optimizer(model, weight_decay=0.01)
    lengths = np.array([len(row) for row in rows], np.int32)
    schedule = Schedule(rows=len(rows), effective_batch=EFFECTIVE, epochs=steps * EFFECTIVE / len(rows), seed=1)
    order, plan, losses = Order(schedule), Entry(step=1, start=micro_tokens, cause="", at_unix_s=0.0), []
    for step in range(1, steps + 1):
        total = 0.0
        for micro in cut(order.batch(step), lengths[order.batch(step)], plan):
            seed_stream(1, step, micro, lengths[micro])
            ids = torch.nn.utils.rnn.pad_sequence([rows[row] for row in micro], batch_first=True)
            labels = torch.tensor([int((rows[row] < WORDS // 2).float().mean() > 0.5) for row in micro])
            logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / EFFECTIVE
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=5e-4, total_steps=steps, warmup_fraction=0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return before, weights(model), statistics.fmean(losses[-20:])


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def price(rounds: int) -> None:
    config = BertConfig(vocab_size=21_128, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    model = BertForSequenceClassification(config).train()
    add_in_place(model)
    print("| micro-batch | AMP | by row | ratio of time to one stream, median |\n|---|---|---|---|", flush=True)
    for amp in ("off", "bf16"):
        for rows, length in SHAPES:
            pairs = [tuple(micro_batch(model, amp, rows, length, way) for way in (False, True)) for _ in range(rounds)]
            ratio = statistics.median(by_row / together for together, by_row in pairs[1:])  # the first generates code
            took_s = statistics.median(by_row for _, by_row in pairs[1:])
            print(f"| {rows} x {length} | {amp} | {took_s * 1e3:.0f} ms | {ratio:.3f} |", flush=True)


def micro_batch(model: torch.nn.Module, amp: str, rows: int, length: int, is_by_row: bool) -> float:
    """Seconds of processor time: others work on the machine as well."""
    ids, labels = torch.randint(1, 21_128, (rows, length)), torch.zeros(rows, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[-1, length - length // 16 :] = 0
    began_s = time.process_time()
    seed_stream(1, 1, range(rows if is_by_row else 0), mask.sum(dim=1).tolist())
    with autocast(CPU, amp):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        with autocast(CPU, None):
            loss.backward()
    return time.process_time() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    start_threads(len(os.sched_getaffinity(0)), CPU)
    draw_by_row()
    attend_in_blocks()
    if options.steps:
        generator = torch.Generator().manual_seed(0)
        sizes = torch.randint(4, 61, (ROWS,), generator=generator).tolist()
        rows = [torch.randint(1, WORDS, (size,), generator=generator) for size in sizes]
        (before, one, loss), (_, other, other_loss) = (learn(micro_tokens, options.steps, rows) for micro_tokens in CUTS)
        difference = (one - other).abs()
        largest = (difference / torch.maximum(one.abs(), other.abs()).clamp(min=0.01)).max()
        print(f"{options.steps} steps, cut at {CUTS[0]} and at {CUTS[1]:,} tokens. The weights are apart by:")
        of_way = difference.norm() / (one - before).norm()
        print(f"* {difference.norm() / one.norm():.1e} of the norm, {of_way:.1e} of the way they went")
        print(f"* {largest:.1e} of a single weight at most (of 0.01 where it is smaller)")
        print(f"Loss of the last 20 steps: {loss:.6f} and {other_loss:.6f}.\n")
    if options.rounds:
        price(options.rounds)


if __name__ == "__main__":
    main()
