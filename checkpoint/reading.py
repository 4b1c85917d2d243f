"""A folder that claims to be a checkpoint, read without trusting it: no link is followed, nothing of absurd size is read.

`verify` is the judge; everything that loads asks it first. Changes nothing on disk (setting aside is the store's).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from memsup.checkpoint import manifest as manifests
from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import CheckpointError, Damaged
from memsup.checkpoint.header import INDEX_SUFFIX, MAX_INDEX_BYTES, SUFFIX, Placed, decode_header, decode_index, header_length
from memsup.checkpoint.info import Info
from memsup.checkpoint.manifest import File, Manifest
from memsup.shared.files import NotAFileError, open_regular

MAX_JSON_BYTES = 64 << 20

_DAMAGE = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is not a folder",
    errno.ELOOP: "is a link, and links are not followed",
    errno.EIO: "cannot be read: the disk reports an error",
    errno.EUCLEAN: "cannot be read: the file system is damaged",
    errno.EBADMSG: "cannot be read: the file system is damaged",
    errno.ENODATA: "cannot be read: the disk reports an error",
}  # fmt: skip

T = TypeVar("T")


def verify(path: Path, full: bool = True, *, from_disk: bool = False) -> Info:
    """What the checkpoint at `path` is. Raises `Damaged`, with the reason, unless it is exactly what was written.

    `full` compares every byte by hash; otherwise the manifest, the sizes and the safetensors headers are checked, which reads
    little. With `from_disk` the bytes come from the disk itself and not from a page cache that may know better. Raises
    `CheckpointError` where nothing can be said (no permission, for instance).
    """
    folder_fd = open_folder(path)
    try:
        manifest = read_manifest(folder_fd)
        tensors = {}
        for file in manifest.files:
            fd, size = open_file(folder_fd, file.name)
            try:
                if size != file.bytes:
                    raise Damaged(f"{file.name} has {size} bytes, but {file.bytes} were written.")
                if file.name.endswith(SUFFIX):
                    tensors[file.name] = {tensor.name for tensor in read_header(fd, size, file.name)}
                if full:
                    check_hash(fd, file, from_disk=from_disk)
            finally:
                os.close(fd)
        for file in manifest.files:
            if file.name.endswith(INDEX_SUFFIX):
                _check_index(folder_fd, file.name, tensors)
    finally:
        os.close(folder_fd)
    return Info(
        path=path,
        step=manifest.step,
        created_unix_s=manifest.created_unix_s,
        bytes=manifest.total_bytes,
        metric=manifest.metric,
    )


def read_json(path: Path, name: str, kind: type[T] | Any = Any) -> T:
    """The JSON file `name` of the folder `path`, as `kind` (anything that msgspec decodes). Raises `Damaged`."""
    folder_fd = open_folder(path)
    try:
        document = read_small(folder_fd, name, MAX_JSON_BYTES)
    except FileNotFoundError:
        raise Damaged(f"{name} is missing.") from None
    finally:
        os.close(folder_fd)
    found: T = decode(document, name, kind)
    return found


def decode(document: bytes, name: str, kind: type[T] | Any = Any) -> T:
    """The JSON `document`, which is the file `name`, as `kind`. Raises `Damaged`."""
    try:
        decoded: T = msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{name} makes no sense: {error}.") from None
    return decoded


def read_manifest(folder_fd: int) -> Manifest:
    """The manifest of a checkpoint's folder. Raises `Damaged`."""
    try:
        document = read_small(folder_fd, manifests.NAME, manifests.MAX_BYTES)
    except FileNotFoundError:
        raise Damaged("it has no manifest, so it was never finished or is not a checkpoint of memsup.") from None
    return manifests.unseal(document)


def read_header(fd: int, file_bytes: int, name: str, *, begin: int = 0) -> list[Placed]:
    """The tensors that the safetensors file holds which lies in `fd` from `begin` on; their places are counted in `fd`. Raises
    `Damaged`.
    """
    try:
        length = header_length(read_piece(fd, 8, begin), file_bytes)
        found = decode_header(read_piece(fd, length, begin + 8), file_bytes)
        return [replace(tensor, start=tensor.start + begin, end=tensor.end + begin) for tensor in found] if begin else found
    except Damaged as error:
        raise Damaged(f"{name} {error}") from None
    except OSError as error:
        raise _judged(error, name) from None


# --------------------------------------------------------------------------------------------------------------------
# Opening


def open_folder(path: Path) -> int:
    """A descriptor of the folder itself. Raises `Damaged` where there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _judged(error, str(path)) from None
    except ValueError:
        raise Damaged(f"{path} is no path: it has a zero byte in it.") from None


def open_file(folder_fd: int, name: str) -> tuple[int, int]:
    """A descriptor of a regular file of the folder, and its size in bytes. Raises `Damaged` for anything else."""
    try:
        with _folder_of(folder_fd, name) as (inner_fd, plain):
            return open_regular(plain, follow_links=False, folder_fd=inner_fd)
    except OSError as error:
        raise _judged(error, name) from None


@contextlib.contextmanager
def _folder_of(folder_fd: int, name: str) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder within the folder that `name` is in, and the name there. Raises OSError where it is none; no
    link on the way is followed.
    """
    *folders, plain = name.split("/")
    with contextlib.ExitStack() as opened:
        for folder in folders:
            folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
            opened.callback(os.close, folder_fd)
        yield folder_fd, plain


def read_small(folder_fd: int, name: str, limit_bytes: int) -> bytes:
    """All of a file. Raises `Damaged` if it has more than `limit_bytes`, FileNotFoundError if there is none."""
    try:
        with _folder_of(folder_fd, name) as (inner_fd, plain):
            fd, size = open_regular(plain, follow_links=False, folder_fd=inner_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _judged(error, name) from None
    try:
        if size > limit_bytes:
            raise Damaged(f"{name} has {size} bytes; no real one has more than {limit_bytes}.")
        return read_piece(fd, size, 0)
    except OSError as error:
        raise _judged(error, name) from None
    finally:
        os.close(fd)


def read_piece(fd: int, count: int, place: int) -> bytes:
    """Up to `count` bytes from `place`; fewer only where the file ends."""
    parts = []
    while count and (part := os.pread(fd, min(count, PIECE_BYTES), place)):
        parts.append(part)
        place += len(part)
        count -= len(part)
    return b"".join(parts)


def check_hash(fd: int, file: File, *, begin: int = 0, from_disk: bool = False) -> None:
    """Compares the bytes of a file, which lies in `fd` from `begin` on, with its hash. Raises `Damaged`."""
    hash_ = file.new_hash()
    buffer = memoryview(mmap.mmap(-1, PIECE_BYTES))  # begins at a page's boundary, as O_DIRECT wants
    if from_disk:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        _set_direct(fd, True)
    place, end = begin, begin + file.bytes
    try:
        while place < end:
            try:
                count = os.preadv(fd, [buffer], place)
            except OSError as error:
                if error.errno != errno.EINVAL or not from_disk:
                    raise
                _set_direct(fd, False)  # a file system with other ideas of alignment; its cache was emptied at least
                count = os.preadv(fd, [buffer], place)
            if count == 0:
                break
            hash_.update(buffer[: min(count, end - place)])
            place += count
    except OSError as error:
        raise _judged(error, file.name) from None
    if not file.is_hash(hash_.hexdigest()):
        raise Damaged(f"{file.name} is not what was written: its hash does not match.")


def _set_direct(fd: int, direct: bool) -> None:
    """Whether reads pass by the page cache. A file system that cannot (EINVAL) goes on as it does."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)


def _check_index(folder_fd: int, name: str, tensors: dict[str, set[str]]) -> None:
    """Each tensor of the index must be in the shard that it names, and that shard in the manifest."""
    try:
        weight_map = decode_index(read_small(folder_fd, name, MAX_INDEX_BYTES))
    except FileNotFoundError:
        raise Damaged(f"{name} is missing.") from None
    except Damaged as error:
        raise Damaged(f"{name} {error}") from None
    beside = name[: name.rfind("/") + 1]
    for tensor, file in weight_map.items():
        if tensor not in tensors.get(beside + file, ()):
            raise Damaged(f"{name} looks for {tensor[:200]!r} in {file}, where it is not.")


def _judged(error: OSError, name: str) -> CheckpointError:
    if isinstance(error, NotAFileError):
        return Damaged(f"{name} is not a file.")
    if error.errno in _DAMAGE:
        return Damaged(f"{name} {_DAMAGE[error.errno]}.")
    return CheckpointError(f"{name} cannot be read: {error.strerror}.")
