"""Model folders as people have them: right, or refused in one sentence before anything starts, without importing torch.

The folders are built by hand, each as one accident leaves it; `good` is what all of them were once.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from kit.cli_process import said

from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import ProblemType
from memsup.shared.model import libraries
from memsup.shared.model.folder import ModelSource, check_model
from memsup.shared.model.judge import judge_model
from memsup.shared.model.tensors import Tensor, check_tensors
from memsup.shared.model.tokenizer import check_tokenizer

BERT = {"model_type": "bert", "hidden_size": 8, "architectures": ["BertForSequenceClassification"]}
WHOLE_BERT = {"model_type": "bert", "hidden_size": 8, "vocab_size": 30, "num_hidden_layers": 1}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 440449768\n"


def safetensors(**tensors: int) -> bytes:
    """A file with vectors of so many float32."""
    header, at = {}, 0
    for name, length in tensors.items():
        header[name] = {"dtype": "F32", "shape": [length], "data_offsets": [at, at + 4 * length]}
        at += 4 * length
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def torch_file(held: object = None) -> bytes:
    """A zip as torch.save writes it, as far as its frame goes; without tensors, whose places numbers take."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(held or {}, protocol=2))
        file.writestr("archive/data/0", bytes(400))
    return content.getvalue()


def put(folder: Path, **files: Any) -> Path:
    """Writes files, of which `__` stands for a dot: JSON of a dict, bytes or text. None takes one away."""
    for name, content in files.items():
        file = folder / re.sub("(?<!_)__(?!_)|^__(?=c)", ".", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.unlink()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A fine-tuned BERT with its tokenizer."""
    return put(
        tmp_path / "model",
        config__json=BERT,
        model__safetensors=safetensors(weight=100),
        tokenizer__json={"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}}, "added_tokens": []},
        tokenizer_config__json={"tokenizer_class": "BertTokenizer"},
    )


def refused(model: Path | str) -> str:
    with pytest.raises(InputError) as error:
        check_model(str(model), {"HF_HOME": "/nowhere"})
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# --------------------------------------------------------------------------------------------------------------------
# Weights

SHARDS = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


def spoil(files: dict[str, Any], *, keep: bool = False) -> Callable[[Path], Path]:
    """The good folder with `files`, in place of its weights unless they are kept."""
    return lambda folder: put(folder, **({} if keep else {"model__safetensors": None}) | files)


@pytest.mark.parametrize(
    ("accident", "says"),
    [
        # other frameworks' weights
        (spoil({"tf_model__h5": b"x"}), r"tf_model.h5\) are TensorFlow's"),
        (spoil({"flax_model__msgpack": b"x"}), "Flax's"),
        (spoil({"bert_model__ckpt__index": b"x", "bert_model__ckpt__data-00000-of-00001": b"x"}), "TensorFlow's"),
        (spoil({"ggml-model-q4_0__gguf": b"GGUF"}), r"llama.cpp's, rounded"),
        (spoil({"model__onnx": b"x"}), "made for answering only"),
        (spoil({"openvino_model__xml": b"x", "openvino_model__bin": b"x"}), "made for answering only"),
        (spoil({"adapter_model__safetensors": safetensors(weight=1)}), "an adapter"),
        (spoil({"zero_to_fp32__py": "x", "training_args__bin": b"x"}), "python zero_to_fp32.py"),
        # names that transformers does not look for
        (spoil({"Model__safetensors": safetensors(weight=1)}), "rename it to model.safetensors"),
        (spoil({"model (1)__safetensors": safetensors(weight=1)}), "rename it to model.safetensors"),
        (spoil({"model__safetensors__crdownload": b"x"}), "not fetched to its end"),
        (spoil({"pytorch_model__bin__part": b"x"}), "not fetched to its end"),
        (spoil({"model__fp16__safetensors": safetensors(weight=1)}), "rename it to model.safetensors"),
        (spoil({"best__pt": torch_file()}), "has best.pt and none of the files"),
        (spoil({"model-00001-of-00002__safetensors": safetensors(weight=1)}), "no model.safetensors.index.json"),
        (spoil({"pytorch_model-00001-of-00002__bin": torch_file()}), "no pytorch_model.bin.index.json"),
        # what stands in their place
        (spoil({"model__safetensors": POINTER}, keep=True), r"model.safetensors is a git-lfs pointer.* git lfs pull"),
        (spoil({"pytorch_model__bin": POINTER}), r"pytorch_model.bin is a git-lfs pointer"),
        (spoil({"tokenizer__json": POINTER}, keep=True), r"tokenizer.json is a git-lfs pointer"),
        (spoil({"config__json": POINTER}, keep=True), r"config.json is a git-lfs pointer"),
        (spoil({"spm__model": POINTER}, keep=True), r"spm.model is a git-lfs pointer"),
        (spoil({"model__safetensors": b""}, keep=True), "model.safetensors is empty"),
        (spoil({"pytorch_model__bin": b""}), "pytorch_model.bin is empty"),
        (spoil({"model__safetensors": b"<!DOCTYPE html><html>"}, keep=True), "is a web page"),
        (spoil({"pytorch_model__bin": b"\n<html>"}), "is a web page"),
        (spoil({"config__json": "<!doctype html>"}, keep=True), r"config.json is a web page"),
        # cut off
        (spoil({"model__safetensors": safetensors(a=100)[:-1]}, keep=True), r"cut off: it has \d+ bytes of \d+"),
        (spoil({"model__safetensors": safetensors(a=100)[:20]}, keep=True), r"claims a header of \d+ bytes"),
        (spoil({"model__safetensors": safetensors(a=100) + b"x"}, keep=True), "1 bytes more than its header names"),
        (spoil({"model__safetensors": struct.pack("<Q", 4) + b"what"}, keep=True), "makes no sense"),
        (spoil({"pytorch_model__bin": torch_file()[:-30]}), "pytorch_model.bin is cut off"),
        (spoil({"pytorch_model__bin": b"hello"}), "no file that torch has saved"),
        (spoil({"tokenizer__json": '{"version": "1.0", "model'}, keep=True), "tokenizer.json is cut off"),
        (spoil({"config__json": json.dumps(BERT)[:-4]}, keep=True), "config.json is cut off"),
        # of another format than their names say
        (spoil({"model__safetensors": torch_file()}, keep=True), "rename it to pytorch_model.bin"),
        (spoil({"pytorch_model__bin": safetensors(weight=1)}), "rename it to model.safetensors"),
        (spoil({"pytorch_model__bin": b"\x1f\x8b\x08"}), "is packed"),
        (spoil({"config__json": b"\xef\xbb\xbf" + json.dumps(BERT).encode()}, keep=True), "without a byte order mark"),
        (spoil({"tokenizer_config__json": json.dumps(BERT).encode("utf-16")}, keep=True), "without a byte order mark"),
        # fetched in part
        (spoil({"__cache/huggingface/download/x__incomplete": b"x"}), "was not fetched to its end"),
        (spoil({"._____temp/model__safetensors": b"x"}), "was not fetched to its end"),
        # several files
        (
            spoil({"model__safetensors__index__json": SHARDS, "model-00001-of-00002__safetensors": safetensors(weight=1)}),
            r"names model-00002-of-00002.safetensors, which is missing",
        ),
        (
            spoil(
                {
                    "model__safetensors__index__json": SHARDS,
                    "model-00001-of-00002__safetensors": safetensors(weight=1),
                    "model-00002-of-00002__safetensors": POINTER,
                }
            ),
            "model-00002-of-00002.safetensors is a git-lfs pointer",
        ),
        (spoil({"model__safetensors__index__json": POINTER}), "index.json is a git-lfs pointer"),
        (spoil({"model__safetensors__index__json": {"weight_map": {"a": "../../etc/passwd"}}}), "does not say which files"),
        (spoil({"model__safetensors__index__json": "[1]"}), "does not say which files"),
        (spoil({"checkpoint-500/config__json": BERT, "checkpoint-1500/config__json": BERT}), r"lie in its checkpoint-1500"),
        (spoil({"adapter_config__json": {"base_model_name_or_path": "bert"}}, keep=True), "is an adapter"),
        # of a program
        (spoil({"pytorch_model__bin": torch_file(Path("x"))}), r"holds objects of a program \(pathlib.PosixPath\)"),
        (spoil({"pytorch_model__bin": torch_file({"epoch": 3, "model_state_dict": {}})}), "inside of its 'model_state_dict'"),
        (
            spoil({"pytorch_model__bin": torch_file({"module.bert.embeddings.word_embeddings.weight": 0})}),
            "begin with 'module', as where the model lies inside of another object",
        ),
        (spoil({"pytorch_model__bin": torch_file({"roberta.encoder.weight": 0})}), "no model of type bert has"),
    ],
)
def test_weights_that_would_not_be_read_are_named(accident: Callable[[Path], Path], says: str, good: Path) -> None:
    check_model(str(good))
    assert re.search(says, text := refused(accident(good))), text


@pytest.mark.parametrize(
    "files",
    [
        {"model__safetensors": None, "pytorch_model__bin": torch_file()},
        {"model__safetensors": None, "pytorch_model__bin": b"\x80\x02\x8a\nl\xfc"},  # as torch wrote until 1.5
        {
            "model__safetensors": None,
            "model__safetensors__index__json": SHARDS,
            "model-00001-of-00002__safetensors": safetensors(weight=1),
            "model-00002-of-00002__safetensors": safetensors(b=1),
        },
        # A clone of a hub's folder has them all; what is not read may be a pointer.
        {"tf_model__h5": POINTER, "flax_model__msgpack": POINTER, "pytorch_model__bin": POINTER, "onnx/model__onnx": POINTER},
        {"training_args__bin": b"x", "optimizer__pt": b"x", "checkpoint-500/config__json": BERT},
        {"tokenizer__json": None, "tokenizer_config__json": None, "vocab__txt": "[PAD]\n"},
        {"tokenizer__json": None, "vocab__json": "{}", "merges__txt": "a b"},
        {"model__safetensors": None, "other__safetensors": safetensors(weight=1)}
        | {"config__json": BERT | {"transformers_weights": "other.safetensors"}},
    ],
)
def test_a_folder_that_can_be_used_is_taken(files: dict[str, Any], good: Path) -> None:
    found = check_model(str(put(good, **files)))
    assert (found.source, found.folder, found.has_tokenizer, found.notes) == (ModelSource.FOLDER, good, True, ())


@pytest.mark.parametrize("looks_like", [b"\x80", b"PK", b"\x1f\x8b"])
def test_a_safetensors_may_begin_like_any_other_file(looks_like: bytes, good: Path) -> None:
    """Its first bytes are the length of its header: 128 and 0x4B50 are lengths, and begin a pickle and a zip elsewhere."""
    length = int.from_bytes(looks_like, "little")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    put(good, model__safetensors=struct.pack("<Q", length) + header + bytes(4))
    assert check_model(str(good)).source is ModelSource.FOLDER


def test_a_link_that_leads_nowhere_is_no_missing_file(good: Path) -> None:
    """Weights that are such a link would be trained from nothing."""
    weights = good / "model.safetensors"
    weights.unlink()
    for target in (good / "gone", weights):
        weights.symlink_to(target)
        assert "is a link that leads nowhere" in refused(good)
        weights.unlink()
    (good / "notes.txt").symlink_to(good / "gone")
    put(good, model__safetensors=safetensors(weight=1))
    check_model(str(good))


@pytest.mark.skipif(os.geteuid() == 0, reason="NOT RUN: root may read everything")
def test_a_file_that_may_not_be_read_is_named(good: Path) -> None:
    (good / "model.safetensors").chmod(0)
    assert "model.safetensors cannot be read: Permission denied" in refused(good)


def test_a_socket_in_a_file_s_place_is_not_opened(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good / "tokenizer.json").unlink()
    monkeypatch.chdir(good)  # a socket's path may be no longer than 107 bytes
    with socket.socket(socket.AF_UNIX) as there:
        there.bind("tokenizer.json")
        assert "it is a socket and not a file" in refused(good)


# --------------------------------------------------------------------------------------------------------------------
# Folders beside the right one


def test_the_folder_that_is_meant_is_named(good: Path, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    snapshot = tmp_path / "models--bert" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    good.rename(snapshot)
    assert f"give {snapshot}." in refused(tmp_path / "models--bert")
    assert f"give {snapshot}" in refused(put(snapshot / "onnx", model__onnx=b"x"))
    assert f"is a file: give the folder that holds it and the model's config.json, {snapshot}" in refused(
        snapshot / "model.safetensors"
    )
    assert "is an archive: unpack it" in refused(tmp_path / "model.zip")
    (tmp_path / "download").mkdir()
    (tmp_path / "model.zip").rename(tmp_path / "download" / "model.zip")
    assert "but model.zip: unpack it" in refused(tmp_path / "download")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("https://huggingface.co/google-bert/bert-base-uncased/tree/main", "give the id alone, google-bert/bert-base-uncased"),
        ("hf.co/bert-base-chinese", "give the id alone, bert-base-chinese"),
        (r"C:\\models\\bert", "lies in /mnt/c"),
    ],
)
def test_an_address_is_no_id(model: str, says: str) -> None:
    assert says in refused(model)


def test_what_was_first_published_says_what_it_is(tmp_path: Path) -> None:
    """As Google and others have put their BERTs up as archives."""
    google = put(tmp_path / "chinese_L-12_H-768_A-12", bert_config__json="{}", vocab__txt="a", bert_model__ckpt__index=b"x")
    assert "for TensorFlow: take it from the hub" in refused(google)
    torch = put(tmp_path / "chinese_wwm_pytorch", bert_config__json={"type_vocab_size": 2}, pytorch_model__bin=torch_file())
    assert "rename it to config.json" in refused(torch)
    (torch / "bert_config.json").rename(torch / "config.json")
    assert 'add "model_type": "bert"' in refused(torch)


def test_what_is_no_models_folder_says_what_it_is(tmp_path: Path) -> None:
    trained = tmp_path / "output"
    for step in (500, 1000, 1500):
        put(trained / f"checkpoint-{step}", config__json=BERT)
    assert f"3 checkpoints of a training: give one, such as {trained / 'checkpoint-1500'}" in refused(trained)
    sentences = put(tmp_path / "sentences", modules__json="[]", config_sentence_transformers__json="{}")
    put(sentences / "0_Transformer", config__json=BERT)
    assert f"give {sentences / '0_Transformer'}." in refused(sentences)
    assert "is an adapter" in refused(put(tmp_path / "lora", adapter_config__json="{}", adapter_model__safetensors=b"x"))
    assert "llama.cpp's" in refused(put(tmp_path / "llama", q4__gguf=b"GGUF"))
    assert "has no config.json" in refused(put(tmp_path / "generation", generation_config__json="{}"))
    for name in ("Config.json", "config (1).json", "config.json.txt", "CONFIG.JSON"):
        folder = put(tmp_path / name.replace(" ", ""), **{name.replace(".", "__"): BERT})
        assert f"but {name}: rename it to config.json" in refused(folder)


# --------------------------------------------------------------------------------------------------------------------
# What config.json says


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "my_bert", "auto_map": {"AutoConfig": "mine.Mine"}}, "memsup runs none from a model's folder"),
        ({"model_type": "bert\n"}, r"type bert, which transformers \d.* does not know"),
        ({"model_type": "my_bert"}, r"type my_bert, which transformers \d.* does not know"),
        ({"model_type": "vit"}, "makes no text classifier"),
        ({"model_type": "whisper", "auto_map": {"AutoConfig": "mine.Mine"}}, "makes no text classifier"),
        ({"model_type": "encoder-decoder"}, "makes no text classifier"),
        ({"model_type": 3}, "names no model_type"),
        (BERT | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, r"quantized \(bitsandbytes\)"),
        (BERT | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized \(gptq\)"),
        (BERT | {"quantization_config": []}, "quantized, rounded"),
        (BERT | {"compression_config": {"quant_method": "compressed-tensors"}}, "quantized"),
        (BERT | {"hidden_size": "768"}, "hidden_size '768', which should be a whole number from 1"),
        (BERT | {"num_hidden_layers": -2}, "num_hidden_layers -2, which should be"),
        (BERT | {"max_position_embeddings": 0}, "max_position_embeddings 0"),
        (BERT | {"hidden_dropout_prob": 10}, "hidden_dropout_prob 10, which should be a share from 0 to 1"),
        (BERT | {"layer_norm_eps": math.nan}, "layer_norm_eps nan, which should be a number"),
        (BERT | {"hidden_act": "mygelu"}, "hidden_act 'mygelu', which should be one of those that transformers"),
        (BERT | {"id2label": ["neg", "pos"]}, "id2label .* should be an object"),
        (BERT | {"torch_dtype": "float7"}, "torch_dtype 'float7', which should be a type of torch"),
        (BERT | {"vocab_size": 30, "pad_token_id": 30}, r"pad_token_id 30, which should be below vocab_size \(30\)"),
        (BERT | {"num_attention_heads": 3}, r"num_attention_heads 3, which should be a divisor of hidden_size \(8\)"),
    ],
)
def test_a_model_that_cannot_be_trained_here_is_refused(config: dict[str, Any], says: str, good: Path) -> None:
    assert re.search(says, text := refused(put(good, config__json=config))), text


def test_what_transformers_knows_itself_needs_no_code_of_the_folder(good: Path) -> None:
    check_model(str(put(good, config__json=BERT | {"auto_map": {"AutoModel": "mine.Model"}}, mine__py="raise SystemExit")))


def test_what_transformers_knows_is_told_as_transformers_tells_it() -> None:
    """Read from its files here, imported there."""
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = AutoModelForSequenceClassification._model_mapping._model_mapping
    assert libraries.types_for("text-classification") == set(known)
    assert libraries.config_types() >= set(CONFIG_MAPPING_NAMES)


def test_what_is_replaced_is_said(good: Path) -> None:
    config = BERT | {"problem_type": "multi_label_classification", "_attn_implementation": "somebody/kernel"}
    model = check_model(str(put(good, config__json=config)))
    (attention,) = model.notes
    assert "names somebody/kernel to compute attention" in attention
    said = {kind: judge_model(model, ["a", "b"], problem_type=kind, complete=True)[1] for kind in get_args(ProblemType)}
    assert said.pop("multi_label_classification") == [], "what is the same is no news"
    assert all("has problem_type multi_label_classification; what is learnt here is" in notes[-1] for notes in said.values())


# --------------------------------------------------------------------------------------------------------------------
# Weights beside config.json


def weights_of(
    begins: str, *, layers: int = 1, dtype: str = "F32", rows: int = 30, inside: str = "attention.self.query.weight"
) -> bytes:
    """Weights as a BERT has them, without their numbers."""
    names = {f"{begins}embeddings.word_embeddings.weight": [rows, 8]}
    names |= {f"{begins}encoder.layer.{number}.{inside}": [8, 8] for number in range(layers)}
    width = {"F32": 4, "BF16": 2}.get(dtype, 1)
    header, at = {}, 0
    for name, shape in names.items():
        size = width * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        (
            {},
            weights_of("roberta."),
            r"such as roberta.embeddings.* which no model of type bert has, so they would not be read",
        ),
        ({"model_type": "roberta"}, weights_of("bert."), "which no model of type roberta has"),
        ({"model_type": "gpt2"}, weights_of(""), "which no model of type gpt2 has"),
        ({}, weights_of("bert.", inside="q_lin.weight", layers=9), "which no model of type bert has"),
        (
            {"architectures": ["RobertaModel"]},
            weights_of(""),
            "is a RobertaModel, and that its model_type is bert.* write roberta there",
        ),
        ({}, weights_of("module.bert."), "begin with 'module', as where the model lies inside of another object"),
        ({}, weights_of("_orig_mod.bert."), "begin with '_orig_mod'"),
        ({}, weights_of("bert.", inside="attention.self.query.lora_A.weight", layers=3), "are those of an adapter"),
        ({}, weights_of("bert.", dtype="I8"), "are quantized"),
        ({}, weights_of("bert.", dtype="F8_E4M3"), "are quantized"),
        ({}, weights_of("bert.", inside="attention.self.query.qweight"), "are quantized"),
        ({"quantization": {"bits": 4}}, weights_of("bert."), "quantized"),
        ({"vocab_size": 21128}, weights_of("bert."), r"for 30 tokens \(bert.embeddings.* says 21,128 \(vocab_size\)"),
        (
            {"vocab_size": None},
            weights_of("bert."),
            r"does not say how many \(vocab_size\), .* takes 30,522",
        ),
        ({"num_hidden_layers": None}, weights_of("bert.", layers=6), r"have 6 layers, its .* takes 12, so the others"),
        ({"hidden_size": None}, weights_of("bert."), r"are 8 numbers wide .*does not say how many \(hidden_size\)"),
        ({"hidden_size": 32}, weights_of("bert."), r"are 8 numbers wide \(bert.embeddings.* says 32 \(hidden_size\)"),
        ({"num_hidden_layers": 12}, weights_of("bert.", layers=6), r"have 6 layers, its config.json says 12"),
        ({}, safetensors(), "hold no tensor"),
    ],
)
def test_weights_of_another_model_than_config_json_says_are_refused(
    config: dict[str, Any], weights: bytes, says: str, good: Path
) -> None:
    """Random numbers would be in their place; told from names, shapes and kinds of numbers alone."""
    said = {key: value for key, value in (WHOLE_BERT | config).items() if value is not None}
    assert re.search(says, text := refused(put(good, config__json=said, model__safetensors=weights))), text


def test_weights_that_fit_are_taken_with_and_without_the_name_of_their_model(good: Path) -> None:
    config = BERT | {"vocab_size": 30, "num_hidden_layers": 2}
    for begins in ("", "bert."):
        for dtype in ("F32", "BF16"):
            put(good, config__json=config, model__safetensors=weights_of(begins, layers=2, dtype=dtype))
            assert check_model(str(good)).notes == ()
    (note,) = check_model(str(put(good, model__safetensors=weights_of("bert.", layers=12)))).notes
    assert "have 12 layers; its config.json says 2 (num_hidden_layers), and only those are used" in note


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["albert", "bart", "canine", "deberta-v2", "electra", "funnel", "gpt2", "llama", "modernbert", "t5", "xlnet"]
)
def test_what_transformers_itself_makes_is_taken(kind: str) -> None:
    """The names that its programs are read to have are those that its models have."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    whole = {name: Tensor("F32", tuple(value.shape)) for name, value in model.state_dict().items()}
    begins = f"{model.base_model_prefix}."
    base = {name.removeprefix(begins): tensor for name, tensor in whole.items() if name.startswith(begins)}
    usual, words = libraries.usual_figures(kind), libraries.words_of(kind)
    for config_json in (config.to_dict(), config.to_diff_dict()):  # the second leaves out what transformers takes anyway
        said = config_json | {"model_type": kind, "architectures": [type(model).__name__]}
        for tensors in (whole, base):
            assert check_tensors("it", tensors, said, words, libraries.families(), usual) == ()


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers


@pytest.mark.parametrize(
    ("config", "files", "says"),
    [
        ({}, {"tokenizer__json": None}, "has weights but no tokenizer"),
        ({}, {"tokenizer__json": None, "vocab__json": "{}"}, "no merges.txt"),
        ({}, {"tokenizer__json": "{}"}, "tokenizer.json is not what its name says"),
        ({}, {"tokenizer__json": "[1]"}, "tokenizer.json is not what its name says"),
        ({}, {"tokenizer__json": {"model": {"type": "Mine"}, "added_tokens": []}}, r"a model of an unknown type \('Mine'\)"),
        (
            {},
            {"tokenizer__json": {"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": []}},
            r"tokenizer.json has no \[UNK\]",
        ),
        ({}, {"special_tokens_map__json": "{"}, "special_tokens_map.json is"),
        ({}, {"added_tokens__json": "[]"}, "added_tokens.json is not what its name says"),
        ({}, {"tokenizer_config__json": "[]"}, "tokenizer_config.json is not what its name says"),
        ({}, {"tokenizer__json": None, "vocab__txt": b"[UNK]\n\xe4"}, "vocab.txt is no text in UTF-8"),
        ({}, {"tokenizer__json": None, "vocab__txt": "a\nb"}, r"vocab.txt has no \[UNK\]"),
        (
            {},
            {"tokenizer__json": None, "merges__txt": "a b", "tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer"}},
            "is a GPT2Tokenizer and has no vocab.json",
        ),
        (
            {},
            {
                "model__safetensors": weights_of("bert."),
                "tokenizer__json": {"model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "b": 40}}, "added_tokens": []},
            },
            "has 41 tokens, the model has numbers for 30",
        ),
        ({}, {"tokenizer__json": None, "tokenizer_config__json": "{x}"}, "tokenizer_config.json cannot be read as JSON"),
        (
            {},
            {
                "tokenizer__json": None,
                "vocab__txt": "a",
                "tokenizer_config__json": {"auto_map": {"AutoTokenizer": ["m.M", None]}},
            },
            "tokenizer of .* is a program of its own",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_named(
    config: dict[str, Any], files: dict[str, Any], says: str, good: Path
) -> None:
    assert re.search(says, text := refused(put(good, config__json=WHOLE_BERT | config, **files))), text


@pytest.mark.parametrize(
    ("kind", "names", "config", "needs"),
    [
        ("deberta-v2", ["spm.model"], {}, "sentencepiece protobuf"),
        ("xlm-roberta", ["sentencepiece.bpe.model"], {}, "sentencepiece protobuf"),
        ("t5", ["spiece.model"], {}, "sentencepiece protobuf"),
        ("llama", ["tokenizer.model"], {}, "sentencepiece protobuf"),
        ("llama", ["tiktoken.model"], {}, "tiktoken"),
        ("bert", ["source.spm", "vocab.json"], {"tokenizer_class": "MarianTokenizer"}, "sentencepiece protobuf"),
        ("xlm", ["vocab.json", "merges.txt"], {}, "sacremoses"),
        ("roformer", ["vocab.txt"], {}, "rjieba"),
        ("bert", ["vocab.txt"], {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "fugashi"),
    ],
)
def test_a_package_that_a_tokenizer_needs_is_named(kind: str, names: list[str], config: dict[str, Any], needs: str) -> None:
    asked = []

    def nothing(package: str) -> bool:
        asked.append(package)
        return False

    with pytest.raises(InputError, match=rf"which is not installed: pip install {needs}$"):
        check_tokenizer("it", names, {"model_type": kind}, config, nothing)
    assert asked
    check_tokenizer("it", names, {"model_type": kind}, config, lambda _: True)
    if needs.startswith("sentencepiece") and not config:
        check_tokenizer("it", [*names, "tokenizer.json"], {"model_type": kind}, config, nothing)


@pytest.mark.skipif(
    libraries.is_installed("sentencepiece") or libraries.is_installed("tiktoken"), reason="NOT RUN: both are installed here"
)
def test_what_is_in_a_model_file_decides_which_package_reads_it(good: Path) -> None:
    put(good, tokenizer__json=None, tokenizer__model="aGVsbG8= 0\nd29ybGQ= 1\n")
    assert refused(good).endswith("pip install tiktoken")
    put(good, tokenizer__model=b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    assert refused(good).endswith("pip install sentencepiece protobuf")


def test_a_package_is_looked_for_and_not_imported() -> None:
    before = set(sys.modules)
    assert libraries.is_installed("torch")
    assert not libraries.is_installed("no_such_package")
    assert not libraries.is_installed("no_such_package.at_all")
    assert "torch" in before or "torch" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "named"), [("canine", None), ("canine", "CanineTokenizer"), ("t5", "ByT5Tokenizer"), ("perceiver", None)]
)
def test_characters_and_bytes_need_no_vocabulary(kind: str, named: str | None, good: Path) -> None:
    put(good, config__json={"model_type": kind}, tokenizer__json=None)
    put(good, tokenizer_config__json={"tokenizer_class": named} if named else None)
    assert check_model(str(good)).has_tokenizer


# --------------------------------------------------------------------------------------------------------------------
# A model and the data


def doubts_of(folder: Path, *labels: str, complete: bool = True) -> tuple[list[DoubtKind], list[str]]:
    doubts, notes = judge_model(check_model(str(folder)), labels, complete=complete)
    return [doubt.kind for doubt in doubts], notes


def head(*names: str) -> dict[str, Any]:
    return BERT | {"id2label": {str(place): name for place, name in enumerate(names)}}


def test_weights_that_are_missing_are_doubtful_only_where_a_tokenizer_was_trained(good: Path) -> None:
    put(good, model__safetensors=None)
    assert doubts_of(good, "a", "b") == ([DoubtKind.FROM_NOTHING], [])
    put(good, tokenizer__json=None)
    assert doubts_of(good, "a", "b") == ([], [])
    assert check_model(str(good)).source is ModelSource.CONFIG_ONLY


@pytest.mark.parametrize(
    ("config", "labels", "doubtful", "says"),
    [
        (head("positive", "negative"), ("Negative", "Positive"), False, None),
        (head("positive", "negative"), ("\uff30ositive ", "nega tive"), False, None),
        (head("LABEL_0", "LABEL_1"), ("neg", "pos"), False, None),
        (head("0", "1"), ("neg", "pos"), False, None),
        (BERT, ("neg", "pos"), False, None),
        (
            head("entailment", "neutral", "contradiction"),
            ("neg", "pos"),
            False,
            "The head is a new one: .* entailment, neutral",
        ),
        (head("entailment", "other") | {"architectures": ["BertForMaskedLM"]}, ("neg", "pos"), False, None),
        (head("positive", "negative"), ("bad", "good"), True, None),
        (head("positive", "negative"), ("0", "1"), True, None),
        (head("1", "0"), ("1", "2"), True, None),
        (head("neg", "neu", "pos"), ("neg", "pos"), True, None),
        (head("neg", "pos"), ("neg", "neu", "pos"), True, None),
    ],
)
def test_a_head_goes_on_with_its_own_labels_only(
    config: dict[str, Any], labels: tuple[str, ...], doubtful: bool, says: str | None, good: Path
) -> None:
    doubts, notes = doubts_of(put(good, config__json=config), *labels)
    assert doubts == ([DoubtKind.HEAD_LABELS] if doubtful else [])
    assert re.search(says, notes[0]) if says else notes == []


def test_labels_that_are_not_all_seen_yet_are_no_doubt(good: Path) -> None:
    put(good, config__json=head("neg", "neu", "pos"))
    assert doubts_of(good, "Neg", "Pos", complete=False) == ([], [])
    assert doubts_of(good, "Neg", "Other", complete=False) == ([DoubtKind.HEAD_LABELS], [])


def test_start_says_it_before_anything_is_written(good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One sentence and exit code 2, where it once began and failed, or trained from nothing."""
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n" + "".join(f"a fine text with the number {n},{'ab'[n % 2]}\n" for n in range(40)))
    start = ("start", "--dry-run", "--set", f"task.model={good}", "--set", f"task.train={data}", "--set", "training.device=cpu")
    code, text = said(capfd, *start)
    assert (code, f"{good} (a folder with weights)" in text) == (0, True)
    for files, says in (
        ({"model__safetensors": POINTER}, "git lfs pull"),
        ({"model__safetensors": None, "tf_model__h5": b"x"}, "are TensorFlow's"),
        ({"tf_model__h5": None}, "has a tokenizer and no weights"),
        ({"config__json": {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}}, "memsup runs none from a model"),
    ):
        put(good, **files)
        code, text = said(capfd, *start)
        assert (code, says in text) == (2, True), text
