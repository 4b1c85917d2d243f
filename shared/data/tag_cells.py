"""What stands in cells that hold several things: lists, written in whichever way, of words or of messages, and spans. Pure."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice

_STARTS, _ENDS = ("start", "begin", "start_offset", "start_char", "from"), ("end", "stop", "end_offset", "end_char", "to")
_LABELS = ("label", "type", "tag", "entity", "entity_group", "entity_type", "category", "labels")
_SAID = ("text", "word", "surface", "mention", "value")
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
"""What in a message says who speaks, and what is said."""
_TAG = re.compile(r"O|[BIESLUMW]-\S{1,40}")
_ENOUGH = 0.9
_WORDS = ("tokens", "words", "token", "word", "chars", "sentence_tokens")
"""What a column with lists of words is called."""
_ONE = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+)"""
_WITHOUT_COMMAS = re.compile(rf"\[\s*{_ONE}(?:\s+{_ONE})*\s*\]", re.DOTALL)
"""A list of words or numbers as numpy prints it, in which Python would read neighbouring words as a single one."""


def as_list(cell: object) -> list[object] | None:
    """The list in a cell, which may be written as a program writes it. None means that there is none."""
    if isinstance(cell, list | tuple):
        return list(cell)
    if not isinstance(cell, str) or cell.strip()[:1] != "[" or cell.strip()[-1:] != "]":
        return None
    for read in (json.loads, _without_commas, ast.literal_eval):
        try:
            found = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(found) if isinstance(found, list | tuple) else None
    return None


def _without_commas(cell: str) -> list[object]:
    """The list that numpy has printed there. Raises ValueError where that is not how it is written."""
    if _WITHOUT_COMMAS.fullmatch(cell.strip()) is None:
        raise ValueError(cell[:20])
    return [ast.literal_eval(one) for one in re.findall(_ONE, cell)]


def as_words(cell: object) -> list[str] | None:
    """The words or tags in a cell: a list of them, or text with blanks between. None means that it holds something else."""
    found = as_list(cell)
    if found is None:
        return cell.split() if isinstance(cell, str) else None
    words = [str(word) if isinstance(word, int) and not isinstance(word, bool) else word for word in found]
    return [word for word in words if isinstance(word, str)] if all(isinstance(word, str) for word in words) else None


def are_several(cell: object) -> bool:
    """Whether a cell is a list of words, or text of several."""
    words = as_words(cell)
    return words is not None and (len(words) > 1 or as_list(cell) is not None)


def are_as_long(rows: Sequence[Mapping[str, object]], one: str, other: str) -> bool:
    """Whether nearly all rows have as many words in the one column as in the other."""
    lengths = [(len(as_words(row.get(one)) or ()), len(as_words(row.get(other)) or ())) for row in rows]
    return sum(first == second for first, second in lengths) > _ENOUGH * len(lengths)


def are_tags(cells: Sequence[object]) -> bool:
    """Whether these are tags such as O and B-LOC alone, and not all O."""
    tags = {tag for cell in cells for tag in as_words(cell) or ()}
    return tags > {"O"} and all(map(_TAG.fullmatch, tags))


def span_parts(span: object) -> tuple[object, object, object, object] | None:
    """Start, end, label and, where it is told, the text of a span. None means that it is none."""
    if isinstance(span, list | tuple):
        return (*span[:3], None) if len(span) == 3 else None
    if not isinstance(span, dict):
        return None
    start, end, label, said = (
        next((span[key] for key in keys if span.get(key) is not None), None) for keys in (_STARTS, _ENDS, _LABELS, _SAID)
    )
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    return None if start is None or end is None or label is None else (start, end, label, said)


def hold_spans(rows: Sequence[Mapping[str, object]], name: str) -> bool:
    """Whether a column has lists of spans, some of which have any."""
    cells = (as_list(row.get(name)) for row in rows)
    spans = [span_parts(span) for span in islice((span for cell in cells for span in cell or ()), 100)]
    return bool(spans) and all(parts is not None and isinstance(parts[0], int) for parts in spans)


def hold_messages(rows: Sequence[Mapping[str, object]], name: str) -> bool:
    """Whether the first rows of a column have lists of messages, each with who says it and what."""
    cells = [as_list(row.get(name)) for row in rows[:10]]
    messages = [message for cell in cells for message in cell or ()]
    return bool(messages) and all(
        isinstance(message, dict) and any(key in message for key in ROLE_KEYS) and any(key in message for key in CONTENT_KEYS)
        for message in messages
    )


def hold_tags(rows: Sequence[Mapping[str, object]]) -> bool:
    """Whether rows are sentences with tags: a list of words and one of as many tags, or a text with spans."""
    rows = rows[:100]
    names = list(rows[0])
    if any(hold_spans(rows, name) for name in names) and any(isinstance(rows[0].get(name), str) for name in names):
        return True
    if any(are_tags([row.get(name) for row in rows]) for name in names):
        return True
    lists = [name for name in names if all(as_list(row.get(name)) is not None for row in rows)]
    words = [name for name in lists if name.casefold() in _WORDS]
    return any(are_as_long(rows, one, other) for one in words for other in lists if one != other)
