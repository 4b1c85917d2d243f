"""The deadman: a tiny process that kills the worker's tree when the supervisor falls silent.

It is only for runs without a cgroup around the worker; with one the kernel holds the limit whoever lives. It reads single bytes
from a pipe: every byte is a sign of life, GOODBYE ends its duty. After two seconds without a byte, or the pipe's end without a
goodbye and two seconds more, it kills everything that carries the fence's mark (`processes.py`) until nothing is left.

    python -I -S deadman.py MARK            the pipe is stdin

It runs as a file of its own to stay below 12 MiB; `fence/kill.Deadman` is the supervisor's end of the pipe.
"""

from __future__ import annotations

import os
import select
import sys
import time

if __name__ == "__main__":  # alone, without the package: the sibling is found by its place
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # pathlib costs 1 MiB
    import processes  # type: ignore[import-not-found, unused-ignore]
else:
    from memsup.supervisor.kernel import processes

SILENCE_S = 2.0
GOODBYE = b"q"
_SLICE_S = 0.25


def watch(pipe: int) -> bool:
    """Returns when the supervisor said goodbye (False) or has been silent for too long (True).

    Silence is counted in short slices, each of which counts no more than it should have taken: when this process was stopped or
    starved itself, the supervisor gets its time again.
    """
    silent_s, ended = 0.0, False
    while silent_s < SILENCE_S:
        began_s = time.monotonic()
        readable = select.select([] if ended else [pipe], [], [], _SLICE_S)[0]
        if readable:
            signs = os.read(pipe, 4096)
            if GOODBYE in signs:
                return False
            ended = not signs
            silent_s = 0.0
        else:
            silent_s += min(time.monotonic() - began_s, _SLICE_S)
    return True


def main(mark: str) -> int:
    if watch(sys.stdin.fileno()):
        pause_s = 0.02
        while processes.kill_all(mark):
            time.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)  # who does not die at once waits in the kernel
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
