"""The part of a drill's worker that misbehaves: a process beside the training, inside its fence, that takes memory when told.

    python -I -S balloon.py FILE

FILE holds two numbers, the bytes to hold and how many more to take in a second at most; a file that was there before it began
is not for it. Stands for what really fills a worker's memory: a leaking loader process, a library that keeps everything.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import time

PIECE_BYTES = 4 << 20
LOOK_EVERY_S = 0.02


def told(file: str) -> tuple[int, int]:
    try:
        with open(file, encoding="ascii") as numbers:  # noqa: PTH123 - pathlib would be its largest import
            held_bytes, bytes_per_s = numbers.read().split()
            return int(held_bytes), int(bytes_per_s)
    except (OSError, ValueError):
        return 0, 0


def main(file: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)
    held: list[mmap.mmap] = []
    parent = os.getppid()
    while os.getppid() == parent:
        wanted_bytes, bytes_per_s = told(file)
        while len(held) * PIECE_BYTES > wanted_bytes:
            held.pop().close()
        if len(held) * PIECE_BYTES + PIECE_BYTES <= wanted_bytes:
            piece = mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            piece.write(b"\xaa" * PIECE_BYTES)
            held.append(piece)
            time.sleep(PIECE_BYTES / bytes_per_s)
        else:
            time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1])
