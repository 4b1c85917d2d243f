"""What a program of a person's own is to memsup, in its own words: by which seam it is joined, what can be done for it, and why
something cannot. Pure.

The supervisor reads the same enums (`shared/messages.py`); what people read of them is in
`supervisor/decide/run/attachment.py`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

LEFT_AS_TOLD = 75
"""The exit code of a program that has left because it was told to, and not because it is done (EX_TEMPFAIL: to be gone on)."""
MOST_DETAIL = 200
"""Characters of `About.detail`."""


class Seam(str, enum.Enum):
    """Where a program and memsup are joined."""

    CALLS = "calls"
    """`memsup.guard(model=…)` and `run.steps`."""
    BOUNDARY = "boundary"
    """`memsup.guard(…)` and `run.boundary` in a loop of the program's own."""
    TRAINER = "trainer"
    """Hugging Face's Trainer, or a class made of it."""
    ACCELERATE = "accelerate"
    LIGHTNING = "lightning"


class NotCut(str, enum.Enum):
    """Why what a program computes at once is not cut where memory is short."""

    NO_BACKWARD = "no_backward"
    """It computes its gradients itself, and not by `run.backward`."""
    NOT_PROBED = "not_probed"
    """No batch was seen yet from which it could be told."""
    IN_BATCH = "in_batch"
    """Its loss compares the rows of a batch with each other."""
    BATCH_STATISTICS = "batch_statistics"
    CHANGES_ITSELF = "changes_itself"
    """The model changes its own buffers in each forward pass."""
    AUXILIARY_LOSS = "auxiliary_loss"
    DATA_PARALLEL = "data_parallel"
    SEVERAL_RANKS = "several_ranks"
    DRAWN_COMPLETIONS = "drawn_completions"
    STEPS_IN_BACKWARD = "steps_in_backward"
    NOT_A_SCALAR = "not_a_scalar"
    """Its loss is not one number in a tensor."""
    NO_ROWS = "no_rows"
    """There is nothing along which a batch could be cut."""
    FAILED_IN_PROBE = "failed_in_probe"
    """Its loss could not be computed for some rows of a batch."""
    UNKNOWN = "unknown"
    """No weighting of the parts gives the loss of the whole batch."""
    NO_BOUNDARY = "no_boundary"
    """It is attached, but came to no boundary within its first step."""
    OTHER = "other"
    """As `About.detail` says."""


class NotAttached(str, enum.Enum):
    """Why a process that could have been attached is not."""

    NOT_MAIN_THREAD = "not_main_thread"
    SEVERAL_RANKS = "several_ranks"
    OTHER_RUN = "other_run"
    """The folder has another run's checkpoints."""
    OTHER_PROGRAM = "other_program"
    """Another program of the same command has begun a training here, and not ended it."""
    UNREADABLE = "unreadable"
    """Its checkpoints cannot be told."""
    NO_SUPERVISOR = "no_supervisor"
    TURNED_AWAY = "turned_away"
    """Another process of the command is attached, or this one is none of it."""
    NO_ATTACH = "no_attach"
    """Somebody asked for that."""
    NO_TRAINER = "no_trainer"
    """What trains is nothing that memsup knows."""


class About(NamedTuple):
    """What is so of a program that is attached."""

    seam: Seam
    training: str = "1"
    """The key of the training that runs now."""
    saves: bool = True
    """Whether it has given memsup something to save."""
    cuts: bool = False
    """Whether what it computes at once is cut where memory is short."""
    not_cut: NotCut | None = NotCut.NO_BACKWARD
    """Why not. It is None where it is cut."""
    detail: str = ""
    """What the enums do not say of that, a clause: which module, say."""
