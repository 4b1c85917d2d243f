"""A real child whose faults are environment variables; several may be set at once. Run it as a file.

LEAK_MB_PER_S   touches fresh memory at this rate (`full`: as fast as it can) …
LEAK_MB         … until it holds so much (default 4096), then keeps it
NATIVE          does so in one native call that never gives up the GIL
CATCH           a MemoryError drops half of what it holds, and it goes on
FORKS           this many children do the leaking, each of them
ESCAPES         the leaking is done by a grandchild in a session of its own whose parent is gone …
FORGETS         … and whose environment is empty
IGNORES         ignores SIGTERM, SIGINT and SIGHUP
STOPS           stops itself (SIGSTOP) once it holds all
FORK_BOMB       starts children that start children, up to four times as many as this
READS           reads this file again and again (page cache)
PROGRESS        file to which it appends a byte every 10 ms, so that a stand-still can be seen
HELD            file to which the process that leaks writes what it holds, in bytes, as text
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time

MIB = 1 << 20
STEP = 4 * MIB


def main() -> None:
    if os.environ.get("IGNORES"):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    print("ready", flush=True)
    if os.environ.get("ESCAPES"):
        if os.fork() == 0:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            if os.environ.get("FORGETS"):
                kept = {key: value for key, value in os.environ.items() if key.isupper() and not key.startswith("_")}
                del kept["ESCAPES"]
                os.execve(sys.executable, [sys.executable, "-I", "-S", __file__], kept)
            misbehave()
        os.wait()
        rest()
    for _ in range(int(os.environ.get("FORKS", "0"))):
        if os.fork() == 0:
            misbehave()
    if os.environ.get("FORKS"):
        rest()
    misbehave()


def misbehave() -> None:
    if bomb := int(os.environ.get("FORK_BOMB", "0")):
        fork_bomb(bomb)
    if file := os.environ.get("READS"):
        with open(file, "rb") as opened:
            while opened.read(MIB):
                pass
    held: list[mmap.mmap] = []
    if rate := os.environ.get("LEAK_MB_PER_S"):
        leak(held, float("inf") if rate == "full" else float(rate) * 1e6, int(os.environ.get("LEAK_MB", "4096")) * 10**6)
    if os.environ.get("STOPS"):
        os.kill(os.getpid(), signal.SIGSTOP)
    rest()


def leak(held: list[mmap.mmap], bytes_per_s: float, goal_bytes: int) -> None:
    began_s, ones, total_bytes = time.monotonic(), b"\1" * (STEP // mmap.PAGESIZE), 0
    if os.environ.get("NATIVE"):
        python = ctypes.PyDLL(None)  # unlike CDLL it keeps the GIL during the call
        python.malloc.restype = ctypes.c_void_p
        python.malloc.argtypes = [ctypes.c_size_t]
        python.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        python.memset(python.malloc(goal_bytes), 1, goal_bytes)
        return
    while total_bytes < goal_bytes:
        try:
            block = mmap.mmap(-1, STEP, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memoryview(block)[:: mmap.PAGESIZE] = ones
        except (MemoryError, OSError):
            if not os.environ.get("CATCH"):
                raise
            print("out of memory", flush=True)
            del held[: len(held) // 2 + 1]
            total_bytes = len(held) * STEP
            rest()
        held.append(block)
        total_bytes += STEP
        if file := os.environ.get("HELD"):
            with open(file, "w", encoding="ascii") as opened:
                opened.write(str(total_bytes))
        time.sleep(max(0.0, began_s + total_bytes / bytes_per_s - time.monotonic()))


def fork_bomb(left: int) -> None:
    """Each process starts two, and each generation may start half as many."""
    while left > 0:
        left //= 2
        if os.fork() == 0:
            continue
        if os.fork() == 0:
            continue
        break


def rest() -> None:
    while True:
        if file := os.environ.get("PROGRESS"):
            with open(file, "ab") as opened:
                opened.write(b".")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
