"""How many ranks compute a run (docs/ranks.md). Pure; the supervisor tells it before torch is loaded, and the worker asks it
when it knows what torch sees.
"""

from __future__ import annotations

from memsup.shared.settings import Settings, SettingsError

MOST = 64
"""The most that `training.ranks` takes."""


def count_of_ranks(settings: Settings, cards: int | None) -> int:
    """As many as were asked for; else one for each of several `cards`, where the run can be shared out, or one. 0 of `cards`
    means that CPUs compute, and None that nobody knows how many there are.
    """
    training = settings.training
    if training.ranks is not None:
        return training.ranks
    if cards is None or names_one(training.device) or settings.task.stream or settings.nodes.count > 1 or settings.nodes.join:
        return 1
    return max(1, min(cards, training.effective_batch or 16, MOST))


def refuse_ranks_of_machines(settings: Settings) -> None:
    """Raises `SettingsError` for several ranks on one of several machines."""
    has_others = settings.nodes.count > 1 or settings.nodes.join is not None
    if has_others and (ranks := settings.training.ranks or 1) > 1:
        raise SettingsError(
            f"Of several machines each computes in one rank, with all of its threads: set training.ranks to 1 (not {ranks}), "
            "or leave the other machines out."
        )


def names_one(device: str) -> bool:
    """Whether `training.device` names one card of several."""
    return device.startswith("cuda:")
