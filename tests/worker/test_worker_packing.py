"""Layers without padding learn what layers with padding learn: the same gradient, the same draws; and only where they can."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.embedding import add_in_place
from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.packing import pack
from memsup.worker.compute.randomness import seed_stream
from memsup.worker.hardware import autocast, set_activation_checkpointing

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 64}
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=9).map(lambda lengths: sorted(lengths, reverse=True))


@pytest.fixture(autouse=True)
def dropout_is_torchs_again() -> Iterator[None]:
    before = torch.nn.functional.dropout
    draw_by_row()
    attend_in_blocks()
    yield
    torch.nn.functional.dropout = before


def made(kind: Any, config: Any) -> Any:
    torch.manual_seed(1)
    return kind(config).train()


BERT = made(BertForSequenceClassification, BertConfig(**SMALL))
TAGGER = made(BertForTokenClassification, BertConfig(**SMALL))


def gradient(model: Any, lengths: list[int], *, packs: bool, amp: str = "off", checkpointed: bool = False) -> torch.Tensor:
    """Of all weights, as one vector."""
    numbers = torch.arange(len(lengths) * max(lengths)).reshape(len(lengths), -1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = (3 + numbers * 7 % 50) * mask + (~mask)
    model.zero_grad()
    set_activation_checkpointing(model, checkpointed)
    seed_stream(1, 1, range(len(lengths)), lengths, packs=packs)
    with autocast(CPU, amp):
        said = model(input_ids=ids, attention_mask=mask.long()).logits
        of_rows = said if said.ndim == 2 else said[mask]
        (of_rows.float() * torch.linspace(-1, 1, of_rows.shape[0])[:, None]).logsumexp(dim=1).sum().backward()
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return torch.cat([one.flatten() for one in found])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@settings(max_examples=12, deadline=None)
@given(LENGTHS, st.booleans(), st.sampled_from([BERT, TAGGER]))
def test_the_gradient_is_that_of_padded_rows_dropout_included(lengths: list[int], checkpointed: bool, model: Any) -> None:
    model = copy.deepcopy(model)
    add_in_place(model)
    padded = gradient(model, lengths, packs=True, checkpointed=checkpointed)
    assert pack(model)
    packed = gradient(model, lengths, packs=True, checkpointed=checkpointed)
    assert apart(packed, padded) <= 1e-6
    assert torch.equal(gradient(model, lengths, packs=True, checkpointed=checkpointed), packed)
    assert torch.equal(gradient(model, lengths, packs=False, checkpointed=checkpointed), padded)  # a plan may say so


@settings(max_examples=6, deadline=None)
@given(LENGTHS)
def test_in_bfloat16_it_is_no_further_from_float32_than_padded_rows_are(lengths: list[int]) -> None:
    model = copy.deepcopy(BERT)
    exact = gradient(model, lengths, packs=False)
    padded = gradient(model, lengths, packs=False, amp="bf16")
    assert pack(model)
    assert apart(gradient(model, lengths, packs=True, amp="bf16"), exact) <= 1.25 * apart(padded, exact) + 1e-4


def test_attention_of_rows_too_long_for_a_block_goes_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, model = gradient(BERT, [40, 33, 9, 2], packs=False), copy.deepcopy(BERT)
    assert pack(model)
    monkeypatch.setattr("memsup.worker.compute.attention.BLOCK_NUMBERS", 2 * 40 * 40)
    monkeypatch.setattr("memsup.worker.compute.attention.WORTH_PAIRS", 600)
    assert apart(gradient(model, [40, 33, 9, 2], packs=True), whole) <= 1e-6


def test_lanes_pack_as_well() -> None:
    model = copy.deepcopy(BERT)
    assert pack(model)
    one, other = Lanes(model, 2, 2).models
    assert torch.equal(gradient(one, [9, 4, 4], packs=True), gradient(other, [9, 4, 4], packs=True))


SIZES = {name: SMALL[name] for name in ("vocab_size", "max_position_embeddings")}


@pytest.mark.parametrize(
    ("kind", "config", "can"),
    [
        (RobertaForSequenceClassification, RobertaConfig(**SMALL, pad_token_id=1), True),
        (ElectraForSequenceClassification, ElectraConfig(**SMALL, embedding_size=16), True),
        (DistilBertForSequenceClassification, DistilBertConfig(**SIZES, dim=32, n_layers=2, n_heads=4, hidden_dim=48), True),
        (AlbertForSequenceClassification, AlbertConfig(**SMALL, embedding_size=16), False),
        (GPT2ForSequenceClassification, GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, pad_token_id=1), False),
        (MPNetForSequenceClassification, MPNetConfig(**SMALL), False),
        (DebertaV2ForSequenceClassification, DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c"]), False),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_who_can_is_found_out_by_asking(kind: Any, config: Any, can: bool) -> None:
    model = made(kind, config)
    before = gradient(model, [9, 5, 5, 1], packs=True)
    assert pack(model) is can
    after = gradient(model, [9, 5, 5, 1], packs=True)
    assert (apart(after, before) <= 1e-6) if can else torch.equal(after, before)
