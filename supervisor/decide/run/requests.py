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
from memsup.supervisor.decide.run.unsaved import Unsaved

WAIT_S = 120.0
"""Whoever waits is answered after this time at the latest, counted anew with each thing that the worker finishes."""


class Goal(enum.Enum):
    """What somebody waits for."""

    HELD = enum.auto()
    RELEASED = enum.auto()
    RUNNING = enum.auto()
    STOPPED = enum.auto()
    STOPPED_NOW = enum.auto()
    """Without a checkpoint: what is lost is said, and was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A view of where the run stands, as far as anybody waits for it."""

    run: str
    """The run's name."""
    keeps_nothing: bool
    """Whether the next worker begins with nothing that memsup has kept."""
    terminal: RunState | None
    """How the run is over. It is None while the run is not."""
    failure: str | None
    """Why the run failed. It is None where the run has not failed."""
    wanted: Wanted
    pause_mode: PauseMode
    waits: str | None
    """What the run waits for before it begins, a clause. It is None where it has begun."""
    is_gone: bool
    """Whether there is no worker."""
    rests: bool
    """Whether the worker stands still."""
    loads: bool
    """Whether the worker was started and does not train yet."""
    runs: bool
    """Whether the worker does not stand still, and is not about to."""
    off_card: bool
    """Whether the worker stands still and what it had on the GPU is in RAM."""
    off_card_because: str | None
    """Why others have the worker's card, whatever people want. It is None where they do not."""
    card_trouble: str | None
    """That what the worker had on the GPU could not be brought back, a sentence. It is None where it could."""
    is_silent: bool
    """Whether the worker leaves what it is asked without an answer."""
    held_because: str | None
    """Why the ladder holds the worker, whatever people want. It is None where the ladder does not."""
    cannot_leave: str | None
    """Why the worker could not save what it has, and stays. It is None where the worker could, or was not asked to leave."""
    given_back: GivenBack | None
    """What the last worker gave back. It is None while the device is still to be asked."""
    death: str | None
    """What the last worker died of, whenever that was. It is None where the worker left as it was told, or none has ended."""
    ended: str | None
    """How the process of the last worker ended. It is None where none was seen to end."""
    unsaved: Unsaved
    where: str
    """The run's place as ` at step 5 of 100`, or nothing where that is unknown."""


@dataclass
class _Waiter:
    token: int
    goal: Goal
    due_s: float
    death: str | None = None
    """What the worker died of since, a sentence. It is None where the worker has not."""


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

    def worker_died(self, sentence: str) -> None:
        """The worker is gone, and not as it was told: nobody who waits got all of what was asked for."""
        for waiter in self._all:
            waiter.death = sentence

    def not_released(self, text: str) -> list[Answer]:
        """The answers to those who wait for memory that is not given back, and wait no more."""
        refused = [waiter for waiter in self._all if waiter.goal is Goal.RELEASED]
        self._all = [waiter for waiter in self._all if waiter.goal is not Goal.RELEASED]
        return [Answer(waiter.token, False, text) for waiter in refused]

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
            reached = _reached(waiter.goal, waiter.death, run)
            if reached is None:
                self._all.append(waiter)
            else:
                freed = run.given_back if waiter.goal is Goal.RELEASED else None
                newest = run.unsaved.checkpoint if waiter.goal in (Goal.RELEASED, Goal.STOPPED, Goal.STOPPED_NOW) else None
                path = newest.path if newest else None
                found.append(Answer(waiter.token, *reached, checkpoint_path=path, given_back=freed))
        return found


def _reached(goal: Goal, death: str | None, run: RunView) -> tuple[bool, str] | None:
    """Whether the goal is reached or can no longer be reached, and the sentence about it. Returns None while it is neither.

    `death` is what the worker died of since it was asked. It is None where the worker has not.
    """
    if run.terminal is not None:
        return _over(goal, death, run)
    paused = run.wanted is Wanted.PAUSED
    match goal:
        case Goal.STOPPED | Goal.RELEASED if run.cannot_leave is not None:
            return False, run.cannot_leave
        case Goal.HELD if not paused or run.pause_mode is not PauseMode.HOLD:
            return False, "Another request came in between."
        case Goal.RELEASED if not paused:
            return False, "Another request came in between."
        case Goal.HELD | Goal.RELEASED:
            return _paused(goal, death, run)
        case Goal.RUNNING if paused:
            return False, "Another request came in between."
        case Goal.RUNNING if run.waits is not None:
            return True, f"It waits {run.waits}, and begins by itself."
        case Goal.RUNNING if run.held_because is not None:
            return True, f"No longer paused by you, but still held: {run.held_because}."
        case Goal.RUNNING if run.off_card_because is not None:
            return True, f"No longer paused by you, but it waits for the GPU, and goes on by itself: {run.off_card_because}."
        case Goal.RUNNING if run.card_trouble is not None:
            return False, run.card_trouble
        case Goal.RUNNING if run.is_silent:
            return False, f"No longer paused, but the worker does not answer; see: {command('status', run.run)}"
        case Goal.RUNNING if run.loads:
            return True, f"No longer paused: the worker loads, and goes on{run.where}."
        case Goal.RUNNING if run.runs:
            return True, f"Running{run.where}."
        case _:
            return None


def _over(goal: Goal, death: str | None, run: RunView) -> tuple[bool, str]:
    """The answer where the run is over. Who asked for a stop got one in full where nothing of the work was lost by it."""
    stop = goal in (Goal.STOPPED, Goal.STOPPED_NOW)
    if run.terminal is RunState.FINISHED:
        return stop, f"The run is finished{run.where}."
    if run.terminal is RunState.FAILED:
        return False, f"The run failed: {run.failure}"
    incomplete = death is not None or (bool(run.unsaved) and run.death is None)
    how = "at once" if goal is Goal.STOPPED_NOW else "but not as it was asked to" if incomplete else ""
    if run.keeps_nothing:
        begun_anew = f"{command('start', run.run)} begins the command anew: it goes on only from what it has saved itself."
        ended = f"The command has ended ({run.ended})." if run.ended else "The command does not run."
        said = run.death or ("The command was killed." if goal is Goal.STOPPED_NOW and run.ended else ended)
        text = " ".join(["Stopped" + (f", {how}." if how else "."), said, begun_anew])
    elif run.death or run.unsaved:
        lost = f"{run.death} {run.unsaved.sentence}" if run.death else run.unsaved.sentence
        text = f"Stopped{f', {how}' if how else ''}. {lost} Continue with: {command('start', run.run)}"
    else:
        text = f"Stopped{run.where}{_saved(run)}. Continue with: {command('start', run.run)}"
    return stop and (goal is Goal.STOPPED_NOW or not incomplete), text


def _paused(goal: Goal, death: str | None, run: RunView) -> tuple[bool, str] | None:
    """The answer where a pause is wanted. Returns None while it is on its way."""
    go_on = f"Continue with: {command('resume', run.run)}"
    if run.waits is not None and run.is_gone:
        return True, f"Paused: it waits {run.waits}, and does not begin after that before you say so. {go_on}"
    if run.is_gone and (goal is Goal.HELD or run.given_back is not None) and run.death is not None:
        lost = "" if run.keeps_nothing else f" {run.unsaved.sentence}"
        if death is None:  # nobody had asked yet
            return True, f"Paused; no worker is there. {run.death}{lost} {go_on}"
        kept = " Nothing of its memory is kept." if goal is Goal.HELD else ""
        return False, f"Paused, but not as it was asked to. {death}{kept}{lost} {go_on}"
    if goal is Goal.HELD:
        if run.rests:
            return True, f"Paused{run.where}; its memory is kept. {go_on}"
        return (True, f"Paused{run.where}; no worker is there that could hold memory. {go_on}") if run.is_gone else None
    if run.off_card and run.given_back is not None:
        said = run.given_back.text or "its GPU memory is given back"
        return True, f"Paused{run.where}; {said}. The program itself stays, in RAM, with what it had on the GPU. {go_on}"
    if run.is_gone and run.given_back is not None:
        said = run.given_back.text or "its memory is given back"
        return True, f"Paused{run.where}{_saved(run)}; {said}. {go_on}"
    return None


def _saved(run: RunView) -> str:
    """What there is to go on from, in a clause; all of the work is in it."""
    newest = run.unsaved.checkpoint
    if newest is None:
        return ", before its first checkpoint: there is nothing to go on from"
    return f", with {'the verified' if newest.verified else 'its'} checkpoint of step {newest.step:,}"
