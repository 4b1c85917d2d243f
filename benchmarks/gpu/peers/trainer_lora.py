"""Hugging Face's Trainer with peft's LoRA on the same dialogues: rows at once and samples a second, as one line of JSON.

    python trainer_lora.py JOB DEVICE EFFECTIVE RATE ROWS...

Rank 16 at all linear layers but the last, bfloat16 weights but for the adapters, fused AdamW, grouped by length, padded to the
longest of a micro-batch, only answers are learnt; one pass each, of which the first fifth does not count. Exit code 3: it
cannot be run here, and why.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(job: Path, device: str, effective: int, rate: float, sizes: list[int]) -> int:
    try:
        import accelerate  # noqa: F401 - Trainer asks for it when it is made
        import peft  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is not installed", file=sys.stderr)
        return 3
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    rows = []
    for line in (job / "chat.jsonl").read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        said = [
            tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=part is not messages)
            for part in (messages[:1], messages)
        ]
        asked, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in said)
        rows.append({"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]})
    data = datasets.Dataset.from_list(rows)
    print(json.dumps({"runs": [_train(job, device, effective, rate, size, data, tokenizer) for size in sizes]}))
    return 0


def _train(job: Path, device: str, effective: int, rate: float, size: int, rows: Any, tokenizer: Any) -> dict[str, Any]:
    import peft
    import torch
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    done_at_s: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            done_at_s.append(time.perf_counter())

    steps = len(rows) // effective
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=job),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=effective // size,
        train_sampling_strategy="group_by_length",
        max_steps=steps,
        learning_rate=rate,
        optim="adamw_torch_fused",
        bf16=True,
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
    model = AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.bfloat16)
    adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    trainer = Trainer(
        model=peft.get_peft_model(model, adapters),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    if device == "cuda":
        torch.cuda.synchronize()
    ended_s, skipped = time.perf_counter(), max(1, len(done_at_s) // 5)
    return {
        "rows": size,
        "samples_per_s": effective * (len(done_at_s) - skipped) / (ended_s - done_at_s[skipped - 1]),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


if __name__ == "__main__":
    job, device, effective, rate, *sizes = sys.argv[1:]
    sys.exit(main(Path(job), device, int(effective), float(rate), [int(size) for size in sizes]))
