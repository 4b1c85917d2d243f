"""Texts become tokens as transformers makes them of each row that is asked alone, to the last one.

Covers calling the tokenizer in bounded memory, and telling which rows make no token of their own and which make a special one.
Where tokens are kept is `corpus.py`'s business.

A tokenizer takes up to 650 bytes a character (measured, Chinese), so of a long text it is only given the beginning, where that
is known to be enough: cut at a seam, across which no part of the tokenizer looks, and long enough to make more tokens than are
kept. Where no seam is known it gets the whole text, since being right comes before being small.

It also takes more than a microsecond a character, which of a first start is half the time. BERT's looks at single words, so of
each of them it is asked once, and the tokens of a text are put together from those of its words.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from memsup.shared.data.errors import InputError
from memsup.worker.tasks.corpus import Encoded, Text, chars_of

_CHARS_AT_ONCE = 1 << 16
"""How much text is tokenized at once; a single one may be longer."""
_LONG_CHARS_A_TOKEN, _FIRST_CHARS_A_TOKEN, _LONGER = 32, 16, 4
"""A text with more characters for each token that is kept is long; how many are tried first, and how much longer the next try
is.
"""
_MOST_KNOWN_CHARS = 1 << 19
"""So many characters of words are remembered with their tokens, some 30 MiB; then it is begun anew."""

_Row = tuple[list[int], list[int]]
"""A row's tokens and their types."""
_Place = tuple[int | None, int, int]
"""A part of a row: which of its texts, or None for what is added; the token that is added; the type."""


class Tokens:
    """The encoder that the corpus is made with."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._gives_types = "token_type_ids" in tokenizer.model_input_names
        self._seam, self._word = find_seam(tokenizer), find_word(tokenizer)
        self._known: dict[str, list[int]] = {}
        """The tokens of words."""
        self._known_chars = 0
        self._special = _special_tokens(tokenizer)
        self._added = {pair: tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)}
        self._added_special = {
            pair: Counter(token for token in self._call([text])["input_ids"][0] if token in self._special)
            for pair, text in ((False, ""), (True, ("", "")))
        }
        # What makes numbers of characters, without a vocabulary, does not say which is the largest.
        self.vocabulary_size = 1 + max(tokenizer.get_vocab().values()) if tokenizer.is_fast else 1 << 32

    def encode(self, texts: list[Text]) -> Encoded:
        """The rows as `tokenizer(text, truncation=True, max_length=…)` makes them one by one. Raises InputError where that
        length leaves no room for a text.
        """
        asked = [self._asked(text) for text in texts]
        added = np.array([self._added[isinstance(text, tuple)] for text in asked])
        if self._max_length <= added.max(initial=0):
            raise InputError(
                f"training.max_length = {self._max_length} leaves no room for a text, since this tokenizer adds {added.max()} "
                f"tokens to each: set it to {added.max() + 1} or more."
            )
        rows = [row for some in _portions(asked) for row in self._rows(some)]
        tokens = [tokens for tokens, _ in rows]
        return Encoded(
            tokens,
            [types for _, types in rows] if self._gives_types else None,
            tokenless=np.fromiter(map(len, tokens), np.int64, len(tokens)) <= added,
            special=self._special_made(asked, tokens),
        )

    def _asked(self, text: Text) -> Text:
        """As the tokenizer takes it when it is asked for one row: a fast one takes a pair with nothing in it for one text."""
        return text[0] if isinstance(text, tuple) and self._tokenizer.is_fast and not text[1] else text

    def _rows(self, texts: list[Text]) -> list[_Row]:
        """Tokens and types of each row. Where a fast tokenizer cuts two texts, it also makes rows of each rest of the one with
        each of the other: two of 2,000 characters take it 10 s (measured, 13 tokens), so pairs are cut here.
        """
        cut_here = [isinstance(text, tuple) and self._tokenizer.is_fast for text in texts]
        others = [text for text, here in zip(texts, cut_here, strict=True) if not here]
        wanted = [self._beginning(text, self._max_length) if isinstance(text, str) else text for text in others]
        rows = iter(self._of_words(wanted) if self._word else self._of_texts(wanted))
        return [self._pair(*text) if here else next(rows) for text, here in zip(texts, cut_here, strict=True)]

    def _of_words(self, texts: list[Any]) -> Iterator[_Row]:
        return (self._put_together([own]) for own in self._own_tokens(texts, self._max_length - self._added[False]))

    def _of_texts(self, texts: list[Text]) -> Iterator[_Row]:
        found = self._call(texts, truncation=True, max_length=self._max_length) if texts else {"input_ids": []}
        return zip(found["input_ids"], found.get("token_type_ids", found["input_ids"]), strict=True)

    def _call(self, texts: Sequence[Text], **how: Any) -> Any:
        return self._tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=self._gives_types, verbose=False, **how
        )

    def _own_tokens(self, texts: list[str], most: int | None = None) -> list[list[int]]:
        """The tokens of each text, without those that are added: all of them, or the first ones."""
        if self._word is None:
            return [own[:most] for own in self._own(texts)]
        words = [self._word.findall(text) for text in texts]
        if self._known_chars > _MOST_KNOWN_CHARS:
            self._known, self._known_chars = {}, 0
        new = list({*itertools.filterfalse(self._known.__contains__, itertools.chain.from_iterable(words))})
        self._known.update(zip(new, self._own(new), strict=True))
        self._known_chars += sum(map(len, new))
        known = self._known.__getitem__
        return [[*itertools.islice(itertools.chain.from_iterable(map(known, of_text)), most)] for of_text in words]

    def _own(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._call(texts, add_special_tokens=False)["input_ids"] if texts else []
        return found

    def _put_together(self, own: list[list[int]]) -> _Row:
        """A row of the own tokens of one text or two, in their places between what the tokenizer adds."""
        tokens: list[int] = []
        types: list[int] = []
        for text, token, token_type in self._places[len(own) - 1]:
            part = [token] if text is None else own[text]
            tokens += part
            types += [token_type] * len(part)
        return tokens, types

    @functools.cached_property
    def _places(self) -> tuple[list[_Place], list[_Place]]:
        """What a row of one text is put together from, and one of two."""
        pad = self._tokenizer.pad_token
        return self._places_of(pad), self._places_of((pad, pad))

    def _places_of(self, text: Text) -> list[_Place]:
        found = self._call([text])
        types = found["token_type_ids"][0] if self._gives_types else found["input_ids"][0]
        return list(zip(found.sequence_ids(0), found["input_ids"][0], types, strict=True))

    # -----------------------------------------------------------------------------------------------------------------
    # Two texts

    def _pair(self, first: str, second: str) -> _Row:
        """Both texts, cut as `longest_first` has it, in their places between what the tokenizer adds."""
        room = self._max_length - self._added[True]
        beginnings = [self._beginning(text, room) for text in (first, second)]
        own = self._own_tokens(beginnings)
        lengths = len(own[0]), len(own[1])
        is_cut = [beginning is not text for beginning, text in zip(beginnings, (first, second), strict=True)]
        # Which text makes more tokens has to be certain, or of no consequence.
        if (all(is_cut) and room % 2) or (any(is_cut) and not all(is_cut) and is_cut[0] != (lengths[0] > lengths[1])):
            own = self._own_tokens([first, second])
            lengths = len(own[0]), len(own[1])
        if sum(lengths) > room:
            kept = _longest_first(*lengths, room)
            from_left = self._tokenizer.truncation_side == "left"
            own = [part[len(part) - n :] if from_left else part[:n] for part, n in zip(own, kept, strict=True)]
        return self._put_together(own)

    # -----------------------------------------------------------------------------------------------------------------
    # How much of a long text is needed

    def _beginning(self, text: str, tokens: int) -> str:
        """A beginning that ends at a seam and makes more than so many tokens, or else the whole text."""
        if self._seam is None or len(text) <= self._max_length * _LONG_CHARS_A_TOKEN:
            return text
        least_chars = self._max_length * _FIRST_CHARS_A_TOKEN
        while (seam := self._seam.search(text, least_chars)) is not None:
            beginning = text[: seam.end()]
            if len(self._own_tokens([beginning])[0]) > tokens:
                return beginning
            least_chars = _LONGER * seam.end()
        return text

    # -----------------------------------------------------------------------------------------------------------------
    # Special tokens

    def _special_made(self, asked: list[Text], tokens: list[list[int]]) -> dict[int, list[int]]:
        lengths = [len(row) for row in tokens]
        every = np.fromiter(itertools.chain.from_iterable(tokens), np.int64, sum(lengths))
        is_special = np.isin(every, list(self._special))
        counts = np.bincount(np.repeat(np.arange(len(tokens)), lengths)[is_special], minlength=len(tokens))
        added = np.array([self._added_special[isinstance(text, tuple)].total() for text in asked])
        return {
            int(row): sorted(
                Counter(token for token in tokens[row] if token in self._special)
                - self._added_special[isinstance(asked[row], tuple)]
            )
            for row in np.flatnonzero(counts > added)
        }


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens are kept of two texts that make so many, more than there is room for: the longer one is cut until both
    are equal, then both.
    """
    shorter = min(first, second)
    less, more = (shorter, room - shorter) if 2 * shorter <= room else (room // 2, room - room // 2)
    return (more, less) if first > second else (less, more)


def _special_tokens(tokenizer: Any) -> frozenset[int]:
    """The numbers of the tokens that mean something to the model besides their text. The unknown one is none of them, unless it
    has another part to play as well.
    """
    names = [name for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name != "unk_token"]
    parts = {getattr(tokenizer, f"{name}_id") for name in names}
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((marked | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - parts) - {None})


def _portions(texts: list[Text]) -> Iterator[list[Text]]:
    """The rows some at a time; a single one may be longer."""
    some: list[Text] = []
    chars = 0
    for text in texts:
        some.append(text)
        chars += chars_of(text)
        if chars >= _CHARS_AT_ONCE:
            yield some
            some, chars = [], 0
    if some:
        yield some


# --------------------------------------------------------------------------------------------------------------------
# Seams
#
# A seam is a place in a text at which it can be cut so that the tokens of what is before are the first ones of the whole text.
# It takes three proofs: no normalizer looks across (each of those below works on single characters, or on a character and the
# marks that belong to it), the pre-tokenizer always ends a word there, and no added token reaches across. A model sees single
# words, and what is added stands around the whole. A part that is not known to be so leaves no seam.

_IDEOGRAPH = r"[\u4e00-\u9fff]"
_PLAIN = r"[0-9A-Za-z\u4e00-\u9fff]"
_WORD = r"[\u4e00-\u9fff]|[^\u4e00-\u9fff ]+"
_BEFORE_BLANK = rf"{_PLAIN}(?= {_PLAIN})"
_BEFORE_PUNCTUATION = rf"{_IDEOGRAPH}(?=[、。,!?;:])"

_LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Strip",
    "StripAccents",
}
_RUNS_OF_BLANKS = {" {2,}", r"\s{2,}|[\n\r\t]"}
_LOCAL_PRE_TOKENIZERS = {"Digits", "Punctuation"}
_WORDS_END = {
    "BertPreTokenizer": (_BEFORE_BLANK, _BEFORE_PUNCTUATION),
    "Whitespace": (_BEFORE_BLANK, _BEFORE_PUNCTUATION),
    "WhitespaceSplit": (_BEFORE_BLANK,),
    "Metaspace": (_BEFORE_BLANK,),
    "ByteLevel": (_BEFORE_BLANK, _BEFORE_PUNCTUATION),
}
"""Pre-tokenizer → where its words always end; the two that can be told not to make words have to make them."""
_LETTERS_END = {
    rf"{start}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for start in ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    for digits in ("", "{1,3}")
}
"""The expressions of GPT-4, Llama 3 and Qwen: none matches a letter or number and more than letters and numbers behind it."""


def find_seam(tokenizer: Any) -> re.Pattern[str] | None:
    """What ends at a seam of this tokenizer. None means that it may look at the whole text."""
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return None
    if not all(_lies_in_a_word(token.content) for token in tokenizer.added_tokens_decoder.values()):
        return None
    normalizers = _parts(tokenizer.backend_tokenizer.normalizer, "normalizers")
    if not all(_is_local(normalizer) for normalizer in normalizers):
        return None
    pre_tokenizers = itertools.dropwhile(
        lambda part: part["type"] in _LOCAL_PRE_TOKENIZERS, _parts(tokenizer.backend_tokenizer.pre_tokenizer, "pretokenizers")
    )
    seams = _words_end(next(pre_tokenizers, {"type": None}))  # what comes after it sees single words
    if seams and normalizers and normalizers[0].get("handle_chinese_chars"):
        seams = (*seams, _IDEOGRAPH)  # blanks are put around each
    return re.compile("|".join(seams)) if seams else None


def find_word(tokenizer: Any) -> re.Pattern[str] | None:
    """What is a word, of a tokenizer that sees no more than one at a time: the tokens of a text are those of its words, one
    after the other. None means that it may look at more.

    BERT's puts blanks around each ideograph, and ends a word at each blank. An added token is found wherever it stands, unless
    it may stand alone only, so that what is beside it counts.
    """
    added = tokenizer.added_tokens_decoder.values()
    if find_seam(tokenizer) is None or any(token.single_word for token in added):
        return None
    backend = tokenizer.backend_tokenizer
    normalizers, pre_tokenizers = _parts(backend.normalizer, "normalizers"), _parts(backend.pre_tokenizer, "pretokenizers")
    kinds = [part["type"] for part in (*normalizers, *pre_tokenizers)]
    if kinds != ["BertNormalizer", "BertPreTokenizer"] or type(backend.model).__name__ != "WordPiece":
        return None
    return re.compile(_WORD if normalizers[0]["handle_chinese_chars"] else "[^ ]+")


def _parts(component: Any, inside: str) -> list[dict[str, Any]]:
    """A component of a tokenizer as its parts in their order, each as tokenizer.json has it."""
    if component is None:
        return []
    described = json.loads(component.__getstate__())
    return described[inside] if described["type"] == "Sequence" else [described]


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern, content = normalizer["pattern"], normalizer["content"]
        if pattern.get("Regex") in _RUNS_OF_BLANKS:
            return content == " "
        return "String" in pattern and _lies_in_a_word(pattern["String"] + content)
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _words_end(pre_tokenizer: dict[str, Any]) -> tuple[str, ...]:
    if pre_tokenizer["type"] == "Split":
        is_known = pre_tokenizer["pattern"].get("Regex") in _LETTERS_END
        whole_words = pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]
        return (_BEFORE_BLANK, _BEFORE_PUNCTUATION) if is_known and whole_words else ()
    if not pre_tokenizer.get("split", True) or not pre_tokenizer.get("use_regex", True):
        return ()
    return _WORDS_END.get(pre_tokenizer["type"], ())


def _lies_in_a_word(content: str) -> bool:
    """Whether it reaches across no seam, in whatever way it is normalized."""
    normalized = unicodedata.normalize("NFKC", content)
    return not any(char.isspace() or re.match(f"{_IDEOGRAPH}|[、。,!?;:]", char) for char in content + normalized)
