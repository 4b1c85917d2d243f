"""Which columns of a task's data count: as named, or by a usual name, or by what the first rows hold."""

from __future__ import annotations

import difflib
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.layout import part_of, stem_of
from memsup.shared.data.marks import are_marks
from memsup.shared.data.rows import names_columns_in_first_line, read_rows
from memsup.shared.data.sources import Source
from memsup.shared.data.switches import FEWEST, switches
from memsup.shared.data.tables import is_place
from memsup.shared.data.tag_cells import hold_messages, hold_tags
from memsup.shared.data.targets import ProblemType, as_score
from memsup.shared.paths import is_text

_SAMPLE_ROWS = 1000
"""Columns are found in the first rows, so that `start` and the worker find the same ones whatever time they have."""
_CELL_CHARS = 300
_SAMPLE_CHARS = 64 << 20
"""Of rows with long texts fewer are enough."""
_MOST_NAMED_LABELS = 100
_TEXT_NAMES = ["text", "文本", "sentence", "句子", "review", "评论", "评价", "content", "内容", "正文", "comment", "body"]
_SCORE_NAMES = ["score", "scores", "rating", "stars", "得分", "评分", "分数", "星级"]
INSTRUCTION_NAMES = ("instruction", "instructions", "指令")
PROMPT_NAMES = ("prompt", "question", "query", "user", "human", "问题", "提问")
ANSWER_NAMES = ("completion", "response", "answer", "output", "assistant", "reply", "回答", "答案", "回复")
LABEL_NAMES = ["label", "labels", "标签", "sentiment", "情感", "class", "category", "类别", "分类", "target", "y"]


class Columns(NamedTuple):
    """The names of the columns that count."""

    text: str
    label: str
    """The column with the label; of several columns of 0 and 1 their names, for a sentence."""
    text_pair: str | None = None
    """The column with a second text. None means that each row has one text."""
    switches: tuple[str, ...] = ()
    """Columns of 0 and 1, each of which is a label, in the place of one column with labels."""

    def names(self) -> list[str]:
        """All of them, as the files have them."""
        labels = self.switches or (self.label,)
        return [self.text, *labels, *([] if self.text_pair is None else [self.text_pair])]


@dataclass(frozen=True)
class Table:
    """What the first rows hold in all their columns, and what was said of these."""

    columns: Columns
    values: Mapping[str, Sequence[str]]
    """Column → its values in the first rows, cut to their beginnings; "" where a row has none."""
    given: frozenset[str] = frozenset()
    """Which of text, label and text_pair a person named."""
    label_is_file_name: bool = False
    """Whether the labels are the names of files or folders."""
    problem_type: ProblemType = "single_label_classification"
    """What is learnt of each row."""
    marks: str | None = None
    """The column, none of `columns`, that says of each row whether it is meant. None means that none does."""
    file_names: tuple[str, ...] = ()
    """The names of the files, without endings, where each is a word of its own as a label is, and no shard's or part's."""


def find_columns(
    source: Source,
    text: str | None = None,
    label: str | None = None,
    text_pair: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> Columns:
    """The columns of text and label: as named, or by a usual name, or by what the first rows hold; a second text only as named.
    Several labels may be several columns of 0 and 1, all or those of `labels`. Raises InputError where that leaves a doubt, and
    for data without rows.
    """
    return look_at_columns(source, text, label, text_pair, labels=labels, problem_type=problem_type).columns


def look_at_columns(
    source: Source,
    text: str | None = None,
    label: str | None = None,
    text_pair: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType = "single_label_classification",
) -> Table:
    """The columns as `find_columns` finds them, with what stands in all of them. Raises InputError as that does."""
    sample, chars_left = [], _SAMPLE_CHARS
    by_place = [name for name in (text, label) if name is not None and is_place(name)]
    for row in islice(read_rows(source, by_place or None), _SAMPLE_ROWS):
        sample.append(row.values)
        chars_left -= sum(len(value) for value in row.values.values() if isinstance(value, str | list | dict))
        if chars_left < 0:
            break
    if not sample:
        raise InputError(
            f"{source} has no rows{' below the names of its columns' * names_columns_in_first_line(source)}: add some."
        )
    if len(sample) == 1:
        _refuse_a_whole_table(source, sample[0])
    names = list(dict.fromkeys(chain.from_iterable(sample)))
    if label is None and (dialogues := next((name for name in names if hold_messages(sample, name)), None)) is not None:
        raise NoTaskError(
            f"{source} has dialogues in column {dialogues[:100]!r}, and a text has a label of its own here. To learn what the "
            "assistant says: --set task.kind=causal-lm"
        )
    if len(names) == 1 and names_columns_in_first_line(source):
        raise NoTaskError(
            f"{source} has one column only, {names[0][:100]!r}: put a comma, a semicolon, a tab or | between text and label. "
            "To learn to go on with such texts: --set task.kind=causal-lm"
        )
    if label is None and hold_tags(sample):
        raise NoTaskError(
            f"{source} has sentences with tags or spans, and a text has a label of its own here. To learn those of words: "
            "--set task.kind=token-classification. Or name the column with task.label."
        )
    given = [(key, name) for key, name in (("text", text), ("label", label), ("text_pair", text_pair)) if name is not None]
    for key, name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{source} has no column {name!r} (task.{key}). {hint}Its columns are {listed(names)}.")
    for (key, name), (other_key, other) in itertools.combinations(given, 2):
        if name == other:
            raise InputError(f"task.{key} and task.{other_key} both name the column {name!r}: name two different ones.")
    seen = {name: [str(row[name]) for row in sample if row.get(name) not in (None, "")] for name in names}
    left = {name: values for name, values in seen.items() if name not in (text, text_pair)}
    several: tuple[str, ...] = ()
    if label is None and problem_type == "multi_label_classification":
        several = _find_switches(left, labels, source)
    if several:
        label = ", ".join(several)
    elif label is None:
        label = _find_score(left, source) if problem_type == "regression" else _find_label(left, source)
    if text is None:
        taken = (*(several or (label,)), text_pair)
        text = _find_text({name: values for name, values in seen.items() if name not in taken}, source)
    columns = Columns(text, label, text_pair, several)
    for name in columns.names():
        if not is_text(name):
            raise InputError(f"The name of the column {name!r} of {source} holds half a character: write it in UTF-8.")
    return Table(
        columns=columns,
        values={name: [_cell(row.get(name)) for row in sample] for name in names},
        given=frozenset(key for key, _ in given),
        label_is_file_name=all(file.label is not None for file in source.files),
        problem_type=problem_type,
        marks=next((name for name, values in seen.items() if name not in columns.names() and are_marks(name, values)), None),
        file_names=_words_for_names(source),
    )


def look_for_the_same(source: Source, train: Table) -> Table:
    """What stands in the columns of evaluation data, which are those of the training data. Raises InputError."""
    text, label, text_pair, several = train.columns
    named = None if several else label
    return look_at_columns(source, text, named, text_pair, labels=several or None, problem_type=train.problem_type)


def _refuse_a_whole_table(source: Source, row: Mapping[str, object]) -> None:
    """Raises InputError where the only object of a JSON file has all rows inside of it."""
    file = shlex.quote(str(source.files[0].path))
    lists = [name for name, values in row.items() if isinstance(values, list) and values and isinstance(values[0], dict)]
    if lists:
        raise InputError(
            f"{source} is one JSON object, with rows inside of {listed(lists)}. This writes "
            f"{'them' if len(lists) == 1 else f'those of {lists[0]!r}'} one on a line: "
            f"jq -c {shlex.quote(f'.[{json.dumps(lists[0])}][]')} {file} > rows.jsonl"
        )
    columns = [len(values) for values in row.values() if isinstance(values, list | dict) and len(values) > 1]
    if len(columns) > 1 and len(set(columns)) == 1:
        of_dict = any(isinstance(values, dict) for values in row.values())
        read = "pandas.read_json(sys.argv[1])" if of_dict else "pandas.DataFrame(json.load(open(sys.argv[1])))"
        program = f"import json, pandas, sys; {read}.to_json(sys.argv[2], orient='records', lines=True)"
        raise InputError(
            f"{source} is one JSON object that holds a table column by column. This writes one row on a line: "
            f'python -c "{program}" {file} rows.jsonl'
        )


def _words_for_names(source: Source) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(stem_of(file.path.name) for file in source.files[:_MOST_NAMED_LABELS]))
    return names if len(names) > 1 and all(name.isalpha() and part_of(name) is None for name in names) else ()


def usual_text(columns: Sequence[str]) -> str | None:
    """The column that is called as those with texts are, or the only one. Returns None where that tells none."""
    return columns[0] if len(columns) == 1 else _by_name(columns, _TEXT_NAMES)


def is_usual_name(name: str) -> bool:
    """Whether people call a column so that holds texts or labels."""
    return name.strip().casefold() in (*_TEXT_NAMES, *LABEL_NAMES)


def fits_label(values: Sequence[str]) -> bool:
    """Whether these values of a column, none of them empty, are few, short and repeated."""
    return 2 <= len(set(values)) <= max(2, min(100, len(values) // 4)) and sum(map(len, values)) / len(values) <= 64


def _cell(value: object) -> str:
    return "" if value is None else str(value)[:_CELL_CHARS].strip()


def _find_label(seen: dict[str, list[str]], source: Source) -> str:
    """The column of labels: by name, or else the only one of few, short, repeated values. Raises InputError."""
    if (named := _by_name(seen, LABEL_NAMES)) is not None:
        return named
    fits = [name for name, values in seen.items() if fits_label(values)]
    if all(are_marks(name, seen[name]) for name in fits) and _by_name(seen, _TEXT_NAMES) is not None:
        # Many classes, beside a column that is surely none.
        others = [
            name
            for name, values in seen.items()
            if values and 3 * len(set(values)) <= len(values) and len(max(values, key=len)) <= 64
        ]
        fits = [name for name in others if name not in fits] or fits
    if len(fits) > 1:
        fits = [name for name in fits if name.strip().casefold() not in _TEXT_NAMES]
    if len(fits) == len(seen) == 2:  # short texts that repeat, such as names, beside what they are
        few, many = sorted(fits, key=lambda name: len(set(seen[name])))
        if len(set(seen[many])) >= max(20, 5 * len(set(seen[few]))):
            return few
    if len(fits) == 1:
        return fits[0]
    if len(several := switches({name: seen[name] for name in fits})) >= FEWEST:
        raise NoTaskError(
            f"{source} has {len(several)} columns of 0 and 1 ({listed(several)}): to learn one of them, name it with "
            "task.label. To learn them all, or those that task.labels names: "
            "--set task.problem_type=multi_label_classification"
        )
    found = f"{listed(fits)} could all be it" if fits else f"none of {listed(list(seen))} has a few values that repeat"
    numbers = [name for name in _numbers(seen) if name not in fits and not _are_ids(seen[name])]
    other = f" To learn {numbers[0]!r} as a number: --set task.problem_type=regression" if len(numbers) == 1 else ""
    asked, answer = _by_name(seen, [*INSTRUCTION_NAMES, *PROMPT_NAMES]), _by_name(seen, ANSWER_NAMES)
    if asked is not None and answer is not None:
        other += f" To learn {answer!r} as the answer to {asked!r}: --set task.kind=causal-lm"
    raise InputError(f"It is not clear which column of {source} holds the label: {found}. Name it with task.label.{other}")


def _find_switches(seen: dict[str, list[str]], labels: Sequence[str] | None, source: Source) -> tuple[str, ...]:
    """The columns of which each is a label: those of `labels`, or all of 0 and 1. There are none where one column holds the
    labels. Raises InputError where it could be either.
    """
    if labels is not None and all(name in seen for name in labels):
        return tuple(labels)
    several = switches(seen)
    if len(several) < FEWEST:
        return ()
    named = _by_name(seen, LABEL_NAMES)
    if named is not None and named not in several:
        raise InputError(
            f"It is not clear where the labels of {source} are: in column {named!r}, for which set task.label={named}, or in "
            f"those of 0 and 1, for which set task.labels={','.join(several)}"
        )
    return tuple(several)


def _find_score(seen: dict[str, list[str]], source: Source) -> str:
    """The column of numbers: by name, or else the only one. Raises InputError."""
    if (named := _by_name(seen, [*LABEL_NAMES, *_SCORE_NAMES])) is not None:
        return named
    numbers = _numbers(seen)
    if len(numbers) == 1:
        return numbers[0]
    found = f"{listed(numbers)} could all be it" if numbers else f"none of {listed(list(seen))} holds numbers alone"
    raise InputError(f"It is not clear which column of {source} holds the number to learn: {found}. Name it with task.label.")


def _numbers(seen: dict[str, list[str]]) -> list[str]:
    """The columns of different numbers and nothing else."""
    return [
        name for name, values in seen.items() if len(set(values)) > 1 and all(as_score(value) is not None for value in values)
    ]


def _are_ids(values: Sequence[str]) -> bool:
    """Whether these numbers count or name rows rather than say something of them: whole ones, each for one row."""
    return len(set(values)) == len(values) and all(re.fullmatch(r"-?\d+", value) for value in values)


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
