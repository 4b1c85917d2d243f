"""The checkpoints of a program of a person's own: each is durable before it exists, verified before it is used.

The folders, the order of the steps and the manifest are those of the built-in training (`checkpoint/store.py`,
docs/checkpoints.md), so that `memsup checkpoint --list` and `--verify` judge both alike; the standard library has no XXH3, so
the hashes are SHA-256, and the manifest says so. The order:

    1. a draft folder beside the target, with memsup's mark in it
    2. the program's files; each flushed and hashed
    3. the manifest, last: flushed; then the draft folder itself
    4. rename to its name; flush of the store's folder: from here on it exists
    5. all of it read back and compared; only then are older ones deleted
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from typing import Callable, NamedTuple

from memsup import folders, manifest
from memsup.folders import DRAFT, GONE, MARK, WHY
from memsup.manifest import File, Manifest

PIECE_BYTES = 4 << 20
FULL_BYTES = 64 << 10
"""A disk with less room than this is full."""
_DAMAGE = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is not in a folder",
    errno.ELOOP: "is a link, and links are not followed",
    errno.EIO: "cannot be read: the disk reports an error",
    errno.EUCLEAN: "cannot be read: the file system is damaged",
    errno.EBADMSG: "cannot be read: the file system is damaged",
    errno.ENODATA: "cannot be read: the disk reports an error",
}


class CheckpointError(Exception):
    """A checkpoint cannot be written or loaded. The text is a plain sentence or two."""


class Damaged(Exception):  # noqa: N818 - as in `checkpoint/errors.py`
    """What lies there is not what was written. The text is a sentence that goes on from the checkpoint's name."""


class Checkpoint(NamedTuple):
    """A checkpoint that is whole."""

    path: str
    step: int
    created_unix_s: float
    size_bytes: int
    save_s: float | None = None
    """What the save cost. It is None for one that was found."""


class SetAside(NamedTuple):
    """A damaged checkpoint that is out of the way."""

    path: str
    """Where it lies now."""
    step: int
    reason: str


def _one_training(_path: str) -> str | None:
    return None


class Store:
    """The checkpoints in `folder`, which is made at the first save. Of the training that saves, the `keep` newest are kept; of
    each other one in the same folder the newest, which says how that one ended.
    """

    def __init__(self, folder: str, keep: int, training_of: Callable[[str], str | None] = _one_training) -> None:
        """`training_of` tells whose the checkpoint in a folder is. It is None where that cannot be told."""
        self.folder, self._keep, self._training_of = os.path.abspath(folder), max(2, keep), training_of

    def newest(self, training: str | None = None) -> tuple[Checkpoint | None, list[SetAside]]:
        """The newest checkpoint of `training` that is what was written, every byte of it, and the newer ones that are not,
        which were set aside. It is None where there is none. Raises `CheckpointError` where nothing can be said.
        """
        aside: list[SetAside] = []
        for step, _, name in self._checkpoints():
            path = os.path.join(self.folder, name)
            if self._training_of(path) not in {training, None}:
                continue
            try:
                return verified(path, step), aside
            except Damaged as damage:
                if os.path.lexists(os.path.join(path, MARK)):
                    aside.append(self._set_aside(name, step, str(damage)))
            except (OSError, CheckpointError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise CheckpointError(f"{path} cannot be used: {why}. Choose another checkpoint.folder.") from None
        return None, aside

    def paths(self) -> list[str]:
        """The checkpoints' folders, whole or not: the newest first. Raises `CheckpointError`."""
        return [os.path.join(self.folder, name) for _, _, name in self._checkpoints()]

    def sweep(self) -> None:
        """Removes what a save or a deletion that was killed has left. Nobody else may write meanwhile."""
        for name in self._names():
            path = os.path.join(self.folder, name)
            is_empty_of_ours = folders.may_lack_mark(name) and os.path.isdir(path) and not os.listdir(path)
            if name.startswith((DRAFT, GONE)) and (is_empty_of_ours or os.path.lexists(os.path.join(path, MARK))):
                _remove(path)

    def save(self, step: int, write: Callable[[str], None], training: str | None = None) -> Checkpoint:
        """Makes a checkpoint of `training` of what `write` puts into the folder that it is given: plain files, or such in
        folders.

        When this returns it is durable and was read back. Raises `CheckpointError`, and what `write` raises, and leaves
        nothing then.
        """
        began_s = time.monotonic()
        draft = os.path.join(self.folder, f"{DRAFT}{step:08}-{os.urandom(4).hex()}")
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            os.mkdir(draft, 0o700)
            _write(os.path.join(draft, MARK), b"")
            _written(draft, write)
            seal(draft, step)
            path = os.path.join(self.folder, folders.next_name(step, self._names()))
            os.rename(draft, path)
            _flush_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written: {error.strerror or error}. "
                "Older checkpoints are untouched."
            ) from error
        finally:
            _remove(draft)
        try:
            found = verified(path, step)
        except (Damaged, OSError) as damage:
            aside = self._set_aside(os.path.basename(path), step, str(damage))
            raise CheckpointError(
                f"The checkpoint of step {step} was written, but the disk gives back something else: {damage} It was set aside "
                f"as {aside.path} and the one before it counts. The disk may be failing."
            ) from None
        self._retain(training)
        return found._replace(save_s=time.monotonic() - began_s)

    # -- folders ------------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}.") from None

    def _checkpoints(self) -> list[tuple[int, int, str]]:
        """Each checkpoint's step, its number within the step, and its name: the newest first."""
        return sorted(((*order, name) for name in self._names() if (order := folders.order(name))), reverse=True)

    def _set_aside(self, name: str, step: int, reason: str) -> SetAside:
        path, aside = (os.path.join(self.folder, each) for each in (name, folders.aside_name(name, self._names())))
        with contextlib.suppress(OSError):
            _write(os.path.join(path, WHY), (reason + "\n").encode())
        try:
            os.rename(path, aside)
            _flush_folder(self.folder)
        except OSError:  # it stays where it is, and is not used
            return SetAside(path, step, reason)
        return SetAside(aside, step, reason)

    def _retain(self, training: str | None) -> None:
        """Deletes what is older than the checkpoints to be kept: renamed first, so that half of one is none. What cannot be
        deleted stays.
        """
        seen: dict[str | None, int] = {}
        for _, _, name in self._checkpoints():
            path, gone = os.path.join(self.folder, name), os.path.join(self.folder, GONE + name)
            of = self._training_of(path)
            seen[of] = seen.get(of, 0) + 1
            is_kept = seen[of] <= (self._keep if of == training else 1)
            if not is_kept and os.path.lexists(os.path.join(path, MARK)):
                with contextlib.suppress(OSError):
                    os.rename(path, gone)
                    _remove(gone)


# --------------------------------------------------------------------------------------------------------------------
# The manifest, and what it says of the files


def seal(folder: str, step: int) -> None:
    """Makes a checkpoint of `step` of the files that lie in `folder`: each is flushed and hashed, the manifest is written, and
    the folder flushed. Raises OSError, and `CheckpointError` for what cannot be in a checkpoint.
    """
    files = [_flushed(folder, name) for name in _names_below(folder)]
    document = Manifest(manifest.PROGRAMS_FORMAT, step, time.time(), None, files)
    covered = json.dumps({**document._asdict(), "files": [file._asdict() for file in files]}, indent=2)
    covered = covered[: -len("\n}")] + ",\n" + manifest.PROGRAMS_SEAL
    _write(os.path.join(folder, manifest.NAME), (covered + _digest(covered.encode()) + manifest.END).encode())
    _flush_folder(folder)


def _names_below(folder: str) -> list[str]:
    """The files of a draft, by their names within it; the folders in it are flushed."""
    names: list[str] = []
    for path, inner, files in os.walk(folder):
        links = [name for name in inner if os.path.islink(os.path.join(path, name))]
        names += [os.path.relpath(os.path.join(path, name), folder) for name in files + links]
        if path != folder:
            _flush_folder(path)
            names += [] if inner or files else [os.path.relpath(path, folder)]  # as nothing that could be in one
    return sorted(name for name in names if name not in {MARK, manifest.NAME})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unsealed(document: bytes) -> Manifest:
    """The manifest in `document`. Raises `Damaged` unless that is what `seal` has made, and `CheckpointError` where it is one
    of the built-in training, which is nothing to be set aside.
    """
    if document[: -len(manifest.END) - manifest.XXH3_DIGITS].endswith(manifest.SEAL.encode()):
        raise CheckpointError("it is one of the built-in training")
    end = len(manifest.END) + manifest.SHA256_DIGITS
    covered, written = document[:-end], document[-end:]
    if not covered.endswith(manifest.PROGRAMS_SEAL.encode()):
        raise Damaged("Its manifest is cut off or not one of a program's.")
    if (_digest(covered) + manifest.END).encode() != written:
        raise Damaged("Its manifest is not what was written: its own hash does not match.")
    try:
        found = json.loads(document)
        files = [File(**file) for file in found.pop("files")]
        sealed = Manifest(**{name: found[name] for name in Manifest._fields if name != "files"}, files=files)
        makes_sense = all(manifest.is_path(file.name) and type(file.bytes) is int for file in files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        makes_sense = False
    if not makes_sense or type(sealed.step) is not int or not isinstance(sealed.created_unix_s, float):
        raise Damaged("Its manifest is not what memsup writes.")
    return sealed


def verified(path: str, step: int) -> Checkpoint:
    """The checkpoint at `path`, of which every byte is what was written. Raises `Damaged`, and OSError where nothing can be
    said.
    """
    try:
        with _opened(path, manifest.NAME) as (fd, size):
            if size > manifest.MOST_BYTES:
                raise Damaged("Its manifest is larger than any real one.")
            found = _unsealed(os.pread(fd, size, 0))
        if found.step != step:
            raise Damaged(f"It is named after step {step}, but holds step {found.step}.")
        for file in found.files:
            with _opened(path, file.name) as (fd, size):
                if size != file.bytes:
                    raise Damaged(f"{file.name} has {size} bytes, but {file.bytes} were written.")
                if _hash(fd) != file.sha256:
                    raise Damaged(f"{file.name} is not what was written: its hash does not match.")
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        what = os.path.basename(str(error.filename)) if error.filename else "A file of it"
        raise Damaged(f"{what} {_DAMAGE[error.errno]}.") from None
    return Checkpoint(path, step, found.created_unix_s, sum(file.bytes for file in found.files))


@contextlib.contextmanager
def _opened(folder: str, name: str) -> Iterator[tuple[int, int]]:
    """A descriptor of a file of the folder, and its size. Raises `Damaged` for anything else than a file."""
    try:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except IsADirectoryError:
        raise Damaged(f"{name} is not a file.") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{name} is not a file.")
        yield fd, found.st_size
    finally:
        os.close(fd)


def _hash(fd: int) -> str:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read is to come from the disk, as far as that can be had
    found, place = hashlib.sha256(), 0
    while piece := os.pread(fd, PIECE_BYTES, place):
        found.update(piece)
        place += len(piece)
    return found.hexdigest()


def _flushed(folder: str, name: str) -> File:
    """The manifest's entry of a file that the program has written; it is durable when this returns."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path) or os.path.islink(path) or not manifest.is_path(name):
        raise CheckpointError(
            f"{name!r} cannot be in a checkpoint: save= is to write plain files into the folder that it is given, with names "
            "of letters, digits and '._-'."
        )
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return File(name, os.fstat(fd).st_size, _hash(fd))
    finally:
        os.close(fd)


def _written(draft: str, write: Callable[[str], None]) -> None:
    """Has `write` write. Raises what it raises, and OSError where the disk is full, whatever a library makes of that."""
    try:
        write(draft)
    except Exception as error:
        disk = os.statvfs(draft)
        if not isinstance(error, OSError) and disk.f_bavail * disk.f_frsize < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(folder: str) -> None:
    """Removes one of memsup's folders, its mark last, so that a removal that is killed is gone on with. What cannot be removed
    stays.
    """
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder), key=lambda name: name == MARK):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.rmdir(folder)


def _flush_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
