"""Part c: GPU memory runs out, inside a fraction of the card: in the first step by itself, then at each place of a step."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lines import Finding, attempt
from stage import HERE, MIB, Stage

from memsup.worker.audit import BEFORE_FIRST, Step, rolled
from memsup.worker.plan.batches import Order, Schedule, learning_rate

TITLE = "c. Memory runs out"
DEADLINE_S = 75.0
LIMIT = "4GiB"
EFFECTIVE, LENGTH, RATE, WARMUP, SEED = 256, 128, 1e-4, 0.06, 42
"""Many short rows: so there is more than one of them at once even after memory ran out many times."""
PROMISES = {
    "first": "A first micro-batch that is far too large is cut until it fits, in the same process.",
    "forward": "Memory that runs out in a forward pass costs a smaller micro-batch, and nothing else.",
    "backward": "So does memory that runs out in a backward pass.",
    "optimizer": "The optimizer's step needs no memory, and succeeds where there is none.",
    "evaluation": "An evaluation for which there is no room goes on in smaller parts.",
    "no_death": "The worker never died of it, nor left, and torch stayed within its fraction.",
    "as_planned": "Samples, order, weights of the losses and learning rates of all steps are as planned.",
}


def prove(stage: Stage) -> Iterator[Finding]:
    yield from attempt(PROMISES, lambda: _crowded(stage))


def _crowded(stage: Stage) -> Iterator[Finding]:
    rows = EFFECTIVE * 14
    job = stage.job(
        "crowded", rows=rows, held_out=EFFECTIVE, model={}
    )  # 6 x 384: room for some rows even when it was halved often
    log = stage.work / "crowd.jsonl"
    log.touch()
    run = stage.run(
        "crowded",
        job,
        *(
            f"training.{name}={value}"
            for name, value in (
                ("epochs", 1),
                ("effective_batch", EFFECTIVE),
                ("max_length", LENGTH),
                ("micro_tokens", EFFECTIVE * LENGTH),
                ("learning_rate", RATE),
                ("warmup", WARMUP),
                ("seed", SEED),
                ("amp", "off"),
            )
        ),
        f"limits.vram={LIMIT}",
        environment={
            "PYTHONPATH": f"{HERE / 'worker_site'}:{os.environ['PYTHONPATH']}",
            "CROWD": "forward@4 backward@6 optimizer@8 evaluation@1",
            "CROWD_LOG": str(log),
        },
    )
    run.start()
    done = run.until_over(70.0)

    exhausted = run.events("out_of_memory")
    crowds = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    yield _first(exhausted, stage)
    for place in ("forward", "backward", "optimizer", "evaluation"):
        yield _at(place, crowds, exhausted, stage)
    deaths = run.events("death") + run.events("kill")
    yield Finding(
        key="no_death",
        held=not deaths and done.restarts == 0,
        measured=f"{len(exhausted)} times out of memory, {len(deaths)} deaths, {done.restarts} restarts; "
        f"{(done.batch.peak_bytes or 0) >> 20} MiB of {LIMIT} in the last step",
        figures={"out_of_memory": len(exhausted), "deaths": len(deaths), "restarts": done.restarts},
    )
    wanted, found = planned_digest(job), (done.progress.digest or ".").split(".")[0]
    yield Finding(
        key="as_planned",
        held=found == wanted,
        measured=f"{done.progress.step} steps, digest {found}; from the settings alone: {wanted}",
        figures={"steps": done.progress.step, "digest": found, "planned": wanted},
    )


def _first(exhausted: list[dict[str, Any]], stage: Stage) -> Finding:
    early = [line for line in exhausted if (line.get("step") or 0) < 3]
    if stage.rehearses:
        return Finding(key="first", held=None, measured="this needs CUDA")
    cuts = [tuple(line["tokens"]) for line in early]
    return Finding(key="first", held=bool(early), measured=f"tokens at once before and after: {cuts}", figures={"cuts": cuts})


def _at(place: str, crowds: list[dict[str, Any]], exhausted: list[dict[str, Any]], stage: Stage) -> Finding:
    """Held by the crowd's own account: whether room was asked for while there was none, and how it went on."""
    own = [crowd for crowd in crowds if crowd["place"] == place]
    taken, given = ([crowd for crowd in own if crowd["what"] == what] for what in ("taken", "given back"))
    if not taken:
        return Finding(key=place, held=False, measured="the run never came there")
    if stage.rehearses and place == "optimizer":
        return Finding(key=place, held=None, measured="this needs CUDA")
    wants = place != "optimizer"
    answers = [line for line in exhausted if given and taken[0]["at"] <= line["at"] <= given[0]["at"] + 5]
    needed = [crowd["needed_room"] for crowd in given]
    held = needed == [wants] and bool(answers) is wants
    told = f"{taken[0]['bytes'] // MIB:,} MiB taken in step {taken[0]['step']}"
    result = (
        "the step had no room and was made again" if needed == [True] else "no room was asked for" if needed else "and kept"
    )
    return Finding(
        key=place,
        held=held,
        measured=f"{told}; {result}; {len(answers)} times reported",
        figures={"taken_bytes": taken[0]["bytes"], "step": taken[0]["step"], "reported": len(answers)},
    )


def planned_digest(job: Path) -> str:
    """The half of the digest that covers rows, weights and learning rates, from the settings alone: nothing is trained."""
    with (job / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    schedule = Schedule(rows=rows, effective_batch=EFFECTIVE, epochs=1, seed=SEED)
    order, digest = Order(schedule), BEFORE_FIRST
    for step in range(1, schedule.total_steps + 1):
        seen = order.batch(step)
        rate = learning_rate(step, peak=RATE, total_steps=schedule.total_steps, warmup_fraction=WARMUP)
        digest = rolled(
            digest, Step(step=step, rows=seen, weight=float(len(seen)), learning_rate=rate, loss=0.0, gradient_norm=0.0)
        )
    return digest.split(".")[0]
