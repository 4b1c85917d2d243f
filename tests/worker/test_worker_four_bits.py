"""Frozen weights in four bits: near numbers, the gradients of the rounded weights, and a run that resumes on its bits."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit.chat import tiny_chat, tiny_chat_model
from kit.one_life import one_life, whole_life

from memsup.checkpoint.reading import verify
from memsup.shared.data.errors import InputError
from memsup.shared.loading import load
from memsup.shared.model import adapters
from memsup.shared.model.libraries import is_installed
from memsup.shared.paths import run_paths
from memsup.shared.settings import SettingsError
from memsup.supervisor.decide.estimate import decoder_shape_of, held_bytes
from memsup.worker import train
from memsup.worker.compute.four_bits import BLOCK, FourBits, held_in_four_bits, hold_in_four_bits, round_to_four_bits
from memsup.worker.hardware import autocast
from memsup.worker.saving import save
from memsup.worker.tasks.answering import load_answering
from memsup.worker.tasks.lora import refuse_other_base

pytestmark = pytest.mark.slow
has_the_library = pytest.mark.skipif(not is_installed("bitsandbytes"), reason="NOT RUN: bitsandbytes is not installed")
CPU = torch.device("cpu")


@has_the_library
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(["off", "bf16"]), st.integers(0, 99))
def test_a_layer_computes_with_the_nearest_of_sixteen_parts(rows: int, columns: int, bias: bool, amp: str, seed: int) -> None:
    """Of the largest weight of each block, whatever the shape; forward and backward as a linear layer of those weights."""
    torch.manual_seed(seed)
    plain = torch.nn.Linear(16 * columns, 4 * rows, bias=bias).requires_grad_(False)  # all of it can be shared out to blocks
    held = FourBits(plain)
    made = held.weight_in(torch.float32)
    largest = plain.weight.reshape(-1, BLOCK).abs().amax(dim=1, keepdim=True)
    assert bool(((made - plain.weight).reshape(-1, BLOCK).abs() <= 0.152 * largest).all()), "half of NF4's widest gap"
    plain.weight.data = made
    found = []
    for layer in (plain, held):
        given = torch.linspace(-1, 1, 3 * 16 * columns).view(3, -1).requires_grad_()
        with autocast(CPU, amp):
            said = layer(given)
        said.float().square().sum().backward()
        found += [said.detach().float(), given.grad]
    near = 1e-6 if amp == "off" else 2e-2
    for one, other in ((found[0], found[2]), (found[1], found[3])):
        assert torch.linalg.vector_norm(one - other) <= near * torch.linalg.vector_norm(one)


def settings(folder: Path, **more: Any) -> Any:
    return tiny_chat(folder, lora__base_bits=4, **more)


@has_the_library
def test_adapters_learn_beside_four_bits_and_answer_alike_afterwards(tmp_path: Path) -> None:
    with one_life(settings(tmp_path, training__lanes=2, training__threads=2), name="bits") as life:
        layers = [one for one in life.prepared.model.modules() if isinstance(one, FourBits)]
        assert len(layers) == 2 * 7
        assert held_in_four_bits(life.prepared.model) == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
        first = life.prepared.model.state_dict() | {}
        for _ in range(4):
            train.take_step(life)
        save(life, last=True)
        newest = max(run_paths("bits").checkpoints.glob("step-*"))
        base = json.loads((newest / "base.json").read_bytes())
        assert base["bits"] == 4
        assert "model.safetensors" in base["files"]
        assert first.keys() == life.prepared.model.state_dict().keys()
        tokens = torch.arange(12).view(1, -1)
        with torch.no_grad():
            own = life.prepared.model.eval()(input_ids=tokens).logits
            merged = load_answering(str(newest)).model
            assert torch.allclose(merged(input_ids=tokens).logits, own, atol=1e-4, rtol=0)


@has_the_library
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_a_killed_run_beside_four_bits_ends_with_the_bits_of_the_undisturbed_one(kills: int, tmp_path: Path) -> None:
    draw, ends = random.Random(kills), []
    wanted = settings(tmp_path, lora__dropout=0.2, checkpoint__every="1ms", training__epochs=1.0 if kills < 40 else 8.0)
    for name, lives in (("undisturbed", [None]), ("killed", [*(draw.randint(5, 60) for _ in range(kills)), None])):
        finished = None
        for killed_after in lives:
            if finished is None:
                finished, _ = whole_life(wanted, name=name, killed_after=killed_after)
        assert finished is not None
        newest = max(run_paths(name).checkpoints.glob("step-*"))
        verify(newest)
        tensors = {part.name: part.read_bytes() for part in newest.glob("*.safetensors")}
        ends.append(((run_paths(name).state / "audit.txt").read_bytes(), finished.metrics, tensors))
    assert ends[0] == ends[1]


@has_the_library
def test_other_bits_are_another_base(tmp_path: Path) -> None:
    with one_life(settings(tmp_path), name="bits") as life:
        save(life, last=True)
        newest = max(run_paths("bits").checkpoints.glob("step-*"))
        base = life.prepared.weights._base
    refuse_other_base(base, newest)
    with pytest.raises(
        InputError, match=r"trained with lora.base_bits = 4, and now there is no lora.base_bits: set it as it was"
    ):
        refuse_other_base(type(base)(source=base.source, files=base.files), newest)


@has_the_library
def test_the_last_layer_and_the_table_stay_as_they_came(tmp_path: Path) -> None:
    import transformers

    folder = str(tiny_chat_model(tmp_path / "untied", tie_word_embeddings=False))
    came, rounded = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    round_to_four_bits(rounded)
    for (name, one), other in zip(came.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(one, other) == ("proj" not in name), name


class SharesLayers(torch.nn.Module):
    """Has a layer under three names, one whose weights are the table's, and looks at weights past their layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = torch.nn.Embedding(64, 64), torch.nn.Linear(64, 8)
        self.first, self.tied = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False)
        self.again, self.tied.weight = self.first, self.table.weight
        self.more = torch.nn.ModuleList([self.first, torch.nn.Linear(64, 64)])

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        given = self.tied(self.table(ids))
        for layer in (self.first, self.again, *self.more):
            given = torch.tanh(layer(given))
        found: torch.Tensor = self.head(given @ self.more[1].weight)
        return found


@has_the_library
def test_layers_of_several_names_and_weights_of_several_layers_are_what_they_become_in_the_result() -> None:
    held = SharesLayers().requires_grad_(requires_grad=False)
    rounded, came = copy.deepcopy(held), copy.deepcopy(held)
    assert hold_in_four_bits(held) == held_in_four_bits(held) == 2 * 64 * 64
    assert held.first is held.again is held.more[0]
    round_to_four_bits(rounded)
    ids = torch.arange(20).view(2, -1)
    assert torch.allclose(held(ids), rounded(ids), atol=1e-5, rtol=0)
    assert torch.equal(rounded.table.weight, came.table.weight)
    assert not torch.equal(rounded.first.weight, came.first.weight)


@pytest.mark.parametrize(("kind", "method"), [("text-classification", None), ("causal-lm", "full")])
def test_where_all_weights_learn_none_is_rounded(kind: Any, method: str | None) -> None:
    with pytest.raises(InputError, match=r"lora.base_bits = 4 is for weights that are frozen.*leave it away"):
        adapters.trains_adapters(kind, method, 4)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "is_installed", lambda name: name != "bitsandbytes")
    with pytest.raises(InputError, match=r"needs bitsandbytes.*pip install 'memsup\[quantized\]', or leave it away"):
        adapters.trains_adapters("causal-lm", None, 4)
    assert adapters.trains_adapters("causal-lm", None)


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"lora.base_bits = 3 \(flag\) is not usable: write 4\."):
        load(job_file=None, flags=["lora.base_bits=3"], environment={})


def test_the_estimate_knows_four_bits() -> None:
    """SmolLM2-135M: 106 million weights in linear layers, each in 4.5 bits in place of 16."""
    config = {
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "tie_word_embeddings": True,
    }
    config |= {"num_key_value_heads": 3, "intermediate_size": 1536}
    one, two = (decoder_shape_of(config, 134_515_008, rank=16, stored="bf16", base_bits=bits) for bits in (None, 4))
    saved = held_bytes(one, amp="bf16") - held_bytes(two, amp="bf16")
    assert saved == pytest.approx((2 - 4.5 / 8) * (134_515_008 - 49152 * 576), rel=0.01)
