"""One training of a program: its key, where its newest checkpoint left it, and what it saves.

A program may have several, one after the other: a sweep, two calls of `train()`, the same script called again with other
arguments. Each has its own steps; the numbers of checkpoints, and the steps that are told, go on from one to the next, so that
they only grow. The newest checkpoint of one that is complete is kept: it says so to whoever begins the program again.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, NamedTuple

from memsup import messages, places
from memsup.about import NotAttached
from memsup.link import NotAttachedError, Told, start_anew
from memsup.places import Place
from memsup.ranks import part_of
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

    def __init__(self, told: Told, key: str, rank: int = 0, ranks: int = 1) -> None:
        """`rank` is the number of this process among `ranks`."""
        self.key, self.program, self.run_id = key, places.this_program(), told.run_id
        self._rank, self._ranks = rank, ranks
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
        resumed = self.resumed
        if newest is not None and resumed is not None and resumed.ranks != self._ranks and not resumed.is_complete:
            then, now = _several(resumed.ranks), "are " + str(self._ranks) if self._ranks > 1 else "is one"
            raise CheckpointError(
                f"The checkpoint of step {newest.step:,} is one of {then}, and now there {now}, which would see other data. "
                f"Start {then} again, or begin anew: {start_anew()}"
            )
        if self.resumed is not None:
            self.offset, self.is_complete = self.resumed.offset, self.resumed.is_complete
        else:
            self.offset = max((place.offset + place.step for place in others), default=0)
        self.newest = newest
        return newest

    def as_told(self) -> dict[str, Any]:
        """What the other ranks are told of the newest checkpoint."""
        newest = self.newest._asdict() if self.newest is not None else None
        return {"newest": newest, "offset": self.offset, "is_complete": self.is_complete}

    def follow(self, told: dict[str, Any]) -> None:
        """Takes over what rank 0 has found. Raises `CheckpointError` where the part of this rank is not there."""
        self.offset, self.is_complete = int(told["offset"]), bool(told["is_complete"])
        self.newest = Checkpoint(**told["newest"]) if told["newest"] is not None else None
        if self.newest is not None:
            folder = self.newest.path if self.is_complete else self.part_folder
            try:
                self.resumed = places.read_place(folder)
            except (OSError, ValueError, TypeError) as error:
                raise CheckpointError(f"The part of rank {self._rank} in {self.newest.path} cannot be read: {error}.") from None

    @property
    def part_folder(self) -> str:
        """The folder in the newest checkpoint that has what only this rank knows."""
        assert self.newest is not None, "it has found one"
        return part_of(self.newest.path, self._rank)

    def save_part(self, folder: str, place: Place, write: Callable[[str], None]) -> None:
        """Writes what `write` puts into a folder, and `place`, into the checkpoint that rank 0 writes in `folder`. Raises what
        `write` raises.
        """
        own = part_of(folder, self._rank)
        os.mkdir(own, 0o700)
        write(own)
        places.write_place(own, self._stands(place))
        self.newest = None

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
        stands = self._stands(place)

        def write_all(folder: str) -> None:
            write(folder)
            places.write_place(folder, stands)

        self.newest = self.store.save(self.offset + place.step, write_all, self._name)
        return self.newest

    def _stands(self, place: Place) -> Place:
        return place._replace(
            run_id=self.run_id,
            program=self.program,
            training=self.key,
            offset=self.offset,
            is_complete=self.is_complete,
            ranks=self._ranks,
            **(self.bounds._asdict() if self.bounds is not None else {}),
        )

    def finish(self, session: Session, path: str, metrics: dict[str, float], step: int) -> None:
        """Tells that the training is complete after `step` steps of its own, and its result lies at `path`."""
        session.link.report(messages.finished(path, metrics, self.offset + step))
        session.link.flush()
        session.ranks.over()


def _several(ranks: int) -> str:
    return f"{ranks} ranks" if ranks > 1 else "one process"


def _tell_of_damage(session: Session, newest: Checkpoint | None, aside: list[SetAside]) -> None:
    for damaged in aside:
        detail = f"The checkpoint of step {damaged.step:,} is damaged and was set aside: {damaged.reason}"
        session.decided("checkpoint_damaged", detail, damaged.path, damaged.step)
    if aside:
        used = "begins anew, for there is no whole one" if newest is None else f"goes on from that of step {newest.step:,}"
        detail = f"Newer checkpoints are damaged; the program {used}."
        session.decided("checkpoint_used", detail, newest.path if newest else None, newest.step if newest else None)
