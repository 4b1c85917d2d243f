"""A step with DistributedDataParallel is cut where ranks need nothing of each other for it. With one rank, in this process; two
of them are in `promises/test_own_torch.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memsup.cut_events import Event, Refused
from memsup.cut_probe import Refusal
from memsup.step import Step


@pytest.fixture
def model(tmp_path: Path) -> Iterator[DistributedDataParallel]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    torch.manual_seed(3)
    yield DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    torch.distributed.destroy_process_group()


BATCH = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def loss_of(model: nn.Module, part: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(part[0]), part[1])


def gradient_of(model: DistributedDataParallel) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def whole(model: DistributedDataParallel, times: int) -> list[torch.Tensor]:
    """The gradient of some micro-batches without memsup."""
    alone = copy.deepcopy(model.module)
    for _ in range(times):
        loss_of(alone, BATCH).backward()
    return [parameter.grad for parameter in alone.parameters() if parameter.grad is not None]


def test_parts_have_the_gradient_of_the_whole_and_it_is_added_up_where_torch_would(model: DistributedDataParallel) -> None:
    wanted = whole(model, 2)
    step = Step([model], most_tokens=3)
    with model.no_sync():
        step.micro_batch(BATCH, lambda part: loss_of(model, part))
    assert not model.require_forward_param_sync
    step.micro_batch(BATCH, lambda part: loss_of(model, part))
    assert step.refusal is None
    assert step.is_cut
    assert model.require_backward_grad_sync
    torch.testing.assert_close(gradient_of(model), wanted)


def test_a_loss_that_asks_other_ranks_for_something_is_left_as_it_is(model: DistributedDataParallel) -> None:
    said: list[Event] = []
    wanted = whole(model, 1)
    step = Step([model], most_tokens=3, tell=said.append)

    def asks(part: Any) -> torch.Tensor:
        torch.distributed.all_reduce(torch.zeros(1))
        return loss_of(model, part)

    step.micro_batch(BATCH, asks)
    assert not step.is_cut
    assert said == [Refused(Refusal.SEVERAL_RANKS, "its loss asks the other ranks for something")]
    torch.testing.assert_close(gradient_of(model), wanted)
