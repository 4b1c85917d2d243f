"""How a worker is asked to leave, and what follows when it cannot save what it has. Pure; sends nothing.

A worker that is told to leave writes a checkpoint first, and stays when that fails: on a full disk, say. Then it holds, so that
nothing more is computed that cannot be kept, and is told again every now and then. At a shutdown of the machine nobody is there
who could make room: then it leaves without, and the newest checkpoint holds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import partial

from memsup.shared import messages as m
from memsup.shared.commands import command
from memsup.shared.messages import PauseMode
from memsup.supervisor.decide.events import By
from memsup.supervisor.decide.run.actions import BY_HOURS, BY_USER, Why
from memsup.supervisor.decide.run.orders import OrderMaker

AGAIN_AFTER_S = 30.0
"""A worker that could not save is told again to leave after this many seconds."""


class Ending(enum.Enum):
    """Why the worker is being asked to leave."""

    STOP = enum.auto()
    SHUTDOWN = enum.auto()
    """The supervisor itself was told to go; what the user wants is unchanged."""
    RELEASE = enum.auto()
    HOURS = enum.auto()
    """It is outside of its hours, and is to give its memory back until they begin again."""
    MAKE_ROOM = enum.auto()
    """The ladder asks for all memory back: the worker is to come back, smaller, when there is room."""


@dataclass
class Leaving:
    """The leaving of one worker, from the wish to its end."""

    ending: Ending | None = None
    """Why the worker is to leave. It is None where the worker is not asked to."""
    told_at_s: float | None = None
    """The worker was told at this time, and owes the answer or its exit. It is None where the worker has not been told, or
    could not save."""
    cannot: str | None = None
    """Why the last attempt failed, a sentence of the worker's. It is None where none has failed since somebody asked."""
    _again_at_s: float = 0.0

    @property
    def told(self) -> bool:
        """Whether the worker owes the answer, or its exit."""
        return self.told_at_s is not None

    @property
    def for_good(self) -> bool:
        """Whether no other worker follows this one under this supervisor."""
        return self.ending in (Ending.STOP, Ending.SHUTDOWN)

    def begin(self, ending: Ending) -> None:
        """The worker is to leave for this reason from now on. A shutdown is not taken back."""
        if self.ending is not Ending.SHUTDOWN:
            self.told_at_s = self.told_at_s if self.ending is ending else None
            self.ending = ending
            self.asked_again()

    def asked_again(self) -> None:
        """Somebody asks again, and is neither left waiting for the next attempt nor told of the last one."""
        self.cannot = None

    def failed(self, now_s: float, why: str) -> None:
        """The worker could not save what it has, and stays."""
        self.told_at_s, self.cannot, self._again_at_s = None, why.rstrip(".") + ".", now_s + AGAIN_AFTER_S

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to tell the worker (again)."""
        waits = self.cannot is not None and self.ending is not Ending.SHUTDOWN and now_s < self._again_at_s
        return self.ending is not None and not self.told and not waits

    def why(self, stance_why: Why) -> Why:
        """Who asks the worker to leave, and why; `stance_why` is what the ladder says."""
        match self.ending:
            case Ending.STOP | Ending.RELEASE:
                return BY_USER
            case Ending.SHUTDOWN:
                return Why("the supervisor was told to go", By.SYSTEM)
            case Ending.HOURS:
                return BY_HOURS
            case Ending.MAKE_ROOM:
                return stance_why
            case None:
                return Why("it left by itself", By.WORKER)

    def order(self) -> OrderMaker:
        """What the worker is told."""
        match self.ending:
            case Ending.STOP:
                return partial(m.Stop, checkpoint=True)
            case Ending.SHUTDOWN:
                return partial(m.Stop, checkpoint=self.cannot is None)
            case _:
                return partial(m.Pause, mode=PauseMode.RELEASE)

    def sentence(self, newest: m.CheckpointNote | None, run: str) -> str | None:
        """Why the worker of `run` is still here, and what can be done, for people. Returns None where nothing failed."""
        if self.cannot is None:
            return None
        if not self.for_good:
            return f"The run cannot give its memory back: {self.cannot} It holds and tries again every {AGAIN_AFTER_S:.0f} s."
        has = f"with the checkpoint of step {newest.step:,}" if newest else "without a checkpoint"
        return (
            f"The run cannot stop: {self.cannot} It holds and tries again every {AGAIN_AFTER_S:.0f} s. "
            f"To stop at once, {has}: {command('stop', run)} --now"
        )
