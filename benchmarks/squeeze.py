"""The limit around a run falls to 60 % in mid-run and comes back: does it live, learn the same, and find its speed again?

    python benchmarks/squeeze.py [--limit 2.0] [--rows 640] [--epochs 6] [--squeezed-s 60] [--chat FOLDER]

Needs root and cgroup version 1. Job and box are those of `tiers.py`, with a text length of 512, at which memory matters; with
`--chat` a chat model learns by adapters, and the folder is the one that `memsup start --demo chat` makes.
One run is squeezed, one left alone; steps and the half of the audit digest that covers rows, order and learning rate have to
be equal (the other half has the bits of the losses, which depend on the cuts). Exit code 0 if everything held.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxed import LOOK_S, MEMSUP, Box, Steps, box, environment, make_job, memsup_start
from tiers import EFFECTIVE, end_memsup

GIB = 2**30
FALLS_TO = 0.6
SETTLE_S = 40.0
"""Before the squeeze the run finds its speed; the last part of it counts."""
OVER_S = 20.0
"""Speeds are taken over this time: reviews differ in length, and so do steps."""
BACK_WITHIN_S = 60.0
BACK_TO = 0.95
FALL_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=2.0, metavar="GIB")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--squeezed-s", type=float, default=60.0)
    parser.add_argument("--chat", type=Path)
    options = parser.parse_args()
    limit = int(options.limit * GIB)
    settings = [f"training.epochs={options.epochs}", "checkpoint.every=1h"]
    with tempfile.TemporaryDirectory(prefix="memsup-squeeze-") as folder:
        work = Path(folder)
        if options.chat is None:
            make_job(work, options.rows)
            command = memsup_start(work, *settings, "training.max_length=512")
        else:
            chat = ["task.kind=causal-lm", f"task.model={options.chat}/model", f"task.train={options.chat}/dialogues.jsonl"]
            flags = [flag for setting in (*chat, *settings, "training.max_length=256") for flag in ("--set", setting)]
            command = [*MEMSUP, "start", "--tier", "auto", "--wait", "--accept", "--run", "bench", *flags]
        with box(limit) as limits:
            squeezed = Watched(work, "squeezed", limits, command)
            before = squeezed.speed_once(SETTLE_S)
            fell_s = fall(limits, int(FALLS_TO * limit), squeezed)
            squeezed.watch(options.squeezed_s, "squeezed")
            during = squeezed.speed()
            if not limits.limit(limit):
                raise SystemExit("The limit cannot be raised again.")
            back_s, after = squeezed.until_back(before)
            ended = squeezed.end()
            kills = limits.look().oom_kills
            told = squeezed.ledger()
        with box(limit) as limits:
            alone = Watched(work, "alone", limits, command).end()
    plan_half = [str(end["progress"]["digest"]).split(".")[0] for end in (ended, alone)]
    checks = {
        "finished, both": (ended["state"], alone["state"]) == ("finished", "finished"),
        "no death": ended["restarts"] == 0 and kills == 0,
        f"{before:.1f} samples/s before, {during:.1f} squeezed, {after:.1f} after {back_s:.0f} s": after >= BACK_TO * before,
        f"the limit fell within {fell_s:.1f} s": fell_s < FALL_S,
        f"{ended['progress']['step']} steps, as undisturbed": ended["progress"]["step"] == alone["progress"]["step"],
        f"digest {plan_half[0]}, as undisturbed": plan_half[0] == plan_half[1],
    }
    if not all(checks.values()):
        print(told)
    for what, held in checks.items():
        print(f"{'held  ' if held else 'FAILED'}  {what}")
    return 0 if all(checks.values()) else 1


class Watched:
    """One memsup run in a box, seen from outside."""

    def __init__(self, work: Path, name: str, limits: Box, command: list[str]) -> None:
        self._home, self._limits = work / name, limits
        self._home.mkdir()
        self.steps = Steps(self._home / "state/bench/audit.txt")
        self._child = limits.start(command, environment(self._home), self._home / "log")

    def watch(self, for_s: float, when: str, until: Callable[[], bool] = lambda: False) -> None:
        deadline_s = time.monotonic() + for_s
        while time.monotonic() < deadline_s and not until():
            if self._child.poll() is not None:
                log = (self._home / "log").read_text(encoding="utf-8", errors="replace")
                raise SystemExit(f"The run ended while {when} (take more --epochs if it was too short):\n{log[-2000:]}")
            self.look()

    def look(self) -> None:
        self.steps.look(time.monotonic())
        self._limits.look()
        time.sleep(LOOK_S)

    def speed_once(self, settled_s: float) -> float:
        """Samples per second when the run has trained for so long."""
        self.watch(300.0, "it started", lambda: bool(self.steps.done_at_s))
        self.watch(settled_s, "it settled")
        return self.speed()

    def speed(self) -> float:
        """Of the last `OVER_S`."""
        done = self.steps.done_at_s
        recent = [at_s for at_s in done if at_s > time.monotonic() - OVER_S]
        return EFFECTIVE * (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    def until_back(self, before: float) -> tuple[float, float]:
        """After how many seconds the old speed was reached again, over a window that begins after the limit came back."""
        began_s = time.monotonic()
        self.watch(OVER_S, "it recovered")
        self.watch(BACK_WITHIN_S - OVER_S, "it recovered", lambda: self.speed() >= BACK_TO * before)
        return time.monotonic() - began_s, self.speed()

    def ledger(self) -> str:
        return (self._home / "state/bench/ledger.jsonl").read_text(encoding="utf-8")

    def end(self) -> dict[str, Any]:
        """The status of the finished run."""
        while self._child.poll() is None:
            self.look()
        return end_memsup(self._home)


def fall(limits: Box, to_bytes: int, run: Watched) -> float:
    """Lowers the limit as far as the kernel can at once and the rest as the run gives way; returns the seconds it took."""
    began_s = time.monotonic()
    while not limits.limit(to_bytes):
        used = int((limits.folder / "memory.usage_in_bytes").read_text())
        limits.limit(max(to_bytes, used + 16 * 2**20))  # the wall is moved to where the run stands
        run.look()
        if time.monotonic() - began_s > FALL_S:
            return FALL_S
    return time.monotonic() - began_s


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
