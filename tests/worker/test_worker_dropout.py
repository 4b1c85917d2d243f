"""Dropout drops as many as it should, the same ones forwards and backwards, and keeps nothing of it in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from memsup.worker.compute.dropout import Draws, can_draw, draw_cheaply
from memsup.worker.compute.randomness import repeated, seed_stream

MANY = 200_000

probabilities = st.one_of(st.sampled_from([0.1, 0.5, 0.999, 2**-16, 2**-18]), st.floats(0.001, 0.999))


def layer(probability: float) -> nn.Module:
    model = nn.Sequential(nn.Dropout(probability))
    assert draw_cheaply(model) == 1
    return model.train()


@given(probabilities, st.integers(0, 2**63 - 1), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_as_many_are_kept_as_should_be_and_the_expectation_is_exact(probability: float, seed: int, dtype: torch.dtype) -> None:
    draws = Draws(seed, probability)
    kept = draws.kept(torch.Size([MANY]), dtype)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    share, wanted = float(kept.double().mean()), 1 / draws.scale
    assert abs(wanted - (1 - probability)) <= 2**-17
    assert abs(share - wanted) <= 6 * (wanted * (1 - wanted) / MANY) ** 0.5 + 1e-12, "six standard deviations"


@given(probabilities, st.integers(0, 2**63 - 1), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_drawn_again_in_the_same_parts_it_is_the_same_in_any_precision(probability: float, seed: int, parts: list[int]) -> None:
    draws, again = Draws(seed, probability), Draws(seed, probability)
    first = [draws.kept(torch.Size([part, 3]), torch.float32) for part in parts]
    for part, then in zip(parts, first, strict=True):
        assert torch.equal(again.kept(torch.Size([part, 3]), torch.bfloat16).float(), then)
    assert torch.equal(draws.again().kept(torch.Size([parts[0], 3]), torch.float32), first[0])


def test_neighbours_and_seeds_do_not_resemble_each_other() -> None:
    one, other = (Draws(seed, 0.5).kept(torch.Size([MANY]), torch.float64) - 0.5 for seed in (1, 2))
    bound = 6 * 0.25 / MANY**0.5
    assert abs(float((one * other).mean())) < bound
    for lag in (1, 2, 3, 4, 5, 64, 768):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < bound


@given(probabilities, st.integers(0, 2**32))
def test_the_same_units_are_dropped_forwards_and_backwards(probability: float, seed: int) -> None:
    units = torch.rand(7, 33).add_(1).requires_grad_()
    seed_stream(seed, 0, 0)
    found = layer(probability)(units)
    found.sum().backward()
    assert units.grad is not None
    torch.testing.assert_close(found, units.detach() * units.grad)
    seed_stream(seed, 0, 0)
    assert torch.equal(layer(probability)(units), found), "the seed alone decides"
    assert not torch.equal(layer(probability)(units), found) or found.count_nonzero() in (0, found.numel())


def test_computed_twice_the_same_units_are_dropped_twice() -> None:
    model = nn.Sequential(nn.Linear(16, 16), layer(0.5), nn.Linear(16, 16), layer(0.3)).train()
    units = torch.randn(8, 16)

    def gradients(run: Any) -> list[torch.Tensor]:
        model.zero_grad()
        seed_stream(5, 0, 0)
        run().square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    kept = gradients(lambda: model(units))
    twice = gradients(lambda: checkpoint(model, units, use_reentrant=False, context_fn=repeated))
    assert all(torch.equal(*pair) for pair in zip(kept, twice, strict=True))


def test_nothing_is_kept_for_the_backward_pass() -> None:
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(0.1)(torch.rand(100, requires_grad=True))
    assert kept == []


@pytest.mark.parametrize("probability", [0.0, 1.0, 1 - 2**-18])
def test_nothing_to_draw_is_torchs(probability: float) -> None:
    assert not can_draw(probability)
    units = torch.rand(50)
    torch.manual_seed(1)
    expected = dropout(units, probability)
    torch.manual_seed(1)
    assert torch.equal(layer(probability)(units), expected)


def test_nothing_is_dropped_in_evaluation() -> None:
    units = torch.rand(50)
    assert torch.equal(layer(0.5).eval()(units), units)


def test_kinds_with_rules_of_their_own_are_left_alone() -> None:
    class Own(nn.Dropout):
        pass

    assert draw_cheaply(nn.Sequential(nn.Dropout1d(), Own(), nn.AlphaDropout(), nn.Dropout(inplace=True))) == 0
