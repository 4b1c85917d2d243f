"""The plan in force from a step on, as a value. Pure; `journal.py` keeps it.

Four bounds make a micro-batch: where the settings start, what the supervisor allows now (`limit`), what running out of memory
has taught (`ceiling`), and what is predicted to fit (`bands`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from memsup.worker.plan.cost import Costs


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How steps are cut from `step` (counted from 1) on. Tokens are rows × padded length."""

    step: int
    """The first step for which this holds."""
    start: int
    """Most tokens of a micro-batch: as the settings have it, and as far as the planner has gone since."""
    limit: int | None = None
    """The most that the supervisor allows now. None means that it sets no limit."""
    ceiling: int | None = None
    """The most that running out of memory has taught; the planner raises it again, step by step. None means that memory has
    sufficed so far."""
    activation_checkpointing: bool = False
    """Whether all micro-batches compute their activations twice instead of keeping them."""
    checkpointed_from: int | None = None
    """The padded length from which on micro-batches compute their activations twice. None means that length decides nothing."""
    on_host_from: int | None = None
    """On a GPU, the padded length from which on micro-batches keep their activations in host memory. None means that none
    do."""
    bands: tuple[int, ...] = ()
    """The most tokens that fit, as predicted, of a micro-batch padded to at most 16, 32, 64, … tokens. The last one speaks of
    all longer ones, too. Empty means that nothing is predicted yet."""
    threads: int | None = None
    """How many threads compute; another number gives other bits. None stands in journals of before the question was asked."""
    costs: Costs | None = None
    """What micro-batches cost, so that the cheapest cut is taken. None means that it is not known, and the fewest micro-batches
    are."""
    lanes: int = 1
    """How many parts of a micro-batch are computed side by side where memory allows it (`compute/lanes.py`): 1 or 2."""
    one_lane: bool = msgspec.field(default=False, name="single")  # as journals and checkpoints have always called it
    """Memory is short, so one lane has to do."""
    equal_lengths: bool = False
    """Whether only rows of one length are computed together, since the model sees padding (`padding.py`)."""
    packed: bool = False
    """Whether layers see no padding (`compute/packing.py`): tokens are the rows' own then, and a micro-batch padded to a length
    is one whose longest row has it."""
    shares: tuple[int, ...] = ()
    """The part of a step's tokens that each rank computes, in thousandths (`ranks/shares.py`). Empty means that all compute the
    same."""
    planned_bytes: int | None = None
    """What micro-batches were planned to take at most when this was decided. None stands in journals of before it was kept, and
    where nobody knew."""
    ranks: int = 1
    """How many ranks compute. Another number gives other bits, and needs other threads."""
    cause: str
    at_unix_s: float

    @property
    def micro_tokens(self) -> int:
        """The most tokens of a micro-batch of short rows; long rows may have a lower bound."""
        return self.most_tokens(1)

    def most_tokens(self, length: int) -> int:
        """The most tokens of a micro-batch padded to `length`. Where they are fewer than `length`, it is one row."""
        fits = self.bands[min(band_of(length), len(self.bands) - 1)] if self.bands else None
        return min(bound for bound in (self.start, self.limit, self.ceiling, fits) if bound is not None)

    @property
    def lanes_used(self) -> int:
        """The number of lanes that micro-batches are computed in now."""
        return 1 if self.one_lane else self.lanes

    def keeps_on_host(self, length: int) -> bool:
        """Whether a micro-batch padded to `length` keeps its activations in host memory."""
        return self.on_host_from is not None and length >= self.on_host_from

    def checkpoints_activations(self, length: int) -> bool:
        """Whether a micro-batch padded to `length` computes its activations twice instead of keeping them."""
        if self.keeps_on_host(length):
            return False
        return self.activation_checkpointing or (self.checkpointed_from is not None and length >= self.checkpointed_from)

    def cut_fields(self) -> dict[str, Any]:
        """All that follows from what memory and time allow, as fields, without what the supervisor says."""
        return {name: getattr(self, name) for name in _OF_THE_CUT}

    def same_cuts(self, other: Entry) -> bool:
        """Whether a step has the same bits under this entry as under the other."""
        return self._cuts() == other._cuts()

    def _cuts(self) -> tuple[object, ...]:
        bounds = tuple(self.most_tokens(band_length(band)) for band in range(max(len(self.bands), 1)))
        activations = self.activation_checkpointing, self.checkpointed_from, self.on_host_from
        return self.costs, bounds, activations, self.lanes_used, self.equal_lengths, self.packed


_OF_THE_CUT = (
    "start",
    "ceiling",
    "activation_checkpointing",
    "checkpointed_from",
    "on_host_from",
    "bands",
    "costs",
    "one_lane",
)


def band_of(length: int) -> int:
    """The place among `Entry.bands` that speaks of micro-batches padded to `length`."""
    return max(0, (length - 1).bit_length() - 4)


def band_length(band: int) -> int:
    """The greatest length of a band."""
    return 16 << band


def in_force(entries: list[Entry], step: int) -> Entry | None:
    """The entry that holds for `step`, of `entries` in the order of their steps. None means that they begin later."""
    return next((entry for entry in reversed(entries) if entry.step <= step), None)


def appended(entries: list[Entry], new: Entry) -> list[Entry]:
    """`entries`, in the order of their steps, with `new` in place of all that would hold from its step on."""
    return [entry for entry in entries if entry.step < new.step] + [new]
