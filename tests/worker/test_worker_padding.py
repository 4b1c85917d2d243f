"""Where rows are padded, if at all, is found out of the model: then no cut changes it, and the saved model says the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from kit.lone_supervisor import tiny_settings
from kit.one_life import decisions, one_life
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from memsup.shared.data.errors import InputError
from memsup.shared.messages import DecisionKind
from memsup.shared.settings import Settings
from memsup.worker import train
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.evaluating import evaluate
from memsup.worker.plan.batches import cut
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding, Same, choose, in_words
from memsup.worker.tasks.probe import Probe
from memsup.worker.tasks.targets import logits_of
from memsup.worker.training import Training

RIGHT, LEFT, NONE = Padding.RIGHT, Padding.LEFT, Padding.NONE
BOTH = [RIGHT, LEFT]
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
XLNET = {"model_type": "xlnet", "vocab_size": 200, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "pad_token_id": 0}
FUNNEL = {"model_type": "funnel", "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]}
FUNNEL |= {"num_decoder_layers": 1, "vocab_size": 100, "pad_token_id": 0}


@pytest.fixture(autouse=True, scope="module")
def drawing_by_row() -> Iterator[None]:
    before = torch.nn.functional.dropout
    draw_by_row()
    attend_in_blocks()
    yield
    torch.nn.functional.dropout = before


# ---------------------------------------------------------------------------------------------------------------------
# What is decided


@given(st.booleans(), st.booleans(), st.permutations(BOTH), st.lists(st.booleans(), min_size=2, max_size=2))
def test_the_first_side_that_works_is_taken_and_no_model_that_sees_its_neighbours(
    after: bool, beside: bool, sides: list[Padding], work: list[bool]
) -> None:
    found = choose(Same(after, beside, dict(zip(sides, work, strict=True))))
    assert (found is None) == (not (after and beside))
    if found is not None:
        assert found is (sides[work.index(True)] if any(work) else NONE)
        assert (in_words(found, sides[0]) is None) == work[0], "what is as the tokenizer has it is no news"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 60), st.sampled_from([1, 2]))
def test_with_equal_lengths_every_row_is_computed_once_and_none_is_padded(lengths: list[int], tokens: int, lanes: int) -> None:
    plan = Entry(step=1, start=tokens, lanes=lanes, equal_lengths=True, cause="", at_unix_s=0.0)
    of = np.array(lengths, np.int32)
    cuts = cut(np.arange(len(of)), of, plan)
    assert sorted(np.concatenate(cuts).tolist()) == list(range(len(of)))
    assert all(len(set(of[rows])) == 1 for rows in cuts)


# ---------------------------------------------------------------------------------------------------------------------
# What is seen of a model


def probe_of(model: Any, lengths: Sequence[int] = (9, 5, 12, 9, 6), padding_token: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 90, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[-1] = 3  # where a model wants the end of a text

    def batch(numbers: Any, side: Padding) -> dict[str, torch.Tensor]:
        chosen = [rows[number] for number in numbers]
        pads = [max(map(len, chosen)) - len(row) for row in chosen]
        both = [(pad, 0) if side is LEFT else (0, pad) for pad in pads]
        pad = torch.nn.functional.pad
        return {
            "input_ids": torch.stack([pad(row, space, value=padding_token) for row, space in zip(chosen, both, strict=True)]),
            "attention_mask": torch.stack([pad(torch.ones_like(row), space) for row, space in zip(chosen, both, strict=True)]),
        }

    return Probe(model, logits_of, batch, np.array(lengths, np.int32), lambda: None)


def classifier(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config)


LLAMA = transformers.LlamaConfig(**SMALL, num_key_value_heads=1, attention_dropout=0.1)
BART = transformers.BartConfig(
    vocab_size=100,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    pad_token_id=0,
    eos_token_id=3,
)
CONFIGS = {
    "bert": (transformers.BertConfig(**SMALL), {RIGHT: True}),
    "gpt2": (transformers.GPT2Config(**GPT2), {LEFT: False, RIGHT: True}),
    "llama": (LLAMA, {LEFT: True}),
    "xlnet": (transformers.XLNetConfig(**XLNET), {RIGHT: False, LEFT: True}),
    "funnel": (transformers.FunnelConfig(**FUNNEL), {RIGHT: True}),
    "bart": (BART, {RIGHT: True}),
    "deberta-v2": (transformers.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]), {RIGHT: True}),
    "longformer": (transformers.LongformerConfig(**SMALL, attention_window=4, max_position_embeddings=40), {RIGHT: True}),
    "mixtral": (transformers.MixtralConfig(**SMALL, num_key_value_heads=1), {RIGHT: True}),
    "convbert": (transformers.ConvBertConfig(**SMALL, embedding_size=32), {RIGHT: False, LEFT: False}),
    "fnet": (transformers.FNetConfig(**{k: v for k, v in SMALL.items() if "heads" not in k}), {RIGHT: False, LEFT: False}),
}
DRAWS_ITS_OWN_WAY = {"funnel", "longformer"}
"""Those whose dropout is on tensors in which rows are not where they are elsewhere."""


@pytest.mark.parametrize("name", CONFIGS)
def test_where_a_model_may_be_padded_is_seen(name: str) -> None:
    config, expected = CONFIGS[name]
    probe = probe_of(classifier(config))
    same = probe.same(list(expected))
    found = choose(same)
    assert same == Same(after_others=True, beside_others=True, padded=expected)
    assert found is not None
    assert probe.draws_by_cut(found) == (name in DRAWS_ITS_OWN_WAY)


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_a_head_that_says_nothing_yet_hides_nothing(weight: float) -> None:
    model = classifier(transformers.GPT2Config(**GPT2))
    torch.nn.init.constant_(model.score.weight, weight)
    assert probe_of(model).same([LEFT, RIGHT]).padded == {LEFT: False, RIGHT: True}
    assert (model.score.weight == weight).all(), "the model itself is as it was"


def test_a_model_that_changes_for_good_at_another_length_is_seen_and_left_as_it_was() -> None:
    """BigBird computes all of the attention from the first short batch on, of long rows as well."""
    sparse = {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 100}
    model = classifier(transformers.BigBirdConfig(**SMALL, **sparse))
    same = probe_of(model, [9, 5, 60, 60]).same(BOTH)
    assert not same.after_others
    assert model.bert.attention_type == "block_sparse"
    assert choose(probe_of(model, [9, 5, 12]).same(BOTH)) is RIGHT, "where no row is long, nothing changes"


@pytest.mark.parametrize("in_training_alone", [False, True])
def test_a_model_that_mixes_its_rows_is_seen(in_training_alone: bool) -> None:
    """As one does that normalises over the rows of a batch, by whatever code."""

    class Mixing(torch.nn.Module):
        def forward(self, units: torch.Tensor) -> torch.Tensor:
            return units if in_training_alone and not self.training else units - units.mean(dim=0, keepdim=True) / 2

    model = classifier(transformers.BertConfig(**SMALL))
    model.bert.encoder.layer[0].output.add_module("LayerNorm", Mixing())
    assert choose(probe_of(model).same(BOTH)) is None


def test_buffers_that_training_changes_are_left_as_they_were() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, units: torch.Tensor) -> torch.Tensor:
            self.seen += self.training
            return units

    model = classifier(transformers.BertConfig(**SMALL))
    model.classifier = torch.nn.Sequential(Counting(), model.classifier)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe_of(model).same(BOTH)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# In a run


def decoder_folder(folder: Path, reviews: Path, side: str) -> Path:
    """A GPT-2 as decoders are shipped: absolute positions, no padding token, and a tokenizer that pads on this side."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(reviews.read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", padding_side=side, model_max_length=128
    )
    torch.manual_seed(0)
    config = GPT2 | {"vocab_size": len(tokenizer), "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
    del config["pad_token_id"]
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of_config(tmp_path: Path, config: dict[str, Any], **values: Any) -> Settings:
    """The tiny job with another model, trained from nothing, whose tokenizer pads on the right."""
    asked = tiny_settings(tmp_path, training__effective_batch=8, **values)
    (Path(asked.task.model or "") / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return asked


def learnt(training: Training, steps: int) -> torch.Tensor:
    for _ in range(steps):
        train.take_step(training)
    return torch.cat([value.detach().flatten() for value in training.prepared.model.parameters()])


def says_alone(training: Training) -> torch.Tensor:
    """What the model says of each evaluation row alone."""
    model, rows = training.prepared.model.eval(), training.prepared.evaluation
    with torch.no_grad():
        return torch.cat([logits_of(model, rows.batch(np.array([row]))) for row in range(len(rows))])


def loss_of(logits: torch.Tensor, training: Training) -> float:
    labels = training.prepared.evaluation.batch(np.arange(len(training.prepared.evaluation)))["labels"]
    return float(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_learns_the_same_under_any_cut_and_says_the_same_saved(tmp_path: Path, side: str) -> None:
    """With dropout. A tokenizer that pads on the left moves the rows of a model with absolute positions."""
    reviews = Path(tiny_settings(tmp_path).task.train or "")
    folder = decoder_folder(tmp_path / "decoder", reviews, side)
    ends = []
    for micro_tokens in (64, 1024):
        asked = tiny_settings(tmp_path, task__model=str(folder), training__micro_tokens=micro_tokens, training__max_length=64)
        with one_life(asked, name=f"decoder-{micro_tokens}") as life:
            told = [said.detail for said in decisions(life) if said.what is DecisionKind.CUT_REFUSED]
            assert life.prepared.padding is RIGHT
            assert len(told) == (side == "left"), told
            assert life.prepared.model.config.resid_pdrop > 0
            ends.append(learnt(life, 4))
            evaluate(life)
            alone = says_alone(life)
            assert life.evaluated is not None
            assert life.evaluated.metrics["loss"] == pytest.approx(loss_of(alone, life), rel=1e-5)
            saved = life.session.checkpoint_now().path
    assert torch.linalg.vector_norm(ends[0] - ends[1]) <= 1e-5 * torch.linalg.vector_norm(ends[1])
    texts = [line.rsplit(",", 1)[0].strip('"') for line in reviews.read_text(encoding="utf-8").splitlines()[1:33]]
    pipeline = transformers.pipeline("text-classification", model=saved, tokenizer=saved, device="cpu")
    together, one_by_one = (pipeline(texts, batch_size=size) for size in (16, 1))
    assert [found["score"] for found in together] == pytest.approx([found["score"] for found in one_by_one], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "padding"), [(XLNET | {"dropout": 0.0}, LEFT), (CONFIGS["fnet"][0].to_dict(), NONE)], ids=["left", "none"]
)
def test_a_model_that_sees_padding_on_the_right_learns_the_same_under_any_cut(
    tmp_path: Path, config: dict[str, Any], padding: Padding
) -> None:
    """It is padded on the other side, or not at all; and a later life does as the first one did, without asking the model.
    XLNet drops of a table of distances whose middle moves with the padding, so here it drops nothing.
    """
    ends = []
    for micro_tokens in (20, 1000):
        with one_life(of_config(tmp_path, config, training__micro_tokens=micro_tokens), name=f"cut-{micro_tokens}") as life:
            assert life.prepared.padding is padding
            assert life.plan.at(1).equal_lengths is (padding is NONE)
            assert [said.what for said in decisions(life)] == [DecisionKind.CUT_REFUSED]
            ends.append(learnt(life, 3))
            evaluate(life)
            assert life.evaluated is not None
            assert life.evaluated.metrics["loss"] == pytest.approx(loss_of(says_alone(life), life), rel=1e-4)
            life.session.checkpoint_now()
    assert torch.linalg.vector_norm(ends[0] - ends[1]) <= 1e-4 * torch.linalg.vector_norm(ends[1])
    with one_life(of_config(tmp_path, config, training__micro_tokens=1000), name="cut-1000") as later:
        assert later.step == 3
        assert later.prepared.padding is padding
        assert later.plan.at(4).equal_lengths is (padding is NONE)
        assert not decisions(later)


@pytest.mark.slow
def test_a_model_that_says_something_else_beside_other_rows_is_refused(tmp_path: Path) -> None:
    config = SMALL | {"model_type": "big_bird", "block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 100}
    with pytest.raises(InputError, match="after it has computed another one"), one_life(of_config(tmp_path, config, words=60)):
        pass
