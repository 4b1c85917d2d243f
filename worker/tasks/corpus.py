"""Text becomes numbers once: a corpus of tokens on disk, memory-mapped, from which any rows are taken without a loop.

Covers reading the data (`shared/data` knows the formats) into a memory-mapped table of the `datasets` library, the
held-out split, and the cache of the result below the run's folder. Knows no tokenizer, no padding and no tensor: the task
brings an encoder, and pads. Memory stays bounded by a chunk and some 100 bytes a row, whatever the data's size; between
chunks `boundary` is called, so that orders are answered meanwhile.

    <cache>/corpus-<key>/
        tokens.bin       all rows' tokens, one behind the other; uint16, or uint32 for a large vocabulary
        offsets.bin      int64: row r is tokens[offsets[r]:offsets[r+1]]
        labels.bin       int64: the place of the row's label in `labels`
        train.bin        int64: rows to train on
        evaluation.bin   int64: rows held out, or those of the evaluation data
        tokenizer/       what the encoder saved
        corpus.json      labels, counts, and size and hash of each file above

It is written beside its place and renamed when it is whole and on disk; what is not whole, or has changed since, is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from memsup.shared.data import sources
from memsup.shared.data.check import check_labels
from memsup.shared.data.columns import Columns, find_columns
from memsup.shared.data.errors import InputError
from memsup.shared.data.examples import is_blank, read_examples, sorted_labels
from memsup.shared.files import UnreadableError, flush_folder, open_regular, read_document, replace_file
from memsup.worker.imports import without_search_for_garbage

_FORMAT = 1
_CHUNK_ROWS = 1000
_CHUNK_CHARS = 1 << 18
_HASHED_BYTES = 8 << 20

T = TypeVar("T")
Boundary = Callable[[], None]
Ints = NDArray[np.int64]


class Encoder(Protocol):
    """Turns texts into token numbers."""

    vocabulary_size: int

    def encode(self, texts: list[str]) -> Sequence[Sequence[int]]:
        """The tokens of each text, cut to the wanted length, with special tokens; never empty."""
        ...


MakeEncoder = Callable[[Iterator[list[str]], Path], Encoder]
"""Called once, where the corpus has to be made: may go through the training texts, and may save files in the folder."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on which the corpus depends; another source is another corpus."""

    train: str | list[str]
    evaluation: str | list[str] | None
    """The data to evaluate on. None means that it is what lies beside `train` for that, or else that `eval_share` of `train` is
    held out, chosen by `seed`."""
    text: str | None
    label: str | None
    eval_share: float
    seed: int
    encoder: str
    """Names the encoder and all that changes what it does, such as the length at which it cuts."""


class _Located(NamedTuple):
    train: sources.Source
    evaluation: sources.Source | None

    def all(self) -> list[sources.Source]:
        return [source for source in self if source is not None]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    blank: int
    """Rows without a text, which were left out."""
    repeated: int
    """Rows of the training data whose text stands in an earlier row already."""
    shared: int
    """Rows to evaluate whose text is trained on as well; none where they were held out."""


class _FileNote(msgspec.Struct, frozen=True):
    size_bytes: int
    blake2b: str


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What corpus.json holds."""

    format: int
    source: Source
    labels: list[str]
    columns: Columns
    counts: Counts
    vocabulary_size: int
    files: dict[str, _FileNote]


_notes = msgspec.json.Decoder(_Note)


class Rows:
    """Some rows of a corpus, numbered from 0. Backed by mapped files."""

    def __init__(self, tokens: NDArray[Any], offsets: Ints, labels: Ints, chosen: Ints) -> None:
        self._tokens, self._offsets, self._labels, self._chosen = tokens, offsets, labels, chosen
        self.lengths: NDArray[np.int32] = (offsets[chosen + 1] - offsets[chosen]).astype(np.int32)
        """The number of tokens of each row."""

    def __len__(self) -> int:
        return len(self._chosen)

    def labels(self, indices: Ints) -> Ints:
        return self._labels[self._chosen[indices]]

    def tokens(self, indices: Ints) -> Ints:
        """The tokens of these rows, one row behind the other: row i of them has `lengths[indices[i]]`."""
        starts, lengths = self._offsets[self._chosen[indices]], self.lengths[indices].astype(np.int64)
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        return self._tokens[places].astype(np.int64)


class Corpus:
    """What `open_corpus` found or made."""

    def __init__(self, folder: Path, note: _Note) -> None:
        token_type = _token_type(note.vocabulary_size)
        tokens, offsets, labels, train, evaluation = (
            np.asarray(np.memmap(folder / f"{name}.bin", dtype=kind, mode="r"))
            for name, kind in [
                ("tokens", token_type),
                ("offsets", np.int64),
                ("labels", np.int64),
                ("train", np.int64),
                ("evaluation", np.int64),
            ]
        )
        self.train = Rows(tokens, offsets, labels, train)
        self.evaluation = Rows(tokens, offsets, labels, evaluation)
        self.labels = note.labels
        """Names; a row's label is a place in here."""
        self.columns = note.columns
        self.counts = note.counts
        self.tokenizer_folder = folder / "tokenizer"
        self.fingerprint = _digest(
            msgspec.json.encode([note.labels, sorted((name, seen.blake2b) for name, seen in note.files.items())])
        )
        """The fingerprint of rows, tokens, labels and split."""


def open_corpus(cache: Path, source: Source, make_encoder: MakeEncoder, boundary: Boundary) -> Corpus:
    """The corpus of `source` from the cache, or made now. Other corpora in the cache are removed.

    Raises InputError for data that cannot be used, OSError for a disk that is full, and whatever `boundary` raises.
    """
    located = _Located(
        sources.locate(source.train),
        None if source.evaluation is None else sources.locate(source.evaluation, evaluates=True),
    )
    key = _digest(msgspec.json.encode([_FORMAT, source, [_identity(part) for part in located.all()]]))[:16]
    folder = cache / f"corpus-{key}"
    cache.mkdir(exist_ok=True, mode=0o700)
    note = _whole(folder, source, boundary)
    for other in cache.glob("corpus-*"):
        if note is None or other != folder:
            shutil.rmtree(other)
    if note is None:
        draft = cache / f"corpus-{key}.draft"
        draft.mkdir(mode=0o700)
        try:
            note = _make(draft, source, located, make_encoder, boundary)
            draft.rename(folder)
            flush_folder(cache)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return Corpus(folder, note)


def _identity(source: sources.Source) -> list[object]:
    """What changes when one of the files does: name, size, time, and its first and last MiB."""
    seen: list[object] = []
    for file in (each.path for each in source.files):
        try:
            fd, _ = open_regular(file)
            with os.fdopen(fd, "rb") as content:
                facts = os.fstat(fd)
                head = content.read(1 << 20)
                content.seek(max(0, facts.st_size - (1 << 20)))
                seen.append([str(file), facts.st_size, facts.st_mtime_ns, _digest(head + content.read(1 << 20))])
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    return seen


def _flush_file(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _token_type(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


# --------------------------------------------------------------------------------------------------------------------
# Is the cache whole?


def _whole(folder: Path, source: Source, boundary: Boundary) -> _Note | None:
    """The note of a corpus whose files are all as they were written. None means that there is no such corpus."""
    try:
        note = read_document(folder / "corpus.json", _notes.decode)
        fits = note.format == _FORMAT and note.source == source
        if fits and all(_file_note(folder / name, boundary) == seen for name, seen in note.files.items()):
            return note
    except (OSError, UnreadableError):
        pass
    return None


def _file_note(file: Path, boundary: Boundary) -> _FileNote:
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    fd, _ = open_regular(file)
    with os.fdopen(fd, "rb") as content:
        while chunk := content.read(_HASHED_BYTES):
            digest.update(chunk)
            size += len(chunk)
            boundary()
    return _FileNote(size, digest.hexdigest())


# --------------------------------------------------------------------------------------------------------------------
# Making it


class _Table(NamedTuple):
    """The rows as read: their texts on disk, the rest as one number each."""

    texts: Any
    """The texts as a mapped `datasets.Dataset`."""
    labels: list[str]
    label_of_row: Ints
    text_hashes: NDArray[np.uint64]
    train_rows: int
    """How many rows are of the training data; those after them are of the evaluation data."""
    columns: Columns
    blank: int


def _make(draft: Path, source: Source, located: _Located, make_encoder: MakeEncoder, boundary: Boundary) -> _Note:
    """Fills `draft` and flushes it to the disk."""
    table = _read(draft / "texts.arrow", source, located, boundary)
    trained, evaluated = np.arange(table.train_rows), np.arange(table.train_rows, len(table.label_of_row))
    if located.evaluation is None:
        held_out = hold_out(table.label_of_row, table.text_hashes, source.eval_share, source.seed)
        if not held_out.any() or held_out.all():
            raise InputError(
                f"{located.train} has too few different texts to hold some out for evaluation: add rows, or set task.eval."
            )
        trained, evaluated = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    tokenizer_folder = draft / "tokenizer"
    tokenizer_folder.mkdir()
    encoder = make_encoder(_texts(table.texts, trained, boundary), tokenizer_folder)
    offsets = _write_tokens(draft / "tokens.bin", _texts(table.texts, np.arange(len(table.label_of_row)), boundary), encoder)
    arrays = {"offsets": offsets, "labels": table.label_of_row, "train": trained, "evaluation": evaluated}
    for name, values in arrays.items():
        (draft / f"{name}.bin").write_bytes(values.astype(np.int64, copy=False).data)  # tofile hides that a disk is full

    different = np.unique(table.text_hashes[: table.train_rows]).size
    shared = np.isin(table.text_hashes[evaluated], table.text_hashes[trained]).sum()
    counts = Counts(blank=table.blank, repeated=table.train_rows - different, shared=int(shared))
    labels, columns = table.labels, table.columns
    del table  # lets go of the mapped texts
    (draft / "texts.arrow").unlink()
    files = {f"{name}.bin": _file_note(draft / f"{name}.bin", boundary) for name in ("tokens", *arrays)}
    for file in (*draft.glob("*.bin"), *tokenizer_folder.iterdir()):
        _flush_file(file)
    flush_folder(tokenizer_folder)
    note = _Note(
        format=_FORMAT,
        source=source,
        labels=labels,
        columns=columns,
        counts=counts,
        vocabulary_size=encoder.vocabulary_size,
        files=files,
    )
    replace_file(draft / "corpus.json", msgspec.json.encode(note))
    return note


def _read(arrow: Path, source: Source, located: _Located, boundary: Boundary) -> _Table:
    # Arrow's own allocator reserves 1 GiB of private memory at its first use (measured), which counts against RLIMIT_DATA.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with without_search_for_garbage():
        import datasets
        import pyarrow

    columns = find_columns(located.train, source.text, source.label)
    counts: Counter[str] = Counter()
    numbers: dict[str, int] = {}  # label → in order of appearance
    label_parts: list[Ints] = []
    hash_parts: list[NDArray[np.uint64]] = []
    train_rows = blank = 0
    with arrow.open("wb") as file, pyarrow.ipc.new_stream(file, pyarrow.schema([("text", pyarrow.string())])) as table:
        for part in located.all():
            trains = part is located.train
            if not trains:
                find_columns(part, *columns)
            of_source: Counter[str] = Counter()
            known = None if trains else frozenset(counts)
            for chunk in _chunks(read_examples(part, columns, known), attrgetter("text")):
                boundary()
                rows = [row for row in chunk if not is_blank(row.text)]
                blank += len(chunk) - len(rows)
                of_source.update(row.label for row in rows)
                check_labels(part, columns, of_source, complete=False, train=trains)
                label_parts.append(np.array([numbers.setdefault(row.label, len(numbers)) for row in rows], np.int64))
                hash_parts.append(np.array([_text_hash(row.text) for row in rows], np.uint64))
                table.write_batch(pyarrow.record_batch({"text": [row.text for row in rows]}))
            check_labels(part, columns, of_source, complete=True, train=trains)
            if trains:
                counts, train_rows = of_source, of_source.total()
    labels = sorted_labels(numbers)
    in_order = np.array([labels.index(name) for name in numbers], np.int64)
    return _Table(
        texts=datasets.Dataset.from_file(str(arrow)),
        labels=labels,
        label_of_row=in_order[np.concatenate(label_parts)],
        text_hashes=np.concatenate(hash_parts),
        train_rows=train_rows,
        columns=columns,
        blank=blank,
    )


def _chunks(examples: Iterable[T], text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """The examples in chunks of bounded rows and characters; a single text may be longer."""
    chunk: list[T] = []
    chars = 0
    for example in examples:
        chunk.append(example)
        chars += len(text_of(example))
        if len(chunk) >= _CHUNK_ROWS or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _texts(table: Any, rows: Ints, boundary: Boundary) -> Iterator[list[str]]:
    """The texts of these rows, a chunk at a time."""
    for start in range(0, len(rows), _CHUNK_ROWS):
        boundary()
        texts: list[str] = table[rows[start : start + _CHUNK_ROWS]]["text"]
        yield from _chunks(texts, str)


def _write_tokens(file: Path, texts: Iterator[list[str]], encoder: Encoder) -> Ints:
    """Writes the tokens one row behind the other; returns the offsets."""
    kind = _token_type(encoder.vocabulary_size)
    lengths = [np.zeros(1, np.int64)]
    with file.open("wb") as out:
        for chunk in texts:
            rows = encoder.encode(chunk)
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            out.write(np.concatenate([np.asarray(row, kind) for row in rows]).data)
    return np.cumsum(np.concatenate(lengths))


# --------------------------------------------------------------------------------------------------------------------
# The held-out split


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest(), "little")


def hold_out(labels: Ints, text_hashes: NDArray[np.uint64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows to hold out: about `share` of each label's, and of equal texts all or none, so that no text that was trained
    on is ever asked for (collections of reviews repeat themselves). Shape (rows,).

    Held out are the texts whose hashes lie nearest to the seed's, which depends on no library's idea of randomness. A label
    with a single text keeps it for training; one with more has at least one on either side.
    """
    texts, first_rows, text_of_row, rows_of_text = np.unique(
        text_hashes, return_index=True, return_inverse=True, return_counts=True
    )
    label_of_text = labels[first_rows]
    order = np.argsort(texts ^ np.uint64(_text_hash(str(seed))))
    held_out = np.zeros(len(texts), np.bool_)
    for label in np.unique(label_of_text):
        mine = order[label_of_text[order] == label]
        rows_before = np.cumsum(rows_of_text[mine]) - rows_of_text[mine]
        wanted = share * rows_of_text[mine].sum()
        taken = min(int(np.searchsorted(rows_before, wanted)), len(mine) - 1)
        held_out[mine[:taken]] = True
    return held_out[text_of_row]
