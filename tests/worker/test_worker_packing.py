"""Layers without padding learn what layers with padding learn: the same gradient, the same draws; and only where they can."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
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
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.in_place import add_in_place
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


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def weights(query: torch.Tensor, key: torch.Tensor, scale: float, is_causal: bool) -> torch.Tensor:
    """What each token of one row takes of each other, by head."""
    scores = torch.einsum("qhw,khw->hqk", query, key) * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(dim=-1)


class Kernels:
    """CUDA's two kernels for rows that stand one behind the other, on a CPU, with the arguments that torch's own have; `asked`
    is what they were told. With `sees` a row sees the others as well, as with places that are wrong.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, torch.dtype, list[int], int, float, bool]] = []
        self.sees = False

    def _rows(self, starts: torch.Tensor, *parts: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Each row's part, in float32."""
        lengths = (starts[[0, -1]] if self.sees else starts).diff().tolist()
        yield from zip(*(part.float().split(lengths) for part in parts), strict=True)

    def attend(self, starts: torch.Tensor, scale: float, is_causal: bool, *parts: torch.Tensor) -> torch.Tensor:
        """Attention of tokens x heads x width, row by row."""
        rows = self._rows(starts, *parts)
        found = [torch.einsum("hqk,khw->qhw", weights(query, key, scale, is_causal), value) for query, key, value in rows]
        return torch.cat(found).to(parts[0].dtype)

    def _back(
        self, starts: torch.Tensor, scale: float, is_causal: bool, of_found: torch.Tensor, *parts: torch.Tensor
    ) -> list[torch.Tensor]:
        """The gradients of query, key and value; a kernel is below what torch differentiates by itself."""
        found = []
        for of_sums, query, key, value in self._rows(starts, of_found, *parts):
            used = weights(query, key, scale, is_causal)
            of_weights = torch.einsum("qhw,khw->hqk", of_sums, value)
            of_scores = used * (of_weights - (of_weights * used).sum(dim=-1, keepdim=True)) * scale
            of_query, of_key = torch.einsum("hqk,khw->qhw", of_scores, key), torch.einsum("hqk,qhw->khw", of_scores, query)
            found.append((of_query, of_key, torch.einsum("hqk,qhw->khw", used, of_sums)))
        return [torch.cat(rows).to(parts[0].dtype) for rows in zip(*found, strict=True)]

    def flash(
        self, query: Any, key: Any, value: Any, starts: Any, _: Any, longest: int, __: int, dropout: float, is_causal: bool,
        debug: bool, *, scale: float | None = None, **more: Any,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        assert not debug
        assert set(more.values()) <= {None}
        self.asked.append(("flash", query.dtype, starts.tolist(), longest, dropout, is_causal))
        none, groups = query.new_empty(0), query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return self.attend(starts, scale or 0.0, is_causal, query, key, value), none, none, none, none

    def flash_back(
        self, of_found: Any, query: Any, key: Any, value: Any, *more: Any, scale: float | None = None, **_: Any
    ) -> tuple[torch.Tensor, ...]:
        groups, shape = query.shape[1] // key.shape[1], (key.shape[0], key.shape[1], -1, key.shape[2])
        parts = query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        of_query, *of_others = self._back(more[2], scale or 0.0, more[7], of_found, *parts)
        return of_query, *(one.view(shape).sum(2) for one in of_others)

    def efficient(
        self, query: Any, key: Any, value: Any, bias: Any, starts: Any, _: Any, longest: int, __: int, dropout: float,
        mask: int, keeps: bool = False, *, scale: float | None = None, **more: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert bias is None
        assert keeps
        self.asked.append(("efficient", query.dtype, starts.tolist(), longest, dropout, mask == 1))
        none = query.new_empty(0)
        found = self.attend(starts, scale or 0.0, mask == 1, query[0], key[0], value[0])
        return found.unsqueeze(0), none, none, none, longest, longest

    def efficient_back(
        self, of_found: Any, query: Any, key: Any, value: Any, *more: Any, scale: float | None = None, **_: Any
    ) -> tuple[torch.Tensor, ...]:
        found = self._back(more[2], scale or 0.0, more[10] == 1, of_found[0], query[0], key[0], value[0])
        return *(one.unsqueeze(0) for one in found), query.new_empty(0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """A CPU that has them, and no other attention for such rows."""
    kernels, library = Kernels(), torch.library.Library("aten", "IMPL")
    for name, forward, back in (
        ("_flash_attention", kernels.flash, kernels.flash_back),
        ("_efficient_attention", kernels.efficient, kernels.efficient_back),
    ):
        library.impl(f"{name}_forward", forward, "CPU")
        library.impl(f"{name}_backward", back, "CPU")
    monkeypatch.setattr("memsup.worker.compute.attention.in_blocks", lambda _device: False)
    yield kernels
    library._destroy()


PLAIN = made(BertForSequenceClassification, BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
DECODER = made(LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=2))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LENGTHS, st.booleans(), st.sampled_from([PLAIN, DECODER]))
def test_by_a_gpus_kernels_the_gradient_is_that_of_padded_rows(
    kernels: Kernels, lengths: list[int], checkpointed: bool, model: Any
) -> None:
    is_causal, model = model is DECODER, copy.deepcopy(model)
    padded = gradient(model, lengths, packs=True, checkpointed=checkpointed)
    assert pack(model)
    kernels.asked.clear()
    assert apart(gradient(model, lengths, packs=True, checkpointed=checkpointed), padded) <= 1e-5
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    layers = 2 * SMALL["num_hidden_layers"] if checkpointed else SMALL["num_hidden_layers"]
    assert kernels.asked == [("efficient", torch.float32, starts, max(lengths), 0.0, is_causal)] * layers
    assert torch.equal(gradient(model, lengths, packs=False, checkpointed=checkpointed), padded)


@pytest.mark.parametrize("plain", [PLAIN, DECODER], ids=["encoder", "decoder"])
def test_in_bfloat16_a_gpu_takes_flash_attention(kernels: Kernels, plain: Any) -> None:
    model = copy.deepcopy(plain)
    exact, padded = (gradient(model, [30, 9, 4], packs=False, amp=amp) for amp in ("off", "bf16"))
    assert pack(model, torch.bfloat16)
    kernels.asked.clear()
    assert apart(gradient(model, [30, 9, 4], packs=True, amp="bf16"), exact) <= 1.25 * apart(padded, exact) + 1e-4
    assert kernels.asked == [("flash", torch.bfloat16, [0, 30, 39, 43], 30, 0.0, plain is DECODER)] * 2


def test_a_gpu_has_the_models_dropout(kernels: Kernels) -> None:
    model = copy.deepcopy(BERT)
    assert pack(model, torch.bfloat16)
    kernels.asked.clear()
    gradient(model, [30, 9, 4], packs=True, amp="bf16")
    assert [asked[4] for asked in kernels.asked] == [0.1, 0.1]


def test_a_decoder_whose_frozen_weights_are_rounded_is_asked_in_their_precision(kernels: Kernels) -> None:
    model = copy.deepcopy(DECODER)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.requires_grad_(False)
            module.weight.data = module.weight.data.bfloat16()
    padded = gradient(model, [30, 9, 4], packs=False, amp="bf16")
    assert pack(model, torch.bfloat16)
    assert apart(gradient(model, [30, 9, 4], packs=True, amp="bf16"), padded) <= 0.02


def test_decoders_with_windows_and_decoders_on_a_cpu_are_padded(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pack(made(MistralForCausalLM, MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)))
    monkeypatch.undo()
    assert not pack(copy.deepcopy(DECODER))


@pytest.mark.parametrize("why", ["wrong", "none", "switched off"])
def test_a_gpu_whose_kernels_are_wrong_or_missing_computes_padding(
    kernels: Kernels, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(PLAIN)
    if why == "switched off":
        monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    elif why == "wrong":
        kernels.sees = True
    else:
        monkeypatch.setattr(kernels, "attend", lambda *_: torch.empty(1).view(7))  # raises what torch raises
    assert not pack(model)
    kernels.asked.clear()
    gradient(model, [30, 9, 4], packs=True)
    assert kernels.asked == []
