"""What a folder of data holds, told from the names in it and, of texts, from their first line.

Folders come as sets of labels (`pos.txt`, `pos/0_7.txt`), as shards and parts of tables (`train-00000-of-00002.parquet`), as
`datasets` saves them, and as repositories keep them (`class.txt` beside `train.txt`). The rules stand in `_RULES`, the first
that knows the folder says what it is. Whatever in it is no data, such as a README, is left out, and that is said. Few levels
are looked at, and no more than so many names: links may lead in a circle.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import FIRST, Begin, lines
from memsup.shared.data.packing import ENDINGS
from memsup.shared.files import UnreadableError, read_document
from memsup.shared.printable import printable


class Kind(enum.Enum):
    """How a file's rows are written."""

    CSV = enum.auto()
    TSV = enum.auto()
    JSON = enum.auto()
    PARQUET = enum.auto()
    ARROW = enum.auto()
    TEXTS = enum.auto()
    """One text a line, all with the label that the file's name says."""
    NUMBERED = enum.auto()
    """A text and a number on each line with a tab between, the names of the numbers elsewhere."""
    DOCUMENTS = enum.auto()
    """A folder in which each file is one text, all with the label that the folder's name says."""
    TAGGED = enum.auto()
    """A word with its tag on each line, with a blank line between sentences."""
    SLASHED = enum.auto()
    """A sentence on each line, with a slash and its tag behind each word."""


@dataclass(frozen=True)
class DataFile:
    """One file of a task's data, or one folder of texts."""

    path: Path
    kind: Kind
    label: str | None = None
    """The label of all its rows. It is None where each row has its own."""
    label_names: tuple[str, ...] = ()
    """What the numbers of a numbered file stand for."""
    begin: Begin = FIRST
    """Where its rows are read from."""


class Part(enum.Enum):
    """What some of the data are for; the value is its usual name."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Layout(NamedTuple):
    """What a folder holds."""

    parts: Mapping[Part | None, Sequence[DataFile]]
    """The files of each part; None stands for data that come in no parts."""
    notes: tuple[str, ...] = ()


MOST_NAMES = 200_000
_MOST_FOLDERS = 1000
_MOST_CLASS_NAMES = 10_000
_LINES_LOOKED_AT = 50
_DEPTH = 3
_TAG = re.compile(r"O|[BIESLUM]-\S{1,40}")
COLUMN_ENDINGS = (".conll", ".conllu", ".bio", ".bioes", ".iob", ".iob2", ".bmes", ".ner", ".col", ".tags")
"""What files of words with tags are called, besides .txt and .tsv."""
_KINDS = {
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".tab": Kind.TSV,
    ".jsonl": Kind.JSON,
    ".ndjson": Kind.JSON,
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
    ".arrow": Kind.ARROW,
    ".feather": Kind.ARROW,
}
_PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn", "训练", "训练集"), Part.TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "eval", "evaluation", "验证", "验证集"), Part.VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "测试", "测试集"), Part.TEST),
}
_BESIDE_DATA = re.compile(
    r"(read[-_ ]?me|licen[cs]e|copying|citation|changelog|contributing|(md5|sha\d*)(sum)?s?|checksums?"
    r"|stop[-_]?words?|vocab(ulary)?|urls?|说明|停用词)([-_.].*)?",
    re.IGNORECASE,
)
"""Files that come with data and are none, by their names without endings."""
_NOT_LISTED = re.compile(r"\.|__|_(SUCCESS|committed|started|delta|metadata|common)")
"""What hides, and what programs leave beside the tables that they write."""
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "config.json")
_CLASS_FILES = ("class", "classes", "class_names", "labels", "label", "label_names", "categories")
_WITHOUT_LABEL = ("unsup", "unsupervised", "unlabeled", "unlabelled")
_SHARD = re.compile(r"(.*)-(\d{4,6})-of-(\d{4,6})")
_JOIN = (
    "cd {} && mkdir ../LABELS && for d in */; do find \"$d\" -name '*.txt' -exec "
    'sh -c \'for f; do tr "\\n" " " < "$f"; echo; done\' _ {{}} + > "../LABELS/${{d%/}}.txt"; done'
)


# --------------------------------------------------------------------------------------------------------------------
# Names


def _unpacked_name(name: str) -> str:
    lower = name.lower()
    return next((name[: -len(ending)] for ending in ENDINGS if lower.endswith(ending)), name)


def stem_of(name: str) -> str:
    """The name of a file without what says how it is written and packed."""
    return os.path.splitext(_unpacked_name(name))[0]


def kind_by_name(name: str) -> Kind | None:
    """The kind of a table by its ending. None for any other."""
    return _KINDS.get(os.path.splitext(_unpacked_name(name))[1].lower())


def counted_in(name: str) -> str:
    """What places in a file are counted in: lines, or rows where it has no lines."""
    return "row" if kind_by_name(name) in (Kind.PARQUET, Kind.ARROW) else "line"


def is_text(name: str) -> bool:
    """Whether the ending says that it holds texts and no table."""
    return os.path.splitext(_unpacked_name(name))[1].lower() in (".txt", ".text")


def _is_beside(name: str) -> bool:
    return name.lower() in _DESCRIPTIONS or _BESIDE_DATA.fullmatch(stem_of(name)) is not None


def part_of(name: str) -> Part | None:
    """The part that a word of the name says. None where no word does, or several do."""
    words = re.split(r"[\W_]+|(?<=\D)(?=\d)", stem_of(name).casefold())
    found = {_PART_NAMES[word] for word in words if word in _PART_NAMES}
    return found.pop() if len(found) == 1 else None


def is_part(name: str) -> bool:
    """Whether a name, its number aside, is that of a part and nothing else: no label is called so."""
    return re.sub(r"[\W_\d]+", "", stem_of(name).casefold()) in _PART_NAMES


# --------------------------------------------------------------------------------------------------------------------
# The rules


@dataclass
class _Looked:
    """How much was looked at, in all folders together."""

    names: int = 0


@dataclass
class _Folder:
    path: Path
    looked: _Looked = field(default_factory=_Looked)
    depth: int = 0
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises OSError, and InputError where there are too many names."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                self.looked.names += 1
                if self.looked.names > MOST_NAMES:
                    raise InputError(
                        f"{self.path} and what lies beside it are more than {MOST_NAMES:,} files: make one file for each "
                        f"label, such as with {_JOIN.format(shlex.quote(str(self.path.parent if self.depth else self.path)))}"
                    )
                if _NOT_LISTED.match(entry.name):
                    continue
                is_folder = False
                with contextlib.suppress(OSError):  # of a link that leads to itself
                    is_folder = entry.is_dir()
                # What is no file either, a pipe or a link to nowhere, is refused by whoever reads it, not left out unseen.
                (self.folders if is_folder else self.files).append(entry.name)
        self.files.sort()
        self.folders.sort()

    @cached_property
    def tables(self) -> list[str]:
        return [name for name in self.files if kind_by_name(name) is not None and not _is_beside(name)]

    @cached_property
    def texts(self) -> list[str]:
        return [name for name in self.files if is_text(name) and not _is_beside(name)]

    def inside(self, name: str) -> _Folder:
        return _Folder(self.path / name, self.looked, self.depth + 1)

    def left_out(self, names: Iterable[str], why: str) -> tuple[str, ...]:
        """The sentence that says so. There is none where nothing is left out."""
        left = list(names)
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        return (
            (f"{', '.join(left[:3])}{more} in {self.path} {'is' if len(left) == 1 else 'are'} not read: {why}.",)
            if left
            else ()
        )


def look_into(path: Path) -> Layout:
    """What the folder `path` holds. Raises InputError where that is no data, or in doubt, and OSError."""
    folder = _Folder(path)
    if (layout := _layout(folder)) is not None:
        return layout
    seen = [*folder.files, *(f"{name}/" for name in folder.folders)]
    holds = f"only {', '.join(seen[:5])}{' and more' * (len(seen) > 5)}" if seen else "nothing"
    raise InputError(
        f"{path} holds no <label>.txt and no other data that is read ({holds}): name a file of data, or a folder with a "
        "<label>.txt or a folder <label>/ of texts for each label."
    )


def _layout(folder: _Folder) -> Layout | None:
    return next((layout for rule in _RULES if (layout := rule(folder)) is not None), None)


def _dataset_dict(folder: _Folder) -> Layout | None:
    """What `DatasetDict.save_to_disk` wrote."""
    if "dataset_dict.json" not in folder.files:
        return None
    said = _described(folder.path / "dataset_dict.json").get("splits")
    splits = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    parts: dict[Part | None, Sequence[DataFile]] = {}
    for name in splits:
        part = part_of(name)
        if part is not None and part not in parts and name in folder.folders:
            saved = _saved_dataset(folder.inside(name))
            if saved is not None:
                parts[part] = saved.parts[None]
    if Part.TRAIN not in parts and len(splits) != 1:
        has = ", ".join(printable(name[:80]) for name in splits[:8]) or "none"
        raise InputError(
            f"{folder.path} is a DatasetDict without a part for training; it has {has}: name the folder of one of them."
        )
    if not parts and splits[0] in folder.folders:
        return _saved_dataset(folder.inside(splits[0]))
    unread = [name for name in splits if part_of(name) is None]
    return Layout(parts, folder.left_out(unread, "they are parts for neither training nor evaluation"))


def _saved_dataset(folder: _Folder) -> Layout | None:
    """What `Dataset.save_to_disk` wrote."""
    if "state.json" not in folder.files or "dataset_info.json" not in folder.files:
        return None
    state = _described(folder.path / "state.json")
    said = state.get("_data_files")
    names = [each.get("filename") for each in said if isinstance(each, dict)] if isinstance(said, list) else []
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder.path} was saved by an old version of datasets, with its rows in another order than in its files: load it "
            "there, call flatten_indices() and save it again."
        )
    for name in names:
        if name not in folder.files:
            raise InputError(f"{folder.path} lacks its file {str(name)[:100]}: copy the whole folder again.")
    return Layout({None: [DataFile(folder.path / str(name), Kind.ARROW) for name in names]}) if names else None


def _described(file: Path) -> dict[str, object]:
    try:
        found = read_document(file, json.loads)
    except (UnreadableError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}. Save the data set again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} is no description of a data set: save the data set again.")
    return found


def _tables(folder: _Folder) -> Layout | None:
    """Tables: one, or the shards of one, or its parts."""
    if not folder.tables:
        return None
    by_kind: dict[Kind | None, list[str]] = {}
    for name in folder.tables:
        by_kind.setdefault(kind_by_name(name), []).append(name)
    trained = [kind for kind, names in by_kind.items() if any(part_of(name) is Part.TRAIN for name in names)]
    if len(by_kind) > 1 and len(trained) != 1:
        first, second, *_ = (names[0] for names in by_kind.values())
        raise InputError(
            f"It is not clear which data in {folder.path} are meant: {first} and {second} are of different kinds. "
            "Name one of them."
        )
    kind = trained[0] if trained else next(iter(by_kind))
    assert kind is not None
    parts: dict[Part | None, list[str]] = {}
    for name in by_kind[kind]:
        parts.setdefault(part_of(name) if len(by_kind[kind]) > 1 else None, []).append(name)
    others = parts.pop(None, []) if Part.TRAIN in parts else []
    for names in parts.values():
        _refuse_missing_shards(folder, names)
    unread = [name for name in folder.tables if name not in by_kind[kind]] + others
    return Layout(
        {part: [DataFile(folder.path / name, kind) for name in names] for part, names in parts.items()},
        folder.left_out([*unread, *folder.texts], "their names are those of no part"),
    )


def _refuse_missing_shards(folder: _Folder, names: list[str]) -> None:
    """Raises InputError where a shard says that it is one of more than there are."""
    shards: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _SHARD.match(stem_of(name)):
            shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), there in shards.items():
        missing = next((number for number in range(min(count, MOST_NAMES)) if number not in there), None)
        if missing is not None:
            raise InputError(
                f"{folder.path} lacks {stem}-{missing:05}-of-{count:05}; {len(there)} of its {count} shards are there: "
                "copy the rest."
            )


def _texts(folder: _Folder) -> Layout | None:
    """Files of texts. Raises InputError where folders of texts lie beside them."""
    if not folder.texts:
        return None
    layout = text_files([folder.path / name for name in folder.texts], folder.path)
    beside = _document_folders(folder) if None in layout.parts else {}
    if any(is_text(name) for names in beside.values() for name in names):
        raise InputError(
            f"It is not clear where the labels in {folder.path} are: it has files such as {folder.texts[0]} and folders "
            f"such as {next(iter(beside))}/ with texts. Move one of the two kinds elsewhere."
        )
    unread = [name for name in folder.files if is_text(name) and _is_beside(name)]
    return layout._replace(notes=(*layout.notes, *folder.left_out(unread, "by its name it is no label")))


def text_files(paths: Sequence[Path], where: Path | None = None) -> Layout:
    """What files of texts are: one for each label, or tables with tabs in parts. Raises InputError where that is in doubt."""
    class_file = next((path for path in paths if stem_of(path.name).casefold() in _CLASS_FILES), None)
    begin = _common_begin([path.name for path in paths if path != class_file])
    others = [path for path in paths if path != class_file and not (begin and _is_beside(path.name[begin:]))]
    all_say = len(others) > 1 and all(part_of(path.name) for path in others)  # reviews_train.txt, reviews_test.txt
    parts: dict[Part | None, list[Path]] = {}
    for path in others:
        if all_say or is_part(path.name):
            parts.setdefault(part_of(path.name), []).append(path)
    if not parts:
        return Layout({None: [DataFile(path, Kind.TEXTS, stem_of(path.name)) for path in paths]})
    if Part.TRAIN not in parts or not all(map(has_tabs, parts[Part.TRAIN])):
        named = ", ".join(path.name for path in paths[:6])
        raise InputError(
            f"By their names some of the files in {where or paths[0].parent} are parts and not labels ({named}): name the one "
            "to train on, with a label and a text on each line and a tab between, or rename what is a label."
        )
    unread = [path.name for path in paths if path != class_file and not any(path in named for named in parts.values())]
    notes = (
        (f"{', '.join(unread[:3])} beside train and test {'is' if len(unread) == 1 else 'are'} not read.",) if unread else ()
    )
    return Layout({part: [tabbed_file(path, class_file) for path in files] for part, files in parts.items()}, notes)


def _common_begin(names: Sequence[str]) -> int:
    """How many characters all names begin with alike, up to a sign, as in cnews.train.txt and cnews.vocab.txt."""
    first, last = min(names), max(names)
    alike = next((place for place, sign in enumerate(first) if not last.startswith(first[: place + 1])), len(first))
    return next((place + 1 for place in reversed(range(alike)) if not first[place].isalnum()), 0) if len(names) > 2 else 0


def tabbed_file(path: Path, class_file: Path | None) -> DataFile:
    """A file of texts with a tab on each line: with the names of its numbers, if it has any."""
    fields = _first_line(path).split("\t")
    if class_file is None or not any(field.isdigit() for field in (fields[0], fields[-1])):
        return DataFile(path, Kind.TSV)
    names = tuple(line.strip() for line in islice(lines(class_file), _MOST_CLASS_NAMES) if line.strip())
    return DataFile(path, Kind.NUMBERED, label_names=names)


def class_file_beside(path: Path) -> Path | None:
    """The file that says what the numbers in `path` stand for. None where there is none."""
    beside = (path.with_name(f"{stem}.txt") for stem in _CLASS_FILES)
    return next((each for each in beside if each != path and each.is_file()), None)


def has_tabs(path: Path) -> bool:
    """Whether the first line has one, which makes the file a table."""
    return "\t" in _first_line(path)


def has_tagged_words(path: Path) -> bool:
    """Whether the first lines are words with tags such as O and B-LOC in the last column."""
    seen = [line.split() for line in islice(lines(path), _LINES_LOOKED_AT)]
    last = [words[-1] for words in seen if len(words) > 1]
    slashed = [word for words in seen for word in words if re.fullmatch(r"[^/]+/[A-Za-z]{1,3}(\][A-Za-z]{1,3})?", word)]
    if len(slashed) > max(2, 0.9 * sum(map(len, seen))):
        return True
    return len({*last} - {"O"}) > 0 and all(_TAG.fullmatch(tag) for tag in last)


def sign_between_fields(path: Path) -> str | None:
    """The sign that each of the first lines has once. None where there is no such one."""
    seen = [line for line in islice(lines(path), _LINES_LOOKED_AT) if line.strip()]
    return next((sign for sign in ";|" if len(seen) > 1 and all(line.count(sign) == 1 for line in seen)), None)


def _first_line(path: Path) -> str:
    return next((line.strip("\r\n") for line in lines(path) if line.strip()), "")


def _document_folders(folder: _Folder) -> dict[str, Sequence[str]]:
    """The texts in each folder that has any; parts are none of them."""
    found = {}
    for name in folder.folders[: _MOST_FOLDERS + 1] if folder.depth < _DEPTH else ():
        if not is_part(name) and (texts := documents_of(folder.inside(name).files)):
            found[name] = texts
    return found


def documents_of(files: Sequence[str]) -> Sequence[str]:
    """Of the files in one folder those that are a text each. Collections of mails and news have none with an ending."""
    return [name for name in files if is_text(name)] or ([] if any("." in name for name in files) else files)


def _documents(folder: _Folder) -> Layout | None:
    """A folder of texts for each label: one text a file, or where each has one file only, one text a line."""
    found = _document_folders(folder)
    unlabelled = [name for name in found if name.casefold() in _WITHOUT_LABEL]
    labels = {name: texts for name, texts in found.items() if name not in unlabelled}
    if not labels:
        return None
    notes = folder.left_out(unlabelled, "its texts have no label") + folder.left_out(
        [name for name in folder.files if is_text(name)], "the texts are in its folders"
    )
    if all(len(texts) == 1 for texts in labels.values()):
        files = [DataFile(folder.path / name / texts[0], Kind.TEXTS, name) for name, texts in labels.items()]
        return Layout({None: files}, (*notes, f"Each folder in {folder.path} has one file, which is read as one text a line."))
    return Layout({None: [DataFile(folder.path / name, Kind.DOCUMENTS, name) for name in labels]}, notes)


def documents(folder: Path) -> Iterator[Path]:
    """The files of a folder that are a text each, in the order of their names. Raises OSError, and InputError."""
    return (folder / name for name in documents_of(_Folder(folder).files))


def _part_folders(folder: _Folder) -> Layout | None:
    """`train/` and `test/`, each with data of its own."""
    named = [name for name in folder.folders if is_part(name)]
    if not named and len(folder.folders) > 1 and all(map(part_of, folder.folders)):
        named = folder.folders  # 20news-bydate-train, 20news-bydate-test
    if folder.depth >= _DEPTH or not named:
        return None
    parts: dict[Part | None, Sequence[DataFile]] = {}
    notes: tuple[str, ...] = ()
    for name in named:
        part, inner = part_of(name), _layout(folder.inside(name))
        if inner is not None and part is not None and part not in parts:
            parts[part] = inner.parts.get(None) or inner.parts.get(part) or ()
            notes += inner.notes
    return Layout(parts, notes) if parts.get(Part.TRAIN) else None


def _folder_in_folder(folder: _Folder) -> Layout | None:
    """What archives unpack to, and a hub's repository, which keeps its tables in `data/`."""
    return _layout(folder.inside(folder.folders[0])) if folder.depth < _DEPTH and len(folder.folders) == 1 else None


_RULES: tuple[Callable[[_Folder], Layout | None], ...] = (
    _dataset_dict,
    _saved_dataset,
    _tables,
    _part_folders,
    _texts,
    _documents,
    _folder_in_folder,
)
