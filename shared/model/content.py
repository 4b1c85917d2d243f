"""The first bytes of a model's files, and the size that they promise: pointers, web pages, files cut off."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec

from memsup.shared.data.errors import InputError
from memsup.shared.files import UnreadableError, open_regular, read_document
from memsup.shared.model.tensors import Tensor

MOST_HEADER_BYTES = 8 << 20
"""Room for 60,000 tensors in one file. The format allows 100 MB, which would take a gigabyte once it is decoded."""
MOST_HEADERS_BYTES = 32 << 20
"""The most for all files together: a model of 700 billion parameters has a third of it."""
MOST_INDEX_BYTES = 32 << 20
_FIRST_BYTES = 512
_POINTER = b"version https://git-lfs"
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_AGAIN = "copy or fetch it again from where the model came from"


class _Tensor(msgspec.Struct):
    """What is of interest of a tensor in a header, or of the metadata beside them, which have none of it."""

    dtype: str = ""
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]], msgspec.Meta(max_length=32)] = []
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]] = (0, 0)


_header = msgspec.json.Decoder(dict[str, _Tensor])


def check_begin(file: Path) -> None:
    """Raises InputError for what stands in a file's place: nothing, a pointer of git-lfs, a web page, something packed, a part.
    Raises OSError.
    """
    begin, end, size_bytes = _ends(file)
    if not size_bytes:
        raise InputError(f"{file} is empty: {_AGAIN}.")
    if begin.startswith(_POINTER):
        raise InputError(
            f"{file} is a git-lfs pointer and not the file itself: run  git lfs pull  in its folder "
            "(git-lfs has to be installed)."
        )
    if re.match(rb"\s*<(?:!doctype html|html)", begin, re.IGNORECASE):
        raise InputError(f"{file} is a web page and not the file itself: {_AGAIN}, from its download link.")
    if begin.startswith(_PACKED) and not _is_safetensors(begin):
        raise InputError(f"{file} is packed (gzip, xz or zstd): unpack it.")
    if file.suffix == ".json":
        if begin.startswith(_MARKS):
            raise InputError(f"{file} is not in plain UTF-8: save it as UTF-8 without a byte order mark.")
        if begin.lstrip()[:1] == b"{" and end.rstrip()[-1:] != b"}":
            raise InputError(f"{file} is cut off: it has {size_bytes:,} bytes and no end: {_AGAIN}.")


def check_weights(file: Path) -> None:
    """Raises InputError for weights that are cut off or no weights, and OSError. `file` may be the index of several."""
    if file.name.endswith(".index.json"):
        for shard in shards(file):
            if not os.path.lexists(shard):
                raise InputError(f"{file} names {shard.name}, which is missing: {_AGAIN}.")
            check_weights(shard)
        return
    check_begin(file)
    begin, _, size_bytes = _ends(file)
    if file.suffix == ".safetensors":
        if begin.startswith((b"PK", b"\x80")) and not _is_safetensors(begin):
            raise InputError(f"{file} was saved by torch and is no safetensors: rename it to pytorch_model.bin.")
        _check_safetensors(file, size_bytes)
    elif _is_safetensors(begin):
        raise InputError(f"{file} is in the format of safetensors: rename it to model.safetensors.")
    elif begin.startswith(b"PK"):
        import zipfile

        fd, _ = open_regular(file)
        with os.fdopen(fd, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise InputError(f"{file} is cut off: it has {size_bytes:,} bytes and no end: {_AGAIN}.")
    elif not begin.startswith(b"\x80"):
        raise InputError(f"{file} holds no weights: it is no file that torch has saved. {_AGAIN[0].upper() + _AGAIN[1:]}.")


def tensors(file: Path) -> dict[str, Tensor] | None:
    """What the headers of weights say of their tensors, by names. `file` may be the index of several. It is None for those
    that torch has saved. Raises InputError and OSError.
    """
    found: dict[str, Tensor] = {}
    left_bytes = MOST_HEADERS_BYTES
    for part in shards(file) if file.name.endswith(".index.json") else [file]:
        if part.suffix != ".safetensors":
            return None
        header, length = read_header(part)
        left_bytes -= length
        if left_bytes < 0:
            raise InputError(f"The headers of {file} have more than {MOST_HEADERS_BYTES:,} bytes: {_AGAIN}.")
        found |= {name: Tensor(tensor.dtype, tuple(tensor.shape)) for name, tensor in header.items()}
    return found


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises InputError."""
    check_begin(index)
    try:
        content = read_document(index, json.loads, most_bytes=MOST_INDEX_BYTES)
        names = {str(name) for name in content["weight_map"].values()}
    except (UnreadableError, KeyError, TypeError, AttributeError):
        names = set()
    if not names or any(name != os.path.basename(name) or name in {"", ".", ".."} for name in names):
        raise InputError(f"{index} does not say which files hold the weights: {_AGAIN}.")
    return [index.parent / name for name in sorted(names)]


def _check_safetensors(file: Path, size_bytes: int) -> None:
    try:
        header, length = read_header(file)
    except UnreadableError as error:
        raise InputError(f"{error}: {_AGAIN}.") from None
    promised = 8 + length + max((tensor.data_offsets[1] for tensor in header.values()), default=0)
    if size_bytes < promised:
        raise InputError(f"{file} is cut off: it has {size_bytes:,} bytes of {promised:,}: {_AGAIN}.")
    if size_bytes > promised:
        raise InputError(f"{file} has {size_bytes - promised:,} bytes more than its header names: {_AGAIN}.")


def parameters(folder: Path) -> Counter[str]:
    """How many parameters the folder's safetensors files hold in which type, as their headers say. Raises OSError and
    `UnreadableError`.
    """
    found, left_bytes = Counter[str](), MOST_HEADERS_BYTES
    for file in folder.glob("model*.safetensors"):
        tensors, length = read_header(file)
        left_bytes -= length
        if left_bytes < 0:
            raise UnreadableError(f"its headers have more than {MOST_HEADERS_BYTES:,} bytes")
        for tensor in tensors.values():
            found[tensor.dtype] += math.prod(tensor.shape)
    return found


def read_header(file: Path) -> tuple[dict[str, _Tensor], int]:
    """What a safetensors file says of its tensors, in JSON behind eight bytes with its length, and that length. Raises OSError
    and `UnreadableError`.
    """
    fd, size_bytes = open_regular(file)
    try:
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
        if length > min(MOST_HEADER_BYTES, size_bytes - 8):
            raise UnreadableError(f"{file} claims a header of {length:,} bytes, which it has not")
        header = os.pread(fd, length, 8)
    finally:
        os.close(fd)
    try:
        tensors = _header.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(f"The header of {file} makes no sense ({error})") from None
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}, length


def _is_safetensors(begin: bytes) -> bool:
    """Whether JSON follows a length of eight bytes. The length itself may begin like any other format: 128 like a pickle."""
    return begin[8:10] == b'{"'


def _ends(file: Path) -> tuple[bytes, bytes, int]:
    """The first bytes of a file, its last ones, and its size."""
    fd, size_bytes = open_regular(file)
    try:
        return os.pread(fd, _FIRST_BYTES, 0), os.pread(fd, _FIRST_BYTES, max(0, size_bytes - _FIRST_BYTES)), size_bytes
    finally:
        os.close(fd)
