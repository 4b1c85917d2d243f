"""A training state in memory: the tensors and the state of a checkpoint in one anonymous file, sealed once it is whole.

    model.safetensors | optimizer.safetensors | state.json | the manifest | the manifest's length, in eight bytes

It is written like a checkpoint's files, hashed on the way, and read as mistrustfully: the manifest first, then every byte by
its hash. The seals of memfd_create(2) keep everybody from changing it, its writer included. It lasts as long as a process has
it open, so it is none of the checkpoints: no folder, and gone with the machine. `supervisor/fence/in_memory.py` holds it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import msgspec
import xxhash

from memsup.checkpoint import manifest as manifests
from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import CheckpointError, Damaged
from memsup.checkpoint.header import SUFFIX, plan_shards
from memsup.checkpoint.manifest import File, Manifest
from memsup.checkpoint.reading import check_hash, decode, read_header, read_piece
from memsup.checkpoint.tensors import Tensor, tensors_in, write_shard
from memsup.shared.clock import unix_s
from memsup.shared.descriptors import SEALS, is_sealed

_LENGTH_BYTES = 8
_ONE_FILE = 1 << 62

T = TypeVar("T")


class Draft:
    """A state that is being written. Use: `with Draft(step) as draft: …; fd = draft.seal()`. All methods raise OSError; what is
    not sealed is gone afterwards.
    """

    def __init__(self, step: int, tick: Callable[[], None]) -> None:
        """`tick` is called with each piece written, and may raise."""
        self.step = step
        self._tick = tick
        self._files: list[File] = []
        self._hash = xxhash.xxh3_128()
        self._bytes = self._total_bytes = 0
        self._fd = os.memfd_create(f"memsup-step-{step}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._is_whole = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_whole:
            os.close(self._fd)

    def write_tensors(self, stem: str, tensors: Iterable[Tensor]) -> None:
        """`stem`.safetensors, of any size."""
        ((name, ordered),) = plan_shards(stem, list(tensors), _ONE_FILE).items()
        write_shard(self, ordered)
        self._end_file(name)

    def write_json(self, name: str, content: Any) -> None:
        """Anything that msgspec encodes."""
        self.write(memoryview(msgspec.json.encode(content)))
        self._end_file(name)

    def seal(self) -> int:
        """Makes it whole, and nobody changes it any more. Returns its descriptor, which is the caller's from now on."""
        manifest = Manifest(step=self.step, created_unix_s=unix_s(), metric=None, files=self._files)
        document = manifests.seal(manifest)
        self.write(memoryview(document + len(document).to_bytes(_LENGTH_BYTES, "little")))
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
        self._is_whole = True
        return self._fd

    def write(self, content: memoryview) -> None:
        """Adds to the file that is being written. `content` must be contiguous; it is only read before this returns."""
        flat = content.cast("B")
        for start in range(0, len(flat), PIECE_BYTES):
            left = piece = flat[start : start + PIECE_BYTES]
            while left:
                left = left[os.write(self._fd, left) :]
            self._hash.update(piece)
            self._bytes += len(piece)
            self._tick()

    def _end_file(self, name: str) -> None:
        self._files.append(File(name=name, bytes=self._bytes, xxh3_128=self._hash.hexdigest()))
        self._hash, self._bytes = xxhash.xxh3_128(), 0


class InMemory:
    """A state in memory that is read. It does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        """Compares every byte with its hash. Raises `Damaged` unless it is exactly what was written."""
        try:
            self._fd = fd
            self._manifest = _read_manifest(fd)
            self._begins: dict[str, tuple[int, int]] = {}
            begin = 0
            for file in self._manifest.files:
                self._begins[file.name] = begin, file.bytes
                check_hash(fd, file, begin=begin)
                if file.name.endswith(SUFFIX):
                    read_header(fd, file.bytes, file.name, begin=begin)
                begin += file.bytes
        except Damaged:
            raise
        except (CheckpointError, OSError) as error:
            raise Damaged(f"it cannot be read: {error}") from None

    @property
    def step(self) -> int:
        return self._manifest.step

    @property
    def created_unix_s(self) -> float:
        return self._manifest.created_unix_s

    @property
    def size_bytes(self) -> int:
        return self._manifest.total_bytes

    def json(self, name: str, kind: type[T]) -> T:
        """The JSON file `name`, as `kind`. Raises `Damaged`."""
        begin, size = self._place_of(name)
        return decode(read_piece(self._fd, size, begin), name, kind)

    def tensors(self, stem: str, buffer: memoryview | None = None) -> Iterator[Tensor]:
        """As `tensors.open_tensors`."""
        name = stem + SUFFIX
        begin, size = self._place_of(name)
        yield from tensors_in(self._fd, size, name, buffer, begin=begin)

    def _place_of(self, name: str) -> tuple[int, int]:
        if name not in self._begins:
            raise Damaged(f"{name} is missing.")
        return self._begins[name]


def _read_manifest(fd: int) -> Manifest:
    if not is_sealed(fd):
        raise Damaged("it is not sealed, so it was never finished.")
    size = os.fstat(fd).st_size
    length = int.from_bytes(read_piece(fd, _LENGTH_BYTES, max(0, size - _LENGTH_BYTES)), "little")
    if length > min(manifests.MAX_BYTES, size - _LENGTH_BYTES):
        raise Damaged("its manifest is cut off or not one of memsup's.")
    manifest = manifests.unseal(read_piece(fd, length, size - _LENGTH_BYTES - length))
    if manifest.total_bytes + length + _LENGTH_BYTES != size:
        raise Damaged(f"it has {size} bytes, which its manifest contradicts.")
    return manifest
