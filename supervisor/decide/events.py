"""What a line of the ledger can be about, and who or what brought it about: the words that programs match on. Pure.

A line's sentences are for people and may be improved or translated at any time. Report, drill and tests read these enums and
the typed fields of `run/actions.Record`, never a sentence.
"""

from __future__ import annotations

import enum


class Event(enum.StrEnum):
    """The kinds of lines that the ledger has (docs/ledger.md)."""

    RUNG = "rung"
    """The ladder moved, or asked for something on the rung where it stands."""
    ORDER = "order"
    """The worker answered an order, or did not in time."""
    OUT_OF_MEMORY = "out_of_memory"
    """The worker caught an error for memory and did the step again."""
    FREEZE = "freeze"
    """The worker's whole tree stands still."""
    THAW = "thaw"
    """The worker's whole tree goes on."""
    KILL = "kill"
    """The worker's whole tree was killed."""
    DEATH = "death"
    """The worker is gone without having been told to go."""
    SMALLER = "smaller"
    """The next life begins with smaller micro-batches."""
    RECOVERED = "recovered"
    """The worker trains again after a death."""
    WANTED = "wanted"
    """Another state is wanted of the run."""
    WAITS = "waits"
    """The run is queued and has not begun: it waits for other runs, or for room beside them."""
    BEGINS = "begins"
    """The run was queued, and it is its turn."""
    ATTACHED = "attached"
    """A command of the user's own reports and takes orders from now on."""
    FOUND = "found"
    """A worker of an earlier supervisor is still here."""
    LEFT = "left"
    """The worker left as it was told."""
    NOT_STARTED = "not started"
    """The worker could not be started, for want of something that may come back."""
    OUTLIVED = "outlived"
    """A command has ended, and what it has started runs on."""
    GIVEN_BACK = "given back"
    """What came back of the memory of a worker that is gone."""
    HANG = "hang"
    """The worker's main thread got nothing done for longer than it ever took."""
    END = "end"
    """The run is over."""
    CHECKPOINT_DAMAGED = "checkpoint_damaged"
    """The worker found a checkpoint damaged and set it aside."""
    CHECKPOINT_USED = "checkpoint_used"
    """The worker went on from an older checkpoint, or began anew, since newer ones were damaged."""
    CHECKPOINT_GONE = "checkpoint_gone"
    """The newest checkpoint was taken away, or its description damaged: the run goes on from an older one, or begins anew."""
    CHECKPOINT_FAILED = "checkpoint_failed"
    """A checkpoint that was due could not be written; the ones before it count."""
    BEST_LOST = "best_lost"
    """The checkpoint with the best result was to become the model, and is damaged or gone; the last one has."""
    STOPPED_EARLY = "stopped_early"
    """Training has ended before its last step, since evaluations found nothing better any more."""
    ROWS_LEFT_OUT = "rows_left_out"
    """The worker does not train on rows that the data has."""
    CUT_REFUSED = "cut_refused"
    """The worker computes in another way than was asked for: the model would see it, or does not know it."""
    OTHER_BITS = "other_bits"
    """The run goes on where it computes other last bits than before, as with another number of threads."""
    SETTINGS = "settings"
    """A person gave other settings to the run while it was up, and it took them over."""
    SHARED = "shared"
    """Other runs live, and the worker's limit is what they leave, or less."""
    PROTECTION = "protection"
    """The supervisor could do something for its own safety."""
    NO_PROTECTION = "no protection"
    """The supervisor could not do something for its own safety."""
    ATTENTION = "attention"
    """Something about heat, a GPU or a sensor that a person should look at."""
    POSTMORTEM = "postmortem"
    """What the last death of the machine or of the supervisor was, most likely."""
    GARBAGE = "garbage"
    """Something on the sockets was no message of memsup's."""
    CLOCK = "clock"
    """The date was set, or the machine slept."""
    MESSAGE = "message"
    """A message to a person arrived, or did not."""


class By(enum.StrEnum):
    """Who or what brought about the event of a line."""

    USER = "user"
    LADDER = "ladder"
    SUPERVISOR = "supervisor"
    WORKER = "worker"
    SYSTEM = "system"
    """The machine or its service manager, as at a shutdown."""


class OrderKind(enum.StrEnum):
    """What the worker was ordered to do."""

    CHECKPOINT = "checkpoint"
    HALVE = "halve"
    """The worker is to halve the micro-batch that it uses now."""
    STOP_GROWING = "stop_growing"
    GROW = "grow"
    """The micro-batch may grow again."""
    LIMIT_TOKENS = "limit_tokens"
    """The micro-batch has at most so many tokens from now on."""
    LIMIT_MEMORY = "limit_memory"
    """Torch may reserve at most so much of the GPU."""
    PACE = "pace"
    """The worker is to compute for a part of the time."""
    HOLD = "hold"
    """The worker is to keep its memory and stop computing."""
    RELEASE = "release"
    """The worker is to write a checkpoint and leave, for the memory that it holds."""
    RESUME = "resume"
    STOP = "stop"


class Outcome(enum.StrEnum):
    """What became of an order."""

    DONE = "done"
    FAILED = "failed"
    UNANSWERED = "unanswered"


class Move(enum.StrEnum):
    """What the ladder did."""

    UP = "up"
    DOWN = "down"
    SHRINK = "shrink"
    """The ladder stays on its rung and asks for a smaller micro-batch."""
    RELEASE = "release"
    """The ladder stays on its rung and asks for all memory back."""
