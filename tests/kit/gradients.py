"""A task's gradient of rows that are cut into micro-batches, beside that of transformers' own loss of all of them at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.worker import train
from memsup.worker.compute.randomness import seed_stream
from memsup.worker.tasks import Prepared, Task
from memsup.worker.training import Training


def check_any_cut(task: Task, prepared: Prepared) -> None:
    """Whatever the cut, loss and gradient of the training rows are those of the whole, to rounding."""
    rows = np.arange(len(prepared.train))
    prepared.model.zero_grad()
    whole = prepared.model(**prepared.train.batch(rows)).loss
    whole.backward()
    parameters = [value for value in prepared.model.parameters() if value.grad is not None]
    wanted = torch.cat([value.grad.flatten() for value in parameters])

    @given(st.sets(st.integers(1, len(rows) - 1)))
    @settings(max_examples=15)
    def cut(places: set[int]) -> None:
        prepared.model.zero_grad()
        weight, total = task.weight(prepared.train, rows), 0.0
        for part in np.split(rows, sorted(places)):
            loss = task.loss(prepared.model, prepared.train.batch(part)) / weight
            loss.backward()
            total += loss.item()
        assert total == pytest.approx(whole.item(), rel=1e-5)
        found = torch.cat([value.grad.flatten() for value in parameters])
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()

    cut()


def as_torch_has_it(model: Any) -> Any:
    """A copy of `model` whose layers are torch's own again, and whose gradients are its own."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        vars(module).pop("forward", None)
    plain.zero_grad(set_to_none=True)
    return plain


def check_any_cut_of_a_step(life: Training, loss_of_all: Callable[[Any], torch.Tensor], *, examples: int = 10) -> None:
    """Whatever the cut, in one lane or two, with or without padding, with activations that are kept or computed twice: loss and
    gradient of a step of all training rows are those of the whole, to rounding. `loss_of_all` is that of a model whose layers
    are torch's. There is no dropout.
    """
    rows, entry = np.arange(len(life.prepared.train)), life.plan.at(1)
    assert len(life.lanes) == 2
    seed_stream(0, 0)
    plain = as_torch_has_it(life.prepared.model).train()
    whole = loss_of_all(plain)
    whole.backward()
    of_whole = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    wanted = torch.cat([of_whole[name].flatten() for name in sorted(of_whole)])

    @given(micro_tokens=st.integers(1, 2000), computed_twice=st.booleans(), one_lane=st.booleans(), packed=st.booleans())
    @settings(max_examples=examples, deadline=None)
    def cut(micro_tokens: int, computed_twice: bool, one_lane: bool, packed: bool) -> None:
        changes = {"start": micro_tokens, "activation_checkpointing": computed_twice, "one_lane": one_lane}
        life.plan._put(msgspec.structs.replace(entry, packed=packed and entry.packed, **changes))
        gradient = train._accumulate(life, 1, rows)
        assert gradient is not None
        assert float(gradient.figures[0]) == pytest.approx(whole.item(), rel=1e-5)
        found = {name: value.grad for name, value in life.prepared.model.named_parameters() if value.grad is not None}
        assert found.keys() == of_whole.keys()
        apart = torch.cat([found[name].flatten() for name in sorted(found)]) - wanted
        assert apart.norm() <= 1e-6 * wanted.norm()

    cut()
