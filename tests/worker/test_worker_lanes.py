"""Lanes compute side by side what one lane computes alone: shared weights, gradients of their own, added in a fixed order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from memsup.shared.lanes import MOST_FRACTION, lane_bytes, lanes_for
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.in_place import add_in_place
from memsup.worker.compute.lanes import Lanes, draws_elsewhere
from memsup.worker.compute.randomness import next_call, repeated, seed_stream
from memsup.worker.hardware import autocast

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def dropout_is_torchs_again() -> Iterator[None]:
    before = torch.nn.functional.dropout
    yield
    torch.nn.functional.dropout = before


def bert(**changes: Any) -> Any:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **changes
    )
    model = BertForSequenceClassification(config).train()
    add_in_place(model)
    draw_by_row()
    attend_in_blocks()
    return model


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.zeros(len(ids), dtype=torch.long)
    ).loss
    return loss


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_weights_are_the_same_memory_and_so_are_gradients_that_are_added_in_turn() -> None:
    model = bert()
    lanes = Lanes(model, 2, 2)
    first, second = lanes.models
    assert first is model
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert (one is other) == ("LayerNorm" not in name)
    for one, other in zip(first.buffers(), second.buffers(), strict=True):
        assert one is other
    loss_of(second, torch.ones(1, 5, dtype=torch.long)).backward()
    assert all(("LayerNorm" in name) == (parameter.grad is None) for name, parameter in first.named_parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())
    lanes.gather()
    assert all(parameter.grad is not None for parameter in first.parameters())
    lanes.drop()
    assert all(parameter.grad is None for one in lanes.models for parameter in one.parameters())
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    assert torch.equal(next(first.parameters()), next(second.parameters())), "a step of the optimizer is everybody's"


def test_tied_weights_are_tied_in_every_lane() -> None:
    table = nn.Embedding(9, 4)
    tied = nn.ModuleDict({"table": table, "out": nn.Linear(4, 9, bias=False)})
    tied["out"].weight = table.weight
    (_, second) = Lanes(tied, 2, 2).models
    assert second["out"].weight is second["table"].weight


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_side_by_side_gives_the_bits_of_one_after_the_other(amp: str) -> None:
    """With dropout in every place that BERT has; twenty times, since who comes first is chance."""
    ids = [
        torch.randint(1, 90, (rows, length), generator=torch.Generator().manual_seed(3)) for rows, length in ((2, 9), (3, 5))
    ]

    def part(number: int, model: Any) -> torch.Tensor:
        rows, length = ids[number].shape
        seed_stream(7, 1, range(10 * number, 10 * number + rows), [length] * rows)
        loss = loss_of(model, ids[number])
        with autocast(CPU, None):
            loss.backward()
        return loss.detach()

    lanes = Lanes(bert(), 2, 2)
    torch.set_num_threads(1)
    with autocast(CPU, amp):
        losses = [part(number, model) for number, model in enumerate(lanes.models)]
    lanes.gather()
    expected = gradients(lanes.models[0])
    assert all(
        one is other or other.grad is None for one, other in zip(*(lane.parameters() for lane in lanes.models), strict=True)
    )
    for _ in range(20):
        lanes.drop()
        with lanes.step(lambda: autocast(CPU, amp)):
            found = lanes.run([lambda model, number=number: part(number, model) for number in (0, 1)])
        lanes.gather()
        assert found == losses
        assert all(torch.equal(*pair) for pair in zip(gradients(lanes.models[0]), expected, strict=True))


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_part_raises_comes_when_the_other_has_ended(failing: int) -> None:
    ended, waits = threading.Event(), threading.Event()

    def fails(_model: Any) -> None:
        waits.set()
        raise MemoryError("no room")

    def slow(_model: Any) -> None:
        assert waits.wait(10), "both parts run at the same time"
        ended.set()

    lanes = Lanes(nn.Linear(2, 2), 2, 2)
    with pytest.raises(MemoryError, match="no room"), lanes.step(nullcontext):
        lanes.run([fails, slow] if failing == 0 else [slow, fails])
    assert ended.is_set()
    assert torch.get_num_threads() == 2
    with lanes.step(nullcontext):
        assert lanes.run([lambda _model: 1, lambda _model: 2]) == [1, 2], "and the lanes go on"


def test_a_single_part_has_all_threads_and_two_have_half_each() -> None:
    lanes = Lanes(nn.Linear(2, 2), 2, 2)
    torch.set_num_threads(2)
    assert lanes.run([lambda _model: torch.get_num_threads()]) == [2]
    assert lanes.run([lambda _model: torch.get_num_threads()] * 2) == [1, 1]
    assert torch.get_num_threads() == 2


def test_a_model_that_draws_from_torchs_generator_is_found_out() -> None:
    model, ids = bert(), torch.ones(1, 5, dtype=torch.long)
    before = torch.get_rng_state()
    assert not draws_elsewhere(lambda: loss_of(model, ids))
    assert draws_elsewhere(lambda: torch.rand(4))
    assert torch.equal(torch.get_rng_state(), before), "and is left as it was"


@given(st.integers(0, 2**63 - 1), st.integers(0, 9), st.integers(0, 9))
def test_a_thread_draws_from_a_stream_of_its_own(seed: int, step: int, count: int) -> None:
    seed_stream(seed, step, [3], [5])
    expected = [next_call() for _ in range(count + 2)]
    seed_stream(seed, step, [3], [5])
    found = [next_call()]

    def other() -> None:
        seed_stream(seed + 1, step)
        next_call()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    first, again = repeated()
    with first:
        drawn = [next_call() for _ in range(count)]
    with again:
        assert [next_call() for _ in range(count)] == drawn
    assert [*found, *drawn, next_call()] == expected, "what was repeated has not moved it"
    assert len({call.number for call in expected}) == len(expected)


@given(
    st.integers(1, 10**10),
    st.sampled_from(["off", "bf16", "fp16"]),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(1, 2**40)),
)
def test_a_second_lane_never_takes_more_than_its_share(
    parameters: int, amp: str, threads: int, limit_bytes: int | None
) -> None:
    lanes = lanes_for(parameters=parameters, apart=parameters, amp=amp, threads=threads, limit_bytes=limit_bytes)
    assert lanes in (1, 2)
    assert lanes <= lanes_for(parameters=parameters, apart=0, amp=amp, threads=threads, limit_bytes=limit_bytes)
    if lanes == 2:
        assert threads % 2 == 0
        assert limit_bytes is not None
        assert lane_bytes(apart=parameters, amp=amp) <= MOST_FRACTION * limit_bytes


def test_a_small_model_on_a_usual_machine_has_two_lanes() -> None:
    small: dict[str, Any] = {"parameters": 19_000_000, "amp": "bf16"}
    assert lanes_for(**small, apart=19_000_000, threads=2, limit_bytes=2000 * MIB) == 2
    assert lanes_for(**small, apart=19_000_000, threads=2, limit_bytes=1400 * MIB) == 1
    assert lanes_for(**small, apart=10_000, threads=2, limit_bytes=1400 * MIB) == 2, "a gradient that is shared takes nothing"
    assert lanes_for(parameters=102_000_000, apart=0, amp="off", threads=8, limit_bytes=2000 * MIB) == 1
    assert lanes_for(**small, apart=0, threads=3, limit_bytes=2000 * MIB) == 1, "half a thread is none"
