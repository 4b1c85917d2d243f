"""One training of a program: its key, where its newest checkpoint left it, and what it saves.

A program may have several, one after the other: a sweep, two calls of `train()`, the same script called again with other
arguments. Each has its own steps; the numbers of checkpoints, and the steps that are told, go on from one to the next, so that
they only grow. The newest checkpoint of one that is complete is kept: it says so to whoever begins the program again.
"""

from __future__ import annotations

import contextlib
from typing import Callable, NamedTuple

from memsup import messages, places
from memsup.about import NotAttached
from memsup.link import NotAttachedError, Told
from memsup.places import Place
from memsup.session import Session
from memsup.store import Checkpoint, CheckpointError, SetAside, Store


class Bounds(NamedTuple):
    """The fields of a `Place` with these names."""

    most_tokens: int | None
    predict_tokens: int | None
    limit_bytes: int | None


def place_in(path: str) -> Place | None:
    """The place that the checkpoint at `path` holds. It is None where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return places.read_place(path)
    return None


def _training_of(path: str) -> str | None:
    place = place_in(path)
    return _name(place) if place is not None else None


def _name(place: Place) -> str:
    return "\0".join([place.training, *place.program])


class Training:
    """One training, from the newest checkpoint of it to its end."""

    def __init__(self, told: Told, key: str) -> None:
        self.key, self.program, self.run_id = key, places.this_program(), told.run_id
        self.store = Store(told.checkpoints, told.keep, _training_of)
        self.offset = 0
        """The steps of the trainings before it."""
        self.resumed: Place | None = None
        """Where its newest whole checkpoint left it. It is None where it begins anew."""
        self.newest: Checkpoint | None = None
        """The newest checkpoint, where it holds all that was computed: whoever computes sets it to None."""
        self.is_complete = False
        """Whether it has ended as it should, in this life of the program or in one before."""
        self.bounds: Bounds | None = None
        """As they are now. It is None before anything was computed."""

    @property
    def _name(self) -> str:
        return "\0".join([self.key, *self.program])

    def look(self) -> None:
        """Raises `NotAttachedError` where the checkpoints are another's, as far as that can be seen without touching them: that
        one may be attached still, and what the supervisor knows of it is to stay when it is through.
        """
        with contextlib.suppress(CheckpointError):  # to be judged once nobody else may write
            self._judge([place for path in self.store.paths() if (place := place_in(path)) is not None])

    def _judge(self, found: list[Place]) -> None:
        for place in found:
            if place.run_id != self.run_id:
                text = f"{self.store.folder} has another run's checkpoints: choose another checkpoint.folder"
                raise NotAttachedError(NotAttached.OTHER_RUN, text)
        newest = found[0] if found else None
        is_known = any(_name(place) == self._name for place in found)
        if newest is not None and newest.program != self.program and not newest.is_complete and not is_known:
            text = f"another program of the same command has begun its training and not ended it: {' '.join(newest.program)}"
            raise NotAttachedError(NotAttached.OTHER_PROGRAM, text)

    def find(self, session: Session) -> Checkpoint | None:
        """The newest whole checkpoint of this training. It is None where there is none. Those that are damaged are set aside
        and told of. Raises `NotAttachedError`. Nobody else may write meanwhile.
        """
        self.store.sweep()
        try:
            newest, aside = self.store.newest(self._name)
            self.resumed = places.read_place(newest.path) if newest is not None else None
            others = [place for path in self.store.paths() if (place := place_in(path)) is not None]
        except (CheckpointError, OSError, ValueError, TypeError) as error:
            raise NotAttachedError(NotAttached.UNREADABLE, f"its checkpoints cannot be told: {error}") from None
        self._judge(others)
        _tell_of_damage(session, newest, aside)
        if self.resumed is not None:
            self.offset, self.is_complete = self.resumed.offset, self.resumed.is_complete
        else:
            self.offset = max((place.offset + place.step for place in others), default=0)
        self.newest = newest
        return newest

    def fitted(self, limit_bytes: int | None) -> Bounds:
        """The bounds with which the life before got on, where it had as much room as there is now, or more; else none."""
        resumed = self.resumed
        if resumed is None or limit_bytes is None or resumed.limit_bytes is None or resumed.limit_bytes < limit_bytes:
            return Bounds(None, None, limit_bytes)
        return Bounds(resumed.most_tokens, resumed.predict_tokens, limit_bytes)

    def save(self, place: Place, write: Callable[[str], None]) -> Checkpoint:
        """Makes a checkpoint of what `write` puts into the folder that it is given, and `place`. Raises `CheckpointError`, and
        what `write` raises.
        """
        stands = place._replace(
            run_id=self.run_id,
            program=self.program,
            training=self.key,
            offset=self.offset,
            is_complete=self.is_complete,
            **(self.bounds._asdict() if self.bounds is not None else {}),
        )

        def write_all(folder: str) -> None:
            write(folder)
            places.write_place(folder, stands)

        self.newest = self.store.save(self.offset + place.step, write_all, self._name)
        return self.newest

    def finish(self, session: Session, path: str, metrics: dict[str, float], step: int) -> None:
        """Tells that the training is complete after `step` steps of its own, and its result lies at `path`."""
        session.link.report(messages.finished(path, metrics, self.offset + step))
        session.link.flush()


def _tell_of_damage(session: Session, newest: Checkpoint | None, aside: list[SetAside]) -> None:
    for damaged in aside:
        detail = f"The checkpoint of step {damaged.step:,} is damaged and was set aside: {damaged.reason}"
        session.decided("checkpoint_damaged", detail, damaged.path, damaged.step)
    if aside:
        used = "begins anew, for there is no whole one" if newest is None else f"goes on from that of step {newest.step:,}"
        detail = f"Newer checkpoints are damaged; the program {used}."
        session.decided("checkpoint_used", detail, newest.path if newest else None, newest.step if newest else None)
