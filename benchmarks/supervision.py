"""What supervision costs: samples per second of the built-in job with and without a supervisor, in alternating pairs.

    python benchmarks/supervision.py [--pairs 5] [--rows 4000]

*With* is `memsup start` as people use it: supervisor, fence, heartbeats, lease, looks at memory. *Without* is the same training
code in a process of its own that nobody watches: no supervisor, no fence, no link. Both train the same rows of the built-in job
on the same threads with the same settings of torch's libraries; the rate counts from the first step to the last. Prints a
Markdown table and the ratio of each pair.
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

ALONE = """
import os, sys
from memsup.worker.__main__ import LIBRARIES
os.environ.update(LIBRARIES | os.environ)  # as the worker does, before torch is loaded
from memsup.shared.messages import Welcome
from memsup.shared.paths import run_paths
from memsup.shared.record import read_record
from memsup.worker.link import Link
from memsup.worker.session import Session
from memsup.worker.train import train

paths = run_paths("bench")
record = read_record(paths.record)
read_end, write_end = os.pipe()
link = Link(paths, run_id=record.run_id, lifeline_fd=read_end)  # never started: no thread, no socket
welcome = Welcome(run_id=record.run_id, lease_s=1e9, memory_limit_bytes=None, micro_tokens_limit=None)
train(record, paths, welcome, Session(link))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4000)
    options = parser.parse_args()
    print("| pair | with, samples/s | without, samples/s | ratio |\n|---|---|---|---|", flush=True)
    ratios = []
    for pair in range(options.pairs):
        order = (True, False) if pair % 2 == 0 else (False, True)
        rates = {supervised: rate(supervised, options.rows) for supervised in order}
        ratios.append(rates[True] / rates[False])
        print(f"| {pair + 1} | {rates[True]:.1f} | {rates[False]:.1f} | {ratios[-1]:.4f} |", flush=True)
    print(f"\nMedian ratio {statistics.median(ratios):.4f}: the cost is {1 - statistics.median(ratios):.2%}.")


def rate(supervised: bool, rows: int) -> float:
    """Samples per second of one fresh run."""
    with tempfile.TemporaryDirectory(prefix="memsup-bench-") as folder:
        environment = os.environ | {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        epochs = rows / 31_611  # of the built-in job's rows that are trained on
        start = [
            sys.executable,
            "-c",
            "import sys; from memsup.supervisor.cli import main; sys.exit(main())",
            "start",
            "--demo",
        ]
        start += ["--run", "bench", "--set", f"training.epochs={epochs}", "--set", "checkpoint.every=1h"]
        if supervised:
            run([*start, "--wait"], environment)
        else:
            # The same run.json, made by a start that is stopped at once and begins anew without its supervisor.
            run(start, environment)
            run([*start[:3], "stop", "--now", "--run", "bench"], environment)
            count = threads(folder)
            same = {
                "OMP_NUM_THREADS": count,
                "MKL_NUM_THREADS": count,
                "OMP_WAIT_POLICY": "PASSIVE",
                "TOKENIZERS_PARALLELISM": "false",
            }
            run([sys.executable, "-P", "-c", ALONE], environment | same)
        newest = max((Path(folder) / "state/bench/checkpoints").glob("step-*"))
        state = json.loads((newest / "state.json").read_text())
        return state["step"] * state["effective_batch"] / state["trained_s"]


def threads(folder: str) -> str:
    record = json.loads((Path(folder) / "state/bench/run.json").read_text())
    return str(record["settings"]["training"]["threads"])


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[3:6])} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
