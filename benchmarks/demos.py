"""The built-in jobs to their ends, as a person starts them (docs/commands.md).

    python benchmarks/demos.py [reviews] [ner] [chat] [english] [--kill] [--ram SIZE]

Each is started as a person starts it, in a state folder of its own and with its own settings. With `--kill` its worker is
killed with SIGKILL once, when a third of the steps is done. Prints a Markdown table: how long it took, until the first step and
altogether, the processor time of its workers, and what the evaluation says; below it what a language model answered before and
after. What the jobs need has to be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit.cli_process import end_supervisors, memsup
from kit.run_state import status, step_of

from memsup.shared.answers import read_answers
from memsup.shared.paths import run_paths
from memsup.supervisor.client.demos import DEMOS

LOOK_EVERY_S = 0.5
LEFT_AWAY = ("loss", "rows", "spans", "targets")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"some of {', '.join(DEMOS)}; all of them where none is named")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--ram", default="4GiB")
    options = parser.parse_args()
    print("| job | minutes | first step after, s | processor, min | result |\n|---|---|---|---|---|", flush=True)
    answers = []
    with tempfile.TemporaryDirectory(prefix="memsup-demos-", dir="/tmp") as folder:
        os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/s", "MEMSUP_RUNTIME_DIR": f"{folder}/r"}
        for job in options.jobs or DEMOS:
            try:
                print(to_its_end(job, options.ram, kill=options.kill), flush=True)
            finally:
                end_supervisors()
            answers += read_answers(run_paths(job).state)
    for answered in answers:
        print(f"\n* {answered.asked!r}\n  before: {answered.before!r}\n  after: {answered.after!r}")
    return 0


def to_its_end(job: str, ram: str, *, kill: bool) -> str:
    """The row of the table."""
    began = time.monotonic()
    done = memsup("start", "--demo", job, "--run", job, "--detach", "--set", f"limits.ram={ram}", within_s=300)
    assert done.returncode == 0, done.stdout + done.stderr
    spent_s: dict[int, float] = {}
    first_s: float | None = None
    while (seen := status(job))["state"] not in ("finished", "failed", "stopped"):
        if first_s is None and step_of(seen) > 0:
            first_s = time.monotonic() - began
        if (worker := seen["worker_pid"]) is not None:
            with contextlib.suppress(psutil.Error):
                spent_s[worker] = sum(psutil.Process(worker).cpu_times()[:2])
            if kill and step_of(seen) and 3 * step_of(seen) > seen["progress"]["total_steps"]:
                os.kill(worker, signal.SIGKILL)
                kill = False
        time.sleep(LOOK_EVERY_S)
    assert first_s is not None, seen
    result = seen["result"]
    said = ", ".join(f"{name} {value:.3g}" for name, value in result.items() if name not in LEFT_AWAY)
    took_s = time.monotonic() - began
    return f"| {job} | {took_s / 60:.1f} | {first_s:.0f} | {sum(spent_s.values()) / 60:.1f} | {said} |"


if __name__ == "__main__":
    sys.exit(main())
