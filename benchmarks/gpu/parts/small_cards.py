"""Part i: what fits on small cards, and how fast: parts of this one (`limits.vram`), models of random weights, real shapes;
beside what was predicted of each before (`predicted.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from kit.chat import tiny_tokenizer, written
from lines import Finding, attempt
from predicted import LENGTH, MODELS, flop_of_row, is_decoder, predicted
from stage import GIB, HERE, TINY, Stage

from memsup.shared.status import Status
from parts.others import used_bytes

TITLE = "i. Small cards"
DEADLINE_S = 330.0
CELLS = (
    ("base", 4),
    ("large", 8),
    ("lora05", 6),
    ("lora15", 8),
    ("lora3", 12),
    ("large", 12),
    ("base", 8),
    ("large", 6),
    ("large", 24),
    ("base", 12),
)
"""The model and the GiB of the card, in the order of what people have."""
REHEARSED = (("base", 4), ("lora05", 6))
PROMISES = {
    f"{model}_{gib}": f"{MODELS[model][0]} trains in {gib} GiB, keeps to them, and no worker dies." for model, gib in CELLS
}
EFFECTIVE, STEPS, CHAT_STEPS, HELD_OUT = 32, 25, 12, 4
FRAME_TOKENS = 56
"""What the template puts around question and answer, and the question."""
TINY_CHAT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 300}


def prove(stage: Stage) -> Iterator[Finding]:
    for model, gib in REHEARSED if stage.rehearses else CELLS:
        yield from attempt([f"{model}_{gib}"], partial(_cell, stage, model, gib))
    for model, gib in CELLS:
        if stage.rehearses and (model, gib) not in REHEARSED:
            yield Finding(key=f"{model}_{gib}", held=None, measured="there is no card to take a part of")


def _cell(stage: Stage, model: str, gib: int) -> Iterator[Finding]:
    yield _trained(stage, model, gib)


def chat_job(stage: Stage, name: str, model: str, lengths: Sequence[int]) -> Path:
    """Dialogues of so many tokens (bytes), and a language model of random weights; tiny ones in a rehearsal."""
    folder = stage.work / name
    (folder / "model").mkdir(parents=True)
    texts = [(f"{number} " * length)[: max(8, length - FRAME_TOKENS)] for number, length in enumerate(lengths)]
    said = [[{"role": "user", "content": "Count."}, {"role": "assistant", "content": text}] for text in texts]
    dialogues = [{"messages": messages} for messages in said]
    written(folder / "chat.jsonl", dialogues[HELD_OUT:])
    written(folder / "chat-eval.jsonl", dialogues[:HELD_OUT])
    config = MODELS[model][1] | (TINY_CHAT if stage.rehearses else {})
    tiny_tokenizer(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    made = [sys.executable, str(HERE / "peers" / "random_model.py"), str(folder / "model"), stage.device]
    done = subprocess.run(made, capture_output=True, text=True, timeout=90 * stage.patience, check=False)
    if done.returncode:
        raise RuntimeError(f"the model was not made: {done.stderr[-600:]}")
    return folder


def _trained(stage: Stage, model: str, gib: int) -> Finding:
    name = f"{model}-{gib}"
    if is_decoder(model):
        rows = EFFECTIVE * CHAT_STEPS if not stage.rehearses else 8
        job = chat_job(stage, name, model, [LENGTH if not stage.rehearses else 64] * (rows + HELD_OUT))
    else:
        rows = EFFECTIVE * (STEPS if not stage.rehearses else 4)
        job = stage.job(name, rows=rows, model=MODELS[model][1] if not stage.rehearses else TINY)
    idle_bytes, most_bytes = used_bytes(), 0
    run = stage.run(
        name.replace("-", ""),
        job,
        f"limits.vram={gib}GiB",
        f"training.effective_batch={EFFECTIVE if not stage.rehearses else 4}",
        f"training.max_length={LENGTH}",
        "training.epochs=1",
        "checkpoint.every=1h",
    )

    def look(seen: Status) -> None:
        nonlocal most_bytes
        if seen.gpus and seen.gpus[0].used_bytes is not None:
            most_bytes = max(most_bytes, seen.gpus[0].used_bytes - idle_bytes)

    try:
        run.start()
        done = run.until_over(75.0, look)
    finally:
        run.end()
    deaths, exhausted = run.events("death") + run.events("kill"), run.events("out_of_memory")
    keeps = most_bytes <= (gib + 0.1) * GIB
    speed, expected = run.samples_per_s(EFFECTIVE), predicted(model, gib)
    tokens = done.batch.micro_tokens or 0
    return Finding(
        key=f"{model}_{gib}",
        held=stage.judged(not deaths and keeps and most_bytes > 0),
        measured=f"{speed:.1f} samples/s with {tokens} tokens at once (predicted {expected.rows * LENGTH}), "
        f"{most_bytes / GIB:.2f} GiB at most; {len(exhausted)} times out of memory, {len(deaths)} deaths",
        figures={
            "gib": gib,
            "samples_per_s": speed,
            "micro_tokens": tokens,
            "predicted_rows": expected.rows,
            "predicted_twice": expected.twice,
            "predicted_held_bytes": expected.held_bytes,
            "flop_of_row": flop_of_row(model),
            "most_bytes": most_bytes,
            "exhausted": len(exhausted),
            "deaths": len(deaths),
        },
    )
