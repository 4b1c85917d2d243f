"""Part j: a language model of half a billion weights with LoRA on the card, beside Hugging Face's Trainer with peft."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from lines import Finding, attempt
from stage import GIB, HERE, Stage

from parts.main_job import Watch
from parts.small_cards import HELD_OUT, chat_job

TITLE = "j. A language model with LoRA"
DEADLINE_S = 120.0
EFFECTIVE, STEPS, TRAINER_ROWS, RATE = 32, 24, (8, 32), 1e-4
MOST_TOKENS = 1024
PROMISES = {
    "speed": "With LoRA, 32 dialogues a step, it is at least as fast as 0.95 of the best of two Trainers (the goal is 1.15).",
}


def prove(stage: Stage) -> Iterator[Finding]:
    yield from attempt(PROMISES, lambda: [_beside_trainer(stage)])


def _beside_trainer(stage: Stage) -> Finding:
    effective, steps = (EFFECTIVE, STEPS) if not stage.rehearses else (4, 6)
    draws = np.random.default_rng(1).lognormal(5.3, 0.7, effective * steps + HELD_OUT)
    lengths = np.clip(draws if not stage.rehearses else draws / 4, 60, MOST_TOKENS).astype(int).tolist()
    job = chat_job(stage, "lora", "lora05", lengths)
    run, watch = (
        stage.run(
            "lora",
            job,
            "training.amp=bf16",
            f"training.effective_batch={effective}",
            f"training.max_length={MOST_TOKENS}",
            f"training.learning_rate={RATE}",
            "training.epochs=1",
            "checkpoint.every=1h",
        ),
        Watch(),
    )
    run.start()
    run.until_over(75.0, watch.look)
    ours = run.samples_per_s(effective)
    packs = any(json.loads(text).get("packed") for text in run.paths.plan.read_text(encoding="utf-8").splitlines())
    told = f"{ours:.1f} samples/s, {'without' if packs else 'with'} padding, at most {watch.peak_bytes / GIB:.2f} GiB"
    figures = {"samples_per_s": ours, "packed": packs, "peak_bytes": watch.peak_bytes, "tokens": sum(lengths)}
    command = [sys.executable, str(HERE / "peers" / "trainer_lora.py"), str(job), stage.device, str(effective), str(RATE)]
    rows = TRAINER_ROWS if not stage.rehearses else (4,)
    done = subprocess.run([*command, *map(str, rows)], capture_output=True, text=True, timeout=90 * stage.patience, check=False)
    if done.returncode == 3:
        why = done.stderr.strip().splitlines()[-1]
        return Finding(key="speed", held=None, measured=f"{told}; Trainer was not run: {why}", figures=figures)
    if done.returncode:
        raise RuntimeError(f"Trainer ended with {done.returncode}: {done.stderr[-1200:]}")
    trainers = json.loads(done.stdout.splitlines()[-1])["runs"]
    best = max(trainers, key=lambda one: float(one["samples_per_s"]))
    ratio = ours / best["samples_per_s"]
    theirs = f"Trainer {best['samples_per_s']:.1f} by {best['rows']}, {(best['peak_bytes'] or 0) / GIB:.2f} GiB"
    return Finding(
        key="speed",
        held=stage.judged(ratio >= 0.95),
        measured=f"{ratio:.2f} times: {told}; {theirs}",
        figures=figures | {"ratio": ratio, "trainers": trainers},
    )
