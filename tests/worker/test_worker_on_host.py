"""Activations that lie in host memory between forward and backward pass: the same gradient, where a row fits only so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kit.lone_supervisor import tiny_settings
from kit.one_life import StarvedTask, exhaustions, one_life

from memsup.shared.messages import FailureCause
from memsup.worker import train
from memsup.worker.compute.on_host import kept_on_host
from memsup.worker.compute.randomness import seed_everything
from memsup.worker.session import GiveUp

pytestmark = pytest.mark.slow  # torch and transformers take their seconds


@pytest.mark.parametrize("amp", [False, True])
def test_the_gradient_has_the_same_bits_and_weights_stay_where_they_are(amp: bool) -> None:
    """With dropout, also in mixed precision."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    model = transformers.BertForSequenceClassification(config).train()
    ids, labels = torch.randint(50, (8, 96)), torch.arange(8) % 2
    taken: list[torch.Tensor] = []

    def empty(size_bytes: int) -> torch.Tensor:
        taken.append(torch.empty(size_bytes, dtype=torch.uint8))
        return taken[-1]

    def gradient(context: Any) -> torch.Tensor:
        model.zero_grad()
        seed_everything(1, 1, range(8), [96] * 8)
        with context, torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    plain = gradient(torch.enable_grad())
    assert not taken
    assert gradient(kept_on_host(model, empty)).equal(plain)
    assert len(taken) >= 2 * config.num_hidden_layers
    if not amp:
        weights = {parameter.nbytes for parameter in model.parameters() if parameter.nbytes >= 1 << 16}
        assert weights
        assert not weights & {room.nbytes for room in taken}


def test_on_a_gpu_a_row_that_fits_with_no_activation_on_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fake_cuda/` stands for the device; memory runs out until activations lie in host memory, and for good if even then."""
    from kit import fake_cuda

    for name in ("device_memory", "to_device", "cards"):
        monkeypatch.setattr(train, name, getattr(train, name))
    fake_cuda.install(fake_cuda.Allocator(weights_bytes=1 << 20, token_bytes=1))
    with one_life(tiny_settings(tmp_path)) as life:
        task = life.task

        def starves(at: str, rows: int, number: int) -> bool:
            length = life.micro_shape.length if life.micro_shape else 0
            return at == "backward" and length > 10 and not life.plan.at(life.step + 1).keeps_on_host(length)

        life.task = StarvedTask(task, starves)
        train.take_step(life)
        assert life.step == 1
        plan = life.plan.at(2)
        assert plan.on_host_from is not None
        assert plan.activation_checkpointing
        assert not plan.checkpoints_activations(plan.on_host_from)
        assert plan.checkpoints_activations(plan.on_host_from - 1)
        exhaustions(life)

        life.task = StarvedTask(task, lambda at, rows, number: at == "backward")
        with pytest.raises(GiveUp, match="does not fit in memory") as given_up:
            train.take_step(life)
        assert given_up.value.cause is FailureCause.OUT_OF_MEMORY
