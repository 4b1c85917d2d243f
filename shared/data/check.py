"""A task's data, looked at before anything is started: columns, labels, lengths, and the first thing that is wrong.

`start` calls `check_task` with a budget of time; the worker reads the same rows in the same way through `find_columns` and
`read_examples`. The model's folder is `shared/model_folder.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsup.shared.clock import monotonic_s
from memsup.shared.data.columns import Columns, find_columns
from memsup.shared.data.errors import InputError
from memsup.shared.data.examples import is_blank, read_examples, sorted_labels
from memsup.shared.data.rows import names_columns_in_first_line, notes_on
from memsup.shared.data.sources import Source, locate
from memsup.shared.model_folder import ModelSource, check_model

if TYPE_CHECKING:
    from memsup.shared.settings import Task

_MAX_LABELS = 1000
_LONG_CHARS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was seen of a source. Where `complete` is False time ran out, and all counts are of the rows seen until then."""

    source: Source
    notes: tuple[str, ...]
    """What was decided about the source that a person might have meant otherwise, each a sentence."""
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
    located = locate(task.train)
    evaluated = located.evaluation if task.eval is None else locate(task.eval, evaluates=True)
    share = 1.0 if evaluated is None else 0.7
    train = check_data(located, text=task.text, label=task.label, budget_s=budget_s * share)
    evaluation = None
    if evaluated is not None:
        try:
            evaluation = check_data(evaluated, budget_s=deadline_s - monotonic_s(), train=train)
        except InputError as error:
            if task.eval is not None:
                raise
            files = ", ".join(str(file.path) for file in located.files[:3])
            raise InputError(
                f"{error} It lies beside the training data; to hold out a share of those instead, name them alone: {files}"
            ) from None
    return TaskSummary(model=model, train=train, evaluation=evaluation)


def check_data(
    source: str | Sequence[str] | Source,
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
    located = source if isinstance(source, Source) else locate(source, evaluates=train is not None)
    if train is not None:
        text, label = train.columns
    columns = find_columns(located, text, label)
    known_labels = frozenset(train.labels) if train is not None and train.complete else None
    labels: Counter[str] = Counter()
    chars: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    blank_texts = 0
    complete = True
    for number, example in enumerate(read_examples(located, columns, known_labels), start=1):
        if is_blank(example.text):
            blank_texts += 1
        else:
            labels[example.label] += 1
            chars[len(example.text)] += 1
            tokens[_estimate_tokens(example.text)] += 1
        if len(labels) > _MAX_LABELS or ((number % 256 == 0 or len(example.text) > _LONG_CHARS) and monotonic_s() > deadline_s):
            complete = False
            break
    check_labels(located, columns, labels, complete=complete, train=train is None)
    return DataSummary(
        source=located,
        notes=notes_on(located),
        columns=columns,
        rows=labels.total(),
        blank_texts=blank_texts,
        complete=complete,
        labels={name: labels[name] for name in sorted_labels(labels)},
        text_chars=(_quantile(chars, 0.5), _quantile(chars, 0.9), _quantile(chars, 0.99), max(chars)),
        token_estimates=tokens,
    )


def check_labels(source: Source, columns: Columns, labels: Counter[str], *, complete: bool, train: bool) -> None:
    """Raises InputError where the rows counted in `labels` make no task; `complete` says that there are no more of them."""
    rows = labels.total()
    if not rows:
        raise InputError(f"No row of {source} has a text in column {columns.text!r}: name another column with task.text.")
    if not train:
        return
    if columns.label in labels and names_columns_in_first_line(source):
        raise InputError(
            f"The first line of {source} looks like a row and not like the names of the columns: "
            "put a line with names such as text,label above it."
        )
    if len(labels) > _MAX_LABELS or (complete and rows >= 20 and len(labels) > rows / 2):
        raise InputError(
            f"Column {columns.label!r} of {source} holds {len(labels):,} different values in {rows:,} rows, "
            "so it is no class label: name the right column with task.label."
        )
    if complete and len(labels) == 1:
        raise InputError(
            f"All {rows:,} rows of {source} have the same label {next(iter(labels))!r}, and a classifier needs at least two: "
            "add rows with other labels, or name another column with task.label."
        )


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
