"""Numbers made of data once: a folder below the run's cache that is believed when it is whole, and made anew when it is not.

Covers what it depends on (the settings that count, and the files of the data as they are), its note with size and hash of each
file, and how it comes to the disk: beside its place, flushed, renamed. What is in it is for whoever makes it (`corpus.py`,
`sequences.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from memsup.shared.data import sources
from memsup.shared.data.errors import InputError
from memsup.shared.data.layout import Kind, documents
from memsup.shared.data.rows import read_rows
from memsup.shared.data.streams import head_of
from memsup.shared.files import UnreadableError, flush_folder, open_regular, read_document, replace_file
from memsup.worker.tasks import origins

_NOTE = "corpus.json"
_HASHED_BYTES = 8 << 20

Boundary = Callable[[], None]


class FileNote(msgspec.Struct, frozen=True):
    """What a file was when it was written."""

    size_bytes: int
    blake2b: str


class Note(msgspec.Struct, kw_only=True):
    """What stands beside the numbers. A kind of corpus adds its `source` and what else it has to say."""

    number: int = 0
    """The number of its format; with the files it is filled in when it is written."""
    files: dict[str, FileNote] = {}


N = TypeVar("N", bound=Note)


class Located(NamedTuple):
    """The data of a run."""

    train: sources.Source
    evaluation: sources.Source | None
    """None means that a share of `train` is held out."""

    def all(self) -> list[sources.Source]:
        return [source for source in self if source is not None]


class Find(Protocol):
    """Finds the files that a setting names (`sources.locate`)."""

    def __call__(self, value: str | list[str], *, evaluates: bool = False) -> sources.Source: ...


def locate(train: str | list[str], evaluation: str | list[str] | None, find: Find = sources.locate) -> Located:
    """The files that the settings name. No `evaluation` means what lies beside `train` for that. Raises InputError."""
    found = find(train)
    return Located(found, found.evaluation if evaluation is None else find(evaluation, evaluates=True))


def heads(find: Find, rows: int | None) -> Find:
    """As `find`, but of training data only the first rows are meant: the others are read as a stream. So many `rows` are meant
    as the run was judged by before, since files may grow; None means that it was not yet. Raises InputError for what is not
    written in lines.
    """
    judged = rows

    def found(value: str | list[str], *, evaluates: bool = False) -> sources.Source:
        nonlocal judged
        source = find(value, evaluates=evaluates)
        if evaluates:
            return source
        head = head_of(source)
        if judged is None:
            judged = sum(1 for _ in read_rows(head))
        return replace(head, head_rows=judged)

    return found


def made_once(
    cache: Path,
    source: msgspec.Struct,
    located: Located,
    make: Callable[[Path], N],
    decode: Callable[[bytes], N],
    *,
    number: int,
    boundary: Boundary,
) -> tuple[Path, N]:
    """The folder of `source`, whose note has it as `source`, from the cache, or made now by `make`, which fills the folder that
    it is given. Others in the cache are removed. `number` is that of the format.

    Raises what `make` raises, OSError for a disk that is full, and whatever `boundary` raises.
    """
    seen: list[object] = [_identity(part) for part in located.all()]
    if located.train.is_head:
        seen.append(["the first rows of the training data", located.train.head_rows])
    key = digest(msgspec.json.encode([number, source, seen]))[:16]
    folder = cache / f"corpus-{key}"
    cache.mkdir(exist_ok=True, mode=0o700)
    note = _whole(folder, source, number, decode, boundary)
    for other in cache.glob("corpus-*"):
        if note is None or other != folder:
            shutil.rmtree(other)
    if note is None:
        _refuse_without_room(cache, located)
        draft = cache / f"corpus-{key}.draft"
        draft.mkdir(mode=0o700)
        try:
            note = make(draft)
            _finish(draft, note, number, boundary)
            draft.rename(folder)
            flush_folder(cache)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return folder, note


def fingerprint(names: Sequence[str], note: Note) -> str:
    """What changes when the numbers do, or the names of what they stand for, wherever the files lie."""
    learnt = [(name, seen.blake2b) for name, seen in note.files.items() if name.removesuffix(".bin") not in origins.FILES]
    return digest(msgspec.json.encode([names, sorted(learnt)]))


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _refuse_without_room(cache: Path, located: Located) -> None:
    """Raises InputError where the disk surely has no room for what is made of the training data."""
    if located.train.is_head:
        return
    size_bytes = sum(file.path.stat().st_size for file in located.train.files if file.kind is not Kind.DOCUMENTS)
    needed, free = size_bytes >> 1, shutil.disk_usage(cache).free
    if needed > free:
        raise InputError(
            f"What is made of {located.train} takes {needed >> 20:,} MiB and more in {cache}, where {free >> 20:,} MiB are "
            "free: make room, or read the data as a stream, which keeps a few thousand rows only: --set task.stream=true "
            "--set training.max_steps=10000 --set task.eval=FILE"
        )


def _identity(source: sources.Source) -> list[object]:
    """What changes when one of the files does: name, size, time, and its first and last MiB; of a folder of texts the names,
    sizes and times.
    """
    seen: list[object] = []
    for each in source.files:
        file = each.path
        seen.append([each.kind.name, each.label, each.label_names])
        try:
            if each.kind is Kind.DOCUMENTS:
                seen.append([(str(text), (facts := text.stat()).st_size, facts.st_mtime_ns) for text in documents(file)])
                continue
            fd, _ = open_regular(file)
            with os.fdopen(fd, "rb") as content:
                facts = os.fstat(fd)
                head = content.read(1 << 20)
                content.seek(max(0, facts.st_size - (1 << 20)))
                seen.append([str(file), facts.st_size, facts.st_mtime_ns, digest(head + content.read(1 << 20))])
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    return seen


def _whole(folder: Path, source: Any, number: int, decode: Callable[[bytes], N], boundary: Boundary) -> N | None:
    """The note of a folder whose files are all as they were written. None means that there is no such folder."""
    try:
        note: Any = read_document(folder / _NOTE, decode)
        fits = note.number == number and note.source == source
        if fits and all(_file_note(folder / name, boundary) == seen for name, seen in note.files.items()):
            return note
    except (OSError, UnreadableError):
        pass
    return None


def _finish(draft: Path, note: Note, number: int, boundary: Boundary) -> None:
    """Brings all files to the disk, the note last."""
    files = sorted(draft.glob("*.bin"))
    note.files = {file.name: _file_note(file, boundary) for file in files}
    note.number = number
    folders = [folder for folder in draft.iterdir() if folder.is_dir()]
    for file in (*files, *(file for folder in folders for file in folder.iterdir())):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    for folder in folders:
        flush_folder(folder)
    replace_file(draft / _NOTE, msgspec.json.encode(note))


def _file_note(file: Path, boundary: Boundary) -> FileNote:
    found = hashlib.blake2b(digest_size=16)
    size = 0
    fd, _ = open_regular(file)
    with os.fdopen(fd, "rb") as content:
        while chunk := content.read(_HASHED_BYTES):
            found.update(chunk)
            size += len(chunk)
            boundary()
    return FileNote(size, found.hexdigest())
