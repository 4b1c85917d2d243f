"""Hugging Face's Trainer as one tunes it, on the same job: rows at once, samples a second and accuracy, as one line of JSON.

    python trainer.py JOB DEVICE EFFECTIVE RATE ROWS...

bfloat16 (on a GPU), fused AdamW, grouped by length, gradients accumulated to the effective batch; one pass each, of which the
first fifth does not count. Only the fastest is evaluated. Exit code 3: it cannot be run here, and why.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(job: Path, device: str, effective: int, rate: float, sizes: list[int]) -> int:
    try:
        import accelerate  # noqa: F401 - Trainer asks for it when it is made
    except ImportError:
        print("accelerate is not installed", file=sys.stderr)
        return 3
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    sets = {}
    labels: list[str] = []
    for name in ("train", "eval"):
        with (job / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = labels or sorted({row["label"] for row in rows})
        ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=512)["input_ids"]
        sets[name] = datasets.Dataset.from_dict({"input_ids": ids, "labels": [labels.index(row["label"]) for row in rows]})
    runs: list[dict[str, Any]] = []
    trainers = []
    for size in sizes:
        trainer, samples_per_s = _train(job, device, effective, rate, size, sets["train"], tokenizer)
        runs.append({"rows": size, "samples_per_s": samples_per_s, "accuracy": None, "peak_bytes": _peak(device)})
        trainers.append(trainer)
    best = max(range(len(runs)), key=lambda place: float(runs[place]["samples_per_s"]))
    found = trainers[best].predict(sets["eval"])
    runs[best]["accuracy"] = float((found.predictions.argmax(-1) == found.label_ids).mean())
    print(json.dumps({"runs": runs}))
    return 0


def _train(job: Path, device: str, effective: int, rate: float, size: int, rows: Any, tokenizer: Any) -> tuple[Any, float]:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    done_at_s: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            done_at_s.append(time.perf_counter())

    steps = -(-len(rows) // effective)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=job),
        per_device_train_batch_size=size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=effective // size,
        train_sampling_strategy="group_by_length",
        max_steps=steps,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=round(0.06 * steps),
        optim="adamw_torch_fused",
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        dataloader_num_workers=2 if device == "cuda" else 0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    set_seed(42)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(job / "model"))
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Clock()]
    )
    trainer.train()
    if device == "cuda":
        torch.cuda.synchronize()
    ended_s = time.perf_counter()
    skipped = max(1, len(done_at_s) // 5)
    return trainer, effective * (len(done_at_s) - skipped) / (ended_s - done_at_s[skipped - 1])


def _peak(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None


if __name__ == "__main__":
    job, device, effective, rate, *sizes = sys.argv[1:]
    sys.exit(main(Path(job), device, int(effective), float(rate), [int(size) for size in sizes]))
