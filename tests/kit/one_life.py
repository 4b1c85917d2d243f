"""A worker's training in the test's own process: real task, model, plan, store and link; only the link's thread is not started,
so reports stay where the test can read them, and orders are put straight into its queue.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from memsup.checkpoint.reading import verify
from memsup.shared.messages import AnyReport, Decided, Finished, OutOfMemory, Welcome
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.worker.link import Link
from memsup.worker.session import Session
from memsup.worker.tasks import Examples, Prepared
from memsup.worker.training import Training

EXHAUSTED = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)


@contextmanager
def one_life(
    settings: Settings, *, name: str = "life", micro_tokens_limit: int | None = None, run_id: str = "0123456789ab"
) -> Iterator[Training]:
    """The training, ready for its next step."""
    from memsup.worker import train

    paths, record = run_paths(name), a_record(settings, name, run_id)
    prepare(paths)
    welcome = Welcome(run_id=run_id, lease_s=60.0, memory_limit_bytes=None, micro_tokens_limit=micro_tokens_limit)
    with _a_process_for_it(paths, run_id) as link:
        yield train.prepare(record, paths, welcome, Session(link, link.lifeline))


def a_record(settings: Settings, name: str, run_id: str) -> RunRecord:
    return RunRecord(
        run=name,
        run_id=run_id,
        created_unix_s=0.0,
        wanted=Wanted.RUNNING,
        tier="full",
        tier_reason="a test",
        settings=settings,
    )


@contextmanager
def _a_process_for_it(paths: RunPaths, run_id: str) -> Iterator[Link]:
    """The link of a worker that has this process; afterwards what a worker replaces for good in its own is put back."""
    import torch

    dropout = torch.nn.functional.dropout
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(paths, run_id=run_id, lifeline_fd=theirs.detach())
    try:
        yield link
    finally:
        torch.nn.functional.dropout = dropout
        link.lifeline.close()
        ours.close()


class Killed(BaseException):
    """The end of a life of which nothing in it knows; no code catches it."""


class Mortal(Session):
    """A session that dies once so many pieces of work are finished: micro-batches, evaluation batches, pieces of files."""

    def __init__(self, link: Link, pieces: int | None) -> None:
        super().__init__(link)
        self._left = pieces

    def tick(self) -> None:
        super().tick()
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise Killed


def whole_life(
    settings: Settings, *, name: str = "life", killed_after: int | None = None, run_id: str = "0123456789ab"
) -> tuple[Finished | None, list[Decided]]:
    """A life from the newest checkpoint to the run's end, and what was decided in it. Returns None in place of the end where it
    was killed, after so many pieces of work. `run.json` is there as well, so that the model is asked again after the test.
    """
    from memsup.worker import train

    paths, record = run_paths(name), a_record(settings, name, run_id)
    prepare(paths)
    write_record(paths.record, record)
    welcome = Welcome(run_id=run_id, lease_s=60.0, memory_limit_bytes=None, micro_tokens_limit=None)
    with _a_process_for_it(paths, run_id) as link:
        try:
            finished = train.train(record, paths, welcome, Mortal(link, killed_after))
        except Killed:
            finished = None
        return finished, [report for report in _said(link) if isinstance(report, Decided)]


class Outcome(NamedTuple):
    """What a run has come to."""

    audit: bytes
    metrics: dict[str, float]
    tensors: dict[str, bytes]
    """The newest checkpoint's files of weights and moments."""


def lives_to_the_end(settings: Settings, *, name: str, killed_after: Sequence[int] = ()) -> tuple[Outcome, int]:
    """What a run has come to that is killed after so many pieces of work, and after so many again, as far as it lasts; and how
    many lives it had. Its newest checkpoint is whole.
    """
    lived, finished = 0, None
    for pieces in (*killed_after, None):
        if finished is None:
            finished, _ = whole_life(settings, name=name, killed_after=pieces)
            lived += 1
    assert finished is not None
    newest = max(run_paths(name).checkpoints.glob("step-*"))
    verify(newest)
    tensors = {part.name: part.read_bytes() for part in newest.glob("*.safetensors")}
    assert tensors, "there is something to compare"
    return Outcome((run_paths(name).state / "audit.txt").read_bytes(), finished.metrics, tensors), lived


def reports(training: Training) -> list[AnyReport]:
    """What the worker has said since it was last asked."""
    return _said(training.session.link)


def _said(link: Link) -> list[AnyReport]:
    said = []
    while not link._outbox.empty():
        message = link._outbox.get()
        assert message is not None
        said.append(message)
    return said


def exhaustions(training: Training) -> list[OutOfMemory]:
    return [report for report in reports(training) if isinstance(report, OutOfMemory)]


def decisions(training: Training) -> list[Decided]:
    """What the worker has decided by itself since it was last asked what it said."""
    return [report for report in reports(training) if isinstance(report, Decided)]


def without_dropout(settings: Settings) -> Settings:
    """Then results depend on the cuts by rounding alone. Changes the model's config on disk."""
    import json

    assert settings.task.model is not None
    file = Path(settings.task.model) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(config), encoding="utf-8")
    return settings


class StarvedTask:
    """The real task on a machine where allocations fail: `fails(where, rows, call)` says which. The failure comes from where a
    real one would: out of the forward pass, or out of torch's backward pass when a part of the gradient has been added.
    """

    def __init__(self, task: Any, fails: Any, error: str = EXHAUSTED) -> None:
        self._task, self._fails, self._error = task, fails, error
        self.calls = 0

    def load(self, *arguments: Any, **named: Any) -> Prepared:
        raise NotImplementedError

    def weight(self, examples: Examples, indices: Any) -> float:
        return float(self._task.weight(examples, indices))

    def new_metrics(self) -> Any:
        starved, metrics = self, self._task.new_metrics()

        class Metrics:
            def add(self, model: Any, batch: Any) -> None:
                starved.calls += 1
                if starved._fails("evaluate", len(batch["labels"]), starved.calls):
                    raise RuntimeError(starved._error)
                metrics.add(model, batch)

            def result(self) -> dict[str, float]:
                return metrics.result()  # type: ignore[no-any-return]

        return Metrics()

    def loss(self, model: Any, batch: Any) -> Any:
        self.calls += 1
        rows = len(batch["labels"])
        if self._fails("forward", rows, self.calls):
            raise RuntimeError(self._error)
        if not self._fails("backward", rows, self.calls):
            return self._task.loss(model, batch)

        def exhausted(_gradient: Any) -> None:
            raise RuntimeError(self._error)

        def watch(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, tuple):
                output = output[0]
            output.register_hook(exhausted)

        # When the embeddings' output gets its gradient, the layers above have theirs already. Frozen ones get none.
        embeddings = model.get_input_embeddings()
        first = embeddings if embeddings.weight.requires_grad else model.model.layers[0]
        handle = first.register_forward_hook(watch)
        try:
            return self._task.loss(model, batch)
        finally:
            handle.remove()
