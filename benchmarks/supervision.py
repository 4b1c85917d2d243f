"""What supervision costs: the built-in job with and without a supervisor, taking turns on the machine, step against same step.

    python benchmarks/supervision.py [--blocks 60]

*With* is `memsup start` as people use it: supervisor, fence, heartbeats, lease, looks at memory. *Without* is the same training
code in a process of its own that nobody watches: no supervisor, no fence, no link. Both train the same rows, cut in the same
way, on the same threads with the same settings of torch's libraries. They take turns of `TURN_S`, the other being stopped
(SIGSTOP; the supervisor with its worker), and each has a clock that runs in its turns only. So both meet the same noise, and
compute the same steps: what is compared is the time of `BLOCK_STEPS` steps, block by block.

Prints the ratio of samples per second, as a median over the blocks with its 95 % interval (bootstrap). The clock of a busy
machine cannot show half a percent, so the other way round as well: the time of a processor that supervision took while the
supervised run had its turns, of the supervisor and of the threads in the worker that talk to it, as a part of what all the
processors had. Training that uses all of them loses as much.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from memsup.worker.audit import LINE_BYTES

TURN_S, LOOK_S, BLOCK_STEPS, WARM_UP_STEPS = 1.0, 0.002, 20, 20
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
JOB = ["--demo", "--run", "bench"]
for setting in ("training.tune=false", "training.lanes=2", "checkpoint.every=10h"):
    JOB += ["--set", setting]
ALONE = """
import os, socket, sys
from memsup.worker.__main__ import LIBRARIES
os.environ.update(LIBRARIES | os.environ)  # as the worker does, before torch is loaded
from memsup.shared.messages import Welcome
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.worker.link import Link
from memsup.worker.session import Session
from memsup.worker.train import train

paths = run_paths("bench")
record = read_record(paths.record)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link = Link(paths, run_id=record.run_id, lifeline_fd=theirs.detach())  # never started: no thread, no socket
welcome = Welcome(run_id=record.run_id, lease_s=1e9, memory_limit_bytes=None, micro_tokens_limit=None)
train(record, paths, welcome, Session(link))
"""


@dataclass
class Contestant:
    """Trains in its turns only; knows at what time of its own clock each step was done."""

    home: Path
    pids: list[int] = field(default_factory=list)
    clock_s: float = 0.0
    done_at_s: list[float] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"MEMSUP_STATE_DIR": f"{self.home}/state", "MEMSUP_RUNTIME_DIR": f"{self.home}/runtime"}

    def memsup(self, *arguments: str) -> str:
        done = subprocess.run([*MEMSUP, *arguments], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 3):
            sys.exit(f"memsup {arguments[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def steps(self) -> int:
        audit = self.home / "state/bench/audit.txt"
        return os.stat(audit).st_size // LINE_BYTES if audit.exists() else 0

    def stop(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def turn(self) -> None:
        began_s = time.monotonic()
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
        while (now_s := time.monotonic()) < began_s + TURN_S:
            new = self.steps() - len(self.done_at_s)
            self.done_at_s += [self.clock_s + now_s - began_s] * new
            time.sleep(LOOK_S)
        self.stop()
        self.clock_s += time.monotonic() - began_s

    def block_s(self, block: int) -> float:
        first = WARM_UP_STEPS + block * BLOCK_STEPS
        return self.done_at_s[first + BLOCK_STEPS - 1] - self.done_at_s[first - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsup-bench-") as folder:
        supervised, alone = Contestant(Path(folder) / "with"), Contestant(Path(folder) / "without")
        process = begin_alone(alone)
        supervised.memsup("start", *JOB)
        try:
            wait_for_steps(alone, 1)
            wait_for_steps(supervised, 1)
            status = json.loads(supervised.memsup("status", "--run", "bench", "--json"))
            supervised.pids, alone.pids = [status["worker_pid"], status["pid"]], [process.pid]
            supervised.stop()
            alone.stop()
            for one in (supervised, alone):
                one.done_at_s = [0.0] * one.steps()
            talking = talking_threads(status["worker_pid"])
            before_s, talked_before_s = cpu_s(status["pid"]), sum(map(thread_s, talking))
            needed = WARM_UP_STEPS + options.blocks * BLOCK_STEPS
            while min(len(supervised.done_at_s), len(alone.done_at_s)) < needed:
                for one in (supervised, alone) if random.random() < 0.5 else (alone, supervised):
                    one.turn()
            used_s, talked_s = cpu_s(status["pid"]) - before_s, sum(map(thread_s, talking)) - talked_before_s
        finally:
            for pid in supervised.pids:
                os.kill(pid, signal.SIGCONT)
            supervised.memsup("stop", "--now", "--run", "bench")
            process.kill()
            process.wait()
    ratios = [alone.block_s(block) / supervised.block_s(block) for block in range(options.blocks)]
    low, high = interval(ratios)
    median = statistics.median(ratios)
    print(f"{options.blocks} blocks of {BLOCK_STEPS} steps: with supervision {median:.4f} of the samples/s without it,")
    print(f"95 % interval {low:.4f} to {high:.4f}.")
    had_s = supervised.clock_s * len(os.sched_getaffinity(0))
    own, talk = used_s / had_s, talked_s / had_s
    print(f"Of the processors' time the supervisor took {own:.3%}, the worker's threads that talk to it {talk:.3%}.")


def begin_alone(alone: Contestant) -> subprocess.Popen[bytes]:
    """The same run.json, made by a start that is stopped at once, begins anew without its supervisor."""
    alone.memsup("start", *JOB)
    alone.memsup("stop", "--now", "--run", "bench")
    record = json.loads((alone.home / "state/bench/run.json").read_text())
    count = str(record["settings"]["training"]["threads"])
    same = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    with (alone.home / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-P", "-c", ALONE], env=alone.environment | same, stdout=log, stderr=log)


def wait_for_steps(one: Contestant, steps: int) -> None:
    deadline_s = time.monotonic() + 300
    while one.steps() < steps:
        if time.monotonic() > deadline_s:
            sys.exit(f"{one.home.name} supervision: no step within five minutes.")
        time.sleep(0.1)


def cpu_s(pid: int) -> float:
    return sum(map(thread_s, Path(f"/proc/{pid}/task").iterdir()))


def thread_s(task: Path) -> float:
    """On a processor, in the scheduler's nanoseconds: a tick of /proc/PID/stat is 10 ms."""
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def talking_threads(worker_pid: int) -> list[Path]:
    """Of the worker: ZeroMQ's own, and the first that the main thread started, which is the link's."""
    tasks = sorted(Path(f"/proc/{worker_pid}/task").iterdir(), key=lambda task: int(task.name))[1:]
    zeromq = [task for task in tasks if (task / "comm").read_text().startswith("ZMQ")]
    return [*zeromq, next(task for task in tasks if task not in zeromq)]


def interval(values: list[float]) -> tuple[float, float]:
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]


if __name__ == "__main__":
    main()
