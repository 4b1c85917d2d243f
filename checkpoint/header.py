"""The safetensors format, as far as it concerns bytes: how a header is laid out, made, and refused. Pure; opens nothing.

A file is eight bytes with the header's length, the header (JSON: name → dtype, shape, place), then the tensors without gaps
(github.com/huggingface/safetensors, "Format"). Sharding follows Hugging Face: `model.safetensors`, or
`model-00001-of-00003.safetensors` and so on with `model.safetensors.index.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.manifest import is_file_name

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SHARD_BYTES = 256 << 20
"""The most that a shard holds, unless it is a single larger tensor."""
MAX_HEADER_BYTES = 8 << 20
"""Room for 60,000 tensors. The format allows 100 MB, which would take a gigabyte once it is decoded."""
MAX_INDEX_BYTES = 8 << 20

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Safetensors' names of the types, and bytes of one element."""


class Described(Protocol):
    """What a header says of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


D = TypeVar("D", bound=Described)


@dataclass(frozen=True)
class Placed:
    """A tensor of a file: bytes `start` to `end`, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def size_bytes(tensor: Described) -> int:
    """The bytes of a tensor's elements. Raises ValueError for a dtype that safetensors does not have."""
    if tensor.dtype not in DTYPE_BYTES:
        raise ValueError(f"{tensor.name}: safetensors has no type {tensor.dtype!r}")
    return math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]


def plan_shards(stem: str, tensors: Sequence[D], shard_bytes: int) -> dict[str, list[D]]:
    """The tensors of each file, by its name, in their order within it. Raises ValueError for two tensors of one name."""
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise ValueError(f"{stem}: two tensors have the same name")
    shards: list[list[D]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        size = size_bytes(tensor)
        if shards[-1] and filled_bytes + size > shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(tensor)
        filled_bytes += size
    for shard in shards:
        # The widest types first: then each tensor is aligned to its own type, which torch demands of a view.
        shard.sort(key=lambda tensor: -DTYPE_BYTES[tensor.dtype])
    if len(shards) == 1:
        return {stem + SUFFIX: shards[0]}
    return {f"{stem}-{number:05}-of-{len(shards):05}{SUFFIX}": shard for number, shard in enumerate(shards, start=1)}


def encode_header(tensors: Sequence[Described]) -> bytes:
    """The bytes that stand before the tensors. Raises ValueError for a name that a tensor cannot have, or a header that is too
    long.
    """
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        if tensor.name in document:
            raise ValueError(f"a tensor cannot be named {tensor.name!r} here")
        size = size_bytes(tensor)
        document[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    header = msgspec.json.encode(document)
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"a safetensors header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are read again")
    return len(header).to_bytes(8, "little") + header


def header_length(first_bytes: bytes, file_bytes: int) -> int:
    """Bytes of the JSON that follows the first eight. Raises `Damaged` for a length that cannot be."""
    if len(first_bytes) < 8:
        raise Damaged("is too short to be a safetensors file.")
    length = int.from_bytes(first_bytes[:8], "little")
    if length > MAX_HEADER_BYTES or length > file_bytes - 8:
        raise Damaged(f"claims a header of {length} bytes in a file of {file_bytes}.")
    return length


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry = msgspec.json.Decoder(_Entry)
_metadata = msgspec.json.Decoder(dict[str, str])


def decode_header(header: bytes, file_bytes: int) -> list[Placed]:
    """The tensors of a file of `file_bytes` with this JSON, in the order of their bytes.

    Raises `Damaged` unless every type is known, every size is what type and shape say, and the tensors fill the file exactly.
    """
    try:
        raw = _entries.decode(header)
        if "__metadata__" in raw:
            _metadata.decode(raw.pop("__metadata__"))
        entries = {name: _entry.decode(entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"has a header that makes no sense: {error}.") from None
    data = 8 + len(header)
    placed = []
    for name, entry in entries.items():
        start, end = entry.data_offsets
        tensor = Placed(name, entry.dtype, tuple(entry.shape), data + start, data + end)
        if entry.dtype not in DTYPE_BYTES:
            raise Damaged(f"holds {name[:200]!r} in a type that does not exist: {entry.dtype[:20]!r}.")
        if any(length < 0 for length in entry.shape) or end - start != size_bytes(tensor):
            raise Damaged(f"holds {name[:200]!r} in {end - start} bytes, which its shape and type contradict.")
        placed.append(tensor)
    placed.sort(key=lambda tensor: (tensor.start, tensor.end))
    place = data
    for tensor in placed:
        if tensor.start != place:
            raise Damaged(f"holds {tensor.name[:200]!r} where other bytes lie.")
        place = tensor.end
    if place != file_bytes:
        raise Damaged(f"should be {place} bytes long but is {file_bytes}.")
    return placed


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_index = msgspec.json.Decoder(_Index)


def encode_index(shards: dict[str, list[D]]) -> bytes:
    """Hugging Face's index: which tensor lies in which file."""
    weight_map = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(size_bytes(tensor) for tensors in shards.values() for tensor in tensors)
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode_index(document: bytes) -> dict[str, str]:
    """The file of each tensor. Raises `Damaged`, also for a file that lies anywhere else."""
    try:
        weight_map = _index.decode(document).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"makes no sense: {error}.") from None
    for file in weight_map.values():
        if not is_file_name(file) or not file.endswith(SUFFIX):
            raise Damaged(f"names {file[:80]!r}, which is not a safetensors file beside it.")
    return weight_map
