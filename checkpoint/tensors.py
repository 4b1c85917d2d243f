"""Tensors to files and back, a bounded piece at a time. The bytes are whatever the caller's tensors hold; no torch here.

The format's rules are in `header.py`; how a file becomes durable is in `durable.py`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.header import (
    INDEX_SUFFIX,
    MAX_INDEX_BYTES,
    SUFFIX,
    Placed,
    decode_index,
    encode_header,
    size_bytes,
)
from memsup.checkpoint.reading import open_file, open_folder, read_header, read_small


def _not_read(_begin: int, _end: int) -> Iterator[memoryview]:
    raise AssertionError("only a tensor that is read has parts")


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written, or one that is read; both sides of the store speak of it in this way.

    `dtype` is safetensors' name ("F32"). `chunks()` yields the elements in row-major order as little-endian bytes, in
    contiguous pieces of any length; when reading, each piece is overwritten by the next and has at most `PIECE_BYTES`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[memoryview]]
    part: Callable[[int, int], Iterator[memoryview]] = _not_read
    """The same of bytes `begin` to `end` of one that is read."""


class _Written(Protocol):
    """A file that is being written."""

    def write(self, content: memoryview) -> None: ...


def write_shard(file: _Written, tensors: list[Tensor]) -> None:
    """Writes one safetensors file. Raises ValueError if a tensor's chunks are not of the size it claims."""
    file.write(memoryview(encode_header(tensors)))
    for tensor in tensors:
        written_bytes = 0
        for chunk in tensor.chunks():
            file.write(chunk)
            written_bytes += chunk.nbytes
        if written_bytes != size_bytes(tensor):
            raise ValueError(f"{tensor.name} gave {written_bytes} bytes but claims to have {size_bytes(tensor)}")


def open_tensors(path: Path, stem: str, buffer: memoryview | None = None) -> Iterator[Tensor]:
    """The tensors of `stem` ("model", "optimizer") in the folder `path`, in the order of their bytes. They are read into
    `buffer`, of `PIECE_BYTES`; None means into one of their own.

    A tensor's `chunks` are to be read before the next tensor is taken. Reads also folders that memsup did not write.
    Raises `Damaged` for files that are missing or malformed; content is compared with hashes only by `verify`, before.
    """
    folder_fd = open_folder(path)
    try:
        for name in _shards(folder_fd, stem):
            fd, size = open_file(folder_fd, name)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                buffer = buffer or memoryview(mmap.mmap(-1, PIECE_BYTES))
                yield from tensors_in(fd, size, name, buffer)
            finally:
                os.close(fd)
    finally:
        os.close(folder_fd)


def tensors_in(fd: int, file_bytes: int, name: str, buffer: memoryview | None = None, *, begin: int = 0) -> Iterator[Tensor]:
    """The tensors of the safetensors file `name`, which lies in `fd` from `begin` on. Raises `Damaged`."""
    buffer = buffer or memoryview(mmap.mmap(-1, PIECE_BYTES))
    for place in read_header(fd, file_bytes, name, begin=begin):
        reader = _Reader(fd, place, buffer, name)
        yield Tensor(place.name, place.dtype, place.shape, reader.chunks, reader.part)


def _shards(folder_fd: int, stem: str) -> list[str]:
    """The names of the files of `stem`: those of its index, or the one file. Raises `Damaged`."""
    index = stem + INDEX_SUFFIX
    try:
        document = read_small(folder_fd, index, MAX_INDEX_BYTES)
    except FileNotFoundError:
        return [stem + SUFFIX]
    try:
        return sorted(set(decode_index(document).values()))
    except Damaged as error:
        raise Damaged(f"{index} {error}") from None


@dataclass(frozen=True)
class _Reader:
    fd: int
    place: Placed
    buffer: memoryview
    file: str

    def chunks(self) -> Iterator[memoryview]:
        yield from self.part(0, self.place.end - self.place.start)

    def part(self, begin: int, end: int) -> Iterator[memoryview]:
        start, end = self.place.start + begin, min(self.place.start + end, self.place.end)
        while start < end:
            piece = self.buffer[: min(PIECE_BYTES, end - start)]
            count = os.preadv(self.fd, [piece], start)
            if count == 0:
                raise Damaged(f"{self.file} ends within {self.place.name}.")
            yield piece[:count]
            start += count
