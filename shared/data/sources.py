"""Where a task's data lie: which files, and of what kind each is."""

from __future__ import annotations

import difflib
import enum
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memsup.shared.data.errors import InputError

_EXTRAS = {"snownlp": "memsup[demo]"}


class Kind(enum.Enum):
    """How a file's rows are written."""

    CSV = enum.auto()
    TSV = enum.auto()
    JSON = enum.auto()
    PARQUET = enum.auto()
    TEXTS = enum.auto()
    """One text a line, all with the label that the file's name says."""


_ENDINGS = {
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".tab": Kind.TSV,
    ".jsonl": Kind.JSON,
    ".ndjson": Kind.JSON,
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
}


@dataclass(frozen=True)
class DataFile:
    """One file of a task's data."""

    path: Path
    kind: Kind
    label: str | None = None
    """The label of all its rows. It is None where each row has its own."""


@dataclass(frozen=True)
class Source:
    """The files that one setting names, in the order in which their rows come. `str()` is its name in messages."""

    name: str
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()
    """What was decided about the files that a person might have meant otherwise, each a sentence."""
    evaluation: Source | None = None
    """What lies beside the training data to evaluate on. None means that nothing does."""

    def __str__(self) -> str:
        return self.name


def locate(value: str | Sequence[str], *, evaluates: bool = False) -> Source:  # noqa: ARG001 - no folder has parts yet
    """The files that `value` names: a path, or `package:NAME/PATH` inside an installed package, which is found without being
    imported; or several of these. Of a folder with several parts, `evaluates` takes the one that is not for training. Raises
    InputError.
    """
    assert isinstance(value, str)
    path = _inside_package(value) if value.startswith("package:") else Path(value)
    try:
        if path.is_dir():
            return Source(str(path), _label_files(path))
        if path.is_file():
            return Source(str(path), (DataFile(path, _kind_of(path)),))
        problem = f"{path} is neither a file nor a folder" if path.exists() else f"There is no {str(path)[:300]}"
    except OSError as error:
        problem = f"{str(path)[:300]} cannot be looked at: {error.strerror}"
    raise InputError(f"{problem}: check the path of the data{_nearest_file(path)}.")


def _label_files(folder: Path) -> tuple[DataFile, ...]:
    files = sorted(file for file in folder.glob("*.txt") if not file.is_dir() and not file.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no <label>.txt: a folder of data has one such file for each label, one text a line.")
    return tuple(DataFile(file, Kind.TEXTS, file.stem) for file in files)


def _kind_of(path: Path) -> Kind:
    if (kind := _ENDINGS.get(path.suffix.lower())) is not None:
        return kind
    raise InputError(
        f"{path} has the unknown ending {path.suffix.lower()!r}: save the data as .csv, .tsv, .jsonl or .parquet (UTF-8), "
        "or make a folder with one <label>.txt for each label."
    )


def _inside_package(source: str) -> Path:
    name, _, inside = source.removeprefix("package:").partition("/")
    if not name.isidentifier():
        raise InputError(f"{source} names no package: write it as package:NAME/PATH.")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The data lie in the package {name}, which is not installed: pip install '{_EXTRAS.get(name, name)}'")
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
