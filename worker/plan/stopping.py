"""When the model is evaluated, which result is the best, and when training ends early. Pure.

Only what a checkpoint holds is decided from: the step, the best result and how many evaluations it stands unbeaten. So a life
that goes on from a checkpoint decides as the one before did, wherever that was killed.
"""

from __future__ import annotations

import math
from typing import Literal

from memsup.worker.plan.batches import Schedule

EvaluateEvery = int | Literal["epoch"]
"""The steps from one evaluation to the next; or the end of each epoch."""
Patience = int | Literal["off"]
"""The evaluations without a better result after which training ends; or that it never ends early."""

METRICS = ("f1", "accuracy", "loss")
"""The metrics by which a result is judged: the first of them that the task has."""


def metric_of(metrics: dict[str, float]) -> str:
    """The name of the metric that results are compared by: F1 of spans, accuracy, or else the evaluation's loss."""
    return next(name for name in METRICS if name in metrics)


def merit_of(metrics: dict[str, float]) -> float:
    """How good a result is: the greater, the better."""
    name = metric_of(metrics)
    return -metrics[name] if name == "loss" else metrics[name]


def is_better(merit: float, best: float | None) -> bool:
    """Whether a result is better than the best one so far, which is None where there is none. An equal one is not, and one that
    is not finite never is.
    """
    return math.isfinite(merit) and (best is None or merit > best)


def evaluates_after(step: int, schedule: Schedule, every: EvaluateEvery) -> bool:
    """Whether the model is evaluated after `step`. It always is after the last one."""
    if every == "epoch":
        return schedule.ends_epoch(step)
    return step > 0 and (step % every == 0 or step == schedule.total_steps)


def ends_after(without_rise: int, patience: Patience) -> bool:
    """Whether training ends after an evaluation that is the `without_rise`th one in a row without a better result."""
    return patience != "off" and without_rise >= patience
