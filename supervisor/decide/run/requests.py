"""The people who wait for a run to get somewhere (`memsup pause`, `resume`, `stop`): when they are answered, and with which
sentence.

Pure. An answer comes when the goal is reached, when it can no longer be reached, or when the worker has got nothing done for
too long. Requests that are one order to the worker wait in the order book instead (`orders.py`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from memsup.shared.commands import command
from memsup.shared.messages import PauseMode
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.run.actions import Answer
from memsup.supervisor.decide.run.freed import GivenBack

WAIT_S = 120.0
"""Whoever waits is answered after this time at the latest, counted anew with each thing that the worker finishes."""


class Goal(enum.Enum):
    """What somebody waits for."""

    HELD = enum.auto()
    RELEASED = enum.auto()
    RUNNING = enum.auto()
    STOPPED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A view of where the run stands, as far as anybody waits for it."""

    run: str
    """The run's name."""
    terminal: RunState | None
    """How the run is over. It is None while the run is not."""
    failure: str | None
    """Why the run failed. It is None where the run has not failed."""
    wanted: Wanted
    pause_mode: PauseMode
    is_gone: bool
    """Whether there is no worker."""
    rests: bool
    """Whether the worker stands still."""
    runs: bool
    """Whether the worker does not stand still, or is about to begin."""
    held_because: str | None
    """Why the ladder holds the worker, whatever people want. It is None where the ladder does not."""
    cannot_leave: str | None
    """Why the worker could not save what it has, and stays. It is None where the worker could, or was not asked to leave."""
    given_back: GivenBack | None
    """What the last worker gave back. It is None while the device is still to be asked."""
    where: str
    """The run's place as ` at step 5 of 100`, or nothing where that is unknown."""


@dataclass
class _Waiter:
    token: int
    goal: Goal
    due_s: float


@dataclass
class Waiters:
    """All who wait for the run to get somewhere."""

    _all: list[_Waiter] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, token: int, goal: Goal, now_s: float) -> None:
        """Somebody, who is answered by `token`, waits for `goal` from now on."""
        self._all.append(_Waiter(token, goal, now_s + WAIT_S))

    def progressed(self, now_s: float) -> None:
        """The worker finished something, so what is waited for may take longer."""
        for waiter in self._all:
            waiter.due_s = now_s + WAIT_S

    def overdue(self, now_s: float, run: str) -> list[Answer]:
        """The answers to those who have waited too long, and wait no more. `run` is the run's name."""
        late = [waiter for waiter in self._all if now_s >= waiter.due_s]
        self._all = [waiter for waiter in self._all if now_s < waiter.due_s]
        text = f"No answer from the worker in time; see: {command('status', run)}"
        return [Answer(waiter.token, False, text) for waiter in late]

    def answers(self, run: RunView) -> list[Answer]:
        """The answers to those whose goal is reached or lost, and who wait no more."""
        found: list[Answer] = []
        waiting, self._all = self._all, []
        for waiter in waiting:
            reached = _reached(waiter.goal, run)
            if reached is None:
                self._all.append(waiter)
            else:
                freed = run.given_back if waiter.goal is Goal.RELEASED else None
                found.append(Answer(waiter.token, *reached, given_back=freed))
        return found


def _reached(goal: Goal, run: RunView) -> tuple[bool, str] | None:
    """Whether the goal is reached or can no longer be reached, and the sentence about it. Returns None while it is neither."""
    if run.terminal is not None:
        text = {
            RunState.STOPPED: f"Stopped{run.where}. Continue with: {command('start', run.run)}",
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
            return True, f"Paused{run.where}; its memory is kept. Continue with: {command('resume', run.run)}"
        case Goal.RELEASED if not paused:
            return False, "Another request came in between."
        case Goal.RELEASED if run.is_gone and run.given_back is not None:
            said = run.given_back.text or "its memory is given back"
            return True, f"Paused{run.where}; {said}. Continue with: {command('resume', run.run)}"
        case Goal.RUNNING if paused:
            return False, "Another request came in between."
        case Goal.RUNNING if run.held_because is not None:
            return True, f"No longer paused by you, but still held: {run.held_because}."
        case Goal.RUNNING if run.runs:
            return True, f"Running{run.where}."
        case _:
            return None
