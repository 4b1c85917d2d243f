"""Which runs a start is to wait for: what a person named, as they are now. Refuses what could never begin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from memsup.shared.commands import command
from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.record import Awaited, NotBefore, RecordError
from memsup.shared.run_file import read_record
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.runs import all_runs
from memsup.supervisor.daemon.awaited import fate_of
from memsup.supervisor.decide.run.waiting import ENDED, LEFT_BEHIND, Fate, how_they_ended, left_behind

ALL = "all"


def to_wait_for(paths: RunPaths, after: Sequence[str], after_ok: Sequence[str]) -> tuple[list[Awaited], list[str]]:
    """The runs that are waited for, and sentences about those that were named and have ended already, or do not get on until
    somebody does something about it. Raises `RefusedError`.
    """
    named = dict.fromkeys((*_names(paths, after), *_names(paths, after_ok)))
    must_finish = set(_names(paths, after_ok))
    found = [_awaited(paths, name, must_finish=name in must_finish) for name in named]
    fates = [(one, fate_of(one)) for one in found]
    for one, fate in fates:
        if one.must_finish and fate in ENDED - {Fate.FINISHED}:
            raise RefusedError(
                f"Run {one.run!r} {fate}, so run {paths.name!r} would never begin. Go on with that one first: "
                f"{command('start', one.run)}   Or begin when it is over, however it ends: --after {one.run}"
            )
    ended = [(one, fate) for one, fate in fates if fate in ENDED]
    said = [f"Nothing is to be waited for of these: {how_they_ended(ended)}."] if ended else []
    said += [left_behind(paths.name, one, fate) for one, fate in fates if fate in LEFT_BEHIND]
    return [one for one, fate in fates if fate not in ENDED], said


def refuse_circle(paths: RunPaths, awaited: Sequence[Awaited]) -> None:
    """Raises `RefusedError` where one of these waits for this run by now: both were started at the same time. To be called
    while nobody else starts a run.
    """
    for one in awaited:
        _refuse_circle(paths, run_paths(one.run))


def next_time(text: str, now_unix_s: float) -> NotBefore:
    """The next instant at which the local clock shows this time, such as `23:00`. A time that is left out when the clocks are
    set ahead comes an hour later that day. Raises `RefusedError`.
    """
    read = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text)
    if read is None:
        raise RefusedError(f"--not-before {text} is no time of the day; write one such as 23:00.")
    today = datetime.fromtimestamp(now_unix_s).replace(hour=int(read[1]), minute=int(read[2]), second=0, microsecond=0)
    times = ((today + timedelta(days=days)).replace(fold=fold) for days in (0, 1) for fold in (0, 1))
    at_unix_s = next(at for at in (time.timestamp() for time in times) if at > now_unix_s)
    return NotBefore(at_unix_s=at_unix_s, text=f"{datetime.fromtimestamp(at_unix_s):%a %H:%M}")


def _names(paths: RunPaths, given: Sequence[str]) -> Iterator[str]:
    """The names of the runs, with `all` as those that are up now, but for this one and those that wait for it."""
    for name in given:
        if name == ALL:
            yield from (one.name for one in all_runs() if one.name != paths.name and is_held(one) and not _chain(one, paths))
        else:
            yield name


def _awaited(paths: RunPaths, name: str, *, must_finish: bool) -> Awaited:
    if name == paths.name:
        raise RefusedError(f"Run {name!r} cannot wait for itself. Those that there are: memsup list")
    other = run_paths(name)
    record = read_record(other.record)
    if record is None:
        raise RefusedError(f"There is no run {name!r} to wait for. Those that there are: memsup list")
    _refuse_circle(paths, other)
    return Awaited(run=name, run_id=record.run_id, must_finish=must_finish)


def _refuse_circle(paths: RunPaths, other: RunPaths) -> None:
    if chain := _chain(other, paths):
        waits = ", and ".join(f"run {one!r} waits for run {next_one!r}" for one, next_one in pairwise(chain))
        raise RefusedError(
            f"Run {paths.name!r} cannot wait for run {other.name!r}, or both would wait for ever: {waits}. "
            f"Take that one out of the queue first: {command('stop', other.name)}"
        )


def _chain(start: RunPaths, end: RunPaths) -> list[str]:
    """The names of runs of which each waits for the next, from `start` to `end`. The list is empty where none leads there."""
    chains, seen = [[start.name]], {start.name}
    while chains:
        chain = chains.pop()
        if chain[-1] == end.name:
            return chain
        for name in _waited_for_by(chain[-1]):
            if name not in seen:
                seen.add(name)
                chains.append([*chain, name])
    return []


def _waited_for_by(name: str) -> list[str]:
    try:
        record = read_record(run_paths(name).record)
    except RecordError:
        return []
    return [one.run for one in (record.queued or ())] if record is not None else []
