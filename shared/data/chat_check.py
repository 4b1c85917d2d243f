"""Are these data and this model a task for chat? Told within a budget of time, before the terminal is closed; the worker reads
the same rows in the same way.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from memsup.shared.clock import monotonic_s
from memsup.shared.data.chat import Dialogue, Fields, Form, find_fields, read_dialogues
from memsup.shared.data.columns import listed
from memsup.shared.data.errors import InputError
from memsup.shared.data.layout import is_text
from memsup.shared.data.rows import notes_on
from memsup.shared.data.seen import SeenRows, estimate_tokens, quantile
from memsup.shared.data.sources import Source, locate, paths_of
from memsup.shared.data.streams import head_of
from memsup.shared.model.chat_template import has_chat_template
from memsup.shared.model.folder import ModelSource, ModelSummary

if TYPE_CHECKING:
    from memsup.shared.settings import Task

_LOOKED_AT_TOGETHER = 64
_TURN_TOKENS = 5
"""What a template puts around a turn, about."""


def check_dialogues(task: Task, model: ModelSummary, *, budget_s: float) -> tuple[SeenRows, SeenRows | None]:
    """What was seen of the training and the evaluation data within about `budget_s`. None of the latter means that a share of
    the former will be held out. Raises InputError for the first thing wrong.
    """
    if task.train is None:
        raise InputError(
            "task.train is not set: name a JSON, CSV, TSV or Parquet file with messages, prompt and completion, or text."
        )
    if model.source is ModelSource.CONFIG_ONLY and not model.has_tokenizer:
        raise InputError(
            f"{model.folder} has no tokenizer, and a model that goes on with texts needs one: copy a tokenizer.json there."
        )
    located = locate_dialogues(task.train)
    if task.stream:
        located = head_of(located)
    evaluated = located.evaluation if task.eval is None else locate_dialogues(task.eval, evaluates=True)
    fields = fields_of(located, task)
    template = None if model.folder is None else has_chat_template(model.folder)
    refuse_without_template(located, fields, task.model or "", template)
    deadline_s = monotonic_s() + budget_s * (1.0 if evaluated is None else 0.7)
    train = _seen(located, fields, template, deadline_s)
    if evaluated is None:
        if train.complete and train.rows < 2:
            raise InputError(f"{located} has too few rows to hold some out for evaluation: add rows, or set task.eval.")
        return train, None
    return train, _seen(evaluated, fields, template, deadline_s + 0.3 * budget_s)


def locate_dialogues(value: str | list[str], *, evaluates: bool = False) -> Source:
    """As `sources.locate`, for rows of dialogues or texts. Raises InputError."""
    try:
        return locate(value, evaluates=evaluates)
    except InputError:
        paths = [path for each in ([value] if isinstance(value, str) else value) for path in paths_of(each)]
        if (plain := next((path for path in paths if is_text(path.name) and path.is_file()), None)) is None:
            raise
        raise InputError(
            f"{plain} is plain text, of which it cannot be told where a row ends: write the texts as JSON lines, "
            f'{{"text": "…"}} on each, to {plain.with_suffix(".jsonl").name}.'
        ) from None


def fields_of(source: Source, task: Task) -> Fields:
    """The columns of `source` as the settings name them. Raises InputError."""
    return find_fields(source, messages=task.messages, prompt=task.prompt, completion=task.completion, text=task.text)


def refuse_without_template(source: Source, fields: Fields, model: str, has_template: bool | None) -> None:
    """Raises InputError where messages are learnt and the tokenizer has no chat template. None means that nobody knows."""
    if fields.form is Form.MESSAGES and has_template is False:
        raise InputError(
            f"{source} has messages, and the tokenizer of {model} has no chat template that says how to write them: choose one "
            "that was made for chat (its name often ends in Instruct or Chat), or put the chat_template.jinja of such a one "
            "into its folder."
        )


def _seen(source: Source, fields: Fields, template: bool | None, deadline_s: float) -> SeenRows:
    left_out: Counter[str] = Counter()
    chars: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    turns = answers = 0
    complete = True
    for number, dialogue in enumerate(read_dialogues(source, fields), start=1):
        why = dialogue.why_not
        if why is not None:
            left_out[why] += 1
        else:
            chars[dialogue.chars] += 1
            tokens[_tokens(dialogue)] += 1
            turns += len(dialogue.turns)
            answers += sum(turn.role == "assistant" and turn.is_learnt for turn in dialogue.turns)
        if number % _LOOKED_AT_TOGETHER == 0 and monotonic_s() > deadline_s:
            complete = False
            break
    rows = chars.total()
    if not rows:
        why = next(iter(left_out), "there are none")
        raise InputError(f"No row of {source} can be learnt from, since {why}; {fields.in_words()}. Name other columns.")
    about: list[tuple[str, str]] = []
    if fields.form is Form.MESSAGES:
        about.append(("messages", f"{turns:,} in all, {answers:,} of them answers"))
    elif fields.form is not Form.TEXT and template is not None:
        how = (
            "by the tokenizer's chat template"
            if template
            else f"as plain text{_plainly(fields)}: the tokenizer has no template"
        )
        about.append(("written", how))
    if fields.unused:
        about.append(("not used", f"the column{'s' * (len(fields.unused) > 1)} {listed(fields.unused)}"))
    return SeenRows(
        source=source,
        notes=notes_on(source),
        rows=rows,
        left_out=left_out,
        complete=complete and not source.is_head,
        learnt=fields.in_words(),
        about=tuple(about),
        text_chars=(quantile(chars, 0.5), quantile(chars, 0.9), quantile(chars, 0.99), max(chars)),
        token_estimates=tokens,
    )


def _plainly(fields: Fields) -> str:
    return "in the manner of Alpaca" if fields.form is Form.INSTRUCTION else "the completion behind its prompt"


def _tokens(dialogue: Dialogue) -> int:
    return sum(estimate_tokens(turn.content) + _TURN_TOKENS for turn in dialogue.turns)
