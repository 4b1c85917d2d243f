"""The files of a tokenizer, looked into as far as a library would stumble over them: JSON of another form, no text, no list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from memsup.shared.data.errors import InputError
from memsup.shared.files import UnreadableError, read_document, read_small

_MOST_BYTES = 64 << 20
_AGAIN = "copy or fetch it again from where the model came from"
_WORD_PIECES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
_BYTE_PAIRS = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "DebertaTokenizer")


class _Added(msgspec.Struct):
    id: int
    content: str = ""


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: dict[str, int] | list[Any] = []


class _Tokenizer(msgspec.Struct):
    """What is of interest of a `tokenizer.json`."""

    model: _Model
    added_tokens: list[_Added]


_tokenizer = msgspec.json.Decoder(_Tokenizer)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KINDS = (None, "BPE", "WordPiece", "WordLevel", "Unigram")


def check_vocabulary(
    folder: Path, names: Collection[str], kind: str, tokenizer_config: Mapping[str, Any], token_rows: int | None
) -> None:
    """Raises InputError for files that the tokenizer of class `kind` could not be made of, or that have tokens of which the
    model has no numbers: it has `token_rows`, or None where nobody knows. Raises OSError.
    """
    for name in {"special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"} & set(names):
        _decoded(folder / name, _object)
    named = tokenizer_config.get("unk_token", "[UNK]")
    unknown = named.get("content") if isinstance(named, dict) else named
    if "tokenizer.json" in names and (folder / "tokenizer.json").stat().st_size <= _MOST_BYTES:
        found = _decoded(folder / "tokenizer.json", _tokenizer)
        if found.model.type not in _KINDS:
            raise InputError(
                f"{folder / 'tokenizer.json'} has a model of an unknown type ({found.model.type!r:.40}): {_AGAIN}."
            )
        vocab = found.model.vocab
        known = {*vocab, *(added.content for added in found.added_tokens)} if isinstance(vocab, dict) else None
        if known is not None and kind in _WORD_PIECES and unknown not in known:
            raise _without(unknown, folder / "tokenizer.json")
        places = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        tokens = 1 + max([*places, *(added.id for added in found.added_tokens)], default=-1)
        if token_rows is not None and tokens > token_rows and max(places, default=0) >= token_rows:
            raise InputError(
                f"The tokenizer of {folder} has {tokens:,} tokens, the model has numbers for {token_rows:,}: they do not "
                "belong together; copy both again from where the model came from."
            )
    if "tokenizer.json" in names:
        return
    if "vocab.txt" in names:
        words = _lines(folder / "vocab.txt")
        if kind in _WORD_PIECES and unknown not in words:
            raise _without(unknown, folder / "vocab.txt")
    if kind in _BYTE_PAIRS and not {"vocab.json", "merges.txt"} <= set(names):
        lacks = " and ".join(sorted({"vocab.json", "merges.txt"} - set(names)))
        raise InputError(f"The tokenizer of {folder} is a {kind} and has no {lacks}: copy what belongs to it there too.")


def _without(unknown: object, file: Path) -> InputError:
    return InputError(f"{file} has no {str(unknown)[:40]}, which stands for what it does not know: {_AGAIN}.")


def _decoded(file: Path, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Raises InputError and OSError."""
    try:
        return read_document(file, decoder.decode, most_bytes=_MOST_BYTES)
    except (msgspec.DecodeError, UnreadableError) as error:
        raise InputError(f"{file} is not what its name says ({error}): {_AGAIN}.") from None


def _lines(file: Path) -> frozenset[str]:
    """Raises InputError and OSError."""
    try:
        return frozenset(read_small(file, _MOST_BYTES).decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8 (byte {error.start:,}): {_AGAIN}.") from None
