"""What `worker/imports.py` saves while the worker imports torch and transformers; and what `memsup status` takes.

    python benchmarks/starting.py [--rounds 8]
    python benchmarks/starting.py --status RUN [--rounds 20]

Three processes a round, one after the other: one imports as Python does by itself, one with its search for garbage switched
off, one with transformers' scan of its sources made quicker as well. The ratio is the median, over the rounds, of the processor
time against that of the first; the memory is what is resident after the import. Prints Markdown.

With `--status` the processor time of whole processes, in turns: a bare Python, what the command line cannot do without, and
`memsup status` of a run that is up. Say it in an environment into which memsup is installed as users have it: an editable
install makes every Python slower.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--status", metavar="RUN")
    options = parser.parse_args()
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
