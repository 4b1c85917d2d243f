"""How fast the guard acts: a runaway crosses its limit, and the real supervisor freezes and kills it, over and over.

    python benchmarks/guard.py [--runs 50] [--rest 60]

Each run is `memsup start -- CHILD` with a limit of 600 MiB. The child takes four fifths of it at once and then leaks at 50, 200
or 1000 MB/s or as fast as it can, noting on the machine's monotonic clock when it crosses 97 % of the limit and when it last
did anything. The ledger has the supervisor's times on the same clock. *Limit to action* is 0 where the guard froze the child
before it came to 97 %, as it does when the limit is less than half a second away. `--runs` is for each rate. At the end a
command that does nothing is guarded for `--rest` seconds, to see what the guard costs. Prints Markdown tables. What the
supervisor itself suffers while memory thrashes around it is measured by `thrash.py`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT_MIB = 600
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
CHILD = """
import mmap, struct, sys, time
file = open(sys.argv[1], "r+b")
notes = mmap.mmap(file.fileno(), 32)
limit, rate = int(sys.argv[2]) << 20, float(sys.argv[3]) * 1e6
step, ones, held, total, begun = 1 << 20, b"1" * 256, [], 0, None
while True:
    block = mmap.mmap(-1, step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memoryview(block)[::4096] = ones
    held.append(block)
    total += step
    now = time.monotonic()
    if total >= 0.97 * limit - (6 << 20) and notes[:8] == bytes(8):  # its interpreter has some 6 MiB as well
        notes[:8] = struct.pack("d", now)
    notes[8:24] = struct.pack("dd", now, total)
    if total >= 0.8 * limit:
        begun = begun or (now, total)
        if rate:
            time.sleep(max(0.0, begun[0] + (total - begun[1]) / rate - now))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rest", type=float, default=60)
    options = parser.parse_args()
    print("| leak | runs | limit → action: p50 | p99 | max | before the limit | action → still: max | most held | overshoot |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    every: list[float] = []
    for rate in (50, 200, 1000, 0):
        seen = [one_run(rate) for _ in range(options.runs)]
        waits = sorted(run["wait_s"] for run in seen)
        every += waits
        most = max(run["held_bytes"] for run in seen)
        name = f"{rate} MB/s" if rate else "full speed"
        print(
            f"| {name} | {len(seen)} | {ms(statistics.median(waits))} | {ms(at(waits, 0.99))} "
            f"| {ms(waits[-1])} | {sum(run['early'] for run in seen)} | {ms(max(run['still_s'] for run in seen))} "
            f"| {most / 2**20:.0f} MiB | {max(0, most - (LIMIT_MIB << 20)) >> 20} MiB |",
            flush=True,
        )
    every.sort()
    print(f"\nAll {len(every)} runs: p50 {ms(statistics.median(every))}, p99 {ms(at(every, 0.99))}, max {ms(every[-1])}.")
    rest(options.rest)


def one_run(rate: float) -> dict[str, Any]:
    with private_folder() as (folder, environment):
        notes_file = Path(folder) / "notes"
        notes_file.write_bytes(bytes(32))
        child = [sys.executable, "-I", "-S", "-c", CHILD, str(notes_file), str(LIMIT_MIB), str(rate)]
        memsup(environment, "start", "--set", f"limits.ram={LIMIT_MIB}MiB", "--", *child)
        ledger = Path(folder) / "state/default/ledger.jsonl"
        freeze = wait_for(ledger, "freeze")
        wait_for(ledger, "death")
        with notes_file.open("rb") as file:
            crossed_s, last_s, held_bytes = struct.unpack("ddd", mmap.mmap(file.fileno(), 32, prot=mmap.PROT_READ)[:24])
        memsup(environment, "stop", "--now")
    early = crossed_s == 0 or freeze["mono"] <= crossed_s
    return {
        "wait_s": 0.0 if early else freeze["mono"] - crossed_s,
        "early": early,
        "still_s": max(0.0, last_s - freeze["mono"]),
        "held_bytes": held_bytes,
    }


def rest(seconds: float) -> None:
    """What the guard costs while nothing happens: processor time, resident memory, its own worst stall."""
    with private_folder() as (_, environment):
        memsup(environment, "start", "--", "sleep", str(seconds + 60))
        time.sleep(5)
        pid = json.loads(memsup(environment, "status", "--json"))["pid"]
        before = cpu_s(pid)
        time.sleep(seconds)
        used = cpu_s(pid) - before
        status = json.loads(memsup(environment, "status", "--json"))
        resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        memsup(environment, "stop", "--now")
    print(
        f"\nAt rest for {seconds:.0f} s: {used / seconds:.3%} of a core, {int(resident.split()[1]) / 1024:.1f} MiB resident, "
        f"worst stall of its own {ms(status['worst_stall_s'])}."
    )


@contextmanager
def private_folder() -> Iterator[tuple[str, dict[str, str]]]:
    """A folder for one run and the environment that names it; it goes when the supervisor has let go of it."""
    with tempfile.TemporaryDirectory(prefix="memsup-guard-") as folder:
        yield folder, os.environ | {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        state = os.open(f"{folder}/state/default", os.O_RDONLY)
        fcntl.flock(state, fcntl.LOCK_EX)  # held by the supervisor for as long as it lives
        os.close(state)


def wait_for(ledger: Path, event: str) -> dict[str, Any]:
    """The first line of the ledger with `event`."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        for line in lines:
            entry: dict[str, Any] = json.loads(line)
            if entry["event"] == event:
                return entry
        time.sleep(0.02)
    sys.exit(f"there was no {event!r} within a minute; see {ledger}")


def memsup(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([*MEMSUP, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"memsup {arguments[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def cpu_s(pid: int) -> float:
    """Of all of its threads, in the scheduler's nanoseconds: a tick of /proc/PID/stat is 10 ms, a fifth of what is measured."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    main()
