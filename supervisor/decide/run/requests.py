"""Who waits for a run to get somewhere (`memsup pause`, `resume`, `stop`): when they are answered, and with which sentence.

Pure. An answer comes when the goal is reached, when it can no longer be reached, or when the worker has got nothing done for
too long. Requests that are one order to the worker wait in the order book instead (`orders.py`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from memsup.shared.messages import PauseMode
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.run.actions import Answer
from memsup.supervisor.decide.run.freed import GivenBack

WAIT_S = 120.0
"""For the next thing that the worker finishes."""


class Goal(enum.Enum):
    HELD = enum.auto()
    RELEASED = enum.auto()
    RUNNING = enum.auto()
    STOPPED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Where the run stands, as far as anybody waits for it."""

    terminal: RunState | None
    failure: str | None
    wanted: Wanted
    pause_mode: PauseMode
    is_gone: bool
    """There is no worker."""
    rests: bool
    """The worker stands still."""
    runs: bool
    """It does not, or is about to begin."""
    held_because: str | None
    """By the ladder, whatever people want."""
    cannot_leave: str | None
    given_back: GivenBack | None
    """By the last worker; None: the device is still to be asked."""
    where: str
    """` at step 5 of 100`, or nothing where that is unknown."""


@dataclass
class _Waiter:
    token: int
    goal: Goal
    due_s: float


@dataclass
class Waiters:
    _all: list[_Waiter] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, token: int, goal: Goal, now_s: float) -> None:
        self._all.append(_Waiter(token, goal, now_s + WAIT_S))

    def progressed(self, now_s: float) -> None:
        """The worker finished something: what is waited for may take longer."""
        for waiter in self._all:
            waiter.due_s = now_s + WAIT_S

    def overdue(self, now_s: float) -> list[Answer]:
        """To those who have waited too long, and wait no more."""
        late = [waiter for waiter in self._all if now_s >= waiter.due_s]
        self._all = [waiter for waiter in self._all if now_s < waiter.due_s]
        return [Answer(waiter.token, False, "No answer from the worker in time; see: memsup status") for waiter in late]

    def answers(self, standing: RunView) -> list[Answer]:
        """To those whose goal is reached or lost, and who wait no more."""
        found: list[Answer] = []
        waiting, self._all = self._all, []
        for waiter in waiting:
            reached = _reached(waiter.goal, standing)
            if reached is None:
                self._all.append(waiter)
            else:
                freed = standing.given_back if waiter.goal is Goal.RELEASED else None
                found.append(Answer(waiter.token, *reached, given_back=freed))
        return found


def _reached(goal: Goal, run: RunView) -> tuple[bool, str] | None:
    """Whether the goal is reached (and the sentence), can no longer be reached, or None: not yet."""
    if run.terminal is not None:
        text = {
            RunState.STOPPED: f"Stopped{run.where}. Continue with: memsup start",
            RunState.FINISHED: f"The run is finished{run.where}.",
            RunState.FAILED: f"The run failed: {run.failure}",
        }[run.terminal]
        return goal is Goal.STOPPED, text
    paused = run.wanted is Wanted.PAUSED
    match goal:
        case Goal.STOPPED | Goal.RELEASED if run.cannot_leave is not None:
            return False, run.cannot_leave
        case Goal.HELD if not paused or run.pause_mode is not PauseMode.HOLD:
            return False, "Another request came in between."
        case Goal.HELD if run.rests or run.is_gone:
            return True, f"Paused{run.where}; its memory is kept. Continue with: memsup resume"
        case Goal.RELEASED if not paused:
            return False, "Another request came in between."
        case Goal.RELEASED if run.is_gone and run.given_back is not None:
            said = run.given_back.text or "its memory is given back"
            return True, f"Paused{run.where}; {said}. Continue with: memsup resume"
        case Goal.RUNNING if paused:
            return False, "Another request came in between."
        case Goal.RUNNING if run.held_because is not None:
            return True, f"No longer paused by you, but still held: {run.held_because}."
        case Goal.RUNNING if run.runs:
            return True, f"Running{run.where}."
        case _:
            return None
