"""Sentences become the tokens that transformers makes of their text, with a mark for each word in the place of its first piece.

The text is given to the tokenizer as it stands, so a saved model is asked with what it was trained on. Where the data have
words, a word is what they say; elsewhere it is a run of letters and digits, each ideograph, and each other sign. A word's first
piece has the word's mark and the others have none, as the field has it. A sentence that is too long is divided between two
words, outside of spans where that can be: nothing of it is lost.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memsup.shared.data.errors import InputError
from memsup.shared.data.tag_files import is_wide
from memsup.shared.data.tags import Sentence, Span

NOTHING = -1
_CHARS_A_TOKEN = 32
"""Of a sentence with more characters for each token that is kept, so many are given to the tokenizer at once."""


class Window(NamedTuple):
    """A sentence, or a part of one that is too long."""

    text: str
    tokens: list[int]
    units: list[Unit]


class Unit(NamedTuple):
    """A word, and the token that stands for it."""

    token: int
    """The place of its first piece among the tokens."""
    start: int
    end: int
    """Where it lies in the window's text."""


class Pieces:
    """A tokenizer that tells of each token where it comes from."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """Raises InputError for a tokenizer that cannot tell, or a length that leaves no room."""
        if not tokenizer.is_fast:
            raise InputError(
                f"The tokenizer ({type(tokenizer).__name__}) does not say of its tokens which characters they come from, so no "
                "word can be told from them: choose a model with a tokenizer.json, such as a BERT."
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        added = tokenizer.num_special_tokens_to_add()
        if max_length <= added:
            raise InputError(
                f"training.max_length = {max_length} leaves no room for a sentence, since this tokenizer adds {added} tokens "
                f"to each: set it to {added + 1} or more."
            )
        self._room = max_length - added
        self.vocabulary_size = 1 + max(tokenizer.get_vocab().values())
        if "token_type_ids" in tokenizer.model_input_names and any(tokenizer("a")["token_type_ids"]):
            raise InputError(
                f"The tokenizer ({type(tokenizer).__name__}) gives types to the tokens of a single text, which tagging does "
                "not keep: choose another model, such as a BERT."
            )

    def windows(
        self, text: str, words: Sequence[tuple[int, int]] = (), spans: Sequence[Span] = ()
    ) -> Iterator[tuple[int, Window]]:
        """The text as one window or several, each with the place at which it begins."""
        start = 0
        while start < len(text):
            part = text[start : start + _CHARS_A_TOKEN * self._max_length]
            tokens, offsets = self._asked(part.rstrip())
            fits = len(tokens) <= self._max_length and start + len(part) == len(text)
            if not fits:
                own = [place for place in offsets if place is not None]
                edge = own[self._room][0] if len(own) > self._room else len(part)
                part = part[: self._cut(part, edge, start, words, spans, own)]
                tokens, offsets = self._asked(part.rstrip(), truncation=True, max_length=self._max_length)
            near = [(first - start, last - start) for first, last in words if first < start + len(part) and last > start]
            yield start, Window(part, tokens, _units(part, offsets, near))
            start += len(part)

    def _cut(
        self,
        part: str,
        edge: int,
        start: int,
        words: Sequence[tuple[int, int]],
        spans: Sequence[Span],
        own: Sequence[tuple[int, int]],
    ) -> int:
        """Where a text that is too long is divided: at the last word before `edge` that is not inside of a span, or else at the
        last one, or else at the edge.
        """
        places = [first - start for first, _ in words] or [first for first, _ in own if _begins_word(part, first)]
        places = [place for place in places if 0 < place <= edge]
        outside = [place for place in places if not any(span.start < start + place < span.end for span in spans)]
        return max(outside or places or [max(1, edge)])

    def _asked(self, text: str, **how: Any) -> tuple[list[int], list[tuple[int, int] | None]]:
        """Tokens, and of each where it comes from; None for one that is added."""
        found = self._tokenizer(
            text,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **how,
        )
        offsets = [
            None if special or first == last else (first, last)
            for (first, last), special in zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
        ]
        return found["input_ids"], offsets


def _units(text: str, offsets: Sequence[tuple[int, int] | None], words: Sequence[tuple[int, int]]) -> list[Unit]:
    """The words that a piece begins in, in their order; with `words` those, and otherwise what the signs say."""
    units: list[Unit] = []
    starts = [first for first, _ in words]
    last_word, last_start = -1, -1
    for token, place in enumerate(offsets):
        if place is None:
            continue
        start, end = place
        while start < end and text[start].isspace():
            start += 1
        if start == end:
            continue
        if words:
            word = bisect_right(starts, start) - 1
            if word < 0 or start >= words[word][1] or word == last_word:
                continue
            last_word = word
            units.append(Unit(token, *words[word]))
        elif start != last_start and _begins_word(text, start):
            if units and units[-1].end > start:  # a piece of bytes may reach into the next character
                units[-1] = units[-1]._replace(end=start)
            units.append(Unit(token, start, end))
        elif units:
            units[-1] = units[-1]._replace(end=max(end, units[-1].end))
        last_start = start
    return units


def _begins_word(text: str, place: int) -> bool:
    if place == 0 or is_wide(text[place]):
        return True
    before = text[place - 1]
    return is_wide(before) or not (_is_letter(before) and _is_letter(text[place]))


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def names_of(sentence: Sentence, window: Window, start: int) -> list[str]:
    """The name of what is to be said of each of the window's units, which begins at `start` of the sentence's text."""
    if sentence.classes:
        by_start = {first: name for (first, _), name in zip(sentence.words, sentence.classes, strict=True)}
        return [by_start[start + unit.start] for unit in window.units]
    names = []
    place = 0
    begun = -1
    for unit in window.units:
        first, last = start + unit.start, start + unit.end
        while place < len(sentence.spans) and sentence.spans[place].end <= first:
            place += 1
        if place == len(sentence.spans) or sentence.spans[place].start >= last:
            names.append("O")
            continue
        names.append(f"{'I' if begun == place else 'B'}-{sentence.spans[place].label}")
        begun = place
    return names
