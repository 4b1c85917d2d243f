"""Whether data are what a classifier learns from, judged by their shape: what is doubtful, and what settles it.

Covers columns, texts and evaluation data; labels are judged in `labels.py`. What cannot be a task at all is refused in
`check.py` and `examples.py`. Words are evidence beside a shape, which
shows in any language. All follows from `Evidence`; nothing is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from memsup.shared.data.columns import LABEL_NAMES, Table, fits_label, is_usual_name
from memsup.shared.data.doubts import Doubt, DoubtKind, Shown, Verdict
from memsup.shared.data.evidence import Evidence
from memsup.shared.data.labels import judge_labels, keep, quoted
from memsup.shared.data.layout import Part, counted_in
from memsup.shared.data.looks import Look, is_prose
from memsup.shared.data.marks import REJECTED, part_said

_ODD_SHARE = 0.5
"""So many of all texts, or nearly all of one label, have to be other than language."""
_ODD_SHARE_OF_LABEL = 0.8
_LENGTHS_SHARE = 0.8
_BROKEN_SHARE = 0.03
"""A few broken characters are in most that was gathered from the net."""
_LEAST_LOOKED_AT = 8
"""A share of one label's texts says something of so many and more."""
_CONTRADICTED_SHARE = 0.4
_SHARED_SHARE = 0.5
_LEAST_EVALUATED = 10
_KEYWORDS = ("keyword", "key_word", "tags", "关键词", "关键字")
_LABELS_TOO = ("label", "rating", "star", "score", "sentiment", "class", "category", "标签", "评分", "星级")
# fmt: off
_ORIGINS = (
    "split", "fold", "set", "lang", "source", "platform", "country", "city", "date", "day", "month", "author", "user", "name",
    "gender", "device", "site", "domain", "annotator", "worker", "status", "file", "version", "来源", "平台", "语言", "作者",
    "用户", "城市", "日期", "location", "region", "timezone", "keyword", "地区", "地点", "位置",
)
# fmt: on


def judge(evidence: Evidence, evaluation: Evidence | None = None) -> Verdict:
    """What `evidence`, of the training data, comes to. `evaluation` is of the data to evaluate on, if there are any."""
    classes = evidence.table.problem_type == "single_label_classification"
    of_labels = [] if evidence.table.problem_type == "regression" else list(judge_labels(evidence))
    no_classes = not classes or any(doubt.kind is DoubtKind.PARTS for doubt in of_labels)
    doubts = [*of_labels, *_columns(evidence), *_texts(evidence, contradictions=not no_classes)]
    if evaluation is not None:
        doubts += _evaluation(evidence, evaluation)
    complete = evidence.complete and (evaluation is None or evaluation.complete)
    return Verdict(tuple(doubts), tuple(_examples(evidence, doubts)), complete)


def _examples(evidence: Evidence, doubts: Iterable[Doubt], most: int = 3) -> Iterator[Shown]:
    """Rows that show what is doubtful, then the first ones of the most frequent labels."""
    shown = [*(label for doubt in doubts for label in doubt.labels[:1]), *(label for label, _ in evidence.labels.most_common())]
    yield from [evidence.first[label] for label in dict.fromkeys(shown) if label in evidence.first][:most]


# --------------------------------------------------------------------------------------------------------------------
# Columns


def _columns(evidence: Evidence) -> Iterator[Doubt]:
    table = evidence.table
    unused = {name: values for name, values in table.values.items() if name not in table.columns.names()}
    if "label" not in table.given and table.problem_type == "single_label_classification":
        others = [name for name, values in unused.items() if name != table.marks and _is_label_as_well(name, values, evidence)]
        if others:
            shown = "; ".join(f"{name!r} has {_some(table.values[name])}" for name in others[:3])
            yield Doubt(
                DoubtKind.LABEL_COLUMN,
                f"The label is taken from {table.columns.label!r}, but other columns fit as well: {shown}.",
                tuple(f"task.label={name}" for name in (table.columns.label, *others[:3])),
            )
        elif table.file_names and not table.label_is_file_name and not _says_a_label(table.columns.label):
            yield Doubt(
                DoubtKind.LABEL_COLUMN,
                f"The label is taken from {table.columns.label!r}, but the files have names that could be labels as well: "
                f"{quoted(table.file_names)}. If they are, write them into a column 'label' of the rows.",
                (f"task.label={table.columns.label}",),
            )
    yield from _marked(evidence)
    if "text" not in table.given and (unused_one := unused_text(table)):
        yield Doubt(
            DoubtKind.SECOND_TEXT,
            unused_one,
            (*(f"task.text_pair={name}" for name in _unused_texts(table)[:2]), f"task.text={table.columns.text}"),
        )


def _marked(evidence: Evidence) -> Iterator[Doubt]:
    """Rows that are trained on though another column says that they are not meant for it."""
    name, rows = evidence.table.marks, evidence.marks.total()
    rejected = sorted(evidence.marks.keys() & REJECTED)
    if rejected:
        count = sum(evidence.marks[word] for word in rejected)
        yield Doubt(
            DoubtKind.REJECTED_ROWS,
            f"Column {name!r} says {' or '.join(map(repr, rejected))} of {count:,} of {rows:,} rows, which would be "
            "trained on like all others: delete those that are not meant.",
        )
    parts = {word: part for word in evidence.marks if (part := part_said(word)) is not None}
    if len(set(parts.values())) > 1:
        others = sorted(word for word, part in parts.items() if part is not Part.TRAIN)
        said = " and ".join(f"{word!r} of {evidence.marks[word]:,}" for word in others)
        yield Doubt(
            DoubtKind.REJECTED_ROWS,
            f"Column {name!r} says {said} of {rows:,} rows, which would be trained on like all others: write those of each "
            "part into a file of its own, for task.train and task.eval.",
        )


def unused_text(table: Table) -> str | None:
    """The sentence on a second column of text that is not used. None where there is none."""
    for name in _unused_texts(table):
        example = next(value for value in table.values[name] if value)
        return (
            f"Column {name!r} holds text as well, such as {example[:60]!r}, and is not used: each text is that of "
            f"{table.columns.text!r} alone."
        )
    return None


def _unused_texts(table: Table) -> list[str]:
    if table.columns.text_pair is not None:
        return []
    texts = table.values[table.columns.text]
    unused = {name: values for name, values in table.values.items() if name not in table.columns.names()}
    return [
        name
        for name, values in unused.items()
        if not any(word in name.casefold() for word in _KEYWORDS) and not _is_copy(values, texts) and is_prose(values)
    ]


def _is_copy(values: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether it is the text once more, in small letters say."""
    pairs = [(value, text) for value, text in zip(values, texts, strict=True) if value]
    same = sum(re.sub(r"\W+", "", value.casefold()) == re.sub(r"\W+", "", text.casefold()) for value, text in pairs)
    return same >= 0.9 * len(pairs)


def _is_label_as_well(name: str, values: Sequence[str], evidence: Evidence) -> bool:
    """Whether a person could have meant this column. Not where it says the same in other words."""
    table = evidence.table
    labels = table.values[table.columns.label]
    filled = [(value, label) for value, label in zip(values, labels, strict=True) if value and label]
    if len(filled) < 0.5 * len(values) or not fits_label([value for value, _ in filled]):
        return False
    kinds = len({value for value, _ in filled})
    if len(set(filled)) == kinds == len({label for _, label in filled}):
        return False
    folded = name.strip().casefold()
    is_usual = folded in LABEL_NAMES or "label" in folded or "标签" in folded
    if table.columns.label.strip().casefold() in ("label", "labels", "标签"):
        return is_usual
    coarser = len(set(filled)) == kinds  # the label follows from it, as a sentiment from stars
    return is_usual or coarser or (len(filled) >= 20 and all(_is_name(value) for value, _ in filled) and not _is_origin(folded))


def _says_a_label(name: str) -> bool:
    """Whether the column is called so that it is meant, whatever files are called."""
    folded = name.strip().casefold()
    return is_usual_name(name) or any(part in folded for part in _LABELS_TOO)


def _is_name(value: str) -> bool:
    """Whether it is a word that could name a class: no number, switch or short code."""
    return len(value) > 2 and not any(map(str.isdigit, value)) and value.casefold() not in ("true", "false", "yes", "no")


def _is_origin(name: str) -> bool:
    """Whether the column tells where a row comes from and not what it is."""
    return any(part in name for part in _ORIGINS)


def _some(values: Sequence[str]) -> str:
    found = sorted({value for value in values if value})
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{', '.join(value[:30] for value in found[:4])}{more}"


# --------------------------------------------------------------------------------------------------------------------
# Texts


def _texts(evidence: Evidence, *, contradictions: bool) -> Iterator[Doubt]:
    """`contradictions` are none of their own where files are no classes anyway."""
    shares = {
        label: max(
            ((seen[kind] / seen.total(), kind) for kind in seen if kind is not Look.LANGUAGE),
            default=(0.0, None),
            key=lambda one: one[0],
        )
        for label, seen in evidence.looks.items()
    }
    looked = sum(seen.total() for seen in evidence.looks.values())
    odd = sum(count for seen in evidence.looks.values() for kind, count in seen.items() if kind is not Look.LANGUAGE)
    kinds = {kind: sum(seen[kind] for seen in evidence.looks.values()) for kind in Look if kind is not Look.LANGUAGE}
    most = max(kinds, key=lambda kind: kinds[kind])
    others = [
        f"task.text={name}"
        for name, values in evidence.table.values.items()
        if name not in evidence.table.columns.names() and is_prose(values)
    ]
    if looked and odd >= _ODD_SHARE * looked and odd >= min(looked, 2):
        label = next(label for label in evidence.looks if shares[label][1] is not None)
        yield Doubt(
            DoubtKind.NO_LANGUAGE,
            f"About {100 * odd // looked} % of the texts are {most.value} and not language, such as "
            f"{evidence.first[label].text[:60]!r}.",
            tuple(others[:2]),
            (label,),
        )
        return
    if looked and evidence.same_as_label >= _ODD_SHARE * looked and evidence.same_as_label >= _LEAST_LOOKED_AT:
        yield Doubt(
            DoubtKind.NO_LANGUAGE,
            f"About {100 * evidence.same_as_label // looked} % of the texts are the row's label and nothing else, so there is "
            "nothing to learn.",
            tuple(others[:2]),
        )
    if looked and evidence.as_long_as_label >= _LENGTHS_SHARE * looked and evidence.as_long_as_label >= _LEAST_LOOKED_AT:
        yield Doubt(
            DoubtKind.SCALE,
            f"The labels of about {100 * evidence.as_long_as_label // looked} % of the rows are the length of their text, and "
            "not what it is: name the column of labels with task.label.",
        )
    if (shown := evidence.first_broken) is not None and evidence.broken >= max(2, _BROKEN_SHARE * looked):
        yield Doubt(
            DoubtKind.BROKEN_TEXT,
            f"The characters of about {max(1, 100 * evidence.broken // looked)} % of the texts are broken, such as "
            f"{shown.text[:60]!r} ({shown.file}, {counted_in(shown.file)} {shown.line}): somewhere they were read in a wrong "
            "encoding; get them anew from where they were right.",
        )
    found = [
        label
        for label, (share, _) in shares.items()
        if share >= _ODD_SHARE_OF_LABEL and evidence.looked_at(label) >= _LEAST_LOOKED_AT
    ]
    if found:
        kind = shares[found[0]][1]
        assert kind is not None
        yield Doubt(
            DoubtKind.NO_LANGUAGE,
            f"The texts of {quoted(found)} are {kind.value}, such as {evidence.first[found[0]].text[:60]!r}, those of the "
            "other classes are language.",
            keep(dict(evidence.labels), set(found)),
            tuple(found),
        )
    if contradictions and (share := evidence.share_contradicted()) >= _CONTRADICTED_SHARE:
        yield Doubt(
            DoubtKind.CONTRADICTIONS,
            f"About {round(100 * share)} % of the rows have a text that stands elsewhere with another label: a text "
            "has one label here, so either several belong to it, or what tells them apart is in another column.",
        )


def _evaluation(evidence: Evidence, evaluation: Evidence) -> Iterator[Doubt]:
    if evaluation.rows < _LEAST_EVALUATED:
        return
    share = evaluation.share_shared(evidence)
    if share >= _SHARED_SHARE:
        yield Doubt(
            DoubtKind.EVALUATION,
            f"The texts of about {round(100 * share)} % of the {evaluation.rows:,} rows to evaluate on are trained on as well, "
            "so the accuracy would say what was learnt by heart.",
            ("task.eval=auto",),
        )
    elif evaluation.complete and len(evaluation.labels) == 1 and len(evidence.labels) > 1:
        label = next(iter(evaluation.labels))
        yield Doubt(
            DoubtKind.EVALUATION,
            f"All {evaluation.rows:,} rows to evaluate on have the label {label!r}, so the accuracy would say nothing of the "
            "others.",
            ("task.eval=auto",),
        )
