"""Part h: a program of a person's own that is attached, on the card: memory that runs out, others, a pause, a kill."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lines import Finding, Unproved, attempt
from stage import GIB, HERE, MIB, Run, Stage

from memsup.shared.status import Status
from parts.others import second_program, used_bytes

TITLE = "h. An attached program on the card"
DEADLINE_S = 150.0
PROMISES = {
    "cut": "A batch that does not fit into 3 GiB of the card is computed in parts, in the same process.",
    "beside_others": "A second program gets 90 % of the card; the program goes on in parts, or leaves and comes back.",
    "released": "`pause --release` gives its memory back by the device's own count; `resume` goes on.",
    "same_bits": "Paused with --release and killed with SIGKILL, it ends with the bits of one that was left alone.",
}
CUT_GIB, BATCH_ROWS, REHEARSED_ROWS, EPOCHS = 3, 8192, 64, 15


def prove(stage: Stage) -> Iterator[Finding]:
    yield from attempt(["cut"], lambda: [_cut(stage)])
    yield from attempt(["beside_others"], lambda: [_beside(stage)])
    yield from attempt(["released", "same_bits"], lambda: _disturbed(stage))


def _run(stage: Stage, name: str, epochs: int, *more: str, **environment: str) -> tuple[Run, Path]:
    folder = stage.work / name
    folder.mkdir()
    command = [sys.executable, str(HERE / "peers" / "attached_program.py"), str(epochs), *more]
    return stage.program(name, command, folder, environment=environment), folder


def _cut(stage: Stage) -> Finding:
    fraction = CUT_GIB * GIB / int(_total_bytes()) if not stage.rehearses else 0.3
    run, _ = _run(stage, "cut", 1, f"{fraction:.6f}")
    try:
        run.start()
        done = run.until_over(60.0)
    finally:
        run.end()
    exhausted, deaths = run.events("out_of_memory"), run.events("death")
    most_rows = BATCH_ROWS if not stage.rehearses else REHEARSED_ROWS
    return Finding(
        key="cut",
        held=not deaths and done.batch.micro_rows is not None and done.batch.micro_rows < most_rows,
        measured=f"{len(exhausted)} times out of memory, {len(deaths)} deaths, {done.batch.micro_rows} rows at once at the end",
        figures={"exhausted": len(exhausted), "deaths": len(deaths), "micro_rows": done.batch.micro_rows},
    )


def _total_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def _disturbed(stage: Stage) -> Iterator[Finding]:
    idle_bytes = used_bytes()
    run, folder = _run(stage, "attached", EPOCHS, STEP_S="0.1")
    try:
        run.start()
        run.until("attached and computing", lambda seen: (seen.progress.step or 0) >= 5, 60.0)
        yield _released(run, stage, idle_bytes)
        victim = run.until("at half of its steps", lambda seen: _part(seen) >= 0.5 and seen.worker_pid is not None, 90.0)
        if victim.worker_pid is None:
            raise Unproved("there was no worker to be killed")
        os.kill(victim.worker_pid, signal.SIGKILL)
        done = run.until_over(120.0)
    finally:
        run.end()
    alone, beside = _run(stage, "alone", EPOCHS)
    try:
        alone.start()
        alone.until_over(90.0)
    finally:
        alone.end()
    moved, left_alone = ((one / "digest").read_text(encoding="ascii") for one in (folder, beside))
    yield Finding(
        key="same_bits",
        held=moved == left_alone and done.restarts == 1,
        measured=f"digests {moved[:12]} and {left_alone[:12]}; {done.restarts} restart",
        figures={"same": moved == left_alone, "restarts": done.restarts},
    )


def _part(seen: Status) -> float:
    return (seen.progress.step or 0) / (seen.progress.total_steps or 1e9)


def _beside(stage: Stage) -> Finding:
    run, _ = _run(stage, "crowded", 1000, STEP_S="0.05")
    try:
        run.start()
        run.until("attached and computing", lambda seen: (seen.progress.step or 0) >= 5, 60.0)
        return _crowded(run, stage)
    finally:
        run.end()


def _crowded(run: Run, stage: Stage) -> Finding:
    with second_program(stage) as other:
        began_s = time.monotonic()
        while not other.look()[1]:
            run.look()
            if time.monotonic() - began_s > 45:
                raise Unproved(f"the second program holds {other.look()[0] / GIB:.1f} GiB after 45 s")
            time.sleep(0.05)
        had_all_s, step = time.monotonic() - began_s, run.look().progress.step or 0
        beside = run.until(
            "steps beside it, or away", lambda seen: (seen.progress.step or 0) >= step + 2 or seen.worker_pid is None, 20.0
        )
    away = beside.worker_pid is None
    told = f"it had its part after {had_all_s:.1f} s; the program {'left' if away else 'went on'}"
    return Finding(
        key="beside_others",
        held=(had_all_s <= 30.0 and not run.events("kill")) if not stage.rehearses else None,
        measured=told if not stage.rehearses else f"this needs CUDA: the program computes on the CPU; {told}",
        figures={"had_all_s": had_all_s, "left": away},
    )


def _released(run: Run, stage: Stage, idle_bytes: int) -> Finding:
    began_s = time.monotonic()
    document: dict[str, Any] = run.order("pause", "--release")
    took_s, left_bytes = time.monotonic() - began_s, used_bytes() - idle_bytes
    step = document["status"]["progress"]["step"]
    run.command("resume")
    run.until("training again", lambda seen: (seen.progress.step or 0) > step, 60.0)
    return Finding(
        key="released",
        held=left_bytes <= 256 * MIB and stage.judged(took_s <= 15.0),
        measured=f"after {took_s:.1f} s {left_bytes / MIB:.0f} MiB more are in use than before it; it went on at step {step}",
        figures={"left_bytes": left_bytes, "took_s": took_s, "freed_bytes": document["freed_vram_bytes"]},
    )
