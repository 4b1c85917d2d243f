"""What the parts of the proof stand on: where they may write, on what they compute, and runs of memsup as a person starts them.

Covers the real card and the rehearsal, which takes a CPU, smaller jobs, and the tests' library that speaks NVML. Runs are
started and ordered through the command line and watched through its documents, so that what is proved is what people use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxed import CONFIG, Steps, make_job
from kit.cli_process import MEMSUP
from kit.fake_nvml import Control, attach
from lines import Unproved

from memsup.shared.paths import run_paths
from memsup.shared.status import OVER, RunState, Status
from memsup.supervisor.client.contact import observe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GIB, MIB = 1 << 30, 1 << 20
LOOK_S = 0.05
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 21128}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where one part of the proof plays."""

    work: Path
    """The part's own folder; gone when all is over."""
    rehearses: bool
    """On a CPU, with small jobs: speeds and accuracies are then shown and not judged."""
    quick: bool
    """A rehearsal for a test: as small as it gets."""
    may_cap: bool
    """The card's power limit may be changed: only where the card belongs to whoever asks."""

    @property
    def device(self) -> str:
        return "cpu" if self.rehearses else "cuda"

    @cached_property
    def fake(self) -> Control:
        """The devices of the library that stands in for NVIDIA's in a rehearsal."""
        return attach(os.environ["FAKE_NVML"])

    @property
    def patience(self) -> float:
        """By how much longer than on a card things may take: a rehearsal runs beside whatever else this machine does."""
        return 4.0 if self.rehearses else 1.0

    def judged(self, held: bool) -> bool | None:
        """What is made of a goal about speed or accuracy, which only the real card can miss: where a rehearsal misses it, that
        says nothing (None), and is never passed off as held.
        """
        return True if held else None if self.rehearses else False

    def job(self, name: str, *, rows: int, held_out: int = 4, model: Mapping[str, Any] = BASE) -> Path:
        """A folder with a BERT of random weights and the demo's reviews; in a rehearsal a tiny one and few of them."""
        folder = self.work / name
        folder.mkdir()
        make_job(folder, rows, {**CONFIG, **(TINY if self.rehearses else model)}, held_out=held_out)
        return folder

    def run(self, name: str, job: Path | None, *settings: str, environment: Mapping[str, str] | None = None) -> Run:
        """One run of memsup, not started yet. `job` None is the built-in one. `settings` are `section.key=value`."""
        return Run(name, job, settings, environment or {}, self.patience)

    def program(
        self, name: str, command: Iterable[str], folder: Path, *settings: str, environment: Mapping[str, str] | None = None
    ) -> Run:
        """One run of a program of a person's own, not started yet; it runs in `folder`."""
        return Run(name, None, settings, environment or {}, self.patience, command=command, folder=folder)


def _data_of(job: Path) -> list[str]:
    """The settings that name what is learnt: dialogues where there are some, else the reviews."""
    chat = job / "chat.jsonl"
    if chat.exists():
        return ["task.kind=causal-lm", f"task.train={chat}", f"task.eval={job}/chat-eval.jsonl"]
    return [f"task.train={job}/train.csv", f"task.eval={job}/eval.csv"]


class Run:
    """One run of memsup, as a person starts it and looks at it."""

    def __init__(
        self,
        name: str,
        job: Path | None,
        settings: Iterable[str],
        environment: Mapping[str, str],
        patience: float,
        *,
        command: Iterable[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.paths = run_paths(name)
        self._patience = patience
        self._environment = os.environ | dict(environment)
        files = [] if job is None else [f"task.model={job}/model", *_data_of(job)]
        if not command:  # but for the part about two cards one is proved, also where there are several
            files.insert(0, "training.ranks=1")
        self._settings = [word for setting in (*files, *settings) for word in ("--set", setting)]
        self._words, self._folder = list(command), folder
        self._what = ["--accept"] if job is not None else [] if self._words else ["--demo"]
        """A model of random weights is doubted where nobody has said that it is meant."""
        self.steps = Steps(self.paths.state / "audit.txt")
        self.began_s = 0.0

    def start(self) -> None:
        self.began_s = time.monotonic()
        command = ["--", *self._words] if self._words else []
        self.command("start", "--tier", "auto", *self._what, *self._settings, *command)

    def command(self, *words: str, within_s: float = 90.0) -> str:
        """What `memsup WORDS` said on stdout. Raises `Unproved` where it was refused."""
        try:
            done = subprocess.run(
                [*MEMSUP, words[0], "--run", self.paths.name, *words[1:]],
                env=self._environment,
                cwd=self._folder or self.paths.state.parent.parent,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within_s * self._patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unproved(f"memsup {words[0]} has not ended after {within_s:.0f} s") from None
        if done.returncode:
            raise Unproved(f"memsup {words[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout

    def order(self, *words: str) -> dict[str, Any]:
        """The JSON document of `memsup WORDS --json`."""
        document: dict[str, Any] = json.loads(self.command(*words, "--json"))
        return document

    def look(self) -> Status:
        self.steps.look(time.monotonic())
        status = observe(self.paths).status
        if status is None:
            raise Unproved("the run does not exist")
        return status

    def until(
        self, what: str, true: Callable[[Status], bool], within_s: float, each: Callable[[Status], None] = lambda _: None
    ) -> Status:
        """The first status for which `true` holds; `each` sees every one. `within_s` is for a card. Raises `Unproved`."""
        deadline_s = time.monotonic() + within_s * self._patience
        while True:
            seen = self.look()
            each(seen)
            if true(seen):
                return seen
            if seen.state in OVER:
                why = seen.failure or "its steps were done"
                raise Unproved(f"the run was {seen.state} at step {seen.progress.step} before {what}: {why}")
            if time.monotonic() > deadline_s:
                raise Unproved(f"not {what} within {within_s:.0f} s: {seen.state} at step {seen.progress.step}")
            time.sleep(LOOK_S)

    def until_over(self, within_s: float, each: Callable[[Status], None] = lambda _: None) -> Status:
        """Raises `Unproved` where it did not finish."""
        seen = self.until("over", lambda status: status.state in OVER, within_s, each)
        if seen.state is not RunState.FINISHED:
            raise Unproved(f"the run is {seen.state} at step {seen.progress.step}: {seen.failure}")
        return seen

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The ledger's lines about `kind` of event, oldest first."""
        lines = [json.loads(text) for text in self.paths.ledger.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["event"] == kind]

    def samples_per_s(self, effective: int, *, skipped: float = 0.2) -> float:
        """Without the first `skipped` part of its steps, in which it looks for its plan."""
        first, last = max(1, int(skipped * len(self.steps.done_at_s))), len(self.steps.done_at_s)
        return effective * self.steps.per_s(first, last)

    def end(self) -> None:
        """Stops it at once, where it still runs."""
        if observe(self.paths).status is not None and self.look().state not in OVER:
            self.command("stop", "--now")
