"""Whether the tensors in a model's files are those of the model that its config.json describes: by names, numbers and shapes.

Only the headers of safetensors are looked at, and no torch is imported. transformers would fill what it does not find with
random numbers, and say so where nobody looks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.model.config import one_line

_WEIGHTS = frozenset(("weight", "bias", "gamma", "beta", "weight_g", "weight_v", "parametrizations", "original0", "original1"))
"""What torch itself calls the numbers of a layer, today and earlier."""
_ROUNDED = re.compile(r"I8|U8|I4|U4|I16|I32|U32|F8_\w+|F4\w*|F6\w*")
_OF_ADAPTERS = re.compile(r"\.(lora|ia3|hada|lokr|vera|adapters?)_?\w*(\.|$)", re.IGNORECASE)
_TABLE_OF_TOKENS = re.compile(r"(^|\.)(word_embeddings?|embed_tokens|wte|tok_embeddings|shared)\.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_AGAIN = "copy config.json and weights again from where the model came from, both of one version"


class Tensor(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def check_tensors(
    where: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    words: Collection[str] | None,
    families: Mapping[str, Collection[str]],
    usual: Mapping[str, int],
) -> tuple[str, ...]:
    """What is to be said of them besides, each a sentence. Raises InputError where they are not of the model of `config`.

    `words` are the names that transformers' own program of this model uses; None means that nobody knows them. `families` has
    the model types for the beginning of a class's name, such as Bert; `usual` the figures that count where the config does not
    say them.
    """
    if not tensors:
        raise InputError(f"The weights of {where} hold no tensor: {_AGAIN}.")
    names = sorted(tensors)
    if 2 * sum(_OF_ADAPTERS.search(name) is not None for name in names) > len(names):
        raise InputError(
            f"The weights of {where} are those of an adapter ({one_line(names[0])}) and not of a whole model: "
            "merge it into its model, "
            "see docs/models.md."
        )
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    rounded = {name for name, tensor in tensors.items() if _ROUNDED.fullmatch(tensor.dtype)}
    if 2 * sum(sizes[name] for name in rounded) > sum(sizes.values()) or any(name.endswith(".qweight") for name in names):
        raise InputError(
            f"The weights of {where} are quantized, rounded to a few bits each "
            f"({one_line(min(rounded, default=names[0]))}), and cannot "
            "be trained: choose the model that they were made from."
        )
    check_names(where, config, names, words, families)
    is_composed = any(key.endswith("_config") and isinstance(value, dict) for key, value in config.items())
    said = _Said(config, {} if is_composed else usual)
    _check_tokens(where, tensors, said)
    return _layers(where, names, said)


class _Said:
    """The figures of a model: what its config.json says, else what transformers takes."""

    def __init__(self, config: Mapping[str, Any], usual: Mapping[str, int]) -> None:
        self._config, self.all = config, {**usual, **config}

    def of(self, belongs: Callable[[str], bool]) -> dict[str, Any]:
        """The figures with such keys that the config.json has; where it has none, those that transformers takes."""
        found = {key: value for key, value in self._config.items() if belongs(key)}
        return found or {key: value for key, value in self.all.items() if belongs(key)}

    def where(self, key: str) -> str:
        """Who says it, in a sentence with how much it is."""
        figure = f"{self.all[key]:,}"
        if key in self._config:
            return f"its config.json says {figure} ({key})"
        return f"its config.json does not say how many ({key}), for which transformers takes {figure}"


def check_names(
    where: str,
    config: Mapping[str, Any],
    names: list[str],
    words: Collection[str] | None,
    families: Mapping[str, Collection[str]],
) -> None:
    """The part of `check_tensors` for which the names are enough."""
    kind = str(config.get("model_type"))
    _check_family(where, kind, config, families)
    is_composed = any(key.endswith("_config") and isinstance(value, dict) for key, value in config.items())
    if words is not None and not is_composed:
        _check_names(where, kind, names, words, {family.casefold() for family in families})


def token_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """For how many tokens the weights have numbers. It is None where no table of them is called as such."""
    found = next((name for name in sorted(tensors) if _TABLE_OF_TOKENS.search(name)), None)
    return None if found is None or not tensors[found].shape else tensors[found].shape[0]


def _check_family(where: str, kind: str, config: Mapping[str, Any], families: Mapping[str, Collection[str]]) -> None:
    """A model of another family may have the same names of layers, and be computed in another way."""
    made_for = config.get("architectures")
    for name in made_for if isinstance(made_for, list) else ():
        family = re.sub(r"(For[A-Z]\w*|(LMHead|PreTrained|DoubleHeads)?Model)$", "", str(name))
        types = families.get(family)
        if types is not None and kind not in types:
            raise InputError(
                f"The config.json of {where} says that the model is a {one_line(str(name))}, and that its "
                f"model_type is {one_line(kind)}; as "
                f"such it would be computed in another way than it was trained: write {min(types)} there."
            )


def _check_names(where: str, kind: str, names: list[str], words: Collection[str], families: Collection[str]) -> None:
    def is_known(name: str) -> bool:
        return all(part.isdigit() or part in words or part in _WEIGHTS for part in name.split("."))

    strange = [name for name in names if not is_known(name)]
    if 2 * len(strange) <= len(names):
        return
    inside = [name.partition(".")[2] for name in strange]
    first = {name.partition(".")[0] for name in strange}
    if len(first) == 1 and sum(map(is_known, inside)) > len(strange) // 2 and first.isdisjoint({*words, *families}):
        raise InputError(
            f"The names of the weights of {where} begin with {first.pop()[:100]!r}, as where the model lies inside of another "
            "object: save that inner model with save_pretrained."
        )
    raise InputError(
        f"The weights of {where} have names such as {one_line(strange[0])}, which no model of type "
        f"{one_line(kind)} has, so they would not "
        f"be read: {_AGAIN}."
    )


def _check_tokens(where: str, tensors: Mapping[str, Tensor], said: _Said) -> None:
    config = said.all
    says = config.get("vocab_size")
    found = next((name for name in sorted(tensors) if _TABLE_OF_TOKENS.search(name)), None)
    if found is None or not tensors[found].shape:
        return
    if len(tensors[found].shape) == 2 and tensors[found].shape[1] not in config.values():
        widths = {key: config[key] for key in ("hidden_size", "d_model", "n_embd", "dim") if isinstance(config.get(key), int)}
        if widths:
            raise InputError(
                f"The weights of {where} are {tensors[found].shape[1]:,} numbers wide ({one_line(found)}), "
                f"{said.where(next(iter(widths)))}: {_AGAIN}."
            )
    if isinstance(says, int) and tensors[found].shape[0] != says:
        raise InputError(
            f"The weights of {where} have numbers for {tensors[found].shape[0]:,} tokens ({one_line(found)}), "
            f"{said.where('vocab_size')}: {_AGAIN}."
        )


def _layers(where: str, names: list[str], said: _Said) -> tuple[str, ...]:
    says = said.of(lambda key: key.endswith("layers") or key == "n_layer")
    numbers = [int(match[1]) for name in names for match in _LAYER.finditer(name)]
    if not numbers or len(says) != 1:
        return ()
    ((key, wanted),) = says.items()
    has = max(numbers) + 1
    if key not in _LAYERS or not isinstance(wanted, int):
        return ()
    if has < wanted:
        raise InputError(
            f"The weights of {where} have {has:,} layers, {said.where(key)}, so the others would begin with random numbers: "
            f"{_AGAIN}."
        )
    if has > wanted:
        return (f"The weights of {where} have {has:,} layers; {said.where(key)}, and only those are used.",)
    return ()
