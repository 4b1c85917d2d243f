"""Part i: what fits on small cards, and how fast: parts of this one (`limits.vram`), models of random weights, real shapes."""

from __future__ import annotations

from collections.abc import Iterator

from lines import Finding, attempt
from stage import BASE, GIB, Stage

from memsup.shared.status import Status
from parts.others import used_bytes

TITLE = "i. Small cards"
DEADLINE_S = 190.0
LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
MODELS = {"base": ("BERT-base", BASE), "large": ("a model of roberta-large's size", LARGE)}
CELLS = (("base", 4), ("large", 8), ("large", 12), ("base", 8), ("large", 6), ("large", 24), ("base", 12))
"""The model and the GiB of the card, in the order of what people have."""
PROMISES = {
    f"{model}_{gib}": f"{MODELS[model][0]} trains in {gib} GiB, keeps to them, and no worker dies." for model, gib in CELLS
}
EFFECTIVE, STEPS = 32, 25


def prove(stage: Stage) -> Iterator[Finding]:
    for model, gib in CELLS if not stage.rehearses else CELLS[:1]:
        yield from attempt([f"{model}_{gib}"], lambda model=model, gib=gib: [_trained(stage, model, gib)])  # type: ignore[misc]
    for model, gib in () if not stage.rehearses else CELLS[1:]:
        yield Finding(key=f"{model}_{gib}", held=None, measured="there is no card to take a part of")


def _trained(stage: Stage, model: str, gib: int) -> Finding:
    rows = EFFECTIVE * (STEPS if not stage.rehearses else 4)
    job = stage.job(f"{model}-{gib}", rows=rows, model=MODELS[model][1])
    idle_bytes, most_bytes = used_bytes(), 0
    run = stage.run(
        f"{model}{gib}",
        job,
        f"limits.vram={gib}GiB",
        f"training.effective_batch={EFFECTIVE}",
        "training.max_length=512",
        "training.epochs=1",
        "checkpoint.every=1h",
    )

    def look(seen: Status) -> None:
        nonlocal most_bytes
        if seen.gpus and seen.gpus[0].used_bytes is not None:
            most_bytes = max(most_bytes, seen.gpus[0].used_bytes - idle_bytes)

    try:
        run.start()
        done = run.until_over(45.0, look)
    finally:
        run.end()
    deaths, exhausted = run.events("death") + run.events("kill"), run.events("out_of_memory")
    keeps = most_bytes <= (gib + 0.1) * GIB
    speed = run.samples_per_s(EFFECTIVE)
    return Finding(
        key=f"{model}_{gib}",
        held=stage.judged(not deaths and keeps and most_bytes > 0),
        measured=f"{speed:.1f} samples/s with {done.batch.micro_tokens} tokens at once, {most_bytes / GIB:.2f} GiB at most; "
        f"{len(exhausted)} times out of memory, {len(deaths)} deaths",
        figures={
            "gib": gib,
            "samples_per_s": speed,
            "micro_tokens": done.batch.micro_tokens,
            "most_bytes": most_bytes,
            "exhausted": len(exhausted),
            "deaths": len(deaths),
        },
    )
