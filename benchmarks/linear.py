"""Linear layers that add their gradients in place (`worker/compute/linear.py`) against torch's own: in turns, by step.

    python benchmarks/linear.py [--steps 12] [--lengths 128 512] [--lanes 1 2] [--amp off bf16]

BERT 6 x 384 on real reviews, 16 a step, without padding. With torch's own, each lane has a gradient and, under mixed precision,
rounded weights of its own. Both train the same rows of the same model in each pair of steps; the ratio is of the pair, the
median over the pairs is told, by the clock and by processor time. Memory is how far the process rose above what it held before
a step, at most. Prints Markdown.
"""

from __future__ import annotations

import argparse

from lanes import EFFECTIVE, WARM_UP_STEPS, Way, reviews
from packing import Packed, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"])
    options = parser.parse_args()
    rows = reviews(EFFECTIVE * (options.steps + WARM_UP_STEPS))
    print(
        "| cut at | AMP | lanes | torch's, a step | in place | ratio, median | of processor time | torch's: rise | in place |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for amp in options.amp:
        for lanes in options.lanes:
            ways: list[Way] = [Packed(amp, lanes, in_place=False), Packed(amp, lanes)]
            for length in options.lengths:
                print(f"| {length} | {amp} | {lanes} | {compared(ways, rows, length)} |", flush=True)


if __name__ == "__main__":
    main()
