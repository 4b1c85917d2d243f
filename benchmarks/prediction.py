"""Does the memory model predict? The peak of each step against what was predicted for it, and what the planner itself takes.

    python benchmarks/prediction.py [--seconds 40]

Three sizes of BERT, in float32 and bfloat16, each trained by `memsup start` with nothing tuned, on the reviews of `boxed.py`
cut at 512 tokens, in a box of 6 GiB (root, cgroup version 1). The report's history has the error of each second's step, as a
part of the measured peak; what counts is after 50 steps. Then the planner is given made-up measurements of the middle size's
steps, and the time of its work is compared with theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from boxed import CONFIG, LOOK_S, MEMSUP, Steps, box, environment, make_job, memsup_start

from memsup.worker.plan.batches import cut, split
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.footprint import shape_of
from memsup.worker.plan.planner import Planner

GIB = 2**30
SIZES = {
    "2 x 128": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
    "6 x 384": {},
    "12 x 768": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
AFTER_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="of training after the first 50 steps")
    options = parser.parse_args()
    print(
        "| BERT | AMP | steps | readings | error, median | largest | peak of the tree |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    step_s = 1.0
    for size in SIZES:
        for amp in ("off", "bf16"):
            seen = run(size, amp, options.seconds)
            errors = sorted(seen["errors"])
            print(
                f"| {size} | {amp} | {seen['steps']:,} | {len(errors)} | {statistics.median(errors):.1%} | {errors[-1]:.1%} "
                f"| {seen['peak_bytes'] / GIB:.2f} GiB |",
                flush=True,
            )
            if (size, amp) == ("6 x 384", "bf16"):
                step_s = seen["step_s"]
    mine_s = own_time_s()
    print(f"\nThe planner takes {mine_s * 1000:.2f} ms a step: {mine_s / step_s:.2%} of one of 6 x 384, bf16 ({step_s:.3f} s).")


def run(size: str, amp: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="memsup-prediction-") as folder:
        work, home = Path(folder), Path(folder) / "home"
        home.mkdir()
        make_job(work, 3200, CONFIG | SIZES[size])
        settings = ["training.epochs=100", "training.max_length=512", "checkpoint.every=1h", f"training.amp={amp}"]
        steps = Steps(home / "state/bench/audit.txt")
        with box(6 * GIB) as limits:
            child = limits.start(memsup_start(work, *settings), environment(home), home / "log")
            until_s = time.monotonic() + 1200
            while time.monotonic() < until_s and child.poll() is None:
                limits.look()
                steps.look(time.monotonic())
                if len(steps.done_at_s) > AFTER_STEPS:
                    until_s = min(until_s, steps.done_at_s[AFTER_STEPS] + seconds)
                time.sleep(LOOK_S)
            if child.poll() is not None or len(steps.done_at_s) <= AFTER_STEPS:
                sys.exit(f"{size}, {amp} did not get beyond {AFTER_STEPS} steps:\n{(home / 'log').read_text()[-2000:]}")
            subprocess.run([*MEMSUP, "stop", "--now", "--run", "bench"], env=environment(home), capture_output=True, check=True)
            child.wait()
            seen = limits.look()
        points = [json.loads(line) for line in (home / "state/bench/history.jsonl").read_text().splitlines()]
    return {
        "errors": [p["prediction_error"] for p in points if p.get("prediction_error") is not None and p["step"] > AFTER_STEPS],
        "steps": len(steps.done_at_s),
        "step_s": 1 / steps.per_s(AFTER_STEPS, len(steps.done_at_s)),
        "peak_bytes": seen.rss_bytes,
    }


def own_time_s(count: int = 1000) -> float:
    """Of what the planner does in a step, cuts and looks included; the mean of the first `count` steps of a run."""
    random = np.random.default_rng(1)
    planner, plan = (
        Planner(limit_bytes=4 * GIB, longest=512, may_checkpoint=True),
        Entry(step=1, start=128, lanes=2, activation_checkpointing=True, cause="the settings", at_unix_s=0.0),
    )
    lengths = np.clip(random.lognormal(4.0, 0.9, (count + 40, 16)), 4, 512).astype(np.int32)
    took_s = 0.0
    for step in range(1, count + 1):
        began_s = time.perf_counter()
        planner.compute_in(plan.lanes_used)
        for rows in cut(np.arange(16), lengths[step], plan):
            shape = shape_of([lengths[step][part] for part in split(rows, lengths[step][rows], plan)])
            checkpointed = plan.checkpoints_activations(shape.length)
            planner.predicted_peak_bytes(shape, checkpointed=checkpointed)
            measured_s, peak = 0.003 + shape.tokens * 3e-4 * (1 + random.exponential(0.1)), 500_000_000 + 600_000 * shape.tokens
            planner.observe(shape, checkpointed=checkpointed, peak_bytes=peak, before_bytes=500_000_000)
            planner.observe_time(shape, checkpointed=checkpointed, took_s=measured_s)
        planner.begin_step(500_000_000)
        planner.leak(lambda: 500_000_000)
        change = planner.look(step + 1, plan, lambda: list(lengths[step + 1 : step + 33]))  # noqa: B023
        took_s += time.perf_counter() - began_s
        if change is not None:
            plan = Entry(**{name: getattr(plan, name) for name in plan.__struct_fields__} | change.fields)
    return took_s / count


if __name__ == "__main__":
    main()
