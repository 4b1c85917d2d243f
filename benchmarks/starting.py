"""What `worker/imports.py` saves while the worker imports torch and transformers.

    python benchmarks/starting.py [--rounds 8]

Three processes a round, one after the other: one imports as Python does by itself, one with its search for garbage switched
off, one with transformers' scan of its sources made quicker as well. The ratio is the median, over the rounds, of the processor
time against that of the first; the memory is what is resident after the import. Prints Markdown.
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
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


if __name__ == "__main__":
    main()
