"""Moments in host memory: the bits of a run whose moments lie beside its weights, and checkpoints that fit either.

There is no GPU here, so device and host are the same memory; what is copied, and when, is the same code.
"""

from __future__ import annotations

import pytest
import torch

from memsup.worker.compute.offloaded_adam import MOMENTS, OffloadedAdamW
from memsup.worker.hardware import begin_step, make_optimizer
from memsup.worker.state import optimizer_tensors


class Odd(torch.nn.Module):
    """Sizes that no vector register divides, a matrix, a bias, and one that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.large = torch.nn.Linear(53, 31)
        self.small = torch.nn.Linear(31, 3)
        self.idle = torch.nn.Parameter(torch.ones(5))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.small(torch.tanh(self.large(rows)))


def train(model: Odd, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(8, 53)).pow(2).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()


def tensors(model: Odd, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return dict(model.state_dict()) | optimizer_tensors(model, optimizer)


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_run_has_the_same_bits_wherever_its_moments_lie() -> None:
    usual, hosted = Odd(), Odd()
    beside, on_host = make_optimizer(usual, weight_decay=0.01), make_optimizer(hosted, weight_decay=0.01, on_host=True)
    assert isinstance(on_host, OffloadedAdamW)
    train(usual, beside, range(20))
    train(hosted, on_host, range(20))
    assert_same_bits(tensors(usual, beside), tensors(hosted, on_host))
    assert float(on_host.state[hosted.large.weight]["exp_avg_sq"].sum()) > 0


def test_a_step_is_queued_and_waits_for_the_device_at_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for each of a BERT-base's 400 moments would leave the device idle as often."""
    model, happened = Odd(), list[str]()
    copy = torch.Tensor.copy_

    def noted(into: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        happened.append("asked for" if non_blocking else "waited for")
        return copy(into, source, non_blocking)

    optimizer = make_optimizer(model, weight_decay=0.01, on_host=True)
    model(torch.randn(8, 53)).pow(2).mean().backward()
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    optimizer.step()
    assert happened == ["asked for"] * (4 * len(MOMENTS) * 2)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_bad_gradient_changes_nothing_wherever_moments_lie(on_host: bool) -> None:
    """Whether it is bad is known on the device alone when the step is queued. The next step is as if there had been none."""
    disturbed, undisturbed = Odd(), Odd()
    optimizer, other = (make_optimizer(model, weight_decay=0.01, on_host=on_host) for model in (disturbed, undisturbed))
    train(undisturbed, other, range(4))
    train(disturbed, optimizer, range(3))
    for parameter in disturbed.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    begin_step(optimizer, is_bad=torch.ones(()), divisor=torch.ones(()))
    optimizer.step()
    begin_step(optimizer, is_bad=torch.zeros(()), divisor=torch.ones(()))
    train(disturbed, optimizer, range(3, 4))
    assert_same_bits(tensors(undisturbed, other), tensors(disturbed, optimizer))


@pytest.mark.parametrize("on_host", [False, True])
def test_a_gradient_is_divided_within_the_step_wherever_moments_lie(on_host: bool) -> None:
    divided, other = Odd(), Odd()
    optimizer, plain = (make_optimizer(model, weight_decay=0.01, on_host=on_host) for model in (divided, other))
    for step in range(3):
        gradients = [torch.randn(one.shape, generator=torch.Generator().manual_seed(step)) for one in other.parameters()]
        for model, factor in ((divided, 8.0), (other, 1.0)):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = factor * gradient
        begin_step(optimizer, is_bad=torch.zeros(()), divisor=torch.tensor(8.0))
        optimizer.step()
        plain.step()
    assert_same_bits(tensors(divided, optimizer), tensors(other, plain))


@pytest.mark.parametrize("first_on_host", [False, True])
def test_a_run_goes_on_from_either_kind_of_checkpoint(first_on_host: bool) -> None:
    undisturbed = Odd()
    optimizer = make_optimizer(undisturbed, weight_decay=0.01)
    train(undisturbed, optimizer, range(20))
    before, after = Odd(), Odd()
    first = make_optimizer(before, weight_decay=0.01, on_host=first_on_host)
    train(before, first, range(9))
    second = make_optimizer(after, weight_decay=0.01, on_host=not first_on_host)
    saved = {name: tensor.clone() for name, tensor in tensors(before, first).items()}
    with torch.no_grad():
        for name, tensor in tensors(after, second).items():
            tensor.copy_(saved[name])
    train(after, second, range(9, 20))
    assert_same_bits(tensors(undisturbed, optimizer), tensors(after, second))


def test_a_step_keeps_nothing_on_the_device_but_room_for_the_largest_parameter() -> None:
    model = Odd()
    optimizer = make_optimizer(model, weight_decay=0.01, on_host=True)
    assert isinstance(optimizer, OffloadedAdamW)
    moments = [optimizer.state[parameter][name].data_ptr() for parameter in model.parameters() for name in MOMENTS]
    train(model, optimizer, range(2))
    assert moments == [optimizer.state[parameter][name].data_ptr() for parameter in model.parameters() for name in MOMENTS]
    assert [room.numel() for room in optimizer._room] == [model.large.weight.numel()] * 2
