"""Training data that are read as they are needed: in their order, a block at a time, the rows of a block shuffled together.

All rows that can be learnt from, one pass behind the other without an end, are cut into blocks of one size. So which rows a
step sees follows from seed and step alone (`plan/batches.py`), and all that a run has to know to go on is where the block in
hand begins in the files, and what it held. Where the block still lies on the disk as it was, it is taken as it is, so files
may grow; else it is read anew, from its first line. So nothing depends on what a reader, a tokenizer or a buffer held when the
run died: what is ahead of the rows that were taken is not counted as read. A row of the data that makes several rows, as a long
text does, may be divided between two blocks.

Whether the files are still what was read is told by a digest of their lines up to where the run is. It is computed again only
where size or time of a file say that it may have changed; and the block that is read anew has to be the same in any case.

    <cache>/stream/block-<number>/   the rows of a block as numbers, mapped and durable; what is done with is removed
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from memsup.shared.commands import command
from memsup.shared.data.errors import InputError
from memsup.shared.data.layout import DataFile
from memsup.shared.data.lines import Begin, raw_lines
from memsup.shared.data.sources import Source
from memsup.shared.files import flush_folder
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.plan.position import Place, Position
from memsup.worker.tasks import Boundary, Examples, origins
from memsup.worker.tasks.origins import Placed

_BLOCK_TOKENS = 1 << 22
"""So many tokens the rows of a block have at most, unless a person says how many rows are shuffled together."""
_SAVED_BLOCKS = 3
"""The blocks of so many checkpoints are kept: the newest one may not be finished, or be damaged."""
_LOOKED_AT_TOGETHER = 256
_LINES_TOGETHER = 1 << 14

Ints = NDArray[np.int64]


class Reader(Protocol):
    """Makes rows as numbers (`Placed`) of the rows of the data."""

    def read(self, part: Source) -> Iterator[Any]:
        """The rows that can be learnt from, from where the first file of `part` begins. Raises InputError."""
        ...

    def write(self, folder: Path, rows: Iterator[Any]) -> None:
        """Writes rows into a folder. Raises OSError."""
        ...

    def open(self, folder: Path) -> Examples:
        """The rows that were written into a folder, mapped. Raises OSError."""
        ...


def open_stream(
    source: Source, reader: Reader, settings: Settings, paths: RunPaths, boundary: Boundary, *, longest: int
) -> Stream:
    """The rows that `reader` makes of the data, cut at `longest` tokens, from the first one on. Raises OSError."""
    batch = settings.training.effective_batch or 16
    wanted = settings.task.shuffle_buffer or _BLOCK_TOKENS // longest
    rows = batch * max(1, -(-wanted // batch))  # whole steps of them
    return Stream(source, reader, paths, boundary, rows=rows, longest=longest)


class _Lengths:
    """The lengths of a stream's rows, by their numbers."""

    def __init__(self, of_block: Callable[[int], Examples], rows: int) -> None:
        self._of_block, self._rows = of_block, rows

    def __getitem__(self, indices: Ints, /) -> NDArray[np.int32]:
        block = int(indices[0]) // self._rows
        return self._of_block(block).lengths[indices - block * self._rows]


class Stream:
    """Rows by number, as `tasks.Examples` has them, counted over all blocks from the run's first row on. Those that are asked
    for together are of one block, and no block comes again once a later one is begun with (`forget_before`).
    """

    def __init__(self, source: Source, reader: Reader, paths: RunPaths, boundary: Boundary, *, rows: int, longest: int) -> None:
        """`rows` is the size of a block, `longest` the length at which rows are cut. Raises OSError."""
        self.rows, self.longest = rows, longest
        self.lengths = _Lengths(self._block, rows)
        self._source, self._reader, self._run, self._boundary = source, reader, paths.name, boundary
        self._numbers = {file.path: number for number, file in enumerate(source.files)}
        self._folder = paths.cache / "stream"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blocks: dict[int, Examples] = {}
        self._places: dict[int, Place] = {}
        """Where each block begins that was read, and the one after them."""
        self._contents: dict[int, str] = {}
        self._written: set[int] = set()
        """The blocks that are on the disk."""
        self._saved: deque[int] = deque(maxlen=_SAVED_BLOCKS)
        """Those that the last checkpoints go on with."""
        self._durable: int | None = None
        """The block that was made durable. It is None where none was yet."""
        self._expected: tuple[Place, str | None] | None = None
        """Where the next block ended and what it held, when it was read before. None means that it was not."""
        self._begin(0, Place())

    # ------------------------------------------------------------------------------------------------------------------
    # Rows

    def weight(self, indices: Ints) -> float:
        rows, places = self._rows_of(indices)
        return rows.weight(places)

    def where(self, indices: Ints) -> str:
        rows, places = self._rows_of(indices)
        return rows.where(places)

    def batch(self, indices: Ints) -> dict[str, torch.Tensor]:
        rows, places = self._rows_of(indices)
        return rows.batch(places)

    def _rows_of(self, indices: Ints) -> tuple[Examples, Ints]:
        block = int(indices[0]) // self.rows
        return self._block(block), indices - block * self.rows

    def forget_before(self, block: int) -> None:
        """Lets go of the blocks before this one; on the disk those stay that the last checkpoints go on with."""
        for number in [number for number in self._blocks if number < block]:
            del self._blocks[number], self._places[number], self._contents[number]
        for number in [number for number in self._written if number < min([block, *self._saved])]:
            self._written.remove(number)
            shutil.rmtree(self._folder_of(number), ignore_errors=True)

    def _folder_of(self, block: int) -> Path:
        return self._folder / f"block-{block}"

    # ------------------------------------------------------------------------------------------------------------------
    # Where a run is

    def position(self, block: int) -> Position:
        """What a run that is to go on with this block has to know, which was made durable if it was read. Raises OSError."""
        begin, end = self._places[block], self._places.get(block + 1)
        if block in self._blocks and block != self._durable:
            _flush(self._folder_of(block))
            self._durable = block
        self._saved.append(block)
        return Position(
            rows=self.rows,
            head_rows=self._source.head_rows,
            block=block,
            begin=begin,
            end=end,
            content=self._contents.get(block),
            files=self._state_of_files(end or begin),
        )

    def go_on(self, position: Position) -> None:
        """Goes to where a run was. Raises InputError where the files have changed up to there."""
        reached = position.end or position.begin
        kept = self._kept(position)
        if reached.file >= len(self._source.files) or self._state_of_files(reached) != position.files:
            if kept is None:
                self._check(position.begin)
            self._check(reached)
        for folder in self._folder.iterdir():
            if folder != self._folder_of(position.block):
                shutil.rmtree(folder, ignore_errors=True)
        if kept is not None and position.end is not None and position.content is not None:
            self._written.add(position.block)
            self._saved.append(position.block)
            self._places = {position.block: position.begin}
            self._begin(position.block + 1, position.end)
            self._blocks[position.block], self._contents[position.block] = kept, position.content
            return
        self._places = {}
        self._begin(position.block, position.begin)
        self._expected = (position.end, position.content) if position.end is not None else None

    def _kept(self, position: Position) -> Examples | None:
        """The block that a run is in, as it was written by an earlier life. None means that it is not there as it was."""
        folder = self._folder_of(position.block)
        try:
            if position.content is None or _content_of(folder) != position.content:
                return None
            return self._reader.open(folder)
        except OSError:
            return None

    def _begin(self, block: int, place: Place) -> None:
        self._next, self._places[block] = block, place
        self._inodes = _inodes(self._source)
        self._followed = _Followed(self._source, place)
        self._all_rows = self._endless(place)
        self._last = place.passes, place.file, place.line, place.taken

    def _state_of_files(self, place: Place) -> str:
        count = len(self._source.files) if place.passes else place.file + 1
        return _digest(msgspec.json.encode([facts[1:] for facts in map(_facts, self._source.files[:count])])).hex()

    def _check(self, place: Place) -> None:
        """Raises InputError where the lines of the pass up to `place` are not what they were."""
        followed = _Followed(self._source, Place(passes=place.passes))
        is_there = place.file < len(self._source.files)
        found = followed.to(place.passes, place.file, place.line, self._boundary) if is_there else None
        if found is None or (found.digest, found.byte) != (place.digest, place.byte) or place.row not in ("", found.row):
            raise self._changed(place)

    def _changed(self, place: Place) -> InputError:
        others = ", or a file that is read before it," if place.file else ""
        return self._lost(f"{self._file_at(place)}{others} has changed up to line {place.line:,}, to where it was trained on")

    def _lost(self, what: str) -> InputError:
        return InputError(
            f"{what}, so the run cannot go on with the rows that come next: put it back as it was, or begin anew with: "
            f"{command('start', self._run)} --fresh"
        )

    def _file_at(self, place: Place) -> Path:
        return self._source.files[min(place.file, len(self._source.files) - 1)].path

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def _block(self, number: int) -> Examples:
        """The rows of a block, which is read now if it was not yet. Raises InputError, OSError, and what `boundary` raises."""
        while number >= self._next:
            if self._is_replaced():
                self._check(self._places[self._next])
                self._begin(self._next, self._places[self._next])
            folder = self._folder_of(self._next)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            self._written.add(self._next)
            self._reader.write(folder, self._taken())
            if self._is_replaced():
                continue  # some rows may be of the one file, and some of the other
            passes, file, line, taken = self._last
            end = self._followed.to(passes, file, line, self._boundary)
            if end is None:
                raise self._changed(self._places[self._next])
            end = msgspec.structs.replace(end, taken=taken)
            content = _content_of(folder)
            if self._expected not in (None, (end, content)):
                begin = self._places[self._next]
                raise self._lost(
                    f"What was trained on from line {begin.line:,} of {self._file_at(begin)} on is not what is read there now"
                )
            self._expected = None
            self._blocks[self._next], self._contents[self._next] = self._reader.open(folder), content
            self._next += 1
            self._places[self._next] = end
        return self._blocks[number]

    def _is_replaced(self) -> bool:
        """Whether there is another file in the place of one that is being read, as programs leave that write a file anew."""
        return self._inodes != _inodes(self._source)

    def _taken(self) -> Iterator[Placed]:
        """The rows of the next block."""
        for count in range(self.rows):
            if count % _LOOKED_AT_TOGETHER == 0:
                self._boundary()
            passes, row = next(self._all_rows)
            at = passes, self._numbers[row.file], row.line
            self._last = *at, 1 + (self._last[3] if self._last[:3] == at else 0)
            yield row

    def _endless(self, place: Place) -> Iterator[tuple[int, Placed]]:
        """All rows from `place` on with the number of their pass, without an end. Raises InputError where a pass has none."""
        passes, left = place.passes, place.taken
        files = self._source.files[place.file :]
        files = (replace(files[0], begin=Begin(place.line, place.byte)), *files[1:])
        found = place != Place()  # what was read before had some
        while True:
            for row in self._reader.read(replace(self._source, files=files, head_rows=None)):
                found = True
                if left > 0:
                    left -= 1
                else:
                    yield passes, row
            if not found:
                raise InputError(f"{self._source} has no row that can be learnt from.")
            passes, left, files, found = passes + 1, 0, self._source.files, False


class _Followed:
    """Goes through the lines of the files behind their readers, who may be far ahead, and knows bytes and digest of each."""

    def __init__(self, source: Source, place: Place) -> None:
        self._source, self._place = source, place
        self._chain = bytes.fromhex(place.digest)
        self._lines = self._opened()
        self._ahead: bytes | None = None
        """The line that comes next, where it was looked at. None means that it was not, or that there is none."""

    def to(self, passes: int, file: int, line: int, boundary: Boundary) -> Place | None:
        """The beginning of that line. None means that the files have no such line any more."""
        while (self._place.passes, self._place.file) != (passes, file):
            self._advance(None, boundary)
            last = self._place.file + 1 == len(self._source.files)
            if last and self._place.passes == passes:
                return None
            if last:
                self._place = Place(passes=self._place.passes + 1, last_pass=self._chain.hex())
                self._chain = b""
            else:
                self._place = msgspec.structs.replace(self._place, file=self._place.file + 1, line=1, byte=0)
            self._lines, self._ahead = self._opened(), None
        if not self._advance(line, boundary):
            return None
        self._ahead = self._ahead or next(self._lines, None)
        row = _digest(self._ahead or b"").hex()
        self._place = msgspec.structs.replace(self._place, digest=self._chain.hex(), row=row, taken=0)
        return self._place

    def _opened(self) -> Iterator[bytes]:
        return raw_lines(self._source.files[self._place.file].path, Begin(self._place.line, self._place.byte))

    def _advance(self, line: int | None, boundary: Boundary) -> bool:
        """Goes to a line, or to the end of the file. False where the file has ended before."""
        number, byte, chain = self._place.line, self._place.byte, self._chain
        while line is None or number < line:
            raw = self._ahead or next(self._lines, None)
            self._ahead = None
            if raw is None:
                break
            number, byte, chain = number + 1, byte + len(raw), _digest(chain + raw)
            if number % _LINES_TOGETHER == 0:
                boundary()
        self._place = msgspec.structs.replace(self._place, line=number, byte=byte)
        self._chain = chain
        return line is None or number >= line


def _facts(file: DataFile) -> tuple[int, int, int]:
    """Inode, size and time of a file; zeros where it is gone, which whoever reads it is told."""
    try:
        facts = os.stat(file.path)
    except OSError:
        return 0, 0, 0
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _inodes(source: Source) -> list[int]:
    return [inode for inode, *_ in map(_facts, source.files)]


def _content_of(folder: Path) -> str:
    """What changes when the numbers in a block's folder do, wherever the data lie."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*.bin")):
        if file.stem not in origins.FILES:
            with file.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "blake2b").digest())
    return found.hexdigest()


def _flush(folder: Path) -> None:
    """Makes a folder and the files in it durable. Raises OSError."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    flush_folder(folder)
    flush_folder(folder.parent)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
