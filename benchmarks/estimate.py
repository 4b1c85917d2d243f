"""What `supervisor/decide/estimate.py` says against what training takes, for three sizes of BERT, and the fit of its constants.

    python benchmarks/estimate.py [--fit]
    python benchmarks/estimate.py --runs [--tasks TASK...] [--sizes SIZE...] [--amp bf16] [--steps N] [--results FILE]

Each model is trained for a step in a process of its own, by the worker's own parts, in float32 and bfloat16, with and without
activation checkpointing, at several shapes of the micro-batch; the peak of resident memory is the kernel's (VmHWM, reset before
each). `--fit` prints the constants that make the estimate nearest. Takes some three minutes and 4 GiB.

`--runs` has `memsup start` train each task at three sizes instead, with micro-batches of 512 tokens in rows of up to 128, and
compares the peak of the worker with what was estimated before anything was loaded for just that, and with what the planner
predicted after 50 steps. One run takes a minute or two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memsup.supervisor.decide.estimate import BLOCK_NUMBERS, CONSTANTS, MIB, Shape, peak_bytes
from memsup.worker.__main__ import LIBRARIES

SIZES = {"2 x 128": (2, 128, 2, 512), "6 x 384": (6, 384, 6, 1536), "12 x 768": (12, 768, 12, 3072)}
SHAPES = ((1, 128), (4, 128), (16, 64), (1, 512), (2, 512))
VOCABULARY = 21128
RUN_LENGTH, RUN_TOKENS, AFTER_STEPS, RUN_STEPS = 128, 512, 50, 56
TASKS = {
    "classification": [],
    "pairs": ["task.text_pair=second"],
    "labels": ["task.problem_type=multi_label_classification"],
    "scores": ["task.problem_type=regression"],
    "tags": ["task.kind=token-classification"],
    "chat": ["task.kind=causal-lm", "training.method=full"],
    "chat, LoRA": ["task.kind=causal-lm"],
}
LOOK_S = 0.01
WORKER_EXTRA_BYTES = 15 * MIB
"""What a worker holds that these processes do not: link, tokenizer, leftovers of preparing data; without pandas, with which
heartbeats showed 55."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--amp", default="bf16", choices=["bf16", "off"])
    parser.add_argument("--steps", type=int, default=RUN_STEPS, help="with 50 or fewer nothing is said of predictions")
    parser.add_argument("--results", type=Path, default=Path("estimate.jsonl"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(*options.child)
        return
    if options.runs:
        compare_runs(options)
        return
    found: list[dict[str, Any]] = []
    for size in SIZES:
        for amp in ("off", "bf16"):
            environment = LIBRARIES | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"} | os.environ
            command = [sys.executable, __file__, "--child", size, amp]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found += [json.loads(line) for line in done.stdout.splitlines()]
    if options.fit:
        fit(found)
    table(found)


# --------------------------------------------------------------------------------------------------------------------
# Whole runs


def compare_runs(options: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    file: Path = options.results
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for task in options.tasks:
        for size in options.sizes:
            if any((r["task"], r["size"], r["amp"], r["steps"]) == (task, size, options.amp, options.steps) for r in found):
                continue
            with tempfile.TemporaryDirectory(prefix="memsup-estimate-") as folder:
                result = one_run(task, size, options.amp, Path(folder), options.steps)
            found.append(result)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(result) + "\n")
    print(
        "| task | size | AMP | steps | estimate, MiB | measured, MiB | off by | prediction after 50 steps, median | largest |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for r in found:
        off = r["estimate_bytes"] / r["peak_bytes"] - 1
        errors = sorted(r["errors"])
        cells = (r["task"], r["size"], r["amp"], r["steps"], r["estimate_bytes"] // MIB, r["peak_bytes"] // MIB, f"{off:+.1%}")
        told = (f"{statistics.median(errors):.1%}", f"{errors[-1]:.1%}") if errors else ("", "")
        print(*("", *cells, *told, ""), sep=" | ")


def one_run(task: str, size: str, amp: str, folder: Path, steps: int) -> dict[str, Any]:
    from boxed import MEMSUP, environment

    write_job(task, size, folder)
    settings = [
        f"task.model={folder}/model",
        f"task.train={folder}/train.jsonl",
        f"task.eval={folder}/eval.jsonl",
        f"training.epochs={steps * 8 / 320}",
        f"training.max_length={RUN_LENGTH}",
        f"training.micro_tokens={RUN_TOKENS}",
        f"training.amp={amp}",
        "training.effective_batch=8",
        "training.evaluate_every=1000000",
        "checkpoint.every=1h",
        "limits.ram=6GiB",
        *TASKS[task],
    ]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [*MEMSUP, "start", "--tier", "full", "--wait", "--accept", "--run", "bench", *flags]
    run = folder / "state/bench"
    try:
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(command, env=environment(folder), stdout=log, stderr=log)
            peak_bytes = most_held(child, run, steps)
    finally:
        stop = [*MEMSUP, "stop", "--now", "--run", "bench"]
        subprocess.run(stop, env=environment(folder), capture_output=True, check=False)
    if child.returncode:
        sys.exit(f"{task}, {size}:\n{(folder / 'log').read_text(encoding='utf-8', errors='replace')[-4000:]}")
    estimate = json.loads((run / "run.json").read_text(encoding="utf-8"))["estimate"]
    points = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [point for point in points if (point.get("step") or 0) > 0 and not point["spent_s"].get("evaluating")]
    return {
        "task": task,
        "size": size,
        "amp": amp,
        "steps": steps,
        "estimate_bytes": int(estimate["held_bytes"] + estimate["token_bytes"] * RUN_TOKENS),
        "peak_bytes": peak_bytes,
        "errors": [p["prediction_error"] for p in trained if p["step"] > AFTER_STEPS and p.get("prediction_error") is not None],
    }


def most_held(child: subprocess.Popen[bytes], run: Path, steps: int) -> int:
    """The most anonymous memory that the worker of `run` holds from its first step to its last, until `child` ends."""
    from boxed import Steps

    audit, most_bytes = Steps(run / "audit.txt"), 0
    while child.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):  # a worker that has just ended holds nothing
            audit.look(0.0)
            if 0 < len(audit.done_at_s) < steps:
                pid = json.loads((run / "status.json").read_text(encoding="utf-8"))["worker_pid"]
                lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
                held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
                most_bytes = max(most_bytes, held * 1024)
        time.sleep(LOOK_S)
    return most_bytes


def write_job(task: str, size: str, folder: Path) -> None:
    """Half of the rows are as long as the model takes, so that the largest micro-batch is as large as it may be."""
    import random

    import transformers
    from boxed import make_job

    layers, hidden, heads, intermediate = SIZES[size]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }
    make_job(folder, 16, {"model_type": "bert", "architectures": ["BertForSequenceClassification"], **shape})
    is_chat, is_tags = task.startswith("chat"), task == "tags"
    if is_chat:
        config = transformers.LlamaConfig(**shape, tie_word_embeddings=True, pad_token_id=0, eos_token_id=3)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    generator = random.Random(1)
    for name, count in (("train", 320), ("eval", 16)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(count):
                length = 2 * RUN_LENGTH if row % 2 else generator.randrange(16, RUN_LENGTH)
                text = "".join(chr(generator.randrange(0x4E00, 0x5E00)) for _ in range(length))
                half = length // 2
                said: dict[str, Any] = {"text": text, "label": ("good", "bad")[row % 3 % 2]}
                if task == "pairs":
                    said |= {"text": text[:half], "second": text[half:]}
                elif task == "labels":
                    said["label"] = [said["label"], ("long", "short")[length < RUN_LENGTH]]
                elif task == "scores":
                    said["label"] = round(generator.random(), 3)
                elif is_tags:
                    said = {"tokens": list(text[:100]), "tags": [("O", "B-X")[ord(sign) % 5 == 0] for sign in text[:100]]}
                elif is_chat:
                    said = {"prompt": text[: half // 2], "completion": text[half // 2 :]}
                file.write(json.dumps(said, ensure_ascii=False) + "\n")


# --------------------------------------------------------------------------------------------------------------------
# Single micro-batches


def measure(size: str, amp: str) -> None:
    """Prints a line of JSON for each shape."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import memsup.worker.train  # noqa: F401 - what the worker imports counts as its base
    from memsup.memory import held
    from memsup.worker.compute.attention import attend_in_blocks
    from memsup.worker.compute.dropout import draw_by_row
    from memsup.worker.compute.in_place import add_in_place
    from memsup.worker.compute.rounding import round_together
    from memsup.worker.hardware import autocast, make_optimizer, place_model, set_activation_checkpointing, start_threads
    from memsup.worker.memory import hand_back

    layers, hidden, heads, intermediate = SIZES[size]
    start_threads(2, torch.device("cpu"))
    device = torch.device("cpu")
    hand_back()
    base = held().resident_bytes
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
    )
    model = BertForSequenceClassification(config)
    place_model(model, device)
    if amp != "off":
        round_together(model)
    add_in_place(model)
    draw_by_row()
    attend_in_blocks()
    optimizer = make_optimizer(model, weight_decay=0.01)
    model.train()

    def micro_batch(rows: int, length: int) -> None:
        ids = torch.randint(5, VOCABULARY, (rows, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0  # rows differ in length
        with autocast(device, amp):
            loss = model(input_ids=ids, attention_mask=mask, labels=torch.zeros(rows, dtype=torch.long)).loss
        loss.backward()

    micro_batch(1, 8)
    optimizer.step()
    for checkpointing in (False, True):
        set_activation_checkpointing(model, checkpointing)
        for rows, length in SHAPES:
            micro_batch(rows, length)  # code for this shape is generated once
            hand_back()
            before = held().resident_bytes
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            micro_batch(rows, length)
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak = int(fields["VmHWM"].split()[0]) * 1024
            line = {
                "size": size,
                "layers": layers,
                "hidden": hidden,
                "heads": heads,
                "intermediate": intermediate,
                "parameters": sum(p.numel() for p in model.parameters()),
                "amp": amp,
                "checkpointing": checkpointing,
                "rows": rows,
                "length": length,
                "base_bytes": base,
                "before_bytes": before,
                "mapped_bytes": held().resident_bytes - held().anonymous_bytes,
                "peak_bytes": peak,
            }
            print(json.dumps(line), flush=True)


def shape(line: dict[str, Any]) -> Shape:
    fields = ("parameters", "layers", "hidden", "heads", "intermediate")
    return Shape(**{name: line[name] for name in fields}, embeddings=VOCABULARY * line["hidden"], positions=512)


def fit(found: list[dict[str, Any]]) -> None:
    """Least squares of the relative error, over the shapes without activation checkpointing."""
    import numpy as np

    for amp, constants in CONSTANTS.items():
        rows, wanted = [], []
        for line in found:
            if line["amp"] != amp or line["checkpointing"]:
                continue
            tokens, model = line["rows"] * line["length"], shape(line)
            activations = line["peak_bytes"] - line["before_bytes"]
            activations -= constants.copies * (model.parameters - model.embeddings)
            weight = 1 / (activations + 30 * MIB)
            known = model.layers * tokens * constants.intermediate * model.intermediate
            pairs = line["length"] ** 2
            block = min(line["rows"] * model.heads * pairs, max(BLOCK_NUMBERS, pairs))
            rows.append([weight * x for x in (model.layers * tokens * model.hidden, block, MIB)])
            wanted.append(weight * (activations - known))
        if rows:
            (hidden, attention, _), *_ = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)
            print(f"{amp}: hidden={hidden:.1f}, attention={attention:.1f}")


def table(found: list[dict[str, Any]]) -> None:
    """Mapped files, which the kernel takes back at need, are in VmHWM and no part of the estimate."""
    print("| model | amp | checkpointing | rows x length | estimate, MiB | measured, MiB | off by |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for line in found:
        said = peak_bytes(
            shape(line), amp=line["amp"], rows=line["rows"], length=line["length"], checkpointing=line["checkpointing"]
        )
        measured = line["peak_bytes"] - line["mapped_bytes"] + WORKER_EXTRA_BYTES
        off = said / measured - 1
        worst = max(worst, abs(off))
        cells = (line["size"], line["amp"], line["checkpointing"], f"{line['rows']} x {line['length']}")
        print(*("", *cells, said // MIB, measured // MIB, f"{off:+.1%}", ""), sep=" | ")
    print(f"\nAt most {worst:.1%} off.")


if __name__ == "__main__":
    main()
