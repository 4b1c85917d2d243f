"""A task's gradient of rows that are cut into micro-batches, beside that of transformers' own loss of all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.worker.tasks import Prepared, Task


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
