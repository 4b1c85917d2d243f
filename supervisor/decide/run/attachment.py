"""What holds of memsup's promises for the built-in training, an attached program and a command that is only fenced. Pure.

What follows from it is in `one_life.py` (`obeys`, `reports`); here it is put into words, for `status` and the command line. A
promise that is made to a program for the first time moves from one column of this table to the other.
"""

from __future__ import annotations

import enum


class Guarded(enum.Enum):
    """What the worker of a run is to memsup."""

    BUILT_IN = enum.auto()
    ATTACHED = enum.auto()
    """A program of the user's own that has called `memsup.guard`."""
    FENCED = enum.auto()
    """Any other command."""


class Promise(enum.Enum):
    """What memsup does beside the fence, the freeze, the kill and the restart, which everybody has."""

    PROGRESS = enum.auto()
    ORDERS = enum.auto()
    """Checkpoints, pauses that give memory back, stops that save."""
    CUTS = enum.auto()
    HANGS = enum.auto()


HOLDS = {
    Guarded.BUILT_IN: frozenset(Promise),
    Guarded.ATTACHED: frozenset({Promise.PROGRESS, Promise.ORDERS}),
    Guarded.FENCED: frozenset[Promise](),
}
_WITHOUT = {
    Promise.PROGRESS: "its steps, loss and time left are not known",
    Promise.ORDERS: "it cannot be ordered to save, to give its memory back, or to stop without losing work",
    Promise.CUTS: "a batch that does not fit into memory is not computed in parts: the program is held, leaves and comes back",
    Promise.HANGS: "a hang is not noticed",
}
_WITHOUT_FENCED = {
    Promise.CUTS: "when memory runs short it is frozen, and killed if that does not help",
}


def lacks(guarded: Guarded) -> list[str]:
    """What does not hold, a clause for each promise."""
    words = _WITHOUT | (_WITHOUT_FENCED if guarded is Guarded.FENCED else {})
    return [words[promise] for promise in Promise if promise not in HOLDS[guarded]]
