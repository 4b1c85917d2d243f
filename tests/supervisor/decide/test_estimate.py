"""What a job takes of memory is told before it is loaded, and one that cannot fit is refused with settings that would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.lanes import BASE_BYTES
from memsup.shared.loading import load
from memsup.shared.settings import Settings, SettingsError
from memsup.supervisor.client.task import model_shape
from memsup.supervisor.decide.estimate import (
    Shape,
    decoder_shape_of,
    estimate,
    grown_bytes,
    held_bytes,
    least_bytes,
    peak_bytes,
    shape_of,
)
from memsup.supervisor.decide.readings import GpuReading, Machine
from memsup.supervisor.decide.tier_lines import lines
from memsup.supervisor.decide.tiers import FIRST_FRACTION, Resolution, resolve
from memsup.supervisor.words import size

MIB, GIB = 2**20, 2**30
BASE = {"vocab_size": 21128, "max_position_embeddings": 512, "type_vocab_size": 2}
SMALL = BASE | {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
CHINESE = BASE | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def shape(config: dict[str, Any]) -> Shape:
    found = shape_of(config, None, 2)
    assert found is not None
    return found


def resolved(gib: float, config: dict[str, Any], *flags: str, **more: Any) -> Resolution:
    loaded = load(job_file=None, flags=["task.model=/model", *flags], environment={})
    machine = Machine(ram_total_bytes=int(gib * GIB), ram_available_bytes=None, **more)
    return resolve(loaded.settings, loaded.origins, machine, shape(config))


@pytest.mark.parametrize(("config", "labels"), [(SMALL, 2), (CHINESE, 14)])
def test_the_arithmetic_counts_as_the_library_does(config: dict[str, Any], labels: int) -> None:
    """A config without weights: every parameter that transformers makes of it, and no other."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**config, num_labels=labels))
    found = shape_of(config, None, labels)
    assert found is not None
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.embeddings == model.get_input_embeddings().weight.numel()


def test_weights_are_counted_by_their_headers(tmp_path: Path) -> None:
    """A model as `save_pretrained` writes it, in one file or in shards: nothing but the headers is read."""
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SMALL | {"num_hidden_layers": 1, "vocab_size": 300}))
    for folder, shard in ((tmp_path / "one", "1GB"), (tmp_path / "shards", "1MB")):
        model.save_pretrained(folder, max_shard_size=shard)
        found = model_shape(str(folder))
        assert found is not None
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"not JSON"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "mamba", "vocab_size": 100}'),
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors", b"ab"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
    ],
)
def test_what_a_folder_does_not_tell_is_unknown(tmp_path: Path, name: str, content: bytes) -> None:
    """Neither a hub id nor a damaged file is an error here: the worker says what is wrong with a model."""
    assert model_shape("hfl/chinese-roberta-wwm-ext") is None
    assert model_shape(None) is None
    (tmp_path / "config.json").write_text(str(CHINESE).replace("'", '"'), encoding="utf-8")
    assert model_shape(str(tmp_path)) == shape(CHINESE)
    (tmp_path / name).write_bytes(content)
    assert model_shape(str(tmp_path)) is None


def test_a_model_at_a_hub_is_said_to_be_unknown() -> None:
    """And nothing is refused for it."""
    settings = load(job_file=None, flags=["task.model=bert-base-chinese"], environment={}).settings
    found = resolve(settings, {}, Machine(ram_total_bytes=GIB + GIB // 4, ram_available_bytes=None))
    assert found.needs is None
    assert "not known before" in next(line.value for line in lines(found) if line.name == "memory needed")


shapes = st.builds(
    Shape,
    parameters=st.integers(10**6, 10**9),
    embeddings=st.integers(10**5, 10**6),
    layers=st.integers(1, 48),
    hidden=st.integers(64, 2048),
    heads=st.integers(1, 32),
    intermediate=st.integers(64, 8192),
    positions=st.none() | st.integers(16, 4096),
)


@given(shapes, st.sampled_from(["off", "bf16", "fp16"]), st.integers(1, 64), st.integers(1, 4096), st.booleans())
def test_more_work_never_takes_less(model: Shape, amp: str, rows: int, length: int, checkpointing: bool) -> None:
    """Of rows or of tokens; and nothing takes less than what is held anyway."""
    peak = peak_bytes(model, amp=amp, rows=rows, length=length, checkpointing=checkpointing)
    assert held_bytes(model, amp=amp) < peak
    assert peak <= peak_bytes(model, amp=amp, rows=rows + 1, length=length, checkpointing=checkpointing)
    assert peak <= peak_bytes(model, amp=amp, rows=rows, length=length + 1, checkpointing=checkpointing)
    assert peak <= grown_bytes(model, amp=amp, rows=rows, length=length, checkpointing=checkpointing)


def test_a_text_is_never_longer_than_the_model_takes() -> None:
    """512 positions, whatever max_length says; and a micro-batch has no more rows than a step."""
    found = estimate(shape(SMALL), amp="off", max_length=4096, micro_tokens=10**6, effective_batch=16, checkpointing=False)
    assert (found.length, found.rows) == (512, 16)


def test_a_job_that_cannot_fit_is_refused_and_what_is_advised_fits() -> None:
    """One sentence with both numbers; the length and the limit that it names are taken at its word."""
    contained = {"machine_ram_bytes": 24 * GIB, "ram_source": "cgroup /box"}
    for gib, flags in ((2.1, ["training.max_length=512"]), (1.0, ["training.max_length=128"])):
        with pytest.raises(SettingsError) as refused:
            resolved(gib, CHINESE, *flags, **contained)
        said = str(refused.value)
        assert "\n" not in said
        assert "102 million" in said
        assert "choose a smaller model" in said
        needed = re.search(r"so that it has ([\d.]+) GiB", said)
        assert needed is not None
        assert resolved(24, CHINESE, *flags, f"limits.ram={float(needed[1]) + 0.01}GiB", "tier=low").needs is not None
        shorter = re.search(r"lower training.max_length to (\d+)", said)
        assert (shorter is not None) == (gib > 2)
        if shorter is not None:
            assert resolved(gib, CHINESE, f"training.max_length={shorter[1]}", **contained).needs is not None


def test_activation_checkpointing_is_switched_on_where_a_text_needs_it() -> None:
    """Not before, not against an explicit wish, and said."""

    def line(found: Resolution) -> str:
        return next(f"{line.value} {line.origin}" for line in lines(found) if line.name == "activation checkpointing")

    flags = ["training.max_length=512", "tier=full"]
    tight, roomy = resolved(24, CHINESE, *flags, "limits.ram=2.1GiB"), resolved(24, CHINESE, *flags, "limits.ram=4GiB")
    assert "would not fit without" in line(tight)
    assert tight.settings.training.gradient_checkpointing is True
    assert roomy.settings.training.gradient_checkpointing is False
    asked = resolved(24, CHINESE, *flags, "limits.ram=2.1GiB", "training.gradient_checkpointing=false")
    assert asked.settings.training.gradient_checkpointing is False


def test_what_several_ranks_need_is_what_all_of_them_need() -> None:
    one, two = (resolved(24, CHINESE, f"training.ranks={ranks}", "training.device=cpu") for ranks in (1, 2))
    assert one.needs is not None
    assert two.needs is not None
    needed = next(line for line in lines(two) if line.name == "memory needed")
    assert needed.value.startswith(f"about {size(2 * two.needs.micro_batch_bytes)} to begin with")
    assert needed.origin.endswith(", in each of 2 ranks")
    assert "ranks" not in next(line.origin for line in lines(one) if line.name == "memory needed")


def test_ranks_that_share_a_model_need_their_part_of_it_and_so_fit_where_none_has_room_for_all() -> None:
    flags = ["training.ranks=2", "training.device=cpu", "training.max_length=128"]
    apart, shared = (resolved(24, CHINESE, *flags, f"training.shard={shard}") for shard in ("false", "true"))
    assert apart.needs is not None
    assert shared.needs is not None
    weights = 16 * apart.needs.shape.parameters
    assert 0.3 * weights < apart.needs.held_bytes - shared.needs.held_bytes < weights / 2
    assert shared.lanes == 1
    assert next(line.origin for line in lines(shared) if line.name == "memory needed").endswith(
        "ranks, which share the weights"
    )
    with pytest.raises(SettingsError, match="million weights"):
        resolved(24, CHINESE, *flags, "limits.ram=3.4GiB")
    assert resolved(24, CHINESE, *flags, "limits.ram=3.4GiB", "training.shard=true").needs is not None


def test_on_a_gpu_what_is_held_must_fit_its_memory() -> None:
    """Activations are not estimated there, and RAM is not asked for what lies in VRAM."""

    def gpu(gib: float) -> tuple[GpuReading, ...]:
        return (GpuReading(at_s=0, index=0, name="GTX 1080", total_bytes=int(gib * GIB)),)

    found = resolved(24, CHINESE, gpus=gpu(8))
    assert "VRAM" in next(line.value for line in lines(found) if line.name == "memory needed")
    assert found.settings.training.optimizer_on_host is False
    with pytest.raises(SettingsError, match=r"GTX 1080.*training\.device = cpu"):
        resolved(24, CHINESE, gpus=gpu(0.75))


def test_where_a_gpu_has_no_room_for_the_optimizer_its_moments_go_to_the_host() -> None:
    """BERT base: 1.5 GiB with them, 0.9 without. Who says otherwise is obeyed, or told what would fit."""
    gpus = (GpuReading(at_s=0, index=0, name="MX150", total_bytes=2 * GIB),)
    found = resolved(24, CHINESE, gpus=gpus)
    assert found.settings.training.optimizer_on_host is True
    assert "on the host" in next(line.origin for line in lines(found) if line.name == "memory needed")
    asked = resolved(24, CHINESE, "training.optimizer_on_host=false", gpus=gpus)
    assert asked.settings.training.optimizer_on_host is False
    small = (GpuReading(at_s=0, index=0, name="MX130", total_bytes=int(1.25 * GIB)),)
    with pytest.raises(SettingsError, match=r"optimizer_on_host = true"):
        resolved(24, CHINESE, "training.optimizer_on_host=false", gpus=small)
    with pytest.raises(SettingsError, match=r"neither has host memory.*limits\.ram"):
        resolved(24, CHINESE, "limits.ram=900MiB", gpus=small)


def test_settings_passed_in_stay_as_they_were() -> None:
    asked = Settings()
    resolve(asked, {}, Machine(ram_total_bytes=24 * GIB, ram_available_bytes=None), shape(CHINESE))
    assert asked == Settings()


SMOL = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def test_adapters_beside_frozen_weights_take_little_more_than_these() -> None:
    """As peft counts them; and what is held of a frozen weight is the weight alone."""
    whole, adapted = (decoder_shape_of(SMOL, 134_515_008, rank=rank) for rank in (None, 16))
    assert whole is not None
    assert adapted is not None
    assert adapted.trained == 4_884_480
    table = 49152 * 576
    for amp, frozen_bytes in (("off", 4 * 134_515_008), ("bf16", 2 * (134_515_008 + 2 * table))):
        assert held_bytes(whole, amp=amp) - BASE_BYTES == 16 * 134_515_008
        assert held_bytes(adapted, amp=amp) - BASE_BYTES == frozen_bytes + 16 * 4_884_480
    assert decoder_shape_of({**SMOL, "hidden_size": None}, 134_515_008, rank=16) is None
    assert decoder_shape_of(SMOL, None, rank=16) is None
    for amp in ("off", "bf16"):
        peaks = [peak_bytes(adapted, amp=amp, rows=rows, length=256, checkpointing=False) for rows in (1, 2, 3)]
        assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], abs=2)
        assert peak_bytes(adapted, amp=amp, rows=2, length=256, checkpointing=True) < peaks[1]


def test_weights_that_come_rounded_are_held_and_loaded_so() -> None:
    """But where mixed precision rounds in another way, for which they are made float32 first."""
    of = {stored: decoder_shape_of(SMOL, 10**9, rank=16, stored=stored) for stored in ("bf16", "fp16", None)}
    held = {stored: held_bytes(shape, amp="bf16") - BASE_BYTES for stored, shape in of.items() if shape is not None}
    assert held["bf16"] == 2 * 10**9 + 16 * 4_884_480
    assert held["fp16"] == held[None] == held["bf16"] + 4 * 49152 * 576
    least = {stored: least_bytes(shape, amp="bf16", length=8) - BASE_BYTES for stored, shape in of.items() if shape is not None}
    assert least["bf16"] < least[None] < least["fp16"] == 4 * 10**9


def test_each_lane_of_a_decoder_has_scores_of_its_own() -> None:
    """They are computed at the same time, and are most of what a small decoder takes."""
    adapted = decoder_shape_of(SMOL, 134_515_008, rank=16)
    assert adapted is not None
    one, two = (
        estimate(
            adapted, amp="bf16", max_length=256, micro_tokens=512, effective_batch=16, checkpointing=False, lanes=lanes
        ).micro_batch_bytes
        for lanes in (1, 2)
    )
    assert two - one == 40 * MIB


@pytest.mark.parametrize("limit", ["1100MiB", "1500MiB", "3GiB", "16GiB"])
def test_a_decoder_begins_with_what_is_sure_to_fit(limit: str) -> None:
    flags = ["task.model=/model", "task.kind=causal-lm", "training.max_length=256", f"limits.ram={limit}"]
    loaded = load(job_file=None, flags=flags, environment={})
    machine = Machine(ram_total_bytes=24 * GIB, ram_available_bytes=None)
    found = resolve(loaded.settings, loaded.origins, machine, decoder_shape_of(SMOL, 134_515_008, rank=16))
    assert found.needs is not None
    is_kept = found.settings.training.gradient_checkpointing is False
    assert is_kept == (limit != "1100MiB"), "the tier alone would have it computed twice up to 8 GB"
    fits = found.needs.micro_batch_bytes <= FIRST_FRACTION * found.limits.worker_limit_bytes
    assert fits or found.settings.training.micro_tokens == 256
    assert found.needs.least_bytes <= found.limits.worker_limit_bytes
    assert (found.settings.training.micro_tokens == 4096) == (limit == "16GiB")
