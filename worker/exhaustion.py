"""What follows from running out of memory: smaller micro-batches, one lane, activations computed twice or, on a GPU, kept in
host memory, or a sentence.

Covers it while loading, training and evaluating, always outside of the `except` that caught the error: an exception keeps its
frames alive, and with them the graph. How exhaustion is recognised and memory handed back is in `memory.py`, what the
supervisor orders before it comes to that in `micro_batch_limit.py`, and what is tried when there is room again in
`plan/planner.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from memsup.memory import is_out_of_memory, is_permanent
from memsup.shared.log import log
from memsup.shared.messages import FailureCause, OutOfMemory, Welcome
from memsup.worker.memory import DeviceMemory, hand_back, read_memory
from memsup.worker.plan.batches import Rows
from memsup.worker.plan.entry import Entry
from memsup.worker.saving import give_up_kept
from memsup.worker.session import GiveUp
from memsup.worker.tasks import Trained
from memsup.worker.training import OneRank

_NEW_PROCESS = (
    "memory ran out while code for the processor was generated, which a process does not get over: a new one goes on from here "
    "with smaller micro-batches"
)


@contextlib.contextmanager
def has_to_fit(what: str, welcome: Welcome, device: DeviceMemory | None) -> Iterator[None]:
    """Raises `GiveUp` with a sentence about `what` where memory runs out inside. None of `device` means the CPU."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        exhausted = error
    else:
        return
    limit_bytes = welcome.memory_limit_bytes if device is None else device.limit_bytes
    limit = f" of {limit_bytes >> 20} MiB" if limit_bytes else ""
    raise _no_room(
        device,
        f"{what} with its optimizer does not fit in the worker's memory{limit}: choose a smaller model, or raise "
        f"{_setting_of_limit(device)}.",
    ) from exhausted


def _no_room(device: DeviceMemory | None, message: str, *, step: int | None = None) -> GiveUp:
    """What is raised where nothing smaller is left to try. Others may have taken the room a moment ago, before the supervisor
    could see them: so it is told what they hold now.
    """
    others_bytes = None if device is None else device.others_bytes()
    return GiveUp(FailureCause.OUT_OF_MEMORY, message, step=step, device_others_bytes=others_bytes)


def _setting_of_limit(device: DeviceMemory | None) -> str:
    """The setting that bounds the memory in which the training computes."""
    return "limits.ram" if device is None else "limits.vram"


def shrink(training: OneRank, step: int, exhausted: str) -> None:
    """Makes room for `step` to be done again: without the state that is kept in memory, or else with smaller micro-batches, or
    if it was one row, with activations computed twice.

    Raises `Leave` where only a new process gets over it.
    """
    training.give_up_gradients()
    hand_back(training.device_memory)
    if not is_permanent(exhausted) and give_up_kept(training):
        log.warning("Out of memory: the state kept in memory is given up, and the step done again", step=step, why=exhausted)
        return
    before = training.plan.at(step)
    training.session.obey()  # the supervisor may have said meanwhile how much there is, which is a better guess than a half
    training.soft_limit.renew()
    if not is_permanent(exhausted) and not training.plan.at(step).same_cuts(before):
        report_out_of_memory(training, training.where, before, training.plan.at(step).micro_tokens, exhausted)
        return
    before = training.plan.at(step)
    model, rows, shape = training.prepared.model, training.micro_rows, training.micro_shape
    assert shape is not None
    tokens, on_host = shape.tokens, before.keeps_on_host(shape.length)
    training.measuring.planner.out_of_memory(shape, checkpointed=training.activation_checkpointing, step=step)
    with training.soft_limit.spare():
        if len(rows) > 1:
            cause = f"out of memory in {training.where} at {len(rows)} rows, {tokens} tokens"
            after = training.plan.change(step, cause, ceiling=min(before.micro_tokens, tokens) // 2, one_lane=before.lanes > 1)
        elif before.lanes_used > 1:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens, with a second lane's gradients"
            after = training.plan.change(step, cause, one_lane=True)
        elif not (training.activation_checkpointing or on_host) and model.supports_gradient_checkpointing:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens"
            after = training.plan.change(step, cause, activation_checkpointing=True)
        elif training.device_memory is not None and not on_host:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens, with activations computed twice"
            after = training.plan.change(step, cause, on_host_from=shape.length)
        elif training.soft_limit.lift_again():
            after = before  # the room that is left now is no reason to give up a run that has more of it when all is well
        else:
            raise _one_row_too_large(training, step, int(rows[0]), tokens)
        report_out_of_memory(training, training.where, before, after.micro_tokens, exhausted)
    if is_permanent(exhausted):
        training.session.leave(_NEW_PROCESS)


def leave_together(training: OneRank, exhausted: str, *, evaluates: Rows | None = None) -> NoReturn:
    """Leaves where memory has run out and the model is shared out: no rank can do its part again alone, so all begin anew, at
    the same step, with less: smaller micro-batches, or activations computed twice. `evaluates` are the rows in hand of an
    evaluation. Raises `Leave`, and `GiveUp` where nothing is left to try.
    """
    step = training.step + 1
    training.give_up_gradients()
    hand_back(training.device_memory)
    training.soft_limit.renew()
    before, where = training.plan.at(step), training.where if evaluates is None else "evaluate"
    examples = training.examples if evaluates is None else training.prepared.evaluation
    rows = training.micro_rows if evaluates is None else evaluates
    longest = int(examples.lengths[rows].max())
    tokens, cause = len(rows) * longest, f"out of memory in {where} at {len(rows)} rows of {longest} tokens"
    changes: dict[str, Any] = {"ceiling": min(before.micro_tokens, tokens) // 2}
    if len(rows) == 1:
        can_checkpoint = training.prepared.model.supports_gradient_checkpointing and evaluates is None
        if training.activation_checkpointing or not can_checkpoint:
            raise _one_row_too_large(training, step, int(rows[0]), tokens, examples)
        changes = {"activation_checkpointing": True}
    with training.soft_limit.spare():
        after = training.plan.change(step, cause, **changes)
        report_out_of_memory(training, where, before, after.micro_tokens, exhausted)
    training.session.leave(f"{cause}: all ranks begin again with less, as the model is shared out to them")
    raise AssertionError("it has left")


def take_in(training: OneRank, report: OutOfMemory) -> None:
    """Has the next life compute the step in hand with less: another rank ran out of memory in it, and has said with what it
    would do.
    """
    step = training.step + 1
    is_smaller = report.micro_tokens_after < training.plan.at(step).micro_tokens
    changes: dict[str, Any] = {"ceiling": report.micro_tokens_after} if is_smaller else {"activation_checkpointing": True}
    training.plan.change(step, f"rank {report.rank} ran out of memory in {report.where}", **changes)


def _row(examples: Trained, row: int) -> str:
    return f"The text at {examples.where(np.array([row]))}"


def _one_row_too_large(training: OneRank, step: int, row: int, tokens: int, examples: Trained | None = None) -> GiveUp:
    memory = read_memory(training.device_memory)
    held, limit = memory.resident_bytes, memory.data_limit_bytes
    if training.device_memory is not None:
        held, limit = memory.cuda_allocated_bytes or 0, training.device_memory.limit_bytes
    numbers = f"{(held or 0) >> 20} MiB are held" + (f" of at most {limit >> 20} MiB" if limit else "")
    return _no_room(
        training.device_memory,
        f"{_row(examples or training.examples, row)} has {tokens} tokens and does not fit in memory, alone and with activation "
        f"checkpointing: {numbers}. Lower training.max_length, choose a smaller model, or raise "
        f"{_setting_of_limit(training.device_memory)}.",
        step=step,
    )


def report_out_of_memory(training: OneRank, where: str, before: Entry, tokens_after: int, exhausted: str) -> None:
    """Tells the supervisor that memory ran out, and with what it goes on."""
    step = training.step + 1
    log.warning("Out of memory", where=where, step=step, why=exhausted)
    training.session.link.report(
        OutOfMemory(
            where=where,
            device=str(training.device),
            step=step,
            micro_tokens_before=before.micro_tokens,
            micro_tokens_after=tokens_after,
            detail=exhausted[:2000],
        )
    )


def shrink_evaluation(training: OneRank, rows: Rows, longest: int, exhausted: str) -> int:
    """Makes room for the evaluation to go on; returns the tokens for its rest. The plan of the training is not concerned."""
    hand_back(training.device_memory)
    if not is_permanent(exhausted) and give_up_kept(training):
        return len(rows) * longest
    training.soft_limit.renew()
    if len(rows) == 1 and training.soft_limit.lift_again():
        return longest
    if len(rows) == 1:
        raise _no_room(
            training.device_memory,
            f"{_row(training.prepared.evaluation, int(rows[0]))} has {longest} tokens and does not fit in memory. Lower "
            f"training.max_length, choose a smaller model, or raise {_setting_of_limit(training.device_memory)}.",
        )
    tokens = len(rows) * longest // 2
    before = training.plan.at(training.step + 1)
    report_out_of_memory(training, "evaluate", before, tokens, exhausted)
    if is_permanent(exhausted):
        step = training.step + 1
        training.plan.change(step, f"out of memory in an evaluation at {len(rows)} rows", ceiling=tokens)
        training.session.leave(_NEW_PROCESS)
    return tokens
