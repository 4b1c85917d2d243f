"""Sentences with spans: which columns of the data hold them, and each row as a text with its spans, or refused by its file and
line.

Two forms are known: a list of words and a list of their tags, which is also what files of columns come as; and a text with
spans, places in it with a label. Tags say by a letter where a span begins and goes on: IOB1, IOB2 (BIO), BIOES, BILOU and BMES
are read alike, as the field's own evaluation reads them (`spans_of`). Tags without such letters are spans where some are `O`,
and otherwise a class for each word, as parts of speech are.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, cast

from memsup.shared.data.columns import listed, usual_text
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.examples import at
from memsup.shared.data.layout import Kind
from memsup.shared.data.row import Row
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import Source
from memsup.shared.data.tag_cells import are_as_long, are_several, are_tags, as_list, as_words, hold_spans, span_parts
from memsup.shared.data.tag_files import grouped, is_wide, joined

_SAMPLE_ROWS = 1000
_SAMPLE_CHARS = 16 << 20
_WORDS = ("tokens", "words", "token", "word", "text", "sentence", "chars", "form", "字", "词")
_TAGS = ("ner_tags", "ner", "tags", "ner_tag", "labels", "label", "tag", "bio_tags", "iob_tags", "entities", "pos_tags", "upos")
_SPANS = ("entities", "spans", "ents", "entity", "label", "labels", "annotations", "ner", "实体")
_NUMBERING = re.compile(r"(sentence|sent)\b.*|.*(sentence|sent)[_ -]?(id|no|num\w*|#)")
"""What a column is called that numbers sentences."""
OUTSIDE = "O"
NO_TEXT = "they have no text"
ONLY = "span"
"""The label of spans whose tags have a letter alone."""
_CHARACTERS = 0.95
"""So many words of one character, some of them wide, are characters and no words."""


class Writing(enum.StrEnum):
    """How the tags of words say what is a span."""

    LETTER_FIRST = "letter first"
    """`B-PER`."""
    LETTER_LAST = "letter last"
    """`PER-B`."""
    LETTER_ALONE = "letter alone"
    """`B`, of spans of one kind."""
    INSIDE = "inside"
    """`PER` for each word of a span, `O` for what is none."""
    CLASSES = "classes"
    """A class for each word, and no spans."""


class Fields(NamedTuple):
    """Where in the rows the sentences are, and how their tags are written."""

    text: str
    """The column of words, or of the text."""
    label: str
    """The column of tags, or of spans."""
    writing: Writing | None
    """None means that spans are given as places in the text."""
    numbers: tuple[str, ...] = ()
    """What numbers stand for, where tags are numbers."""
    are_characters: bool = False
    """Whether the words are single characters, as data sets of Chinese have them."""
    only: frozenset[str] | None = None
    """The labels of the spans that count; others are no spans. None means that all count."""
    others: tuple[str, ...] = ()
    """Other columns that could hold the tags as well."""
    sentence: str | None = None
    """The column that says to which sentence a word belongs, where each row is a word. None means that a row is a sentence."""


class Span(NamedTuple):
    start: int
    end: int
    """Behind its last character."""
    label: str


class Fault(NamedTuple):
    """What in a sentence's tags is against the rules of their scheme, or may be."""

    kind: FaultKind
    spans: int
    """How many spans of the sentence have it."""
    line: int
    """Where the first one has it."""
    what: str
    """The word there and its tag, for a sentence."""


class FaultKind(enum.Enum):
    BEGINS_INSIDE = enum.auto()
    """A span begins with a tag that goes on with one."""
    IS_LEFT_OPEN = enum.auto()
    """A span ends without the tag that ends one, among others that have it."""


class Sentence(NamedTuple):
    """A row. Where `classes` are empty, `spans` are what is learnt."""

    text: str
    spans: tuple[Span, ...]
    words: tuple[tuple[int, int], ...]
    """Where each word begins and ends. Empty where a row has none: then the tokenizer's words count."""
    classes: tuple[str, ...]
    """The class of each word."""
    file: Path
    line: int
    faults: tuple[Fault, ...] = ()
    letters: frozenset[str] = frozenset()
    """The letters in the tags, and `^` where a span begins with B that need not."""


# --------------------------------------------------------------------------------------------------------------------
# Which columns


def find_fields(source: Source, *, text: str | None, label: str | None, labels: Sequence[str] | None) -> Fields:
    """Where the sentences are: by the columns that a person named, or by usual names and what the first rows hold. Raises
    InputError with what was seen where that tells none.
    """
    sample: list[dict[str, object]] = []
    left = _SAMPLE_CHARS
    for row in islice(read_rows(source), _SAMPLE_ROWS):
        sample.append(row.values)
        left -= sum(len(value) for value in row.values.values() if isinstance(value, str | list | dict))
        if left < 0:
            break
    if not sample:
        raise InputError(f"{source} has no rows: add some.")
    names = list(dict.fromkeys(chain.from_iterable(sample)))
    for key, name in (("text", text), ("label", label)):
        if name is not None and name not in names:
            raise InputError(f"{source} has no column {name!r} (task.{key}). Its columns are {listed(names)}.")
    by_columns = any(file.kind is Kind.TAGGED for file in source.files)
    sentence = None if by_columns else _sentence_column(sample, names)
    if sentence is not None:
        sample = [row.values for row in grouped((Row(Path(), 0, values) for values in sample), sentence)]
    found = _of_words(sample, names, text, label, by_columns=by_columns) or _of_spans(sample, names, text, label)
    if found is None:
        raise NoTaskError(
            f"{source} has no sentences with tags: its columns are {listed(names)}. A row has a list of words and a list of "
            'their tags, {"tokens": ["in", "Paris"], "ner_tags": ["O", "B-LOC"]}, or a text with spans, '
            '{"text": "in Paris", "entities": [{"start": 3, "end": 8, "label": "LOC"}]}; a file of columns has a word, a tab '
            "and its tag on each line, and a blank line between sentences. Columns of other names: task.text, task.label."
        )
    found = found._replace(sentence=sentence, others=tuple(name for name in found.others if name != sentence))
    if found.writing is None:
        return found._replace(only=_only(labels))
    if _are_numbers(sample, found.label):
        if not labels:
            raise NoTaskError(
                f"The tags in column {found.label!r} of {source} are numbers without names: name them in their order, from 0: "
                f"--set task.labels=O,B-PER,I-PER,…"
            )
        numbers = tuple(labels)
    else:
        numbers = ()
    tags = {tag for row in sample for tag in _tags(row.get(found.label), numbers) or ()}
    writing = writing_of(tags)
    if writing is Writing.CLASSES and labels and not numbers:
        writing = Writing.INSIDE  # the classes that count are spans, and all others are none
    return found._replace(
        writing=writing,
        numbers=numbers,
        are_characters=_are_characters(sample, found.text),
        only=None if numbers else _only(labels),
    )


def _only(labels: Sequence[str] | None) -> frozenset[str] | None:
    return None if labels is None else frozenset(re.sub(r"^[BIESLUMW]-", "", name) for name in labels if name != OUTSIDE)


def _sentence_column(sample: Sequence[Mapping[str, object]], names: Sequence[str]) -> str | None:
    """The column that numbers sentences, where each row is a word with its tag. None means that there is none."""
    numbering = [name for name in names if _NUMBERING.match(name.casefold())]
    words = [[row.get(name) for row in sample] for name in names if name not in numbering]
    are_words = all(not isinstance(cell, list) and len(str(cell or "").split()) < 2 for cells in words for cell in cells)
    return numbering[0] if numbering and are_words and any(map(are_tags, words)) else None


def _of_words(
    sample: Sequence[Mapping[str, object]], names: Sequence[str], text: str | None, label: str | None, *, by_columns: bool
) -> Fields | None:
    """A column of words and one of as many tags. Of a file of columns the first and the last, unless it numbers its words."""
    lists = [name for name in names if sum(are_several(row.get(name)) for row in sample) > 0.5 * len(sample)]
    if text is not None and text not in lists:
        return None
    if by_columns:
        words = text or (lists[1] if len(lists) > 2 and _counts_up(sample[0][lists[0]]) else lists[0])
        tags = [name for name in lists if name != words]
        return Fields(words, label or tags[-1], Writing.CLASSES) if tags else None
    by_name = {name.strip().casefold(): name for name in lists}
    words_in = text or next((by_name[name] for name in _WORDS if name in by_name), None)
    if words_in is None:
        return None
    fits = [name for name in lists if name != words_in and are_as_long(sample, words_in, name)]
    if label is not None:
        return Fields(words_in, label, Writing.CLASSES) if label in fits else None
    usual = [by_name[name] for name in _TAGS if by_name.get(name) in fits]
    found = usual[0] if usual else fits[0] if len(fits) == 1 else None
    if found is None:
        return None
    others = tuple(name for name in fits if name != found and are_tags([row.get(name) for row in sample]))
    if found.casefold().startswith("ner"):
        others = ()
    elif not are_tags([row.get(found) for row in sample]):
        others = tuple(name for name in fits if name != found)
    return Fields(words_in, found, Writing.CLASSES, others=others)


def _of_spans(
    sample: Sequence[Mapping[str, object]], names: Sequence[str], text: str | None, label: str | None
) -> Fields | None:
    texts = [name for name in names if any(isinstance(row.get(name), str) for row in sample)]
    spans = [name for name in names if hold_spans(sample, name)]
    by_name = {name.strip().casefold(): name for name in spans}
    found = label or next((by_name[name] for name in _SPANS if name in by_name), spans[0] if len(spans) == 1 else None)
    said = text or usual_text([name for name in texts if name != found])
    return Fields(said, found, None) if said is not None and found in spans else None


def _counts_up(cell: object) -> bool:
    words = as_words(cell) or []
    return len(words) > 1 and [word.partition("-")[0] for word in words[:2]] == ["1", "2"]


def _are_numbers(sample: Sequence[Mapping[str, object]], name: str) -> bool:
    cells = [tag for row in sample[:100] for tag in as_words(row.get(name)) or ()]
    return bool(cells) and all(cell.lstrip("-").isdecimal() for cell in cells)


def _are_characters(sample: Sequence[Mapping[str, object]], name: str) -> bool:
    words = [word for row in sample for word in as_words(row.get(name)) or () if word]
    single = sum(len(word) == 1 for word in words)
    return single >= _CHARACTERS * len(words) and 3 * sum(is_wide(word[0]) for word in words) > len(words)


def writing_of(tags: Sequence[str] | frozenset[str] | set[str]) -> Writing:
    """How these tags, all that are known, are written. Where half of them have a letter first, the others are slips."""
    inside = [tag for tag in tags if tag != OUTSIDE]
    if inside and 2 * sum(re.fullmatch(r"[BIESLUMW][-_].+", tag) is not None for tag in inside) >= len(inside):
        return Writing.LETTER_FIRST
    if any(tag.endswith(("-B", "_B")) for tag in inside) and all(re.fullmatch(r".+[-_][BIESLUMW]", tag) for tag in inside):
        return Writing.LETTER_LAST
    if "B" in inside and all(tag in "BIESLUMW" for tag in inside):
        return Writing.LETTER_ALONE
    return Writing.INSIDE if OUTSIDE in tags else Writing.CLASSES


def _tags(cell: object, numbers: Sequence[str]) -> list[str] | None:
    """The tags in a cell, by name. A number without a name stays one."""
    tags = as_words(cell)
    if tags is None or not numbers:
        return tags
    return [numbers[int(tag)] if tag.isdecimal() and int(tag) < len(numbers) else tag for tag in tags]


# --------------------------------------------------------------------------------------------------------------------
# Rows


def read_sentences(source: Source, fields: Fields) -> Iterator[Sentence]:
    """All rows in their order; a sentence may be blank. Raises InputError at the first that cannot be used."""
    columns = [fields.text, fields.label, *([] if fields.sentence is None else [fields.sentence])]
    rows = read_rows(source, columns)
    slashed = {each.path for each in source.files if each.kind is Kind.SLASHED}
    for file, line, values in rows if fields.sentence is None else grouped(rows, fields.sentence):
        is_columns = isinstance(values.get(fields.text), list) and (
            source.files[0].kind is Kind.TAGGED or fields.sentence is not None
        )
        if fields.writing is None:
            yield _with_spans(values, fields, file, line, are_words=file in slashed)
        else:
            yield _with_tags(values, fields, fields.writing, file, line, step=int(is_columns))


def _with_tags(values: Mapping[str, object], fields: Fields, writing: Writing, file: Path, line: int, *, step: int) -> Sentence:
    """`step` is how many lines further each word stands."""
    words, tags = as_words(values.get(fields.text)), _tags(values.get(fields.label), fields.numbers)
    if words is None or tags is None:
        column = fields.text if words is None else fields.label
        if values.get(column) in (None, ""):
            words, tags = [], []
        else:
            raise InputError(f"{at(file, line)}: column {column!r} holds no list of {'words' if words is None else 'tags'}.")
    if len(words) != len(tags):
        raise InputError(
            f"{at(file, line)} has {len(words)} words in {fields.text!r} and {len(tags)} tags in {fields.label!r}: correct it, "
            "each word has one tag."
        )
    for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
        _refuse_halves(word + tag, file, line + step * place)
        if not tag.strip():
            raise InputError(
                f"{at(file, line + step * place)}: the word {word[:40]!r} has no tag: write O where it is no name."
            )
    text, places = joined(words, tightly=fields.are_characters)
    if fields.numbers and (nameless := set(tags).difference(fields.numbers)):
        place = next(place for place, tag in enumerate(tags) if tag in nameless)
        raise InputError(
            f"{at(file, line + step * place)}: the tag {tags[place][:40]!r} has no name, since task.labels names the numbers "
            f"from 0 to {len(fields.numbers) - 1}: name all of them, or correct it."
        )
    if writing is Writing.CLASSES:
        return Sentence(text, (), tuple(places), tuple(tags), file, line)
    parts = []
    for place, tag in enumerate(tags):
        part = split_tag(tag, writing)
        if part is None:
            raise InputError(
                f"{at(file, line + step * place)}: the tag {tag[:40]!r} is not written as the others are, such as B-PER, I-PER "
                "and O: correct it."
            )
        parts.append(part)
    found, begun, is_open, fresh = spans_of(parts)
    faults = [
        Fault(kind, len(places_of), line + step * places_of[0], f"{words[places_of[0]][:40]!r} {tags[places_of[0]][:40]}")
        for kind, places_of in ((FaultKind.BEGINS_INSIDE, begun), (FaultKind.IS_LEFT_OPEN, is_open))
        if places_of
    ]
    letters = {letter for letter, _ in parts} | ({"^"} if fresh else set())
    spans = [Span(places[first][0], places[last - 1][1], label) for first, last, label in found]
    return Sentence(
        text,
        tuple(span for span in spans if (fields.only is None or span.label in fields.only) and span.start < span.end),
        () if fields.are_characters else tuple(places),
        (),
        file,
        line,
        () if writing is Writing.INSIDE else tuple(faults),
        frozenset(letters),
    )


def split_tag(tag: str, writing: Writing) -> tuple[str, str] | None:
    """The letter and the label of a tag, in which M is I, L is E, and U and W are S. None means that it is not written so."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match writing:
        case Writing.INSIDE:
            return "I", tag
        case Writing.LETTER_ALONE:
            letter, label = tag, ONLY
        case Writing.LETTER_FIRST:
            letter, label = tag[:1], tag[2:]
        case _:
            letter, label = tag[-1:], tag[:-2]
    if letter not in "BIESLUMW" or not label or (writing is Writing.LETTER_FIRST and tag[1:2] not in "-_"):
        return None
    return {"M": "I", "L": "E", "U": "S", "W": "S"}.get(letter, letter), label


class Found(NamedTuple):
    spans: list[tuple[int, int, str]]
    """First word, the word behind the last one, and label."""
    begun_inside: list[int]
    """The words at which a span begins with a tag that goes on with one."""
    left_open: list[int]
    """The words with which a span ends that no tag ends."""
    has_fresh: bool
    """Whether a span begins with B, and no span of its kind is before it."""


def spans_of(parts: Sequence[tuple[str, str]]) -> Found:
    """The spans that tags of letter and label say, as CoNLL's evaluation reads them: a span begins with B or S, and where what
    is before is of another label, has ended or is none; it ends with E or S, and where no word goes on with it.
    """
    spans: list[tuple[int, int, str]] = []
    begun_inside, left_open = [], []
    has_fresh = False
    first: int | None = None
    before, label_before = OUTSIDE, ""
    for place, (letter, label) in enumerate([*parts, (OUTSIDE, "")]):
        goes_on = first is not None and letter in "IE" and label == label_before
        if first is not None and not goes_on:
            spans.append((first, place, label_before))
            if before in "BI":
                left_open.append(place - 1)
            first = None
        if letter != OUTSIDE and first is None:
            first = place
            if letter in "IE":
                begun_inside.append(place)
            elif before == OUTSIDE or label != label_before:
                has_fresh = True
        if letter in "ES" and first is not None:
            spans.append((first, place + 1, label))
            first = None
        before, label_before = letter, label
    return Found(spans, begun_inside, left_open, has_fresh)


def _with_spans(values: Mapping[str, object], fields: Fields, file: Path, line: int, *, are_words: bool) -> Sentence:
    """With `are_words` every word is a span. Where some labels count, those of them that touch and have the same one are one
    span, as the two words of a Chinese name are.
    """
    text = values.get(fields.text)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InputError(f"{at(file, line)}: column {fields.text!r} holds no text.")
    _refuse_halves(text, file, line)
    cell = values.get(fields.label)
    found = [] if cell in (None, "") else as_list(cell)
    if found is None:
        raise InputError(f"{at(file, line)}: column {fields.label!r} holds no list of spans: write {_EXAMPLE}")
    if are_words and fields.only is not None:  # most are of none
        found = [one for one in found if cast(list[str], one)[2] in fields.only]
    try:
        spans = sorted(span for span in (_span(one, text, fields.only) for one in found) if span is not None)
    except ValueError as error:
        raise InputError(f"{at(file, line)}: column {fields.label!r} {error}") from None
    _refuse_halves("".join(span.label for span in spans), file, line)
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise InputError(
                f"{at(file, line)}: the spans {one.label!r} ({one.start} to {one.end}) and {other.label!r} ({other.start} "
                f"to {other.end}) overlap, and a place in a text has one label here: keep one of them."
            )
    if are_words and fields.only is not None:
        whole: list[Span] = []
        for span in spans:
            if whole and whole[-1].end == span.start and whole[-1].label == span.label:
                span = Span(whole.pop().start, span.end, span.label)
            whole.append(span)
        spans = whole
    return Sentence(text, tuple(spans), (), (), file, line)


_EXAMPLE = '[{"start": 3, "end": 8, "label": "LOC"}]'


def _span(one: object, text: str, only: frozenset[str] | None) -> Span | None:
    """A span as it is meant, without blanks at its ends. None means that its label does not count. Raises ValueError with what
    is wrong, as the end of a sentence.
    """
    parts = span_parts(one)
    if parts is None:
        raise ValueError(f"holds {str(one)[:60]}, which is no span: write {_EXAMPLE}")
    start, end, label, said = parts
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"holds {str(one)[:60]}, which is no span: write {_EXAMPLE}")
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"has a span from {start} to {end}, and the text has {len(text)} characters: places are counted in characters from "
            "0, and the end is the place behind the last one."
        )
    inner = text[start:end]
    if isinstance(said, str) and said.strip() != inner.strip():
        raise ValueError(
            f"says that {start} to {end} is {said[:40]!r}, and the text has {inner[:40]!r} there: places are counted in "
            "characters from 0, not in bytes, and the end is the place behind the last one."
        )
    label = str(label).strip()
    if only is not None and label not in only:
        return None
    start, end = start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))
    return Span(start, end, label) if start < end else None


def _refuse_halves(text: str, file: Path, line: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer can take
        raise InputError(
            f"{at(file, line)} holds half a character (\\u{ord(text[error.start]):04x} without its other half): delete it."
        ) from None
