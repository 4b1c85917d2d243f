"""A model's folder, looked at before anything is loaded from it, without trusting what lies there.

`start` and the worker ask `check_model`, so that no library is led to a pipe, a device or a file of absurd size. Covers what
names and beginnings of files tell: `config.json` and the headers of safetensors; no weights are read. What only the libraries
or a hub can tell is left to the worker.
"""

from __future__ import annotations

import enum
import json
import math
import os
import re
import stat
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import msgspec

from memsup.shared.data.errors import InputError
from memsup.shared.files import UnreadableError, open_regular, read_document

MOST_CONFIG_BYTES = 4 << 20
"""Room for the names of 50,000 labels."""
MOST_HEADER_BYTES = 8 << 20
"""Room for 60,000 tensors in one file. The format allows 100 MB, which would take a gigabyte once it is decoded."""
MOST_HEADERS_BYTES = 32 << 20
"""The most for all files together: a model of 700 billion parameters has a third of it."""
MOST_INDEX_BYTES = 32 << 20
MOST_TEXT_BYTES = 256 << 20
"""The largest vocabularies that there are, as JSON, have a tenth of it."""
_LONGEST_HUB_ID = 96
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TEXTS = {
    "*config.json": MOST_INDEX_BYTES,
    "*.index.json": MOST_INDEX_BYTES,
    "tokenizer.json": MOST_TEXT_BYTES,
    "vocab*": MOST_TEXT_BYTES,
    "merges.txt": MOST_TEXT_BYTES,
    "*.model": MOST_TEXT_BYTES,
    "*tokens*.json": MOST_INDEX_BYTES,
    "*.jinja": MOST_INDEX_BYTES,
}
"""What the libraries read as a whole, and the most bytes of it."""


class ModelSource(enum.StrEnum):
    """Where a model's weights come from."""

    FOLDER = "folder"
    CONFIG_ONLY = "config only"
    """The weights come from nowhere: the folder has a config.json alone, and the model is trained from nothing."""
    HUB = "hub"
    """The weights come from the hub, which is not looked at here: that may need the network."""


def check_model(model: str | None) -> ModelSource:
    """Where the weights of `model` come from. A hub id is only told from a folder, not looked up. Raises InputError for a
    folder that holds no model, and for anything in it that no library should be led to.
    """
    if not model:
        raise InputError("task.model is not set: name a hub id such as bert-base-chinese, or a folder with a config.json.")
    path = Path(model)
    if not os.path.lexists(path) and len(model) <= _LONGEST_HUB_ID and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        return ModelSource.HUB
    if not os.path.isdir(path):
        raise InputError(
            f"There is no model folder {model[:300]}: give the folder that holds the model's config.json, or a hub id."
        )
    config = path / "config.json"
    if not os.path.lexists(config):
        raise InputError(f"{model} has no config.json, so it is no model folder: give the one that save_pretrained wrote.")
    try:
        content = read_config(path)
    except (OSError, UnreadableError) as error:
        raise InputError(f"{config} cannot be read as JSON ({error}): copy it again from where the model came from.") from None
    if not isinstance(content, dict) or "model_type" not in content:
        raise InputError(f"{config} names no model_type: it is not the config.json of a transformers model.")
    _check_files(path)
    weights = any(any(path.glob(pattern)) for pattern in WEIGHTS)
    return ModelSource.FOLDER if weights else ModelSource.CONFIG_ONLY


def read_config(folder: Path) -> Any:
    """What `config.json` holds. Raises OSError and `UnreadableError`."""
    return read_document(folder / "config.json", json.loads, most_bytes=MOST_CONFIG_BYTES)


def parameters(folder: Path) -> int:
    """How many parameters the folder's safetensors files hold, as their headers say; 0 where there are none. Raises OSError and
    `UnreadableError`.
    """
    found, left_bytes = 0, MOST_HEADERS_BYTES
    for file in folder.glob(WEIGHTS[0]):
        header = _read_header(file)
        left_bytes -= len(header)
        if left_bytes < 0:
            raise UnreadableError(f"its headers have more than {MOST_HEADERS_BYTES:,} bytes")
        try:
            tensors = _header.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableError(f"the header of {file} makes no sense: {error}") from None
        found += sum(math.prod(tensor.shape) for name, tensor in tensors.items() if name != "__metadata__")
    return found


def _read_header(file: Path) -> bytes:
    """The JSON in which each tensor has its shape, behind eight bytes with its length."""
    fd, size_bytes = open_regular(file)
    try:
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
        if length > min(MOST_HEADER_BYTES, size_bytes - 8):
            raise UnreadableError(f"{file} claims a header of {length:,} bytes")
        return os.pread(fd, length, 8)
    finally:
        os.close(fd)


class _Tensor(msgspec.Struct):
    """What is of interest of a tensor in a header, or of the metadata beside them, which have no shape."""

    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]], msgspec.Meta(max_length=32)] = []


_header = msgspec.json.Decoder(dict[str, _Tensor])


def _check_files(folder: Path) -> None:
    """Raises InputError for what is neither a file nor a folder, and for a file larger than any real one of its kind."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if os.path.exists(entry.path) and not _is_of_no_interest(entry)]
        for entry in found:
            facts, begins = entry.stat(), b""
            size_bytes = facts.st_size
            if entry.name.endswith(".safetensors") or not stat.S_ISREG(facts.st_mode):
                fd, size_bytes = open_regular(entry.path)
                begins = os.pread(fd, 8, 0)
                os.close(fd)
            header_bytes = int.from_bytes(begins, "little")
            if MOST_HEADER_BYTES < header_bytes < size_bytes:
                raise _too_large(f"the header of {entry.path}", header_bytes, MOST_HEADER_BYTES)
            if size_bytes > (most_bytes := _most_bytes(entry.name)):
                raise _too_large(entry.path, size_bytes, most_bytes)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be read: {error.strerror}; a model's folder has what save_pretrained wrote."
        ) from None


def _is_of_no_interest(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder beside the files, such as one of checkpoints."""
    return entry.is_dir() and _most_bytes(entry.name) == math.inf and not entry.name.endswith((".safetensors", ".bin"))


def _most_bytes(name: str) -> float:
    return next((most_bytes for pattern, most_bytes in _TEXTS.items() if fnmatch(name, pattern)), math.inf)


def _too_large(what: str, has_bytes: int, most_bytes: float) -> InputError:
    return InputError(
        f"{what[:1].upper() + what[1:]} has {has_bytes:,} bytes, and no real one more than {most_bytes:,}: "
        "copy it again from where the model came from."
    )
