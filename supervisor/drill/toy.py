"""A drill's runs: a tiny BERT on made-up reviews, trained by the real worker under a real supervisor, in the drill's folder.

Covers making such a run, looking at it, waiting for something with a deadline, killing its processes, and what its last
checkpoint has in it. What is rehearsed with it is in `scenes.py`; its end is the business of `janitor.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from memsup.checkpoint.store import Store
from memsup.checkpoint.tensors import open_tensors
from memsup.shared.messages import Reply, RequestKind
from memsup.shared.record import RunRecord
from memsup.shared.run_file import new_run_id
from memsup.shared.settings import Checkpoint, Limits, Settings, Task, Training
from memsup.shared.status import RunState, Status, Wanted
from memsup.supervisor.client import spawning
from memsup.supervisor.client.contact import NoAnswerError, NobodyThereError, ask, observe
from memsup.supervisor.decide.readings import Machine
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.drill.janitor import run_folders
from memsup.supervisor.kernel.processes import look_at
from memsup.supervisor.record.ledger import Entry, read_entry

T = TypeVar("T")

LOOK_EVERY_S = 0.1
TRAINS_WITHIN_S = 120.0
"""Importing torch takes seconds, and on a slow disk or a busy machine many."""
ROWS, EFFECTIVE_BATCH = 240, 8
SAID = {"good": ["好", "很好", "不错", "喜欢", "满意", "推荐"], "bad": ["差", "很差", "失望", "糟糕", "退货", "破损"]}
SUBJECTS = ["书", "酒店", "房间", "服务", "价格", "电脑", "屏幕", "早餐", "快递"]
MODEL = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


class NotProvedError(Exception):
    """Something did not come as promised; the text is one plain sentence."""


class NotRehearsedError(Exception):
    """Something cannot be tried out here; the text is one plain sentence that says why."""


class OverError(BaseException):
    """The drill is interrupted. No `except Exception` stops it."""


@dataclass(frozen=True)
class Room:
    """A room holds what all runs of a drill share."""

    folder: Path
    machine: Machine
    over: threading.Event
    janitor: IO[bytes]


class Toy:
    """A toy is one run."""

    def __init__(self, room: Room, name: str, *, epochs: float = 10_000.0, limits: Limits | None = None) -> None:
        """Makes up its settings; nothing is written or started. Without `epochs` it has no end to speak of."""
        self.paths = run_folders(room.folder, name)
        self._room = room
        settings = Settings(
            tier="low",
            task=Task(model=str(self._root / "model"), train=str(self._root / "reviews.csv")),
            training=Training(
                epochs=epochs,
                effective_batch=EFFECTIVE_BATCH,
                max_length=48,
                micro_tokens=96,
                learning_rate=1e-3,
                device="cpu",
                amp="off",
                gradient_checkpointing=False,
                threads=1,
            ),
            limits=limits or Limits(),
            checkpoint=Checkpoint(every_s=1.0),
        )
        resolution = resolve(settings, {}, room.machine)
        self._record = RunRecord(
            run=name,
            run_id=f"drill_{new_run_id()}",  # its fence is named after it
            created_unix_s=time.time(),
            wanted=Wanted.RUNNING,
            tier=resolution.tier,
            tier_reason="a drill",
            settings=resolution.settings,
        )

    @property
    def _root(self) -> Path:
        return self.paths.state.parent.parent

    def begin(self) -> None:
        """Writes its data and its record, and starts it. Raises `RefusedError`."""
        (self._root / "model").mkdir(parents=True)
        (self._root / "model" / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        (self._root / "reviews.csv").write_text(made_up_reviews(), encoding="utf-8")
        self._room.janitor.write(f"{self.paths.name} {self._record.run_id}\n".encode())
        self._room.janitor.flush()
        with spawning.only_start(self.paths):
            spawning.write_run(self.paths, self._record)
            spawning.spawn(self.paths)

    def begin_again(self) -> list[str]:
        """Starts it after the supervisor was killed; returns what the next one says of that. Raises `RefusedError`."""
        with spawning.only_start(self.paths):
            return spawning.spawn(self.paths).postmortem

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self) -> Status | None:
        return observe(self.paths).status

    def ledger(self) -> list[Entry]:
        lines = self.paths.ledger.read_bytes().splitlines() if self.paths.ledger.exists() else []
        return [read_entry(line) for line in lines]

    def until(self, what: str, found: Callable[[], T | None], within_s: float) -> T:
        """The first thing found. Raises `NotProvedError` after `within_s`, with `what` was waited for."""
        deadline_s = time.monotonic() + within_s
        while True:
            if self._room.over.is_set():
                raise OverError
            if (thing := found()) is not None:
                return thing
            if time.monotonic() > deadline_s:
                raise NotProvedError(f"{what}: not within {within_s:.0f} s.")
            time.sleep(LOOK_EVERY_S)

    def until_status(self, what: str, fits: Callable[[Status], bool], within_s: float) -> Status:
        def look() -> Status | None:
            status = self.status()
            if status is not None and status.state is RunState.FAILED and not fits(status):
                raise NotProvedError(f"{what}: the run failed instead. {status.failure}")
            return status if status is not None and fits(status) else None

        return self.until(what, look, within_s)

    def until_entry(self, what: str, fits: Callable[[Entry], bool], within_s: float, after: int = 0) -> tuple[int, Entry]:
        """The first line of the ledger from number `after` on that fits, and its number."""
        found = self.until(what, lambda: next((pair for pair in self._numbered(after) if fits(pair[1])), None), within_s)
        return found[0], found[1]

    def _numbered(self, after: int) -> Iterable[tuple[int, Entry]]:
        return list(enumerate(self.ledger()))[after:]

    def trains(self, beyond_step: int = 0, within_s: float = TRAINS_WITHIN_S) -> Status:
        return self.until_status(
            f"training beyond step {beyond_step:,}",
            lambda seen: seen.state is RunState.RUNNING and (seen.progress.step or 0) > beyond_step,
            within_s,
        )

    # -- doing --------------------------------------------------------------------------------------------------------

    def ask(self, what: RequestKind, within_s: float) -> Reply:
        try:
            return ask(self.paths, what, within_s=within_s)
        except (NobodyThereError, NoAnswerError):
            raise NotProvedError(f"The supervisor did not answer to {what} within {within_s:.0f} s.") from None

    def until_gone(self, what: str, pid: int | None, within_s: float) -> None:
        """Waits for the end of a process. A zombie is gone, too: it may be somebody else's to reap."""
        process = look_at(pid) if pid is not None else None

        def gone() -> bool | None:
            now = look_at(process.pid) if process is not None else None
            return True if now is None or process is None or now.dead or now.started != process.started else None

        self.until(what, gone, within_s)

    def kill(self, pid: int | None) -> None:
        """Sends SIGKILL, as the kernel's out-of-memory killer or a person does."""
        if pid is None:
            raise NotProvedError("There was no process to kill.")
        os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends the run, of which nothing is kept. What does not end now is the janitor's."""
        try:
            ask(self.paths, RequestKind.STOP_NOW, within_s=10.0)
        except (NobodyThereError, NoAnswerError):
            pass

    def bits(self) -> tuple[int, str]:
        """The step of the newest checkpoint, and a hash of each byte of its weights and optimizer state.

        It is verified for this. Raises `NotProvedError` where there is no valid one.
        """
        info, _ = Store(self.paths.checkpoints).newest_valid()
        if info is None or info.step is None:
            raise NotProvedError("There is no valid checkpoint.")
        whole = hashlib.sha256()
        for stem in ("model", "optimizer"):
            for tensor in open_tensors(info.path, stem):
                whole.update(f"{stem} {tensor.name} {tensor.dtype} {tensor.shape} ".encode())
                for chunk in tensor.chunks():
                    whole.update(chunk)
        return info.step, whole.hexdigest()


def made_up_reviews() -> str:
    """The training data, the same each time: two runs on it are to end with the same bits."""
    draw = random.Random(7)
    lines = ["text,label"]
    for number in range(ROWS):
        label = ("good", "bad")[number % 2]
        words = [draw.choice(SAID[label] if draw.random() < 0.6 else SUBJECTS) for _ in range(draw.randint(2, 12))]
        lines.append(f"{''.join(words)}{number},{label}")
    return "\n".join(lines) + "\n"
