"""What was done to a run, or befell it, by the lines of its ledger: what curves mark and `memsup metrics` counts. Pure.

Reads of a line only what it has for programs (docs/ledger.md). How long an intervention lasted and what it cost is worked
out in `supervisor/report/interventions.py`, from all lines together.
"""

from __future__ import annotations

import enum

import msgspec

MOST_LINE_BYTES = 1 << 20
"""A line that is longer than this is none of the ledger's."""


class Intervention(enum.StrEnum):
    """One kind of thing that is done to a run, or befalls it."""

    PAUSE = "pause"
    """A person paused it."""
    STOP = "stop"
    """A person had it stop."""
    PACE = "pace"
    """It computes with gaps, to stay cool."""
    SMALLER = "smaller"
    """Its micro-batches were made smaller, since memory is short."""
    OUT_OF_MEMORY = "out_of_memory"
    """Memory ran out within a step, which was done again."""
    HOLD = "hold"
    """It stands still and keeps its memory."""
    RELEASE = "release"
    """It saved and gave its memory back."""
    FREEZE = "freeze"
    KILL = "kill"
    DEATH = "death"
    RESTART = "restart"
    """It trains again after a death."""
    REBOOT = "reboot"
    """The machine died under it."""


class Line(msgspec.Struct, frozen=True):
    """A line of the ledger, as far as it is needed here."""

    event: str
    at: float
    reason: str = ""
    action: str | None = None
    step: int | None = None
    by: str | None = None
    order: str | None = None
    outcome: str | None = None
    wanted: str | None = None
    duty_fraction: float | None = None
    machine_died: bool | None = None


_decoder = msgspec.json.Decoder(Line)
_OF_EVENT = {
    "out_of_memory": Intervention.OUT_OF_MEMORY,
    "smaller": Intervention.SMALLER,
    "freeze": Intervention.FREEZE,
    "kill": Intervention.KILL,
    "death": Intervention.DEATH,
    "recovered": Intervention.RESTART,
}
_OF_ORDER = {
    "halve": Intervention.SMALLER,
    "limit_tokens": Intervention.SMALLER,
    "pace": Intervention.PACE,
    "hold": Intervention.HOLD,
    "release": Intervention.RELEASE,
}
_OF_WISH = {"paused": Intervention.PAUSE, "stopped": Intervention.STOP}
_BY_A_WISH = ("order", "freeze", "kill")
"""What carries out a person's wish, which has a line of its own: a command is paused by a freeze, and `stop --now` kills."""


def read_line(line: bytes) -> Line | None:
    """The line. Returns None for what is none: torn, of somebody else, or of a format that is not known."""
    if len(line) > MOST_LINE_BYTES:
        return None
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def kind_of(line: Line) -> Intervention | None:
    """What the line tells of. Returns None where that is no intervention, or none that was carried out."""
    if line.by == "user" and line.event in _BY_A_WISH:
        return None
    match line.event:
        case "order":
            found = _OF_ORDER.get(line.order or "") if line.outcome == "done" else None
            at_full_pace = found is Intervention.PACE and line.duty_fraction in (None, 1.0)
            return None if at_full_pace else found
        case "wanted":
            return _OF_WISH.get(line.wanted or "") if line.by == "user" else None
        case "postmortem":
            return Intervention.REBOOT if line.machine_died else None
        case event:
            return _OF_EVENT.get(event)
