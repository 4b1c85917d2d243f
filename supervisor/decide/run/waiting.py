"""What a run that is queued waits for: its time, other runs, and then room beside those that are left. Pure.

What has become of the others is found by `daemon/awaited.py`. A run that has ended is waited for no more, whatever becomes of
it later: `lifecycle.py` has that written down as soon as it is seen.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from memsup.shared.commands import command
from memsup.shared.record import Awaited, NotBefore
from memsup.supervisor.decide.run.hours import Rest


class Fate(enum.StrEnum):
    """What has become of a run that another one waits for."""

    UP = "is up"
    """It has a supervisor. It may be paused, or wait itself."""
    RESTS = "rests until you resume it, by its hours"
    """It has a supervisor, and its hours have an end alone, which is over."""
    LEFT = "is not over and has no supervisor"
    """Nobody guards it: it goes on after a boot, or when somebody starts it."""
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "was stopped"
    GONE = "was removed"
    """It was removed, or another run has its name."""


ENDED = frozenset({Fate.FINISHED, Fate.FAILED, Fate.STOPPED, Fate.GONE})
"""The fates of a run that is waited for no more."""


def what_for(awaited: Sequence[Awaited], not_before: NotBefore | None, rest: Rest | None = None) -> str:
    """What is waited for, in a clause: `until Sat 23:00 and for run 'a' to finish`. `rest` is how it rests by its hours; None:
    it is within them, or has none.
    """
    waits = [f"until {not_before.text}"] if not_before else []
    waits += [rest.until] if rest else []
    waits += [f"for run {one.run!r}" + (" to finish" if one.must_finish else "") for one in awaited]
    if not waits:
        return "for room beside other runs"
    return " and ".join(filter(None, [", ".join(waits[:-1]), waits[-1]]))


def how_they_ended(ended: Iterable[tuple[Awaited, Fate]]) -> str:
    """What has become of runs, in a clause: `run 'a' finished and run 'b' failed`."""
    said = [f"run {one.run!r} {fate}" for one, fate in ended]
    return " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))


def why_never(run: str, ended: Iterable[tuple[Awaited, Fate]]) -> str | None:
    """Why the run `run` never begins, a sentence with the next step. Returns None where nothing keeps it from beginning."""
    for one, fate in ended:
        if one.must_finish and fate is not Fate.FINISHED:
            return (
                f"It was to begin only if run {one.run!r} finished, and that one {fate}, so it did not begin. "
                f"To begin it all the same: {command('start', run)}"
            )
    return None


LEFT_BEHIND = frozenset({Fate.LEFT, Fate.RESTS})
"""The fates of a run that is waited for until somebody does something about it."""


def left_behind(run: str, awaited: Awaited, fate: Fate) -> str:
    """What to do about a run of this fate that is waited for, in sentences."""
    go_on = command("resume" if fate is Fate.RESTS else "start", awaited.run)
    without = f"{command('stop', run)}, then {command('start', run)}" if awaited.must_finish else command("stop", awaited.run)
    return (
        f"Run {awaited.run!r}, for which this one waits, {fate}. Go on with it: {go_on}   "
        f"Or have run {run!r} begin without it: {without}"
    )
