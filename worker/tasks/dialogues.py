"""Dialogues become tokens, and which of them are learnt is marked: what the assistant says, and nothing that it is told.

How a dialogue is written is for the tokenizer's chat template to say, which transformers runs in jinja's sandbox. Where the
template itself marks what the assistant says (`{% generation %}`), that is believed. Elsewhere an answer is what a dialogue has
more than the same dialogue up to the question: that the one is a beginning of the other, token by token, is looked at for each
answer, and a row of which it is not true is refused by file and line. Without a template an answer stands behind its question,
both tokenized by themselves, as they will be when the model is asked.

A row that is too long is cut at its end. Of plain text nothing is lost: it goes on in a row of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from memsup.shared.data.chat import Dialogue, Fields, Form, Turn, read_dialogues
from memsup.shared.data.chat_check import fields_of, refuse_without_template
from memsup.shared.data.errors import InputError
from memsup.shared.data.examples import at
from memsup.shared.data.sources import Source
from memsup.shared.settings import Task
from memsup.worker.tasks.sequences import NOTHING, LeftOut, Sequence

MOST_CHARS = 1 << 20
"""Longer dialogues are left out: a tokenizer takes some hundred bytes a character. Longer plain text is read in parts."""
_TEXT_CHARS = 1 << 17
_LEARNT = 0
"""The mark of a token that is learnt: the token itself is what is to be said there."""
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BLANK = re.compile(r"\s+")
_MOST_SAID = 200


class DialogueReader:
    """Makes sequences of the rows of dialogues (`sequences.Reader`)."""

    def __init__(self, tokenizer: Any, task: Task, max_length: int, fields: Fields | None = None) -> None:
        """None of `fields` means that each part of the data says by its first rows which columns it has."""
        self._fields = fields
        self._tokenizer, self._task, self._max_length = tokenizer, task, max_length
        self._template: str | None = template_of(tokenizer)
        self._marks_answers = bool(self._template and _MARKS_ANSWERS.search(self._template)) and tokenizer.is_fast
        self.vocabulary_size = 1 + max(tokenizer.get_vocab().values()) if tokenizer.is_fast else 1 << 32

    def read(self, part: Source, *, trains: bool) -> Iterator[Sequence | LeftOut]:  # noqa: ARG002 - the columns are the same
        fields = self._fields or fields_of(part, self._task)
        refuse_without_template(part, fields, self._task.model or "", self._template is not None)
        for dialogue in read_dialogues(part, fields):
            yield from self._sequences(dialogue, fields)

    def names(self) -> list[str]:
        return []

    def _sequences(self, dialogue: Dialogue, fields: Fields) -> Iterator[Sequence | LeftOut]:
        if (why := dialogue.why_not) is not None:
            yield LeftOut(why)
        elif fields.form is Form.TEXT:
            yield from self._of_text(dialogue)
        elif dialogue.chars > MOST_CHARS:
            yield LeftOut(f"they have more than {MOST_CHARS:,} characters")
        else:
            tokens, marks = self._marked(dialogue, fields.form)
            yield Sequence(
                tokens[: self._max_length],
                [NOTHING, *marks[1 : self._max_length]],
                _key(dialogue),
                dialogue.file,
                dialogue.line,
                is_cut=len(tokens) > self._max_length,
            )

    def _of_text(self, dialogue: Dialogue) -> Iterator[Sequence]:
        """All of the text, and the token that ends one, in as many rows as it takes."""
        text = dialogue.turns[0].content
        tokens: list[int] = []
        for number, part in enumerate(_parts(text)):
            tokens += self._tokenizer(part, add_special_tokens=number == 0, verbose=False)["input_ids"]
        ends = self._tokenizer.eos_token_id
        if ends is not None and tokens[-1:] != [ends]:
            tokens.append(ends)
        for start in range(0, len(tokens), self._max_length):
            row = tokens[start : start + self._max_length]
            if len(row) > 1:  # of the first token nothing is said
                marks = [NOTHING] + [_LEARNT] * (len(row) - 1)
                yield Sequence(row, marks, text, dialogue.file, dialogue.line)

    def _marked(self, dialogue: Dialogue, form: Form) -> tuple[list[int], list[int]]:
        """All tokens of a dialogue with their marks."""
        if self._template is None:
            return self._plain(dialogue, form)
        if self._marks_answers and all(turn.is_learnt for turn in dialogue.turns):
            found = self._rendered(dialogue, dialogue.turns, marked=True)
            return found["input_ids"], [_LEARNT if is_answer else NOTHING for is_answer in found["assistant_masks"]]
        tokens = self._tokens(self._rendered(dialogue, dialogue.turns))
        marks = [NOTHING] * len(tokens)
        for number, turn in enumerate(dialogue.turns):
            if turn.role != "assistant" or not turn.is_learnt:
                continue
            before = self._tokens(self._rendered(dialogue, dialogue.turns[:number], asks=True))
            if len(before) >= self._max_length:
                break  # the rest is cut off, and to look at each answer of thousands would take minutes
            after = self._tokens(self._rendered(dialogue, dialogue.turns[: number + 1]))
            if tokens[: len(before)] != before or tokens[: len(after)] != after:
                raise InputError(
                    f"{at(dialogue.file, dialogue.line)}: what message {number + 1} adds cannot be told, since the chat "
                    "template writes what is before it in another way once it is there: shorten the dialogue to its last "
                    "answer, or use a template with {% generation %} around what the assistant says."
                )
            marks[len(before) : len(after)] = [_LEARNT] * (len(after) - len(before))
        return tokens, marks

    def _rendered(self, dialogue: Dialogue, turns: tuple[Turn, ...], *, asks: bool = False, marked: bool = False) -> Any:
        """The turns as the template writes them: as text, or with `marked` as tokens, with those of answers. With `asks` what
        makes the assistant speak stands behind them. Raises InputError where the template refuses them.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            if marked:
                return self._tokenizer.apply_chat_template(
                    messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors=None
                )
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # whatever a stranger's template raises
            if isinstance(error, MemoryError):
                raise
            said = _BLANK.sub(" ", str(error))[:_MOST_SAID].rstrip(".")
            raise InputError(
                f"{at(dialogue.file, dialogue.line)}: the chat template of {self._task.model} cannot write this dialogue "
                f"({said or type(error).__name__}): correct the row or delete it."
            ) from None

    def _tokens(self, text: str) -> list[int]:
        """The tokens of what a template has written, which has its special ones already."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _plain(self, dialogue: Dialogue, form: Form) -> tuple[list[int], list[int]]:
        """Question and answer without a template. Raises InputError for more than one of each."""
        asked, answered = plain_prompt(dialogue, form, self._task.model or ""), dialogue.turns[-1].content
        prompt = self._tokenizer(asked, verbose=False)["input_ids"]
        ends = self._tokenizer.eos_token_id
        if prompt[-1:] == [ends]:
            prompt = prompt[:-1]  # some add it to each text
        answer = [*self._tokens(answered), *([] if ends is None else [ends])]
        return prompt + answer, [NOTHING] * len(prompt) + [_LEARNT] * len(answer)


def template_of(tokenizer: Any) -> str | None:
    """The chat template that transformers would use. None means that there is none."""
    try:
        found = tokenizer.get_chat_template()
    except (ValueError, AttributeError):
        return None
    return str(found)


def plain_prompt(dialogue: Dialogue, form: Form, model: str) -> str:
    """What stands before the answer where no template says how it is written. Raises InputError for a dialogue that has more
    than a question and its answer.
    """
    *before, last = dialogue.turns
    if [turn.role for turn in before if turn.role != "system"] != ["user"] or last.role != "assistant":
        raise InputError(
            f"{at(dialogue.file, dialogue.line)} has several messages, and the tokenizer of {model} has no chat template that "
            "says how to write them: choose a model that was made for chat."
        )
    asked = "\n\n".join(turn.content for turn in before)
    return alpaca(asked) if form is Form.INSTRUCTION else asked


def alpaca(instruction: str) -> str:
    """What stands before the answer to an instruction."""
    return f"### Instruction:\n{instruction}\n\n### Response:\n"


def _parts(text: str) -> Iterator[str]:
    """The text in parts of bounded length, each of which ends before a blank where there is one."""
    start = 0
    while len(text) - start > _TEXT_CHARS:
        blank = max(text.rfind(sign, start + 1, start + _TEXT_CHARS) for sign in "\n ")
        end = blank if blank > start else start + _TEXT_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def _key(dialogue: Dialogue) -> str:
    """What is said before the first answer: the same question is not asked in training and in evaluation."""
    first = next(number for number, turn in enumerate(dialogue.turns) if turn.role == "assistant")
    return json.dumps([turn.content.strip() for turn in dialogue.turns[:first]] or dialogue.turns[first].content)
