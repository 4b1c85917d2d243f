"""What a rank beside rank 0 does: load the same model, then compute its part of each step, and change its parameters as rank 0
does.

Its plan is its own, with a journal of its own, so it runs out of memory, shrinks and grows alone. It saves nothing, and decides
nothing that concerns another rank.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from memsup.memory import SoftLimit
from memsup.shared.messages import CheckpointNote, LimitMemory, LimitMicroBatch, Pace, Pause, Resume, WorkerMemory
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.packing import pack
from memsup.worker.compute.token_loss import size_pieces
from memsup.worker.evaluating import measure
from memsup.worker.exhaustion import has_to_fit
from memsup.worker.hardware import choose_device, device_memory, device_of_rank, set_products, start_threads
from memsup.worker.memory import DeviceMemory, limit_device, read_memory
from memsup.worker.micro_batch_limit import begin_limited, limit_micro_batch
from memsup.worker.plan.batches import Order
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.journal import Plan, ToldPlan
from memsup.worker.plan.planner import planned_bytes
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.adding import Adding, store_in
from memsup.worker.ranks.link import RankLink
from memsup.worker.ranks.shares import equal
from memsup.worker.saving import first_plan, read_rows
from memsup.worker.session import SIGN_OF_LIFE_S, Leave, Session
from memsup.worker.tasks import find_task
from memsup.worker.train import (
    apply_gradient,
    built,
    lanes_of,
    measuring_of,
    named,
    plan_ahead,
    schedule_of,
    shared_out,
    try_gradient,
)
from memsup.worker.training import OneRank


def compute(
    record: RunRecord, paths: RunPaths, link: RankLink, *, rank: int, ranks: int, parts: socket.socket | None = None
) -> None:
    """Computes what rank 0 says, until that is gone; `parts` is where it takes this rank's rows from, if the model is shared
    out. Raises `Leave`, `GiveUp` and what a crash raises.
    """
    session, program = _Session(link), Program()

    def next_work() -> m.Begin | Work:
        return _next(session, link)

    begin = next_work()
    assert isinstance(begin, m.Begin)

    def met(training: OneRank | None = None) -> Adding:
        link.say(m.Loaded())
        store = store_in(Path(begin.store), ranks)
        try:
            if training is None:
                return Adding(store, rank, ranks, ())
            return Adding(
                store,
                rank,
                ranks,
                training.prepared.model.parameters(),
                device=training.device,
                memory=training.device_memory,
            )
        except RuntimeError as error:
            raise Left from error

    if parts is None:
        training = prepared_rank(record, paths, session, begin, program, rank=rank, ranks=ranks)
        link.gpu = None if training.device_memory is None else training.device_memory.uuid
        adding = met(training)
        try:
            adding.give(training.state_tensors())
        except RuntimeError as error:
            raise Left from error
    else:
        found: list[Adding] = []
        training = prepared_rank(
            record, paths, session, begin, program, rank=rank, ranks=ranks, meet=lambda: found.append(met())
        )
        (adding,) = found
        assert training.sharded is not None
        training.sharded.hand_over(parts)
    training.ranks = Meeting(link.say, next_work, adding.add, clock=session.worked_s)
    while True:
        work = next_work()
        if isinstance(work, m.Evaluate):
            assert work.folder is not None
            _follow(training, work.plan)
            m.counts_file(Path(work.folder), rank).write_bytes(counted(training))
            link.say(m.Counted())
            continue
        assert isinstance(work, m.Compute), "rank 0 adds up what was computed only"
        take_step(training, work)


Work = m.Compute | m.Evaluate | m.Add


def prepared_rank(
    record: RunRecord,
    paths: RunPaths,
    session: Session,
    begin: m.Begin,
    program: Program,
    *,
    rank: int,
    ranks: int,
    meet: Callable[[], None] | None = None,
) -> OneRank:
    """As `train.prepare`, without what is rank 0's alone. `meet` meets the other ranks, to share the model with them; without
    it this one has all of it.
    """
    settings = record.settings
    device = device_of_rank(choose_device(begin.device), rank, ranks)
    threads = start_threads(begin.threads, device)
    program.memory = memory = device_memory(device, settings.limits.vram)
    session.begin(program)
    soft_limit = SoftLimit(begin.welcome.memory_limit_bytes if memory is None else None)
    task = find_task(settings.task.kind, settings.task.problem_type)
    draw_by_row()
    attend_in_blocks()
    if memory is not None:
        size_pieces(memory.limit_bytes)
    with has_to_fit(f"The model of rank {rank}", begin.welcome, memory):
        folder = None if begin.checkpoint is None else Path(begin.checkpoint)
        prepared = task.load(settings, paths, session.boundary, checkpoint=folder, padding=begin.padding)
        if meet is None:
            sharded, optimizer = None, built(prepared, settings, device, memory)
        else:
            if begin.packed:
                assert pack(prepared.model), "rank 0's model is the same, and could"
            meet()
            sharded = shared_out(prepared, settings, device, rank=rank, ranks=ranks)
            optimizer = sharded.optimizer
            if folder is not None and begin.step:
                read_rows(sharded, folder, prepared.weights.stem, session.tick)
            sharded.has_taken(begin.step)
    schedule = schedule_of(prepared, settings)
    training = OneRank(
        record=record,
        paths=paths,
        session=session,
        device=device,
        device_memory=memory,
        soft_limit=soft_limit,
        threads=threads,
        task=task,
        prepared=prepared,
        schedule=schedule,
        order=Order(schedule),
        optimizer=optimizer,
        sharded=sharded,
        plan=Plan(paths.plan_of_rank(rank)) if sharded is None else ToldPlan(),
        measuring=measuring_of(prepared, begin.welcome, device, memory, settings.training),
        rank=rank,
        shares=equal(ranks),
        step=begin.step,
        done_before=begin.done_before,
    )
    if sharded is not None:
        assert isinstance(training.plan, ToldPlan)
        training.plan.told = first_plan(training, begin.lanes, packs=begin.packed)
        training.lanes = lanes_of(training)
        program.training = training
        return training
    if begin.packed:
        assert pack(prepared.model), "rank 0's model is the same, and could"
    training.plan.begin(first_plan(training, begin.lanes, packs=begin.packed), saved=False)
    training.plan.change(
        begin.step + 1, "as rank 0 computes now", lanes=begin.lanes, threads=threads, ranks=ranks, packed=begin.packed
    )
    begin_limited(training, begin.welcome.micro_tokens_limit)
    set_products(device, settings.training.amp)
    training.lanes = lanes_of(training)
    program.training = training
    return training


def take_step(training: OneRank, work: m.Compute) -> None:
    training.step, training.loss_scale, training.shares = work.step - 1, work.loss_scale, work.shares
    _follow(training, work.plan)
    rows = training.order.batch(work.step)
    with named(training, work.step, rows):
        training.ranks.compute(work.step, learning_rate=work.learning_rate, loss_scale=work.loss_scale, shares=work.shares)
        gradient = None
        while gradient is None:
            gradient = try_gradient(training, work.step, rows)
        apply_gradient(training, work.step, work.learning_rate, gradient)
    training.step, training.has_own_part = work.step, False
    if training.sharded is None:
        plan_ahead(training)
    else:
        training.sharded.has_taken(work.step)
    training.ranks.has_taken_step()
    training.publish()


def _follow(training: OneRank, plan: Entry | None) -> None:
    """Cuts by rank 0's plan from now on, where the model is shared out."""
    if plan is not None:
        assert isinstance(training.plan, ToldPlan)
        training.plan.told = plan


def counted(training: OneRank) -> bytes:
    """What this rank's part of the evaluation rows counts."""
    metrics = training.task.new_metrics()
    measure(training, metrics)
    return msgspec.msgpack.encode(metrics.counts())


def _next(session: Session, link: RankLink) -> m.Begin | Work:
    """What is to be done next; orders are carried out meanwhile."""
    while True:
        try:
            return link.work.get(timeout=SIGN_OF_LIFE_S)
        except queue.Empty:
            pass
        finally:
            session.obey()


class Meeting:
    """The other ranks, as a step of this one knows them (`training.Others`)."""

    count = 0

    def __init__(
        self,
        say: Callable[[m.Ready], None],
        next_work: Callable[[], m.Begin | Work],
        add: Callable[[torch.Tensor], torch.Tensor],
        *,
        clock: Callable[[], float],
    ) -> None:
        """`say` tells rank 0 that this part is done, `next_work` waits for its word, and `add` adds up what all have. `clock`
        counts seconds, and stands still in pauses.
        """
        self._say, self._next_work, self._add, self._clock = say, next_work, add, clock
        self._began_s = self._added_s = self._beside_s = 0.0
        self.is_adding = False

    def compute(self, step: int, **_more: Any) -> None:  # noqa: ARG002
        self._began_s, self.is_adding = self._clock(), False

    def add_up(self, training: OneRank, loss: torch.Tensor) -> torch.Tensor:
        step = training.step + 1
        if training.device_memory is not None:
            training.device_memory.finish_queued()  # so what is told is the time of its work, and nothing of it fails later
        took_s = self._clock() - self._began_s
        self._say(m.Ready(step=step, tokens=training.own_tokens(step), took_s=took_s, beside_s=self._beside_s))
        work = self._next_work()
        assert isinstance(work, m.Add), "rank 0 adds up before it goes on"
        self.is_adding = True
        try:
            added = self._add(loss)
        except RuntimeError as error:
            raise Left from error
        self._added_s = self._clock()
        return added

    def has_taken_step(self) -> None:
        self._beside_s = self._clock() - self._added_s

    def broken(self, error: Exception) -> None:
        if isinstance(error, RuntimeError):
            raise Left from error
        raise error


class Left(BaseException):
    """Another rank has left in the middle of a collective. Which one, and why, rank 0 finds out; it ends this one as well."""


class _Session(Session):
    """A session of a rank that has nothing to save."""

    def leave(self, reason: str) -> None:
        raise Leave(reason, None)


class Program:
    """The training as its session knows it (`session.Program`)."""

    def __init__(self) -> None:
        self.training: OneRank | None = None
        self.memory: DeviceMemory | None = None
        """The memory of its GPU. It is None on a CPU."""

    @property
    def is_loaded(self) -> bool:
        return self.training is not None

    def save(self, *, last: bool) -> CheckpointNote:  # noqa: ARG002
        raise AssertionError("rank 0 saves")

    def limit_micro_batch(self, order: LimitMicroBatch) -> int:
        assert self.training is not None
        return limit_micro_batch(self.training, order)

    def limit_memory(self, order: LimitMemory) -> str:
        told = limit_device(self.memory, order)
        if self.memory is not None and self.training is not None:
            self.training.measuring.planner.limit_to(*planned_bytes(self.memory.limit_bytes))
        return told

    def read_memory(self) -> WorkerMemory:
        return read_memory(self.memory)

    def finish_queued(self) -> None:
        if self.memory is not None:
            self.memory.finish_queued()

    def pass_on(self, order: Pace | Pause | Resume) -> None:
        pass
