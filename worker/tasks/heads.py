"""The layer before the answer, of models that say one label of several: which label each output stands for."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memsup.shared.commands import command
from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.errors import DoubtfulError, InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model.head import Fit, head_labels, match
from memsup.shared.model.judge import judge_head


def give_labels(
    config: Any, labels: list[str], task: TaskKind, *, has_weights: bool, accept: Sequence[DoubtKind]
) -> tuple[Fit, NDArray[np.int64]]:
    """Puts the labels into the model's configuration, in the order and spelling of its head where that knows
    just these. Returns how they fit, and the place of each of `labels` among the outputs. Raises DoubtfulError for a doubt
    that nobody has accepted.
    """
    named = head_labels({"id2label": config.id2label, "architectures": config.architectures}, task)
    found = match(named, labels)
    if has_weights:
        doubts, _ = judge_head(named, labels)
        if unsettled := [doubt for doubt in doubts if doubt.kind not in accept]:
            raise DoubtfulError(unsettled)
    config.id2label = dict(enumerate(found.names))
    config.label2id = {name: place for place, name in config.id2label.items()}
    return found.fit if has_weights else Fit.UNNAMED, np.array(found.places, np.int64)


def begin_head_anew(model: Any, auto: Any, seed: int) -> None:
    """Draws the weights anew of which there is a row for each label, as `seed` says. What is before them stays."""
    wider = deepcopy(model.config)
    wider.id2label = dict(enumerate([*wider.id2label.values(), ""]))
    with torch.device("meta"):
        other = auto.from_config(wider)
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if shapes.get(name) == parameter.shape:
                continue
            if parameter.dim() > 1:
                parameter.normal_(std=getattr(model.config, "initializer_range", None) or 0.02, generator=draws)
            else:
                parameter.zero_()


@contextmanager
def doubts_refused(run: str) -> Iterator[None]:
    """What is doubted inside is an InputError that names how to accept it: whoever typed `start` has gone to bed."""
    try:
        yield
    except DoubtfulError as doubtful:
        kinds = shlex.quote(f"task.accept={' '.join(doubt.kind for doubt in doubtful.doubts)}")
        raise InputError(
            f"The data are doubtful, so nothing was trained. {doubtful} If they are right as they are: "
            f"{command('start', run)} --set {kinds}"
        ) from None
