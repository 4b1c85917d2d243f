"""Text becomes numbers once: a corpus of tokens on disk, memory-mapped, from which any rows are taken without a loop.

Covers reading the data (`shared/data` knows the formats) into a file of texts, which is read a chunk at a time, the
held-out split, and the cache of the result below the run's folder. Knows no tokenizer, no padding and no tensor: the task
brings an encoder, and pads. Memory stays bounded by a chunk and some 100 bytes a row, whatever the data's size; between
chunks `boundary` is called, so that orders are answered meanwhile.

    <cache>/corpus-<key>/
        tokens.bin       all rows' tokens, one behind the other; uint16, or uint32 for a large vocabulary
        types.bin        uint8: the type of each of them; only where one is not 0
        offsets.bin      int64: row r is tokens[offsets[r]:offsets[r+1]]
        labels.bin       int64: the place of the row's label in `labels`; or float64: the row's
                         score; or a bit for each label, in whole bytes a row
        train.bin        int64: rows to train on
        evaluation.bin   int64: rows held out, or those of the evaluation data
        origins.bin, names.bin   file and line of each row (`origins.py`)
        tokenizer/       what the encoder saved
        corpus.json      labels, counts, and size and hash of each file above

It is written beside its place and renamed when it is whole and on disk; what is not whole, or has changed since, is made anew.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from memsup.shared.data import sources
from memsup.shared.data.check import check_rows
from memsup.shared.data.columns import Columns, Table, look_at_columns, look_for_the_same
from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.errors import DoubtfulError, InputError
from memsup.shared.data.evidence import MOST_LABELS, Evidence
from memsup.shared.data.examples import Example, at, is_blank, read_examples, sorted_labels
from memsup.shared.data.judge import judge
from memsup.shared.data.targets import ProblemType
from memsup.worker.tasks import origins
from memsup.worker.tasks.cache import Boundary, Find, Located, Note, fingerprint, locate, made_once

_FORMAT = 4
_TYPES = "types.bin"
_CHUNK_ROWS = 1000
_CHUNK_CHARS = 1 << 18

T = TypeVar("T")
R = TypeVar("R")
Ints = NDArray[np.int64]
Labels = NDArray[Any]
"""The labels of rows: places among the labels' names, or scores, or bits for several (uint8, a row's bytes each)."""


Text = str | tuple[str, str]
"""What a row says: one text, or two."""


class Encoded(NamedTuple):
    """Some rows as numbers."""

    tokens: Sequence[Sequence[int]]
    """The tokens of each row, cut to the wanted length, with those that the tokenizer adds."""
    token_types: Sequence[Sequence[int]] | None
    """The type of each token, 0 to 255. It is None where there are no types."""
    tokenless: NDArray[np.bool_]
    """Which rows make no token of their own."""
    special: dict[int, list[int]]
    """Place of a row → the special tokens that its text makes, each once."""


class Encoder(Protocol):
    """Turns texts into token numbers."""

    vocabulary_size: int

    def encode(self, texts: list[Text]) -> Encoded: ...


MakeEncoder = Callable[[Iterator[list[Text]], Path], Encoder]
"""Called once, where the corpus has to be made: may go through the training texts, and may save files in the folder."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on which the corpus depends; another source is another corpus."""

    train: str | list[str]
    evaluation: str | list[str] | None
    """The data to evaluate on. None means that it is what lies beside `train` for that, or else that `eval_share` of `train` is
    held out, chosen by `seed`."""
    text: str | None
    label: str | None
    problem_type: ProblemType = "single_label_classification"
    text_pair: str | None = None
    labels: list[str] | None = None
    """The labels that count, in their order. None means that all do."""
    accept: list[DoubtKind] = []
    """The doubts that a person has accepted."""
    eval_share: float
    seed: int
    encoder: str
    """Names the encoder and all that changes what it does, such as the length at which it cuts."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    blank: int
    """Rows without a text, which were left out."""
    other_labels: int = 0
    """Rows whose label is none of those that count, which were left out."""
    tokenless: int = 0
    """Rows whose text makes no token, which were left out."""
    special: int = 0
    """Rows whose text makes special tokens."""
    repeated: int
    """Rows of the training data whose text stands in an earlier row already."""
    shared: int
    """Rows to evaluate whose text is trained on as well; none where they were held out."""


class SpecialToken(msgspec.Struct, frozen=True):
    """A special token that texts make."""

    token: int
    rows: int
    first_row: int
    """The first of these rows, numbered as `Corpus.rows` takes them."""


class _Note(Note, kw_only=True):
    """What corpus.json holds."""

    source: Source
    labels: list[str]
    """The names of the labels in their order, or that of the score."""
    columns: Columns
    counts: Counts
    is_held_out: bool
    special: list[SpecialToken]
    vocabulary_size: int


_notes = msgspec.json.Decoder(_Note)


class Rows:
    """Some rows of a corpus, numbered from 0. Backed by mapped files."""

    def __init__(
        self,
        tokens: NDArray[Any],
        offsets: Ints,
        labels: Labels,
        chosen: Ints,
        *,
        types: NDArray[np.uint8] | None = None,
        origins_of_all: origins.Origins | None = None,
    ) -> None:
        self._tokens, self._offsets, self._labels, self._chosen = tokens, offsets, labels, chosen
        self._types, self._origins = types, origins_of_all
        self.lengths: NDArray[np.int32] = (offsets[chosen + 1] - offsets[chosen]).astype(np.int32)
        """The number of tokens of each row."""

    def __len__(self) -> int:
        return len(self._chosen)

    def labels(self, indices: Ints) -> Labels:
        return self._labels[self._chosen[indices]]

    def where(self, indices: Ints) -> str:
        """The files and lines of these rows, for a sentence."""
        assert self._origins is not None
        return self._origins.where(self._chosen[indices])

    def tokens(self, indices: Ints) -> Ints:
        """The tokens of these rows, one row behind the other: row i of them has `lengths[indices[i]]`."""
        return self._tokens[self._places(indices)].astype(np.int64)

    def token_types(self, indices: Ints) -> Ints | int:
        """The type of each of these tokens; 0 for all where no row has another."""
        return 0 if self._types is None else self._types[self._places(indices)].astype(np.int64)

    def _places(self, indices: Ints) -> Ints:
        starts, lengths = self._offsets[self._chosen[indices]], self.lengths[indices].astype(np.int64)
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class Corpus:
    """What `open_corpus` found or made."""

    def __init__(self, folder: Path, note: _Note) -> None:
        tokens, offsets, labels, train, evaluation = (
            np.asarray(np.memmap(folder / f"{name}.bin", dtype=kind, mode="r"))
            for name, kind in [
                ("tokens", token_type(note.vocabulary_size)),
                ("offsets", np.int64),
                ("labels", _label_type(note.source.problem_type)),
                ("train", np.int64),
                ("evaluation", np.int64),
            ]
        )
        if note.source.problem_type == "multi_label_classification":
            labels = labels.reshape(len(offsets) - 1, -1)
        types = np.asarray(np.memmap(folder / _TYPES, dtype=np.uint8, mode="r")) if _TYPES in note.files else None
        self.rows = partial(Rows, tokens, offsets, labels, types=types, origins_of_all=origins.Origins(folder))
        """Gives rows by their numbers in the data, in which those without a text are not counted."""
        self.train, self.evaluation = self.rows(train), self.rows(evaluation)
        self._used = np.concatenate([train, evaluation])
        self.is_held_out = note.is_held_out
        """Whether the rows to evaluate were held out of the training data."""
        self.labels = note.labels
        """Names; a row's label is a place in here, or bits for several, or else a score of the one name."""
        self.columns = note.columns
        self.counts = note.counts
        self.special = note.special
        self.tokenizer_folder = folder / "tokenizer"
        self.fingerprint = fingerprint(note.labels, note)
        """The fingerprint of rows, tokens, labels and split, wherever the files lie."""

    def where(self, row: int) -> str:
        """File and line of a row of this number in the data, for a sentence."""
        return self.rows(np.array([row])).where(np.zeros(1, np.int64))

    def row_with_other_number(self, made: SpecialToken) -> int | None:
        """A row that is used and has another number of this token than the first one that makes it. It is None where all have
        the same.
        """
        wanted = int((self.rows(np.array([made.first_row])).tokens(np.zeros(1, np.int64)) == made.token).sum())
        for start in range(0, len(self._used), _CHUNK_ROWS):
            part = self._used[start : start + _CHUNK_ROWS]
            rows = self.rows(part)
            found = rows.tokens(np.arange(len(part))) == made.token
            counts = np.bincount(np.repeat(np.arange(len(part)), rows.lengths)[found], minlength=len(part))
            if (others := np.flatnonzero(counts != wanted)).size:
                return int(part[others[0]])
        return None


def open_corpus(
    cache: Path, source: Source, make_encoder: MakeEncoder, boundary: Boundary, find: Find = sources.locate
) -> Corpus:
    """The corpus of `source` from the cache, or made now. Other corpora in the cache are removed. `find` finds the files.

    Raises InputError for data that cannot be used, OSError for a disk that is full, and whatever `boundary` raises.
    """
    located = locate(source.train, source.evaluation, find)
    make = partial(_make, source=source, located=located, make_encoder=make_encoder, boundary=boundary)
    folder, note = made_once(cache, source, located, make, _notes.decode, number=_FORMAT, boundary=boundary)
    return Corpus(folder, note)


def _label_type(problem_type: ProblemType) -> type[np.int64 | np.float64 | np.uint8]:
    return _LABEL_TYPES[problem_type]


_LABEL_TYPES: dict[ProblemType, type[np.int64 | np.float64 | np.uint8]] = {
    "single_label_classification": np.int64,
    "multi_label_classification": np.uint8,
    "regression": np.float64,
}


def token_type(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


# --------------------------------------------------------------------------------------------------------------------
# Making it


class _Table(NamedTuple):
    """The rows as read: their texts on disk, the rest as one number each."""

    texts: Path
    """The file with the texts of all rows, chunk by chunk (`_add_texts`)."""
    labels: list[str]
    label_of_row: Labels
    text_hashes: NDArray[np.uint64]
    train_rows: int
    """How many rows are of the training data; those after them are of the evaluation data."""
    columns: Columns
    blank: int
    other_labels: int


def _make(draft: Path, source: Source, located: Located, make_encoder: MakeEncoder, boundary: Boundary) -> _Note:
    """Fills `draft`, and says what is in it."""
    table = _read(draft / "texts", source, located, boundary)
    trained, evaluated = np.arange(table.train_rows), np.arange(table.train_rows, len(table.label_of_row))
    if located.evaluation is None:
        groups = alike_for_the_split(table.label_of_row, source.problem_type)
        held_out = hold_out(groups, table.text_hashes, source.eval_share, source.seed)
        if not held_out.any() or held_out.all():
            raise InputError(
                f"{located.train} has too few different texts to hold some out for evaluation: add rows, or set task.eval."
            )
        trained, evaluated = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    tokenizer_folder = draft / "tokenizer"
    tokenizer_folder.mkdir()
    encoder = make_encoder(_texts(table.texts, trained, boundary), tokenizer_folder)
    every_row = _texts(table.texts, np.arange(len(table.label_of_row)), boundary)
    offsets, tokenless, special_rows, special = _write_tokens(draft, every_row, encoder)
    trained, evaluated = trained[~tokenless[trained]], evaluated[~tokenless[evaluated]]
    for part, rows in zip((located.train, located.evaluation or located.train), (trained, evaluated), strict=True):
        same = rows is trained and source.labels is None and len(np.unique(table.label_of_row[rows])) < 2
        if same and part.is_head:
            raise InputError(
                f"The first {len(rows):,} rows of {part} have one label, and by them it is decided which labels a stream has: "
                "name all of them with task.labels."
            )
        if not len(rows) or same:
            raise InputError(
                f"{tokenless.sum():,} texts make no token at all, and without them too little is left of {part}: choose a "
                "model whose tokenizer knows the characters that they are written in."
            )
    arrays = {"offsets": offsets, "train": trained, "evaluation": evaluated}
    for name, values in arrays.items():
        (draft / f"{name}.bin").write_bytes(values.astype(np.int64, copy=False).data)  # tofile hides that a disk is full
    (draft / "labels.bin").write_bytes(table.label_of_row.data)

    of_train = table.text_hashes[: table.train_rows][~tokenless[: table.train_rows]]
    counts = Counts(
        blank=table.blank,
        other_labels=table.other_labels,
        tokenless=int(tokenless.sum()),
        special=special_rows,
        repeated=of_train.size - np.unique(of_train).size,
        shared=int(np.isin(table.text_hashes[evaluated], table.text_hashes[trained]).sum()),
    )
    labels, columns = table.labels, table.columns
    table.texts.unlink()
    return _Note(
        source=source,
        labels=labels,
        columns=columns,
        counts=counts,
        is_held_out=located.evaluation is None,
        special=special,
        vocabulary_size=encoder.vocabulary_size,
    )


def _read(texts: Path, source: Source, located: Located, boundary: Boundary) -> _Table:
    # Arrow's own allocator reserves 1 GiB of private memory at its first use (measured), which counts against RLIMIT_DATA.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    only = None if source.labels is None else frozenset(source.labels)
    of_part: list[Evidence] = []
    numbers: dict[str, int] = {}  # label → in order of appearance
    label_parts: list[Labels] = []
    several: list[list[int]] = []
    hash_parts: list[NDArray[np.uint64]] = []
    written = origins.OriginsWriter(texts.parent)
    with texts.open("wb") as file:
        for part in located.all():
            trains = part is located.train
            evidence = Evidence(_columns_of(part, source) if trains else look_for_the_same(part, of_part[0].table), only)
            evidence.complete = False
            known = None if trains or only else frozenset(of_part[0].labels)
            columns, marks = evidence.table.columns, evidence.table.marks
            examples = read_examples(part, columns, known, only=only, problem_type=source.problem_type, marks=marks)
            for chunk in _chunks(examples, _chars_of_example):
                boundary()
                rows = [row for row in chunk if evidence.takes(row)]
                if len(evidence.labels) > MOST_LABELS:
                    break
                if source.problem_type == "multi_label_classification":
                    several += [[numbers.setdefault(name, len(numbers)) for name in row.labels] for row in rows]
                elif source.problem_type == "regression":
                    label_parts.append(np.array([float(row.label) for row in rows], np.float64))
                else:
                    label_parts.append(np.array([numbers.setdefault(row.label, len(numbers)) for row in rows], np.int64))
                hash_parts.append(np.array([text_hash(_text_of(row)) for row in rows], np.uint64))
                written.add(rows)
                _add_texts(file, [_text_of(row) for row in rows])
            evidence.complete = not part.is_head
            check_rows(part, evidence, source.labels, trains=trains)
            of_part.append(evidence)
    if doubts := judge(*of_part).unsettled(source.accept):
        raise DoubtfulError(doubts)
    written.finish()
    labels = source.labels or list(of_part[0].table.columns.switches) or sorted_labels(numbers)
    in_order = np.array([labels.index(name) for name in numbers], np.int64)
    if source.problem_type == "multi_label_classification":
        label_of_row = _packed(several, in_order)
    elif source.problem_type == "regression":
        labels, label_of_row = [of_part[0].table.columns.label], np.concatenate(label_parts)
    else:
        label_of_row = in_order[np.concatenate(label_parts)]
    return _Table(
        texts=texts,
        labels=labels,
        label_of_row=label_of_row,
        text_hashes=np.concatenate(hash_parts),
        train_rows=of_part[0].rows,
        columns=of_part[0].table.columns,
        blank=sum(evidence.blank for evidence in of_part),
        other_labels=sum(evidence.others.total() for evidence in of_part),
    )


def _columns_of(part: sources.Source, source: Source) -> Table:
    return look_at_columns(
        part, source.text, source.label, source.text_pair, labels=source.labels, problem_type=source.problem_type
    )


def _packed(several: Sequence[Sequence[int]], in_order: Ints) -> Labels:
    """A bit for each label of each row, in whole bytes a row."""
    packed = np.zeros((len(several), -(-len(in_order) // 8)), np.uint8)
    for start in range(0, len(several), _CHUNK_ROWS):
        part = several[start : start + _CHUNK_ROWS]
        bits = np.zeros((len(part), len(in_order)), np.bool_)
        bits[np.repeat(np.arange(len(part)), list(map(len, part))), in_order[[place for row in part for place in row]]] = True
        packed[start : start + len(part)] = np.packbits(bits, axis=1)
    return packed


def _chars_of_example(example: Example) -> int:
    return chars_of(_text_of(example))


def _text_of(example: Example) -> Text:
    return example.text if example.text_pair is None else (example.text, example.text_pair)


def _chunks(examples: Iterable[R], size_of: Callable[[R], int]) -> Iterator[list[R]]:
    """The examples in chunks of bounded rows and size, such as characters; a single one may be larger."""
    chunk: list[R] = []
    chars = 0
    for example in examples:
        chunk.append(example)
        chars += size_of(example)
        if len(chunk) >= _CHUNK_ROWS or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def chars_of(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


_SIZE_BYTES = 8
_DECODER = msgspec.msgpack.Decoder(list[str | tuple[str, str]])


def _add_texts(file: BinaryIO, texts: list[Text]) -> None:
    """Writes texts behind those in `file`: their size in bytes, and then they. Libraries that keep tables (datasets, pyarrow)
    bring pandas into the process: some 40 MiB that stay there.
    """
    packed = msgspec.msgpack.encode(texts)
    file.write(len(packed).to_bytes(_SIZE_BYTES, "little"))
    file.write(packed)


def _texts(file: Path, rows: Ints, boundary: Boundary) -> Iterator[list[Text]]:
    """The texts of these rows, which are in order, a chunk at a time."""
    before = 0
    with file.open("rb") as opened:
        while size := opened.read(_SIZE_BYTES):
            boundary()
            texts = _DECODER.decode(opened.read(int.from_bytes(size, "little")))
            first, last = np.searchsorted(rows, (before, before + len(texts)))
            chosen = [texts[place] for place in (rows[first:last] - before).tolist()]
            before += len(texts)
            yield from _chunks(chosen, chars_of)


class _Written(NamedTuple):
    offsets: Ints
    tokenless: NDArray[np.bool_]
    """Which rows make no token of their own."""
    special_rows: int
    """How many rows make special tokens."""
    special: list[SpecialToken]


def _write_tokens(folder: Path, texts: Iterator[list[Text]], encoder: Encoder) -> _Written:
    """Writes the tokens one row behind the other, and their types where not all are 0."""
    kind = token_type(encoder.vocabulary_size)
    lengths = [np.zeros(1, np.int64)]
    tokenless: list[NDArray[np.bool_]] = []
    rows_of: Counter[int] = Counter()  # special token → rows
    first_row_of: dict[int, int] = {}
    rows_before = special_rows = 0
    has_types = False
    with (folder / "tokens.bin").open("wb") as out, (folder / _TYPES).open("wb") as types_out:
        for chunk in texts:
            encoded = encoder.encode(chunk)
            lengths.append(np.fromiter(map(len, encoded.tokens), np.int64, len(chunk)))
            tokenless.append(encoded.tokenless)
            out.write(np.fromiter(chain.from_iterable(encoded.tokens), kind, int(lengths[-1].sum())).data)
            if encoded.token_types is not None:
                types = bytes(chain.from_iterable(encoded.token_types))
                has_types |= any(types)
                types_out.write(types)
            special_rows += len(encoded.special)
            for place, tokens in encoded.special.items():
                rows_of.update(tokens)
                for token in tokens:
                    first_row_of.setdefault(token, rows_before + place)
            rows_before += len(chunk)
    if not has_types:
        (folder / _TYPES).unlink()
    return _Written(
        offsets=np.cumsum(np.concatenate(lengths)),
        tokenless=np.concatenate(tokenless),
        special_rows=special_rows,
        special=[SpecialToken(token, rows, first_row_of[token]) for token, rows in rows_of.items()],
    )


# --------------------------------------------------------------------------------------------------------------------
# Rows of a stream


class StreamedRow(NamedTuple):
    """A row as numbers."""

    tokens: Sequence[int]
    token_types: Sequence[int] | None
    label: Any
    """As `Labels` have it of one row."""
    file: Path
    line: int


class StreamedTexts(Generic[T]):
    """The rows of a stream whose head is a corpus (`stream.Reader`)."""

    def __init__(self, corpus: Corpus, source: Source, encoder: Encoder, mapped: Callable[[Rows], T]) -> None:
        """`mapped` makes of rows what is trained on."""
        self._corpus, self._source, self._encoder, self._mapped = corpus, source, encoder, mapped
        self._numbers = {name: number for number, name in enumerate(corpus.labels)}

    def read(self, part: sources.Source) -> Iterator[StreamedRow]:
        source = self._source
        only = None if source.labels is None else frozenset(source.labels)
        examples = read_examples(part, self._corpus.columns, only=only, problem_type=source.problem_type)
        for chunk in _chunks(examples, _chars_of_example):
            rows = [row for row in chunk if not is_blank(row.text, row.text_pair) and self._counts(row)]
            if not rows:
                continue
            labels = self._labels_of(rows)
            encoded = self._encoder.encode([_text_of(row) for row in rows])
            for place in np.flatnonzero(~encoded.tokenless).tolist():
                types = None if encoded.token_types is None else encoded.token_types[place]
                yield StreamedRow(encoded.tokens[place], types, labels[place], rows[place].file, rows[place].line)

    def write(self, folder: Path, rows: Iterator[StreamedRow]) -> None:
        kind = token_type(self._encoder.vocabulary_size)
        lengths, labels, has_types = [0], [], False
        written = origins.OriginsWriter(folder)
        with (folder / "tokens.bin").open("wb") as out, (folder / _TYPES).open("wb") as types_out:
            for chunk in _chunks(rows, lambda row: len(row.tokens)):
                lengths += [len(row.tokens) for row in chunk]
                labels += [row.label for row in chunk]
                written.add(chunk)
                out.write(np.concatenate([np.asarray(row.tokens, kind) for row in chunk]).data)
                types = np.concatenate([np.asarray(row.token_types or [0] * len(row.tokens), np.uint8) for row in chunk])
                has_types |= bool(types.any())
                types_out.write(types.data)
        if not has_types:
            (folder / _TYPES).unlink()
        written.finish()
        (folder / "offsets.bin").write_bytes(np.cumsum(np.array(lengths, np.int64)).data)
        (folder / "labels.bin").write_bytes(np.array(labels, _label_type(self._source.problem_type)).data)

    def open(self, folder: Path) -> T:
        offsets = np.fromfile(folder / "offsets.bin", np.int64)
        labels = np.fromfile(folder / "labels.bin", _label_type(self._source.problem_type))
        has_types = (folder / _TYPES).exists()
        return self._mapped(
            Rows(
                np.asarray(np.memmap(folder / "tokens.bin", dtype=token_type(self._encoder.vocabulary_size), mode="r")),
                offsets,
                labels.reshape(len(offsets) - 1, -1) if self._source.problem_type == "multi_label_classification" else labels,
                np.arange(len(offsets) - 1),
                types=np.asarray(np.memmap(folder / _TYPES, dtype=np.uint8, mode="r")) if has_types else None,
                origins_of_all=origins.Origins(folder),
            )
        )

    def _counts(self, row: Example) -> bool:
        is_class = self._source.problem_type == "single_label_classification"
        return not is_class or self._source.labels is None or row.label in self._source.labels

    def _labels_of(self, rows: Sequence[Example]) -> Labels:
        """Raises InputError for a label that is not known."""
        if self._source.problem_type == "regression":
            return np.array([float(row.label) for row in rows], np.float64)
        several = self._source.problem_type == "multi_label_classification"
        names = [row.labels if several else (row.label,) for row in rows]
        for row, of_row in zip(rows, names, strict=True):
            if unknown := [name for name in of_row if name not in self._numbers]:
                raise InputError(
                    f"{at(row.file, row.line)}: the label {unknown[0]!r} is none of the first rows, by which it is decided "
                    "what is learnt of a stream: correct it, or name all labels that count with task.labels."
                )
        numbers = [[self._numbers[name] for name in of_row] for of_row in names]
        return _packed(numbers, np.arange(len(self._numbers))) if several else np.array(numbers, np.int64)[:, 0]


# --------------------------------------------------------------------------------------------------------------------
# The held-out split


def text_hash(text: Text) -> int:
    whole = text.strip() if isinstance(text, str) else "\0".join(part.strip() for part in text)
    return int.from_bytes(hashlib.blake2b(whole.encode("utf-8"), digest_size=8).digest(), "little")


def alike_for_the_split(labels: Labels, problem_type: ProblemType) -> Ints:
    """Which group each row belongs to, of each of which a share is held out: its class; of several labels the rarest one, so
    that no rare label is missed; of scores one of ten groups of about the same size.
    """
    if problem_type == "regression":
        return np.searchsorted(np.quantile(labels, np.arange(1, 10) / 10), labels)
    if problem_type == "single_label_classification":
        return labels
    rows_of = sum(part.sum(axis=0, dtype=np.int64) for part in _unpacked(labels))
    rarest_first = np.argsort(rows_of, kind="stable")
    return np.concatenate([np.where(part.any(axis=1), part[:, rarest_first].argmax(axis=1), -1) for part in _unpacked(labels)])


def _unpacked(labels: Labels) -> Iterator[Labels]:
    """The bits of several labels, some rows at a time: all of them would take a byte each."""
    for start in range(0, len(labels), _CHUNK_ROWS):
        yield np.unpackbits(labels[start : start + _CHUNK_ROWS], axis=1)


def hold_out(labels: Labels, text_hashes: NDArray[np.uint64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows to hold out: about `share` of each label's, and of equal texts all or none, so that no text that was trained
    on is ever asked for (collections of reviews repeat themselves). Shape (rows,).

    Held out are the texts whose hashes lie nearest to the seed's, which depends on no library's idea of randomness. A label
    with a single text keeps it for training; one with more has at least one on either side.
    """
    texts, first_rows, text_of_row, rows_of_text = np.unique(
        text_hashes, return_index=True, return_inverse=True, return_counts=True
    )
    label_of_text = labels[first_rows]
    order = np.argsort(texts ^ np.uint64(text_hash(str(seed))))
    held_out = np.zeros(len(texts), np.bool_)
    for label in np.unique(label_of_text):
        mine = order[label_of_text[order] == label]
        rows_before = np.cumsum(rows_of_text[mine]) - rows_of_text[mine]
        wanted = share * rows_of_text[mine].sum()
        taken = min(int(np.searchsorted(rows_before, wanted)), len(mine) - 1)
        held_out[mine[:taken]] = True
    return held_out[text_of_row]
