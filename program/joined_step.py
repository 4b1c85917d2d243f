"""A `Step` (`step.py`) joined to a supervisor: what happens in it is told, what is ordered reaches it.

For every adapter: `run.py`, also of an Accelerator, and whoever has a `training_step` to wrap.
"""

from __future__ import annotations

import os
import time
from typing import Any, Callable

from memsup import messages
from memsup.about import MOST_DETAIL, NotCut
from memsup.cut_events import Begins, Event, RanOut, Refused
from memsup.cut_probe import Refusal
from memsup.life import Life
from memsup.memory import lift, others_bytes
from memsup.session import CannotLimitError
from memsup.step import Step
from memsup.training import Bounds

_LOOK_AT_OTHERS_EVERY_S = 20.0
_TELL_WITHIN_S = 1.0


class JoinedStep:
    """The steps of a guarded program that are computed in parts where they have to be."""

    def __init__(
        self,
        life: Life,
        modules: list[Any],
        *,
        optimizers: list[Any],
        scaler: Any = None,
        boundary: Callable[[], None] | None = None,
    ) -> None:
        """`modules`, `optimizers` and `scaler` are those of a `Step`; `boundary` is called between two parts. None means that
        the state cannot be saved there (`Session.part`).
        """
        self._life, self._session = life, life.session
        self.effective: int | None = None
        """The rows of an optimizer step. It is None where that is one micro-batch, or nobody knows."""
        self._looked_s = time.monotonic()
        self._room_bytes: int | None = None
        """What this process and all that belongs to it may hold now. It is None where nobody has said that this is less than
        the limit."""
        self._has_said_cuts = False
        self._batch: tuple[int | None, int | None, int | None] | None = None
        """Rows of a step, tokens and rows of a micro-batch as they were told last. It is None before that."""
        fitted = life.training.fitted(life.memory_limit_bytes)
        self.step = Step(
            modules,
            optimizers=optimizers,
            scaler=scaler,
            boundary=boundary or life.session.part,
            tell=self._told,
            memory_limit_bytes=self._own_limit_bytes(),
            most_tokens=life.micro_tokens_limit,
            fitted_tokens=fitted.most_tokens,
            predicted_tokens=fitted.predict_tokens,
        )
        life.training.bounds = fitted
        os.register_at_fork(after_in_child=lift)  # a loader process has a memory of its own
        self._session.describe(cuts=False, not_cut=NotCut.NOT_PROBED)

    def micro_batch(self, batch: Any, loss_of: Callable[[Any], Any], **how: Any) -> Any:
        """As `Step.micro_batch`."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_AT_OTHERS_EVERY_S:
            self._looked_s = now_s
            self._take_limits()
        loss = self.step.micro_batch(batch, loss_of, **how)
        self._tell_how(self.step)
        return loss

    def _tell_how(self, step: Step) -> None:
        """Tells how it is computed, where that is another way than before: most micro-batches are like the one before."""
        is_cut = step.refusal is None and (self._has_said_cuts or step.weighting is not None)
        if is_cut and not self._has_said_cuts:
            self._session.describe(cuts=True, not_cut=None)
        self._has_said_cuts = is_cut
        self._keep_bounds()
        rows, tokens = step.part_rows, step.most_tokens or step.part_tokens
        batch = (self.effective or step.rows or rows, tokens, rows)
        if batch != self._batch and rows is not None and tokens is not None:
            self._batch = batch
            self._session.batch(self.effective or step.rows or rows, tokens, micro_rows=rows)

    def _keep_bounds(self) -> None:
        """Has the next checkpoint tell the next life which sizes fitted."""
        self._life.training.bounds = Bounds(self.step.most_tokens, self.step.predict_tokens, self._life.memory_limit_bytes)

    def limit(self, order: messages.Message) -> int:
        """Carries out an order of `messages.LIMITS`. Raises `CannotLimitError`."""
        if self.step.refusal is not None:
            raise CannotLimitError(self.step.refusal.sentence)
        if order["kind"] == "limit_memory":
            self.step.limit_memory(order["device_bytes"])
            return int(order["device_bytes"])
        if order.get("limit_bytes") is not None:
            self._room_bytes = order["limit_bytes"] // self._life.ranks.count
            self._take_limits()
        most = self.step.limit(order["micro_tokens"], halve=order["halve"], may_grow=order["may_grow"])
        return most or self.step.part_tokens or 0

    def _own_limit_bytes(self) -> int | None:
        """What this process may hold of what its whole tree may: loader processes take some of it."""
        limit_bytes = self._life.memory_limit_bytes
        return None if limit_bytes is None else max(0, limit_bytes - others_bytes())

    def _take_limits(self) -> None:
        """Has the step keep to what this process may hold, and to what there is of that now."""
        limit_bytes, room_bytes = self._own_limit_bytes(), self._room_bytes
        if limit_bytes is not None and room_bytes is not None:
            room_bytes += limit_bytes - (self._life.memory_limit_bytes or 0)  # loader processes take some of this, too
            limit_bytes = max(limit_bytes, room_bytes)  # it may be more than it was at first
        self.step.memory_limit(limit_bytes, None if room_bytes is None else max(0, room_bytes))

    def _told(self, event: Event) -> None:
        session = self._session
        if isinstance(event, RanOut) and event.tokens_after is not None:  # else it is raised, and told of as any error
            self._keep_bounds()
            session.out_of_memory(event.where, event.device, event.tokens_before, event.tokens_after, event.detail)
        elif isinstance(event, Begins):
            session.batch(self.effective or event.rows, event.part_tokens, micro_rows=event.part_rows)
            session.link.flush(_TELL_WITHIN_S)  # a step that is frozen tells nothing any more
        elif isinstance(event, Refused):
            session.describe(cuts=False, not_cut=why_not_cut(event.refusal), detail=event.detail[:MOST_DETAIL])
            session.decided("cut_refused", event.refusal.sentence, step=session.link.progress["step"])


def why_not_cut(refusal: Refusal) -> NotCut:
    """The same in the words of the wire."""
    return NotCut[refusal.name]
