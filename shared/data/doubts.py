"""What a look at data comes to: what is doubtful about them, and what settles it. How a doubt is found is in `judge.py`."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DoubtKind(enum.StrEnum):
    """One way in which data may be other than a classifier's training data; the name by which a person accepts it."""

    HEADER = "header"
    """The names of the columns among the rows."""
    NO_LABEL = "no-label"
    """A label that stands for a missing one, such as -1, nan or unknown."""
    JOINED_LABELS = "joined-labels"
    """Cells that hold several labels, as a list or joined by a sign."""
    SPELLINGS = "spellings"
    """Labels that are one label in several spellings."""
    SCALE = "scale"
    """Labels that are numbers on a scale, or dates."""
    RARE_LABEL = "rare-label"
    """A class of a few rows beside classes of many."""
    PARTS = "parts"
    """Classes that are parts of a data set, lists or notes rather than labels."""
    LABEL_COLUMN = "label-column"
    """Other columns that could hold the label as well."""
    SECOND_TEXT = "second-text"
    """Another column of text, which is not used."""
    REJECTED_ROWS = "rejected-rows"
    """Rows of which another column says that somebody has rejected them."""
    BROKEN_TEXT = "broken-text"
    """Texts whose characters a wrong encoding has broken."""
    NO_LANGUAGE = "no-language"
    """Texts that are links, ids, numbers, data, or their label."""
    CONTRADICTIONS = "contradictions"
    """The same texts with different labels."""
    EVALUATION = "evaluation"
    """Evaluation data that cannot tell what was learnt: trained on as well, or of one label."""
    TAG_SEQUENCE = "tag-sequence"
    """Tags of words in an order that their scheme does not have, such as one that goes on with a span where none is."""
    SPAN_EDGES = "span-edges"
    """Spans that begin or end inside of words."""
    HEAD_LABELS = "head-labels"
    """A model's head with other labels, which may be meant for those of the data."""
    FROM_NOTHING = "from-nothing"
    """A model's folder with a tokenizer and without weights."""


class Answer(enum.StrEnum):
    """What data are, as far as they were looked at."""

    CLEAR = "clear"
    DOUBTFUL = "doubtful"
    NO_TASK = "not a set of this task"


@dataclass(frozen=True)
class Doubt:
    """Something that a person has to look at before anything is trained."""

    kind: DoubtKind
    what: str
    """One sentence with its numbers."""
    settle: tuple[str, ...] = ()
    """Settings that settle it, as KEY=VALUE, each by itself. Empty where only the data can be changed, or accepted."""
    labels: tuple[str, ...] = ()
    """Labels whose rows show it."""


@dataclass(frozen=True)
class Shown:
    """A row as it would be trained, its texts cut to what a person reads."""

    text: str
    text_pair: str | None
    """The second text. It is None where there are no pairs."""
    label: str
    file: str
    line: int


@dataclass(frozen=True)
class Verdict:
    """What was found, with rows to show it. Where `complete` is False it is of the rows that were read."""

    doubts: tuple[Doubt, ...]
    examples: tuple[Shown, ...]
    complete: bool

    @property
    def answer(self) -> Answer:
        return Answer.DOUBTFUL if self.doubts else Answer.CLEAR

    def unsettled(self, accepted: list[DoubtKind]) -> list[Doubt]:
        """The doubts that nobody has accepted."""
        return [doubt for doubt in self.doubts if doubt.kind not in accepted]
