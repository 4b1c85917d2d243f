"""What the first machine gives to one that is about to join: the settings by which it is trained, and the files of its data and
model, with their hashes. Data and models inside of installed packages and at hubs are named, and not sent.

A person's secrets, limits and folders are none of it. What is read is exactly what was described: a file by its number.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from memsup.shared.data.errors import InputError
from memsup.shared.data.layout import Kind, class_file_beside, documents
from memsup.shared.data.sources import Source, paths_of
from memsup.shared.files import open_regular
from memsup.shared.nodes import MOST_FILES, PIECE_BYTES, Described, NotYet, Offer, OfferedFile, Piece, Unreadable
from memsup.shared.paths import is_text
from memsup.shared.printable import printable
from memsup.shared.record import RunRecord
from memsup.worker.ranks.versions import versions
from memsup.worker.tasks.cache import locate

_HASHED_BYTES = 4 << 20


class Offered:
    """The files of one run. They are hashed when the first machine asks, by a thread of its own."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._described: Offer = NotYet()
        self._thread: threading.Thread | None = None

    def described(self) -> Offer:
        """What is offered; until that is known, that it is not yet."""
        if self._thread is None or (isinstance(self._described, Unreadable) and not self._thread.is_alive()):
            self._described = NotYet()
            self._thread = threading.Thread(target=self._describe, name="offered", daemon=True)
            self._thread.start()
        return self._described

    def read(self, number: int, offset: int) -> Offer:
        """A piece of a file."""
        if not isinstance(self._described, Described):
            return self.described()
        if number >= len(self._described.files):
            return Unreadable(why="there is no such file")
        path = self._described.files[number].path
        try:
            fd, _ = open_regular(path)
            with os.fdopen(fd, "rb") as file:
                return Piece(file=number, offset=offset, content=os.pread(file.fileno(), PIECE_BYTES, offset))
        except OSError as error:
            return Unreadable(why=f"{path} cannot be read: {error.strerror}"[:4000])

    def _describe(self) -> None:
        settings = self._record.settings
        try:
            files = [_described(path) for path in sorted(set(files_of(self._record)))]
        except (InputError, OSError) as error:
            self._described = Unreadable(why=printable(str(error))[:4000])
            return
        if len(files) > MOST_FILES:
            self._described = Unreadable(why=f"the data have {len(files):,} files, and no more than {MOST_FILES:,} are sent")
            return
        task, training, lora = (msgspec.to_builtins(part) for part in (settings.task, settings.training, settings.lora))
        self._described = Described(
            run=self._record.run,
            machine=socket.gethostname()[:256],
            task=task,
            training=training,
            lora=lora,
            versions=versions(),
            files=files,
        )


def files_of(record: RunRecord) -> Iterator[Path]:
    """The files of this machine that the settings' data and model consist of. Raises InputError."""
    task = record.settings.task
    if task.train is not None:
        located = locate(task.train, task.eval)
        inside = [
            path for value in _values(task.train) + _values(task.eval) if _is_of_package(value) for path in paths_of(value)
        ]
        for path in (path for source in located.all() for path in _of_source(source)):
            if not any(path.is_relative_to(package) for package in inside):
                yield path
    if task.model is not None and os.path.isdir(task.model):
        for folder, folders, names in os.walk(task.model):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (path for name in names if (path := Path(folder) / name).is_file())


def _of_source(source: Source) -> Iterator[Path]:
    for file in source.files:
        if file.kind is Kind.DOCUMENTS:
            yield from documents(file.path)
        else:
            yield file.path
            if (beside := class_file_beside(file.path)) is not None:
                yield beside


def _values(setting: str | list[str] | None) -> list[str]:
    return [] if setting is None else [setting] if isinstance(setting, str) else setting


def _is_of_package(value: str) -> bool:
    return value.startswith("package:")


def _described(path: Path) -> OfferedFile:
    """Raises OSError, and InputError for a name that nobody could be told."""
    if not is_text(str(path)):
        raise InputError(f"{printable(str(path))} has a name that is not UTF-8 text: rename it, or move it out of the folder")
    found, size_bytes = hashlib.blake2b(digest_size=32), 0
    fd, _ = open_regular(path)
    with os.fdopen(fd, "rb") as content:
        while chunk := content.read(_HASHED_BYTES):
            found.update(chunk)
            size_bytes += len(chunk)
    return OfferedFile(path=os.path.abspath(path), size_bytes=size_bytes, blake2b=found.hexdigest())
