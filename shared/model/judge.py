"""A model beside the data that it is to learn: what is doubtful about the two, and what is only to be said. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from memsup.shared.data.doubts import Doubt, DoubtKind
from memsup.shared.data.targets import ProblemType, TaskKind
from memsup.shared.model.config import one_line
from memsup.shared.model.folder import ModelSource, ModelSummary
from memsup.shared.model.head import Fit, head_labels, match

_MOST_NAMED = 6


def judge_model(
    model: ModelSummary,
    labels: Sequence[str],
    *,
    task: TaskKind = "text-classification",
    problem_type: ProblemType | None = "single_label_classification",
    complete: bool,
) -> tuple[list[Doubt], list[str]]:
    """The doubts, and sentences of what is to be said besides. `complete`: the data have no more labels than `labels`."""
    config = model.config or {}
    doubts: list[Doubt] = []
    notes: list[str] = []
    if model.source is not ModelSource.CONFIG_ONLY:
        doubts, notes = judge_head(head_labels(config, task), labels, complete=complete)
    elif model.has_tokenizer:
        what = f"{model.folder} has a tokenizer and no weights: the model would know no language and be trained from nothing."
        doubts = [Doubt(DoubtKind.FROM_NOTHING, what)]
    if problem_type is not None and (former := config.get("problem_type")) not in {None, problem_type}:
        notes.append(
            f"The model's config.json has problem_type {one_line(str(former))}; what is learnt here is {problem_type}."
        )
    return doubts, notes


def judge_head(head: Sequence[str] | None, labels: Sequence[str], *, complete: bool = True) -> tuple[list[Doubt], list[str]]:
    """The same of the labels of a model's head beside those of the data."""
    fit = match(head, labels, complete=complete).fit
    both = f"the model's head has {_listed(head or ())}, the data have {_listed(labels)}"
    if fit is Fit.DOUBTFUL:
        what = (
            f"The labels differ: {both}. To go on with that head, spell them in the data as the model does; if this is "
            "accepted, it begins anew."
        )
        return [Doubt(DoubtKind.HEAD_LABELS, what)], []
    return [], [f"The head is a new one: {both}."] if fit is Fit.OTHER else []


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
