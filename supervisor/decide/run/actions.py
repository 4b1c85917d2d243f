"""What the lifecycle can ask the main loop to do. Values only: `lifecycle.py` makes them, `main.py` carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.messages import PauseMode, ToWorker
from memsup.shared.status import Wanted
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.restarts import Budget


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
class Remember:
    """Write what the user wants to `run.json`."""

    wanted: Wanted
    pause_mode: PauseMode


@dataclass(frozen=True)
class Keep:
    """Write down what is left of the restarts."""

    budget: Budget


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line for the ledger."""

    event: str
    reason: str
    rung: str | None = None
    action: str | None = None
    result: str | None = None


@dataclass(frozen=True)
class Quit:
    pass


Action = Spawn | Send | Freeze | Thaw | Terminate | Kill | Answer | Remember | Keep | Record | Quit
