"""A supervisor's end of the worker socket, and nothing else of a supervisor: drives a real worker process in tests.

It makes a run's folders and record, starts `python -m memsup.worker`, welcomes it, renews its lease, sends orders and keeps
every report. No watching, no fence, no restart policy.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from kit.nursery import Nursery, NurseryChild
from memsup.shared.descriptors import receive_with_descriptor
from memsup.shared.endpoints import WORKER_SOCKET, SocketFolder
from memsup.shared.loading import load
from memsup.shared.messages import (
    Accepted,
    AnyOrder,
    AnyReport,
    Done,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Kept,
    Lease,
    Leaving,
    Message,
    OrderFailed,
    Phase,
    Welcome,
    decode_for_supervisor,
    decode_kept,
    encode,
    encode_kept,
)
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted

R = TypeVar("R", bound=AnyReport)
T = TypeVar("T")

GOOD = ["好", "很好", "不错", "喜欢", "满意", "精美", "推荐"]
BAD = ["差", "很差", "失望", "糟糕", "退货", "破损", "难看"]
NEITHER = ["书", "酒店", "房间", "服务", "价格", "内容", "电脑", "屏幕", "早餐", "快递"]


def tiny_settings(folder: Path, *, rows: int = 200, words: int = 12, hidden: int = 32, **values: Any) -> Settings:
    """A BERT of two small layers, trained from nothing on reviews made up here; a run takes a few seconds. `values` override
    settings, with `__` for the dot: `training__epochs=2`.
    """
    model = folder / "tiny-bert"
    model.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": 200,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "reviews.csv").write_text(made_up_reviews(rows, words), encoding="utf-8")
    defaults = {
        "task.model": str(model),
        "task.train": str(folder / "reviews.csv"),
        "training.epochs": 1,
        "training.effective_batch": 8,
        "training.max_length": 48,
        "training.micro_tokens": 96,
        "training.learning_rate": 1e-3,
        "training.device": "cpu",
        "training.threads": 1,
        "training.amp": "off",
        "checkpoint.every": "1h",
    }
    chosen = defaults | {key.replace("__", "."): value for key, value in values.items()}
    return load(job_file=None, flags=[f"{key}={value}" for key, value in chosen.items()], environment={}).settings


def tiny_job(folder: Path, *, epochs: int, more: str, amp: str = "off") -> Settings:
    """The tiny settings' model and 240 rows in `folder`, and a `memsup.toml` for them: 27 steps an epoch. `more` follows
    there, and is still in the section `[training]` at first. `amp` is "auto" where mixed precision belongs to what is tested:
    for batches this small, of ever new shapes, most of its time goes into generating code, so that a step takes twice as long.
    """
    tiny = tiny_settings(folder, rows=240)
    head = f"""\
[task]
model = "tiny-bert"
train = "reviews.csv"
[training]
epochs = {epochs}
effective_batch = 8
max_length = 48
micro_tokens = 96
amp = "{amp}"
"""
    (folder / "memsup.toml").write_text(head + more, encoding="utf-8")
    return tiny


def made_up_reviews(rows: int, words: int) -> str:
    """Each says good or bad things, of 2 to `words` words; the label says which."""
    draw = random.Random(7)
    lines = ["text,label"]
    for number in range(rows):
        good = number % 2
        said = [draw.choice((GOOD if good else BAD) if draw.random() < 0.6 else NEITHER) for _ in range(draw.randint(2, words))]
        lines.append(f"{''.join(said)}{number},{'good' if good else 'bad'}")
    return "\n".join(lines) + "\n"


class LoneSupervisor:
    """One run. `with LoneSupervisor(settings) as supervisor:`; ends its worker and closes its socket on the way out."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str = "tiny",
        lease_s: float = 60.0,
        memory_limit_bytes: int | None = None,
        micro_tokens_limit: int | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self.nursery = nursery
        self.paths: RunPaths = run_paths(name)
        prepare(self.paths)
        self.record = RunRecord(
            run=name,
            run_id="0123456789ab",
            created_unix_s=time.time(),
            wanted=Wanted.RUNNING,
            tier="full",
            tier_reason="a test",
            settings=settings,
        )
        write_record(self.paths.record, self.record)
        self.lease_s = lease_s
        self.welcome: Welcome | None = Welcome(
            run_id=self.record.run_id,
            lease_s=lease_s,
            memory_limit_bytes=memory_limit_bytes,
            micro_tokens_limit=micro_tokens_limit,
        )
        self.renews_lease = True
        self.reports: list[AnyReport] = []
        self.kept: tuple[Kept, int] | None = None
        """What the worker has handed over in memory last, with its descriptor; the next one that is started gets it."""
        self.environment: dict[str, str] = {}
        self._threads = str(settings.training.threads)
        self.worker: subprocess.Popen[bytes] | NurseryChild | None = None
        self._lifeline: socket.socket | None = None
        self._peer: bytes | None = None
        self._leased_s = 0.0
        self._folder = SocketFolder(self.paths)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self._folder.endpoint(WORKER_SOCKET))

    def __enter__(self) -> LoneSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.drop_lifeline()
        self.give_up_state()
        self._context.destroy(linger=0)
        self._folder.close()

    # ---------------------------------------------------------------------------------------------------------------

    def start(self, *command: str) -> None:
        """Starts the worker: from the nursery if there is one, else as a program. `command` is a program in its place."""
        self.kill()
        self.drop_lifeline()
        self._peer = None
        self.reports.clear()
        self._lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self.kept is not None:
            note, fd = self.kept
            socket.send_fds(self._lifeline, [encode_kept(note)], [fd])
        read_end = theirs.detach()
        environment = os.environ | {"OMP_NUM_THREADS": self._threads, "TOKENIZERS_PARALLELISM": "false"} | self.environment
        with self.paths.worker_log.open("ab") as log:
            if self.nursery is not None and not command:
                self.worker = self.nursery.fork(
                    ["--run", self.paths.name], environment, output_fd=log.fileno(), second_fd=read_end
                )
            else:
                self.worker = subprocess.Popen(
                    [
                        *(command or (sys.executable, "-P", "-m", "memsup.worker")),
                        *("--run", self.paths.name, "--lifeline-fd", str(read_end)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[read_end],
                    env=environment,
                    start_new_session=True,
                )
        os.close(read_end)

    def kill(self) -> None:
        if self.worker is not None and self.worker.poll() is None:
            self.worker.send_signal(signal.SIGKILL)
            self.worker.wait(60)

    def take_state(self) -> Kept | None:
        """Takes the newest that the worker has handed over in memory since. Returns None where that is nothing."""
        assert self._lifeline is not None
        taken = None
        while True:
            try:
                content, fd = receive_with_descriptor(self._lifeline, 512)
            except BlockingIOError:
                return taken
            if fd is None:
                return taken
            self.give_up_state()
            taken = decode_kept(content)
            self.kept = taken, fd

    def give_up_state(self) -> None:
        if self.kept is not None:
            os.close(self.kept[1])
            self.kept = None

    def drop_lifeline(self) -> None:
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    def send(self, message: Message) -> None:
        self.send_frames(encode(message))

    def send_frames(self, frames: list[bytes]) -> None:
        assert self._peer is not None, "no worker has said hello"
        self._socket.send_multipart([self._peer, *frames])

    def pump(self, wait_s: float = 0.05) -> None:
        """Takes in what has come, for at most `wait_s`; welcomes, and renews the lease."""
        if self._socket.poll(int(wait_s * 1000)):
            identity, *frames = self._socket.recv_multipart()
            report = decode_for_supervisor(frames)
            if isinstance(report, Hello):
                self._peer = identity
                if self.welcome is not None:
                    self.send(self.welcome)
                    self._leased_s = time.monotonic()
            if identity == self._peer:
                self.reports.append(report)
        if self._peer is not None and self.renews_lease and time.monotonic() - self._leased_s > self.lease_s / 4:
            self.send(Lease(lease_s=self.lease_s))
            self._leased_s = time.monotonic()

    def until(self, what: str, condition: Callable[[], T | None], deadline_s: float = 120.0) -> T:
        """Pumps until `condition` gives something true, and returns that. A worker that ended meanwhile is an error."""
        end_s = time.monotonic() + deadline_s
        while True:
            found = condition()
            if found:
                return found
            ended = self.worker is not None and self.worker.poll() is not None and not self._socket.poll(200)
            if ended or time.monotonic() > end_s:
                why = f"the worker ended with {self.worker.returncode}" if ended and self.worker else f"{deadline_s} s passed"
                raise AssertionError(f"{why} before {what}.\n{self.reports[-3:]}\n{self.log()[-4000:]}")
            self.pump()

    def first(self, kind: type[R], **fields: Any) -> R:
        """The first report of `kind` with these fields, waited for."""

        def found() -> R | None:
            for report in self.reports:
                if isinstance(report, kind) and all(getattr(report, name) == value for name, value in fields.items()):
                    return report
            return None

        return self.until(f"{kind.__name__} {fields or ''}", found)

    def reach(self, phase: Phase, step: int = 0) -> Heartbeat:
        """Waits for a heartbeat of `phase` at `step` or later."""

        def reached() -> Heartbeat | None:
            for report in reversed(self.reports):
                if isinstance(report, Heartbeat) and report.progress.phase is phase and report.progress.step >= step:
                    return report
            return None

        return self.until(f"phase {phase} at step {step}", reached)

    def order(self, order: AnyOrder) -> Done | OrderFailed:
        """Sends an order and waits for its answers; the worker must have accepted it first."""
        self.send(order)
        self.first(Accepted, order_id=order.order_id)

        def answered() -> Done | OrderFailed | None:
            for report in self.reports:
                if isinstance(report, Done | OrderFailed) and report.order_id == order.order_id:
                    return report
            return None

        answer = self.until(f"an answer to order {order.order_id}", answered)
        assert isinstance(answer, Done | OrderFailed)
        return answer

    def finish(self) -> Finished:
        """Waits for the end of the run, and of the process."""
        last = self.last_words()
        assert isinstance(last, Finished), f"{last}\n{self.log()[-4000:]}"
        return last

    def last_words(self) -> Finished | Failed | Leaving:
        """Waits for the end of this life, and of the process."""
        last = self.until("the end of this life", self._last_words)
        assert isinstance(last, Finished | Failed | Leaving)
        assert isinstance(last, Failed) or self.exit_status() == 0
        return last

    def exit_status(self) -> int:
        assert self.worker is not None
        return self.worker.wait(timeout=60)

    def _last_words(self) -> Finished | Failed | Leaving | None:
        for report in self.reports:
            if isinstance(report, Finished | Failed | Leaving):
                return report
        return None

    def log(self) -> str:
        return self.paths.worker_log.read_text(encoding="utf-8", errors="replace") if self.paths.worker_log.exists() else ""

    def run_to_end(self) -> Finished:
        self.start()
        return self.finish()


def newest_checkpoint(paths: RunPaths) -> Path:
    return max(path for path in paths.checkpoints.iterdir() if path.name.startswith("step-"))


def state_of(paths: RunPaths) -> dict[str, Any]:
    """`state.json` of the newest checkpoint."""
    state: dict[str, Any] = msgspec.json.decode((newest_checkpoint(paths) / "state.json").read_bytes())
    return state
