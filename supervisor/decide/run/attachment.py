"""What holds of memsup's promises for the built-in training, an attached program and a command that is only fenced. Pure.

What follows from it is in `one_life.py` (`obeys`, `reports`); here it is put into words, for `status` and the command line. A
promise that is made to a program for the first time moves from one column of this table to the other. What a program says of
itself (`program/about.py`) decides the rest.
"""

from __future__ import annotations

import enum

from memsup.about import NotAttached, NotCut, Seam
from memsup.shared import messages as m


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
    """Pauses that hold between two steps, and a pace."""
    SAVES = enum.auto()
    """Checkpoints, pauses that give memory back, stops that lose nothing, and going on after a death."""
    CUTS = enum.auto()
    HANGS = enum.auto()


HOLDS = {
    Guarded.BUILT_IN: frozenset(Promise),
    Guarded.ATTACHED: frozenset(Promise),
    Guarded.FENCED: frozenset[Promise](),
}
"""What may hold; of an attached program `SAVES` and `CUTS` only as far as it says so."""
_WITHOUT = {
    Promise.PROGRESS: "its steps, loss and time left are not known",
    Promise.ORDERS: "it cannot be ordered to hold between two steps, or to compute more slowly: it is frozen",
    Promise.SAVES: "it cannot be ordered to save, to give its RAM back, or to stop without losing work",
    Promise.CUTS: "a batch that does not fit into memory is not computed in parts",
    Promise.HANGS: "a hang is not noticed",
}
_NOTHING_TO_SAVE = (
    "it has given memsup nothing to save, so there are no checkpoints, a stop loses what was computed, and after a death it "
    "begins anew"
)
_THEN = {
    Guarded.ATTACHED: "the program is held, leaves and comes back",
    Guarded.FENCED: "when memory runs short it is frozen, and killed if that does not help",
}
NOT_CUT = {
    NotCut.NO_BACKWARD: "it computes its gradients itself, and not by run.backward",
    NotCut.NOT_PROBED: "no batch was seen yet from which it could be told how",
    NotCut.IN_BATCH: "its loss compares the rows of a batch with each other",
    NotCut.BATCH_STATISTICS: "the model normalizes by statistics of its batch",
    NotCut.CHANGES_ITSELF: "the model changes its own buffers in each forward pass",
    NotCut.AUXILIARY_LOSS: "its loss has a part that belongs to the whole batch, as for the experts of a mixture",
    NotCut.DATA_PARALLEL: "DataParallel shares batches out to several devices",
    NotCut.SEVERAL_RANKS: "several ranks compute its steps, and not with DistributedDataParallel on CPUs alone",
    NotCut.DRAWN_COMPLETIONS: "it learns from completions that it draws for the whole batch",
    NotCut.STEPS_IN_BACKWARD: "its optimizer steps during the backward pass",
    NotCut.NOT_A_SCALAR: "its loss is not one number in a tensor",
    NotCut.NO_ROWS: "the tensors of its batches have no rows in common",
    NotCut.FAILED_IN_PROBE: "its loss could not be computed for some rows of a batch",
    NotCut.UNKNOWN: "no weighting of the parts gives the loss of the whole batch",
    NotCut.NO_BOUNDARY: "it came to no boundary within its first step",
    NotCut.OTHER: "it is computed in a way that memsup does not cut",
}
NOT_ATTACHED = {
    NotAttached.NOT_MAIN_THREAD: "memsup.guard was called in another thread than the main one",
    NotAttached.SEVERAL_RANKS: "it is one of several ranks, which memsup cannot join",
    NotAttached.OTHER_RUN: "its checkpoint.folder has another run's checkpoints",
    NotAttached.OTHER_PROGRAM: "another program of the same command has begun its training and not ended it",
    NotAttached.UNREADABLE: "its checkpoints cannot be told",
    NotAttached.NO_SUPERVISOR: "it could not reach its supervisor",
    NotAttached.TURNED_AWAY: "another process of it is attached",
    NotAttached.NO_ATTACH: "that was asked for",
    NotAttached.NO_TRAINER: "what trains in it is nothing that memsup knows",
}
_SEAMS = {
    Seam.CALLS: "memsup.guard",
    Seam.BOUNDARY: "run.boundary",
    Seam.TRAINER: "its Trainer",
    Seam.ACCELERATE: "its Accelerator",
    Seam.LIGHTNING: "its Lightning trainer",
}
NOBODY_CALLED = "nothing in it has called memsup.guard so far"
HAS_ENDED = "its program has ended its training, or itself"
NOT_YET_AGAIN = "it was started again, and has not come to where it trains yet"


def lacks(guarded: Guarded, about: m.About | None = None) -> list[str]:
    """What does not hold, a clause for each promise. `about` is what an attached program has said of itself."""
    missing = set(Promise) - HOLDS[guarded]
    if guarded is Guarded.ATTACHED:
        missing |= set() if about is None or about.saves else {Promise.SAVES}
        missing |= set() if about is not None and about.cuts else {Promise.CUTS}
    return [_clause(promise, guarded, about) for promise in Promise if promise in missing]


def _clause(promise: Promise, guarded: Guarded, about: m.About | None) -> str:
    if promise is Promise.SAVES and guarded is Guarded.ATTACHED:
        return _NOTHING_TO_SAVE
    if promise is not Promise.CUTS:
        return _WITHOUT[promise]
    why = f", since {NOT_CUT[about.not_cut]}" if about is not None and about.not_cut is not None else ""
    detail = f" ({about.detail})" if about is not None and about.detail else ""
    return f"{_WITHOUT[promise]}{why}{detail}: {_THEN[guarded]}"


def what_it_is(
    about: m.About | None, not_attached: m.NotAttachedReport | None, *, has_ended: bool = False, came_before: bool = False
) -> str:
    """What a command is to memsup, in a clause: by what it is attached, or why it is not. `about` is None where it is not.
    `has_ended`: what was attached is gone. `came_before`: in an earlier life it was attached.
    """
    if about is not None:
        which = "" if about.training == "1" else f", training {about.training}"
        return f"attached by {_SEAMS[about.seam]}{which}"
    if has_ended:
        return f"fenced only, since {HAS_ENDED}"
    so_far = " until then" if came_before and not_attached is None else ""
    return f"fenced only{so_far}, since {why_not_attached(not_attached, came_before=came_before)}"


def why_not_attached(not_attached: m.NotAttachedReport | None, *, came_before: bool = False) -> str:
    """Why nothing of a command is attached, a clause; None where nothing in it has said."""
    if not_attached is not None:
        return NOT_ATTACHED[not_attached.why]
    return NOT_YET_AGAIN if came_before else NOBODY_CALLED
