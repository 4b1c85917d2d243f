"""Which columns of a task's data count: as named, or by a usual name, or by what the first rows hold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.rows import names_columns_in_first_line, read_rows
from memsup.shared.data.sources import Source
from memsup.shared.data.tables import is_place
from memsup.shared.paths import is_text

_SAMPLE_ROWS = 1000
"""Columns are found in the first rows, so that `start` and the worker find the same ones whatever time they have."""
_SAMPLE_CHARS = 64 << 20
"""Of rows with long texts fewer are enough."""
_TEXT_NAMES = ["text", "文本", "sentence", "句子", "review", "评论", "评价", "content", "内容", "正文", "comment", "body"]
_LABEL_NAMES = ["label", "labels", "标签", "sentiment", "情感", "class", "category", "类别", "分类", "target", "y"]


class Columns(NamedTuple):
    """The names of the two columns that count."""

    text: str
    label: str


def find_columns(source: Source, text: str | None = None, label: str | None = None) -> Columns:
    """The columns of text and label: as named, or by a usual name, or by what the first rows hold. Raises InputError where
    that leaves a doubt, and for data without rows.
    """
    sample, left = [], _SAMPLE_CHARS
    by_place = [name for name in (text, label) if name is not None and is_place(name)]
    for row in islice(read_rows(source, by_place or None), _SAMPLE_ROWS):
        sample.append(row.values)
        left -= sum(len(value) for value in row.values.values() if isinstance(value, str | list | dict))
        if left < 0:
            break
    if not sample:
        raise InputError(
            f"{source} has no rows{' below the names of its columns' * names_columns_in_first_line(source)}: add some."
        )
    columns = list(dict.fromkeys(chain.from_iterable(sample)))
    for key, named in (("text", text), ("label", label)):
        if named is not None and named not in columns:
            near = difflib.get_close_matches(named, columns, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{source} has no column {named!r} (task.{key}). {hint}Its columns are {listed(columns)}.")
    if text is not None and text == label:
        raise InputError(f"task.text and task.label both name the column {text!r}: name two different ones.")
    seen = {name: [str(row[name]) for row in sample if row.get(name) not in (None, "")] for name in columns}
    if label is None:
        label = _find_label({name: values for name, values in seen.items() if name != text}, source)
    if text is None:
        text = _find_text({name: values for name, values in seen.items() if name != label}, source)
    for name in (text, label):
        if not is_text(name):
            raise InputError(f"The name of the column {name!r} of {source} holds half a character: write it in UTF-8.")
    return Columns(text, label)


def _find_label(seen: dict[str, list[str]], source: Source) -> str:
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
    found = f"{listed(fits)} could all be it" if fits else f"none of {listed(list(seen))} has a few values that repeat"
    raise InputError(f"It is not clear which column of {source} holds the label: {found}. Name it with task.label.")


def _find_text(seen: dict[str, list[str]], source: Source) -> str:
    """The column of texts: by name, or else the one whose values are by far the longest. Raises InputError."""
    if (named := _by_name(seen, _TEXT_NAMES)) is not None:
        return named
    lengths = sorted(((sum(map(len, values)) / len(values), name) for name, values in seen.items() if values), reverse=True)
    if lengths and (len(lengths) == 1 or lengths[0][0] > 2 * lengths[1][0]):
        return lengths[0][1]
    raise InputError(
        f"It is not clear which column of {source} holds the text; besides the label it has {listed(list(seen)) or 'none'}. "
        "Name it with task.text."
    )


def _by_name(columns: Iterable[str], usual: Sequence[str]) -> str | None:
    by_folded = {name.strip().casefold(): name for name in reversed(list(columns))}
    return next((by_folded[name] for name in usual if name in by_folded), None)


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
