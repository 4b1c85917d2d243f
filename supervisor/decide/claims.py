"""What runs that live at the same time leave each other of the machine's RAM. Pure.

A run's limit is a claim: it counts for as long as the run has a supervisor, also while its worker is gone (paused and released,
or between two lives), since a run that is resumed must find its share. GPU memory is not claimed: what each run may hold there
follows at any time from what all others really hold (`vram.py`). Claims are kept and found by `daemon/claims.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from memsup.shared.commands import command
from memsup.supervisor.words import plural, size

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may take of the machine."""

    run: str
    ram_bytes: _Bytes | None = None
    """The limit of its worker's whole tree. It is None where that is not known, as of a supervisor that just starts."""
    reserve_bytes: _Bytes = 0
    """What it leaves to the rest of the machine."""
    on_gpu: bool = False
    """Whether it may train on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a run's limits have to take into account besides the machine: what was claimed before."""

    others: tuple[Claim, ...] = ()
    """The claims of the runs that live, without this one's."""
    own_bytes: int | None = None
    """What this run itself claimed when a person started it last. A supervisor that begins without a person, as at a boot,
    takes no more than that, so that runs that did fit beside each other do so again, whichever comes first. It is None where a
    person starts it.
    """

    @property
    def claimed_bytes(self) -> int:
        """What the other runs may take together, as far as it is known."""
        return sum(claim.ram_bytes or 0 for claim in self.others)

    @property
    def reserve_bytes(self) -> int:
        """The largest reserve that another run keeps."""
        return max((claim.reserve_bytes for claim in self.others), default=0)


ALONE = Beside()


def taken(others: Sequence[Claim]) -> str:
    """Who may take how much: `run 'a' may take 12 GiB and run 'b' 4 GiB`."""
    known = [claim for claim in others if claim.ram_bytes is not None]
    if not known:
        return "what other runs may take is not known"
    return " and ".join(
        f"run {claim.run!r} {'may take ' if claim is known[0] else ''}{size(claim.ram_bytes)}" for claim in known
    )


def ways_to_share(others: Sequence[Claim], room_bytes: int, least_bytes: int) -> str:
    """What a person can type so that there is room beside the largest of `others`. All share `room_bytes`, and a run needs
    `least_bytes`.
    """
    largest = max(others, key=lambda claim: claim.ram_bytes or 0).run
    share = room_bytes // (len(others) + 1)
    wait = f"wait until run {largest!r} has ended ({command('wait', largest)})"
    if share < least_bytes:
        return wait
    again = f"{command('start', largest)} --set limits.ram={rounded(share)}"
    return f"{wait}, or let it take less ({command('stop', largest)}, then for example {again})"


def rounded(size_bytes: int) -> str:
    """A size to be typed, which is not more than `size_bytes`."""
    gib, mib = 2**30, 2**20
    return f"{size_bytes // gib}GiB" if size_bytes >= 4 * gib else f"{max(1, size_bytes // mib)}MiB"


def notes_on(others: Sequence[Claim], *, on_gpu: bool) -> list[str]:
    """Sentences about what cannot be shared out beforehand."""
    unknown = [claim.run for claim in others if claim.ram_bytes is None]
    sentences = [f"Run {run!r} lives as well, and what it may take is not known (it is just starting?)." for run in unknown]
    on_gpus = [claim.run for claim in others if claim.on_gpu]
    if on_gpu and on_gpus:
        sentences.append(
            f"{plural(len(on_gpus), 'other run')} may train on a GPU as well ({', '.join(on_gpus)}). GPU memory is not shared "
            "out beforehand: each run keeps to what the others leave of limits.vram at that moment."
        )
    return sentences
