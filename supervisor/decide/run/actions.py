"""What the lifecycle can ask the main loop to do. Values only: `lifecycle.py` makes them, `main.py` carries them out."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from memsup.shared.messages import PauseMode, ToWorker
from memsup.shared.readings import Evaluation
from memsup.shared.record import Awaited, NotBefore
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason, LadderState
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.restarts import Budget, Cause


@dataclass(frozen=True)
class Why:
    """Why something is done to the worker and who asked: it goes with an order from where it is issued to its ledger line."""

    reason: str
    """One clause, for people."""
    by: By = By.SUPERVISOR
    pressures: tuple[HoldReason, ...] = ()
    """The shortages that it answers."""


BY_USER = Why("the user asked", By.USER)
BY_HOURS = Why("it is outside of its hours", By.HOURS)


@dataclass(frozen=True)
class Spawn:
    """Start a worker."""


@dataclass(frozen=True)
class WarmUp:
    """Have a process stand by with everything imported."""


@dataclass(frozen=True)
class CoolDown:
    """End the process that stands by."""


@dataclass(frozen=True)
class GiveUpState:
    """Let go of the state that is held in memory."""


@dataclass(frozen=True)
class Send:
    """Send a message to the worker."""

    message: ToWorker


@dataclass(frozen=True)
class Freeze:
    """Let the worker's whole tree stand still."""


@dataclass(frozen=True)
class Thaw:
    """Let the worker's whole tree go on. `most_growth_bytes` is how much more memory than it has now each process that limits
    itself can get before it has obeyed; None means that this is left to them.
    """

    most_growth_bytes: int | None = None


@dataclass(frozen=True)
class MoveCard:
    """Have the driver move what these processes have on the GPU into RAM, or back onto the card."""

    pids: tuple[int, ...]
    to_ram: bool


@dataclass(frozen=True)
class SaveOffCard:
    """Write to `run.json` which processes have what they had on the GPU in RAM, or are about to; none where it is empty."""

    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class AbandonMove:
    """End what asks the driver, which has taken too long."""


@dataclass(frozen=True)
class Terminate:
    """Send SIGTERM to a foreign command, which takes no orders."""


@dataclass(frozen=True)
class Kill:
    """Kill the worker's whole tree."""


@dataclass(frozen=True)
class Answer:
    """Answer a request of the control socket."""

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
class SaveQueued:
    """Write to `run.json` what the run still waits for."""

    queued: tuple[Awaited, ...] | None
    """It is None where the run has begun, or is queued no more. One that has begun and is queued again, outside of its hours,
    gives up what it claimed."""
    not_before: NotBefore | None = None
    """It is None where the time does not matter any more."""


@dataclass(frozen=True)
class SaveWaiver:
    """Write to `run.json` since when the run's hours are waived."""

    waived_unix_s: float | None
    """It is None where they are not waived any more."""


@dataclass(frozen=True)
class ClaimRoom:
    """Claim what the run may take beside others, now that it is its turn."""


@dataclass(frozen=True)
class SaveBudget:
    """Write down what is left of the restarts."""

    budget: Budget


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a line of the ledger says. `reason`, `action` and `result` are for people; all else is for programs. A field of
    which a line says nothing is None, or empty.
    """

    event: Event
    reason: str
    rung: str | None = None
    """The ladder's rung, in small letters. It is None where it was not the ladder that decided."""
    action: str | None = None
    """What was done. It is None where something was only found."""
    result: str | None = None
    """What came of the action. It is None where that is not known."""
    by: By | None = None
    """Who decided what the line tells of. It is None for what happened by itself."""
    order: OrderKind | None = None
    """What the worker was ordered to do, where it answers an order."""
    outcome: Outcome | None = None
    """What became of `order`."""
    move: Move | None = None
    """What the ladder did."""
    pressures: tuple[HoldReason, ...] = ()
    """What the decision answers: memory, heat, disk or power."""
    cause: Cause | None = None
    """Why the worker died, or why it is killed. It is None where the line says nothing of a death, or a person asked for it."""
    again: bool | None = None
    """Whether a death is followed by another life."""
    delay_s: float | None = None
    """The time from a death to the next life."""
    exit_status: int | None = None
    """How the process of a death ended: its exit code, or minus the signal's number. It is None where nobody could see that."""
    lost_steps: int | None = None
    """How many steps of this life no checkpoint holds, where a death lost them. It is None where that is not known, or nothing
    died."""
    lost_s: float | None = None
    """The seconds of work that these steps took."""
    tokens: tuple[int, int] | None = None
    """The micro-batch before and after, in tokens."""
    duty_fraction: float | None = None
    """The part of the time in which the worker is to compute."""
    wanted: Wanted | None = None
    """What is wanted of the run from now on."""
    pause_mode: PauseMode | None = None
    """How a pause that is wanted is to be carried out."""
    freed_ram_bytes: int | None = None
    """The RAM that came back, by the kernel's count. It is None where that is not known."""
    freed_vram_bytes: int | None = None
    """The GPU memory that came back, by the device's own count. It is None where that is not known, or the worker held none."""
    machine_died: bool | None = None
    """Whether, by a post-mortem, the whole machine died, and not the supervisor alone."""
    delivered: bool | None = None
    """Whether a message or a ping arrived."""
    checkpoint: str | None = None
    """The folder of the checkpoint that the line is about."""
    checkpoint_step: int | None = None
    """The step that this checkpoint holds."""
    evaluation: Evaluation | None = None
    """What evaluations had found when training ended early."""
    rows: int | None = None
    """How many rows of the data the line is about."""
    ladder: LadderState | None = None
    """What the ladder decided it on, besides the readings. It is None where it was not the ladder that decided."""


@dataclass(frozen=True)
class Quit:
    """End the supervisor: the run is over."""


Action = (
    Spawn
    | WarmUp
    | CoolDown
    | GiveUpState
    | Send
    | Freeze
    | Thaw
    | MoveCard
    | SaveOffCard
    | AbandonMove
    | Terminate
    | Kill
    | Answer
    | SaveWish
    | SaveQueued
    | SaveWaiver
    | ClaimRoom
    | SaveBudget
    | Record
    | Quit
)
