"""What a step's products are, against torch's own count; and where the time of a step goes, looked at while it is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.peak import Work, product_rate, work_of
from memsup.worker.compute.spent import Part, note, noted, spent_on

BERT = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
DISTILLED = DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
LLAMA = LlamaConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48
)


def counted(model: Any, length: int) -> int:
    """The operations of forward and backward pass of one row, by torch, without computing."""
    ids = torch.ones(1, length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        found = model(input_ids=ids)
        (found.loss if found.loss is not None else found.logits.sum()).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForSequenceClassification, BERT),
        (DistilBertForSequenceClassification, DISTILLED),
        (GPT2LMHeadModel, GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        (LlamaForCausalLM, LLAMA),
    ],
)
@pytest.mark.parametrize("length", [1, 17, 64])
def test_work_is_what_torch_counts(kind: Any, config: Any, length: int) -> None:
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = kind(config)
    work = work_of(model)
    assert work is not None
    assert work.of([length], targets=length) == counted(model, length)


def test_what_is_frozen_needs_no_gradient_of_its_own() -> None:
    model = LlamaForCausalLM(LLAMA)
    whole = work_of(model)
    model.requires_grad_(False)
    frozen = work_of(model)
    assert whole is not None
    assert frozen is not None
    assert frozen.per_token * 3 == whole.per_token * 2


def test_of_a_model_that_is_built_in_another_way_nothing_is_known() -> None:
    shared = AlbertConfig(vocab_size=40, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64)
    with torch.device("meta"):
        assert work_of(AlbertForSequenceClassification(shared)) is None


def test_lanes_note_who_waits_and_what_is_spent_side_by_side_counts_half() -> None:
    lanes = Lanes(BertForTokenClassification(BERT), 2, 2)

    def part(seconds: float) -> Any:
        def spend(_: Any) -> None:
            with spent_on(Part.ATTENTION):
                torch.randn(1).item()
            noted_now = noted()
            if noted_now is not None:
                noted_now.notes.append((Part.LOADING, seconds / noted_now.in_use))

        return spend

    with note() as spent:
        lanes.run([part(1.0), part(3.0)])
        lanes.run([part(5.0)])
    assert spent.seconds(Part.LOADING) == 2.0 + 5.0
    assert 0 < spent.seconds(Part.ATTENTION) < 1
    assert spent.seconds(Part.WAITING) >= 0
    lanes.run([part(1.0), part(1.0)])
    assert noted() is None


def test_the_rate_of_products_is_found_in_a_moment_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    work = Work(per_row=0, per_token=1, per_target=0, per_square=0, inputs=16, outputs=32)
    assert product_rate(work, torch.float32) > 0
    assert torch.equal(before, torch.get_rng_state())
