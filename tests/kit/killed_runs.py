"""Runs of the tiny job through the real command line, killed at random instants, and what is left of them at the end.

Used by `test_nothing_learned_is_lost.py` (a few kills) and `benchmarks/kills.py` (hundreds). A victim is the worker, the
supervisor or both; the instant is random, so it falls into loading, training, saving or evaluating, which are all frequent
here; with several ranks also one beside the worker. Whatever died is started again as a person would: the supervisor restarts
the worker, `memsup start` the supervisor.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kit.cli_process import end_supervisors, eventually, memsup
from kit.lone_supervisor import tiny_job
from kit.run_state import LOOK_EVERY_S, until
from memsup.checkpoint.reading import verify
from memsup.checkpoint.store import Store
from memsup.checkpoint.tensors import open_tensors
from memsup.shared.paths import RunPaths, run_paths

WAITED_S = 3600
"""A run may take as long as the test that waits for it: where others compute, minutes become an hour."""


@dataclass(frozen=True)
class End:
    """What must be equal: every byte of weights and optimizer state, the audit's digest, the steps."""

    tensors: str
    digest: str
    step: int


@dataclass
class Tally:
    """Kills so far, by victim and by the phase that the worker was in."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.kills.values())


def make_job(
    folder: Path, *, epochs: int, every: str = "300ms", lanes: int = 2, amp: str = "off", report_to: str = "off", ranks: int = 1
) -> None:
    """Each lane has one thread; two of them wait for each other, which is slow where others compute, too."""
    cut = f'learning_rate = 1e-3\nthreads = {lanes}\nlanes = {lanes}\nranks = {ranks}\nreport_to = "{report_to}"\n'
    tiny_job(folder, epochs=epochs, more=f'{cut}[checkpoint]\nevery = "{every}"\n', amp=amp)


def undisturbed(folder: Path, name: str) -> End:
    for done in (
        memsup("start", "--run", name, cwd=folder, within_s=WAITED_S),
        memsup("wait", "--run", name, within_s=WAITED_S),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    return end_of(run_paths(name))


def disturbed(
    folder: Path,
    name: str,
    draw: random.Random,
    tally: Tally,
    *,
    kills: int,
    longest_life_s: float,
    victims: Sequence[str] = ("worker", "supervisor", "both", "rank"),
) -> End:
    """A run that is killed `kills` times, or as often as fits into it, and then left to finish. Who is named more often among
    `victims` is killed more often.
    """
    memsup("start", "--run", name, cwd=folder, within_s=WAITED_S)
    last = tally.total + kills
    while tally.total < last:
        if draw.random() < 0.75:  # loading takes most of a life here, but it is in training that something can be lost
            eventually(lambda: _phase(name) in ("training", "saving", "evaluating", None), WAITED_S, every_s=LOOK_EVERY_S)
            time.sleep(draw.uniform(0, 1))
        else:
            time.sleep(draw.uniform(0.05, longest_life_s))
        seen = until(lambda seen: True, run=name)
        if seen["state"] == "finished":
            break
        if seen["state"] in ("failed", "stopped"):  # it was killed so often that it had been given up
            memsup("start", "--run", name, cwd=folder, within_s=WAITED_S)
            continue
        pids_of = {"worker": [seen["worker_pid"]], "supervisor": [seen["pid"]], "both": [seen["worker_pid"], seen["pid"]]}
        others = [rank["pid"] for rank in (seen["batch"]["ranks"] or [])[1:]]
        if others:
            pids_of["rank"] = [draw.choice(others)]
        victim = draw.choice([one for one in sorted(victims) if one in pids_of])
        pids = pids_of[victim]
        if None in pids or not all(_kill(pid) for pid in pids if pid):
            continue
        tally.kills[victim] += 1
        tally.phases[str(seen["progress"]["phase"])] += 1
        if seen["pid"] in pids:
            eventually(lambda pid=seen["pid"]: not psutil.pid_exists(pid), WAITED_S)
            memsup("start", "--run", name, cwd=folder, within_s=WAITED_S)
    finished = memsup("wait", "--run", name, within_s=WAITED_S)
    while finished.returncode != 0 and "start" in finished.stderr + finished.stdout:
        memsup("start", "--run", name, cwd=folder, within_s=WAITED_S)  # it was killed so often that it had been given up
        finished = memsup("wait", "--run", name, within_s=WAITED_S)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return end_of(run_paths(name))


def _phase(name: str) -> str | None:
    """What the worker does. Returns None when the run is over."""
    seen = until(lambda seen: True, run=name)  # one that has just begun to answer is asked again
    return None if seen["state"] in ("finished", "failed", "stopped") else str(seen["progress"]["phase"])


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def end_of(paths: RunPaths) -> End:
    """Of the newest checkpoint, which the finished run was exported from."""
    info, aside = Store(paths.checkpoints).newest_valid()
    assert info is not None
    assert not aside, f"a kill left a damaged checkpoint: {aside}"
    state = json.loads((info.path / "state.json").read_text())
    return End(tensors=hash_of_tensors(info.path), digest=state["digest"], step=state["step"])


def hash_of_tensors(checkpoint: Path) -> str:
    verify(checkpoint)
    whole = hashlib.sha256()
    learnt = "adapter_model" if (checkpoint / "adapter_config.json").exists() else "model"
    for stem in (learnt, "optimizer"):
        for tensor in sorted(_tensors(checkpoint, stem)):
            whole.update(tensor)
    return whole.hexdigest()


def _tensors(checkpoint: Path, stem: str) -> Iterator[bytes]:
    for tensor in open_tensors(checkpoint, stem):
        yield f"{stem} {tensor.name} {tensor.dtype} {tensor.shape} ".encode() + b"".join(
            bytes(chunk) for chunk in tensor.chunks()
        )


__all__ = ["End", "Tally", "disturbed", "end_supervisors", "make_job", "undisturbed"]
