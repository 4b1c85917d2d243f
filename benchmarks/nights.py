"""Compressed nights: fifty runs, each disturbed six times (`--most`: fewer) by a seeded schedule, beside one left alone.

    python benchmarks/nights.py [--seeds 0..49] [--most 6] [--results build/nights.jsonl]

Leaks, runaways, hangs, kill -9 of either process or both, supervisors that stand still, full disks, garbage on the sockets,
heat, clocks that are set, losses that are not numbers, pauses and restarts, on a tiny training through the real
supervisor and worker. Every disturbance must be explained by the ledger; the run must end with the undisturbed run's bits,
or, where memory changed how steps were cut, with the same samples, loss weights and learning rates in every step and weights
that are equal but for rounding. A line for each seed; what has its line in the results is not run again, but for failures.
Prints a Markdown table; exit code 1 if a seed failed. What a failed run left is kept beside the results.

Needs a file system and a simulated sensor mounted where nobody else sees them, as `memsup drill`; where this is refused, full
disks and heat are left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import msgspec
from kit.cli_process import end_supervisors
from kit.compressed_nights import (
    DISTURBANCES,
    EACH_NIGHT,
    FAST,
    MIB,
    NEED_A_MOUNT,
    Night,
    Outcome,
    Sensor,
    make_job,
    schedule,
    spend,
)
from kit.faults.night_clock import NightClock
from kit.killed_runs import undisturbed

from memsup.shared.paths import run_paths
from memsup.supervisor.drill.private_mounts import enter_user_namespace, leave_the_common_view, mount_small_disk
from memsup.supervisor.drill.scenes import COOL_C, simulated_sensor
from memsup.supervisor.drill.toy import NotRehearsedError

DISK_BYTES = 448 * MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0..49", metavar="A..B")
    parser.add_argument("--most", type=int, default=EACH_NIGHT, metavar="N", help="Disturb each run at most so often.")
    parser.add_argument("--results", type=Path, default=Path("build/nights.jsonl"))
    options = parser.parse_args()
    first, last = map(int, options.seeds.split(".."))
    seeds = range(first, last + 1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = {outcome.seed: outcome for outcome in read(options.results) if outcome.problem is None}
    if missing := [seed for seed in seeds if seed not in done]:
        done |= {outcome.seed: outcome for outcome in run(missing, options.results, options.most)}
    outcomes = [done[seed] for seed in seeds]
    print(table(outcomes))
    return int(any(outcome.problem for outcome in outcomes))


def read(results: Path) -> list[Outcome]:
    lines = results.read_bytes().splitlines() if results.exists() else []
    return [msgspec.json.decode(line, type=Outcome) for line in lines]


def run(seeds: list[int], results: Path, most: int) -> list[Outcome]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and what was started is ended
    if os.geteuid() != 0:
        with contextlib.suppress(OSError):  # then nothing can be mounted, and is said below
            enter_user_namespace()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="memsup-nights-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("state", "faults", "job"):
            (folder / part).mkdir()
        small_disk, sensor_file = mounted(folder / "state")
        sensor = Sensor(sensor_file) if sensor_file is not None else None
        clock = NightClock(folder / "clock")
        os.environ |= {
            "MEMSUP_STATE_DIR": str(folder / "state"),
            "MEMSUP_RUNTIME_DIR": str(folder / "runtime"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PYTHONPATH": str(Path(__file__).parent.parent / "tests" / "kit" / "faults"),
            "FAULT_FOLDER": str(folder / "faults"),
            "FAULT_CLOCK": str(clock.file),
        }
        make_job(folder / "job", most)
        try:
            left_alone = run_paths("undisturbed"), undisturbed(folder / "job", "undisturbed")
            for seed in seeds:
                night = Night(
                    name=f"night{seed}",
                    job=folder / "job",
                    faults=folder / "faults",
                    clock=clock,
                    draw=random.Random(seed),
                    small_disk=small_disk,
                    sensor=sensor,
                )

                cards = [card for card in schedule(seed) if small_disk is not None or card not in NEED_A_MOUNT][:most]
                try:
                    outcome = spend(night, seed, left_alone, cards)
                except Exception:
                    outcome = Outcome(seed=seed, disturbances=[card.__name__ for card in cards], problem=traceback.format_exc())
                outcomes.append(outcome)
                with results.open("ab") as file:
                    file.write(msgspec.json.encode(outcome) + b"\n")
                print(sentence(outcome), flush=True)
                clear(night, results.with_name(f"night{seed}") if outcome.problem else None)
        finally:
            end_supervisors()
            if sensor is not None:
                sensor.close()
            if small_disk is not None:
                subprocess.run(["umount", "--lazy", str(small_disk)], check=False)  # or its folder could not be removed
    return outcomes


def mounted(state: Path) -> tuple[Path | None, Path | None]:
    """The small disk over `state`, and the sensor's file."""
    try:
        leave_the_common_view()
        mount_small_disk(state, DISK_BYTES)
        return state, simulated_sensor()
    except (OSError, NotRehearsedError) as error:
        print(f"Without full disks and heat: {error}", flush=True)
        return None, None


def clear(night: Night, keep: Path | None) -> None:
    """The next night needs the disk."""
    end_supervisors()
    for file in night.faults.iterdir():
        file.unlink()
    for stray in (night.small_disk or night.faults).glob("ballast"):
        stray.unlink()
    if night.sensor is not None:
        night.heat(COOL_C)
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(night.paths.state, keep, ignore=shutil.ignore_patterns("checkpoints", "cache", "model"))
    shutil.rmtree(night.paths.state, ignore_errors=True)


def sentence(outcome: Outcome) -> str:
    if outcome.problem is not None:
        what = f"FAILED: {outcome.problem}"
    elif outcome.difference == 0.0:
        what = "the same bits"
    else:
        what = f"the same samples, weights within {outcome.difference:.0e} ({outcome.cuts_changed} changes of the cuts)"
    return (
        f"seed {outcome.seed}: {outcome.covered_s / 60:.1f} min in {outcome.took_s:.0f} s: "
        f"{', '.join(outcome.disturbances)}: {what}"
    )


def table(outcomes: list[Outcome]) -> str:
    good = [outcome for outcome in outcomes if outcome.problem is None]
    counts = Counter(name for outcome in good for name in outcome.disturbances)
    rows = [f"| {card.__name__.replace('_', ' ')} | {counts[card.__name__]} |" for card in DISTURBANCES]
    same = sum(outcome.difference == 0.0 for outcome in good)
    largest = max((outcome.difference for outcome in good), default=0.0)
    hours, minutes = sum(outcome.covered_s for outcome in good) / 3600, sum(outcome.took_s for outcome in good) / 60
    verdict = (
        f"{len(good)} of {len(outcomes)} nights passed, {counts.total()} disturbances. {same} ended with the undisturbed run's "
        f"bits; in {len(good) - same} memory changed the cuts: its samples, and weights within {largest:.0e}. "
        f"{hours:.1f} h on the runs' own clock in {minutes:.0f} min: it ran {FAST:.0f} times as fast while nothing was due."
    )
    return "\n".join(["\n| disturbance | times, each explained by the ledger |", "|---|---|", *rows, "", verdict])


if __name__ == "__main__":
    sys.exit(main())
