"""What Python's search for garbage costs while the worker imports torch and transformers (`worker/imports.py`).

    python benchmarks/starting.py [--rounds 8]

Two processes a round, one after the other, in turns: one imports as Python does by itself, one with the search switched off.
The ratio is the median, over the rounds, of the processor time of the second against that of the first; the memory is what is
resident after the import. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CHILD = """
import gc, sys, time
if sys.argv[1] == "off":
    gc.disable()
begun_s = time.process_time()
import memsup.worker.train
took_s = time.process_time() - begun_s
with open("/proc/self/statm") as file:
    print(took_s, int(file.read().split()[1]) * 4096)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    measured = [(imported("on"), imported("off")) for _ in range(rounds + 1)][1:]
    print("| search for garbage | processor time, median | ratio | resident |\n|---|---|---|---|")
    for place, name in enumerate(("as Python does it", "off")):
        took_s = statistics.median(pair[place][0] for pair in measured)
        ratio = statistics.median(pair[place][0] / pair[0][0] for pair in measured)
        resident_mib = statistics.median(pair[place][1] for pair in measured) / (1 << 20)
        print(f"| {name} | {took_s:.2f} s | {ratio:.2f} | {resident_mib:.0f} MiB |")


def imported(search: str) -> tuple[float, float]:
    """The seconds of processor time that the import took, and the bytes resident after it."""
    child = subprocess.run([sys.executable, "-c", CHILD, search], stdout=subprocess.PIPE, text=True, check=True)
    took_s, resident_bytes = map(float, child.stdout.split())
    return took_s, resident_bytes


if __name__ == "__main__":
    main()
