"""Part g: a program that knows nothing of memsup gives its card back, to a person and to a game, and takes it again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit import fake_libcuda
from kit.cli_process import eventually
from lines import Finding, Unproved, attempt
from stage import GIB, HERE, MIB, Run, Stage

from memsup.shared.status import RunState, Status
from parts.others import second_program, used_bytes

TITLE = "g. Any CUDA program gives its card back"
DEADLINE_S = 130.0
PROMISES = {
    "leaves": "`pause --release` of a program that is not attached frees the card, by the device's own count, within 15 s.",
    "usable": "Another process gets what came back.",
    "comes_back": "`resume` goes on within 15 s.",
    "makes_way": "Where a second program fills the card, it is free within 3 s, unasked.",
    "returns": "The program computes within 30 s after that has left, unasked.",
    "same_bits": "It ends with the bits of one that was left alone.",
}
HELD_GIB = 16
REHEARSED_SLOTS = 16
"""Each counts for 256 MiB on the device of the rehearsal, of 10 GiB."""


def prove(stage: Stage) -> Iterator[Finding]:
    yield from attempt(PROMISES, lambda: _moved(stage))


def _moved(stage: Stage) -> Iterator[Finding]:
    folder = stage.work / "program"
    folder.mkdir()
    command, environment = _program(stage, folder)
    idle_bytes = used_bytes()
    run = stage.program("any", command, folder, environment=environment)
    try:
        run.start()
        run.until("computing", lambda seen: _step(folder) > 20 and _is_seen(seen, idle_bytes, stage), 60.0)
        yield from _released(run, folder, idle_bytes, stage)
        yield from _beside_a_game(run, folder, stage)
        yield _same_bits(run, folder, command, environment)
    finally:
        run.end()


def _program(stage: Stage, folder: Path) -> tuple[list[str], dict[str, str]]:
    if not stage.rehearses:
        return [sys.executable, str(HERE / "peers" / "any_program.py"), "100000", str(HELD_GIB)], {}
    library = fake_libcuda.build(Path(os.environ["LD_LIBRARY_PATH"]))
    cuda = fake_libcuda.FakeLibcuda(library, folder)
    device = stage.fake.device[0]
    device.worker_bytes, device.others_bytes = 0, GIB
    program = fake_libcuda.write_program(folder)
    return [sys.executable, "-S", str(program), "100000", "1", str(REHEARSED_SLOTS)], cuda.environment


def _held_bytes(stage: Stage) -> int:
    return HELD_GIB * GIB if not stage.rehearses else REHEARSED_SLOTS * 256 * MIB


def _is_seen(seen: Status, idle_bytes: int, stage: Stage) -> bool:
    return bool(seen.gpus) and (seen.gpus[0].used_bytes or 0) >= idle_bytes + _held_bytes(stage)


def _step(folder: Path) -> int:
    try:
        return int((folder / "step").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def _released(run: Run, folder: Path, idle_bytes: int, stage: Stage) -> Iterator[Finding]:
    began_s = time.monotonic()
    document: dict[str, Any] = run.order("pause", "--release")
    took_s, freed, left_bytes = time.monotonic() - began_s, document["freed_vram_bytes"] or 0, used_bytes() - idle_bytes
    yield Finding(
        key="leaves",
        held=freed >= _held_bytes(stage) and left_bytes <= 256 * MIB and stage.judged(took_s <= 15.0),
        measured=f"{freed / GIB:.2f} GiB, said after {took_s:.1f} s; {left_bytes / MIB:.0f} MiB more than before it",
        figures={"freed_bytes": freed, "left_bytes": left_bytes, "took_s": took_s},
    )
    with second_program(stage) as other:
        began_s = time.monotonic()
        while not other.look()[1] and time.monotonic() - began_s < 20:
            time.sleep(0.05)
        holds, has_all = other.look()
        yield Finding(key="usable", held=has_all, measured=f"it holds {holds / GIB:.1f} GiB", figures={"holds_bytes": holds})
    began_s, stood = time.monotonic(), _step(folder)
    run.command("resume")
    eventually(lambda: _step(folder) > stood, 30 * stage.patience)
    took_s = time.monotonic() - began_s
    yield Finding(
        key="comes_back", held=stage.judged(took_s <= 15.0), measured=f"after {took_s:.1f} s", figures={"took_s": took_s}
    )


def _beside_a_game(run: Run, folder: Path, stage: Stage) -> Iterator[Finding]:
    run.until("seen again", lambda seen: _is_seen(seen, 0, stage), 20.0)
    settled_s = time.monotonic() + 3  # what others hold is known once it was there in two looks
    run.until("settled", lambda _: time.monotonic() > settled_s, 20.0)
    with second_program(stage) as other:
        began_s, full_s = time.monotonic(), 0.0
        while True:
            _, has_all = other.look()
            seen = run.look()
            used, total = seen.gpus[0].used_bytes or 0, seen.gpus[0].total_bytes or 1
            full_s = full_s or (time.monotonic() if used > 0.95 * total else 0.0)
            if has_all and seen.state is RunState.RECOVERING:
                break
            if time.monotonic() - began_s > 45 * stage.patience:
                raise Unproved(f"the card was not free within 45 s: {seen.state}, {used / GIB:.1f} GiB in use")
            time.sleep(0.05)
        events = run.events("card_left")
        took_s = time.monotonic() - (full_s or began_s)
        yield Finding(
            key="makes_way",
            held=len(events) == 2 and stage.judged(took_s <= 3.0),
            measured=f"{took_s:.1f} s after the card was full ({events[-1]['reason']})",
            figures={"took_s": took_s, "had_all_s": time.monotonic() - began_s},
        )
        stood = _step(folder)
    began_s = time.monotonic()
    eventually(lambda: _step(folder) > stood, 60 * stage.patience)
    took_s = time.monotonic() - began_s
    yield Finding(
        key="returns", held=stage.judged(took_s <= 30.0), measured=f"after {took_s:.1f} s", figures={"took_s": took_s}
    )


def _same_bits(run: Run, folder: Path, command: list[str], environment: dict[str, str]) -> Finding:
    (folder / "enough").touch()
    run.until_over(60.0)
    log = run.paths.worker_log
    found = eventually(lambda: re.search(r"digest (\d+) ([0-9a-f]{64})", log.read_text(encoding="utf-8")))
    step, moved = found[1], found[2]
    (folder / "enough").unlink()
    alone = [*command[: command.index("100000")], str(int(step) + 1), *command[command.index("100000") + 1 :]]
    undisturbed = os.environ | environment | {"STEP_S": "0"}
    done = subprocess.run(alone, cwd=folder, env=undisturbed, capture_output=True, text=True, check=True)
    left_alone = done.stdout.split()[-1]
    return Finding(
        key="same_bits",
        held=moved == left_alone,
        measured=f"{int(step) + 1} steps; digests {moved[:12]} and {left_alone[:12]}",
        figures={"steps": int(step) + 1, "same": moved == left_alone},
    )
