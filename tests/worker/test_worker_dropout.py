"""Dropout drops as many as it should, the same forwards and backwards, of a row whatever is beside it, and keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from memsup.worker.compute.dropout import Draws, can_draw, draw_by_row
from memsup.worker.compute.randomness import nothing_drawn, repeated, seed_stream

MANY = 200_000

probabilities = st.one_of(st.sampled_from([0.1, 0.5, 0.999, 2**-16, 2**-18]), st.floats(0.001, 0.999))


@pytest.fixture(autouse=True, scope="module")
def drawing_by_row() -> Iterator[None]:
    before = torch.nn.functional.dropout
    draw_by_row()
    yield
    torch.nn.functional.dropout = before


def draws_of(seed: int, probability: float) -> Draws:
    """The first call of a stream in which nobody knows the rows."""
    seed_stream(seed, 1)
    return Draws.new(probability)


def layer(probability: float) -> nn.Module:
    return nn.Sequential(nn.Dropout(probability)).train()


@given(probabilities, st.integers(0, 2**63 - 1), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans())
def test_as_many_are_kept_as_should_be_and_the_expectation_is_exact(
    probability: float, seed: int, dtype: torch.dtype, is_known: bool
) -> None:
    seed_stream(seed, 1, range(5 if is_known else 0), [3] * 5)
    draws = Draws.new(probability)
    kept = draws.kept(torch.Size([5, MANY // 5]), dtype)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    share, wanted = float(kept.double().mean()), 1 / draws.scale
    assert abs(wanted - (1 - probability)) <= 2**-17
    assert abs(share - wanted) <= 6 * (wanted * (1 - wanted) / MANY) ** 0.5 + 1e-12, "six standard deviations"


@given(probabilities, st.integers(0, 2**63 - 1), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_drawn_again_in_the_same_parts_it_is_the_same_in_any_precision(probability: float, seed: int, parts: list[int]) -> None:
    draws, again = draws_of(seed, probability), draws_of(seed, probability)
    first = [draws.kept(torch.Size([part, 3]), torch.float32) for part in parts]
    for part, then in zip(parts, first, strict=True):
        assert torch.equal(again.kept(torch.Size([part, 3]), torch.bfloat16).float(), then)
    assert torch.equal(draws.again().kept(torch.Size([parts[0], 3]), torch.float32), first[0])


def test_neighbours_seeds_steps_rows_and_calls_do_not_resemble_each_other() -> None:
    seed_stream(1, 1, [0, 1, 256], [1] * 3)
    calls = [Draws.new(0.5).kept(torch.Size([3, MANY]), torch.float64) for _ in range(2)]
    seed_stream(1, 2, [0], [1])
    others = [
        Draws.new(0.5).kept(torch.Size([1, MANY]), torch.float64),
        draws_of(2, 0.5).kept(torch.Size([1, MANY]), torch.float64),
    ]
    drawn = torch.cat([*calls, *others]) - 0.5
    bound = 6 * 0.25 / MANY**0.5
    alike = drawn @ drawn.T / MANY
    assert (alike - 0.25 * torch.eye(len(drawn))).abs().max() < bound
    for lag in (1, 2, 3, 4, 5, 64, 768):
        assert (drawn[:, lag:] * drawn[:, :-lag]).mean(dim=1).abs().max() < bound


# ---------------------------------------------------------------------------------------------------------------------
# By row and place


class Beside(NamedTuple):
    """Rows by number, with their lengths, and how they are computed together."""

    lengths: dict[int, int]
    is_left: bool
    heads: int
    heads_at_a_time: int
    rows_at_a_time: int


besides = st.builds(
    Beside,
    st.dictionaries(st.integers(0, 300), st.integers(1, 9), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
)


def own(beside: Beside, drawn: torch.Tensor, place: int, *dimensions: int) -> torch.Tensor:
    """Of what was drawn for the row at `place`, that for its own tokens."""
    length, longest = list(beside.lengths.values())[place], max(beside.lengths.values())
    found = drawn[place]
    for dimension in dimensions:
        found = found.narrow(dimension, longest - length if beside.is_left else 0, length)
    return found


def kept_beside(beside: Beside) -> list[dict[str, torch.Tensor]]:
    """What is kept of each row's own tokens, by kind of tensor."""
    rows, longest = len(beside.lengths), max(beside.lengths.values())
    seed_stream(5, 1, list(beside.lengths), list(beside.lengths.values()), is_left=beside.is_left)
    all_heads = torch.Size([rows, beside.heads, longest, 4])

    def kept(*shape: int) -> torch.Tensor:
        return Draws.new(0.5).kept(torch.Size(shape), torch.float32)

    def pairs() -> torch.Tensor:
        """As attention draws them: some rows, or some heads of one row, at a time."""
        draws, found = Draws.new(0.5), torch.full((rows, beside.heads, longest, longest), torch.nan)
        rows_at_a_time = beside.rows_at_a_time if beside.heads_at_a_time >= beside.heads else 1
        for row in range(0, rows, rows_at_a_time):
            for head in range(0, beside.heads, beside.heads_at_a_time):
                block = slice(row, row + rows_at_a_time), slice(head, head + beside.heads_at_a_time)
                found[block] = draws.kept_of_pairs(*block, all_heads, torch.float32).view(found[block].shape)
        return found

    units, pooled, in_blocks, eager = kept(rows, longest, 7), kept(rows, 5), pairs(), kept(rows, beside.heads, longest, longest)
    tokens_first = kept(longest, rows, 3).swapaxes(0, 1) if longest != rows else None  # what is rows there nobody can tell
    return [
        {
            "units": own(beside, units, place, 0),
            "pooled": pooled[place],
            "in blocks": own(beside, in_blocks, place, 1, 2),
            "eager": own(beside, eager, place, 1, 2),
        }
        | ({"tokens first": own(beside, tokens_first, place, 0)} if tokens_first is not None else {})
        for place in range(rows)
    ]


@given(besides, besides)
def test_what_is_dropped_of_a_row_depends_on_neither_neighbours_nor_padding_nor_blocks(one: Beside, other: Beside) -> None:
    shared = next(iter(one.lengths))
    other = other._replace(lengths={**other.lengths, shared: one.lengths[shared]}, heads=one.heads)
    (alone,) = kept_beside(one._replace(lengths={shared: one.lengths[shared]}, is_left=False))
    for beside in (one, other):
        found = kept_beside(beside)[list(beside.lengths).index(shared)]
        for kind in found.keys() & alone.keys():
            assert torch.equal(found[kind], alone[kind]), kind
        assert set(found["in blocks"].unique().tolist()) <= {0.0, 1.0}


def test_what_belongs_to_no_row_is_dropped_alike_in_every_micro_batch_of_a_step() -> None:
    found = []
    for step, rows in ((1, [3, 4]), (1, [5]), (2, [5])):
        seed_stream(5, step, rows, [4] * len(rows))
        found.append(Draws.new(0.5).kept(torch.Size([50, 7]), torch.float32))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


# ---------------------------------------------------------------------------------------------------------------------
# Forwards and backwards


@given(probabilities, st.integers(0, 2**32))
def test_the_same_units_are_dropped_forwards_and_backwards(probability: float, seed: int) -> None:
    units = torch.rand(7, 33).add_(1).requires_grad_()
    seed_stream(seed, 0, range(7), [1] * 7)
    found = layer(probability)(units)
    found.sum().backward()
    assert units.grad is not None
    torch.testing.assert_close(found, units.detach() * units.grad)
    seed_stream(seed, 0, range(7), [1] * 7)
    assert torch.equal(nn.functional.dropout(units, probability), found), "the seed alone decides, whoever asks"
    assert not torch.equal(layer(probability)(units), found) or found.count_nonzero() in (0, found.numel())


def test_computed_twice_the_same_units_are_dropped_twice() -> None:
    model = nn.Sequential(nn.Linear(16, 16), layer(0.5), nn.Linear(16, 16), layer(0.3)).train()
    units = torch.randn(8, 16)

    def gradients(run: Any) -> list[torch.Tensor]:
        model.zero_grad()
        seed_stream(5, 0, range(8), [1] * 8)
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
    expected = torch.dropout(units, probability, True)
    torch.manual_seed(1)
    assert torch.equal(layer(probability)(units), expected)


def test_nothing_is_dropped_in_evaluation_or_where_a_model_is_compared_with_itself() -> None:
    units = torch.rand(50)
    assert torch.equal(layer(0.5).eval()(units), units)
    with nothing_drawn():
        assert torch.equal(layer(0.5)(units), units)
    assert not torch.equal(layer(0.5)(units), units)


@pytest.mark.parametrize("kind", [nn.Dropout1d(), nn.AlphaDropout(), nn.Dropout(inplace=True)], ids=lambda kind: str(kind))
def test_kinds_with_rules_of_their_own_are_left_alone(kind: nn.Module) -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(kind.train()(torch.ones(2, 3, 50)))
    same, differ = (torch.equal(*pair) for pair in pairwise(results))
    assert same
    assert not differ, "torch's generator decides"
