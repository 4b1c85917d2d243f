"""Measuring the model on the evaluation rows, of which each rank counts a part.

Ranks that share the model count together: each layer takes all of them, so all compute as many batches, cut by one plan. Where
memory runs out in an evaluation is `exhaustion.py`'s; whether a run ends early because of a result is decided in
`plan/stopping.py`.
"""

from __future__ import annotations

import numpy as np
import torch

from memsup.memory import is_out_of_memory
from memsup.shared.log import log
from memsup.shared.messages import FailureCause, Phase
from memsup.worker.exhaustion import leave_together, shrink_evaluation
from memsup.worker.hardware import autocast, to_device
from memsup.worker.plan.batches import Rows, evaluation_batches
from memsup.worker.plan.padding import Padding
from memsup.worker.plan.stopping import is_better, merit_of
from memsup.worker.session import GiveUp
from memsup.worker.state import Evaluated
from memsup.worker.tasks import Metrics
from memsup.worker.training import OneRank, Training


def evaluate(training: Training) -> None:
    """Measures the model on the evaluation rows; of several ranks each counts those that are its own."""
    metrics = training.task.new_metrics()
    with training.session.phase(Phase.EVALUATING):
        training.ranks.evaluate(training.step, None if training.sharded is None else training.plan.at(training.step + 1))
        measure(training, metrics)
        for counts in training.ranks.counted():
            metrics.add_counts(counts)
    training.evaluated = Evaluated(step=training.step, metrics=metrics.result())
    best = merit_of(training.best.metrics) if training.best else None
    if is_better(merit_of(training.evaluated.metrics), best):
        training.best, training.without_rise = training.evaluated, 0
    else:
        training.without_rise += 1
    training.publish()
    training.curves.evaluated(training.evaluated)
    log.info("Evaluated", step=training.step, **training.evaluated.metrics)


def measure(training: OneRank, metrics: Metrics) -> None:
    """Counts up over the evaluation rows of this rank, the longest first, and keeps nothing but the counts."""
    if training.sharded is not None:
        _measure_together(training, metrics)
        return
    session, examples = training.session, training.prepared.evaluation
    model = training.prepared.model.eval()
    by_length = np.argsort(-examples.lengths.astype(np.int64), kind="stable")[training.rank :: len(training.shares)]
    tokens = training.plan.at(training.step + 1).micro_tokens
    place = 0
    with session.phase(Phase.EVALUATING), torch.no_grad():
        while place < len(by_length):
            longest = int(examples.lengths[by_length[place]])
            tokens = min(tokens, training.plan.at(training.step + 1).micro_tokens)
            rows = by_length[place : place + max(1, tokens // longest)]
            if training.prepared.padding is Padding.NONE:
                rows = rows[examples.lengths[rows] == longest]
            exhausted = None
            try:
                with autocast(training.device, training.settings.amp):
                    metrics.add(model, to_device(examples.batch(rows), training.device))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise _crashed(training, rows, error) from error
                exhausted = str(error)
            if exhausted is None:
                place += len(rows)
            else:
                tokens = shrink_evaluation(training, rows, longest, exhausted)
            training.boundary()


def _measure_together(training: OneRank, metrics: Metrics) -> None:
    """As `measure`, of a model that is shared out: every rank computes as many batches, some for nothing."""
    session, examples, plan = training.session, training.prepared.evaluation, training.plan.at(training.step + 1)
    model, ranks = training.prepared.model.eval(), len(training.shares)
    by_length = np.argsort(-examples.lengths.astype(np.int64), kind="stable")
    of_ranks = [
        evaluation_batches(by_length[rank::ranks], examples.lengths, plan.micro_tokens, equal_lengths=plan.equal_lengths)
        for rank in range(ranks)
    ]
    own = of_ranks[training.rank]
    with session.phase(Phase.EVALUATING), torch.no_grad():
        for number in range(max(map(len, of_ranks))):
            counts = number < len(own)
            rows = own[number] if counts else by_length[-1:]
            exhausted = None
            try:
                with autocast(training.device, training.settings.amp, keeps_weights=False):
                    into = metrics if counts else training.task.new_metrics()
                    into.add(model, to_device(examples.batch(rows), training.device))
            except Exception as error:
                if not is_out_of_memory(error):
                    try:
                        training.ranks.broken(error)
                    except GiveUp:
                        raise
                    except Exception:  # no rank is gone
                        raise _crashed(training, rows, error) from error
                exhausted = str(error)
            if exhausted is not None:
                leave_together(training, exhausted, evaluates=rows)
            training.boundary()


def _crashed(training: OneRank, rows: Rows, error: Exception) -> GiveUp:
    what = f"The evaluation after step {training.step} crashed: {type(error).__name__}: {error}"
    where = training.prepared.evaluation.where(rows)
    return GiveUp(FailureCause.CRASH, f"{what}; look at what it was computed from: {where}")
