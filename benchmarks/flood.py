"""How late the guard is while strangers flood its sockets: a leak is guarded meanwhile, and has to be stopped at its limit.

    python benchmarks/flood.py [--seconds 60]

A real supervisor guards a command with a limit of 600 MiB that leaks at 50 MB/s, is killed, begins anew, and so on, while both
sockets are flooded in the ways of `tests/kit/floods.py`, one after the other, each by a process for each socket. *Late* is how
long after it was due the guard looked at memory, each time, by the supervisor's own clock; *sleeper* is how late a process was
meanwhile that only sleeps, 10 ms at a time, which is this machine's share. *Answer* is how long `memsup status` waited for one.
*Most held* is the kernel's count of what the command's cgroup held at most (cgroup v1; needs root). *Resident* is the
supervisor's memory after the flood of that kind, against before the first. Prints a Markdown table; exit code 1 where a goal is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kit.floods import WAYS, flooded  # noqa: E402
from kit.yardstick import Sleeper  # noqa: E402

from memsup.shared.messages import RequestKind  # noqa: E402
from memsup.shared.paths import run_paths  # noqa: E402
from memsup.supervisor.client.contact import NoAnswerError, NobodyThereError, ask  # noqa: E402

LIMIT_MIB, RATE_MB_PER_S = 600, 50
GOAL_LATE_S, GOAL_RESIDENT_MIB = 0.050, 8.0
CALM_S = 3.0
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
NOTES_LATENESS = """
import os, struct, sys
if "memsup.supervisor" in sys.orig_argv:
    from memsup.supervisor.daemon.schedule import Schedule

    notes = os.open({file!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    look_again = Schedule.look_again

    def noted(self, now_s, in_s):
        os.write(notes, struct.pack("d", now_s - self._look_s))
        look_again(self, now_s, in_s)

    Schedule.look_again = noted
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of all floods together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsup-flood-") as folder:
        os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        lateness = Path(folder) / "lateness"
        (Path(folder) / "sitecustomize.py").write_text(NOTES_LATENESS.format(file=str(lateness)))
        leak = {"LEAK_MB_PER_S": str(RATE_MB_PER_S), "PYTHONPATH": folder}
        child = [sys.executable, str(ROOT / "tests/kit/misbehaving.py")]
        memsup("start", "--set", f"limits.ram={LIMIT_MIB}MiB", "--", *child, **leak)
        try:
            held = report(options.seconds, lateness)
        finally:
            memsup("stop", "--now")
            time.sleep(0.5)
    sys.exit(0 if held else 1)


def report(seconds: float, lateness: Path) -> bool:
    """Prints the table, and tells whether all goals were met."""
    time.sleep(CALM_S)
    record = json.loads(run_paths("default").record.read_bytes())
    before_mib = resident_mib(status()["pid"])
    every: list[float] = []
    answers: list[float] = []
    held_mib = 0.0
    print("| flood | late: p50 | p99 | max | sleeper: max | answer: p50 | max | most held | resident |")
    print("|---|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        seen = status()
        from_byte, late_answers = lateness.stat().st_size, []
        with flooded([way], seen["worker_pid"], seconds), Sleeper() as sleeper:
            until_s = time.monotonic() + seconds / len(WAYS)
            while time.monotonic() < until_s:
                late_answers.append(answer_s())
                time.sleep(0.1)
            worst_sleeper_s = sleeper.take_worst_s()
        late = lateness_since(lateness, from_byte)
        every, answers = every + late, answers + late_answers
        held_mib = max(held_mib, most_held_mib(record["run_id"]) or 0.0)
        now_mib = resident_mib(seen["pid"])
        print(
            f"| {way} | {ms(statistics.median(late))} | {ms(at(late, 0.99))} | {ms(max(late))} | {ms(worst_sleeper_s)} "
            f"| {ms(statistics.median(late_answers))} | {ms(max(late_answers))} "
            f"| {held_mib:.0f} MiB | {now_mib - before_mib:+.1f} MiB |",
            flush=True,
        )
    time.sleep(CALM_S)
    after = status()
    grown_mib = resident_mib(after["pid"]) - before_mib
    events = [json.loads(line)["event"] for line in run_paths("default").ledger.read_bytes().splitlines()]
    p50, p99 = statistics.median(every), at(every, 0.99)
    print(
        f"\nIn all: {len(every):,} looks at memory, late by {ms(p50)} (p50), {ms(p99)} (p99), {ms(max(every))} at most; "
        f"answers after {ms(statistics.median(answers))} (p50), {ms(max(answers))} at most. The leak was killed "
        f"{events.count('kill')} times and held {held_mib:.0f} of {LIMIT_MIB} MiB at most. The supervisor "
        f"grew by {grown_mib:.1f} MiB, and has {resident_mib(after['pid']):.1f} MiB."
    )
    return p99 <= GOAL_LATE_S and grown_mib <= GOAL_RESIDENT_MIB and held_mib <= LIMIT_MIB and "kill" in events


def memsup(*arguments: str, **environment: str) -> str:
    done = subprocess.run([*MEMSUP, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3):
        sys.exit(f"memsup {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def status() -> Any:
    return json.loads(ask(run_paths("default"), RequestKind.STATUS, 10.0).status_json)


def answer_s() -> float:
    """How long a question waited for its answer; for 10 s at most, as somebody would."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + 10:
        try:
            ask(run_paths("default"), RequestKind.STATUS, 10.0)
            break
        except (NobodyThereError, NoAnswerError):
            time.sleep(0.02)
    return time.monotonic() - began_s


def lateness_since(file: Path, from_byte: int) -> list[float]:
    return [max(0.0, late_s) for (late_s,) in struct.iter_unpack("d", file.read_bytes()[from_byte:])]


def resident_mib(pid: int) -> float:
    return int(field_of(f"/proc/{pid}/status", "VmRSS:").split()[0]) / 1024


def most_held_mib(run_id: str) -> float | None:
    """What the fence's cgroup held at most, page cache included. None where there is no cgroup v1."""
    for folder in Path("/sys/fs/cgroup/memory").glob(f"**/memsup-{run_id}*"):
        return int((folder / "memory.max_usage_in_bytes").read_text()) / 2**20
    return None


def field_of(file: str, name: str) -> str:
    return next(line.removeprefix(name) for line in Path(file).read_text().splitlines() if line.startswith(name))


def at(values: list[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


ms: Callable[[float], str] = lambda seconds: f"{1000 * seconds:.1f} ms"  # noqa: E731


if __name__ == "__main__":
    main()
