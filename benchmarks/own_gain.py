"""A batch that dies under a limit of memory: rows a second under memsup, beside the best batch size that survives by hand
(docs/own-programs.md).

    python benchmarks/own_gain.py --python PYTHON --examples FOLDER [--share 60] [--batch 480] [--assets FOLDER]

The script is Hugging Face's `run_classification.py`, unchanged, as in own_scripts.py. The limit is a share of what it takes
with its batch. By hand: half the batch, and so on; the largest one survives whose most memory lies below the limit. Under
memsup the batch stays what it is, within the limit. Rows are counted by the second of processor time, since other programs on
the machine change every other second; a training of one small step is taken off, for what all begin with. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit.cli_process import MEMSUP
from own_script_sets import QUIET, SCRIPTS
from own_scripts import MIB, make_assets

TIMED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "a") as file:
    file.write(f"{used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024}\\n")
sys.exit(code)
"""
STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--examples", default=".")
    parser.add_argument("--assets")
    parser.add_argument("--share", type=int, default=60)
    parser.add_argument("--batch", type=int, default=480)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gain-", dir="/tmp") as scratch:
        assets = Path(options.assets or scratch, "assets")
        if not assets.exists():
            make_assets(assets, options.python)

        def ran(name: str, batch: int, steps: int, *before: str) -> tuple[float, int]:
            """The processor time of a run in seconds, in its last life, and the most memory that it had, in bytes."""
            text = re.sub(r"(--per_device_train_batch_size) \d+", rf"\1 {batch}", SCRIPTS["run_classification"])
            values = {"out": f"{scratch}/{name}", "examples": options.examples, "steps": str(steps)}
            script = [options.python, *shlex.split(text.format(**values))]
            timed = [options.python, "-c", TIMED, f"{scratch}/{name}.took", *script]
            own = {"MEMSUP_STATE_DIR": f"{scratch}/s", "MEMSUP_RUNTIME_DIR": f"{scratch}/r", "MEMSUP_CHECKPOINT_EVERY": "1000s"}
            subprocess.run([*before, *timed], cwd=assets, env=os.environ | QUIET | own, check=True, capture_output=True)
            lines = Path(f"{scratch}/{name}.took").read_text().splitlines()
            return sum(float(line.split()[0]) for line in lines), max(int(line.split()[1]) for line in lines)

        begin_s, _ = ran("begin", 8, 1)
        print("| batch | most memory | rows a second of processor time |\n|---|---|---|")
        batch, limit = options.batch, 0
        while batch:
            took_s, peak = ran(f"by-hand-{batch}", batch, STEPS)
            limit = limit or peak * options.share // 100
            survives = peak < limit
            rate = batch * STEPS / (took_s - begin_s)
            print(f"| {batch}, by hand | {peak // MIB:,} MiB{'' if survives else ': dies'} | {rate:.0f} |", flush=True)
            if survives:
                break
            batch //= 2
        guard = [*MEMSUP, "start", "--wait", "--set", f"limits.ram={limit // MIB}MiB", "--"]
        took_s, peak = ran("guarded", options.batch, STEPS, *guard)
        rate = options.batch * STEPS / (took_s - begin_s)
        print(f"| {options.batch}, under memsup | {peak // MIB:,} MiB of {limit // MIB:,} MiB | {rate:.0f} |")


if __name__ == "__main__":
    main()
