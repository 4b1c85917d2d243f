"""What one life of the worker trains with, and how far the run is. Holds; what is done with it is in `train.py` and
`saving.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import torch

from memsup.checkpoint.store import Store
from memsup.memory import SoftLimit
from memsup.shared.clock import monotonic_s
from memsup.shared.messages import BatchShape, CheckpointNote
from memsup.shared.paths import RunPaths
from memsup.shared.readings import Evaluation
from memsup.shared.record import RunRecord
from memsup.shared.settings import Training as TrainingSettings
from memsup.worker.audit import Audit
from memsup.worker.compute.lanes import Lanes
from memsup.worker.computing import Looking
from memsup.worker.curves import Curves
from memsup.worker.memory import DeviceMemory
from memsup.worker.plan.batches import Lengths, Order, Rows, Schedule, cut
from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.journal import Plan
from memsup.worker.plan.measuring import Measuring
from memsup.worker.plan.stopping import ends_after, metric_of
from memsup.worker.ranks.shares import shared_out
from memsup.worker.session import Session
from memsup.worker.state import Evaluated, State
from memsup.worker.tasks import Prepared, Task, Trained

if TYPE_CHECKING:
    from memsup.worker.plan.entry import Entry
    from memsup.worker.ranks.first import Ranks
    from memsup.worker.ranks.sharded import Sharded

_RATE_OVER_S = 30.0
"""The time over which samples per second are counted."""


class Others(Protocol):
    """The other ranks, as the computing of a step knows them: rank 0's (`ranks/first.py`), or another's (`ranks/other.py`)."""

    count: int

    @property
    def is_adding(self) -> bool:
        """Whether the step is being added up, so that no rank can do its part again."""
        ...

    def compute(
        self,
        step: int,
        *,
        learning_rate: float,
        loss_scale: float,
        shares: tuple[int, ...],
        plan: Entry | None = None,
    ) -> None:
        """Begins a step, unless it has begun; under this `plan`, where all cut by one."""
        ...

    def add_up(self, training: OneRank, loss: torch.Tensor) -> torch.Tensor:
        """Adds the gradients of all ranks into this one's, when all are done; returns the loss of all. One rank has nothing
        to add.
        """
        ...

    def has_taken_step(self) -> None:
        """Takes in that all of a step is done that no other rank does for this one."""
        ...

    def broken(self, error: Exception) -> None:
        """Raises what is to be made of an `error` in the middle of a step of a model that is shared out: another rank may have
        gone away.
        """
        ...


@dataclass(kw_only=True)
class OneRank:
    """Everything with which one rank computes its part of steps. Where there is one rank, that is all of them."""

    record: RunRecord
    paths: RunPaths
    session: Session
    device: torch.device
    device_memory: DeviceMemory | None
    soft_limit: SoftLimit
    threads: int
    task: Task
    prepared: Prepared
    schedule: Schedule
    order: Order
    optimizer: torch.optim.Optimizer
    plan: Plan
    measuring: Measuring
    lanes: Lanes = field(init=False)
    """The lanes that compute; made when weights and plan are where they belong."""
    rank: int = 0
    ranks: Others = field(init=False)
    """Set before the first step."""
    sharded: Sharded | None = None
    """What this rank has of a model that is shared out. None means that every rank has all of it."""
    shares: tuple[int, ...] = (1,)
    """The ranks' shares of a step (`ranks/shares.py`)."""
    done_before: int = 0
    """How many steps earlier lives had taken, some of which may have to be redone."""
    told_limit_bytes: int | None = None
    """What it may hold of memory from the next step on, where its cuts are told to it. None means as much as before."""

    # How far the run is.
    step: int = 0
    """How many steps were taken."""
    loss_scale: float = 1.0

    # The step in hand.
    micro_rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The rows of the micro-batch in hand; the first one is the longest."""
    at_rows: Rows | None = None
    """The rows that are computed with. It is None between two micro-batches."""
    micro_shape: Shape | None = None
    """The shape of the micro-batch in hand. None means that there was none yet."""
    largest: Shape | None = None
    """The shape of the step's largest micro-batch. None means that there was none yet."""
    where: str = "forward"
    """The part of the step in which memory ran out last."""
    activation_checkpointing: bool = False
    """Whether the model is set to compute its activations twice now."""
    is_adding_up: bool = False
    """Whether micro-batches of the step in hand are left to be computed."""
    has_own_part: bool = False
    """Whether all micro-batches of the step in hand are computed; of several ranks, this one may still wait for the others."""
    has_given_up: bool = False
    """Whether the gradients of the step in hand were dropped, so that it has to be done again."""

    @property
    def examples(self) -> Trained:
        """What is trained on."""
        return self.prepared.stream or self.prepared.train

    @property
    def settings(self) -> TrainingSettings:
        return self.record.settings.training

    @property
    def largest_tokens(self) -> int:
        """Rows × padded length of the step's largest micro-batch, all parts together; 0 before the first."""
        return self.largest.tokens if self.largest else 0

    def part_of(self, rows: Rows) -> Rows:
        """Those of the rows of a step that this rank computes."""
        return shared_out(rows, self.examples.lengths[rows], self.shares)[self.rank]

    @property
    def learner(self) -> Any:
        """What has the parameters that the optimizer changes: the model, or this rank's rows of it."""
        return self.sharded or self.prepared.model

    def most_micro_batches(self, rows: Rows, plan: Entry) -> int:
        """The most micro-batches that any rank has of a step of these rows, where all cut by this `plan`."""
        lengths = self.examples.lengths
        return max(len(cut(part, lengths[part], plan)) for part in shared_out(rows, lengths[rows], self.shares))

    def own_tokens(self, step: int) -> int:
        """The tokens of `step` that this rank computes, without padding."""
        return int(self.lengths_of(step).sum())

    def lengths_of(self, step: int) -> Lengths:
        """The lengths of the rows of `step` that this rank computes."""
        return self.examples.lengths[self.part_of(self.order.batch(step))]

    def state_tensors(self) -> Iterator[torch.Tensor]:
        """All tensors that are the same in every rank, in an order that is the same as well."""
        yield from self.prepared.model.parameters()
        yield from self.prepared.model.buffers()
        for parameter in self.prepared.model.parameters():
            yield from self.optimizer.state.get(parameter, {}).values()

    def give_up_gradients(self) -> None:
        """Drops what was computed of the step in hand, in all lanes."""
        self.lanes.drop()
        self.has_given_up = True

    def boundary(self) -> None:
        """Ends a piece of work: carries out what was ordered, and has the soft limit lie where it has to. Raises `Leave`."""
        self.session.boundary()
        self.soft_limit.keep()

    def batch_shape(self) -> BatchShape:
        """How steps are computed now."""
        return BatchShape(
            effective=self.schedule.effective_batch,
            micro_tokens=self.plan.at(self.step + 1).micro_tokens,
            micro_rows=len(self.micro_rows) or None,
            peak_bytes=self.measuring.last.peak_bytes,
            predicted_bytes=self.measuring.last.predicted_bytes,
        )

    def publish(self) -> None:
        """Tells where it is."""
        self.session.publish(batch=self.batch_shape(), step=self.step)


@dataclass(kw_only=True)
class Training(OneRank):
    """Everything that one life of the worker trains with: it is rank 0, and has the run's affairs as well."""

    staging: torch.Tensor | None
    """The page-locked memory through which checkpoints go to and from the device. None means that the CPU computes."""
    store: Store
    audit: Audit
    curves: Curves
    looking: Looking
    ranks: Ranks
    deaths: int = 0
    """How many lives of the run ended without anybody having asked for it."""

    # How far the run is.
    loss: float | None = None
    """The loss of the last step. None means that no step was taken yet."""
    steps_at_scale: int = 0
    evaluated: Evaluated | None = None
    best: Evaluated | None = None
    without_rise: int = 0
    """How many evaluations in a row there were since the best one."""

    # Checkpoints.
    newest: CheckpointNote | None = None
    newest_state: State | None = None
    saved_s: float = 0.0
    """When the newest checkpoint was written, on the clock of `work_s`."""
    kept_s: float = 0.0
    """When a state was handed over in memory last, on the same clock; 0 where none was in this life."""
    save_s: float | None = None
    """How long the last save took. None means that none was made in this life."""

    # Time.
    trained_s: float = 0.0
    """The time of work in earlier lives, pauses left out."""
    _began_s: float = field(default_factory=monotonic_s)
    _recent_samples: float = 0.0
    _recent_s: float = 0.0

    @property
    def is_evaluated(self) -> bool:
        """Whether `evaluated` is of the parameters as they are."""
        return self.evaluated is not None and self.evaluated.step == self.step

    @property
    def has_stopped_early(self) -> bool:
        """Whether no step is taken any more, though some are left: decided right after an evaluation, and by it."""
        is_last = self.step == self.schedule.total_steps
        return not is_last and self.is_evaluated and ends_after(self.without_rise, self.settings.patience)

    def evaluation(self) -> Evaluation | None:
        """What is told of the evaluations. None means that there was none yet."""
        if self.evaluated is None:
            return None
        metric, best = metric_of(self.evaluated.metrics), self.best
        value = self.evaluated.metrics[metric]
        return Evaluation(
            metric=metric,
            value=value if math.isfinite(value) else None,
            step=self.evaluated.step,
            best=best.metrics[metric] if best else None,
            best_step=best.step if best else None,
            without_rise=self.without_rise,
            patience=None if self.settings.patience == "off" else self.settings.patience,
            keeps_best=self.settings.keep == "best",
        )

    def work_s(self) -> float:
        """Seconds of this life since training was prepared, pauses left out."""
        return self.session.worked_s() - self._began_s

    def count_rate(self, samples: int, took_s: float) -> None:
        """Counts a step into the rate, in which older steps fade as newer ones take their time."""
        fading = max(0.0, 1 - took_s / _RATE_OVER_S)
        self._recent_samples = self._recent_samples * fading + samples
        self._recent_s = self._recent_s * fading + took_s

    def publish(self) -> None:
        """Tells the heartbeats where the run is."""
        rate = self._recent_samples / self._recent_s if self._recent_s else None
        samples = self.schedule.samples_after(self.step)
        left = self.schedule.samples_after(self.schedule.total_steps) - samples
        self.session.publish(
            batch=msgspec.structs.replace(
                self.batch_shape(), computing=self.looking.found, ranks=self.ranks.readings(self.shares)
            ),
            digest=self.audit.digest,
            evaluation=self.evaluation(),
            nodes=self.ranks.node_readings(self.shares),
            epoch=self.schedule.epoch_of(self.step),
            step=self.step,
            total_steps=self.schedule.total_steps,
            samples=samples,
            loss=self.loss,
            samples_per_s=rate,
            eta_s=left / rate if rate else None,
        )
