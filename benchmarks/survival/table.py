"""table.py RESULTS: two Markdown tables of what `run` left: each protection, user, rate and swap size, over its repeats; and
each protection over all of them. Times are medians / worst of the runs' own worst, in milliseconds.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Run = dict[str, Any]
"""`result.json`; empty where the machine did not live to write it."""
TIMES = "10 ms canary late by, ms | fork and exec take, ms | supervisor late by, ms"
PROTECTIONS = {
    "none": "nothing",
    "oomd": "systemd-oomd",
    "earlyoom": "earlyoom",
    "memsup": "**memsup**",
    "idle": "(no allocator)",
    "beside": "memsup, for another program",
    "stopped": "memsup, stopped",
}
BUSY = 0.1
"""Processors of the host that others used."""


def main(results: Path) -> None:
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    busy = []
    for folder in sorted(results.iterdir()):
        protection, user, rate, swap, _ = folder.name.split(".")
        file = folder / "result.json"
        speed = "full speed" if rate == "full" else f"{rate} MiB/s"
        size = "none" if swap == "swap0" else f"{swap.removeprefix('swap')} MiB"
        what = (speed, size, "ordinary" if user == "lab" else user, protection)
        groups[what].append(json.loads(file.read_text()) if file.exists() else {})
        busy.append(json.loads((folder / "vm.json").read_text())["host_other_cpus"])
    print(f"| allocator | swap | user | protection | runs | machine alive | allocator ended | {TIMES} | bystander alive |")
    print("|---" * 11 + "|")
    order = list(PROTECTIONS)
    for what in sorted(groups, key=lambda what: (what[0] != "full speed", what[1] != "none", what[2], order.index(what[3]))):
        print(f"| {' | '.join([*what[:3], PROTECTIONS[what[3]]])} | {columns(groups[what])} |")
    print(f"\n| protection | runs | machine alive | allocator ended | {TIMES} | bystander alive |")
    print("|---" * 8 + "|")
    for protection, name in PROTECTIONS.items():
        runs = [run for what, group in groups.items() if what[3] == protection for run in group]
        if runs:
            print(f"| {name} | {columns(runs)} |")
    above = sum(one > BUSY for one in busy)
    print(f"\nIn {above} of {len(busy)} runs others used more than {BUSY} of the host's processors, at most {max(busy)}.")


def columns(runs: list[Run]) -> str:
    lived = [run for run in runs if run]
    own = [run["own_stall_s"] for run in lived if run.get("own_stall_s") is not None]
    counts = [len(runs), len(lived), sum(run["ended"] for run in lived)]
    times = [span(run["tick"]["worst_s"] for run in lived), span(run["fork"]["worst_s"] for run in lived), span(own)]
    return " | ".join([*map(str, counts), *times, str(sum(run["bystander"] == "active" for run in lived))])


def span(times_s: Iterable[float]) -> str:
    """The median and the worst."""
    ordered = sorted(times_s)
    return f"{ordered[len(ordered) // 2] * 1000:.0f} / {ordered[-1] * 1000:.0f}" if ordered else "–"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
