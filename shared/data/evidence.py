"""What is remembered of rows that go by, in bounded memory, so that `judge.py` can say what they are. Pure."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from memsup.shared.data.columns import Table
from memsup.shared.data.doubts import Shown
from memsup.shared.data.examples import Example, is_blank
from memsup.shared.data.looks import Look, is_broken, look
from memsup.shared.data.marks import mark_of

MOST_LABELS = 1000
"""Data with more different labels are none of a classifier."""
_MOST_TEXTS = 1 << 15
_MOST_LABEL_CHARS = 300
_LOOKED_AT_FIRST = 128
_LOOKED_AT_LATER = 16
"""Of each label the first texts are all looked at, then one in so many."""
_SHOWN_CHARS = 300
_AT_ENDS = " .,;:!?\"'。，；：！？…“”"


@dataclass
class _Text:
    """A text that was seen, by its hash."""

    label: str
    rows: int = 0
    contradicted: bool = False


@dataclass
class Evidence:
    """Takes rows one by one. Which texts come again is remembered of a share of all texts, chosen by their hashes."""

    table: Table
    only: frozenset[str] | None = None
    """The labels that count; where a text has several, the others are left away and not its row. None means that all do."""
    rows: int = 0
    """Rows that were taken: each has a text and a label that counts."""
    blank: int = 0
    """Rows without a text, which are left out."""
    others: Counter[str] = field(default_factory=Counter)
    """Rows left out for a label that does not count, by that label."""
    complete: bool = True
    """Whether all rows were seen."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows of each label. Scores are no labels: all rows count for the name of their column."""
    lowest: float = math.inf
    """The lowest and the highest of the scores, where such are learnt."""
    highest: float = -math.inf
    first: dict[str, Shown] = field(default_factory=dict)
    """The first row of each label."""
    looks: dict[str, Counter[Look]] = field(default_factory=lambda: defaultdict(Counter))
    """What the texts of each label look like, as far as they were looked at."""
    with_fields: Counter[str] = field(default_factory=Counter)
    """Of the texts of each label that were looked at, how many hold a tab or a bar with a word or number alone behind it."""
    broken: int = 0
    """Of the texts that were looked at, how many a wrong encoding has broken."""
    first_broken: Shown | None = None
    same_as_label: int = 0
    """Of the texts that were looked at, how many are their label and nothing else."""
    as_long_as_label: int = 0
    """Of the texts that were looked at, how many have as many characters or words as their label says."""
    marks: Counter[str] = field(default_factory=Counter)
    """Rows of each mark that another column gives them."""
    header: Shown | None = None
    """The first row that repeats the names of the columns. None means that none does."""
    texts: dict[int, _Text] = field(default_factory=dict)
    hashes_below: int = 1 << 64
    """The texts that are remembered have hashes below this."""

    def takes(self, row: Example) -> bool:
        """Takes a row into account, and says whether it is one to learn from."""
        if is_blank(row.text, row.text_pair):
            self.blank += 1
            return False
        is_class = self.table.problem_type == "single_label_classification"
        if is_class and self.only is not None and row.label not in self.only:
            self.others[row.label if len(self.others) < MOST_LABELS else "others"] += 1
            return False
        self._add(row)
        return True

    def _add(self, row: Example) -> None:
        self.rows += 1
        match self.table.problem_type:
            case "regression":
                self.lowest, self.highest = min(self.lowest, float(row.label)), max(self.highest, float(row.label))
                names: tuple[str, ...] = (self.table.columns.label,)
            case "multi_label_classification":
                names = row.labels
            case _:
                names = (row.label,)
        for label in names:
            self._count(label, row)
        if row.mark and (mark := mark_of(self.table.marks or "", row.mark)) and len(self.marks) < MOST_LABELS:
            self.marks[mark] += 1
        columns = self.table.columns
        if (
            len(row.text) <= 2 * len(columns.text)
            and not self.header
            and _is(row.text, columns.text)
            and _is(row.label, columns.label)
        ):
            self.header = _shown(row)
        self._remember(row)

    def _count(self, label: str, row: Example) -> None:
        self.labels[label] += 1
        of_label = self.labels[label]
        if of_label == 1 and len(self.first) <= MOST_LABELS:
            self.first[label] = _shown(row)
        if of_label <= _LOOKED_AT_FIRST or of_label % _LOOKED_AT_LATER == 0:
            self.looks[label][look(row.text)] += 1
            self.with_fields[label] += _ends_with_field(row.text)
            self.same_as_label += _is(row.text, row.label)
            self.as_long_as_label += row.label in (str(len(row.text)), str(len(row.text.split())))
            if is_broken(row.text):
                self.broken += 1
                self.first_broken = self.first_broken or _shown(row)

    def looked_at(self, label: str) -> int:
        return self.looks[label].total() if label in self.looks else 0

    def share_shared(self, other: Evidence) -> float:
        """The share of this evidence's rows whose text is in `other`, 0 to 1, of the texts that both remember."""
        below = min(self.hashes_below, other.hashes_below)
        mine = {number: seen.rows for number, seen in self.texts.items() if number < below}
        return sum(rows for number, rows in mine.items() if number in other.texts) / max(1, sum(mine.values()))

    def share_contradicted(self) -> float:
        """The share of rows whose text has another label elsewhere, 0 to 1."""
        rows = sum(seen.rows for seen in self.texts.values())
        return sum(seen.rows for seen in self.texts.values() if seen.contradicted) / max(1, rows)

    def _remember(self, row: Example) -> None:
        text = _alike(row.text) if row.text_pair is None else f"{_alike(row.text)}\0{_alike(row.text_pair)}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        if number >= self.hashes_below:
            return
        seen = self.texts.get(number)
        if seen is None:
            seen = self.texts[number] = _Text(row.label)
        seen.rows += 1
        seen.contradicted = seen.contradicted or seen.label != row.label
        if len(self.texts) > _MOST_TEXTS:
            self.hashes_below //= 2
            self.texts = {number: seen for number, seen in self.texts.items() if number < self.hashes_below}


def _alike(text: str) -> str:
    """The same for texts that differ in case, in blanks, and in the signs at their ends alone."""
    folded = text.casefold().replace("ı", "i").replace("i\u0307", "i")  # whose capitals are those of others in Turkish
    return " ".join(folded.split()).strip(_AT_ENDS) or text.strip()


def _is(value: str, name: str) -> bool:
    return value.strip().casefold() == name.strip().casefold()


def _shown(row: Example) -> Shown:
    pair = None if row.text_pair is None else row.text_pair[:_SHOWN_CHARS]
    return Shown(row.text[:_SHOWN_CHARS], pair, row.label[:_MOST_LABEL_CHARS], str(row.file), row.line)


def _ends_with_field(text: str) -> bool:
    """Whether it holds a tab with a short field behind it, a bar with a single word or number behind it, or fastText's mark."""
    rest, tab, last = text.rstrip("\r\n").rpartition("\t")
    if not tab:
        rest, _, last = text.rpartition("|")
    if rest.strip() and last.strip() and len(last) <= 40 and (tab or len(last.split()) == 1):
        return True
    return text.startswith("__label__")
