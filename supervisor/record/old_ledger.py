"""The former format of the ledger's lines, which never changes again, and what its sentences say to programs. Pure.

Lines of that format have no `v`. They say by whom, what was ordered and what came of it in words alone, whose wording this
module knows by heart. It is the only one that may: whoever reads lines of today reads their typed fields.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from memsup.shared.messages import PauseMode
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.restarts import Cause

T = TypeVar("T")

_ORDERS = {
    "halve the micro-batch": OrderKind.HALVE,
    "stop growing the micro-batch": OrderKind.STOP_GROWING,
    "let the micro-batch grow": OrderKind.GROW,
    "micro-batches of at most ": OrderKind.LIMIT_TOKENS,
    "take at most ": OrderKind.LIMIT_MEMORY,
    "compute ": OrderKind.PACE,
    "pause (hold)": OrderKind.HOLD,
    "pause (release)": OrderKind.RELEASE,
    "resume": OrderKind.RESUME,
    "checkpoint": OrderKind.CHECKPOINT,
    "stop": OrderKind.STOP,
}
"""How the action of an order begins. "stop" comes after the longer one that begins with it."""
_OUTCOMES = {"done": Outcome.DONE, "failed": Outcome.FAILED, "no answer in time": Outcome.UNANSWERED}
_MOVES = {"ladder up": Move.UP, "ladder down": Move.DOWN, "shrink": Move.SHRINK, "release": Move.RELEASE}
_WISHES = {
    "running": (Wanted.RUNNING, None),
    "stopped": (Wanted.STOPPED, None),
    "paused (hold)": (Wanted.PAUSED, PauseMode.HOLD),
    "paused (release)": (Wanted.PAUSED, PauseMode.RELEASE),
}
_PRESSURES = {"°C": HoldReason.HEAT, "disk": HoldReason.DISK, "runs on its battery": HoldReason.POWER}
_MEMORY_RUNGS = {"stop_growing", "shrink", "freeze", "kill"}
_ASKERS = {
    "the user asked": By.USER,
    "asked to stop now": By.USER,
    "the supervisor was told to go": By.SYSTEM,
    "what it has computed cannot be saved": By.SUPERVISOR,
    "gentler since the machine died": By.SUPERVISOR,
}
_UNRESPONSIVE = ("no sign of life", "not a word", "it did not carry out")
_NOT_OF_THIS_LIFE = ("a command that a supervisor", "the earlier worker", "the command did not end", "asked to stop now")
_DELIVERED = {"delivered": True, "not delivered": False, "pings arrive": True, "pings do not arrive": False}
_TOKENS = re.compile(r"micro-batch ([0-9,]{1,20}) → ([0-9,]{1,20}) tokens")
_PERCENT = re.compile(r"compute ([0-9]{1,3})% of the time")
_RESTART = re.compile(r"restart in ([0-9.]{1,12}) s \(([a-z_]+)\)")


def typed_fields(line: Record) -> dict[str, Any]:
    """The fields of `Record` that the words of `line` tell, by name. What they don't tell stays unknown."""
    action = line.action or ""
    match line.event:
        case Event.ORDER:
            return _order(line, action)
        case Event.RUNG:
            return {"by": By.LADDER, "move": _MOVES.get(action), "pressures": _pressures(line)}
        case Event.FREEZE:
            return {"by": _asker(line, By.LADDER), "pressures": _pressures(line)}
        case Event.KILL:
            return _kill(line)
        case Event.DEATH:
            return _death(action)
        case Event.SMALLER | Event.OUT_OF_MEMORY:
            return {"tokens": _tokens(action)}
        case Event.WANTED:
            wanted, pause_mode = _WISHES.get(action, (None, None))
            return {"by": _asker(line, By.SUPERVISOR), "wanted": wanted, "pause_mode": pause_mode}
        case Event.POSTMORTEM if line.reason.endswith("the machine lived on."):
            return {"machine_died": False}
        case Event.MESSAGE:
            return {"delivered": _DELIVERED.get(line.result or "")}
        case _:
            return {}


def _order(line: Record, action: str) -> dict[str, Any]:
    order, percent = _first(_ORDERS, action), _PERCENT.match(action)
    return {
        "by": None if order is OrderKind.RESUME else _asker(line, By.LADDER),
        "order": order,
        "outcome": _first(_OUTCOMES, line.result or ""),
        "pressures": _pressures(line),
        "duty_fraction": min(1.0, int(percent[1]) / 100) if percent else None,
    }


def _kill(line: Record) -> dict[str, Any]:
    if line.rung is not None:
        return {"by": By.LADDER, "cause": Cause.MEMORY, "pressures": (HoldReason.MEMORY,)}
    if line.reason.startswith(_NOT_OF_THIS_LIFE):
        return {"by": _asker(line, By.SUPERVISOR)}
    return {"by": By.SUPERVISOR, "cause": Cause.UNRESPONSIVE if line.reason.startswith(_UNRESPONSIVE) else Cause.HANG}


def _death(action: str) -> dict[str, Any]:
    restart = _RESTART.fullmatch(action)
    if restart is None:
        return {"again": False if action == "gave up" else None}
    cause = Cause(restart[2]) if restart[2] in set(Cause) else None
    return {"again": True, "delay_s": _number(restart[1]), "cause": cause}


def _tokens(action: str) -> tuple[int, int] | None:
    found = _TOKENS.match(action)
    if found is None:
        return None
    before, after = (number.replace(",", "") for number in found.groups())
    return (int(before), int(after)) if before and after else None


def _number(digits: str) -> float | None:
    try:
        return float(digits)
    except ValueError:
        return None


def _pressures(line: Record) -> tuple[HoldReason, ...]:
    told = [pressure for words, pressure in _PRESSURES.items() if words in line.reason]
    for_memory = line.rung in _MEMORY_RUNGS or (line.rung == "hold" and not told)
    return tuple([HoldReason.MEMORY, *told] if for_memory else told)


def _asker(line: Record, otherwise: By) -> By:
    return _first(_ASKERS, line.reason) or otherwise


def _first(table: dict[str, T], text: str) -> T | None:
    """What stands in `table` beside the beginning of `text`."""
    return next((meaning for begins, meaning in table.items() if text.startswith(begins)), None)
