"""What the lifecycle can ask the main loop to do. Values only: `lifecycle.py` makes them, `main.py` carries them out."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from memsup.shared.messages import PauseMode, ToWorker
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason, LadderState
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.restarts import Budget, Cause


@dataclass(frozen=True)
class Spawn:
    pass


@dataclass(frozen=True)
class Send:
    message: ToWorker


@dataclass(frozen=True)
class Freeze:
    pass


@dataclass(frozen=True)
class Thaw:
    pass


@dataclass(frozen=True)
class Terminate:
    """SIGTERM to a foreign command, which takes no orders."""


@dataclass(frozen=True)
class Kill:
    pass


@dataclass(frozen=True)
class Answer:
    token: int
    ok: bool
    text: str
    checkpoint_path: str | None = None
    given_back: GivenBack | None = None


@dataclass(frozen=True)
class SaveWish:
    """Write what the user wants to `run.json`."""

    wanted: Wanted
    pause_mode: PauseMode


@dataclass(frozen=True)
class SaveBudget:
    """Write down what is left of the restarts."""

    budget: Budget


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a line of the ledger says. `reason`, `action` and `result` are for people; all else is for programs."""

    event: Event
    reason: str
    rung: str | None = None
    """The ladder's rung, in small letters, where the ladder decided it."""
    action: str | None = None
    """What was done; None where something was only found."""
    result: str | None = None
    """What came of it, where that is known."""
    by: By | None = None
    order: OrderKind | None = None
    outcome: Outcome | None = None
    """What became of `order`."""
    move: Move | None = None
    pressures: tuple[HoldReason, ...] = ()
    """What the ladder answered: memory, heat, disk or power."""
    cause: Cause | None = None
    """Of a death or of a kill."""
    again: bool | None = None
    """Whether a death is followed by another life."""
    delay_s: float | None = None
    """The time from a death to the next life."""
    exit_status: int | None = None
    """How the process of a death ended: its exit code, or minus the signal's number. None where nobody could see that."""
    tokens: tuple[int, int] | None = None
    """The micro-batch before and after."""
    duty_fraction: float | None = None
    """The part of the time in which the worker is to compute."""
    wanted: Wanted | None = None
    pause_mode: PauseMode | None = None
    freed_ram_bytes: int | None = None
    freed_vram_bytes: int | None = None
    machine_died: bool | None = None
    """Of a post-mortem: the whole machine died; False: the supervisor alone did."""
    delivered: bool | None = None
    """Whether a message or a ping arrived."""
    checkpoint: str | None = None
    """The folder of the checkpoint that the line is about."""
    checkpoint_step: int | None = None
    rows: int | None = None
    """How many rows of the data the line is about."""
    ladder: LadderState | None = None
    """What the ladder decided it on, besides the readings."""


@dataclass(frozen=True)
class Quit:
    pass


Action = Spawn | Send | Freeze | Thaw | Terminate | Kill | Answer | SaveWish | SaveBudget | Record | Quit
