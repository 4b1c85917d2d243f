"""How a run goes on after the death of the whole machine: gentler, as it was, or not before a person says so. Pure.

Covers `recovery.after_power_loss`: what is wanted, and what it means in numbers and words. That the machine died is
`postmortem.py`'s verdict; the bounds are kept by `lifecycle.py` (micro-batch) and `devices.py` (set point, power limit). What a
machine died of is seldom known, so a gentle run takes less of everything that can bring one down: memory, heat, and the current
that a power supply has to give.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsup.shared.commands import command
from memsup.shared.record import RunRecord
from memsup.shared.settings import TierName
from memsup.shared.status import Wanted
from memsup.supervisor.decide.tiers import TIERS
from memsup.supervisor.words import count, percent

COOLER_BY_C = 5.0
POWER_FRACTION = 0.85
"""The part of the power limit that a gentle run takes: it costs a few percent of speed, and takes the peaks off the current."""
_TIER_BELOW: dict[str, TierName] = {"full": "safe", "safe": "low"}


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """How much less than usual a run takes when it goes on gently."""

    most_micro_tokens: int | None = None
    """The most tokens of a micro-batch. It is None where the settings alone bound it."""
    cooler_by_c: float = 0.0
    """How many degrees earlier everything is done about a temperature."""
    power_fraction: float = 1.0
    """The part of the GPU's power limit that may be drawn."""
    sentence: str | None = None
    """What is done otherwise and how to end that, for a person. It is None where the run goes on as it always does."""


UNRESTRAINED = Restraint()


def restraint_of(record: RunRecord, *, watches_gpus: bool) -> Restraint:
    """What the run takes less of now."""
    if not record.gentle or record.settings.recovery.after_power_loss != "gentle":
        return UNRESTRAINED
    most_tokens = None if record.command is not None else _tokens_of_the_tier_below(record)
    how = [] if most_tokens is None else [f"micro-batches of at most {count(most_tokens)} tokens"]
    how.append(f"everything {COOLER_BY_C:.0f} °C cooler")
    how += [f"{percent(POWER_FRACTION)} of the GPU's power limit, where the driver lets it be set"] if watches_gpus else []
    listed = " and ".join(filter(None, [", ".join(how[:-1]), how[-1]]))
    return Restraint(
        most_micro_tokens=most_tokens,
        cooler_by_c=COOLER_BY_C,
        power_fraction=POWER_FRACTION if watches_gpus else 1.0,
        sentence=f"Since the machine died it goes on gently: {listed}. As before: {command('stop', record.run)}, then "
        f"{command('start', record.run)}; never so: --set recovery.after_power_loss=same",
    )


def waits(record: RunRecord) -> str | None:
    """Why nothing is started after a death of the machine, and what to type. Returns None where the death does not keep the run
    from going on.
    """
    had_begun = record.queued is None
    if record.settings.recovery.after_power_loss != "ask" or record.wanted is not Wanted.RUNNING or not had_begun:
        return None
    start = command("start", record.run)
    return (
        f"It stays stopped, as recovery.after_power_loss is ask. Go on as before: {start}   "
        f"Go on gently: {start} --set recovery.after_power_loss=gentle"
    )


def _tokens_of_the_tier_below(record: RunRecord) -> int | None:
    asked = record.settings.training.micro_tokens
    if asked is None:
        return None
    below = TIERS[_TIER_BELOW.get(record.tier, "low")]
    return max(1, min(asked // 2, below.rows * below.max_length))
