"""For `versus.py`: what memsup is compared with, and the judge of both. Runs in an environment that has nothing of memsup.

    python benchmarks/rivals.py train FOLDER ROWS SEED OUTPUT [--checkpointing] [--steps N]
    python benchmarks/rivals.py judge FOLDER MODEL...

`FOLDER` is a task as `versus.py` writes it: `task.json`, `model/`, `train.jsonl`, `eval.jsonl`. What trains is Hugging Face's
Trainer, or for chat TRL's SFTTrainer with peft, with ROWS rows at a time and accumulated gradients, as their documentation has
it; grouped by length, since that is the faster way. Its last line is JSON: when each step was done, by the clock and by the
processors' time that it had taken, and how many rows or tokens it learnt from in a pass. The judge computes the loss of
finished models on `eval.jsonl`, in float32, one row at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

IGNORED = -100


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------------------------------------------------
# Rows as tokens


def chat_features(rows: list[dict[str, Any]], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Only answers are learnt."""
    features = []
    for row in rows:
        question, answer = row["messages"]
        asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([question, answer], return_dict=True)["input_ids"][:length]
        features.append({"input_ids": whole, "labels": [IGNORED] * len(asked) + whole[len(asked) :]})
    return features


def tag_features(rows: list[dict[str, Any]], tokenizer: Any, length: int, names: list[str]) -> list[dict[str, Any]]:
    """A word's first piece has its tag, as the field has it."""
    features = []
    for row in rows:
        found = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=length)
        words, labels = found.word_ids(), []
        for place, word in enumerate(words):
            is_first = word is not None and (place == 0 or words[place - 1] != word)
            labels.append(names.index(row["tags"][word]) if is_first else IGNORED)
        features.append({"input_ids": found["input_ids"], "labels": labels})
    return features


def text_features(rows: list[dict[str, Any]], tokenizer: Any, length: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = [row["second"] for row in rows] if "second" in rows[0] else None
    found = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=length)
    names, features = task["names"], []
    for place, row in enumerate(rows):
        label: Any = row["label"]
        if task["problem_type"] == "multi_label_classification":
            label = [float(name in label) for name in names]
        elif task["problem_type"] == "single_label_classification":
            label = names.index(label)
        features.append({name: values[place] for name, values in found.items() if name != "attention_mask"} | {"labels": label})
    return features


def features_of(folder: Path, name: str, task: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    rows, length = read(folder, name), task["max_length"]
    if task["kind"] == "causal-lm":
        return chat_features(rows, tokenizer, length)
    if task["kind"] == "token-classification":
        return tag_features(rows, tokenizer, length, task["names"])
    return text_features(rows, tokenizer, length, task)


def class_of(task: dict[str, Any]) -> Any:
    import transformers

    return {
        "causal-lm": transformers.AutoModelForCausalLM,
        "token-classification": transformers.AutoModelForTokenClassification,
        "text-classification": transformers.AutoModelForSequenceClassification,
    }[task["kind"]]


# --------------------------------------------------------------------------------------------------------------------
# Training


def train(folder: Path, rows: int, seed: int, output: Path, *, checkpointing: bool, steps: int) -> dict[str, Any]:
    import datasets
    import torch
    import transformers

    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    model = class_of(task).from_pretrained(folder / "model", dtype=torch.float32)
    done_at_s: list[float] = []
    cpu_at_s: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            done_at_s.append(time.monotonic())
            cpu_at_s.append(time.process_time())

    total_steps = task["passes"] * len(read(folder, "train")) // task["effective_batch"]
    common: dict[str, Any] = {
        "output_dir": str(output / "trainer"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": task["effective_batch"] // rows,
        "train_sampling_strategy": "group_by_length",
        "max_steps": steps,
        "num_train_epochs": task["passes"],
        "learning_rate": task["learning_rate"],
        "warmup_steps": -(-total_steps * 6 // 100),
        "weight_decay": 0.01,
        "seed": seed,
        "bf16": True,
        "gradient_checkpointing": checkpointing,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if task["kind"] == "causal-lm":
        import peft
        import trl

        adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
        examples = datasets.Dataset.from_list(
            [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in read(folder, "train")]
        )
        trainer: Any = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(**common, max_length=task["max_length"]),
            train_dataset=examples,
            processing_class=tokenizer,
            peft_config=adapters,
            callbacks=[Clock()],
        )
        learnt = sum(sum(row.get("completion_mask") or ()) for row in trainer.train_dataset)
    else:
        features = features_of(folder, "train", task, tokenizer)
        collator: Any = transformers.DataCollatorWithPadding(tokenizer)
        learnt = len(features)
        if task["kind"] == "token-classification":
            collator = transformers.DataCollatorForTokenClassification(tokenizer)
            learnt = sum(label != IGNORED for row in features for label in row["labels"])
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**common),
            train_dataset=datasets.Dataset.from_list(features),
            data_collator=collator,
            callbacks=[Clock()],
        )
    trainer.train()
    trainer.save_model(str(output / "model"))
    return {"done_at_s": done_at_s, "cpu_at_s": cpu_at_s, "learnt": learnt}


# --------------------------------------------------------------------------------------------------------------------
# The judge


def judge(folder: Path, models: list[Path]) -> list[float]:
    """The loss of each model: the mean over rows, or over all tokens that are to be learnt."""
    import torch
    import transformers

    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    features = features_of(folder, "eval", task, tokenizer)
    losses = []
    for place in models:
        source = folder / "model" if (place / "adapter_config.json").exists() else place
        model = class_of(task).from_pretrained(source, dtype=torch.float32)
        if source != place:
            import peft

            model = peft.PeftModel.from_pretrained(model, place)
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in features:
                loss, weight = _loss(model, row, task)
                total += loss
                count += weight
        losses.append(total / count)
    return losses


def _loss(model: Any, row: dict[str, Any], task: dict[str, Any]) -> tuple[float, int]:
    """The summed loss of a row, and how many things to learn it has. Labels are in the order of the model's own names."""
    import torch
    from torch.nn import functional

    inputs = {name: torch.tensor([values]) for name, values in row.items() if name != "labels"}
    scores, labels = model(**inputs).logits.float(), row["labels"]
    place_of = {name: place for place, name in model.config.id2label.items()}
    if task["kind"] == "causal-lm":
        targets = torch.tensor(labels[1:])
        return float(functional.cross_entropy(scores[0, :-1], targets, reduction="sum")), int((targets != IGNORED).sum())
    if task["problem_type"] == "regression":
        return float((scores.squeeze() - labels) ** 2), 1
    order = [place_of[name] for name in task["names"]]
    scores = scores[..., order]
    if task["kind"] == "token-classification":
        targets = torch.tensor(labels)
        return float(functional.cross_entropy(scores[0], targets, reduction="sum")), int((targets != IGNORED).sum())
    if task["problem_type"] == "multi_label_classification":
        return float(functional.binary_cross_entropy_with_logits(scores[0], torch.tensor(labels))), 1
    return float(functional.cross_entropy(scores, torch.tensor([labels]))), 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    trains = ways.add_parser("train")
    trains.add_argument("folder", type=Path)
    trains.add_argument("rows", type=int)
    trains.add_argument("seed", type=int)
    trains.add_argument("output", type=Path)
    trains.add_argument("--checkpointing", action="store_true")
    trains.add_argument("--steps", type=int, default=-1)
    judges = ways.add_parser("judge")
    judges.add_argument("folder", type=Path)
    judges.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    if options.way == "judge":
        print(json.dumps(judge(options.folder, options.models)))
        return
    told = train(
        options.folder,
        options.rows,
        options.seed,
        options.output,
        checkpointing=options.checkpointing,
        steps=options.steps,
    )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
