"""What a run that is up takes over of settings that are given later: what may change, what has room, and what is said. Pure.

Refuses (`SettingsError`) what would be another training, and a limit that the worker is beyond already: the fence would have to
kill it, where a person can have it give its memory back first.
"""

from __future__ import annotations

from collections.abc import Collection

from memsup.shared.commands import command
from memsup.shared.settings import Settings, SettingsError, keys
from memsup.supervisor.decide.ladder import FREEZE_FROM_USE
from memsup.supervisor.decide.tiers import Limits
from memsup.supervisor.words import size

OF_THE_WORKER = frozenset(
    {
        "checkpoint.every",
        "checkpoint.keep",
        "training.evaluate_every",
        "training.patience",
        "training.report_to",
        "training.ranks",
        "training.shard",
    }
)
"""What a worker reads when it starts, and not again."""


def changed(has: Settings, asked: Settings) -> frozenset[str]:
    """The keys whose values differ. Raises `SettingsError` where one of them may not change while a run lasts."""
    differ = frozenset(name for name, key in keys().items() if key.value(has) != key.value(asked))
    fixed = sorted(name for name in differ if not keys()[name].may_change)
    if fixed:
        raise SettingsError(f"A run keeps its {' and '.join(fixed)}: with another value it would be another training.")
    return differ


def concerns_limits(differ: Collection[str]) -> bool:
    """Whether what the run may take of the machine is to be reckoned anew."""
    return any(keys()[name].section == "limits" for name in differ)


def concerns_hours(differ: Collection[str]) -> bool:
    """Whether the run is to rest at other hours."""
    return any(keys()[name].section == "hours" for name in differ)


def check_room(run: str, limits: Limits, worker_bytes: int | None) -> None:
    """Raises `SettingsError` where the worker holds so much that it would be frozen or killed at the new limit. `worker_bytes`
    is None where that is not known, or nothing runs.
    """
    if worker_bytes is None or worker_bytes < FREEZE_FROM_USE * limits.worker_limit_bytes:
        return
    raise SettingsError(
        f"The worker holds {size(worker_bytes)}, too much for a limit of {size(limits.worker_limit_bytes)} "
        f"({limits.worker_limit_origin}). To have it begin again with less, at its newest checkpoint:",
        more=(
            f"  {command('pause', run)} --release",
            f"  {command('start', run)} …   the same as now",
            f"  {command('resume', run)}",
        ),
    )


def told(run: str, differ: Collection[str], limits: Limits, limit_before_bytes: int, *, has_worker: bool) -> str:
    """What came of it, in sentences."""
    sentences = []
    if limits.worker_limit_bytes != limit_before_bytes:
        sentences.append(f"The worker may take {size(limits.worker_limit_bytes)} now: {limits.worker_limit_origin}.")
    later = [name for name in sorted(differ) if name in OF_THE_WORKER]
    if later and has_worker:
        counts = "counts" if len(later) == 1 else "count"
        again = f"{command('pause', run)} --release, then {command('resume', run)}"
        sentences.append(f"For the worker {' and '.join(later)} {counts} when it begins again: {again}.")
    return " ".join(sentences)
