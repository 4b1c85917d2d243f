"""An embedding's gradient is added where it is kept: the sum that torch has, without a matrix as large as the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from memsup.worker.compute.in_place import add_in_place
from memsup.worker.hardware import autocast

WORDS, WIDTH = 50, 8
CPU = torch.device("cpu")

batches = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 6)).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(0, WORDS - 1), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
        )
    ),
    min_size=1,
    max_size=4,
)


class Tiny(nn.Module):
    def __init__(self, padding: int | None, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=padding)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.outer.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(self.words(ids)))).square().mean()


def gradients(model: nn.Module, seen: list[Any], amp: str | None = None, *, once: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with autocast(CPU, amp if once else None):
        for ids in seen:
            with autocast(CPU, amp):
                loss = model(torch.tensor(ids))
            with autocast(CPU, None):
                loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@given(batches, st.sampled_from([None, 0, 7]), st.booleans())
def test_the_gradient_is_torchs(seen: list[Any], padding: int | None, tied: bool) -> None:
    model = Tiny(padding, tied=tied)
    expected = gradients(model, seen)
    assert add_in_place(model) == 3
    found, again = gradients(model, seen), gradients(model, seen)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
        assert torch.equal(gradient, again[name]), "the same bits each time"


def test_nothing_as_large_as_the_table_is_made_for_a_micro_batch() -> None:
    table = nn.Embedding(10_000, 64)
    add_in_place(nn.Sequential(table))
    for number in range(2):  # the first makes the gradient itself
        with torch.profiler.profile(profile_memory=True) as seen:
            table(torch.tensor([[1, 2, 3]])).sum().backward()
        made = max(event.self_cpu_memory_usage for event in seen.key_averages())
        assert (made >= 10_000 * 64 * 4) == (number == 0)


@pytest.mark.parametrize(
    "table",
    [
        nn.Embedding(WORDS, WIDTH, max_norm=1.0),
        nn.Embedding(WORDS, WIDTH, sparse=True),
        nn.Embedding(WORDS, WIDTH, scale_grad_by_freq=True),
        nn.Embedding(WORDS, WIDTH).requires_grad_(requires_grad=False),
        nn.Embedding(WORDS, WIDTH, device="meta"),
    ],
    ids=["norm", "sparse", "scaled", "frozen", "elsewhere"],
)
def test_tables_with_rules_of_their_own_are_left_alone(table: nn.Embedding) -> None:
    assert add_in_place(nn.Sequential(table)) == 0
    assert "forward" not in vars(table)


def test_weights_converted_once_for_a_step_give_the_same_bits() -> None:
    model = Tiny(None, tied=False)
    seen = [[[1, 2, 3], [4, 5, 6]], [[7, 8]], [[9]]]
    each, once = gradients(model, seen, "bf16"), gradients(model, seen, "bf16", once=True)
    assert all(torch.equal(once[name], gradient) for name, gradient in each.items())
    assert not torch.equal(each["inner.weight"], gradients(model, seen)["inner.weight"]), "the precision was lower"
