"""table.py RESULTS: a Markdown table of what `run` left: each protection, user, rate and swap size, over its repeats."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def main(results: Path) -> None:
    groups: dict[tuple[str, str, str, str], list[dict[str, Any] | None]] = defaultdict(list)
    for folder in sorted(results.iterdir()):
        protection, user, rate, swap, _ = folder.name.split(".")
        file = folder / "result.json"
        groups[rate, swap, user, protection].append(json.loads(file.read_text()) if file.exists() else None)
    print(
        "| allocator | swap | user | protection | runs | machine alive | hog ended | it ran, s | 10 ms canary late by, s |",
        end="",
    )
    print(" fork+exec late by, s | bystander alive | supervisor late by, s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for (rate, swap, user, protection), runs in sorted(groups.items()):
        seen = [run for run in runs if run is not None]
        rate = "full speed" if rate == "full" else f"{rate} MiB/s"
        print(
            f"| {rate} | {swap.removeprefix('swap')} MiB | {user} | {protection} | {len(runs)} | {len(seen)} "
            f"| {sum(run['ended'] for run in seen)} | {span(run['ran_s'] for run in seen)} "
            f"| {span(run['tick']['worst_s'] for run in seen)} | {span(run['fork']['worst_s'] for run in seen)} "
            f"| {sum(run['bystander'] == 'active' for run in seen)} "
            f"| {span(run['own_stall_s'] for run in seen if run.get('own_stall_s') is not None)} |"
        )


def span(values: Any) -> str:
    """The median and the worst."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f} (≤ {ordered[-1]:.2f})" if ordered else "–"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
