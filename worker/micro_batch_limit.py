"""What the supervisor says about the size of micro-batches, and about the memory that there is for them, taken into the plan.
Which orders there are is in `messages.LimitMicroBatch`, when they are given in the supervisor's ladder. Running out of memory
is `exhaustion.py`'s.
"""

from __future__ import annotations

from typing import Any

from memsup.memory import SOFT_FRACTION
from memsup.shared.messages import LimitMicroBatch
from memsup.worker.memory import hand_back
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.planner import planned_bytes
from memsup.worker.training import OneRank


def begin_limited(training: OneRank, micro_tokens_limit: int | None) -> None:
    """Begins a life. Only a restart because of memory makes micro-batches smaller, at once: to `micro_tokens_limit`; the
    planner raises that again. Without one, a limit that the supervisor set in an earlier life ends; but the steps that were
    done under it are redone under it.
    """
    plan, next_step = training.plan, training.step + 1
    last = plan.last_change
    if micro_tokens_limit is not None:
        if micro_tokens_limit < plan.at(next_step).micro_tokens:
            one_lane = last.lanes > 1
            plan.change(next_step, "restarted because of memory", ceiling=micro_tokens_limit, one_lane=one_lane)
    elif last.limit is not None:
        first = max(next_step, training.done_before + 1, last.step + 1)
        plan.change(first, "a limit of an earlier life ends", limit=None, one_lane=False)


def limit_micro_batch(training: OneRank, order: LimitMicroBatch) -> int:
    """Takes the order into the plan, from the step in hand on, which is done again if its cuts change, or from the next one on
    where its micro-batches are all computed, or the model is shared out. Returns the most tokens of a micro-batch from then on.
    """
    step = training.step + 1
    if training.sharded is not None and training.rank != 0:  # it cuts as rank 0 does, to whom the same was said
        training.told_limit_bytes = order.limit_bytes or training.told_limit_bytes
        if order.halve or order.limit_bytes is not None:
            hand_back(training.device_memory)
        return training.plan.at(step).micro_tokens
    if training.has_own_part or (training.sharded is not None and training.is_adding_up):
        # What was computed cannot be computed otherwise any more, and a later life does it again as the plan says. Where the
        # model is shared out all ranks compute the step in hand, and none can do its part again alone.
        step += 1
    before = training.plan.at(step)
    changes: dict[str, Any] = {
        "limit": order.micro_tokens,
        "ceiling": before.ceiling,
        "activation_checkpointing": before.activation_checkpointing,
        "one_lane": before.one_lane,
    }
    room: dict[str, Any] = {}
    if order.limit_bytes is not None and training.device_memory is None:
        room = _within(training, before, order.limit_bytes)
        changes |= room
    if order.halve:
        changes |= _halved(training, before)
    elif order.micro_tokens is None and not order.may_grow:
        changes["limit"] = before.micro_tokens
    elif order.micro_tokens is None:
        changes["one_lane"] = changes["one_lane"] and not training.measuring.planner.fits_in(before.lanes)
        if before.limit is not None and training.settings.tune and "start" not in room:
            changes["ceiling"] = 2 * before.micro_tokens  # from there the planner goes on, and sees whether the room is back
            training.measuring.planner.look_soon()
    after = training.plan.change(step, f"ordered: {order.reason}", **changes)
    if training.sharded is None and training.is_adding_up and not after.same_cuts(before):
        training.give_up_gradients()  # the step is done again, and what was computed of it takes the room that is short
    if order.halve or order.limit_bytes is not None:
        hand_back(training.device_memory)
    training.publish()
    return after.micro_tokens


def _within(training: OneRank, before: Entry, limit_bytes: int) -> dict[str, Any]:
    """Takes in what this rank may hold from now on; returns what to change for its steps to keep to it, where it is less. If it
    is more, they are cut as when there was as much, in this process or one before; further the planner grows by itself.
    """
    planner = training.measuring.planner
    before_bytes = planner.limit_bytes
    is_less = planner.limit_to(*planned_bytes(limit_bytes))
    if is_less and planner.has_no_room(training.step + 1):
        _leave_to_a_smaller_one(training, limit_bytes)
    changes = planner.within_limit(training.step + 1, before) if is_less else _as_before(training, before_bytes)
    changes["planned_bytes"] = planner.limit_bytes
    _keep_to(training, limit_bytes, is_less=is_less)
    return changes


def _keep_to(training: OneRank, limit_bytes: int, *, is_less: bool) -> None:
    """Has the soft limit follow. Below what one row takes it would only have that fail, and what that is a new process does not
    know. There the ladder goes on: it has the worker hold.
    """
    least_bytes = training.measuring.planner.least_bytes()
    if least_bytes is not None or not is_less:
        training.soft_limit.limit_to(max(limit_bytes, int((least_bytes or 0) / SOFT_FRACTION)))


def keep_to_what_was_told(training: OneRank) -> None:
    """Keeps to what this rank was told that it may hold, where it cuts as rank 0 does: from the first step on that is cut for
    that. Within the one before, all would have to begin again if it ran out.
    """
    limit_bytes, training.told_limit_bytes = training.told_limit_bytes, None
    if limit_bytes is not None:
        _keep_to(training, limit_bytes, is_less=training.measuring.planner.limit_to(*planned_bytes(limit_bytes)))


def _as_before(training: OneRank, less_bytes: int | None) -> dict[str, Any]:
    """The cut of the last steps that were computed when there was more than `less_bytes`, and no more than there is now."""
    now_bytes = training.measuring.planner.limit_bytes
    if less_bytes is None or now_bytes is None:
        return {}
    earlier = training.plan.when_there_was(less_bytes, now_bytes)
    return {} if earlier is None else earlier.cut_fields()


def _leave_to_a_smaller_one(training: OneRank, limit_bytes: int) -> None:
    """Leaves, since a new process holds less: none of what allocator and libraries keep. It begins with single rows. Raises
    `Leave`.
    """
    training.give_up_gradients()
    hand_back()
    cause = f"no row fits any more into the {limit_bytes >> 20} MiB that are left, beside what this process holds"
    row_by_row: dict[str, Any] = {
        "ceiling": training.measuring.planner.longest,
        "bands": (),
        "checkpointed_from": None,
        "one_lane": True,
        "planned_bytes": training.measuring.planner.limit_bytes,  # or it would count as the cut for all that there was
    }
    training.plan.change(training.step + 1, cause, **row_by_row)
    training.session.leave(f"{cause}: a new one begins with less, one row at a time")


def _halved(training: OneRank, before: Entry) -> dict[str, Any]:
    """What to change so that about half of the memory of a micro-batch is used."""
    # What is used, not what is allowed: halving what is not used would change nothing.
    in_use = min(before.micro_tokens, training.largest_tokens or before.micro_tokens)
    changes: dict[str, Any] = {"limit": max(1, in_use // 2), "one_lane": before.lanes > 1}
    if training.settings.tune and training.largest is not None and training.largest.all_rows == 1:
        # The largest is one row, and halving would only cost time. The planner takes this back when the limit is lifted.
        can_checkpoint = training.prepared.model.supports_gradient_checkpointing
        changes |= {"limit": in_use, "activation_checkpointing": before.activation_checkpointing or can_checkpoint}
    return changes
