"""What runs that live at the same time leave each other of the machine's RAM. Pure.

A run's limit is a claim: it counts for as long as the run has a supervisor, also while its worker is gone (paused and released,
or between two lives), since a run that is resumed must find its share; and for as long as a worker whose supervisor died is
still there. GPU memory is not claimed: what each run may hold there
follows at any time from what all others really hold (`vram.py`). Claims are kept and found by `daemon/claims.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from memsup.shared.commands import command
from memsup.supervisor.words import columns, plural, size

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**60)]
_SPARE = 1.25
"""What a run is advised to be left is at least this many times what it is known to need or to hold."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may take of the machine."""

    run: str
    ram_bytes: _Bytes | None = None
    """The limit of its worker's whole tree. It is None where that is not known, as of a supervisor that just starts."""
    reserve_bytes: _Bytes = 0
    """What it leaves to the rest of the machine."""
    on_gpu: bool = False
    """Whether it may train on a GPU."""
    is_given: bool = True
    """Whether a person said how much that is. Otherwise it is the default, which takes all that is there for training."""
    needs_bytes: _Bytes | None = None
    """What its job was estimated to take at most. None: that is not known, as of a command."""
    checkpoints: str | None = None
    """The folder of its checkpoints, by its real name. It is None where that is not known."""
    is_over: bool = False
    """Whether its worker is gone for good, and its supervisor only says so to people before it goes as well."""
    waits: bool = False
    """Whether it is queued and takes nothing yet: it claims what is there when it begins."""
    run_id: str | None = None
    """What its fence is named after."""
    is_command: bool = False
    """Whether it runs a command, and not the built-in training."""
    is_left: bool = False
    """Whether its supervisor is gone, and what its worker started still runs."""
    holds_bytes: _Bytes | None = None
    """What its worker takes now. None: not known."""


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


def sharing(others: Sequence[Claim], checkpoints: str | None) -> str | None:
    """Why no run may keep its checkpoints in this folder beside `others`, for people. Returns None where it may."""
    other = next((claim for claim in others if checkpoints is not None and claim.checkpoints == checkpoints), None)
    if other is None:
        return None
    return (
        f"Run {other.run!r} is not over and keeps its checkpoints in {checkpoints}, where each run would delete the other's: "
        "choose another folder with checkpoint.folder."
    )


def sensible(others: Sequence[Claim], total_bytes: int, least_bytes: int) -> tuple[Claim, ...]:
    """The claims, without the figures of those that no run on a machine with `total_bytes` can have come to."""
    return tuple(
        claim
        if claim.ram_bytes is None or least_bytes <= claim.ram_bytes <= total_bytes - claim.reserve_bytes
        else msgspec.structs.replace(claim, ram_bytes=None, reserve_bytes=0)
        for claim in others
    )


def taken(others: Sequence[Claim]) -> str:
    """Who may take how much: `run 'a' may take 12 GiB and run 'b' 4 GiB`."""
    known = [claim for claim in others if claim.ram_bytes is not None]
    if not known:
        return "what other runs may take is not known"
    return " and ".join(f"{_name(claim)} {'may take ' if claim is known[0] else ''}{size(claim.ram_bytes)}" for claim in known)


def _name(claim: Claim) -> str:
    return f"what is left of run {claim.run!r}" if claim.is_left else f"run {claim.run!r}"


def about(others: Sequence[Claim]) -> str:
    """A sentence of what is known of the largest of `others` besides what it may take: what it needs or holds, and who decided.
    It is empty where nothing is.
    """
    claim = _largest(others)
    if claim.is_left:
        return f"Run {claim.run!r} has no supervisor any more, and its worker still runs."
    needs, holds = claim.needs_bytes, claim.holds_bytes
    what = f"is estimated to need {size(needs)} at most" if needs else f"takes {size(holds)} now" if holds else ""
    default = "" if claim.is_given else "may take that much only because its limits.ram was left at the default"
    clauses = " and ".join(filter(None, (what, default)))
    return f"Run {claim.run!r} {clauses}." if clauses else ""


def ways_to_share(others: Sequence[Claim], left_bytes: int, wanted_bytes: int | None, least_bytes: int) -> tuple[str, ...]:
    """What a person can type so that there is room beside the largest of `others`, in lines. All of them leave `left_bytes`;
    `wanted_bytes` is what the new run was told to take, and no run can do with less than `least_bytes`. It is None where
    nothing was said.
    """
    largest = _largest(others)
    stop, start = command("stop", largest.run), command("start", largest.run)
    if largest.is_left:
        return ("To end it, look after it again and stop it:", f"  {start}", f"  {stop}")
    wait = f"queue this run behind it (this start once more, with --after {largest.run})"
    both = left_bytes + (largest.ram_bytes or 0)
    floor = max(least_bytes, int(_SPARE * max(largest.needs_bytes or 0, largest.holds_bytes or 0)))
    again = "this start once more"
    if wanted_bytes is not None and both - wanted_bytes >= floor:
        share = both - wanted_bytes
    else:
        share = max(both // 2, floor)
        again += f", with --set limits.ram={rounded(both - share)}" if wanted_bytes is not None else ""
    if both - share < least_bytes:
        return (f"To make room, {wait}.",)
    ends = "ends its command" if largest.is_command else "checkpoints and stops it"
    less = f"{start} --set limits.ram={rounded(share)}"
    return (
        f"To make room, {wait}, or let it take less:",
        *("  " + line for line in columns([(stop, ends), (less, "goes on with less"), (again, "finds room then")])),
    )


def _largest(others: Sequence[Claim]) -> Claim:
    return max(others, key=lambda claim: claim.ram_bytes or 0)


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
