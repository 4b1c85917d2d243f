"""The training, from top to bottom: load, build, resume, then step by step to the end.

One optimizer step takes an effective batch, sorts it by length, cuts it into micro-batches, adds up their gradients, each loss
weighted by its share of the whole, and steps once. Parameters change only there, so between any two micro-batches the state is
that of the step's beginning: a checkpoint can be written, and the step done again, at any boundary.

What decides is elsewhere: rows, cuts and which cut is the fastest in `plan/`, what is saved and when in `saving.py`, what is
done when memory does not suffice in `exhaustion.py`. Orders are carried out by `session.py`, at the boundaries. What is learnt,
and from what, is the task's (`tasks/`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch

from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.store import Store
from memsup.memory import SoftLimit, is_out_of_memory, trim
from memsup.shared.data.errors import InputError
from memsup.shared.data.streams import refuse_endless
from memsup.shared.lanes import SizeForLanes, lanes_for, least_limit_bytes
from memsup.shared.log import log
from memsup.shared.messages import (
    CheckpointNote,
    DecisionKind,
    FailureCause,
    Finished,
    LimitMemory,
    LimitMicroBatch,
    Pace,
    Pause,
    Phase,
    Resume,
    Welcome,
    WorkerMemory,
)
from memsup.shared.paths import RunPaths
from memsup.shared.ranks import count_of_ranks
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings as AllSettings
from memsup.shared.settings import Training as Settings
from memsup.worker.audit import Audit, Step
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.four_bits import held_in_four_bits, hold_in_four_bits
from memsup.worker.compute.frozen import round_frozen
from memsup.worker.compute.in_place import add_in_place, keep_apart_what_else_is_used, kept_apart
from memsup.worker.compute.lanes import Lanes, draws_elsewhere
from memsup.worker.compute.on_host import kept_on_host
from memsup.worker.compute.packing import pack
from memsup.worker.compute.randomness import seed_everything, seed_stream
from memsup.worker.compute.rounding import round_together
from memsup.worker.compute.spent import Part, Spent, noted, spent_on
from memsup.worker.compute.token_loss import size_pieces
from memsup.worker.computing import Looking
from memsup.worker.curves import Curves
from memsup.worker.evaluating import evaluate
from memsup.worker.exhaustion import has_to_fit, leave_together, report_out_of_memory, shrink, take_in
from memsup.worker.hardware import (
    autocast,
    begin_step,
    cards,
    choose_device,
    clock_of,
    device_memory,
    device_of_rank,
    lower_precision,
    make_optimizer,
    place_model,
    read_figures,
    set_activation_checkpointing,
    set_products,
    start_threads,
    to_device,
)
from memsup.worker.memory import DeviceMemory, Peak, hand_back, limit_device, read_memory
from memsup.worker.micro_batch_limit import keep_to_what_was_told, limit_micro_batch
from memsup.worker.plan.batches import (
    EndlessOrder,
    EndlessSchedule,
    Order,
    Rows,
    Schedule,
    cut,
    learning_rate,
    split,
    starting_fraction,
)
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.footprint import shape_of
from memsup.worker.plan.journal import Plan
from memsup.worker.plan.measuring import Measuring
from memsup.worker.plan.padding import Padding
from memsup.worker.plan.planner import Initial, Planner, planned_bytes
from memsup.worker.plan.stopping import evaluates_after
from memsup.worker.ranks.first import Ranks
from memsup.worker.ranks.machines import Machines
from memsup.worker.ranks.shares import equal
from memsup.worker.saving import chosen, export_model, find_start, keep_if_due, resume, save, save_evaluated, save_if_due
from memsup.worker.session import GiveUp, Leave, Session
from memsup.worker.state import read_tensors
from memsup.worker.tasks import Prepared, find_task
from memsup.worker.training import OneRank, Training

if TYPE_CHECKING:
    from memsup.worker.ranks.sharded import Sharded

_STEPS_TO_DOUBLE_SCALE = 2000
_COMING_STEPS = 32
"""The number of coming steps by which it is decided which cut is the fastest."""


def train(record: RunRecord, paths: RunPaths, welcome: Welcome, session: Session) -> Finished:
    """Trains the run to its end, from wherever it is. Raises `Leave`, `GiveUp`, `InputError`."""
    with session.phase(Phase.LOADING):
        training = prepare(record, paths, welcome, session)
    curves = training.curves.written(after_step=training.step, evaluated=training.evaluated)
    with contextlib.closing(training.ranks), curves:
        try:
            finished = _train(training)
        except Leave:
            for report in training.ranks.exhausted:
                take_in(training, report)
            raise
        training.ranks.finished(finished)
        return finished


def _train(training: Training) -> Finished:
    session, paths, schedule = training.session, training.paths, training.schedule
    if training.step == 0:
        _show(training, "before")
    with session.phase(Phase.TRAINING):
        while True:
            due = evaluates_after(training.step, schedule, training.settings.evaluate_every)
            if due and not training.is_evaluated:
                evaluate(training)
                save_evaluated(training)
            if training.step == schedule.total_steps or training.has_stopped_early:
                break
            try:
                take_step(training)
            except InputError:  # of a stream, before anything of the step was computed
                session.last_checkpoint()
                raise
            save_if_due(training)
            keep_if_due(training)

    with session.phase(Phase.FINISHING):
        note = session.checkpoint_now(last=True)
        checkpoint, result = chosen(training, note)
        export_model(checkpoint, paths.model, session)
    if result.step != training.step and training.sharded is None:
        weights = training.prepared.weights
        read_tensors(checkpoint, weights.stem, weights.tensors(training.prepared.model), session.tick, training.staging)
    _show(training, "after")
    return Finished(
        model_path=str(paths.model),
        metrics=result.metrics | training.prepared.beside,
        steps=training.step,
        samples=schedule.samples_after(training.step),
        evaluation=training.evaluation(),
        stopped_early=training.has_stopped_early,
        model_step=result.step,
    )


def _show(training: Training, moment: Literal["before", "after"]) -> None:
    """Has the model show what it does, where its task has that; a run does not end for want of it."""
    samples, model = training.prepared.samples, training.prepared.model
    if samples is None or training.sharded is not None:  # which all ranks would have to be asked
        return
    try:
        with training.session.phase(Phase.EVALUATING), autocast(training.device, training.settings.amp):
            samples.take(model, moment, training.boundary)
    except Exception as error:
        if not is_out_of_memory(error) and not isinstance(error, OSError):
            raise
        log.warning("No examples of what the model does", moment=moment, exc_info=True)


def prepare(record: RunRecord, paths: RunPaths, welcome: Welcome, session: Session) -> Training:
    """Puts everything in its place for the next step, whichever that is. Raises `Leave`, `GiveUp`, `InputError`."""
    settings = record.settings

    # -----------------------------------------------------------------------------------------------------------------
    # Start: the newest checkpoint that is whole, or what the settings name
    store = Store(Path(settings.checkpoint.folder or paths.checkpoints), keep=settings.checkpoint.keep)
    start = find_start(record, store, session)  # refuses a folder of another run, where nothing may be swept
    for swept in store.sweep():
        log.info("Removed what a kill had left", what=swept)
    if start.state is not None:
        session.publish(step=start.state.step, checkpoint=start.note)  # loading takes a while, and people ask
    session.boundary()

    # -----------------------------------------------------------------------------------------------------------------
    # Machine: threads, device, and the limit below the fence at which exhaustion can still be caught
    plan = Plan(paths.plan)
    for damage in plan.damage:
        session.decided(DecisionKind.OTHER_BITS, f"{damage} Steps that are redone may be cut in another way than they were.")
    may_move = settings.recovery.continue_on_cpu and start.state is not None
    device = choose_device(settings.training.device, on_cpu=welcome.on_cpu, or_cpu=may_move)
    machines = Machines(record, paths, session) if settings.nodes.count > 1 else None
    if machines is not None:
        machines.gather()
    shares_model = settings.training.shard and device.type == "cpu"
    ranks = Ranks(_count_of_ranks(settings, device), machines, shares_model=shares_model)
    device = device_of_rank(device, 0, ranks.here)
    wanted, before = settings.training.threads, plan.last or (start.state.plan if start.state else None)
    if wanted is None and before is not None and before.ranks == ranks.count:
        wanted = before.threads or (start.state.threads if start.state else None)
    threads = start_threads(wanted, device, ranks=ranks.here)
    memory = device_memory(device, settings.limits.vram)
    if welcome.memory_limit_bytes is not None:  # each rank has its part of what those here may take
        welcome = msgspec.structs.replace(welcome, memory_limit_bytes=welcome.memory_limit_bytes // ranks.here)
    ranks.start(paths, session, threads, memory)
    program = _Program(memory, ranks)
    session.begin(program)
    soft_limit = SoftLimit(welcome.memory_limit_bytes if memory is None else None)

    def boundary() -> None:
        session.boundary()
        soft_limit.renew()

    # -----------------------------------------------------------------------------------------------------------------
    # Task: data, tokenizer and model; then the optimizer with all of its state
    refuse_endless(settings)
    task = find_task(settings.task.kind, settings.task.problem_type)
    draw_by_row()
    attend_in_blocks()
    size_pieces(None if memory is None else memory.limit_bytes)
    with has_to_fit("The model", welcome, memory):
        boundary()
        padding = start.state.padding if start.state else None
        head_rows = start.state.stream.head_rows if start.state and start.state.stream else None
        prepared = task.load(settings, paths, boundary, checkpoint=start.folder, padding=padding, head_rows=head_rows)
        boundary()
        packs = False
        if ranks.share_model:
            packs = prepared.padding is Padding.RIGHT and pack(prepared.model)
            ranks.meet(
                checkpoint=start.folder,
                padding=prepared.padding,
                threads=threads,
                packed=packs,
                welcome=welcome,
                step=start.state.step if start.state else 0,
            )
            sharded = shared_out(prepared, settings, device, rank=0, ranks=ranks.count)
            optimizer = sharded.optimizer
        else:
            sharded, optimizer = None, built(prepared, settings, device, memory)
    log.info("Prepared", **prepared.facts)
    if prepared.stream is not None:
        log.info("What was told of the data is of the first rows of a stream", shuffled_together=prepared.stream.rows)

    # -----------------------------------------------------------------------------------------------------------------
    # Plan: which rows which step sees, and where in it the run is
    schedule = schedule_of(prepared, settings)
    training = Training(
        record=record,
        paths=paths,
        session=session,
        device=device,
        device_memory=memory,
        staging=memory.page_locked(PIECE_BYTES) if memory is not None else None,
        soft_limit=soft_limit,
        threads=threads,
        task=task,
        prepared=prepared,
        schedule=schedule,
        order=(Order if prepared.stream is None else EndlessOrder)(schedule),
        optimizer=optimizer,
        store=store,
        plan=plan,
        ranks=ranks,
        sharded=sharded,
        shares=equal(ranks.count),
        audit=Audit(paths.state / "audit.txt"),
        curves=Curves(
            paths,
            settings.training.curves,
            run_id=record.run_id,
            total_steps=schedule.total_steps,
            decided=session.decided,
        ),
        measuring=measuring_of(prepared, welcome, device, memory, settings.training),
        looking=Looking(prepared.model, device, lower_precision(settings.training.amp)),
        deaths=welcome.deaths,
    )
    lanes, why_fewer = _lanes_for(training, welcome)
    for sentence in prepared.about_cuts:
        session.decided(DecisionKind.CUT_REFUSED, sentence)
    if start.state is None:  # otherwise an earlier life has said so
        _tell_what_is_not_done(training, why_fewer)
    if sharded is None:
        packs = _packs(prepared, settings, device, memory)
    resume(training, start, welcome, lanes=lanes, packs=packs)
    if plan.last_change.ranks != ranks.count:
        cause = f"another number of ranks: {ranks.count}"  # which has other bits anyway, also of steps that are redone
        plan.change(training.step + 1, cause, ranks=ranks.count, shares=(), threads=threads, lanes=lanes)
    elif start.state is not None and start.state.shared is not (sharded is not None) and plan.last_change.lanes != lanes:
        plan.change(training.step + 1, f"the model is {'' if sharded else 'not '}shared out to ranks now", lanes=lanes)
    if plan.last_change.lanes > lanes:
        redone = training.done_before if device.type == "cpu" else 0  # another device has other bits anyway
        may_come_back = device.type == "cpu" and why_fewer is None and training.settings.lanes is None and sharded is None
        fewer: dict[str, Any] = {"one_lane": True} if may_come_back else {"lanes": lanes}
        plan.change(max(training.step, redone) + 1, "there is no room for so many lanes now", **fewer)
    set_products(device, settings.training.amp)  # after all that was asked of the model
    training.lanes = lanes_of(training)
    log.info("Computing", threads=threads, lanes=len(training.lanes))
    program.training = training
    ranks.begin(training, start.folder, welcome)
    boundary()
    return training


def _packs(prepared: Prepared, settings: AllSettings, device: torch.device, memory: DeviceMemory | None) -> bool:
    """Has the model compute its layers without padding from now on; returns whether it can."""
    counts_here = (memory is None) is (device.type == "cpu")  # the memory in which it is computed is what counts
    lower = lower_precision(settings.training.amp) or torch.float32
    return counts_here and prepared.padding is Padding.RIGHT and pack(prepared.model, lower)


def _count_of_ranks(settings: AllSettings, device: torch.device) -> int:
    """How many ranks compute. Raises `GiveUp`."""
    has, batch = cards(device), settings.training.effective_batch or 16
    ranks = count_of_ranks(settings, has)
    if ranks > 1 and 0 < has < ranks:
        there = f"there {'is 1 GPU' if has == 1 else f'are {has} GPUs'} that it may compute on, and each rank takes one"
        what = f"training.ranks is {ranks}, but {there}"
        raise GiveUp(FailureCause.BAD_INPUT, f"{what}. Set training.ranks to {has}, or training.device to cpu.")
    if ranks > batch:
        what = f"training.ranks is {ranks}, more than the {batch} samples of a step"
        raise GiveUp(FailureCause.BAD_INPUT, f"{what}, so some would have nothing to do. Choose fewer.")
    return ranks


def schedule_of(prepared: Prepared, settings: AllSettings) -> Schedule:
    """The steps of the run."""
    stream = prepared.stream
    return (Schedule if stream is None else EndlessSchedule)(
        rows=len(prepared.train) if stream is None else stream.rows,
        effective_batch=settings.training.effective_batch or 16,
        epochs=settings.training.epochs,
        seed=settings.training.seed,
        max_steps=settings.training.max_steps,
    )


def built(
    prepared: Prepared, settings: AllSettings, device: torch.device, memory: DeviceMemory | None
) -> torch.optim.Optimizer:
    """Puts the model in its place on `device`, and makes its optimizer."""
    lower = lower_precision(settings.training.amp)
    if settings.lora.base_bits is not None and not prepared.weights.is_whole:
        hold_in_four_bits(prepared.model)
    if lower is not None and not prepared.weights.is_whole:
        round_frozen(prepared.model, lower)  # while the weights are still the file's: all in float32 may be too much
    if lower is not None and device.type == "cpu":
        round_together(prepared.model)
    place_model(prepared.model, device)
    add_in_place(prepared.model)
    return make_optimizer(
        prepared.model,
        weight_decay=settings.training.weight_decay,
        on_host=bool(settings.training.optimizer_on_host) and memory is not None,
    )


def shared_out(prepared: Prepared, settings: AllSettings, device: torch.device, *, rank: int, ranks: int) -> Sharded:
    """Shares the model out to `ranks`, of which this is one and which have met, and makes the optimizer of this rank's rows.
    Raises InputError for a model that cannot be shared out.
    """
    from memsup.worker.ranks.sharded import Sharded  # which takes a second that no other run needs to wait

    return Sharded(prepared.model, prepared.weights, device, rank=rank, ranks=ranks, settings=settings.training)


class _Program:
    """The training as its session knows it (`session.Program`): first a device alone, then all of it."""

    def __init__(self, memory: DeviceMemory | None, ranks: Ranks) -> None:
        self._memory, self._ranks = memory, ranks
        self.training: Training | None = None
        """All that is trained with. None means that it is still being loaded."""

    @property
    def is_loaded(self) -> bool:
        return self.training is not None and not self._ranks.lacks_a_part and not self._is_in_between

    @property
    def _is_in_between(self) -> bool:
        """Whether another rank may have taken the step in hand already, which this one has not: then what they have of a model
        that is shared out are no parts of one state.
        """
        training = self.training
        return training is not None and training.sharded is not None and training.has_own_part and self._ranks.is_adding

    def save(self, *, last: bool) -> CheckpointNote:
        assert self.training is not None
        return save(self.training, last=last)

    def limit_micro_batch(self, order: LimitMicroBatch) -> int:
        assert self.training is not None
        if order.limit_bytes is not None:  # each rank has its part of what all of them may take
            order = msgspec.structs.replace(order, limit_bytes=order.limit_bytes // self._ranks.here)
        if order.rank != 0:
            self._ranks.pass_on(order, order.rank)
        if order.rank:
            return self.training.plan.at(self.training.step + 1).micro_tokens
        return limit_micro_batch(self.training, order)

    def limit_memory(self, order: LimitMemory) -> str:
        if order.rank:
            return f"rank {order.rank} is told" if self._ranks.pass_on(order, order.rank) else f"there is no rank {order.rank}"
        told = limit_device(self._memory, order)
        if self._memory is not None and self.training is not None:
            self.training.measuring.planner.limit_to(*planned_bytes(self._memory.limit_bytes))
        return told

    def read_memory(self) -> WorkerMemory:
        return read_memory(self._memory)

    def pass_on(self, order: Pace | Pause | Resume) -> None:
        self._ranks.pass_on(order)

    def finish_queued(self) -> None:
        if self._memory is not None:
            self._memory.finish_queued()


def _lanes_for(training: Training, welcome: Welcome) -> tuple[int, str | None]:
    """The number of lanes in which a new run computes, and the reason why they are fewer than wanted. None means that they are
    not.
    """
    settings, model = training.settings, training.prepared.model
    if training.device.type != "cpu":
        return 1, None
    if training.sharded is not None:
        return 1, "A model that is shared out to ranks is computed in one lane." if (settings.lanes or 1) > 1 else None
    lanes = settings.lanes or lanes_for(
        **_size_for_lanes(model, settings), threads=training.threads, limit_bytes=welcome.memory_limit_bytes
    )
    if lanes == 1:
        return 1, None
    if training.threads % lanes:
        return 1, f"{training.threads} threads cannot be shared out to {lanes} lanes, so micro-batches are computed in one."
    with autocast(training.device, settings.amp):
        if draws_elsewhere(partial(_loss_of_shortest, training)):
            return 1, "The model draws random numbers of its own, so micro-batches are computed in one lane."
    return lanes, None


def _size_for_lanes(model: Any, settings: Settings) -> SizeForLanes:
    return SizeForLanes(
        parameters=model.num_parameters() + held_in_four_bits(model),
        trained=model.num_parameters(only_trainable=True),
        apart=kept_apart(model),
        amp=settings.amp or "off",
    )


def lanes_of(training: OneRank) -> Lanes:
    """Makes as many lanes as the plan has."""
    model, count = training.prepared.model, training.plan.at(training.step + 1).lanes
    if count > 1:
        with autocast(training.device, training.settings.amp):
            keep_apart_what_else_is_used(model, partial(_loss_of_shortest, training))
    return Lanes(model, count, training.threads)


def _loss_of_shortest(training: OneRank) -> torch.Tensor:
    examples = training.prepared.train
    shortest = examples.batch(np.array([examples.lengths.argmin()], dtype=np.int64))
    return training.task.loss(training.prepared.model.train(), shortest)


def _tell_what_is_not_done(training: Training, why_fewer_lanes: str | None) -> None:
    """Puts on record what was asked for, or is in the data, and is left out."""
    session, prepared = training.session, training.prepared
    for why, rows in prepared.left_out.items():
        session.decided(DecisionKind.ROWS_LEFT_OUT, f"Rows of the data that are left out, since {why}: {rows:,}.", rows=rows)
    if why_fewer_lanes is not None:
        session.decided(DecisionKind.CUT_REFUSED, why_fewer_lanes)
    if training.settings.gradient_checkpointing and not prepared.model.supports_gradient_checkpointing:
        sentence = "The model knows no activation checkpointing, so training.gradient_checkpointing changes nothing."
        session.decided(DecisionKind.CUT_REFUSED, sentence)


def measuring_of(
    prepared: Prepared, welcome: Welcome, device: torch.device, memory: DeviceMemory | None, settings: Settings
) -> Measuring:
    # LAPACK, with which the planner fits its lines, takes 32 MiB for good when it is first asked, and ends the process where it
    # does not get them.
    np.linalg.lstsq(np.eye(2), np.ones(2), rcond=None)
    limit_bytes = welcome.memory_limit_bytes if memory is None else memory.limit_bytes
    most_bytes, initial_bytes = (None, 0) if limit_bytes is None else planned_bytes(limit_bytes)
    first_tokens = settings.micro_tokens
    by_room = memory is None and settings.lanes is None
    lanes_from_bytes = planned_bytes(least_limit_bytes(**_size_for_lanes(prepared.model, settings)))[0] if by_room else None
    planner = Planner(
        limit_bytes=most_bytes,
        longest=int(prepared.train.lengths.max()) if prepared.stream is None else prepared.stream.longest,
        may_checkpoint=bool(prepared.model.supports_gradient_checkpointing),
        initial=Initial(first_tokens, initial_bytes) if first_tokens and limit_bytes else None,
        layers=getattr(prepared.model.config, "num_hidden_layers", None),
        tunes=bool(settings.tune),
        always_checkpoints=bool(settings.gradient_checkpointing),
        may_offload=memory is not None,
        lanes_from_bytes=lanes_from_bytes,
    )
    return Measuring(Peak(memory), planner, clock_of(device), on_host=memory is None)


# ---------------------------------------------------------------------------------------------------------------------
# One step


def take_step(training: Training) -> None:
    """Does the next step, again and again if memory or an order has it so, until it is done once."""
    began_s = training.work_s()
    step = training.step + 1
    if training.prepared.stream is not None:
        training.prepared.stream.forget_before(training.schedule.pass_of(step))
    rows = training.order.batch(step)
    training.lengths_of(step)  # reads them, if they are of a stream
    rate = learning_rate(
        step,
        peak=training.settings.learning_rate,
        total_steps=training.schedule.total_steps,
        warmup_fraction=training.settings.warmup,
    )
    training.shares = training.ranks.shares(training.plan.at(step)) if training.sharded is None else equal(training.ranks.count)
    done = None
    while done is None:
        training.ranks.compute(
            step,
            learning_rate=rate,
            loss_scale=training.loss_scale,
            shares=training.shares,
            plan=None if training.sharded is None else training.plan.at(step),
        )
        with named(training, step, rows):
            with training.looking.step(training.lanes) as spent:
                tried_s = training.work_s()
                gradient = try_gradient(training, step, rows)
                if gradient is not None:
                    apply_gradient(training, step, rate, gradient)
                    done = _judged(training, step, rows, gradient)
            if spent is not None and done is not None:
                _account_for(training, step, rows, spent, took_s=training.work_s() - tried_s)

    training.step, training.has_own_part = step, False
    if training.sharded is not None:
        training.sharded.has_taken(step)
    training.loss = done.loss
    training.steps_at_scale += 1
    taken = Step(
        step=step,
        rows=rows,
        weight=done.weight,
        learning_rate=rate,
        loss=done.loss,
        gradient_norm=done.norm,
    )
    training.audit.record(taken)
    took_s = training.work_s() - began_s
    training.count_rate(len(rows), took_s)
    training.curves.step(taken, tokens=int(training.examples.lengths[rows].sum()), took_s=took_s)
    plan_ahead(training)
    training.ranks.has_taken_step()
    _share_anew(training)
    training.publish()


def _share_anew(training: Training) -> None:
    """Gives each rank as much of a step as it is fast, from the next one on."""
    shares = training.ranks.better_shares(training.shares)
    if shares is not None and training.settings.tune and training.step >= training.done_before:
        told = ", ".join(f"{share / sum(shares):.1%}" for share in shares)
        training.plan.change(training.step + 1, f"measured: the ranks are done together with {told} of a step", shares=shares)


def _account_for(training: Training, step: int, rows: Rows, spent: Spent, *, took_s: float) -> None:
    """Tells where the time of a step went that was looked at."""
    lengths, plan = training.examples.lengths[rows], training.plan.at(step)
    targets = training.task.weight(training.examples, rows)
    training.looking.take(step, spent, lengths.tolist(), targets, took_s, starting_fraction(lengths, plan))


@dataclass(frozen=True, eq=False)
class Gradient:
    """The figures of a step's gradient, which itself is in the parameters. They lie where they were computed, since reading
    them means waiting for the device.
    """

    weight: float
    figures: torch.Tensor
    """The loss, and the gradient's norm before it was clipped."""
    is_bad: torch.Tensor
    """1 where a figure is not finite, so that nothing may be changed by this gradient, or else 0."""
    divisor: torch.Tensor
    """By what the gradient is to be divided: the loss scale, and what is too much of its norm."""


@dataclass(frozen=True)
class Done:
    """The figures of a step that was taken."""

    loss: float
    weight: float
    norm: float


@contextlib.contextmanager
def named(training: OneRank, step: int, rows: Rows) -> Iterator[None]:
    """Names step and rows of a crash inside: the restarts count by step, and a person looks at the rows, which are those of the
    micro-batch in which it happened, or else all of the step's.
    """
    training.at_rows = None
    try:
        yield
    except (GiveUp, CheckpointError, OSError):  # of these the step is not the cause
        raise
    except Exception as error:
        where = training.examples.where(rows if training.at_rows is None else training.at_rows)
        what = f"Step {step} crashed: {type(error).__name__}: {error}; look at what it was computed from: {where}"
        raise GiveUp(FailureCause.CRASH, what, step=step) from error


def try_gradient(training: OneRank, step: int, rows: Rows) -> Gradient | None:
    """Computes the gradient of a step. None means that the step is to be done again, under a plan that has changed; its
    gradients are dropped.
    """
    try:
        gradient = _accumulate(training, step, rows)
    except Exception as error:
        if not is_out_of_memory(error) or training.ranks.is_adding:
            if training.sharded is not None:
                training.ranks.broken(error)
            raise
        exhausted = str(error)
    else:
        if gradient is None:
            training.give_up_gradients()
            hand_back(training.device_memory)  # an order for less waits for what the gradients had
        return gradient
    # Out here the exception is gone, and with it the frames and the graph that it kept alive.
    if training.sharded is not None:
        leave_together(training, exhausted)
    shrink(training, step, exhausted)
    return None


def _accumulate(training: OneRank, step: int, rows: Rows) -> Gradient | None:
    """Adds up the gradients of the step's micro-batches. Returns None, as `try_gradient` does, where the plan has changed
    meanwhile.
    """
    keep_to_what_was_told(training)
    examples, lanes = training.examples, training.lanes
    plan, own = training.plan.at(step), training.part_of(rows)
    cuts = [split(micro, examples.lengths[micro], plan) for micro in cut(own, examples.lengths[own], plan)]
    others_more = 0 if training.sharded is None else training.most_micro_batches(rows, plan) - len(cuts)
    shapes = [shape_of([examples.lengths[part] for part in parts], packed=plan.packed) for parts in cuts]
    training.largest = max(shapes, key=lambda shape: shape.tokens, default=None)  # a rank may have no row of a step
    weight = training.task.weight(examples, rows)
    total_loss = torch.zeros((), device=training.device)
    for one in lanes.models:
        one.train()
    training.give_up_gradients()
    training.is_adding_up, training.has_own_part, training.has_given_up = True, False, False
    training.measuring.begin_step(plan.lanes_used)
    precision = partial(autocast, training.device, training.settings.amp, keeps_weights=training.sharded is None)
    with lanes.step(precision):  # a whole step: weights are converted once
        for parts, shape in zip(cuts, shapes, strict=True):
            training.micro_rows, training.micro_shape = np.concatenate(parts), shape
            training.at_rows = training.micro_rows
            checkpointed = plan.checkpoints_activations(shape.length)
            if training.activation_checkpointing != checkpointed:
                for one in lanes.models:
                    set_activation_checkpointing(one, checkpointed)
                training.activation_checkpointing = checkpointed
            seed = partial(seed_stream if len(parts) > 1 else seed_everything, training.settings.seed, step, packs=plan.packed)
            work = [partial(_add_gradient, training, step, part, weight, seed) for part in parts]
            uses_all_lanes = len(parts) == plan.lanes_used
            offloaded = training.device_memory is not None and plan.keeps_on_host(shape.length)
            with training.measuring.micro_batch(shape, checkpointed=checkpointed, timed=uses_all_lanes, offloaded=offloaded):
                for loss in lanes.run(work):
                    total_loss += loss
            training.at_rows = None
            training.publish()
            training.boundary()
            if training.sharded is None and (training.has_given_up or not training.plan.at(step).same_cuts(plan)):
                return None
        for _ in range(others_more):
            _keep_others_company(training, step, rows, plan)
            training.boundary()
    training.is_adding_up, training.has_own_part = False, True
    training.measuring.end_step()
    with spent_on(Part.OPTIMIZER):
        lanes.gather()
    total_loss = training.ranks.add_up(training, total_loss)
    if training.sharded is not None:
        training.sharded.take_gradients()
    with spent_on(Part.OPTIMIZER):
        return _finish_gradient(training, weight, total_loss)


def _keep_others_company(training: OneRank, step: int, rows: Rows, plan: Entry) -> None:
    """Computes a row whose gradient counts nothing: each layer of a model that is shared out takes all ranks, and this one has
    no micro-batch left.
    """
    lengths = training.examples.lengths[rows]
    row = rows[[lengths.argmin()]]
    if training.activation_checkpointing != plan.checkpoints_activations(int(lengths.min())):
        training.activation_checkpointing = not training.activation_checkpointing
        set_activation_checkpointing(training.prepared.model, training.activation_checkpointing)
    seed = partial(seed_everything, training.settings.seed, step, packs=plan.packed)
    _add_gradient(training, step, row, math.inf, seed, training.prepared.model)


def _keeping(training: OneRank, step: int, rows: Rows) -> AbstractContextManager[None]:
    """The context in which a forward pass over these rows keeps its activations where the plan has them."""
    memory, length = training.device_memory, int(training.examples.lengths[rows].max())
    if memory is None or not training.plan.at(step).keeps_on_host(length):
        return contextlib.nullcontext()
    return kept_on_host(training.prepared.model, memory.page_locked)


def _add_gradient(
    training: OneRank, step: int, rows: Rows, weight: float, seed: Callable[..., None], model: Any
) -> torch.Tensor:
    """Adds the gradient of these rows, in one lane, to the gradients of its `model`; returns their share of the step's loss."""
    where, examples = "forward", training.examples
    try:
        seed(rows, examples.lengths[rows], is_left=training.prepared.padding is Padding.LEFT)
        with spent_on(Part.LOADING):
            batch = to_device(examples.batch(rows), training.device)
        if (spent := noted()) is not None:
            spent.padded_tokens.append(shape_of([examples.lengths[rows]], packed=training.plan.at(step).packed).tokens)
        with _keeping(training, step, rows):
            loss = training.task.loss(model, batch) / weight
        where = "backward"
        with autocast(training.device, None):
            (loss * training.loss_scale).backward()
    except Exception:
        training.where = where
        raise
    return loss.detach()  # and nothing else lives on beside the next micro-batch's


def plan_ahead(training: OneRank) -> None:
    """Takes what was measured into the plan, between two steps. Raises `Leave` where memory leaks."""
    step, planner = training.step + 1, training.measuring.planner
    if training.measuring.is_tight:
        trim()  # before the ladder asks for less
    leak = training.measuring.leak(partial(hand_back, training.device_memory))
    if leak is not None:
        training.session.leave(leak)
    if training.step < training.done_before:  # steps that are redone are cut as they were
        return
    last = min(training.step + _COMING_STEPS, training.schedule.total_steps)
    change = planner.look(
        step,
        training.plan.at(step),
        lambda: [lengths for number in range(step, last + 1) if len(lengths := training.lengths_of(number))],
    )
    if change is not None:
        fields = change.fields | {"planned_bytes": planner.limit_bytes}
        training.plan.change(step, change.cause, is_news=change.is_known, **fields)
        if training.measuring.on_host:
            trim()  # or what the new cuts take hides in holes that the old ones left


def _finish_gradient(training: OneRank, weight: float, loss: torch.Tensor) -> Gradient:
    """Finds out by how much the loss scale and clipping make the gradient smaller, without waiting for the device."""
    gradients = [parameter.grad for parameter in training.learner.parameters() if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) / training.loss_scale
    if training.sharded is not None:
        norm = training.sharded.norm(norm)
    figures = torch.stack((loss, norm))
    return Gradient(
        weight=weight,
        figures=figures,
        is_bad=(~figures.isfinite().all()).float(),
        divisor=training.loss_scale * (norm / training.settings.most_norm).clamp(min=1.0),
    )


def apply_gradient(training: OneRank, step: int, rate: float, gradient: Gradient) -> None:
    """The one moment in which parameters change, unless the gradient is bad. What happens in it is queued on a device, so that
    nothing waits; nothing is allocated in it, and it is never repeated.
    """
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    begin_step(training.optimizer, is_bad=gradient.is_bad, divisor=gradient.divisor)
    try:
        with spent_on(Part.OPTIMIZER):
            training.optimizer.step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = str(error)
    else:
        training.optimizer.zero_grad(set_to_none=True)
        return
    plan = training.plan.at(step)
    report_out_of_memory(training, "optimizer", plan, plan.micro_tokens, exhausted)
    raise GiveUp(
        FailureCause.CRASH,
        f"Memory ran out within the optimizer's step {step}, so the weights may be half updated: they are dropped, and the run "
        "continues from its newest checkpoint.",
        step=step,
    )


def _judged(training: Training, step: int, rows: Rows, gradient: Gradient) -> Done | None:
    """Reads the step's figures: the one wait for the device in a step, after all of it was queued. None means that the loss
    scale was too high, so that nothing was changed; it is lower now. Raises `GiveUp` where nothing was changed, and no scale
    would help.
    """
    loss, norm = read_figures(gradient.figures)
    if math.isfinite(loss) and math.isfinite(norm):
        if training.settings.amp == "fp16" and training.steps_at_scale >= _STEPS_TO_DOUBLE_SCALE:
            training.loss_scale, training.steps_at_scale = training.loss_scale * 2, 0
        return Done(loss=loss, weight=gradient.weight, norm=norm)
    if math.isfinite(loss) and training.loss_scale > 1:
        training.loss_scale, training.steps_at_scale = training.loss_scale / 2, 0
        return None
    what = f"The loss is {loss}" if not math.isfinite(loss) else f"The gradient's norm is {norm}"
    raise GiveUp(
        FailureCause.NOT_FINITE,
        f"{what} at step {step}: lower training.learning_rate, train without AMP, or look at what it was computed from: "
        f"{training.examples.where(rows)}",
        step=step,
    )
