"""What does it cost a program of one's own to be attached? Processor time of a step, and of the start.

    python benchmarks/own_price.py [--pairs 5] [--steps 20000]

The same loop of empty steps by itself and under `memsup start`, taking turns; once in pure Python, once with numpy and torch
imported, whose generators are remembered with each step. Processor time of the whole process is counted, the link's thread
included, since that hardly depends on what else the machine does. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import json, sys, time

if sys.argv[1] == "torch":
    import numpy, torch
began_s = time.process_time()
import memsup

run = memsup.guard(save=lambda folder: open(folder + "/empty", "w").close(), load=lambda folder: None, save_every_s=1e6)
guarded_s = time.process_time()
for _ in run.steps(range(int(sys.argv[2]))):
    pass
steps_s = time.process_time() - guarded_s
run.finish()
with open("took.json", "w") as file:
    json.dump({"attached": run.is_attached, "start_s": guarded_s - began_s, "step_s": steps_s / int(sys.argv[2])}, file)
"""
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
LINKS = Path(__file__).parents[1] / "build" / "links"


def took(folder: Path, kind: str, steps: int, *, guarded: bool) -> dict[str, float]:
    """The seconds of processor time of one run of the program."""
    (folder / "loop.py").write_text(PROGRAM)
    command = [sys.executable, "loop.py", kind, str(steps)]
    environment = os.environ | {"MEMSUP_STATE_DIR": str(folder / "s"), "MEMSUP_RUNTIME_DIR": str(folder / "r")}
    if guarded:
        command = [*MEMSUP, "start", "--fresh", "--wait", "--", *command]
    else:
        environment["PYTHONPATH"] = str(LINKS)
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    found: dict[str, float] = json.loads((folder / "took.json").read_text())
    assert found["attached"] is guarded
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=20_000)
    given = arguments.parse_args()
    print("| program | a step alone | a step attached | difference | start alone | start attached |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        for kind, what in (("python", "pure Python"), ("torch", "with numpy and torch")):
            folder, sides = Path(name), (False, True)
            pairs = [[took(folder, kind, given.steps, guarded=side) for side in sides] for _ in range(given.pairs)]
            alone, attached = (
                {key: statistics.median(pair[side][key] for pair in pairs) for key in ("step_s", "start_s")} for side in (0, 1)
            )
            step = [f"{found['step_s'] * 1e6:.1f} µs" for found in (alone, attached)]
            more = f"{(attached['step_s'] - alone['step_s']) * 1e6:.0f} µs"
            start = [f"{found['start_s'] * 1e3:.0f} ms" for found in (alone, attached)]
            print(f"| {what} | {step[0]} | {step[1]} | {more} | {start[0]} | {start[1]} |")


if __name__ == "__main__":
    main()
