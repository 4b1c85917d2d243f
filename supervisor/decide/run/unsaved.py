"""What a worker has computed that no checkpoint holds: how many steps, how many seconds of work. Pure.

Reckoned from what the worker and the disk have told, never from what was ordered: this is what is said after a stop, a pause or
a death.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.messages import CheckpointNote
from memsup.supervisor.words import duration, plural


@dataclass(frozen=True, kw_only=True)
class Unsaved:
    """The work since the newest checkpoint, as it was heard of last."""

    checkpoint: CheckpointNote | None = None
    """The newest checkpoint. It is None where there is none."""
    steps: int = 0
    work_s: float | None = 0.0
    """The time that the worker has computed since. It is None where that is not known."""
    kept_step: int | None = None
    """The step of a newer state that is held in memory, from which both are counted. It is None where there is none."""

    def __bool__(self) -> bool:
        return self.steps > 0

    @property
    def sentence(self) -> str:
        """What is lost if the worker is gone, for people."""
        if not self.steps:
            return "No whole step is lost."
        how_much = plural(self.steps, "step")
        if self.work_s is not None:
            how_much += f", {duration(self.work_s)} of work"
        if self.kept_step is not None:
            return f"What was computed since step {self.kept_step:,}, which is kept in memory, is lost: {how_much}."
        if self.checkpoint is None:
            return f"There is no checkpoint, so all that was computed is lost: {how_much}."
        return f"What was computed since the checkpoint of step {self.checkpoint.step:,} is lost: {how_much}."
