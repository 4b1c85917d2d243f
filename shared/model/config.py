"""What a model's config.json says, judged: whether transformers itself knows the model, and whether it can be trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model import libraries

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
    if (quantized := config.get("quantization_config", config.get("quantization"))) is not None:
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
