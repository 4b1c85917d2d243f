"""What a model's config.json says, judged: whether transformers itself knows the model, and whether it can be trained here."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model import libraries

_SIZES = (
    *("hidden_size", "d_model", "n_embd", "dim", "intermediate_size", "num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("num_attention_heads", "n_head", "n_heads", "vocab_size", "max_position_embeddings", "n_positions"),
)
_DROPOUT = re.compile(r"(^|_)(dropout|dropout_prob|pdrop)$")
_ACTIVATIONS = ("hidden_act", "activation_function", "activation", "hidden_activation")
_DTYPE = re.compile(r"(torch\.)?(float(16|32|64)|bfloat16|float8_\w+|half|double|float|auto|u?int\d+|bool)")
_AGAIN = "copy it again from where the model came from"
OWN_ATTENTION = ("sdpa", "eager")
"""The ways to compute attention that are in torch and transformers themselves."""


class _Named(NamedTuple):
    """What a model for a kind of task is called, and one of them."""

    name: str
    example: str


_MODELS: dict[TaskKind, _Named] = {
    "text-classification": _Named("text classifier", "a BERT"),
    "token-classification": _Named("tagger of words", "a BERT"),
    "causal-lm": _Named("model that goes on with a text", "a Llama, a Qwen or a SmolLM"),
}


def check_config(where: str, config: object, task: TaskKind = "text-classification") -> Mapping[str, Any]:
    """The config, where it is one of a model that can be trained here for such a task. Raises InputError."""
    if not isinstance(config, dict) or not isinstance(kind := config.get("model_type"), str):
        go_on = "it is not the config.json of a transformers model."
        if isinstance(config, dict) and "type_vocab_size" in config:
            go_on = 'it looks like that of a BERT; if it is, add "model_type": "bert" to it.'
        raise InputError(f"{where} names no model_type: {go_on}")
    of_quantized = (config.get(key) for key in ("quantization_config", "quantization", "compression_config"))
    if (quantized := next((one for one in of_quantized if one is not None), None)) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise InputError(
            f"The weights of {where} are quantized{f' ({method})' if method else ''}, rounded to a few bits each, and cannot "
            "be trained: choose the model that they were made from."
        )
    types = libraries.types_for(task)
    if types is None or kind in types:
        return config
    known = kind in libraries.config_types()
    if config.get("auto_map") and not known:
        raise InputError(
            f"{where} is a model with a program of its own (auto_map), and memsup runs none from a model's folder: "
            f"choose a model that transformers itself knows, such as {_MODELS[task].example}."
        )
    if known:
        raise InputError(
            f"{where} is of type {one_line(kind)}, of which transformers makes no {_MODELS[task].name}: choose another "
            f"model, such as {_MODELS[task].example}."
        )
    raise InputError(
        f"{where} is of type {one_line(kind)}, which transformers {libraries.transformers_version()} does not know: check "
        "model_type in its config.json, or try a newer one: pip install --upgrade transformers"
    )


def check_figures(where: str, config: Mapping[str, Any], activations: Collection[str], *, whole_heads: bool) -> None:
    """Raises InputError for what no model could be made of, whichever it is: sizes that are none, unknown functions. Of
    `activations` nothing is known where there are none; `whole_heads` says that the width has to be a multiple of the heads.
    """

    def refuse(key: str, should_be: str) -> InputError:
        said = one_line(repr(config[key]))
        return InputError(f"The config.json of {where} has {key} {said}, which should be {should_be}: {_AGAIN}.")

    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise refuse(key, "a number")
        if key in _SIZES and value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise refuse(key, "a whole number from 1")
        if _DROPOUT.search(key) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise refuse(key, "a share from 0 to 1")
        if key in _ACTIVATIONS and activations and isinstance(value, str) and value not in activations:
            raise refuse(key, f"one of those that transformers {libraries.transformers_version()} knows, such as gelu")
        if key in ("id2label", "label2id") and not isinstance(value, dict | None):
            raise refuse(key, "an object with a label for each number")
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and not _DTYPE.fullmatch(value):
            raise refuse(key, "a type of torch, such as float32")
    vocabulary, padding = config.get("vocab_size"), config.get("pad_token_id")
    if isinstance(vocabulary, int) and isinstance(padding, int) and not -vocabulary <= padding < vocabulary:
        raise refuse("pad_token_id", f"below vocab_size ({vocabulary:,})")
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if whole_heads and isinstance(width, int) and isinstance(heads, int) and "embedding_size" not in config and width % heads:
        raise refuse("num_attention_heads", f"a divisor of hidden_size ({width:,})")


def one_line(name: str) -> str:
    """A name that others wrote, as a part of a sentence."""
    return " ".join(name.split())[:100]


def replaced(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What memsup does otherwise than the config says, each a sentence."""
    sentences = []
    attention = config.get("_attn_implementation", config.get("attn_implementation"))
    if attention is not None and attention not in OWN_ATTENTION:
        sentences.append(
            f"The model's config.json names {one_line(str(attention))} to compute attention; memsup takes torch's own and "
            "fetches no other."
        )
    return tuple(sentences)
