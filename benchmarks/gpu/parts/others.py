"""Part d: others on the card: a second program takes most of it; all is given back for a pause; and what a kill costs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kit import KIT, TESTS
from kit.fake_nvml import Device
from kit.killed_runs import end_of
from lines import Finding, Unproved, attempt
from stage import GIB, HERE, MIB, Run, Stage

from memsup.shared.status import OVER, RunState, Status

TITLE = "d. Others on the card, pauses and kills"
DEADLINE_S = 215.0
PROMISES = {
    "second_program": "A second program gets 90 % of the card in 30 s; neither dies, and the run goes on smaller or leaves.",
    "comes_back": "When it is gone, the run computes as much at once as before it, or twice as much as beside it, within 75 s.",
    "released": "`pause --release` gives the memory back by the device's own count, within 15 s.",
    "resumed": "`resume` goes on where it was, within 45 s.",
    "same_bits": "Paused, resumed and killed with SIGKILL, a run ends with the bits of one that was left alone.",
}
FRACTION, REHEARSED_FRACTION = 0.9, 0.6
"""The device of the rehearsal is small, and nine tenths of it would leave no room for one row."""
DETERMINISTIC = {"DETERMINISTIC": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


class SecondProgram(Protocol):
    """Somebody else who wants a part of the card."""

    def look(self) -> tuple[int, bool]:
        """The bytes that it holds, and whether that is all it wants."""
        ...

    def leave(self) -> None: ...


class RealProgram:
    """`peers/second_program.py` as a process of its own."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(HERE / "peers" / "second_program.py"), str(FRACTION)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holds, self._has_all, self._rest = 0, False, b""

    def look(self) -> tuple[int, bool]:
        assert self._child.stdout is not None
        if self._child.poll() is not None:
            raise Unproved(f"the second program died with {self._child.returncode}")
        while select.select([self._child.stdout], [], [], 0)[0]:
            *lines, self._rest = (self._rest + os.read(self._child.stdout.fileno(), 65536)).split(b"\n")
            for line in lines:
                said = json.loads(line)
                self._holds, self._has_all = said["holds_bytes"], said["has_all"]
        return self._holds, self._has_all

    def leave(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(20)


class RehearsedProgram:
    """Memory of others on the device of the tests' library: as much as is free, until it is what is wanted."""

    def __init__(self, device: Device) -> None:
        self._device, self._before = device, device.others_bytes
        self._wanted = REHEARSED_FRACTION * device.total_bytes

    def look(self) -> tuple[int, bool]:
        device = self._device
        counted = sum(process.bytes for process in device.processes if process.pid) if device.counts_processes else 0
        device.others_bytes = min(self._wanted, device.total_bytes - device.worker_bytes - counted)
        return int(device.others_bytes), device.others_bytes >= self._wanted

    def leave(self) -> None:
        self._device.others_bytes = self._before


@dataclass
class Seen:
    """What came of a second program."""

    had_all_s: float | None = None
    """It had its part after so many seconds. It is None where it never had."""
    left: bool = False
    """The worker gave the card up."""
    least_tokens: int | None = None


def prove(stage: Stage) -> Iterator[Finding]:
    yield from attempt(["second_program", "comes_back", "released", "resumed"], lambda: _beside_others(stage))
    yield from attempt(["same_bits"], lambda: [_same_bits(stage)])


def _beside_others(stage: Stage) -> Iterator[Finding]:
    run = _large_run(stage)
    idle_bytes = used_bytes()
    try:
        run.start()
        before = run.until("training", lambda seen: (seen.progress.step or 0) >= 6 and bool(seen.gpus), 60.0)
        yield from _crowded(run, stage, before)
        yield from _paused(run, stage, idle_bytes)
    finally:
        run.end()


def _large_run(stage: Stage) -> Run:
    """It holds much of the card, and trains until it is told to stop."""
    if not stage.rehearses:
        job = stage.job("large", rows=12_000)
        asked = ("training.effective_batch=64", "training.micro_tokens=32768", "training.max_length=512", "training.amp=off")
        return stage.run("large", job, *asked, "training.epochs=50", "training.tune=true", "checkpoint.every=1h")
    job = stage.job("large", rows=240)
    asked = ("training.effective_batch=8", "training.micro_tokens=96", "training.max_length=16", "training.amp=off")
    device = stage.fake.device[0]
    device.worker_bytes, device.frees_of_dead = 0, 1
    environment = {
        "PYTHONPATH": f"{KIT / 'fake_cuda' / 'site'}:{TESTS}:{os.environ['PYTHONPATH']}",
        "FAKE_CUDA": f"{2 * GIB // MIB} 50",
    }
    return stage.run(
        "large",
        job,
        *asked,
        "training.epochs=2000",
        "training.tune=true",
        "training.threads=1",
        "checkpoint.every=1h",
        environment=environment,
    )


def _crowded(run: Run, stage: Stage, before: Status) -> Iterator[Finding]:
    tokens_before = before.batch.micro_tokens
    used_before = before.gpus[0].used_bytes
    with second_program(stage) as other:
        seen, began_s = Seen(), time.monotonic()

        def look(status: Status) -> None:
            _, has_all = other.look()
            if has_all and seen.had_all_s is None:
                seen.had_all_s = time.monotonic() - began_s
            seen.left = seen.left or (status.state is RunState.RECOVERING and status.worker_pid is None)
            if status.batch.micro_tokens is not None:
                seen.least_tokens = min(status.batch.micro_tokens, seen.least_tokens or status.batch.micro_tokens)

        run.until("room for the second program", lambda _: seen.had_all_s is not None, 45.0, look)
        assert seen.had_all_s is not None
        step = run.look().progress.step or 0
        during = run.until(
            "steps beside it, or away from the card",
            lambda status: seen.left or (status.progress.step or 0) >= step + 3,
            20.0,
            look,
        )
        deaths = run.events("death")
        how = "left the card" if seen.left else f"went on with {seen.least_tokens} tokens at once in place of {tokens_before}"
        yield Finding(
            key="second_program",
            held=during.state not in OVER and (seen.left or not deaths) and stage.judged(seen.had_all_s <= 30.0),
            measured=f"{(used_before or 0) / GIB:.1f} GiB were in use; it had its part after {seen.had_all_s:.1f} s; "
            f"the run {how}; {len(deaths)} deaths",
            figures={
                "had_all_s": seen.had_all_s,
                "left": seen.left,
                "tokens_before": tokens_before,
                "tokens": seen.least_tokens,
            },
        )
    gone_s, least = time.monotonic(), seen.least_tokens or 0
    enough = min(2 * least, tokens_before or 2 * least)
    try:
        after = run.until("larger again", lambda status: (status.batch.micro_tokens or 0) >= enough, 75.0)
    except Unproved as why:
        yield Finding(key="comes_back", held=False, measured=str(why))
    else:
        took_s = time.monotonic() - gone_s
        told = f"{after.batch.micro_tokens} tokens at once in place of {least} after {took_s:.0f} s"
        yield Finding(
            key="comes_back", held=True, measured=told, figures={"took_s": took_s, "tokens": after.batch.micro_tokens}
        )


@contextmanager
def second_program(stage: Stage) -> Iterator[SecondProgram]:
    other = RehearsedProgram(stage.fake.device[0]) if stage.rehearses else RealProgram()
    try:
        yield other
    finally:
        other.leave()


def used_bytes() -> int:
    """Of the device, as a process of its own is told by the driver."""
    asked = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetMemoryInfo(n.nvmlDeviceGetHandleByIndex(0)).used)"
    return int(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout)


def _paused(run: Run, stage: Stage, idle_bytes: int) -> Iterator[Finding]:
    """`idle_bytes` of the device were in use before there was a run."""
    began_s = time.monotonic()
    document: dict[str, Any] = run.order("pause", "--release")
    took_s, freed, left_bytes = time.monotonic() - began_s, document["freed_vram_bytes"], used_bytes() - idle_bytes
    yield Finding(
        key="released",
        held=freed is not None and freed > 0 and left_bytes <= 256 * MIB and stage.judged(took_s <= 15.0),
        measured=f"{(freed or 0) / GIB:.2f} GiB, said after {took_s:.1f} s; {left_bytes / MIB:.0f} MiB more than before it",
        figures={"freed_bytes": freed, "left_bytes": left_bytes, "took_s": took_s},
    )
    paused_at = document["status"]["progress"]["step"]
    began_s = time.monotonic()
    run.command("resume")
    again = run.until("training again", lambda seen: (seen.progress.step or 0) > paused_at, 60.0)
    took_s = time.monotonic() - began_s
    yield Finding(
        key="resumed",
        held=stage.judged(took_s <= 45.0),
        measured=f"step {paused_at} before, step {again.progress.step} done {took_s:.1f} s after `resume`",
        figures={"took_s": took_s},
    )


def _same_bits(stage: Stage) -> Finding:
    """Two runs of one job, with kernels that give the same bits each time; the second is disturbed."""
    job = stage.job("bits", rows=4800 if not stage.rehearses else 640, model={})
    settings = (
        "training.effective_batch=16",
        "training.micro_tokens=2048",
        "training.max_length=128",
        f"training.threads={1 if stage.rehearses else 2}",
        "training.lanes=1",
        f"training.epochs={2 if not stage.rehearses else 6}",
        "checkpoint.every=2s",
        "training.amp=off",
    )
    environment = DETERMINISTIC | {"PYTHONPATH": f"{HERE / 'worker_site'}:{os.environ['PYTHONPATH']}"}
    alone, disturbed = (stage.run(name, job, *settings, environment=environment) for name in ("alone", "disturbed"))
    alone.start()
    alone.until_over(120.0)
    disturbed.start()
    _at(disturbed, 0.2)
    disturbed.order("pause", "--release")
    disturbed.command("resume")
    victim = _at(disturbed, 0.6).worker_pid
    if victim is None:
        raise Unproved("there was no worker to be killed")
    os.kill(victim, signal.SIGKILL)
    done = disturbed.until_over(120.0)
    ends = [end_of(run.paths) for run in (alone, disturbed)]
    return Finding(
        key="same_bits",
        held=ends[0] == ends[1] and done.restarts == 1,
        measured=f"{ends[0].step} steps; tensors {ends[0].tensors[:12]} and {ends[1].tensors[:12]}, digests {ends[0].digest} "
        f"and {ends[1].digest}; {done.restarts} restart",
        figures={
            "same_tensors": ends[0].tensors == ends[1].tensors,
            "same_digest": ends[0].digest == ends[1].digest,
            "steps": ends[0].step,
            "kernels": _kernels(disturbed.paths.worker_log),
        },
    )


def _at(run: Run, fraction: float) -> Status:
    """When this part of its steps is done, and a worker does them."""
    return run.until(
        f"at {fraction:.0%} of its steps",
        lambda seen: (seen.progress.step or 0) >= fraction * (seen.progress.total_steps or 1e9) and seen.worker_pid is not None,
        60.0,
    )


def _kernels(log: Path) -> list[str]:
    """What torch said has no deterministic kernel."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return sorted({line.strip()[:200] for line in lines if "does not have a deterministic implementation" in line})[:5]
