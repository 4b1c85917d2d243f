"""A task's rows as it sees them: one text and one label each, or refused by file and line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from memsup.shared.data.columns import Columns, listed
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.layout import counted_in
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import Source
from memsup.shared.data.switches import is_multi_hot, is_on
from memsup.shared.data.targets import ProblemType, as_score, several_labels


class Example(NamedTuple):
    """One row. `text` may be blank (`is_blank`), which is for the reader to leave out; `label` never is."""

    text: str
    label: str
    """As it is written; of a score it is a number (`as_score`). Several are joined by bars."""
    file: Path
    line: int
    """The line on which the row begins, as `Row` counts it."""
    text_pair: str | None = None
    """The second text of a pair. It is None where there are no pairs."""
    labels: tuple[str, ...] = ()
    """The labels, where a text has several; empty too for a row that has none of them."""
    mark: str = ""
    """What another column says of the row (`marks.py`); empty where none does."""


def read_examples(
    source: Source,
    columns: Columns,
    known_labels: frozenset[str] | None = None,
    *,
    only: frozenset[str] | None = None,
    problem_type: ProblemType = "single_label_classification",
    marks: str | None = None,
) -> Iterator[Example]:
    """All rows in their order, one by one; of several labels `only` those, where that is given. Raises InputError at the first
    that cannot be used: broken, undecodable, without a label, or with one that is no number where that is learnt, or else not
    among `known_labels`. `marks` is the column that gives each its mark.
    """
    for file, line, values in read_rows(source, [*columns.names(), *filter(None, (marks,))]):
        value = values.get(columns.label)
        labels: tuple[str, ...] = ()
        if problem_type == "multi_label_classification":
            labels = tuple(label for label in _several(values, columns, file, line) if only is None or label in only)
            value = "|".join(labels)
        elif isinstance(value, list | tuple):
            raise NoTaskError(
                f"{at(file, line)}: column {columns.label!r} holds a list, but a text has one label here. To learn "
                "several a text: --set task.problem_type=multi_label_classification. Or name another column with task.label."
            )
        label = as_text(value, columns.label, file, line).strip()
        if not label and problem_type != "multi_label_classification":
            raise InputError(f"{at(file, line)} has no label in column {columns.label!r}: fill it in or delete the row.")
        if problem_type == "regression":
            if as_score(label) is None:
                raise InputError(
                    f"{at(file, line)}: {label[:40]!r} in column {columns.label!r} is no number, and numbers are what is "
                    "learnt here (task.problem_type): write it with digits and a point alone, or delete the row."
                )
        elif known_labels is not None and (unknown := {*(labels or filter(None, (label,)))} - known_labels):
            raise InputError(
                f"{at(file, line)}: the label {min(unknown)!r} does not occur in the training data, which has "
                f"{listed(sorted_labels(known_labels))}: correct it, or add such rows to the training data."
            )
        pair = columns.text_pair
        yield Example(
            text=as_text(values.get(columns.text), columns.text, file, line),
            label=label,
            file=file,
            line=line,
            text_pair=None if pair is None else as_text(values.get(pair), pair, file, line),
            labels=labels,
            mark=str(mark) if marks and isinstance(mark := values.get(marks), str | int) else "",
        )


def _several(values: dict[str, object], columns: Columns, file: Path, line: int) -> Sequence[str]:
    """The labels of a row that may have any number of them, each once. Raises InputError."""
    if columns.switches:
        switches = {name: as_text(values.get(name), name, file, line) for name in columns.switches}
        for name, cell in switches.items():
            if is_on(cell) is None:
                raise InputError(
                    f"{at(file, line)}: {cell[:40]!r} in column {name!r} is neither 0 nor 1: correct it, or name the columns "
                    "that are labels with task.labels."
                )
        return [name for name, cell in switches.items() if is_on(cell)]
    value = values.get(columns.label)
    if isinstance(value, list | tuple):
        cells = [as_text(one, columns.label, file, line).strip() for one in value]
        found: Sequence[str] = list(filter(None, dict.fromkeys(cells)))
    else:
        text = as_text(value, columns.label, file, line)
        cells, found = re.split(r"[\s,]+", text.strip("[] ")), several_labels(text)
    if is_multi_hot(cells):
        raise InputError(
            f"{at(file, line)}: the list in column {columns.label!r} has 0 or 1 for each label and not their names: write the "
            "names of those that are 1, or a column of 0 and 1 for each label."
        )
    return found


def at(file: Path, line: int) -> str:
    """File and line as the beginning of a sentence."""
    return f"{file}, {counted_in(file.name)} {line}"


def as_text(value: object, column: str, file: Path, line: int) -> str:
    match value:
        case str():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer can take
                half = f"\\u{ord(value[error.start]):04x}"
                raise InputError(
                    f"{at(file, line)}: column {column!r} holds half a character ({half} without its other half): delete it."
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
        f"{at(file, line)}: column {column!r} holds a {type(value).__name__}, not a text or number: name another column."
    )


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The order in which labels get their numbers: as numbers where all are whole numbers, otherwise as text."""
    names = list(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_blank(text: str, text_pair: str | None = None) -> bool:
    """Whether a row says nothing: of two texts, one may."""
    return (not text or text.isspace()) and (not text_pair or text_pair.isspace())
