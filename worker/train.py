"""The training, from top to bottom: load, build, resume, then step by step to the end.

One optimizer step takes an effective batch, sorts it by length, cuts it into micro-batches, adds up their gradients, each loss
weighted by its share of the whole, and steps once. Parameters change only there, so between any two micro-batches the state is
that of the step's beginning: a checkpoint can be written, and the step done again, at any boundary.

What decides is elsewhere: rows and cuts in `batches.py`, the plan in `plan.py`, what is saved and when in `checkpoints.py`.
What is learnt, and from what, is the task's (`tasks/`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.store import Store
from memsup.shared.messages import FailureCause, Finished, LimitMicroBatch, OutOfMemory, Phase, Welcome
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.worker.audit import Audit, Step
from memsup.worker.batches import Order, Rows, Schedule, cut, learning_rate
from memsup.worker.checkpoints import export_model, find_start, merit_of, resume, save, save_evaluated, save_if_due
from memsup.worker.hardware import (
    autocast,
    choose_device,
    device_memory,
    make_optimizer,
    place_model,
    set_activation_checkpointing,
    start_threads,
    to_device,
)
from memsup.worker.memory import SoftLimit, hand_back, is_out_of_memory, limit_device, read_memory
from memsup.worker.plan import Entry, Plan
from memsup.worker.randomness import seed_everything
from memsup.worker.session import GiveUp, Session
from memsup.worker.state import Evaluated
from memsup.worker.tasks import find_task
from memsup.worker.training import Training

log = logging.getLogger(__name__)

_STEPS_TO_DOUBLE_SCALE = 2000


def train(record: RunRecord, paths: RunPaths, welcome: Welcome, session: Session) -> Finished:
    """Trains the run to its end, from wherever it is. Raises `Leave`, `GiveUp`, `InputError`."""
    with session.phase(Phase.LOADING):
        training = prepare(record, paths, welcome, session)
    schedule = training.schedule

    with session.phase(Phase.TRAINING):
        while True:
            if schedule.ends_epoch(training.step) and not training.is_evaluated:
                evaluate(training)
                save_evaluated(training)
            if training.step == schedule.total_steps:
                break
            take_step(training)
            save_if_due(training)

    with session.phase(Phase.FINISHING):
        note = session.checkpoint_now(last=True)
        export_model(Path(note.path), paths.model, session)
    assert training.evaluated is not None
    return Finished(
        rank=session.link.rank,
        model_path=str(paths.model),
        metrics=training.evaluated.metrics,
        steps=training.step,
        samples=schedule.samples_after(training.step),
    )


def prepare(record: RunRecord, paths: RunPaths, welcome: Welcome, session: Session) -> Training:
    """Everything in its place for the next step, whichever that is."""
    settings = record.settings

    # -----------------------------------------------------------------------------------------------------------------
    # Start: the newest checkpoint that is whole, or what the settings name
    store = Store(Path(settings.checkpoint.folder or paths.checkpoints), keep=settings.checkpoint.keep)
    for swept in store.sweep():
        log.info("%s", swept)
    start = find_start(record, store)
    session.boundary()

    # -----------------------------------------------------------------------------------------------------------------
    # Machine: threads, device, and the limit below the fence at which exhaustion can still be caught
    threads = start_threads(settings.training.threads or (start.state.threads if start.state else None))
    may_move = settings.recovery.continue_on_cpu and start.state is not None
    device = choose_device(settings.training.device, on_cpu=welcome.on_cpu, or_cpu=may_move)
    memory = device_memory(device, settings.limits.vram)
    session.link.read_memory = lambda: read_memory(memory)
    session.limit_memory = lambda order: limit_device(memory, order)
    soft_limit = SoftLimit(welcome.memory_limit_bytes if memory is None else None)

    def boundary() -> None:
        session.boundary()
        soft_limit.renew()

    # -----------------------------------------------------------------------------------------------------------------
    # Task: data, tokenizer and model; then the optimizer with all of its state
    task = find_task(settings.task.kind)
    with _has_to_fit("The model", welcome):
        boundary()
        prepared = task.load(settings, paths, boundary, checkpoint=start.folder)
        boundary()
        place_model(prepared.model, device)
        optimizer = make_optimizer(prepared.model, weight_decay=settings.training.weight_decay)
    for heading, fact in prepared.facts.items():
        log.info("%s: %s", heading, fact)

    # -----------------------------------------------------------------------------------------------------------------
    # Plan: which rows which step sees, and where in it the run is
    schedule = Schedule(
        rows=len(prepared.train),
        effective_batch=settings.training.effective_batch or 16,
        epochs=settings.training.epochs,
        seed=settings.training.seed,
    )
    training = Training(
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
        store=store,
        plan=Plan(paths.plan),
        audit=Audit(paths.state / "audit.txt"),
    )
    resume(training, start, welcome)
    session.save = lambda last: save(training, last=last)
    session.limit_micro_batch = lambda order: limit_micro_batch(training, order)
    boundary()
    return training


@contextlib.contextmanager
def _has_to_fit(what: str, welcome: Welcome) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = error
    else:
        return
    limit = f" of {welcome.memory_limit_bytes >> 20} MiB" if welcome.memory_limit_bytes else ""
    raise GiveUp(
        FailureCause.OUT_OF_MEMORY,
        f"{what} with its optimizer does not fit in the worker's memory{limit}: choose a smaller model, or raise limits.ram.",
    ) from exhausted


# ---------------------------------------------------------------------------------------------------------------------
# One step


def take_step(training: Training) -> None:
    """Does the next step, again and again if memory or an order has it so, until it is done once."""
    began_s = training.work_s()
    step = training.step + 1
    rows = training.order.batch(step)
    rate = learning_rate(
        step,
        peak=training.settings.learning_rate,
        total_steps=training.schedule.total_steps,
        warmup_fraction=training.settings.warmup,
    )
    gradient = None
    while gradient is None:
        with _named(step, rows):
            gradient = _try_gradient(training, step, rows)
    _apply_gradient(training, step, rate)

    training.step = step
    training.loss = gradient.loss
    training.steps_at_scale += 1
    training.audit.record(
        Step(
            step=step,
            rows=rows,
            weight=gradient.weight,
            learning_rate=rate,
            loss=gradient.loss,
            gradient_norm=gradient.norm,
        )
    )
    training.count_rate(len(rows), training.work_s() - began_s)
    training.publish()


@dataclass(frozen=True)
class Gradient:
    """A step's gradient is in the parameters, clipped; these are its figures."""

    loss: float
    weight: float
    norm: float
    """Before clipping."""


@contextlib.contextmanager
def _named(step: int, rows: Rows) -> Iterator[None]:
    """A crash in here names its step and rows: the restarts count by step, and a person looks at the rows."""
    try:
        yield
    except (GiveUp, CheckpointError, OSError):  # of these the step is not the cause
        raise
    except Exception as error:
        what = f"Step {step} ({_in_words(rows)}) crashed: {type(error).__name__}: {error}; look at these rows."
        raise GiveUp(FailureCause.CRASH, what, step=step) from error


def _in_words(rows: Rows) -> str:
    return f"rows {', '.join(map(str, rows[:16]))} of the training data"


def _try_gradient(training: Training, step: int, rows: Rows) -> Gradient | None:
    """None: the step is to be done again, under a plan that has changed. Its gradients are dropped."""
    try:
        gradient = _accumulate(training, step, rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = str(error)
    else:
        if gradient is None:
            training.optimizer.zero_grad(set_to_none=True)
        return gradient
    # Out here the exception is gone, and with it the frames and the graph that it kept alive.
    _shrink(training, step, exhausted)
    return None


def _accumulate(training: Training, step: int, rows: Rows) -> Gradient | None:
    model, examples, task = training.prepared.model, training.prepared.train, training.task
    plan = training.plan.at(step)
    if training.activation_checkpointing != plan.activation_checkpointing:
        set_activation_checkpointing(model, plan.activation_checkpointing)
        training.activation_checkpointing = plan.activation_checkpointing
    lengths = examples.lengths[rows]
    micro_batches = cut(rows, lengths, plan.micro_tokens)
    training.largest_tokens = max(len(micro) * int(examples.lengths[micro[0]]) for micro in micro_batches)
    weight = task.weight(examples, rows)
    total_loss = torch.zeros((), device=training.device)
    model.train()
    training.optimizer.zero_grad(set_to_none=True)
    position = 0
    for micro in micro_batches:
        training.micro_rows, training.where = micro, "forward"
        seed_everything(training.settings.seed, step, position)
        batch = to_device(examples.batch(micro), training.device)
        with autocast(training.device, training.settings.amp):
            loss = task.loss(model, batch) / weight
        training.where = "backward"
        (loss * training.loss_scale).backward()
        total_loss += loss.detach()
        del loss, batch  # or they live on beside the next micro-batch's
        position += len(micro)
        training.publish()
        training.boundary()
        if not training.plan.at(step).same_cuts(plan):
            return None
    return _finish_gradient(training, step, rows, weight, total_loss.item())


def _finish_gradient(training: Training, step: int, rows: Rows, weight: float, loss: float) -> Gradient | None:
    """Undoes the loss scale and clips. None: the scale was too high for this step and is lower now."""
    parameters = [parameter for parameter in training.prepared.model.parameters() if parameter.grad is not None]
    if training.loss_scale != 1:
        for parameter in parameters:
            parameter.grad.mul_(1 / training.loss_scale)  # a power of two: exact
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, training.settings.clip_norm))
    if math.isfinite(loss) and math.isfinite(norm):
        if training.settings.amp == "fp16" and training.steps_at_scale >= _STEPS_TO_DOUBLE_SCALE:
            training.loss_scale, training.steps_at_scale = training.loss_scale * 2, 0
        return Gradient(loss=loss, weight=weight, norm=norm)
    if math.isfinite(loss) and training.loss_scale > 1:
        training.loss_scale, training.steps_at_scale = training.loss_scale / 2, 0
        return None
    what = f"The loss is {loss}" if not math.isfinite(loss) else f"The gradient's norm is {norm}"
    raise GiveUp(
        FailureCause.NOT_FINITE,
        f"{what} at step {step} ({_in_words(rows)}): lower training.learning_rate, look at these rows, or train without AMP.",
        step=step,
    )


def _apply_gradient(training: Training, step: int, rate: float) -> None:
    """The one moment in which parameters change. Nothing is allocated in it, and it is never repeated."""
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    try:
        training.optimizer.step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = str(error)
    else:
        training.optimizer.zero_grad(set_to_none=True)
        return
    plan = training.plan.at(step)
    _report_out_of_memory(training, "optimizer", plan, plan.micro_tokens, exhausted)
    raise GiveUp(
        FailureCause.CRASH,
        f"Memory ran out within the optimizer's step {step}, so the weights may be half updated: they are dropped, and the run "
        "continues from its newest checkpoint.",
        step=step,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def _shrink(training: Training, step: int, exhausted: str) -> None:
    """Makes room for `step` to be done again: smaller micro-batches, or if it was one row, activations computed twice."""
    training.optimizer.zero_grad(set_to_none=True)
    hand_back(training.device_memory)
    training.soft_limit.renew()
    before = training.plan.at(step)
    model, rows = training.prepared.model, training.micro_rows
    tokens = len(rows) * int(training.prepared.train.lengths[rows[0]])
    with training.soft_limit.spare():
        if len(rows) > 1:
            cause = f"out of memory in {training.where} at {len(rows)} rows, {tokens} tokens"
            after = training.plan.change(step, cause, ceiling=min(before.micro_tokens, tokens) // 2)
        elif not before.activation_checkpointing and model.supports_gradient_checkpointing:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens"
            after = training.plan.change(step, cause, activation_checkpointing=True)
        else:
            raise _one_row_too_large(training, step, int(rows[0]), tokens)
        _report_out_of_memory(training, training.where, before, after.micro_tokens, exhausted)


def _one_row_too_large(training: Training, step: int, row: int, tokens: int) -> GiveUp:
    memory = training.session.link.read_memory()
    if training.device_memory is not None:
        held, limit = memory.cuda_allocated_bytes, None
    else:
        held, limit = memory.resident_bytes, memory.data_limit_bytes
    numbers = f"{(held or 0) >> 20} MiB are held" + (f" of at most {limit >> 20} MiB" if limit else "")
    return GiveUp(
        FailureCause.OUT_OF_MEMORY,
        f"Row {row} of the training data with its {tokens} tokens does not fit in memory, alone and with activation "
        f"checkpointing: {numbers}. Lower training.max_length, choose a smaller model, or raise limits.ram.",
        step=step,
    )


def _report_out_of_memory(training: Training, where: str, before: Entry, tokens_after: int, exhausted: str) -> None:
    step = training.step + 1
    log.warning("Out of memory in %s at step %d: %s", where, step, exhausted)
    training.session.link.report(
        OutOfMemory(
            rank=training.session.link.rank,
            where=where,
            device=str(training.device),
            step=step,
            micro_tokens_before=before.micro_tokens,
            micro_tokens_after=tokens_after,
            detail=exhausted[:2000],
        )
    )


def limit_micro_batch(training: Training, order: LimitMicroBatch) -> int:
    """Takes the supervisor's limit into the plan, from the step in hand on: it is done again if its cuts change."""
    step = training.step + 1
    in_force = training.plan.at(step).micro_tokens
    limit = order.micro_tokens
    if order.halve:
        in_use = min(in_force, training.largest_tokens or in_force)  # halving what is not used would change nothing
        limit = max(1, in_use // 2)
    elif limit is None and not order.may_grow:
        limit = in_force
    after = training.plan.change(step, f"ordered: {order.reason}", limit=limit)
    training.publish()
    return after.micro_tokens


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(training: Training) -> None:
    """Measures the model on the evaluation rows, the longest first, and nothing is kept but the counts."""
    session, examples = training.session, training.prepared.evaluation
    model = training.prepared.model.eval()
    metrics = training.task.new_metrics()
    by_length = np.argsort(-examples.lengths.astype(np.int64), kind="stable")
    tokens = training.plan.at(training.step + 1).micro_tokens
    place = 0
    with session.phase(Phase.EVALUATING), torch.no_grad():
        while place < len(by_length):
            longest = int(examples.lengths[by_length[place]])
            tokens = min(tokens, training.plan.at(training.step + 1).micro_tokens)
            rows = by_length[place : place + max(1, tokens // longest)]
            exhausted = None
            try:
                with autocast(training.device, training.settings.amp):
                    metrics.add(model, to_device(examples.batch(rows), training.device))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                exhausted = str(error)
            if exhausted is None:
                place += len(rows)
            else:
                tokens = _shrink_evaluation(training, rows, longest, exhausted)
            training.boundary()
    training.evaluated = Evaluated(step=training.step, metrics=metrics.result())
    if training.best is None or merit_of(training.evaluated) > merit_of(training.best):
        training.best = training.evaluated
    log.info("After step %d: %s", training.step, training.evaluated.metrics)


def _shrink_evaluation(training: Training, rows: Rows, longest: int, exhausted: str) -> int:
    """Tokens for the rest of this evaluation; the plan of the training is not concerned."""
    hand_back(training.device_memory)
    training.soft_limit.renew()
    if len(rows) == 1:
        raise GiveUp(
            FailureCause.OUT_OF_MEMORY,
            f"Row {rows[0]} of the evaluation data with its {longest} tokens does not fit in memory. Lower "
            "training.max_length, choose a smaller model, or raise limits.ram.",
        )
    tokens = len(rows) * longest // 2
    before = training.plan.at(training.step + 1)
    _report_out_of_memory(training, "evaluate", before, tokens, exhausted)
    return tokens
