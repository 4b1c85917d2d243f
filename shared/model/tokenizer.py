"""The tokenizer of a model by the names of its files: whether there is one, and which packages it needs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from memsup.shared.data.errors import InputError

FILES = (
    "tokenizer.json",
    "*vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.tokenizer",
    "*.codes",
    "dict.txt",
    "tekken.json",
)
"""What the tokenizers that there are keep their vocabulary in."""
_WITHOUT_FILES = {"CanineTokenizer", "ByT5Tokenizer", "PerceiverTokenizer"}
"""Tokenizers of characters and bytes, which have no vocabulary."""
_CLASSES = {
    "canine": "CanineTokenizer",
    "perceiver": "PerceiverTokenizer",
    "xlm": "XLMTokenizer",
    "flaubert": "FlaubertTokenizer",
    "roformer": "RoFormerTokenizer",
}
"""What a model type takes where no tokenizer_config.json says it, as far as it is of interest here."""
_SENTENCEPIECE = ("sentencepiece", "google.protobuf")
_PACKAGES = {
    "XLMTokenizer": ("sacremoses",),
    "FlaubertTokenizer": ("sacremoses",),
    "RoFormerTokenizer": ("rjieba",),
    "CpmTokenizer": ("jieba", *_SENTENCEPIECE),
    "BartphoTokenizer": _SENTENCEPIECE,
    "BertGenerationTokenizer": _SENTENCEPIECE,
    "GPTSw3Tokenizer": _SENTENCEPIECE,
    "M2M100Tokenizer": _SENTENCEPIECE,
    "MLukeTokenizer": _SENTENCEPIECE,
    "MarianTokenizer": _SENTENCEPIECE,
}
"""The packages that tokenizers need whatever files they have."""
_JAPANESE = {"mecab": ("fugashi",), "sudachi": ("sudachipy",), "jumanpp": ("rhoknp",)}
_ON_PYPI = {"google.protobuf": "protobuf"}


def has_tokenizer(names: Collection[str], config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether transformers finds a tokenizer there. Without one it may well make an empty one, which knows no word."""
    if tokenizer_class(config, tokenizer_config) in _WITHOUT_FILES:
        return True
    return any(fnmatchcase(name, pattern) for name in names for pattern in FILES)


def tokenizer_class(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """The name of the tokenizer's class, as far as it is of interest here; empty where it is not."""
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    return str(named).removesuffix("Fast") if named else _CLASSES.get(str(config.get("model_type")), "")


def end_token(tokenizer_config: Mapping[str, Any]) -> str:
    """The token that ends a text."""
    named = tokenizer_config.get("eos_token")
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) and content else "</s>"


def check_tokenizer(
    where: str,
    names: Collection[str],
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    is_installed: Callable[[str], bool],
    *,
    is_tiktoken: Callable[[str], bool] = lambda name: name == "tiktoken.model",
) -> None:
    """Raises InputError for a tokenizer that cannot be loaded here. `is_tiktoken` tells what is in a `.model` file."""
    kind = tokenizer_class(config, tokenizer_config)
    has_json = "tokenizer.json" in names
    own_code = tokenizer_config.get("auto_map")
    if own_code and not has_json:
        raise InputError(
            f"The tokenizer of {where} is a program of its own (auto_map in tokenizer_config.json), and memsup runs none from "
            "a model's folder: choose a model that transformers itself knows."
        )
    needed = _PACKAGES.get(kind, ())
    if kind == "BertJapaneseTokenizer":
        needed = _JAPANESE.get(str(tokenizer_config.get("word_tokenizer_type")), ())
    why = f"a {kind}"
    pieces = sorted(name for name in names if fnmatchcase(name, "*.model") or fnmatchcase(name, "*.spm"))
    if pieces and not needed and not has_json:
        needed = ("tiktoken",) if is_tiktoken(pieces[0]) else _SENTENCEPIECE
        why = f"{pieces[0]} and no tokenizer.json"
    missing = [_ON_PYPI.get(package, package) for package in needed if not is_installed(package)]
    if missing:
        wanted = " ".join(_ON_PYPI.get(package, package) for package in needed)
        raise InputError(f"The tokenizer of {where} ({why}) needs {missing[0]}, which is not installed: pip install {wanted}")
    if "vocab.json" in names and "merges.txt" not in names and not pieces and not has_json and kind not in _WITHOUT_FILES:
        raise InputError(f"The tokenizer of {where} has vocab.json and no merges.txt, which belongs to it: copy it there too.")
