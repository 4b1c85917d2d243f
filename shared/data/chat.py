"""Rows of dialogues, as data sets for chat models have them: which columns hold what, and each row as turns, or refused by its
file and line.

Four forms are known: a list of messages; a prompt and its completion; an instruction, maybe with an input, and its output; and
plain text, all of which is learnt. How turns become tokens is the worker's business (`worker/tasks/dialogues.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, cast

from memsup.shared.data.columns import ANSWER_NAMES, INSTRUCTION_NAMES, PROMPT_NAMES, listed, usual_text
from memsup.shared.data.errors import InputError
from memsup.shared.data.examples import as_text, at
from memsup.shared.data.rows import names_columns_in_first_line, read_rows
from memsup.shared.data.sources import Source
from memsup.shared.data.tag_cells import CONTENT_KEYS, ROLE_KEYS, as_list, hold_messages

_SAMPLE_ROWS = 100
_SAMPLE_CHARS = 16 << 20
MOST_TURNS = 10_000
_MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "对话")
_INPUTS = ("input", "context", "输入")
_SYSTEMS = ("system", "system_prompt")
_HISTORIES = ("history", "历史")
_NOT_TAUGHT = ("tools", "functions", "image", "images", "video", "videos", "audio", "audios")
"""What an answer depends on and nothing here can learn from: a model that is taught without it is taught to guess."""
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""What those who speak are called in data sets, and what chat templates call them."""
NO_ANSWER = "they have no answer"
NO_TEXT = "they have no text"


class Form(enum.StrEnum):
    """What a row holds."""

    MESSAGES = "messages"
    PROMPT = "prompt and completion"
    INSTRUCTION = "instruction and output"
    TEXT = "text"


class Fields(NamedTuple):
    """The form of the rows, and the columns of its parts. None of a part means that there is none."""

    form: Form
    asked: str
    """The column of messages, prompts, instructions or texts."""
    answered: str | None = None
    more: str | None = None
    """The column of what an instruction or a question is about."""
    system: str | None = None
    history: str | None = None
    """The column of questions and answers before this one, as Alpaca has them: a list of pairs."""
    not_taught: tuple[str, ...] = ()
    """Columns that have to be empty in every row, since an answer would depend on them."""
    unused: tuple[str, ...] = ()
    """The other columns, which nothing is done with."""

    def names(self) -> list[str]:
        parts = (self.asked, self.answered, self.more, self.system, self.history, *self.not_taught)
        return [name for name in parts if name is not None]

    def in_words(self) -> str:
        """What is learnt of which columns, as a part of a sentence."""
        match self.form:
            case Form.TEXT:
                return f"all of {self.asked!r} is learnt"
            case Form.MESSAGES:
                return f"the assistant's messages in {self.asked!r} are learnt"
        more = f" and {self.more!r}" if self.more else ""
        return f"{self.answered!r} is learnt as the answer to {self.asked!r}{more}"


class Turn(NamedTuple):
    """What one side says."""

    role: str
    """As chat templates name it: system, user, assistant, tool."""
    content: str
    is_learnt: bool = True
    """Whether it is learnt where the assistant says it; a message may say that it is not (`weight` 0, as OpenAI's files do)."""


class Dialogue(NamedTuple):
    """A row: turns, or of plain text a single one of which all is learnt."""

    turns: tuple[Turn, ...]
    file: Path
    line: int

    @property
    def chars(self) -> int:
        return sum(len(turn.content) for turn in self.turns)

    @property
    def why_not(self) -> str | None:
        """Why there is nothing to learn in it. None means that there is."""
        if len(self.turns) == 1 and self.turns[0].role == "text":
            return NO_TEXT if not self.turns[0].content.strip() else None
        return (
            None
            if any(turn.role == "assistant" and turn.is_learnt and turn.content.strip() for turn in self.turns)
            else NO_ANSWER
        )


def find_fields(
    source: Source,
    *,
    messages: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    text: str | None = None,
) -> Fields:
    """The form of the rows: by the columns that a person named, or by their usual names and what the first rows hold. Raises
    InputError with what was seen where that tells none.
    """
    sample: list[dict[str, object]] = []
    left = _SAMPLE_CHARS
    for row in islice(read_rows(source), _SAMPLE_ROWS):
        sample.append(row.values)
        left -= sum(len(str(value)) for value in row.values.values())
        if left < 0:
            break
    if not sample:
        raise InputError(
            f"{source} has no rows{' below the names of its columns' * names_columns_in_first_line(source)}: add some."
        )
    names = list(dict.fromkeys(chain.from_iterable(sample)))
    for key, name in (("messages", messages), ("prompt", prompt), ("completion", completion), ("text", text)):
        if name is not None and name not in names:
            raise InputError(f"{source} has no column {name!r} (task.{key}). Its columns are {listed(names)}.")
    if (prompt is None) != (completion is None):
        has, lacks = ("prompt", "completion") if completion is None else ("completion", "prompt")
        raise InputError(f"task.{has} is set and task.{lacks} is not: name the other column with task.{lacks}.")
    if sum(name is not None for name in (messages, prompt, text)) > 1:
        raise InputError("task.messages, task.prompt and task.text are different forms of rows: leave all but one away.")
    found = _form_of(sample, names, source, messages=messages, prompt=prompt, completion=completion, text=text)
    if found.form is not Form.TEXT:
        found = found._replace(
            system=_by_name(names, _SYSTEMS),
            history=None if found.form is Form.MESSAGES else _by_name(names, _HISTORIES),
            not_taught=tuple(name for name in names if name.strip().casefold() in _NOT_TAUGHT),
        )
    return found._replace(unused=tuple(name for name in names if name not in found.names()))


def _form_of(
    sample: Sequence[Mapping[str, object]],
    names: Sequence[str],
    source: Source,
    *,
    messages: str | None,
    prompt: str | None,
    completion: str | None,
    text: str | None,
) -> Fields:
    if messages is not None:
        return Fields(Form.MESSAGES, messages)
    if prompt is not None:
        return Fields(Form.PROMPT, prompt, completion)
    if text is not None:
        return Fields(Form.TEXT, text)
    found = _by_name(names, _MESSAGES)
    if found is not None and any(_is_list(row.get(found)) for row in sample):
        return Fields(Form.MESSAGES, found)
    asked, answered = _by_name(names, INSTRUCTION_NAMES), _by_name(names, ANSWER_NAMES)
    if asked is not None and answered is not None:
        return Fields(Form.INSTRUCTION, asked, answered, _by_name(names, _INPUTS))
    asked = _by_name(names, (*PROMPT_NAMES, *_INPUTS))
    if asked is not None and answered is not None:
        more = _by_name(names, _INPUTS)
        if more == asked or any(
            isinstance(row.get(asked), list) or isinstance(row.get(more or ""), list | dict) for row in sample
        ):
            more = None
        return Fields(Form.PROMPT, asked, answered, more)
    if (chosen := _by_name(names, ("chosen",))) is not None and _by_name(names, ("rejected",)) is not None:
        asked = None if _are_whole(sample, chosen) else _by_name(names, PROMPT_NAMES)
        how = f"task.messages={chosen}" if asked is None else f"task.prompt={asked} --set task.completion={chosen}"
        raise InputError(
            f"{source} says which of two answers is preferred, which memsup does not learn. To learn those that were chosen: "
            f"--set {how}"
        )
    holding = [name for name in names if hold_messages(sample, name)]
    if len(holding) == 1:
        if _is_list(holding[0]):
            raise InputError(f"The first line of {source} is a row and names no column: put one above it that says messages.")
        return Fields(Form.MESSAGES, holding[0])
    if (alone := usual_text(names)) is not None:
        return Fields(Form.TEXT, alone)
    raise InputError(
        f"It is not clear what of {source} is to be learnt; its columns are {listed(names)}. Name the column of messages with "
        "task.messages, those of question and answer with task.prompt and task.completion, or that of texts with task.text."
    )


def _are_whole(sample: Sequence[Mapping[str, object]], name: str) -> bool:
    """Whether a column has lists of messages that begin with somebody else than the assistant."""
    if not hold_messages(sample, name):
        return False
    begins = (as_list(row.get(name)) for row in sample)
    first = next(cast(dict[str, object], messages[0]) for messages in begins if messages)
    said_by = next(first[key] for key in ROLE_KEYS if key in first)
    return _ROLES.get(str(said_by).strip().casefold()) != "assistant"


def read_dialogues(source: Source, fields: Fields) -> Iterator[Dialogue]:
    """All rows in their order. Raises InputError at the first that is broken, or in which somebody speaks of whom no chat
    template knows.
    """
    for file, line, values in read_rows(source, fields.names()):
        for column in fields.not_taught:
            if values.get(column) not in (None, "", "[]", "null", [], {}):
                raise InputError(
                    f"{at(file, line)}: column {column!r} holds what the answer depends on, and memsup trains on texts alone: "
                    "delete the rows that have it, or the column if the answers do not need it."
                )
        cell = values.get(fields.asked)
        if fields.form is Form.MESSAGES:
            turns = _led(_turns(cell, fields.asked, file, line), values, fields, file, line)
        elif fields.form is Form.TEXT:
            turns = [Turn("text", as_text(cell, fields.asked, file, line))]
        elif isinstance(cell, list) or isinstance(values.get(fields.answered or ""), list):  # as TRL has a dialogue's parts
            assert fields.answered is not None
            parts = [(cell, fields.asked, "user"), (values.get(fields.answered), fields.answered, "assistant")]
            turns = [
                turn
                for part, column, role in parts
                for turn in (
                    _turns(part, column, file, line)
                    if isinstance(part, list)
                    else [Turn(role, as_text(part, column, file, line))]
                )
            ]
            turns = _led(turns, values, fields, file, line)
        else:
            turns = _two(values, fields, file, line)
        yield Dialogue(tuple(turns), file, line)


def _two(values: Mapping[str, object], fields: Fields, file: Path, line: int) -> list[Turn]:
    def said(column: str | None) -> str:
        return "" if column is None else as_text(values.get(column), column, file, line)

    asked = "\n\n".join(part for part in (said(fields.asked), said(fields.more)) if part.strip())
    before = _before(values.get(fields.history or ""), fields.history or "", file, line)
    return _led([*before, Turn("user", asked), Turn("assistant", said(fields.answered))], values, fields, file, line)


def _before(cell: object, column: str, file: Path, line: int) -> Iterator[Turn]:
    """The turns that a cell of pairs of question and answer stands for; its answers are learnt too. Raises InputError."""
    pairs = as_list(cell) if isinstance(cell, str) and cell.strip() else cell or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise InputError(
            f"{at(file, line)}: column {column!r} holds no list of pairs of question and answer ({str(cell)[:40]!r}): write "
            '[["…", "…"]], or [] where nothing was said before.'
        )
    for pair in pairs[:MOST_TURNS]:
        for role, said in zip(("user", "assistant"), pair, strict=True):
            yield Turn(role, as_text(said, column, file, line))


def _led(turns: list[Turn], values: Mapping[str, object], fields: Fields, file: Path, line: int) -> list[Turn]:
    """The turns behind what the column of the system says, if it says anything and they do not begin so themselves."""
    said = values.get(fields.system or "")
    if not turns or turns[0].role == "system" or not isinstance(said, str) or not said.strip():
        return turns
    return [Turn("system", as_text(said, fields.system or "", file, line)), *turns]


def _turns(cell: object, column: str, file: Path, line: int) -> list[Turn]:
    """A cell of messages. Raises InputError."""
    where = f"{at(file, line)}: column {column!r}"
    if isinstance(cell, str):
        if not cell.strip():
            return []
        said, cell = cell, as_list(cell)
        if cell is None:
            raise InputError(
                f"{where} holds text and no list of messages ({said[:40]!r}): write {_EXAMPLE}, or name a column of texts with "
                "task.text."
            )
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise InputError(f"{where} holds no list of messages but a {type(cell).__name__}: write {_EXAMPLE}")
    if len(cell) > MOST_TURNS:
        raise InputError(f"{where} holds {len(cell):,} messages, and no dialogue has more than {MOST_TURNS:,}: delete the row.")
    return [_turn(message, f"{where}, message {number}", column, file, line) for number, message in enumerate(cell, start=1)]


_EXAMPLE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'


def _turn(message: object, where: str, column: str, file: Path, line: int) -> Turn:
    if not isinstance(message, dict):
        raise InputError(f"{where} is no object but a {type(message).__name__}: write {_EXAMPLE}")
    role = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
    if not isinstance(role, str):
        raise InputError(f"{where} does not say whose it is (role): write {_EXAMPLE}")
    known = _ROLES.get(role.strip().casefold())
    if known is None:
        raise InputError(
            f"{where} is of the role {role[:40]!r}, which no chat template knows: write one of "
            f"{', '.join(dict.fromkeys(_ROLES.values()))}."
        )
    content = next((message[key] for key in CONTENT_KEYS if message.get(key) is not None), None)
    if content is None and message.get("tool_calls"):
        raise InputError(f"{where} calls tools, which memsup does not train: delete the row, or write the call as its content.")
    if isinstance(content, list):
        content = _parts(content, where)
    weight = message.get("weight") if known == "assistant" else None
    if weight not in (None, 0, 1):
        raise InputError(
            f"{where} has a weight of {str(weight)[:40]!r}: write 1 for one that is learnt, and 0 for one that is not."
        )
    return Turn(known, as_text(content, column, file, line), is_learnt=weight != 0 and message.get("train") is not False)


def _parts(parts: Sequence[object], where: str) -> str:
    """Content in parts, as for models that also see images. Raises InputError where one is no text."""
    texts = [part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where} has a part that is no text, and texts are all that is learnt here: delete the row.")
    return "".join(str(text) for text in texts)


def _is_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "[")


def _by_name(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    by_folded = {name.strip().casefold(): name for name in reversed(list(columns))}
    return next((by_folded[name] for name in usual if name in by_folded), None)
