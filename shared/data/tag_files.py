"""Files of sentences whose words have tags: which of a setting's files they are, and those that no table's reader knows.

A file of columns has a word on each line, its tag in the last column (or another one), and a blank line between sentences, as
CoNLL's have it. A file of words with slashes has a sentence on each line: `江/nr 泽民/nr 主席/n`, as Chinese corpora have it.
All else (JSON, Parquet, what `datasets` saved) is read as for any task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.layout import COLUMN_ENDINGS, DataFile, Kind, Part, kind_by_name, part_of, stem_of
from memsup.shared.data.lines import FIRST, Begin, lines
from memsup.shared.data.row import Row
from memsup.shared.data.sources import Source, locate, paths_of

MOST_WORDS = 20_000
"""A longer sentence is a file without blank lines."""
_MOST_FILES = 1000
_LINES_LOOKED_AT = 200
_TEXTS = (".txt", ".text", ".tsv", ".tab", ".data", ".train", ".dev", ".testa", ".testb", ".test", "")
_COMMENT = re.compile(r"#\s*(id|[\w.:-]+\s*=)(\s|$)")
_DOCUMENT = "-DOCSTART-"
_SLASHED = re.compile(r"(?:\[?[^\s/]+/[A-Za-z][\w-]{0,8}(?:\][A-Za-z]{1,4})?|\[?/{2}[A-Za-z]{1,2})")
_NAMES = frozenset(("tag", "tags", "ner", "ner_tag", "label", "labels", "pos", "upos", "iob", "bio", "标签"))
"""What the last column is called where the first line names the columns."""


def locate_tagged(value: str | Sequence[str], *, evaluates: bool = False) -> Source:
    """As `sources.locate`, for sentences whose words have tags. Raises InputError."""
    paths = [path for each in ([value] if isinstance(value, str) else value) for path in paths_of(each)]
    try:
        if len(paths) == 1 and paths[0].is_dir():
            named = _of_columns_in(paths[0])
            return _of_folder(paths[0], named, evaluates) if named else locate(str(paths[0]), evaluates=evaluates)
        if not any(map(_is_of_columns, paths)):
            return locate(value, evaluates=evaluates)
        name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        return Source(name, tuple(_file(path) for path in paths))
    except OSError as error:
        raise InputError(f"{error.filename or paths[0]} cannot be looked at: {error.strerror}.") from None


def _is_of_columns(path: Path) -> bool:
    ending = path.suffix.lower()
    return not path.is_dir() and (ending in COLUMN_ENDINGS or (ending in _TEXTS and not _is_table(path)))


def _is_table(path: Path) -> bool:
    """Whether a file with tabs is a table with a name above each column and a sentence in each row."""
    first = [line.rstrip("\r\n") for line in islice(lines(path), 3)]
    cells = [line.split("\t") for line in first]
    return (
        len(first) > 1
        and kind_by_name(path.name) is Kind.TSV
        and len({len(row) for row in cells}) == 1
        and any(" " in cell.strip() for cell in cells[1])
    )


def _file(path: Path) -> DataFile:
    """Raises InputError for what is no file of data."""
    if not _is_of_columns(path):
        return locate(str(path)).files[0]
    return DataFile(path, Kind.SLASHED if is_slashed(path) else Kind.TAGGED)


def is_slashed(path: Path) -> bool:
    """Whether its lines are words with slashes and tags behind them. Raises InputError."""
    words = [word for line in islice(lines(path), _LINES_LOOKED_AT) for word in line.split()][:1000]
    return len(words) > 2 and sum(_SLASHED.fullmatch(word) is not None for word in words) > 0.9 * len(words)


def _of_columns_in(folder: Path) -> list[Path]:
    """The files of columns in a folder without tables. Raises OSError."""
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in islice(entries, _MOST_FILES) if entry.is_file())
    if any(kind_by_name(name) not in (None, Kind.TSV) for name in found):
        return []
    return [
        folder / name
        for name in found
        if not re.match(r"\.|read.?me|licen[cs]e", name, re.IGNORECASE) and _is_of_columns(folder / name)
    ]


def _of_folder(folder: Path, files: list[Path], evaluates: bool) -> Source:
    parts: dict[Part | None, list[Path]] = {}
    for file in files:
        part = _part(file) if len(files) > 1 else None
        parts.setdefault(part, []).append(file)
    if len(parts) > 1 and Part.TRAIN not in parts:
        named = ", ".join(file.name for file in files[:6])
        raise InputError(f"It is not clear what in {folder} is to be trained on ({named}): name the file.")
    trained = parts.get(Part.TRAIN) or parts[None]
    beside = parts.get(Part.VALIDATION) or parts.get(Part.TEST)
    evaluated = None
    if beside is not None:
        name = str(beside[0]) if len(beside) == 1 else f"{folder} (evaluation)"
        note = f"{name} evaluates, as it lies beside the training data."
        evaluated = Source(name, tuple(map(_file, beside)), (note,))
    if evaluates:
        if evaluated is None and Part.TRAIN in parts:
            raise InputError(f"{folder} has a part for training and none for evaluation: name other data in task.eval.")
        return evaluated or Source(str(folder), tuple(map(_file, trained)))
    unread = parts.get(None, []) if Part.TRAIN in parts else []
    notes = tuple(f"{file} is not read: its name is that of no part." for file in unread[:3])
    name = str(trained[0]) if len(trained) == 1 else str(folder)
    alone = ",".join(map(str, trained)) if evaluated else ""
    return Source(name, tuple(map(_file, trained)), notes, evaluated, alone)


def _part(file: Path) -> Part | None:
    """The part that the name says, or its ending, as those of CoNLL 2003 do (eng.testa)."""
    by_ending = {".train": Part.TRAIN, ".dev": Part.VALIDATION, ".testa": Part.VALIDATION, ".testb": Part.TEST}
    return by_ending.get(file.suffix.lower()) or part_of(file.name) or part_of(f"{stem_of(file.name)}.x")


# --------------------------------------------------------------------------------------------------------------------
# Rows


def tagged_rows(path: Path, begin: Begin = FIRST) -> Iterator[Row]:
    """The sentences of a file of columns, or those from `begin` on: for each column the list of its cells, named by the first
    line or by its place. Raises InputError.
    """
    names, separator, first_row = _named_columns(path)
    sentence: list[list[str]] = []
    first = 0
    for number, line in enumerate(lines(path, begin), start=begin.line):
        line = line.rstrip("\r\n")
        if not line.strip():
            if sentence:
                yield _sentence(path, first, names, sentence)
                sentence = []
            continue
        if line.startswith(_DOCUMENT) or (not sentence and _COMMENT.match(line)):
            continue
        if number < first_row:
            continue
        fields = line.split(separator)
        if len(fields) != len(names):
            raise InputError(
                f"{path}, line {number} has {len(fields)} column{'s' * (len(fields) != 1)} and the first line has "
                f"{len(names)}: correct it; between them stands {'a tab' if separator else 'a blank'}."
            )
        if not sentence:
            first = number
        sentence.append(fields)
        if len(sentence) > MOST_WORDS:
            raise InputError(
                f"{path} has more than {MOST_WORDS:,} words from line {first} on without a blank line: put one between "
                "sentences."
            )
    if sentence:
        yield _sentence(path, first, names, sentence)
    elif not first and begin == FIRST:
        raise InputError(f"{path} is empty: put the data into it.")


def _named_columns(path: Path) -> tuple[list[str], str | None, int]:
    """The names of the columns; what is between them, of which None means any blanks; and the number of the first line that is
    none of names. Raises InputError.
    """
    for number, line in enumerate(lines(path), start=1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith(_DOCUMENT) or _COMMENT.match(line):
            continue
        separator = "\t" if "\t" in line else None
        fields = line.split(separator)
        if len(fields) < 2:
            raise InputError(
                f"{path}, line {number} has one column: write a word, a tab and its tag on each line, and a blank line "
                "between sentences."
            )
        places = [f"column {place}" for place in range(1, len(fields) + 1)]
        if fields[-1].strip().casefold() in _NAMES:
            names = [field.strip() or places[place] for place, field in enumerate(fields)]
            if len(set(names)) == len(names):
                return names, separator, number + 1
        return places, separator, number
    raise InputError(f"{path} is empty: put the data into it.")


def _sentence(path: Path, line: int, names: list[str], sentence: list[list[str]]) -> Row:
    return Row(path, line, {name: list(cells) for name, cells in zip(names, zip(*sentence, strict=True), strict=True)})


def slashed_rows(path: Path, begin: Begin = FIRST) -> Iterator[Row]:
    """The sentences of a file of words with slashes from `begin` on, as texts with a span for each word. What stands in square
    brackets is one name of several words. Raises InputError.
    """
    is_empty = begin == FIRST
    for number, line in enumerate(lines(path, begin), start=begin.line):
        words = line.split()
        if not words:
            continue
        is_empty = False
        if len(words) > MOST_WORDS:
            raise InputError(f"{path}, line {number} has more than {MOST_WORDS:,} words: put a sentence on each line.")
        if "[" not in line and "]" not in line:
            parted = [word.rpartition("/") for word in words]
            if all(said and tag for said, _, tag in parted):
                text, places = joined([said for said, _, _ in parted])
                named = [[start, end, tag] for (start, end), (_, _, tag) in zip(places, parted, strict=True)]
                yield Row(path, number, {"text": text, "spans": named})
                continue
        found = [_slashed(word, path, number) for word in words]
        text, places = joined([word.said for word in found])
        spans: list[tuple[int, int, str]] = []
        opened: int | None = None
        for word, (start, end) in zip(found, places, strict=True):
            if word.opens:
                opened = start
            spans.append((start, end, word.tag))
            if word.closes_as and opened is not None:
                spans = [span for span in spans if span[0] < opened] + [(opened, end, word.closes_as)]
                opened = None
        yield Row(path, number, {"text": text, "spans": [list(span) for span in spans]})
    if is_empty:
        raise InputError(f"{path} is empty: put the data into it.")


def grouped(rows: Iterable[Row], sentence: str) -> Iterator[Row]:
    """Of rows that are a word each, the sentences: for each column the list of its cells. A sentence goes on as long as the
    cell in the column `sentence` is empty or the same. Raises InputError where one has no end.
    """
    first: Row | None = None
    cells: list[dict[str, object]] = []
    for row in rows:
        number = row.values.get(sentence)
        goes_on = number in (None, "") or (first is not None and number == first.values.get(sentence))
        if first is None or not goes_on or row.file != first.file:
            if first is not None:
                yield _of_words(first, cells)
            first, cells = row, []
        cells.append(row.values)
        if len(cells) > MOST_WORDS:
            raise InputError(f"{row.file} has more than {MOST_WORDS:,} words in one sentence up to line {row.line}: divide it.")
    if first is not None:
        yield _of_words(first, cells)


def _of_words(first: Row, cells: list[dict[str, object]]) -> Row:
    texts = {name: ["" if values.get(name) is None else str(values[name]) for values in cells] for name in first.values}
    return Row(first.file, first.line, dict(texts))


class _Slashed(NamedTuple):
    said: str
    tag: str
    opens: bool
    """Whether a name of several words begins with it."""
    closes_as: str
    """The tag of the name that ends with it; empty where none does."""


def _slashed(word: str, path: Path, line: int) -> _Slashed:
    """Raises InputError."""
    if "[" not in word and "]" not in word:  # as nearly all
        said, _, tag = word.rpartition("/")
        if said and tag:
            return _Slashed(said, tag, opens=False, closes_as="")
    opens = word.startswith("[") and not word.startswith("[/")
    inner, closed, outer = word.partition("]") if word.rfind("]") > word.rfind("/") else (word, "", "")
    said, slash, tag = inner.removeprefix("[" if opens else "").rpartition("/")
    if not slash or not said or not tag:
        raise InputError(f"{path}, line {line}: {word[:40]!r} is no word with a slash and its tag: correct it.")
    return _Slashed(said, tag, opens, (outer.strip("/ ") or tag) if closed else "")


# --------------------------------------------------------------------------------------------------------------------
# Words become a text


def is_wide(character: str) -> bool:
    """Whether words are written without blanks around such a character: ideographs, kana, and what is as wide as they, but not
    the syllables of Korean.
    """
    return character >= "\u2e80" and (
        character <= "\u9fff"
        or "\uf900" <= character <= "\ufaff"
        or "\ufe30" <= character <= "\ufe4f"
        or "\uff00" <= character <= "\uffef"
        or character >= "\U00020000"
    )


def joined(words: Sequence[str], *, tightly: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """The text of these words, and where in it each begins and ends. Between two of them stands a blank unless they are written
    without one, or with `tightly` never.
    """
    text, places, length = [], [], 0
    is_apart = False  # whether the word before is one that is written apart
    for word in words:
        if not word:
            places.append((length, length))
            continue
        if is_apart and not is_wide(word[0]):
            text.append(" ")
            length += 1
        end = length + len(word)
        places.append((length, end))
        text.append(word)
        length = end
        is_apart = not tightly and not is_wide(word[-1])
    return "".join(text), places
