"""Layers that see no padding (`worker/compute/packing.py`) against padded ones: taking turns, step against step.

    python benchmarks/packing.py [--steps 12] [--lengths 128 512] [--lanes 1 2]

BERT 6 x 384 on real reviews, 16 a step. *Padded* cuts a step where it is cheapest, by costs as the planner finds them, into
micro-batches of up to 512 tokens a lane; *packed* does so with the rows' own tokens, of which there may be up to 2,048. Both
train the same rows of the same model in each pair of steps; the ratio is of the pair, the median over the pairs is told, by the
clock and by processor time (of one thread that is what counts on a busy machine: `taskset -c 0`, `--lanes 1`). Memory is how
far the process rose above what it held before a step, at most. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import msgspec
from lanes import EFFECTIVE, WARM_UP_STEPS, Way, reviews

from memsup.worker.compute.packing import pack

PACKED_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"])
    options = parser.parse_args()
    rows = reviews(EFFECTIVE * (options.steps + WARM_UP_STEPS))
    print("| cut at | AMP | lanes | padded, a step | packed | ratio, median | of processor time | padded: rise | packed |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for amp in options.amp:
        for lanes in options.lanes:
            ways: list[Any] = [Way(amp, lanes), Packed(amp, lanes)]
            for length in options.lengths:
                print(f"| {length} | {amp} | {lanes} | {compared(ways, rows, length)} |", flush=True)


def compared(ways: list[Way], rows: list[list[int]], length: int) -> str:
    """The times and rises of the two `ways`, taking turns step by step, as cells of a table."""
    pairs: list[list[tuple[float, float]]] = []
    for way in ways:
        way.rise_bytes = 0
    for step in range(len(rows) // EFFECTIVE):
        batch = [row[:length] for row in rows[EFFECTIVE * step :][:EFFECTIVE]]
        took = [timed(way, batch) for way in (ways if step % 2 else reversed(ways))]
        pairs.append(took if step % 2 else took[::-1])
    del pairs[:WARM_UP_STEPS]
    first_ms, second_ms = (1e3 * statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    ratio, of_cpu = (statistics.median(second[n] / first[n] for first, second in pairs) for n in (0, 1))
    rises = " | ".join(f"{way.rise_bytes >> 20} MiB" for way in ways)
    return f"{first_ms:.0f} ms | {second_ms:.0f} ms | {ratio:.2f} | {of_cpu:.2f} | {rises}"


def timed(way: Way, rows: list[list[int]]) -> tuple[float, float]:
    """Seconds by the clock, and of the processors."""
    began_s = time.process_time()
    return way.step(rows), time.process_time() - began_s


class Packed(Way):
    """The same without padding in its layers."""

    def __init__(self, amp: str, lanes: int, *, in_place: bool = True) -> None:
        super().__init__(amp, lanes, in_place=in_place)
        if not pack(self.lanes.models[0]) or not all(pack(model) for model in self.lanes.models[1:]):
            raise SystemExit("This model cannot be packed.")
        self.plan = msgspec.structs.replace(self.plan, packed=True, start=PACKED_TOKENS * lanes)


if __name__ == "__main__":
    main()
