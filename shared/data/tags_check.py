"""Are these sentences with tags a task? What is remembered of them as they go by, in bounded memory; what is doubtful about it;
and, for `start`, what was seen within a budget of time. The worker reads and judges the same rows in the same way.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memsup.shared.clock import monotonic_s
from memsup.shared.data.columns import listed
from memsup.shared.data.doubts import Doubt, DoubtKind, Shown, Verdict
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.examples import at
from memsup.shared.data.rows import notes_on
from memsup.shared.data.seen import SeenRows, estimate_tokens, quantile
from memsup.shared.data.sources import Source
from memsup.shared.data.streams import head_of
from memsup.shared.data.tag_files import is_wide, locate_tagged
from memsup.shared.data.tags import NO_TEXT, OUTSIDE, FaultKind, Fields, Sentence, Writing, find_fields, read_sentences

if TYPE_CHECKING:
    from memsup.shared.settings import Task

MOST_LABELS = 500
_MOST_TEXTS = 1 << 15
_LOOKED_AT_TOGETHER = 64
_SHOWN_CHARS, _SHOWN_SPANS = 300, 6
_EDGES_SHARE, _FEWEST_EDGES = 0.25, 3
"""Single spans inside of words are right in many languages; so many are places that are counted wrongly."""
_SHARED_SHARE, _LEAST_EVALUATED = 0.5, 10
_MOST_NAMED = 6
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Tibetan, Burmese and Khmer are written without blanks between words as well."""


@dataclass
class TagEvidence:
    """Takes sentences one by one."""

    fields: Fields
    sentences: int = 0
    blank: int = 0
    words: int = 0
    complete: bool = True
    labels: Counter[str] = field(default_factory=Counter)
    """The spans of each label, or the words of each class."""
    letters: set[str] = field(default_factory=set)
    faults: Counter[FaultKind] = field(default_factory=Counter)
    first_fault: dict[FaultKind, str] = field(default_factory=dict)
    """Of each kind where it is first, with the word and its tag."""
    edges: int = 0
    """Spans that begin or end inside of a word."""
    first_edge: str = ""
    first: dict[str, Shown] = field(default_factory=dict)
    """The first sentence with each label."""
    first_without: Shown | None = None
    texts: dict[int, int] = field(default_factory=dict)
    """The hashes of the first sentences, and how often each came."""
    chars: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)

    def takes(self, sentence: Sentence) -> bool:
        """Takes a sentence into account, and says whether it is one to learn from."""
        if not sentence.text.strip():
            self.blank += 1
            return False
        self.sentences += 1
        self.words += len(sentence.words)
        self.letters |= sentence.letters
        names = list(sentence.classes) or [span.label for span in sentence.spans]
        for name in names:
            self.labels[name] += 1
            if self.labels[name] == 1 and len(self.first) <= MOST_LABELS:
                self.first[name] = _shown(sentence)
        if not names and self.first_without is None:
            self.first_without = _shown(sentence)
        for fault in sentence.faults:
            self.faults[fault.kind] += fault.spans
            self.first_fault.setdefault(fault.kind, f"{at(sentence.file, fault.line)}: {fault.what}")
        if self.fields.writing is None:
            self._look_at_edges(sentence)
        number = int.from_bytes(hashlib.blake2b(sentence.text.strip().encode(), digest_size=8).digest())
        if number in self.texts or len(self.texts) < _MOST_TEXTS:
            self.texts[number] = self.texts.get(number, 0) + 1
        self.chars[len(sentence.text)] += 1
        self.tokens[estimate_tokens(sentence.text)] += 1
        return True

    def _look_at_edges(self, sentence: Sentence) -> None:
        for span in sentence.spans:
            if any(_is_inside(sentence.text, place) for place in (span.start, span.end)):
                self.edges += 1
                self.first_edge = self.first_edge or (
                    f"{at(sentence.file, sentence.line)}: {sentence.text[span.start : span.end][:40]!r} in "
                    f"{sentence.text[max(0, span.start - 12) : span.end + 12][:80]!r}"
                )

    def share_shared(self, other: TagEvidence) -> float:
        """The share of these sentences that `other` has as well, 0 to 1, of those that both remember."""
        return sum(rows for number, rows in self.texts.items() if number in other.texts) / max(1, sum(self.texts.values()))

    @property
    def scheme(self) -> str:
        """What the tags' scheme is called; empty where there are no tags of spans."""
        if self.fields.writing in (None, Writing.CLASSES, Writing.INSIDE):
            return ""
        return "BIOES" if self.letters & {"E", "S"} else "IOB2" if "^" in self.letters else "IOB1"


def _is_inside(text: str, place: int) -> bool:
    """Whether a place in a text is in the middle of a word."""
    if not 0 < place < len(text):
        return False
    around = text[place - 1], text[place]
    return all(char.isalnum() and not is_wide(char) and not _WITHOUT_BLANKS.match(char) for char in around)


def _shown(sentence: Sentence) -> Shown:
    if sentence.classes:
        places = sentence.words[: 2 * _SHOWN_SPANS]
        pairs = zip(places, sentence.classes, strict=False)
        label = " ".join(f"{sentence.text[start:end]}/{name}" for (start, end), name in pairs)
    else:
        found = sentence.spans[:_SHOWN_SPANS]
        more = f" and {len(sentence.spans) - len(found)} more" if len(sentence.spans) > len(found) else ""
        label = ", ".join(f"{span.label}: {sentence.text[span.start : span.end]}" for span in found) + more or OUTSIDE
    return Shown(sentence.text[:_SHOWN_CHARS], None, label[:_SHOWN_CHARS], str(sentence.file), sentence.line)


# --------------------------------------------------------------------------------------------------------------------
# What it comes to


def output_names(evidence: TagEvidence) -> list[str]:
    """What the model's outputs are called: the classes of words, or `O` and for each label of spans where one begins and where
    it goes on, as transformers' pipeline reads them.
    """
    labels = sorted(evidence.labels.keys() | (evidence.fields.only or ()))  # of a head not all are seen that are named
    if evidence.fields.writing is Writing.CLASSES:
        return labels
    return [OUTSIDE, *(f"{letter}-{label}" for label in labels for letter in "BI")]


def check_rows(source: Source, evidence: TagEvidence, known: TagEvidence | None = None) -> None:
    """Raises InputError where the rows of `evidence` make no task. Evaluation data have no labels but `known` ones."""
    fields, labels = evidence.fields, evidence.labels
    if not evidence.sentences:
        raise InputError(f"No row of {source} has words in {fields.text!r}: name another column with task.text.")
    if known is not None:
        unknown = sorted(set(labels) - set(known.labels)) if known.complete else []
        if unknown:
            shown = evidence.first[unknown[0]]
            raise InputError(
                f"{shown.file}, line {shown.line}: the label {unknown[0]!r} does not occur in the training data, which has "
                f"{listed(sorted(known.labels))}: correct it, add such rows to the training data, or choose labels with "
                "task.labels."
            )
        return
    if not evidence.complete and len(labels) <= MOST_LABELS:
        return
    if fields.only is not None and (absent := sorted(fields.only - set(labels))):
        raise InputError(f"task.labels names {absent[0]!r}, which no row of {source} has in {fields.label!r}.")
    if not labels:
        raise NoTaskError(
            f"No row of {source} has a span: all tags in {fields.label!r} say O, or it holds no spans. Name another column "
            "with task.label."
        )
    if len(labels) > MOST_LABELS or (fields.writing is Writing.CLASSES and len(labels) < 2):
        raise NoTaskError(
            f"Column {fields.label!r} of {source} has {len(labels):,} different tags, so it is none of tags: name another one "
            "with task.label."
        )


def judge(evidence: TagEvidence, evaluation: TagEvidence | None = None) -> Verdict:
    """What `evidence`, of the training data, comes to. `evaluation` is of the data to evaluate on, if there are any."""
    doubts = [*_sequences(evidence), *_edges(evidence), *_spellings(evidence), *_columns(evidence)]
    if evaluation is not None:
        doubts += [*_sequences(evaluation), *_edges(evaluation), *_shared(evidence, evaluation)]
    rows = [evidence.first[label] for label, _ in evidence.labels.most_common() if label in evidence.first]
    rows += [evidence.first_without] if evidence.first_without else []
    examples = list({(shown.file, shown.line): shown for shown in rows}.values())[:3]
    complete = evidence.complete and (evaluation is None or evaluation.complete)
    return Verdict(tuple(doubts), tuple(examples), complete)


def _sequences(evidence: TagEvidence) -> Iterator[Doubt]:
    begun, left_open = (evidence.faults[kind] for kind in (FaultKind.BEGINS_INSIDE, FaultKind.IS_LEFT_OPEN))
    spans = sum(evidence.labels.values())
    if evidence.scheme in ("IOB2", "BIOES") and begun:
        yield Doubt(
            DoubtKind.TAG_SEQUENCE,
            f"The tags are {evidence.scheme}, in which a span begins with B{' or S' * (evidence.scheme == 'BIOES')}, and "
            f"{begun:,} of {spans:,} spans begin otherwise; the first is {evidence.first_fault[FaultKind.BEGINS_INSIDE]}. They "
            "are taken for spans, as the usual evaluation does.",
        )
    if evidence.scheme == "BIOES" and left_open:
        yield Doubt(
            DoubtKind.TAG_SEQUENCE,
            f"The tags are BIOES, in which a span ends with E or S, and {left_open:,} of {spans:,} spans do not; the first "
            f"ends with {evidence.first_fault[FaultKind.IS_LEFT_OPEN]}. They are taken for spans, as the usual evaluation "
            "does.",
        )


def _edges(evidence: TagEvidence) -> Iterator[Doubt]:
    spans = sum(evidence.labels.values())
    if evidence.edges >= max(_FEWEST_EDGES, _EDGES_SHARE * spans):
        yield Doubt(
            DoubtKind.SPAN_EDGES,
            f"{evidence.edges:,} of {spans:,} spans begin or end inside of a word, so their places may be counted from 1, or "
            f"in bytes; the first is {evidence.first_edge}.",
        )


def _spellings(evidence: TagEvidence) -> Iterator[Doubt]:
    alike: dict[str, list[str]] = {}
    for label in evidence.labels:
        alike.setdefault(re.sub(r"[\s_-]", "", label.casefold()), []).append(label)
    groups = [sorted(names) for names in alike.values() if len(names) > 1]
    if groups:
        shown = "; ".join(" and ".join(f"{name!r} ({evidence.labels[name]:,})" for name in group[:3]) for group in groups[:3])
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"{len(groups)} label{'s have' if len(groups) > 1 else ' has'} several spellings, each of which would be learnt as "
            f"one of its own: {shown}; make them one in the data.",
        )


def _columns(evidence: TagEvidence) -> Iterator[Doubt]:
    fields = evidence.fields
    if fields.others:
        yield Doubt(
            DoubtKind.LABEL_COLUMN,
            f"The tags are taken from {fields.label!r}, but other columns fit as well: {listed(fields.others)}.",
            tuple(f"task.label={name}" for name in (fields.label, *fields.others[:3])),
        )


def _shared(evidence: TagEvidence, evaluation: TagEvidence) -> Iterator[Doubt]:
    share = evaluation.share_shared(evidence)
    if evaluation.sentences >= _LEAST_EVALUATED and share >= _SHARED_SHARE:
        yield Doubt(
            DoubtKind.EVALUATION,
            f"About {round(100 * share)} % of the {evaluation.sentences:,} rows to evaluate on are trained on as well, so the "
            "result would say what was learnt by heart.",
            ("task.eval=auto",),
        )


# --------------------------------------------------------------------------------------------------------------------
# For `start`


def check_tags(task: Task, *, budget_s: float) -> tuple[SeenRows, SeenRows | None, Verdict]:
    """What was seen of the training and the evaluation data within about `budget_s`, and what it comes to. None of the
    evaluation data means that a share of the training data will be held out. Raises InputError for the first thing wrong.
    """
    if task.train is None:
        raise InputError(
            "task.train is not set: name a file of columns (a word and its tag on each line), JSON or Parquet with lists of "
            "words and tags or with spans."
        )
    defaults = type(task)()
    for name in ("text_pair", "class_weights", "problem_type"):
        if getattr(task, name) != getattr(defaults, name):
            raise InputError(f"task.{name} is for texts that are classified, and task.kind is {task.kind}: leave it away.")
    located = locate_tagged(task.train)
    if task.stream:
        located = head_of(located)
    evaluated = located.evaluation if task.eval is None else locate_tagged(task.eval, evaluates=True)
    fields = find_fields(located, text=task.text, label=task.label, labels=task.labels)
    deadline_s = monotonic_s() + budget_s * (1.0 if evaluated is None else 0.7)
    train = _looked_at(located, fields, deadline_s)
    check_rows(located, train)
    if evaluated is None:
        if train.complete and train.sentences < 2:
            raise InputError(f"{located} has too few sentences to hold some out for evaluation: add rows, or set task.eval.")
        return _seen(located, train), None, judge(train)
    evaluation = _looked_at(evaluated, fields, deadline_s + 0.3 * budget_s)
    check_rows(evaluated, evaluation, train)
    return _seen(located, train), _seen(evaluated, evaluation), judge(train, evaluation)


def _looked_at(source: Source, fields: Fields, deadline_s: float) -> TagEvidence:
    evidence = TagEvidence(fields)
    for number, sentence in enumerate(read_sentences(source, fields), start=1):
        evidence.takes(sentence)
        if len(evidence.labels) > MOST_LABELS or (number % _LOOKED_AT_TOGETHER == 0 and monotonic_s() > deadline_s):
            evidence.complete = False
            break
    evidence.complete = evidence.complete and not source.is_head
    return evidence


def _seen(source: Source, evidence: TagEvidence) -> SeenRows:
    chars, fields = evidence.chars, evidence.fields
    classes = fields.writing is Writing.CLASSES
    what = "a class for each word" if classes else f"spans of {len(evidence.labels)} label{'s' * (len(evidence.labels) != 1)}"
    return SeenRows(
        source=source,
        notes=notes_on(source),
        rows=evidence.sentences,
        left_out={NO_TEXT: evidence.blank} if evidence.blank else {},
        complete=evidence.complete,
        learnt=f"{what} in {fields.text!r}, from {fields.label!r}",
        about=(("labels", about_labels(evidence)),),
        when_too_long="divided",
        labels=tuple(output_names(evidence)),
        text_chars=(quantile(chars, 0.5), quantile(chars, 0.9), quantile(chars, 0.99), max(chars)),
        token_estimates=evidence.tokens,
    )


def about_labels(evidence: TagEvidence) -> str:
    """The labels with their numbers, the scheme of their tags and what is odd, in a line for people."""
    most = evidence.labels.most_common(_MOST_NAMED)
    shown = ", ".join(f"{name} {rows:,}" for name, rows in most)
    more = f" and {len(evidence.labels) - len(most)} more" if len(evidence.labels) > len(most) else ""
    scheme = f"; the tags are {evidence.scheme}, learnt as IOB2" if evidence.scheme not in ("", "IOB2") else ""
    edges = f"; {evidence.edges:,} begin or end inside of a word" if evidence.edges else ""
    return f"{shown}{more}{scheme}{edges}"
