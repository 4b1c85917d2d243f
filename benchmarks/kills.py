"""Bit-identity under fire: runs killed with SIGKILL at random instants, compared with one that was left alone.

    python benchmarks/kills.py [--kills 200] [--seed N]

Each run of the tiny job is killed up to ten times (worker, supervisor or both) and must end with exactly the weights, optimizer
state and audit digest of the undisturbed run. Prints a Markdown table of the kills and the verdict; exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit.killed_runs import Tally, disturbed, end_supervisors, make_job, undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print(f"Seed {options.seed}.", flush=True)
    draw, tally, runs, different = random.Random(options.seed), Tally(), 0, 0
    with tempfile.TemporaryDirectory(prefix="memsup-kills-") as folder:
        os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        job = Path(folder) / "job"
        make_job(job, epochs=60, amp="auto")
        try:
            expected = undisturbed(job, "undisturbed")
            while tally.total < options.kills:
                runs += 1
                end = disturbed(job, f"run{runs}", draw, tally, kills=10, longest_life_s=5.0)
                different += end != expected
                print(f"run {runs}: {tally.total} kills so far, {'the same bits' if end == expected else end}", flush=True)
        finally:
            end_supervisors()
    print("\n| killed | times |\n|---|---|")
    for victim, count in sorted(tally.kills.items()):
        print(f"| {victim} | {count} |")
    print("\n| while the worker was | times |\n|---|---|")
    for phase, count in sorted(tally.phases.items()):
        print(f"| {phase} | {count} |")
    print(f"\n{runs} runs, {tally.total} kills, {different} with other bits than the undisturbed run.")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
