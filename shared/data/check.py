"""A task's data, looked at before anything is started: columns, labels, lengths, and the first thing that is wrong.

`start` calls `check_task` with a budget of time; the worker reads the same rows in the same way through `look_at_columns` and
`read_examples`, and has them judged by the same `judge`. The model is judged in `shared/model/`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memsup.shared.clock import monotonic_s
from memsup.shared.data.chat_check import check_dialogues
from memsup.shared.data.columns import Columns, Table, is_usual_name, listed, look_at_columns, look_for_the_same
from memsup.shared.data.doubts import DoubtKind, Verdict
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.evidence import MOST_LABELS, Evidence
from memsup.shared.data.examples import Example, at, read_examples, sorted_labels
from memsup.shared.data.judge import judge, unused_text
from memsup.shared.data.looks import words
from memsup.shared.data.rows import names_columns_in_first_line, notes_on
from memsup.shared.data.seen import SeenRows, estimate_tokens, quantile
from memsup.shared.data.sources import Source, locate
from memsup.shared.data.streams import head_of
from memsup.shared.data.tags_check import check_tags
from memsup.shared.data.targets import ProblemType, as_score
from memsup.shared.model.folder import ModelSummary, check_model

if TYPE_CHECKING:
    from memsup.shared.settings import Task

_LONG_CHARS = 1 << 16
_LEAST_TOKENS = 128
"""At so many tokens texts are cut at least where nobody has said it: the smallest tier's length."""
_FEWEST_ROWS, _FEWEST_FILES = 20, 5
"""In fewer rows, or files of which each is a label, nothing can be said of how many labels there are."""


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
    other_labels: Mapping[str, int]
    """Rows left out since their label is none of `task.labels`, by that label."""
    complete: bool
    labels: dict[str, int]
    """Rows of each label, in the order of `task.labels`, or else of `sorted_labels`; the score alone where one is learnt."""
    text_chars: tuple[int, int, int, int]
    """The lengths of the texts in characters: median, 90 %, 99 %, longest."""
    token_estimates: Counter[int]
    """Number of texts by roughly how many tokens they make."""
    evidence: Evidence

    def share_cut(self, max_length: int) -> float:
        """The share of the texts that `max_length` tokens would cut, roughly, 0 to 1."""
        return sum(count for tokens, count in self.token_estimates.items() if tokens > max_length) / self.rows


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    model: ModelSummary
    train: DataSummary | SeenRows
    evaluation: DataSummary | SeenRows | None
    """What was seen of the data to evaluate on. None means that a share of `train` will be held out."""
    verdict: Verdict


# --------------------------------------------------------------------------------------------------------------------
# The checks


def check_task(task: Task, *, budget_s: float, max_length: int | None = None, checkpoint: Path | None = None) -> TaskSummary:
    """Looks at model, training and evaluation data for about `budget_s`; texts are to be cut at `max_length` tokens. Where a
    run goes on from a `checkpoint`, its model stands in for one that is gone. Raises InputError for the first thing wrong.
    """
    model = _check_model(task, checkpoint)
    if task.kind == "causal-lm":
        seen = check_dialogues(task, model, budget_s=budget_s)
        return TaskSummary(model=model, train=seen[0], evaluation=seen[1], verdict=Verdict((), (), complete=seen[0].complete))
    if task.kind == "token-classification":
        tagged, tagged_beside, verdict = check_tags(task, budget_s=budget_s)
        return TaskSummary(model=model, train=tagged, evaluation=tagged_beside, verdict=verdict)
    no_text = _NoText(model.cannot_take, max_length or _LEAST_TOKENS) if model.cannot_take else None
    if task.train is None:
        raise InputError("task.train is not set: name a CSV, TSV, JSON or Parquet file, or a folder of <label>.txt files.")
    if task.class_weights is not None and task.problem_type != "single_label_classification":
        raise InputError(
            f"task.class_weights weighs classes of which a text has one, and task.problem_type is {task.problem_type}: leave "
            "one of the two away."
        )
    deadline_s = monotonic_s() + budget_s
    located = locate(task.train)
    if task.stream:
        located = head_of(located)
    evaluated = located.evaluation if task.eval is None else locate(task.eval, evaluates=True)
    share = 1.0 if evaluated is None else 0.7
    train = check_data(
        located,
        text=task.text,
        label=task.label,
        text_pair=task.text_pair,
        labels=task.labels,
        problem_type=task.problem_type,
        budget_s=budget_s * share,
        no_text=no_text,
    )
    evaluation = None
    if evaluated is not None:
        try:
            evaluation = check_data(
                evaluated, labels=task.labels, budget_s=deadline_s - monotonic_s(), train=train, no_text=no_text
            )
        except InputError as error:
            if task.eval is not None:
                raise
            raise InputError(
                f"{error} It lies beside the training data; to hold out a share of those instead, name them alone: "
                f"--set {shlex.quote(f'task.train={located.alone}')}"
            ) from None
    if evaluated is None and train.complete and train.rows <= len(train.labels):
        raise InputError(f"{located} has too few different texts to hold some out for evaluation: add rows, or set task.eval.")
    if isinstance(task.class_weights, dict) and train.complete:
        refuse_unknown_weights(task.class_weights, train.labels)
    verdict = judge(train.evidence, evaluation.evidence if evaluation else None)
    if evaluated is located.evaluation and evaluated is not None:
        alone = (f"task.train={located.alone}",)
        doubts = [replace(doubt, settle=alone) if doubt.kind is DoubtKind.EVALUATION else doubt for doubt in verdict.doubts]
        verdict = replace(verdict, doubts=tuple(doubts))
    return TaskSummary(model=model, train=train, evaluation=evaluation, verdict=verdict)


class _NoText(NamedTuple):
    """What a text may not spell, since the model takes it for the end of the text."""

    token: str
    most_tokens: int
    """At how many tokens texts are cut. What comes later than they surely reach is for the worker to find."""

    def refuse_in(self, example: Example) -> None:
        """Raises InputError."""
        for text in (example.text, example.text_pair or ""):
            place = text.find(self.token)
            if place >= 0 and estimate_tokens(text[:place]) < self.most_tokens // 2:
                raise InputError(
                    f"{at(example.file, example.line)}: the text spells {self.token!r}, which ends a text for this model; it "
                    "cannot take one among other rows: write it in another way, as with a blank inside, or delete the row."
                )


def _check_model(task: Task, checkpoint: Path | None) -> ModelSummary:
    try:
        return check_model(task.model, task=task.kind)
    except InputError:
        if checkpoint is not None:
            with contextlib.suppress(InputError):
                return check_model(str(checkpoint), task=task.kind)
        raise


def check_data(
    source: str | Sequence[str] | Source,
    *,
    text: str | None = None,
    label: str | None = None,
    text_pair: str | None = None,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType = "single_label_classification",
    budget_s: float,
    train: DataSummary | None = None,
    no_text: _NoText | None = None,
) -> DataSummary:
    """Reads `source` to its end or for about `budget_s`. With `train`, `source` is what evaluates it: the same columns, and
    no labels but those. `no_text` is what the model cannot take in a text. Rows with others than `labels` are left out where
    that is given. Raises InputError for the first row that cannot be used, and where the rows make no task.
    """
    deadline_s = monotonic_s() + budget_s
    located = source if isinstance(source, Source) else locate(source, evaluates=train is not None)
    if train is not None:
        problem_type = train.evidence.table.problem_type
        table = look_for_the_same(located, train.evidence.table)
    else:
        table = look_at_columns(located, text, label, text_pair, labels=labels, problem_type=problem_type)
    evidence = Evidence(table, None if labels is None else frozenset(labels))
    known_labels = frozenset(train.labels) if train is not None and train.complete and labels is None else None
    chars: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    examples = read_examples(
        located, table.columns, known_labels, only=evidence.only, problem_type=problem_type, marks=table.marks
    )
    for number, example in enumerate(examples, start=1):
        if evidence.takes(example):
            if no_text is not None:
                no_text.refuse_in(example)
            chars[len(example.text)] += 1
            tokens[estimate_tokens(example.text)] += 1
        if len(evidence.labels) > MOST_LABELS or (
            (number % 256 == 0 or len(example.text) > _LONG_CHARS) and monotonic_s() > deadline_s
        ):
            evidence.complete = False
            break
    evidence.complete = evidence.complete and not located.is_head
    check_rows(located, evidence, labels, trains=train is None)
    return DataSummary(
        source=located,
        notes=(*notes_on(located), *_left_unused(table, is_named=text is not None and train is None)),
        columns=table.columns,
        rows=evidence.rows,
        blank_texts=evidence.blank,
        other_labels=evidence.others,
        complete=evidence.complete,
        labels={name: evidence.labels[name] for name in labels or table.columns.switches or sorted_labels(evidence.labels)},
        text_chars=(quantile(chars, 0.5), quantile(chars, 0.9), quantile(chars, 0.99), max(chars)),
        token_estimates=tokens,
        evidence=evidence,
    )


def check_rows(source: Source, evidence: Evidence, only: Sequence[str] | None, *, trains: bool) -> None:
    """Raises InputError where the rows of `evidence` make no task. `only` are the labels that a person named."""
    columns, labels, rows = evidence.table.columns, evidence.labels, evidence.rows
    if evidence.table.problem_type == "regression" and only is not None:
        raise InputError(
            "task.labels chooses among labels, and a number is learnt (task.problem_type is regression): leave one of the two "
            "away."
        )
    if not rows:
        if evidence.others:
            raise InputError(
                f"No row of {source} has one of the labels {listed(only or [])} (task.labels); column {columns.label!r} has "
                f"{listed(sorted_labels(evidence.others))}."
            )
        raise InputError(f"No row of {source} has a text in column {columns.text!r}: name another column with task.text.")
    if not trains:
        return
    if evidence.table.problem_type == "regression":
        if evidence.complete and evidence.lowest == evidence.highest:
            raise NoTaskError(
                f"All numbers in column {columns.label!r} of {source} are {evidence.lowest:g}, so there is nothing to learn: "
                "name another column with task.label."
            )
        return
    several = evidence.table.problem_type == "multi_label_classification"
    if several and evidence.complete and not labels:
        raise NoTaskError(f"No row of {source} has a label in column {columns.label!r}: name another one with task.label.")
    lacking = [name for name in columns.switches if name not in labels] if evidence.complete else []
    if lacking:
        others = [name for name in columns.switches if name in labels]
        raise NoTaskError(
            f"No row of {source} has a 1 in column {lacking[0]!r}, so there is nothing to learn of it: name the others with "
            f"task.labels={','.join(others)}"
        )
    if columns.label in labels and names_columns_in_first_line(source) and _reads_like_a_row(columns.text, evidence):
        names = list(evidence.table.values)
        by_place = (("text", columns.text), ("label", columns.label))
        places = (f"'task.{key}=column {names.index(name) + 1}'" for key, name in by_place)
        raise InputError(
            f"The first line of {source} looks like a row and not like the names of the columns: put a line with names such as "
            f"text,label above it, or name the columns by their places: --set {' --set '.join(places)}"
        )
    if evidence.complete and (absent := [name for name in only or [] if name not in labels]):
        raise InputError(
            f"task.labels names {absent[0]!r}, which no row of {source} has in column {columns.label!r}; it has "
            f"{listed(sorted_labels([*labels, *evidence.others]))}."
        )
    least_rows = _FEWEST_FILES if evidence.table.label_is_file_name else _FEWEST_ROWS
    if len(labels) > MOST_LABELS or (evidence.complete and rows >= least_rows and len(labels) > rows / 2):
        if evidence.table.label_is_file_name:
            raise NoTaskError(
                f"The names of the files in {source} would be the labels, and those are {len(labels):,} for {rows:,} rows: put "
                "the texts of each label into a folder <label>/, or make a table with a column of labels."
            )
        raise NoTaskError(
            f"Column {columns.label!r} of {source} holds {len(labels):,} different values in {rows:,} rows, "
            f"so it is no class label: name the right column with task.label.{_or_a_score(evidence)}"
        )
    if evidence.complete and len(labels) == 1 and not several:
        which = f"All {rows:,} rows of {source} have the same" if rows > 1 else f"The only row of {source} has the"
        raise NoTaskError(
            f"{which} label {next(iter(labels))!r}, and a classifier needs at least two: "
            "add rows with other labels, or name another column with task.label."
        )


def refuse_unknown_weights(weights: Mapping[str, float], labels: Iterable[str]) -> None:
    """Raises InputError where a weight is one of a label that there is not."""
    names = list(labels)
    if unknown := sorted(weights.keys() - set(names)):
        raise InputError(f"task.class_weights names {unknown[0]!r}, and the labels are {listed(names)}: correct it.")


def _or_a_score(evidence: Evidence) -> str:
    """What to type where the labels seen so far are numbers; empty where they are none."""
    are_numbers = all(as_score(label) is not None for label in evidence.labels)
    return " To learn it as a number: --set task.problem_type=regression" if are_numbers else ""


def _left_unused(table: Table, *, is_named: bool) -> Iterator[str]:
    """Of a second text only where the first was named: whoever did that has chosen, and nobody is asked."""
    if is_named and (said := unused_text(table)) is not None:
        yield said


def _reads_like_a_row(name: str, evidence: Evidence) -> bool:
    """Whether the name of the column of texts could be one of them: the label's being a label as well is common (spam, ham)."""
    if is_usual_name(name):
        return False
    texts = [words(value) for value in evidence.table.values[name] if value]
    return words(name) >= 3 or 2 * words(name) >= sorted(texts)[len(texts) // 2]
