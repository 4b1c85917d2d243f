"""Does the built-in job learn as much with memsup's attention and dropout as with torch's: the same seeds, each way.

    python benchmarks/learning.py [--seeds 42 1 2 3 4] [--ways torch memsup] [--amp bf16] [--results FILE]

Weights, order of rows and cuts are the same for a seed in all ways, dropout's draws are not. Each run is a process of its own
with one thread, as many at once as there are CPUs: what is measured here does not depend on the clock. The cut is fixed. One
pass over the 31,607 rows each, a few minutes a run. `--results` takes one line of JSON for each run; started again, what is in
there is not run again. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from memsup.worker.__main__ import LIBRARIES

MICRO_TOKENS = 1024
LAST_STEPS = 200

Result = dict[str, Any]


def learn(seed: int, way: str, amp: str, home: Path) -> Result:
    """One run."""
    os.environ.update(LIBRARIES | dict(os.environ))  # read once, when torch is loaded
    import numpy as np
    import torch

    from memsup.shared.loading import load
    from memsup.shared.paths import RunPaths
    from memsup.worker.compute.attention import attend_in_blocks
    from memsup.worker.compute.dropout import draw_by_row
    from memsup.worker.compute.in_place import add_in_place
    from memsup.worker.compute.randomness import seed_everything
    from memsup.worker.hardware import autocast, make_optimizer, place_model, start_threads
    from memsup.worker.plan.batches import Order, Schedule, cut, learning_rate
    from memsup.worker.plan.entry import Entry
    from memsup.worker.tasks import find_task

    start_threads(1, torch.device("cpu"))
    import memsup.shared

    job = Path(memsup.shared.__file__).parent / "demo/memsup.toml"
    settings = load(job_file=job, flags=[f"training.seed={seed}"], environment={}).settings
    training, task, cpu = settings.training, find_task(settings.task.kind, settings.task.problem_type), torch.device("cpu")
    (home / "state").mkdir()
    prepared = task.load(settings, RunPaths("learning", state=home / "state", runtime=home / "runtime"), lambda: None)
    model, rows = prepared.model, prepared.train
    place_model(model, cpu)
    add_in_place(model)
    if way == "memsup":
        draw_by_row()
        attend_in_blocks()
    optimizer = make_optimizer(model, weight_decay=training.weight_decay)
    schedule = Schedule(rows=len(rows), effective_batch=16, epochs=training.epochs, seed=seed)
    order, plan, losses = Order(schedule), Entry(step=1, start=MICRO_TOKENS, cause="", at_unix_s=0.0), []
    for step in range(1, schedule.total_steps + 1):
        model.train()
        batch, loss_of_step = order.batch(step), 0.0
        with autocast(cpu, amp):
            for micro in cut(batch, rows.lengths[batch], plan):
                seed_everything(seed, step, micro, rows.lengths[micro])
                loss = task.loss(model, rows.batch(micro)) / len(batch)
                with autocast(cpu, None):
                    loss.backward()
                loss_of_step += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.most_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=training.learning_rate, total_steps=schedule.total_steps, warmup_fraction=training.warmup
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss_of_step)
    model.eval()
    metrics = task.new_metrics()
    with torch.no_grad(), autocast(cpu, amp):
        for part in np.array_split(np.arange(len(prepared.evaluation)), 100):
            metrics.add(model, prepared.evaluation.batch(part))
    return {
        "seed": seed,
        "way": way,
        "amp": amp,
        "accuracy": metrics.result()["accuracy"],
        "evaluation_loss": metrics.result()["loss"],
        "last_loss": statistics.fmean(losses[-LAST_STEPS:]),
        "losses": [round(statistics.fmean(losses[i : i + 50]), 4) for i in range(0, len(losses), 50)],
    }


def table(results: list[Result], ways: list[str]) -> Iterator[str]:
    yield "| seed | " + " | ".join(f"accuracy, {way}'s | loss of the last {LAST_STEPS} steps" for way in ways) + " |"
    yield "|---" * (1 + 2 * len(ways)) + "|"
    for seed in sorted({result["seed"] for result in results}):
        of = {result["way"]: result for result in results if result["seed"] == seed}
        cells = [f"{of[way]['accuracy']:.1%} | {of[way]['last_loss']:.3f}" if way in of else "not run |" for way in ways]
        yield f"| {seed} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", default=["torch", "memsup"])
    parser.add_argument("--amp", default="bf16", choices=["bf16", "off"])
    parser.add_argument("--results", type=Path, default=Path("learning.jsonl"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, way, home = options.child
        print(json.dumps(learn(int(seed), way, options.amp, Path(home))))
        return
    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    results: list[Result] = [found for found in map(json.loads, lines) if found["amp"] == options.amp]
    done = {(result["seed"], result["way"]) for result in results}
    missing = [(seed, way) for seed in options.seeds for way in options.ways if (seed, way) not in done]

    def run(which: tuple[int, str]) -> None:
        with tempfile.TemporaryDirectory(prefix="memsup-learning-") as home:
            command = [sys.executable, __file__, "--amp", options.amp, "--child", *map(str, which), home]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        results.append(json.loads(told))
        with options.results.open("a", encoding="utf-8") as file:
            file.write(told + "\n")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, missing))
    print("\n".join(table(results, options.ways)))


if __name__ == "__main__":
    main()
