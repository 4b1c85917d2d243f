"""Part b: the built-in job and a BERT-base on the card, beside Hugging Face's Trainer and the card's own matrix peak."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lines import Finding, attempt
from stage import GIB, HERE, Stage

from memsup.shared.status import Status

TITLE = "b. The main job"
DEADLINE_S = 250.0
EFFECTIVE, TRAINER_ROWS = 64, (16, 32, 64)
"""Sixteen samples a step, as tiers have it, leave such a card waiting for Python, whoever trains."""
ROWS, HELD_OUT = 16_000, 1_500
"""Together no more than half of the reviews, so that they are taken from all over."""
RATE = 1e-4
PROMISES = {
    "peak": "The card's own rate of bfloat16 matrix products is measured, for what follows.",
    "built_in": "The built-in job finishes, and learns what it learns on a CPU (81 %, to 3 points).",
    "auto": "`start --tier auto`, nothing else said, trains a BERT-base without one death.",
    "memory": "It keeps to limits.vram, and finds a plan of its own.",
    "prediction": "The peak of a step is predicted to 5 % in the middle of all steps.",
    "packing": "Layers without padding say what padded rows say, to rounding; and how much faster.",
    "waits": "A step waits for the device once, as torch's profiler counts it; and what it takes, by operation.",
    "speed": "In bfloat16, 64 samples a step, it is at least as fast as 0.95 of the best of three Trainers (the goal is 1.15).",
    "accuracy": "After the same steps it is as accurate as Trainer, to 3 points.",
}
CPU_ACCURACY = 0.81


@dataclass
class Watch:
    """What is seen of a run while it trains."""

    errors: dict[int, float] = field(default_factory=dict)
    """Of the predicted peak, by step, as a part of the measured one."""
    peak_bytes: int = 0
    used_bytes: int = 0
    """On the device in all, others and the driver included."""
    micro_tokens: int | None = None

    def look(self, status: Status) -> None:
        batch, step = status.batch, status.progress.step
        self.micro_tokens = batch.micro_tokens or self.micro_tokens
        if batch.peak_bytes:
            self.peak_bytes = max(self.peak_bytes, batch.peak_bytes)
            if batch.predicted_bytes and step is not None:
                self.errors[step] = abs(batch.predicted_bytes - batch.peak_bytes) / batch.peak_bytes
        self.used_bytes = max([self.used_bytes, *(gpu.used_bytes or 0 for gpu in status.gpus)])


def prove(stage: Stage) -> Iterator[Finding]:
    flop_per_s: float | None = None
    for finding in attempt(["peak"], lambda: [_peak_flops(stage)]):
        flop_per_s = finding.figures.get("flop_per_s")
        yield finding
    yield from attempt(["built_in"], lambda: [_built_in(stage)])
    scale = 100 if stage.quick else 10 if stage.rehearses else 1
    job = stage.job("base", rows=ROWS // scale, held_out=HELD_OUT // scale)
    yield from attempt(["auto", "memory", "prediction"], lambda: _auto(job, stage))
    yield from attempt(["packing"], lambda: [_packing(stage)])
    yield from attempt(["waits"], lambda: [_waits(job, stage)])
    yield from attempt(["speed", "accuracy"], lambda: _beside_trainer(job, stage, flop_per_s))


def _beside_trainer(job: Path, stage: Stage, flop_per_s: float | None) -> Iterator[Finding]:
    """The same training beside transformers' `Trainer`. `flop_per_s` is the card's rate; it is None where that is not known."""
    ours, accuracy, steps = _in_bfloat16(job, stage)
    trainers = _trainers(job, stage)
    if isinstance(trainers, str):
        yield Finding(
            key="speed", held=None, measured=f"memsup: {ours:.0f} samples/s; {trainers}", figures={"samples_per_s": ours}
        )
        yield Finding(key="accuracy", held=None, measured=f"memsup: {accuracy:.1%}; {trainers}", figures={"accuracy": accuracy})
        return
    best = max(trainers, key=lambda run: float(run["samples_per_s"]))
    theirs, flop = best["samples_per_s"], useful_flop(job)
    shares = ["?" if flop_per_s is None else f"{rate * flop / flop_per_s:.1%}" for rate in (ours, theirs)]
    yield Finding(
        key="speed",
        held=stage.judged(ours >= 0.95 * theirs),
        measured=f"{ours / theirs:.2f} times: {ours:.0f} samples/s, {shares[0]} of the card's rate; Trainer {theirs:.0f}, "
        f"{shares[1]}, by {best['rows']}",
        figures={"samples_per_s": ours, "trainers": trainers, "useful_flop_per_sample": flop, "flop_per_s": flop_per_s},
    )
    yield Finding(
        key="accuracy",
        held=stage.judged(abs(accuracy - best["accuracy"]) <= 0.03),
        measured=f"{accuracy:.1%}, Trainer {best['accuracy']:.1%}, after {steps} steps from random weights",
        figures={"accuracy": accuracy, "trainer_accuracy": best["accuracy"], "steps": steps},
    )


def _peak_flops(stage: Stage) -> Finding:
    if stage.rehearses:
        return Finding(key="peak", held=None, measured="this needs CUDA")
    done = subprocess.run(
        [sys.executable, str(HERE / "peers" / "matrix_peak.py")], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the matrix product ended with {done.returncode}: {done.stderr[-600:]}")
    seen = json.loads(done.stdout.splitlines()[-1])
    return Finding(
        key="peak",
        held=True,
        measured=f"{seen['flop_per_s'] / 1e12:.0f} TFLOP/s, 8192 × 8192; {seen['copy_bytes_per_s'] / 1e12:.2f} TB/s copied",
        figures=seen,
    )


def _built_in(stage: Stage) -> Finding:
    run = stage.run("builtin", None, *(["training.epochs=0.02"] if stage.quick else []))
    run.start()
    done = run.until_over(90.0)
    took_s = run.steps.done_at_s[-1] - run.began_s
    assert done.result is not None
    accuracy = done.result["accuracy"]
    return Finding(
        key="built_in",
        held=done.restarts == 0 and stage.judged(abs(accuracy - CPU_ACCURACY) <= 0.03),
        measured=f"accuracy {accuracy:.1%}, {run.samples_per_s(16):,.0f} samples/s, {took_s:.0f} s from start to last step",
        figures={"accuracy": accuracy, "samples_per_s": run.samples_per_s(16), "took_s": took_s, "steps": done.progress.step},
    )


def _auto(job: Path, stage: Stage) -> Iterator[Finding]:
    epochs = 4 if stage.quick else 0.2  # of few rows, or of many
    run, watch = stage.run("auto", job, f"training.learning_rate={RATE}", f"training.epochs={epochs}"), Watch()
    run.start()
    done = run.until_over(75.0, watch.look)
    rate = run.samples_per_s(16)
    deaths = len(run.events("death"))
    yield Finding(
        key="auto",
        held=deaths == 0 and done.restarts == 0,
        measured=f"tier {done.tier}, {done.progress.step} steps, {rate:.0f} samples/s, {deaths} deaths",
        figures={"tier": done.tier, "steps": done.progress.step, "samples_per_s": rate, "deaths": deaths},
    )
    total = max((gpu.total_bytes or 0 for gpu in done.gpus), default=0)
    plans = [json.loads(text) for text in run.paths.plan.read_text(encoding="utf-8").splitlines()]
    told = f"at most {watch.peak_bytes / GIB:.2f} GiB of its own, {watch.micro_tokens} tokens at once after {len(plans)} plans"
    if stage.rehearses:
        yield Finding(key="memory", held=None, measured=f"this needs CUDA; on the CPU: {told}")
    else:
        yield Finding(
            key="memory",
            held=0 < watch.used_bytes <= 0.95 * total and watch.peak_bytes > 0,
            measured=f"{told}; {watch.used_bytes / GIB:.2f} of {total / GIB:.1f} GiB of the device in use",
            figures={
                "peak_bytes": watch.peak_bytes,
                "used_bytes": watch.used_bytes,
                "total_bytes": total,
                "micro_tokens": watch.micro_tokens,
                "plans": len(plans),
            },
        )
    yield _prediction(watch, stage)


def _prediction(watch: Watch, stage: Stage) -> Finding:
    errors = sorted(watch.errors.values())
    if not errors:
        return Finding(key="prediction", held=None if stage.rehearses else False, measured="no step was seen with a prediction")
    middle = statistics.median(errors)
    return Finding(
        key="prediction",
        held=stage.judged(middle <= 0.05),
        measured=f"off by {middle:.1%} in the middle of {len(errors)} steps that were seen, by {errors[-1]:.1%} at most",
        figures={"median_error": middle, "largest_error": errors[-1], "seen": len(errors)},
    )


def _packing(stage: Stage) -> Finding:
    command = [sys.executable, str(HERE / "peers" / "packing.py"), stage.device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * stage.patience, check=False)
    if done.returncode:
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr[-1200:]}")
    seen = json.loads(done.stdout.splitlines()[-1])
    same = seen["float32_apart"] <= 1e-4 and seen["bf16_apart"] <= 1.5 * seen["bf16_padded_apart"] + 1e-4
    return Finding(
        key="packing",
        held=seen["packs"] and same,
        measured=f"{'packed' if seen['packs'] else 'there are no kernels for it'}; gradients are {seen['float32_apart']:.1e} "
        f"apart in float32, {seen['bf16_apart']:.1e} in bfloat16 (padded rows {seen['bf16_padded_apart']:.1e}); "
        f"{seen['packed_s'] * 1000:.1f} ms in place of {seen['padded_s'] * 1000:.1f}",
        figures=seen,
    )


def _waits(job: Path, stage: Stage) -> Finding:
    into = stage.work / "profile.json"
    first, last = (20, 30) if not stage.rehearses else (2, 4)
    environment = {
        "PYTHONPATH": f"{HERE / 'worker_site'}:{os.environ['PYTHONPATH']}",
        "PROFILE": f"{first}:{last}",
        "PROFILE_INTO": str(into),
    }
    asked = ("training.amp=bf16", f"training.effective_batch={EFFECTIVE if not stage.rehearses else 16}", "training.epochs=5")
    run = stage.run("profiled", job, *asked, "checkpoint.every=1h", environment=environment)
    try:
        run.start()
        run.until("profiled", lambda _: into.exists() and into.stat().st_size > 0, 60.0)
    finally:
        run.end()
    seen = json.loads(into.read_text(encoding="utf-8"))
    top = ", ".join(f"{one['name']} {one['device_ms'] or one['host_ms']:.2f} ms" for one in seen["operations"][:5])
    told = f"{seen['waits_a_step']:.1f} waits in a step of {seen['step_s'] * 1000:.1f} ms, busy {seen['busy']:.0%}: {top}"
    if stage.rehearses:
        return Finding(key="waits", held=None, measured=f"this needs CUDA; on the CPU: {told}", figures=seen)
    return Finding(key="waits", held=seen["waits_a_step"] <= 1.0, measured=told, figures=seen)


def _in_bfloat16(job: Path, stage: Stage) -> tuple[float, float, int]:
    """Samples a second, accuracy, and steps."""
    settings = [
        "training.amp=bf16",
        f"training.effective_batch={EFFECTIVE}",
        f"training.learning_rate={RATE}",
        "training.epochs=1",
    ]
    run = stage.run("bf16", job, *settings)
    run.start()
    done = run.until_over(75.0)
    assert done.result is not None
    return run.samples_per_s(EFFECTIVE), done.result["accuracy"], len(run.steps.done_at_s)


def _trainers(job: Path, stage: Stage) -> list[dict[str, Any]] | str:
    """What each did; or why none was run."""
    rows = TRAINER_ROWS[:1] if stage.quick else TRAINER_ROWS
    command = [sys.executable, str(HERE / "peers" / "trainer.py"), str(job), stage.device, str(EFFECTIVE), str(RATE)]
    done = subprocess.run([*command, *map(str, rows)], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode == 3:
        return "Trainer was not run: " + done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(f"Trainer ended with {done.returncode}: {done.stderr[-1200:]}")
    runs: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["runs"]
    return runs


def useful_flop(job: Path) -> float:
    """Of a sample, forward and backward, its padding left out: six for each weight of a layer and token, twelve for each pair
    of tokens and number of a token's (Kaplan et al. 2020, section 2.1).
    """
    import csv

    from transformers import AutoTokenizer

    config = json.loads((job / "model" / "config.json").read_text())
    with (job / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lengths = [
        len(ids) for ids in AutoTokenizer.from_pretrained(job / "model")(texts, truncation=True, max_length=512)["input_ids"]
    ]
    layers, hidden, inner = (config[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    return float(sum(6 * weights * tokens + 12 * layers * hidden * tokens**2 for tokens in lengths) / len(lengths))
