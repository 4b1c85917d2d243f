"""Where a program that is not attached has its GPU memory: on the card, or in RAM, whereto the driver can move it. Pure.

Nothing can be asked of such a program, but the driver can take all that it has on the card into host memory and bring it back
onto the same card, the same bits at the same addresses (CUDA's process checkpointing), without the program's knowing. So it
gives its card to others and goes on later. The driver works inside of the program's own processes, so they are frozen only
before and afterwards. Why the card is to be given up is `standing.py`'s; who asks the driver, `fence/card.py`.

Whatever goes wrong on the way out is undone: the program goes on as if nobody had asked. What the driver was in the middle of
when whoever asked it died is found out by asking it for each process, so that every move is begun anew from wherever it stands.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from memsup.shared.commands import command
from memsup.supervisor.decide.ladder import MemoryLimits
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.uses import STOP_GROWING_USE
from memsup.supervisor.words import size

LOCK_WITHIN_S = 10.0
"""What a program has already given the card to do is to be done after so many seconds; else it keeps the card."""
STARTS_WITHIN_S = 20.0
"""The driver has so many seconds beside those that the lock and the bytes take; it opens the card first."""
SLOWEST_BYTES_PER_S = 1 << 30
"""No bus that a card is trained on is slower; host memory has to be made for all of it as well."""
AGAIN_AFTER_S = 30.0
"""What could not be brought back onto the card is tried again after this many seconds."""


class Place(enum.Enum):
    """Where the program has its GPU memory."""

    ON_CARD = enum.auto()
    """On the card, as it came; or it has none."""
    LEAVING = enum.auto()
    """The driver moves it into RAM."""
    IN_RAM = enum.auto()
    RETURNING = enum.auto()
    """The driver moves it back, or undoes what it had begun."""
    STUCK = enum.auto()
    """It could be moved neither back nor away, and is somewhere between; either is tried again."""
    LOST = enum.auto()
    """The driver says that it is lost. CUDA is dead in the program from then on."""


MOVES = {
    Place.ON_CARD: frozenset({Place.LEAVING}),
    Place.LEAVING: frozenset({Place.IN_RAM, Place.ON_CARD, Place.RETURNING, Place.STUCK, Place.LOST}),
    Place.IN_RAM: frozenset({Place.RETURNING}),
    Place.RETURNING: frozenset({Place.ON_CARD, Place.IN_RAM, Place.STUCK, Place.LOST}),
    Place.STUCK: frozenset({Place.LEAVING, Place.RETURNING}),
    Place.LOST: frozenset[Place](),
}
"""The places that may follow each place."""


MOVING = frozenset({Place.LEAVING, Place.RETURNING, Place.STUCK})
"""Nobody can tell then whose the memory on the card is."""


class Whole(enum.StrEnum):
    """Where all processes of a program are with their GPU memory, as the driver says."""

    RUNNING = "running"
    """All of them compute on the card, or have ended."""
    CHECKPOINTED = "checkpointed"
    BETWEEN = "between"
    """Some are locked, or are not where the others are; or it is not known."""
    FAILED = "failed"
    """One of them is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What came of a move."""

    whole: Whole
    why: str | None = None
    """Why it is not what was asked for, a clause. It is None where it is."""
    never: bool = False
    """Whether there is no use in trying it again with this driver and this program."""


GONE = Moved(whole=Whole.BETWEEN, why="what asks the driver ended before it had an answer")
TOO_LATE = Moved(whole=Whole.BETWEEN, why="the driver did not do it in time")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """What is known of what the program has on the card, and of the room for that in RAM."""

    holders: Mapping[int, int | None] | None = None
    """The bytes on the card by process; None where the driver does not tell how many. The whole is None where it is not known
    which processes are the program's; empty where none has anything there."""
    is_hidden: bool = False
    """Whether the driver tells processes by numbers that they do not have here."""
    room_bytes: int | None = None
    """What RAM has room for. It is None where that is not known."""

    @property
    def needed_bytes(self) -> int | None:
        """The RAM that the move takes. It is None where that is not known."""
        if self.holders is None:
            return None
        known = [held for held in self.holders.values() if held is not None]
        return sum(known) if len(known) == len(self.holders) else None

    @property
    def why_not(self) -> str | None:
        """Why the driver is not asked to move it, a clause. It is None where it is."""
        needed = self.needed_bytes
        if self.is_hidden:
            known_by = "processes have other numbers here than the driver knows them by, as in a container"
            return f"{known_by}, so which memory on the card is its own is not known"
        if needed is None:
            return "the driver does not tell how much of the card is its own"
        if self.room_bytes is None:
            return "how much RAM is free is not known"
        if needed > self.room_bytes:
            return f"that takes {size(needed)} of RAM, and its limit and the machine have room for {size(self.room_bytes)}"
        return None


def room_bytes(memory: MemoryReading, limits: MemoryLimits) -> int | None:
    """What may come into RAM beside what is there, so that the ladder sees no reason to act. Returns None where that is not
    known.
    """
    total, available, worker = memory.ram_total_bytes, memory.ram_available_bytes, memory.worker_bytes
    if total is None or available is None or worker is None:
        return None
    of_worker = STOP_GROWING_USE * limits.worker_bytes - worker
    of_machine = STOP_GROWING_USE * (total - limits.reserve_bytes) - (total - available)
    return max(0, int(min(of_worker, of_machine)))


@dataclass
class Card:
    """The GPU memory of one life of a program."""

    place: Place = Place.ON_CARD
    pids: tuple[int, ...] = ()
    """The processes whose memory was moved, in the order in which they are locked."""
    held_bytes: int = 0
    """What they had on the card."""
    has_come_back: bool = False
    """Whether it was moved away and back once, so that the driver can do that with this program."""
    cannot: str | None = None
    """Why it could not leave the card, a clause. It is None where that was not tried since there was a reason to."""
    never: bool = False
    """Whether there is no use in trying that again."""
    trouble: str | None = None
    """Why it could not be brought back, a clause. It is None where it could, or was not to be."""
    again_at_s: float = 0.0
    """What could not be brought back is to be tried again then."""
    due_s: float = 0.0
    """A move is to be over by then."""

    @property
    def moves(self) -> bool:
        """Whether the driver is at it, which takes processes that run."""
        return self.place in (Place.LEAVING, Place.RETURNING)

    @property
    def is_off(self) -> bool:
        """Whether the card is given up."""
        return self.place is Place.IN_RAM

    def leave(self, now_s: float, view: CardView) -> None:
        """The driver is asked to move all that the program has on the card into RAM."""
        if self.place is Place.ON_CARD:
            self.pids, self.held_bytes = tuple(sorted(view.holders or ())), view.needed_bytes or 0
        self._enter(Place.LEAVING, now_s)

    @staticmethod
    def found(pids: tuple[int, ...]) -> Card:
        """The GPU memory of a program that an earlier supervisor has left, which was at moving that of these processes."""
        return Card(Place.STUCK, pids) if pids else Card()

    def why_not_unasked(self, view: CardView) -> str | None:
        """Why nobody but a person may have it moved, a clause. It is None where others may as well.

        A program does not always survive a move that the driver gives up half-way. What several processes share is what it
        most often cannot move.
        """
        if self.has_come_back or self.place is not Place.ON_CARD or len(view.holders or ()) < 2:
            return None
        return "several of its processes have memory there, and the driver might lose one of them; a person may have it tried"

    def come_back(self, now_s: float) -> None:
        """The driver is asked to move it back, or to undo what was begun."""
        self._enter(Place.RETURNING, now_s)

    def moved(self, now_s: float, moved: Moved, *, stands: bool) -> bool:
        """Takes in what came of a move. Returns whether what was begun is to be undone now: while the program `stands` still
        the driver cannot do that, so it is stuck until it runs.
        """
        was = self.place
        if moved.whole is Whole.FAILED:
            self.trouble = moved.why or "the driver does not say why"
            self.cannot, self.never = self.trouble, True
            self._enter(Place.LOST, now_s)
        elif was is Place.LEAVING:
            if moved.whole is Whole.CHECKPOINTED:
                self._enter(Place.IN_RAM, now_s)
                return False
            self.cannot, self.never = moved.why or "the driver did not do it", moved.never
            undone = Place.STUCK if stands else Place.RETURNING
            self._enter(Place.ON_CARD if moved.whole is Whole.RUNNING else undone, now_s)
            return self.place is Place.RETURNING
        elif moved.whole is Whole.RUNNING:
            self.trouble, self.has_come_back = None, self.has_come_back or self.cannot is None
            self._enter(Place.ON_CARD, now_s)
        else:
            self.trouble, self.again_at_s = moved.why or "the driver did not do it", now_s + AGAIN_AFTER_S
            self._enter(Place.IN_RAM if moved.whole is Whole.CHECKPOINTED else Place.STUCK, now_s)
        return False

    def is_late(self, now_s: float, *, stands: bool) -> bool:
        """Whether a move has taken too long. Where the program `stands` still, since memory is short, it has its time again."""
        if self.moves and stands:
            self.due_s = max(self.due_s, now_s + self._within_s)
        return self.moves and now_s > self.due_s

    def sentence(self, run: str) -> str | None:
        """That what the program of `run` had on the GPU could not be brought back, for people. Returns None where it could."""
        if self.trouble is None:
            return None
        then = "CUDA is dead in it" if self.place is Place.LOST else f"it is tried again every {AGAIN_AFTER_S:.0f} s"
        give_up = f"To give the program up: {command('stop', run)} --now"
        return f"What the program had on the GPU could not be brought back: {self.trouble}; {then}. {give_up}"

    @property
    def _within_s(self) -> float:
        return STARTS_WITHIN_S + LOCK_WITHIN_S + self.held_bytes / SLOWEST_BYTES_PER_S

    def _enter(self, place: Place, now_s: float) -> None:
        assert place in MOVES[self.place], f"{self.place} → {place}"
        self.place, self.due_s = place, now_s + self._within_s
