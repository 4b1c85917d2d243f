"""Which of a folder's files transformers takes for the weights, and what lies there in their place.

`find_weights` goes by names alone, so that it judges a folder and a hub's list alike. Pure. What is in the files
is looked at in `content.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from memsup.shared.data.errors import InputError

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers looks for, in its order; an index names the files that the weights are spread over."""
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".tmp", ".!ut")
"""What programs add to the name of a file that they have not fetched to its end."""


class _Other(NamedTuple):
    """Files that hold a model's weights in a form which is not trained here."""

    patterns: tuple[str, ...]
    what: str
    go_on: str


_ORIGINAL = "get the model that it was made from, as safetensors"
_OTHERS = (
    _Other(("adapter_model.*",), "an adapter (PEFT, LoRA) without the model it belongs to", "merge both, see docs/models.md"),
    _Other(
        ("tf_model.h5", "tf_model-*.h5", "tf_model.h5.index.json", "*.ckpt.index", "*.ckpt.data-*", "*.ckpt-*", "checkpoint"),
        "TensorFlow's",
        "get the model as safetensors, or convert it with transformers 4, see docs/models.md",
    ),
    _Other(
        ("flax_model.msgpack", "flax_model-*.msgpack", "flax_model.msgpack.index.json"),
        "Flax's",
        "get the model as safetensors, or convert it with transformers 4, see docs/models.md",
    ),
    _Other(("*.gguf", "ggml-*.bin"), "llama.cpp's, rounded to a few bits each", _ORIGINAL),
    _Other(
        ("*.onnx", "*.onnx_data", "openvino_model.*", "*.tflite", "*.mlmodel", "*.engine"), "made for answering only", _ORIGINAL
    ),
    _Other(("rust_model.ot", "saved_model.pb", "*.pdparams", "*.mindspore"), "another framework's", _ORIGINAL),
    _Other(
        ("zero_to_fp32.py",), "DeepSpeed's, spread over its processes", "join them: python zero_to_fp32.py . pytorch_model.bin"
    ),
)
_BEFORE_TRAINING = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")
"""What a Trainer leaves beside the weights."""
_SHARD = re.compile(r"(?:model|pytorch_model)-\d{5}-of-(\d{5})\.(?:safetensors|bin)")
_OTHER_NAMES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")


def find_weights(where: str, names: Collection[str], config: Mapping[str, Any]) -> str | None:
    """The file that transformers reads the weights from, or the index of several. It is None where there are no weights of any
    kind. Raises InputError for weights that would not be read: the model would be trained from nothing in their place.
    """
    own = config.get("transformers_weights")
    if isinstance(own, str) and own in names:
        return own
    found = next((name for name in NAMES if name in names), None)
    if found is not None:
        return found
    for name in sorted(names):
        if (meant := meant_by(name)) in NAMES:
            raise InputError(f"{where} has {name} and no {meant}: " + _go_on(name, meant))
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if shards:
        index = NAMES[1] if shards[0].endswith(".safetensors") else NAMES[3]
        raise InputError(f"{where} has {shards[0]} and no {index}, which says what lies where: copy it there too.")
    for other in _OTHERS:
        there = [name for name in sorted(names) if any(fnmatchcase(name, pattern) for pattern in other.patterns)]
        if there:
            raise InputError(
                f"The only weights in {where} ({there[0]}) are {other.what}; memsup reads none of it: {other.go_on}."
            )
    there = [
        name
        for name in sorted(names)
        if any(fnmatchcase(name, pattern) for pattern in _OTHER_NAMES)
        and not any(fnmatchcase(name, pattern) for pattern in _BEFORE_TRAINING)
    ]
    if there:
        wanted = NAMES[0] if there[0].endswith(".safetensors") else NAMES[2]
        raise InputError(
            f"{where} has {there[0]} and none of the files that transformers reads weights from: "
            f"if save_pretrained wrote it, rename it to {wanted}; else save the model with save_pretrained."
        )
    return None


def meant_by(name: str) -> str:
    """What a file is called once what systems and browsers make of names is taken away."""
    plain = name.casefold()
    for end in (*_UNFINISHED, ".txt"):
        plain = plain.removesuffix(end) if plain.removesuffix(end).count(".") else plain
    return re.sub(r"(?: ?\(\d+\)| - copy)(?=\.)", "", plain)


def _go_on(name: str, meant: str) -> str:
    if name.casefold().endswith(_UNFINISHED):
        return "it was not fetched to its end; fetch it again."
    return f"rename it to {meant}."
