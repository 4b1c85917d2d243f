"""Linear layers add their gradients where they are kept, lanes in turn: torch's gradient, and the same bits each time."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear
from transformers import AlbertConfig, AlbertForSequenceClassification

from memsup.worker.compute.in_place import add_in_place, keep_apart_what_else_is_used
from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.turns import Turns, is_added_in_turn
from memsup.worker.hardware import autocast

CPU = torch.device("cpu")
sizes = st.integers(1, 9)


def two_layers(width: int, inner: int, outputs: int, *, biased: bool) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, inner, bias=biased), nn.Tanh(), nn.Linear(inner, outputs, bias=biased))


def gradients(model: nn.Module, given_rows: list[torch.Tensor], amp: str | None) -> tuple[list[Any], list[Any]]:
    """Those of the model, summed over all, and those of what each was given."""
    model.zero_grad(set_to_none=True)
    of_given = []
    for rows in given_rows:
        rows = rows.clone().requires_grad_()
        with autocast(CPU, amp):
            loss = model(rows).float().square().sum()
        loss.backward()
        of_given.append(rows.grad)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], of_given


@given(
    sizes,
    sizes,
    sizes,
    st.booleans(),
    st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4),
    st.sampled_from([None, "bf16"]),
)
def test_the_gradient_is_torchs(
    width: int, inner: int, outputs: int, biased: bool, seen: list[tuple[int, int]], amp: str | None
) -> None:
    model = two_layers(width, inner, outputs, biased=biased)
    given_rows = [torch.randn(*shape, width) for shape in seen]
    expected = gradients(model, given_rows, amp)
    assert add_in_place(model) == 2
    found, again = gradients(model, given_rows, amp), gradients(model, given_rows, amp)
    for ours, second, torchs in zip(*([*own, *others] for own, others in (found, again, expected)), strict=True):
        assert torch.equal(ours, second), "the same bits each time"
        if amp is None:
            torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-5)
        else:
            torch.testing.assert_close(ours, torchs, rtol=2**-7, atol=2**-7)


def test_a_gradient_is_added_to_what_is_there() -> None:
    """Also where it is made of pieces: of a layer of many numbers, under mixed precision, bit by bit as torch adds it."""
    layer = nn.Sequential(nn.Linear(700, 500))
    rows = [torch.randn(6, 700) for _ in range(3)]
    expected = gradients(layer, rows, "bf16")
    add_in_place(layer)
    found = gradients(layer, rows, "bf16")
    assert torch.equal(found[0][0], expected[0][0])


def test_what_is_one_row_without_a_dimension_for_it_or_has_no_row_at_all_has_torchs_gradient_too() -> None:
    for shape in ((5,), (0, 5), (2, 0, 5), (2, 3, 4, 5)):
        model = two_layers(5, 3, 2, biased=True)
        rows = [torch.randn(*shape)]
        expected = gradients(model, rows, None)
        add_in_place(model)
        for ours, torchs in zip(*([*own, *others] for own, others in (gradients(model, rows, None), expected)), strict=True):
            torch.testing.assert_close(ours, torchs)


def test_without_a_gradient_nothing_is_kept() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    add_in_place(layer)
    with torch.no_grad():
        assert not layer(torch.ones(2, 4)).requires_grad
    assert layer(torch.ones(2, 4)).requires_grad


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4).requires_grad_(requires_grad=False),
        nn.Linear(4, 4, dtype=torch.bfloat16),
        nn.Linear(4, 4, device="meta"),
        nn.Bilinear(4, 4, 4),
    ],
    ids=["frozen", "lower", "elsewhere", "another kind"],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert add_in_place(nn.Sequential(layer)) == 0
    assert "forward" not in vars(layer)


class Borrows(nn.Module):
    """Uses the weight of a layer past the layer as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.other = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(self.other(self.layer(rows)), self.layer.weight)


def test_a_weight_that_is_used_past_its_layer_is_not_shared() -> None:
    model = Borrows()
    add_in_place(model)
    assert keep_apart_what_else_is_used(model, lambda: model(torch.ones(2, 5)).sum()) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    shared = [name for name, parameter in model.named_parameters() if is_added_in_turn(parameter)]
    assert shared == ["layer.bias", "other.weight", "other.bias"]
    first, second = Lanes(model, 2, 2).models
    assert first.layer.weight is not second.layer.weight
    assert first.other.weight is second.other.weight


def test_layers_that_are_used_again_and_again_are_added_in_the_same_order() -> None:
    """ALBERT uses one layer for all."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "num_attention_heads": 4}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=90, num_hidden_layers=6, **shape)).eval()
    add_in_place(model)
    lanes = Lanes(model, 2, 2)
    ids = [torch.randint(1, 90, (rows, length)) for rows, length in ((3, 40), (1, 4))]

    def part(number: int, one: Any) -> None:
        one(input_ids=ids[number], labels=torch.zeros(len(ids[number]), dtype=torch.long)).loss.backward()

    found = []
    for _ in range(20):
        lanes.drop()
        with lanes.step(contextlib.nullcontext):
            lanes.run([lambda one, number=number: part(number, one) for number in (0, 1)])
        lanes.gather()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=3), st.data())
def test_the_order_does_not_depend_on_who_is_faster_and_nobody_waits_for_ever(programs: list[list[int]], data: Any) -> None:
    """Each lane adds to some of four weights, in any order, as often as it likes."""
    weights = [nn.Parameter(torch.zeros(())) for _ in range(4)]

    def order(pauses: list[int]) -> list[list[int]]:
        added: list[list[int]] = [[] for _ in weights]
        turns, gate = Turns(len(programs)), threading.Barrier(len(programs))

        def run(lane: int) -> None:
            with turns.lane(lane):
                gate.wait(10)
                for place, number in enumerate(programs[lane]):
                    for _ in range(pauses[(7 * lane + place) % len(pauses)]):
                        pass  # another pace
                    with turns.turn(lane, weights[number]):
                        added[number].append(lane)

        threads = [threading.Thread(target=run, args=(lane,), daemon=True) for lane in range(len(programs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "it waits for ever"
        return added

    paces = st.lists(st.sampled_from([0, 100, 20_000]), min_size=1, max_size=5)
    first = order(data.draw(paces))
    assert first == order(data.draw(paces))
    assert sorted(lane for added in first for lane in added) == sorted(
        lane for lane, program in enumerate(programs) for _ in program
    )
