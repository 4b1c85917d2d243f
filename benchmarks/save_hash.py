"""Which hash a checkpoint can afford: bytes hashed in a second by one core.

    python benchmarks/save_hash.py [--output FILE]

Takes the best of several rounds over 64 MiB in pieces of 4 MiB, as the store hashes them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import xxhash

ROUNDS = 7
PIECES = [memoryview(os.urandom(4 << 20)) for _ in range(16)]


def gigabytes_per_second(update: Callable[[memoryview], object]) -> float:
    best_s = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for piece in PIECES:
            update(piece)
        best_s = min(best_s, time.perf_counter() - began)
    return sum(map(len, PIECES)) / best_s / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the table there")
    options = parser.parse_args()
    hashes = {
        "XXH3, 128 bits": xxhash.xxh3_128().update,
        "CRC-32 (zlib)": zlib.crc32,
        "SHA-256": hashlib.sha256().update,
        "BLAKE2b": hashlib.blake2b().update,
    }
    features = Path("/proc/cpuinfo").read_text()
    table = "\n".join(
        [
            f"SHA instructions of the processor: {'yes' if 'sha_ni' in features or 'sha2' in features else 'no'}",
            "",
            "| hash | GB/s |",
            "|---|---|",
            *(f"| {name} | {gigabytes_per_second(update):.1f} |" for name, update in hashes.items()),
        ]
    )
    print(table)
    if options.output:
        options.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
