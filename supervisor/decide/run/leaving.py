"""How a worker is asked to leave, and what follows when it cannot save what it has. Pure; sends nothing.

A worker that is told to leave writes a checkpoint first, and stays when that fails: on a full disk, say. Then it holds, so that
nothing more is computed that cannot be kept, and is told again every now and then. At a shutdown of the machine nobody is there
who could make room: then it leaves without, and the newest checkpoint holds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode

AGAIN_AFTER_S = 30.0


class Ending(enum.Enum):
    """Why the worker is being asked to leave."""

    STOP = enum.auto()
    SHUTDOWN = enum.auto()
    """The supervisor itself was told to go; what the user wants is unchanged."""
    RELEASE = enum.auto()
    MAKE_ROOM = enum.auto()
    """The ladder's release: come back, smaller, when there is room."""


@dataclass
class Leaving:
    """Of one worker, from the wish to its end. `ending` None: it is not asked to leave."""

    ending: Ending | None = None
    told: bool = False
    """And owes the answer, or its exit."""
    cannot: str | None = None
    """Why the last attempt failed; a sentence of the worker's."""
    _again_at_s: float = 0.0

    @property
    def for_good(self) -> bool:
        """No other worker follows it in this supervisor."""
        return self.ending in (Ending.STOP, Ending.SHUTDOWN)

    def begin(self, ending: Ending) -> None:
        """A shutdown is not taken back."""
        if self.ending is not Ending.SHUTDOWN:
            self.told = self.told and self.ending is ending
            self.ending = ending
            self.asked_again()

    def asked_again(self) -> None:
        """Who asks is not left waiting for the next attempt, nor told of the last one."""
        self.cannot = None

    def failed(self, now_s: float, why: str) -> None:
        self.told, self.cannot, self._again_at_s = False, why.rstrip(".") + ".", now_s + AGAIN_AFTER_S

    def is_due(self, now_s: float) -> bool:
        """It is time to tell it (again)."""
        waits = self.cannot is not None and self.ending is not Ending.SHUTDOWN and now_s < self._again_at_s
        return self.ending is not None and not self.told and not waits

    def order(self, order_id: int, why_make_room: str) -> m.Stop | m.Pause:
        """What it is told."""
        match self.ending:
            case Ending.STOP:
                return m.Stop(order_id=order_id, reason="the user asked", checkpoint=True)
            case Ending.SHUTDOWN:
                save = self.cannot is None
                return m.Stop(order_id=order_id, reason="the supervisor was told to go", checkpoint=save)
            case Ending.RELEASE:
                return m.Pause(order_id=order_id, reason="the user asked", mode=PauseMode.RELEASE)
            case _:
                return m.Pause(order_id=order_id, reason=why_make_room, mode=PauseMode.RELEASE)

    def sentence(self, newest: m.CheckpointNote | None) -> str | None:
        """For people: why it is still here, and what can be done. None while nothing failed."""
        if self.cannot is None:
            return None
        if not self.for_good:
            return f"The run cannot give its memory back: {self.cannot} It holds and tries again every {AGAIN_AFTER_S:.0f} s."
        has = f"with the checkpoint of step {newest.step:,}" if newest else "without a checkpoint"
        return (
            f"The run cannot stop: {self.cannot} It holds and tries again every {AGAIN_AFTER_S:.0f} s. "
            f"To stop at once, {has}: memsup stop --now"
        )
