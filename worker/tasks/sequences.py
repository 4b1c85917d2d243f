"""Rows that are learnt token by token: some tokens of a row have a target, and a row weighs as much as it has of them.

What a language model learns (the tokens of an answer) and what a tagger learns (a class a word) is kept in one way: beside each
token stands a mark, the number of what is to be said there, or `NOTHING`. The loss of a step is the sum over all targets of its
effective batch, divided by their number: so a row of two targets counts twice as much as one of a single target, whatever
micro-batch each is in. A row without a target teaches nothing; it is left out, and counted.

A task brings a `Reader`, which makes sequences of the data's rows, and says by `labels` what the loss takes for a mark. Memory
stays bounded by a chunk and some 50 bytes a row, whatever the data's size.

    <cache>/corpus-<key>/
        tokens.bin       all rows' tokens, one behind the other; uint16, or uint32 for a large vocabulary
        marks.bin        int16: the mark of each of them
        offsets.bin      int64: row r is tokens[offsets[r]:offsets[r+1]]
        targets.bin      int32: how many targets each row has
        train.bin        int64: rows to train on
        evaluation.bin   int64: rows held out, or those of the evaluation data
        origins.bin, names.bin   file and line of each row (`origins.py`)
        corpus.json      what the marks stand for, counts, and size and hash of each file above (`cache.py`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from memsup.shared.data import sources
from memsup.shared.data.errors import InputError
from memsup.worker.compute.token_loss import with_targets
from memsup.worker.plan.padding import Padding
from memsup.worker.tasks import origins
from memsup.worker.tasks.cache import Boundary, Find, Located, Note, fingerprint, locate, made_once
from memsup.worker.tasks.corpus import hold_out, text_hash, token_type

NOTHING = -1
"""The mark of a token at which there is nothing to learn."""
IGNORED = -100
"""What torch's losses take for it."""
_FORMAT = 2
_CHUNK_TOKENS, _CHUNK_ROWS = 1 << 18, 1000

Ints = NDArray[np.int64]


class Sequence(NamedTuple):
    """A row as numbers."""

    tokens: list[int]
    marks: list[int]
    """One a token: the number of what is to be said there, or `NOTHING`."""
    key: str
    """Rows with the same key are all trained on, or all held out."""
    file: Path
    line: int
    is_cut: bool = False
    """Whether it was longer than it may be."""


class LeftOut(NamedTuple):
    """A row that is not used, and the reason, as the end of a sentence: `they have no text`."""

    why: str


NO_TARGET = LeftOut("they have nothing to learn in the tokens that are kept")


def judged(sequence: Sequence | LeftOut) -> Sequence | LeftOut:
    """The row, unless there is nothing to learn in it."""
    is_empty = isinstance(sequence, Sequence) and all(mark == NOTHING for mark in sequence.marks)
    return NO_TARGET if is_empty else sequence


class Reader(Protocol):
    """Makes sequences of the rows of the data. There is a new one each time that the data have to be read."""

    vocabulary_size: int

    def read(self, part: sources.Source, *, trains: bool) -> Iterator[Sequence | LeftOut]:
        """All rows of `part`, the training data first. Raises InputError."""
        ...

    def names(self) -> list[str]:
        """What the marks stand for, by number; asked when all rows are read. Empty where a mark says no more than that there
        is a target.
        """
        ...


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on which the rows depend; another source is another corpus."""

    task: str
    """Names the kind of task and all of its settings that change what is learnt of a row."""
    train: str | list[str]
    evaluation: str | list[str] | None
    eval_share: float
    seed: int
    encoder: str
    """Names the encoder and all that changes what it does, such as the length at which it cuts."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    left_out: dict[str, int]
    """How many rows were left out, by why."""
    cut: int
    """Rows that were longer than they may be."""
    repeated: int
    """Rows of the training data whose key stands in an earlier row already."""
    shared: int
    """Rows to evaluate whose key is trained on as well; none where they were held out."""


class _Note(Note, kw_only=True):
    source: Source
    names: list[str]
    counts: Counts
    is_held_out: bool
    vocabulary_size: int


_notes = msgspec.json.Decoder(_Note)


class SequenceRows:
    """Some rows of a corpus, numbered from 0, as the model's tensors (`tasks.Examples`). Backed by mapped files."""

    def __init__(self, corpus: _Files, chosen: Ints, padding_token: int, *, labels_are_tokens: bool) -> None:
        """With `labels_are_tokens` the loss takes the token itself for a target, else its mark."""
        self._files, self._chosen, self._padding_token = corpus, chosen, padding_token
        self._labels_are_tokens = labels_are_tokens
        self.padding = Padding.RIGHT
        self.places: Ints | None = None
        """The output of the model for each mark. None means that marks are such places themselves."""
        self.lengths: NDArray[np.int32] = (corpus.offsets[chosen + 1] - corpus.offsets[chosen]).astype(np.int32)
        self.targets: NDArray[np.int32] = corpus.targets[chosen]
        """How many targets each row has."""

    def __len__(self) -> int:
        return len(self._chosen)

    def write_others(self, folder: Path, rows: Iterator[Sequence]) -> None:
        """Puts other rows in the same form into `folder`. Raises OSError."""
        writer = _Writer(folder, self._files.vocabulary_size)
        for row in rows:
            writer.add(row)
        writer.finish().write(folder)

    def others(self, folder: Path) -> SequenceRows:
        """What `write_others` has put there. Raises OSError."""
        files = _Files(folder, self._files.vocabulary_size)
        every = np.arange(len(files.offsets) - 1)
        made = SequenceRows(files, every, self._padding_token, labels_are_tokens=self._labels_are_tokens)
        made.padding, made.places = self.padding, self.places
        return made

    def weight(self, indices: Ints) -> float:
        """The targets of these rows."""
        return float(self.targets[indices].sum(dtype=np.int64))

    def where(self, indices: Ints) -> str:
        return self._files.origins.where(self._chosen[indices])

    def row(self, index: int) -> tuple[Ints, Ints]:
        """The tokens of a row, and their marks."""
        places = self._places(np.array([index]))
        return self._files.tokens[places].astype(np.int64), self._files.marks[places].astype(np.int64)

    def batch(self, indices: Ints) -> dict[str, torch.Tensor]:
        found = self.padded(indices, self.padding)
        return with_targets(found, IGNORED) if self._labels_are_tokens else found

    def padded(self, indices: Ints, padding: Padding) -> dict[str, torch.Tensor]:
        """As `batch`, padded on that side. The labels have a place for each token, `IGNORED` where there is no target."""
        lengths = self.lengths[indices][:, None]
        longest = lengths.max()
        places = np.arange(longest)[None, :]
        mask = places >= longest - lengths if padding is Padding.LEFT else places < lengths
        of_rows = self._places(indices)
        own, marks = self._files.tokens[of_rows].astype(np.int64), self._files.marks[of_rows].astype(np.int64)
        tokens, labels = np.full(mask.shape, self._padding_token, np.int64), np.full(mask.shape, IGNORED, np.int64)
        tokens[mask] = own
        said = own if self._labels_are_tokens else marks if self.places is None else self.places[marks]
        labels[mask] = np.where(marks == NOTHING, IGNORED, said)
        return {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }

    def _places(self, indices: Ints) -> Ints:
        starts, lengths = self._files.offsets[self._chosen[indices]], self.lengths[indices].astype(np.int64)
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class _Files:
    """The mapped files of a corpus."""

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.tokens = _mapped(folder, "tokens", token_type(vocabulary_size))
        self.marks, self.targets = _mapped(folder, "marks", np.int16), _mapped(folder, "targets", np.int32)
        self.offsets = _mapped(folder, "offsets", np.int64)
        self.origins = origins.Origins(folder)


def _mapped(folder: Path, name: str, kind: Any) -> NDArray[Any]:
    return np.asarray(np.memmap(folder / f"{name}.bin", dtype=kind, mode="r"))


class SequenceCorpus:
    """What `open_sequences` found or made."""

    def __init__(self, folder: Path, note: _Note, padding_token: int, *, labels_are_tokens: bool) -> None:
        files = _Files(folder, note.vocabulary_size)
        rows = partial(SequenceRows, files, padding_token=padding_token, labels_are_tokens=labels_are_tokens)
        self.train, self.evaluation = (rows(_mapped(folder, name, np.int64)) for name in ("train", "evaluation"))
        self._marks = files.marks
        self.folder = folder
        self.names, self.counts, self.is_held_out = note.names, note.counts, note.is_held_out
        self.fingerprint = fingerprint(note.names, note)

    def marks_counted(self) -> Ints:
        """How many tokens have each mark, by its number."""
        counts = np.zeros(len(self.names), np.int64)
        for start in range(0, len(self._marks), _CHUNK_TOKENS):
            part = self._marks[start : start + _CHUNK_TOKENS]
            counts += np.bincount(part[part != NOTHING], minlength=len(counts))
        return counts


class StreamedSequences:
    """The rows that `reader` makes of a stream, in the form of others (`stream.Reader`)."""

    def __init__(self, reader: Reader, alike: SequenceRows) -> None:
        self._reader, self._alike = reader, alike

    def read(self, part: sources.Source) -> Iterator[Sequence]:
        for sequence in map(judged, self._reader.read(part, trains=True)):
            if isinstance(sequence, Sequence):
                yield sequence

    def write(self, folder: Path, rows: Iterator[Sequence]) -> None:
        self._alike.write_others(folder, rows)

    def open(self, folder: Path) -> SequenceRows:
        return self._alike.others(folder)


def open_sequences(
    cache: Path,
    source: Source,
    make_reader: Callable[[Path, list[sources.Source]], Reader],
    boundary: Boundary,
    *,
    padding_token: int,
    labels_are_tokens: bool,
    find: Find = sources.locate,
) -> SequenceCorpus:
    """The corpus of `source` from the cache, or made now by a reader of its parts, which may put a folder of its own beside
    the numbers. `find` finds the files.

    Raises InputError for data that cannot be used, OSError for a disk that is full, and whatever `boundary` and the reader
    raise.
    """
    located = locate(source.train, source.evaluation, find)
    folder, note = made_once(
        cache,
        source,
        located,
        lambda draft: _make(draft, source, located, make_reader(draft, located.all()), boundary),
        _notes.decode,
        number=_FORMAT,
        boundary=boundary,
    )
    return SequenceCorpus(folder, note, padding_token, labels_are_tokens=labels_are_tokens)


def _make(draft: Path, source: Source, located: Located, reader: Reader, boundary: Boundary) -> _Note:
    """Fills `draft`, and says what is in it."""
    written = _Writer(draft, reader.vocabulary_size)
    rows_of_part: list[int] = []
    for part in located.all():
        for sequence in reader.read(part, trains=part is located.train):
            if written.add(sequence):
                boundary()
        rows_of_part.append(written.rows - sum(rows_of_part))
    found = written.finish()
    train_rows = rows_of_part[0]
    trained, evaluated = np.arange(train_rows), np.arange(train_rows, written.rows)
    if located.evaluation is None and train_rows:
        held_out = hold_out(np.zeros(train_rows, np.int64), found.hashes, source.eval_share, source.seed)
        trained, evaluated = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    left_out = "".join(f"; {rows:,} are left out, since {why}" for why, rows in written.left_out.items())
    for part, rows in zip((located.train, located.evaluation or located.train), (trained, evaluated), strict=True):
        if not len(rows):
            if part is located.evaluation or not train_rows:
                raise InputError(f"{part} has no row that can be learnt from{left_out}.")
            raise InputError(
                f"{part} has too few different rows to hold some out for evaluation{left_out}: add rows, or set task.eval."
            )
    found.write(draft)
    for name, values in {"train": trained, "evaluation": evaluated}.items():
        (draft / f"{name}.bin").write_bytes(values.astype(np.int64, copy=False).data)
    return _Note(
        source=source,
        names=reader.names(),
        counts=Counts(
            left_out=dict(written.left_out),
            cut=written.cut,
            repeated=train_rows - len(np.unique(found.hashes[:train_rows])),
            shared=int(np.isin(found.hashes[evaluated], found.hashes[trained]).sum()),
        ),
        is_held_out=located.evaluation is None,
        vocabulary_size=reader.vocabulary_size,
    )


class _Found(NamedTuple):
    offsets: Ints
    targets: NDArray[np.int32]
    hashes: NDArray[np.uint64]

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        (folder / "offsets.bin").write_bytes(self.offsets.data)
        (folder / "targets.bin").write_bytes(self.targets.data)


class _Writer:
    """Writes rows down as they come, a chunk at a time."""

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        self.rows = self.cut = 0
        self.left_out: Counter[str] = Counter()
        self._type = token_type(vocabulary_size)
        self._tokens, self._marks = ((folder / f"{name}.bin").open("wb") for name in ("tokens", "marks"))
        self._origins = origins.OriginsWriter(folder)
        self._chunk: list[Sequence] = []
        self._chunk_tokens = 0
        self._lengths, self._targets, self._hashes = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)]

    def add(self, sequence: Sequence | LeftOut) -> bool:
        """Takes in a row. Returns True where a chunk was written. Raises OSError."""
        sequence = judged(sequence)
        if isinstance(sequence, LeftOut):
            self.left_out[sequence.why] += 1
            return self.left_out.total() % _CHUNK_ROWS == 0
        self.rows += 1
        self.cut += sequence.is_cut
        self._chunk.append(sequence)
        self._chunk_tokens += len(sequence.tokens)
        if self._chunk_tokens < _CHUNK_TOKENS and len(self._chunk) < _CHUNK_ROWS:
            return False
        self._write()
        return True

    def finish(self) -> _Found:
        """Raises OSError."""
        self._write()
        self._tokens.close()
        self._marks.close()
        self._origins.finish()
        return _Found(np.cumsum(np.concatenate(self._lengths)), np.concatenate(self._targets), np.concatenate(self._hashes))

    def _write(self) -> None:
        chunk, self._chunk, self._chunk_tokens = self._chunk, [], 0
        if not chunk:
            return
        lengths = np.fromiter((len(row.tokens) for row in chunk), np.int64, len(chunk))
        marks = np.concatenate([np.asarray(row.marks, np.int16) for row in chunk])
        self._tokens.write(np.concatenate([np.asarray(row.tokens, self._type) for row in chunk]).data)
        self._marks.write(marks.data)
        self._lengths.append(lengths)
        self._targets.append(np.add.reduceat(marks != NOTHING, np.cumsum(lengths) - lengths, dtype=np.int32))
        self._hashes.append(np.array([text_hash(row.key) for row in chunk], np.uint64))
        self._origins.add(chunk)
