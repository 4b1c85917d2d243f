"""A training program of a person's own, in pure Python, so that it begins in a tenth of a second; and the interpreter of an
environment that has nothing of memsup.

Its loader shuffles, and its step draws as well, so that its weights tell whether it was gone on with in the right place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kit.run_state import step_of, until
from memsup.shared.paths import run_paths

BARE_PYTHON = [sys.executable, "-S"]
"""No site-packages: nothing of memsup, and nothing else."""
STEPS = 200
LOOP = """
import json, os, random, sys, time
import memsup

model = {"weights": [0.0] * 8}

def save(folder):
    with open(os.path.join(folder, "model.json"), "w") as file:
        json.dump(model, file)

def load(folder):
    with open(os.path.join(folder, "model.json")) as file:
        model.update(json.load(file))

class Loader:
    def __len__(self):
        return 50

    def __iter__(self):
        order = list(range(50))
        random.shuffle(order)
        return iter(order)

random.seed(3)
run = memsup.guard(save=save, load=load, save_every_s=float(os.environ.get("EVERY_S", "0.1")))
how = "attached" if run.is_attached else "alone"
print(f"begins at step {run.step} {how}\\n", end="", flush=True)  # in one piece, since several ranks print
for batch in run.steps(Loader(), epochs=int(os.environ.get("EPOCHS", "4"))):
    at = batch % 8
    model["weights"][at] += 0.1 * (batch + random.random() - model["weights"][at])
    run.tell(loss=abs(model["weights"][at]))
    exec(os.environ.get("IN_A_STEP", ""))
    time.sleep(float(os.environ.get("STEP_S", "0.01")))
if "NO_FINISH" not in os.environ:
    with open("result.json", "w") as file:
        json.dump(model, file)
    run.finish("result.json", metrics={"loss": 0.5})
"""


def write_loop(folder: Path) -> list[str]:
    """Writes the program; returns the command that runs it."""
    (folder / "loop.py").write_text(LOOP)
    return [*BARE_PYTHON, "loop.py"]


def endless_loop(folder: Path) -> list[str]:
    """The command of a training that goes on for longer than any test, and takes next to nothing of the processors."""
    return ["env", "EPOCHS=1000000", "STEP_S=0.05", "EVERY_S=1000", *write_loop(folder)]


def undisturbed(folder: Path, program: str = LOOP) -> Any:
    """What the program ends with by itself, without `memsup start`."""
    folder.mkdir()
    (folder / "loop.py").write_text(program)
    done = subprocess.run([sys.executable, "loop.py"], cwd=folder, env=os.environ | {"STEP_S": "0"}, check=True, timeout=60)
    assert done.returncode == 0
    return result(folder)


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


# --------------------------------------------------------------------------------------------------------------------
# What is seen of one that is guarded

OVER = {"finished", "failed", "stopped"}


def is_attached(seen: Any) -> bool:
    return bool(seen["program"] and seen["program"]["attached"])


def trains_beyond(step: int, within_s: float = 30) -> Any:
    return until(lambda seen: is_attached(seen) and seen["state"] == "running" and step_of(seen) > step, within_s)


def ended() -> Any:
    return until(lambda seen: seen["state"] in OVER, 60)


def printed() -> str:
    """What the program has printed, memsup's own words among it."""
    log = run_paths("default").worker_log
    return log.read_text() if log.exists() else ""
