"""When memory does not suffice, or the supervisor limits it: smaller micro-batches, activations computed twice, or a sentence.

Covers what follows from running out of memory while loading, training and evaluating, always outside of the `except` that
caught it: the exception keeps its frames alive, and with them the graph. How exhaustion is recognised and memory handed back is
in `memory.py`; what is tried when there is room is the planner's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from memsup.shared.log import log
from memsup.shared.messages import FailureCause, LimitMicroBatch, OutOfMemory, Welcome
from memsup.worker.memory import hand_back, is_out_of_memory, lasts
from memsup.worker.plan.batches import Rows
from memsup.worker.plan.entry import Entry
from memsup.worker.session import GiveUp
from memsup.worker.training import Training

_NEW_PROCESS = (
    "memory ran out while code for the processor was generated, which a process does not get over: a new one goes on from here "
    "with smaller micro-batches"
)


@contextlib.contextmanager
def has_to_fit(what: str, welcome: Welcome) -> Iterator[None]:
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


def shrink(training: Training, step: int, exhausted: str) -> None:
    """Makes room for `step` to be done again: smaller micro-batches, or if it was one row, activations computed twice.

    Raises `Leave` where only a new process gets over it.
    """
    training.lanes.drop()
    hand_back(training.device_memory)
    training.soft_limit.renew()
    before = training.plan.at(step)
    model, rows, shape = training.prepared.model, training.micro_rows, training.micro_shape
    assert shape is not None
    tokens = shape.tokens
    training.measuring.planner.out_of_memory(shape, checkpointed=training.activation_checkpointing, step=step)
    with training.soft_limit.spare():
        if len(rows) > 1:
            cause = f"out of memory in {training.where} at {len(rows)} rows, {tokens} tokens"
            after = training.plan.change(step, cause, ceiling=min(before.micro_tokens, tokens) // 2, single=before.lanes > 1)
        elif before.lanes_used > 1:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens, with a second lane's gradients"
            after = training.plan.change(step, cause, single=True)
        elif not training.activation_checkpointing and model.supports_gradient_checkpointing:
            cause = f"out of memory in {training.where} at one row of {tokens} tokens"
            after = training.plan.change(step, cause, activation_checkpointing=True)
        else:
            raise _one_row_too_large(training, step, int(rows[0]), tokens)
        report_out_of_memory(training, training.where, before, after.micro_tokens, exhausted)
    if lasts(exhausted):
        training.session.leave(_NEW_PROCESS)


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


def report_out_of_memory(training: Training, where: str, before: Entry, tokens_after: int, exhausted: str) -> None:
    step = training.step + 1
    log.warning("Out of memory", where=where, step=step, why=exhausted)
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
    before = training.plan.at(step)
    in_force, limit, ceiling, twice = before.micro_tokens, order.micro_tokens, before.ceiling, before.activation_checkpointing
    single = before.single
    if order.halve:
        in_use = min(in_force, training.largest_tokens or in_force)  # halving what is not used would change nothing
        if training.settings.tune and training.largest is not None and training.largest.all_rows == 1:
            # The largest is one row, and halving would only cost time. The planner takes this back when the limit is lifted.
            limit, twice = in_use, twice or training.prepared.model.supports_gradient_checkpointing
        else:
            limit = max(1, in_use // 2)
        single = before.lanes > 1
        hand_back(training.device_memory)
    elif limit is None and not order.may_grow:
        limit = in_force
    elif limit is None and before.limit is not None and training.settings.tune:
        ceiling = 2 * in_force  # from there the planner goes on, and sees whether the room is really back
        training.measuring.planner.look_soon()
    changes = {"limit": limit, "ceiling": ceiling, "activation_checkpointing": twice, "single": single and limit is not None}
    after = training.plan.change(step, f"ordered: {order.reason}", **changes)
    training.publish()
    return after.micro_tokens


def shrink_evaluation(training: Training, rows: Rows, longest: int, exhausted: str) -> int:
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
    report_out_of_memory(training, "evaluate", before, tokens, exhausted)
    if lasts(exhausted):
        step = training.step + 1
        training.plan.change(step, f"out of memory in an evaluation at {len(rows)} rows", ceiling=tokens)
        training.session.leave(_NEW_PROCESS)
    return tokens
