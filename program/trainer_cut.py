"""A Trainer's micro-batches in parts where they do not fit into memory (`step.py`): cut below `training_step`, never in its
batch size or its accumulation, whose product alone does not say what is learned.
"""

from __future__ import annotations

import copy
from typing import Any, Callable

from memsup.about import NotCut
from memsup.cut_probe import Refusal
from memsup.joined_step import JoinedStep
from memsup.life import Life
from memsup.step import weighted

_DRAWS = ("_generate_and_score_completions", "_generate_completions", "generate_completions")
"""Methods of trainers that draw what they learn from: TRL's GRPO, RLOO, online DPO."""


class Cutter:
    """Computes the micro-batches of one trainer."""

    def __init__(self, trainer: Any, life: Life, model: Any, boundary: Callable[[], None]) -> None:
        """`model` is what Trainer trains, wrapped or not; `boundary` is called between two parts."""
        self._trainer = trainer
        accelerator = trainer.accelerator
        self.joined: JoinedStep | None = None
        """It is None where a library of its own computes the steps."""
        kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
        if kind not in {"NO", "MULTI_GPU", "MULTI_CPU"}:
            life.session.describe(cuts=False, not_cut=NotCut.OTHER, detail=f"{kind} computes its steps")
            return
        scaler = getattr(accelerator, "scaler", None)
        self.joined = JoinedStep(life, [model], optimizers=[trainer.optimizer], scaler=scaler, boundary=boundary)
        self.joined.effective = trainer._train_batch_size * trainer.args.gradient_accumulation_steps
        if trainer.args.n_gpu > 1:
            self.joined.step.refuse(Refusal.DATA_PARALLEL)
        elif any(hasattr(trainer, name) for name in _DRAWS):
            self.joined.step.refuse(Refusal.DRAWN_COMPLETIONS)

    def refuse(self, refusal: Refusal) -> None:
        """Has nothing cut from now on."""
        if self.joined is not None:
            self.joined.step.refuse(refusal)

    def training_step(self, whole: Any, model: Any, inputs: Any, arguments: Any, named: Any, *, begins: bool | None) -> Any:
        """What `training_step(model, inputs, …)`, which is `whole`, gives back, with its gradients added. `begins` is that of
        `Step.micro_batch`.
        """
        if self.joined is None:
            return whole(model, inputs, *arguments, **named)
        trainer, accelerator = self._trainer, self._trainer.accelerator
        items = arguments[0] if arguments else named.get("num_items_in_batch")

        def compute(part: Any, weight: float) -> Any:
            part = copy.copy(part)  # Trainer takes labels out of it, and it may be wanted again
            if weight == 1.0:
                return whole(model, part, *arguments, **named)
            own, backward = vars(accelerator).get("backward"), accelerator.backward
            accelerator.backward = lambda loss, **how: backward(weighted(loss, weight), **how)
            try:
                return whole(model, part, *arguments, **named)
            finally:
                if own is None:
                    del accelerator.backward
                else:
                    accelerator.backward = own

        def loss_of(part: Any) -> Any:
            prepared = trainer._prepare_inputs(copy.copy(part))
            with trainer.compute_loss_context_manager():
                return trainer.compute_loss(model, prepared, num_items_in_batch=items)

        return self.joined.micro_batch(inputs, loss_of, compute=compute, begins=begins)

    def prediction_step(self, whole: Any, model: Any, inputs: Any, arguments: Any, named: Any) -> Any:
        """What `prediction_step(model, inputs, …)`, which is `whole`, gives back."""
        if self.joined is None:
            return whole(model, inputs, *arguments, **named)
        return self.joined.step.predict(inputs, lambda part: whole(model, copy.copy(part), *arguments, **named))
