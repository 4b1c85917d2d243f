"""Ranks of a person's own program that are Python alone: a launcher that tells them what torchrun tells its own."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

from kit.own_program import BARE_PYTHON, LOOP, undisturbed
from kit.run_state import status

LAUNCHER = """
import os, subprocess, sys, time
count = int(sys.argv[1])
told = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ranks = [subprocess.Popen(sys.argv[2:], env=os.environ | told | {"RANK": str(rank)}) for rank in range(count)]
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.02)
if any(rank.poll() for rank in ranks):
    for rank in ranks:
        rank.terminate()
sys.exit(max(bool(rank.wait()) for rank in ranks))
"""


_DRAWS = """    with open(f"drawn{rank}", "a") as file:
        print(run.step, batch, random.random(), file=file)
"""
PROGRAM = (
    LOOP.replace("random.seed(3)", 'rank = int(os.environ.get("RANK", RANK))\nrandom.seed(3 + rank)')
    .replace("    run.tell(", _DRAWS + "    run.tell(")
    .replace('open("result.json", "w")', "open(f\"result{os.environ.get('RANK', '')}.json\", \"w\")")
    .replace('    run.finish("result.json"', '    if rank in {0, RANK}:\n        run.finish("result.json"')
)
"""Each rank draws its own order and numbers, and writes them down. `RANK` is its number where no launcher says it."""


def write_ranks(folder: Path, ranks: int) -> list[str]:
    """Writes the program; returns the command that begins its ranks. Their weights are those of rank 0 after a death."""
    (folder / "launch.py").write_text(LAUNCHER)
    (folder / "loop.py").write_text(f"RANK = 0\n{PROGRAM}")
    return [sys.executable, "-S", "launch.py", str(ranks), *BARE_PYTHON, "loop.py"]


def drawn(folder: Path, rank: int) -> dict[str, str]:
    """What a rank has drawn for each step, when it did that the last time."""
    lines = (folder / f"drawn{rank}").read_text().splitlines()
    return {step: what for step, _, what in (line.partition(" ") for line in lines)}


def drawn_alone(folder: Path, rank: int) -> dict[str, str]:
    """What it draws by itself, without `memsup start`."""
    undisturbed(folder, f"RANK = {rank}\n{PROGRAM}")
    return drawn(folder, rank)


def pid_of(rank: int) -> int:
    """The process of a rank of the run's command."""
    for process in psutil.Process(status()["pid"]).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now, as one of the life before may
            if process.environ().get("RANK") == str(rank):
                return int(process.pid)
    raise AssertionError(f"there is no rank {rank}")
