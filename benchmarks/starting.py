"""What `worker/imports.py` saves while the worker imports torch and transformers; what `memsup status` takes; and how long it
is from `memsup start --demo` to the first step.

    python benchmarks/starting.py [--rounds 8]
    python benchmarks/starting.py --status RUN [--rounds 20]
    python benchmarks/starting.py --first-step [--rounds 5]

Three processes a round, one after the other: one imports as Python does by itself, one with its search for garbage switched
off, one with transformers' scan of its sources made quicker as well. The ratio is the median, over the rounds, of the processor
time against that of the first; the memory is what is resident after the import. Prints Markdown.

With `--status` the processor time of whole processes, in turns: a bare Python, what the command line cannot do without, and
`memsup status` of a run that is up. Say it in an environment into which memsup is installed as users have it: an editable
install makes every Python slower.

With `--first-step` the clock, from the moment at which the command is given until its run says that a step is done, in parts.
Each round has new folders for state, runtime and cache, so nothing of the demo is kept; the libraries' files are in the page
cache from the second round on, and the first is left out. Nothing else may want the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from memsup.shared.paths import RunPaths
from memsup.shared.status import OVER
from memsup.supervisor.client.contact import observe

CHILD = """
import sys, time
from contextlib import ExitStack
from memsup.worker import imports
begun_s = time.process_time()
with ExitStack() as quicker:
    for name in sys.argv[1:]:
        quicker.enter_context(getattr(imports, name)())
    import memsup.worker.train
took_s = time.process_time() - begun_s
with open("/proc/self/statm") as file:
    print(took_s, int(file.read().split()[1]) * 4096)
"""

WAYS = {
    "as Python does it": (),
    "no search for garbage": ("without_search_for_garbage",),
    "and one quick scan": ("without_search_for_garbage", "quick_scan_of_transformers"),
}
"""The name in the table, and what of `worker/imports.py` is used."""


QUICKLY = {
    "Python": "pass",
    "and msgspec": "import msgspec, os; os._exit(0)",
    "`memsup status`": "from memsup.supervisor.cli import main; main()",
    "by way of click": "import sys; sys.argv.append('--'); from memsup.supervisor.cli import main; main()",
}
"""The name in the table of `--status`, and what the process does."""


MEMSUP = [sys.executable, "-c", "from memsup.supervisor.cli import main; main()"]
UNTIL = {
    "the supervisor guards, and the command ends": "guards",
    "the worker is there": "there",
    "libraries, data and model are loaded": "prepared",
    "the first step is done, and told": "told",
}
"""The parts of `--first-step`, each from the end of the one before: its end in words, and its name."""
LOOK_EVERY_S = 0.02
WITHIN_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--status", metavar="RUN")
    parser.add_argument("--first-step", action="store_true")
    options = parser.parse_args()
    if options.first_step:
        to_first_step(options.rounds or 5)
        return
    if options.status is not None:
        of_status(options.status, options.rounds or 20)
        return
    rounds = options.rounds or 8
    measured = [[imported(*used) for used in WAYS.values()] for _ in range(rounds + 1)][1:]
    print("| import | processor time, median | ratio | resident |\n|---|---|---|---|")
    for place, name in enumerate(WAYS):
        took_s = statistics.median(turn[place][0] for turn in measured)
        ratio = statistics.median(turn[place][0] / turn[0][0] for turn in measured)
        resident_mib = statistics.median(turn[place][1] for turn in measured) / (1 << 20)
        print(f"| {name} | {took_s:.2f} s | {ratio:.2f} | {resident_mib:.0f} MiB |")


def imported(*used: str) -> tuple[float, float]:
    """The seconds of processor time that the import took, and the bytes resident after it."""
    child = subprocess.run([sys.executable, "-c", CHILD, *used], stdout=subprocess.PIPE, text=True, check=True)
    took_s, resident_bytes = map(float, child.stdout.split())
    return took_s, resident_bytes


def to_first_step(rounds: int) -> None:
    """Prints how long it takes until the first step of the demo is told, and in which parts."""
    turns = [first_step() for _ in range(rounds + 1)][1:]
    print("| until | s, median | least | most |\n|---|---|---|---|")
    for name, end in UNTIL.items():
        print(_line(name, [turn[end] for turn in turns]))
    print(_line("in all", [sum(turn[end] for end in UNTIL.values()) for turn in turns]))
    print(_line("processor time of the worker", [turn["worker"] for turn in turns]))


def _line(name: str, took_s: list[float]) -> str:
    return f"| {name} | {statistics.median(took_s):.2f} | {min(took_s):.2f} | {max(took_s):.2f} |"


def first_step() -> dict[str, float]:
    """The seconds that each part takes, of a run that is not kept."""
    with TemporaryDirectory(prefix="memsup-first-step-") as folder:
        new = {"MEMSUP_STATE_DIR": "state", "MEMSUP_RUNTIME_DIR": "run", "XDG_CACHE_HOME": "cache"}
        environment = os.environ | {name: f"{folder}/{place}" for name, place in new.items()}
        paths = RunPaths("first-step", Path(folder, "state", "first-step"), Path(folder, "run", "first-step"))
        seen = {"began": time.time()}
        _memsup("start", "--demo", run=paths.name, environment=environment)
        seen["guards"] = time.time()
        try:
            seen["told"] = _told(paths, seen)
            seen["prepared"] = _prepared_unix_s(paths.worker_log)
        finally:
            _memsup("stop", "--now", run=paths.name, environment=environment)
        ends = [seen[name] for name in ("began", *UNTIL.values())]
        parts = {name: after - before for name, before, after in zip(UNTIL.values(), ends, ends[1:], strict=False)}
        return parts | {"worker": seen["worker"]}


def _memsup(*arguments: str, run: str, environment: dict[str, str]) -> None:
    command = [*MEMSUP, *arguments, "--run", run]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def _told(paths: RunPaths, seen: dict[str, float]) -> float:
    """The moment at which the run says that a step is done. Notes that at which its worker is there, and what that has taken of
    the processors.
    """
    until_s = time.monotonic() + WITHIN_S
    while time.monotonic() < until_s:
        status = observe(paths).status
        if status is None or status.state in OVER:
            break
        if status.worker_pid is not None:
            seen.setdefault("there", time.time())
        if status.progress.step and status.worker_pid is not None:
            told_unix_s, used = time.time(), psutil.Process(status.worker_pid).cpu_times()
            seen["worker"] = used.user + used.system
            return told_unix_s
        time.sleep(LOOK_EVERY_S)
    sys.exit(f"The demo did no step: {status and (status.failure or status.state)}")


def _prepared_unix_s(worker_log: Path) -> float:
    """When the worker wrote down that it begins to compute."""
    events = [json.loads(line) for line in worker_log.read_text().splitlines() if line.startswith("{")]
    return datetime.fromisoformat(next(event["time"] for event in events if event["event"] == "Computing")).timestamp()


def of_status(run: str, rounds: int) -> None:
    """Prints what a status takes of the processors, and what all that is not memsup's takes."""
    turns = [[processor_s(code, run) for code in QUICKLY.values()] for _ in range(rounds + 1)][1:]
    print("| process | processor time, median | least |\n|---|---|---|")
    for place, name in enumerate(QUICKLY):
        took_s = [turn[place] for turn in turns]
        print(f"| {name} | {statistics.median(took_s):.3f} s | {min(took_s):.3f} s |")


def processor_s(code: str, run: str) -> float:
    """The processor time of a Python process that does this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, "status", "--run", run], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
