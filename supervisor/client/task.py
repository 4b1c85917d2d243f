"""What a start finds of the data and the model, before anything is written.

A run of a command has neither, so that what is imported here is imported for built-in training alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from memsup.shared.data.check import TaskSummary, check_task
from memsup.shared.data.streams import refuse_endless
from memsup.shared.files import UnreadableError
from memsup.shared.model.adapters import trains_adapters
from memsup.shared.model.content import parameters
from memsup.shared.model.folder import WEIGHTS, ModelSource, ModelSummary, read_config
from memsup.shared.model.judge import judge_model
from memsup.shared.settings import Settings
from memsup.supervisor.decide.estimate import Shape, decoder_shape_of, shape_of

DATA_BUDGET_S = 1.0
"""How long the data may be looked at: `start` answers within two seconds, whatever their size."""
_AMP_OF = {"BF16": "bf16", "F16": "fp16"}
"""The mixed precision that computes with weights as they are stored, by the names of safetensors."""


def look_at_task(settings: Settings, *, checkpoint: Path | None = None) -> TaskSummary:
    """What there is of data and model, which is looked up at the hub where it is not on this machine. A run that has a
    `checkpoint` goes on with the model in it. Raises `InputError`.
    """
    trains_adapters(settings.task.kind, settings.training.method, settings.lora.base_bits)
    refuse_endless(settings)
    task = check_task(settings.task, budget_s=DATA_BUDGET_S, max_length=settings.training.max_length, checkpoint=checkpoint)
    if checkpoint is not None:
        return task
    model = task.model
    if model.folder is None:
        from memsup.supervisor.client.hub import look_up

        model = look_up(settings.task.model or "", model, task=settings.task.kind)
    kind, labels = settings.task.kind, list(task.train.labels)
    if not labels:
        return replace(task, model=model)
    problem_type = settings.task.problem_type if kind == "text-classification" else None
    doubts, notes = judge_model(model, labels, task=kind, problem_type=problem_type, complete=task.train.complete)
    verdict = replace(task.verdict, doubts=(*task.verdict.doubts, *doubts))
    return replace(task, model=replace(model, notes=(*model.notes, *notes)), verdict=verdict)


def model_shape(model: str | None, task: TaskSummary | None = None, settings: Settings | None = None) -> Shape | None:
    """The model's numbers as `settings` train it, of which headers are read and no weights. Returns None where its folder does
    not tell them.
    """
    folder = Path(model or "")
    try:
        config = read_config(folder)
        types = parameters(folder)
    except (OSError, UnreadableError):
        return None  # whether it can be used is for the worker to say
    weights = types.total() or None
    if settings is not None and settings.task.kind == "causal-lm":
        rank = None if settings.training.method == "full" else settings.lora.rank
        stored = _AMP_OF.get(next(iter(types))) if len(types) == 1 else None
        if not isinstance(config, dict):
            return None
        return decoder_shape_of(config, weights, rank=rank, stored=stored, base_bits=settings.lora.base_bits)
    labels = 2
    if task is not None:
        labels = len(task.train.labels)
        if not labels:
            return None
    return shape_of(config, weights, labels) if isinstance(config, dict) else None


def weights_bytes(model: ModelSummary) -> int:
    """The size of the files of weights from which a run begins; 0 where there are none, or nobody can tell."""
    if model.folder is None or model.source is ModelSource.CONFIG_ONLY:
        return 0
    try:
        for pattern in WEIGHTS:
            sizes = [os.stat(file).st_size for file in model.folder.glob(pattern)]
            if sizes:
                return sum(sizes)
    except OSError:
        pass
    return 0
