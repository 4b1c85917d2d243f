"""Attention in blocks is attention: torch's result and gradient for the same draws, with nothing quadratic kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, BertConfig, BertForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from memsup.supervisor.decide import estimate
from memsup.worker.compute import attention
from memsup.worker.compute.attention import _attend, attend_in_blocks
from memsup.worker.compute.dropout import Draws, draw_by_row
from memsup.worker.compute.randomness import seed_everything, seed_stream
from memsup.worker.hardware import autocast, set_activation_checkpointing

WIDTH, PROBABILITY = 8, 0.25
CPU = torch.device("cpu")
ENCODER = nn.Identity()
ENCODER.is_causal = False  # type: ignore[assignment]


class Case(NamedTuple):
    rows: int
    heads: int
    length: int
    mask: str
    block_numbers: int


cases = st.builds(
    Case,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(["none", "padding", "whole rows", "causal", "numbers", "by head"]),
    st.sampled_from([1, 30, 100, 1 << 20]),
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.nn.functional.dropout
    yield
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    torch.nn.functional.dropout = before


def mask_of(case: Case) -> torch.Tensor | None:
    rows, heads, length = case.rows, case.heads, case.length
    if case.mask == "none":
        return None
    if case.mask == "numbers":
        return torch.randn(rows, 1, length, length, dtype=torch.float64)
    if case.mask == "by head":
        return torch.rand(rows, heads, length, length) < 0.7
    counts = torch.ones(rows, 1, length, length, dtype=torch.bool)
    if case.mask == "causal":
        return counts.tril()
    counts[0, :, :, (length + 1) // 2 :] = False
    if case.mask == "whole rows":
        counts[-1] = False
    return counts


def plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, kept: torch.Tensor
) -> torch.Tensor:
    """Attention as it is written (Vaswani et al. 2017), whole matrices. A token that may see nothing sees all alike."""
    scores = query @ key.transpose(2, 3) * WIDTH**-0.5
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -1e9) if mask.any(dim=-1).all() else scores + torch.where(mask, 0.0, -30_000.0)
    elif mask is not None:
        scores = scores + mask
    return ((scores.softmax(dim=-1) * kept) @ value).transpose(1, 2)


@given(cases, st.integers(0, 2**32), st.booleans())
def test_result_and_gradient_are_those_of_whole_matrices(case: Case, seed: int, is_known: bool) -> None:
    torch.manual_seed(seed)
    shape = torch.Size([case.rows, case.heads, case.length, WIDTH])
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(3)]
    rows = range(case.rows if is_known else 0)
    lengths = [case.length - row % case.length for row in rows]
    mask, direction = mask_of(case), torch.randn(case.rows, case.length, case.heads, WIDTH, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_NUMBERS", case.block_numbers)
        seed_stream(seed, 1, rows, lengths)
        found, weights = _attend(ENCODER, *inputs, mask, dropout=PROBABILITY)  # type: ignore[call-arg]
        gradients = torch.autograd.grad(found, inputs, direction)
        seed_stream(seed, 1, rows, lengths)
        draws, kept = Draws.new(PROBABILITY), torch.full((*shape[:3], case.length), torch.nan, dtype=torch.float64)
        for block in attention._blocks(shape):
            kept[block] = draws.kept_of_pairs(*block, shape, torch.float64).view(kept[block].shape) * draws.scale
    assert weights is None
    expected = plainly(*inputs, mask, kept)  # type: ignore[call-arg]
    torch.testing.assert_close(found, expected)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, wanted)


@given(cases)
def test_blocks_cover_every_row_and_head_once(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_NUMBERS", case.block_numbers)
        shape = torch.Size([case.rows, case.heads, case.length, WIDTH])
        times = torch.zeros(case.rows, case.heads)
        for block in attention._blocks(shape):
            times[block] += 1
            assert times[block].numel() * case.length**2 <= max(case.block_numbers, case.length**2)
    assert (times == 1).all()


@pytest.mark.parametrize(
    "different",
    [{"dropout": 0.0}, {"dropout": 1.0}, {"position_bias": torch.randn(2, 2, 5, 5)}],
    ids=["no dropout", "all dropped", "bias"],
)
def test_whatever_else_is_torchs(different: dict[str, Any]) -> None:
    shape = (2, 2, 5, WIDTH)
    call = {
        "module": ENCODER,
        "query": torch.randn(shape),
        "key": torch.randn(shape),
        "value": torch.randn(shape),
        "attention_mask": None,
        "dropout": PROBABILITY,
    } | different
    torch.manual_seed(1)
    expected, _ = sdpa_attention_forward(**call)
    torch.manual_seed(1)
    assert torch.equal(_attend(**call)[0], expected)


def test_causal_models_and_grouped_heads_draw_by_row_as_well() -> None:
    """Without padding such models come without a mask, and with it with one: it has to be the same draw."""
    causal = nn.Identity()
    causal.is_causal, causal.num_key_value_groups = True, 2  # type: ignore[assignment]
    query, key, value = torch.randn(1, 4, 5, WIDTH), torch.randn(1, 2, 5, WIDTH), torch.randn(1, 2, 5, WIDTH)
    seed_stream(1, 1, [4], [5])
    without, _ = _attend(causal, query, key, value, None, dropout=PROBABILITY)
    seed_stream(1, 1, [4], [5])
    ones = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    whole = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    with_mask, _ = _attend(ENCODER, query, *whole, ones.tril(), dropout=PROBABILITY)
    torch.testing.assert_close(without, with_mask)
    seed_stream(1, 1, [4], [5])
    assert not torch.allclose(_attend(ENCODER, query, *whole, ones, dropout=PROBABILITY)[0], with_mask)


@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
@pytest.mark.parametrize("groups", [1, 2])
def test_without_dropout_it_is_torchs_with_a_backward_pass_in_float32(mask: str, groups: int) -> None:
    """In mixed precision: result and gradients are as near to the exact ones as torch's own; inputs and result are kept."""
    torch.manual_seed(1)
    module = nn.Identity()
    module.is_causal, module.num_key_value_groups = mask == "causal", groups  # type: ignore[assignment]
    heads = [4, 4 // groups, 4 // groups]
    inputs = [torch.randn(2, count, 9, WIDTH).bfloat16().float().requires_grad_() for count in heads]
    counts = None if mask != "padding" else mask_of(Case(2, 4, 9, "padding", 1))
    direction = torch.randn(2, 9, 4, WIDTH).bfloat16()
    kept: list[torch.Tensor] = []

    def errors(attend: Any) -> list[float]:
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            saved_tensors_hooks(lambda one: (kept.append(one), one)[1], lambda one: one),
        ):
            found = attend(module, *(part.bfloat16() for part in inputs), counts)[0]
        assert found.dtype is torch.bfloat16
        gradients = torch.autograd.grad(found, inputs, direction)
        pairs = zip([found.detach(), *gradients], exact, strict=True)
        return [float((one.double() - right).norm() / right.norm()) for one, right in pairs]

    doubles = [one.detach().double().requires_grad_() for one in inputs]
    wanted, _ = sdpa_attention_forward(module, *doubles, counts)
    exact = [wanted.detach(), *torch.autograd.grad(wanted, doubles, direction.double())]
    torchs = errors(sdpa_attention_forward)
    kept.clear()
    ours = errors(_attend)
    assert all(error <= 1.1 * other for error, other in zip(ours, torchs, strict=True)), (ours, torchs)
    assert (
        sum(one.numel() for one in kept if one.dtype is torch.bfloat16) == sum(one.numel() for one in inputs) + wanted.numel()
    )


def test_a_mask_that_learns_gets_its_gradient() -> None:
    mask = torch.zeros(1, 1, 5, 5, requires_grad=True)
    query, key, value = (torch.randn(1, 2, 5, WIDTH) for _ in range(3))
    _attend(ENCODER, query, key, value, mask, dropout=PROBABILITY)[0].sum().backward()
    assert mask.grad is not None


def bert() -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertForSequenceClassification(config).train()
    draw_by_row()
    attend_in_blocks()
    return model


def gradients(model: Any, ids: torch.Tensor, mask: torch.Tensor, amp: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    seed_everything(7, 0, range(len(ids)), mask.sum(dim=1).tolist())
    with autocast(CPU, amp):
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.zeros(len(ids), dtype=torch.long)).loss
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("length", [5, 16])
def test_in_a_real_model_padding_changes_nothing_and_computing_twice_gives_the_same_bits(amp: str, length: int) -> None:
    model, ids = bert(), torch.randint(1, 90, (3, 16))
    mask = (torch.arange(16) < torch.tensor([16, 9, length])[:, None]).long()
    kept = gradients(model, ids, mask, amp)
    assert all(torch.isfinite(gradient).all() for gradient in kept.values())
    again = gradients(model, torch.where(mask.bool(), ids, 3), mask, amp)
    set_activation_checkpointing(model, on=True)
    twice = gradients(model, ids, mask, amp)
    for name, gradient in kept.items():
        assert torch.equal(gradient, twice[name]), name
        if "word_embeddings" not in name:
            torch.testing.assert_close(gradient, again[name])


def test_in_a_real_model_nothing_quadratic_is_kept() -> None:
    model = bert()

    def kept_bytes(length: int) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_floating_point():
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            ids = torch.ones(1, length, dtype=torch.long)
            kept.append(model(input_ids=ids, attention_mask=ids).logits)
        return sum(sizes.values())

    kept: list[torch.Tensor] = []
    quarter, half, whole = (kept_bytes(length) for length in (128, 256, 512))
    assert whole - half <= 2.05 * (half - quarter), "twice the tokens, twice the memory"


def test_the_estimate_before_loading_knows_the_size_of_a_block() -> None:
    assert estimate.BLOCK_NUMBERS == attention.BLOCK_NUMBERS
