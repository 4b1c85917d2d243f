"""Which labels are no classes, judged by how they are written and how many rows each has. Pure."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from memsup.shared.data.doubts import Doubt, DoubtKind
from memsup.shared.data.evidence import Evidence
from memsup.shared.data.examples import sorted_labels
from memsup.shared.data.layout import counted_in
from memsup.shared.data.looks import Look, is_broken, look, words
from memsup.shared.data.missing import MISSING, PERHAPS_MISSING, REFUSES, SAYS_MISSING
from memsup.shared.data.spellings import TAG, number_of, several_spellings
from memsup.shared.data.targets import SEPARATORS, as_score

_FEW_ROWS = 8
_FEWER_BY = 20
"""A class of so few rows is doubtful if the next larger one is so many times larger: a long tail has no such gap."""
_HANDFUL_ROWS = 3
_HANDFUL_FEWER_BY = 12
_MANY_ROWS = 30
"""Classes below this are all small; nothing is few among them."""
_MOST_STEPS = 15
"""So many whole numbers and more may be a scale; fewer are stars, grades or classes."""
_FIRST_CODES = (100, 1000, 10000)
"""Numbers of classes begin at such ones as well."""
_MOST_FROM_ONE = 30
"""Programs number many classes from 0; so many from 1 are minutes, ages or points."""
_LEAST_LOOKED_AT = 8
"""A share says something of so many texts and more."""
_FEWEST_YEARS = 4
"""So many years in a row are no numbers of classes."""
_ERROR = re.compile(r"#\W?[A-ZÄÖÜÉÈÍÓÚ/]+[\d_/]*[A-Z]*[!?]?")
"""What a spreadsheet shows where it cannot compute a cell, in whatever language: `#NAME?`, `#NV`, `#¡VALOR!`."""
_PRINTED = re.compile(
    r"(?:tensor|array|ndarray|scalar|[a-z_]\w*(?:\.[A-Za-z_]\w*)+|u?int\d*|float\d*|str|bool|[A-Z]\w*)\((?![\s)]).*\)"
    r"|[bru]+(['\"]).*\1|<[\w.]+(?::| object at| at) ?.*>",
)
_FORMULA = re.compile(r"=\s*(?:[A-Z][A-Z0-9.]*\(.*|(?:[\w' .]+!)?\$?[A-Z]{1,3}\$?\d+(?:\W.*)?)", re.DOTALL)
"""What a cell of a spreadsheet is computed by: `=IF(B2>3,"pos","neg")`, `=B2`."""
_TAGS = re.compile(r"(?:<[^<>\s]+>){2,}")
"""Several labels as some sites export them: `<python><pandas>`."""
_ADDRESS = re.compile(
    r"[^\s@]+@[^\s@]+\.\w{2,}|(\d{1,3}\.){3}\d{1,3}(:\d+)?|(?=.*\d)[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|\+\d[\d\s()/.-]{6,}\d"
    r"|\S+[\\/]\S+\.(?:txt|csv|json|jpe?g|png|gif|wav|mp3|mp4|pdf|html?|xml|docx?)",
)
"""What names a person, a machine or a thing, and no class: of mail, IP, hashes, telephones, files."""
_COUNTED = re.compile(
    r"(.*[^\W\d_])\s*(?:[(（\[]\s*[nN×x=]*\s*\d{1,5}(?:\s*[^\W\d_]{1,10})?\s*[)）\]]|[:：=×]\s*\d{1,5}|\s[x×]\d{1,5})"
)
"""A label and how often it was given: `pos (3)`, `neg: 12`, `pos x2`."""
_DATE = re.compile(
    r"\d{4}[-/.年]\d{1,2}[-/.月]?(\d{1,2}日?)?.*|\d{1,2}[./]\d{1,2}[./]\d{2,4}(\W.*)?|\d{1,2}月\d{1,2}日"
    r"|\d{4}-?W\d{2}|Q[1-4]\W?\d{4}|\d{4}\W?Q[1-4]|(19|20)\d{2}(0[1-9]|1[0-2])([0-3]\d)?|\d+ days? \d{2}:\d{2}:\d{2}.*"
    r"|\d+\s?(?:h|hrs?|hours?|min|m|小时|分钟?)\s?\d+\s?(?:min|mins|minutes|m|s|secs?|分钟?|秒)(?:\s?\d+\s?(?:s|secs?|秒))?"
    r"|\d{1,2}[:时h]\d{2}(:\d{2}([.,]\d+)?)?分?\s?([AaPp]\.?[Mm]\.?|Uhr|h)?|\d{1,2}\s?[AaPp]\.?[Mm]\.?"
)
# fmt: off
_MONTHS = frozenset((
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "mär", "mai", "okt", "dez", "ene",
    "abr", "ago", "dic", "fév", "avr", "jui", "aoû", "déc", "fev", "set", "out", "gen", "mag", "giu", "lug", "ott", "янв",
    "фев", "мар", "апр", "мая", "май", "июн", "июл", "авг", "сен", "окт", "ноя", "дек",
))
"""How the names of months begin in several languages."""
_OF_DATES = frozenset((
    "de", "del", "den", "the", "of", "th", "st", "nd", "rd", "am", "pm", "uhr", "um", "г", "год", "mon", "tue", "wed", "thu",
    "fri", "sat", "sun",
))
# fmt: on
_AND = "and|or|und|oder|et|ou|y|e|и|و|og|och|en|ve|dan"
_JOINS = "&/~^$\\"
"""Signs that join two labels wherever both are labels by themselves."""
_WITHIN_WORDS = "_-"
"""Signs that words have inside of them as well: they join only where all of several such labels are made of others."""
_BEFORE_EACH = "#@"
"""Signs that do so, and may stand before the first label as well."""
_CLASS_OF_ITS_OWN = 0.7
"""Of the rows of one part, what a single label joined by a word has where it is a class of its own."""
_SEVERAL = ("task.problem_type=multi_label_classification",)
_LONG_LABEL_CHARS = 80
_LONG_LABEL_WORDS = 12
_FEWEST_USERS = 10
"""Fewer labels with an @ or with numbers of their own may be brands, codes or products."""
_MOST_NAMED = 6
_MOST_SETTLED = 20

# fmt: off
_PARTS = frozenset((
    "train", "training", "dev", "devel", "develop", "development", "valid", "validation", "val", "test", "testing", "eval",
    "evaluation", "holdout", "heldout", "unsup", "训练", "训练集", "测试", "测试集", "验证", "验证集", "开发集", "fold", "part",
    "shard", "chunk", "split", "batch", "部分",
))
_LISTS = frozenset((
    "class", "classes", "label", "labels", "vocab", "vocabulary", "readme", "license", "licence", "notes", "note", "changelog",
    "metadata", "meta", "index", "urls", "links", "info", "about", "authors", "stopwords", "todo", "requirements", "sources",
    "说明", "词表", "类别", "标签",
))
# fmt: on


def judge_labels(evidence: Evidence) -> Iterator[Doubt]:
    """Each label is told of once, by the first that finds it odd."""
    left = dict(evidence.labels)
    several = evidence.table.problem_type == "multi_label_classification"
    finders = (
        (_broken, _no_label, _spellings, _rare)
        if several
        else (_header, _broken, _no_label, _joined, _spellings, _scale, _parts, _rare)
    )
    for find in finders:
        for doubt in find(evidence, left):
            yield replace(doubt, settle=()) if several else doubt  # `task.labels` chooses among classes
            if doubt.kind is not DoubtKind.SCALE:
                for label in doubt.labels:
                    left.pop(label, None)


def _header(evidence: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    if evidence.header is not None:
        row, columns = evidence.header, evidence.table.columns
        again = "" if left[row.label] == 1 else f", and {left[row.label] - 1} more rows have the label {row.label!r}"
        yield Doubt(
            DoubtKind.HEADER,
            f"{row.file}, {counted_in(row.file)} {row.line} repeats the names of the columns ({columns.text}, {columns.label}) "
            f"as a row{again}: delete it there.",
            keep(left, {row.label}),
            (row.label,),
        )


def _broken(_: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    """Labels that are no values: characters that a wrong encoding has broken, formulas."""
    if broken := [label for label in left if is_broken(label)]:
        yield Doubt(
            DoubtKind.BROKEN_TEXT,
            f"The characters of {_plural(len(broken), 'label')} are broken, such as {broken[0]!r}: somewhere they were "
            "read in a wrong encoding; get them anew from where they were right.",
            (),
            tuple(broken),
        )
    if formulas := [label for label in left if _FORMULA.fullmatch(label)]:
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"{_plural(len(formulas), 'label is a formula', 'labels are formulas')} of a spreadsheet, such as "
            f"{formulas[0][:80]!r}, and not what it comes to: save the values alone.",
            (),
            tuple(formulas),
        )


def _no_label(evidence: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    missing = {label for label in left if _stands_for_nothing(label, left)} | _odd_one(left) | _odd_numbers(left)
    if missing and len(missing) < len(left):
        found = sorted(missing, key=left.__getitem__)
        rows = sum(left[label] for label in found)
        yield Doubt(
            DoubtKind.NO_LABEL,
            f"{_plural(rows, 'row')} of {evidence.rows:,} {_has(rows)} the label {quoted(found)}, which looks like a missing "
            "one and would become a class of its own.",
            keep(left, missing),
            tuple(found),
        )


def _stands_for_nothing(label: str, left: dict[str, int]) -> bool:
    bare = label.casefold().strip(" ()[]{}<>\"'`*_-.")
    others = [other for other in left if other != label]
    rising = sorted(left[other] for other in others) or [0]
    if label == "NA" and sum(len(other) == 2 and other.isupper() for other in others) > 0.5 * len(others):
        return False  # Namibia, or North America
    if label == "None" and not any(other[:1].isupper() for other in others):
        return True  # as Python writes it
    if any(bare != other.casefold() and bare.endswith(other.casefold()) for other in others if len(other) > 2):
        return False  # known and unknown, sure and not sure
    if bare in PERHAPS_MISSING or any(part.strip() in PERHAPS_MISSING for part in re.split("[/|]", bare)):
        return 2 * left[label] < rising[len(rising) // 2]
    if not any(map(str.isalnum, label)) and all(unicodedata.category(sign)[0] == "P" for sign in label):
        return sum(any(sign.isalnum() or unicodedata.category(sign) == "So" for sign in other) for other in others) >= 2
    if bare in MISSING or label.casefold() in MISSING or SAYS_MISSING.fullmatch(bare):
        return True
    if REFUSES.fullmatch(bare) and words(label) > 2 and sum(words(other) <= 2 for other in others) >= 2:
        return True
    if len(others) >= 2 and words(label) >= 4 and max(map(words, others)) <= 1 and 4 * left[label] < rising[0]:
        return True
    if any(part.strip() in MISSING for part in re.split("[/|]", bare) if len(part.strip().encode()) > 3):
        return True  # other/unknown
    if _ERROR.fullmatch(label) and 2 * sum(other.startswith("#") for other in others) < len(others):
        return True
    scripts = {_script(other) for other in others}
    return (
        len(others) >= 2
        and len(scripts) == 1
        and None not in {_script(label), *scripts} - scripts
        and (_script(label) not in scripts and 4 * left[label] < rising[0])
    )


def _script(label: str) -> str | None:
    """The script of its first letter, such as LATIN or CJK. None means that it has no letter."""
    letter = next(filter(str.isalpha, label), None)
    return None if letter is None else unicodedata.name(letter, "?").split()[0].replace("FULLWIDTH", "LATIN")


def _odd_one(left: dict[str, int]) -> set[str]:
    """The one number among words, or the one word among numbers."""
    numbers = {label for label in left if _whole(label) is not None}
    others = set(left) - numbers
    for one, rest in ((numbers, others), (others, numbers)):
        if len(one) == 1 and len(rest) >= 2:
            label = next(iter(one))
            if (
                one is numbers
                and not label.startswith("-")
                and 2 * left[label] >= sorted(left[other] for other in rest)[len(rest) // 2]
            ):
                return set()
            return one if one is numbers or not any(map(str.isdigit, label)) else set()
    return set()


def _odd_numbers(left: dict[str, int]) -> set[str]:
    """Numbers that stand apart from classes that count up: -1 beside 0 and 1, 99 beside 1 to 5."""
    values = {label: number for label in left if (number := _whole(label)) is not None}
    if len(values) < 2:
        return set()
    numbers = set(values.values())
    negative = {number for number in numbers if number < 0}
    mirrored = numbers == {-number for number in numbers}
    counted = len(negative) > 1 and numbers == set(range(min(numbers), max(numbers) + 1))  # -4 to 3
    odd = set() if mirrored or counted else set(negative)
    if numbers == {-1, 0, 1}:  # negative, neutral, positive; unless hardly ever
        rows = {number: left[label] for label, number in values.items()}
        if rows[-1] < 0.25 * min(count for number, count in rows.items() if number >= 0):
            odd.add(-1)
    rest = sorted(numbers - odd)
    if len(rest) > 2 and re.fullmatch(r"9{2,}|255|32767|65535", str(rest[-1])) and rest[-1] > 3 * rest[-2] + 10:
        odd.add(rest[-1])
    return {label for label, number in values.items() if number in odd}


def _joined(_: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    tagged = [label for label in left if _TAGS.fullmatch(label)]
    lists = tagged or [label for label in left if _is_list(label)]
    if tagged or (lists and 2 * len(lists) >= len(left)):
        yield Doubt(
            DoubtKind.JOINED_LABELS,
            f"{len(lists):,} of {len(left):,} labels are lists, such as {lists[0]!r}, and each would become a class; "
            "a text has one label here, unless several a text are to be learnt"
            + (", for which write | between them." if tagged else "."),
            () if tagged else _SEVERAL,
            tuple(lists),
        )
        return
    found = {sign for label in left for sign in re.findall(rf"(?<=[\w)])(?:\s+(?i:{_AND})\s+|\W+)(?=[\w(])", label)}
    signs = {
        f" {sign.strip()} " if sign.strip().isalpha() else sign.strip() or ("\n" if "\n" in sign else " ") for sign in found
    }
    signs |= {sign for sign in _WITHIN_WORDS if any(sign in label for label in left)}
    for sign in sorted(signs, key=lambda sign: (sign == " ", sign)):
        if joined := _joined_by(sign, left):
            name = repr(sign.strip()) if sign.strip() else "a blank" if sign == " " else "a line break"
            yield Doubt(
                DoubtKind.JOINED_LABELS,
                f"{len(joined):,} of {len(left):,} labels are several joined by {name}, such as {joined[0]!r}, and each would "
                "become a class of its own; a text has one label here, unless several a text are to be learnt"
                + ("." if (sign.strip() or sign) in SEPARATORS else ", for which write | between them."),
                _SEVERAL if (sign.strip() or sign) in SEPARATORS else (),
                tuple(joined),
            )
            return


def _is_list(label: str) -> bool:
    ends = {"[": "]", "{": "}", "(": ")"}
    return len(label) > 2 and ends.get(label[0]) == label[-1] and (label[0] != "(" or "," in label)


def _joined_by(sign: str, rows: dict[str, int]) -> list[str]:
    """The labels that `sign` joins out of others. Names such as "Sci/Tech", and paths such as "sport/tennis", are none: what is
    joined comes in other company as well, all of it. Nor is "black and white" where it has about as many rows as the two.
    """
    whole = {label.strip(sign) if sign in _BEFORE_EACH else label: label for label in rows}
    labels = set(whole)
    parts = {label: [part.strip() for part in (label.split(sign) if sign != " " else label.split())] for label in labels}
    parts = {label: found for label, found in parts.items() if len(found) > 1 and all(found) and number_of(label) is None}
    if not parts:
        return []
    alone = labels - set(parts)
    company: dict[str, set[str]] = defaultdict(set)
    places: dict[str, set[int]] = defaultdict(set)
    for label, found in parts.items():
        for place, part in enumerate(found):
            company[part].add(label)
            places[part].add(place)
    of_known = [label for label, found in parts.items() if all(part in alone for part in found)]
    if sign in _WITHIN_WORDS:
        return sorted(of_known) if len(of_known) == len(parts) > 1 else []
    if sign in _JOINS + _BEFORE_EACH and of_known:
        return sorted(whole[label] for label in of_known)
    if sign.strip().isalpha() and len(of_known) == len(parts) == 1:
        return [label for label in of_known if rows[label] < _CLASS_OF_ITS_OWN * min(rows[part] for part in parts[label])]
    strong = len(sign) > 1 or sign in "|;；、,，+\n"
    if strong:
        free = [label for label, found in parts.items() if all(part in alone or len(company[part]) > 1 for part in found)]
        enough = len(free) >= max(2, 0.5 * len(parts)) or bool(of_known)
    else:
        free = [label for label, found in parts.items() if all(part in alone or len(places[part]) > 1 for part in found)]
        enough = len(free) >= max(3, 0.8 * len(parts))
    return sorted((whole[label] for label in free), key=lambda label: (label.count(sign), label)) if enough else []


def _spellings(_: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    groups = several_spellings(left)
    if groups:
        shown = "; ".join(" and ".join(f"{name!r} ({left[name]:,})" for name in group[:3]) for group in groups[:3])
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"{_plural(len(groups), 'label')} {_has(len(groups))} several spellings, each of which would become a class of its "
            f"own: {shown}; make them one in the data.",
            (),
            tuple(name for group in groups for name in group[1:]),
        )
        return
    marked_up = [label for label in left if TAG.sub("", label) not in ("", label)]
    if marked_up and len(marked_up) == len(left):
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"All {len(left):,} labels hold marks of HTML, such as {marked_up[0]!r}, which would be part of them: write the "
            "words alone.",
            (),
            (marked_up[0],),
        )
        return
    in_quotes = [label for label in left if re.fullmatch(r"(['\"]).+\1", label)]
    if in_quotes and len(in_quotes) == len(left):
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"All {len(left):,} labels stand in quotation marks, such as {in_quotes[0]}, which would be part of them (and of "
            "texts): in a CSV they are double ones, with no blank before them.",
            (),
            (in_quotes[0],),
        )
        return
    printed = [label for label in left if _is_printed(label)]
    if len(printed) == len(left) >= 2:
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"All {len(left):,} labels are written as a program prints what it holds, such as {printed[0]!r}, and would be "
            "called so in the model: write the values alone.",
            (),
            (printed[0],),
        )
        return
    numbers = [label for label in left if number_of(label) is not None]
    names = [label for label in left if any(map(str.isalpha, label)) and not any(map(str.isdigit, label))]
    if len(numbers) >= 2 and len(names) >= 2 and len(numbers) + len(names) == len(left):
        yield Doubt(
            DoubtKind.SPELLINGS,
            f"{len(numbers):,} labels are numbers ({quoted(sorted_labels(numbers))}) and {len(names):,} are words "
            f"({quoted(sorted(names))}): are there two ways of writing the same ones?",
            (),
            (numbers[0], names[0]),
        )


def _is_printed(label: str) -> bool:
    """Whether it reads as a program prints an object: `tensor(0)`, `np.int64(1)`, `b'neg'`, `<Label.NEG: 0>`."""
    return _PRINTED.fullmatch(label) is not None


def _scale(_: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    measured = [match for label in left if (match := re.fullmatch(r"(.*[^\d.,])(0?[.,]\d+|[01][.,]0*|\d{1,3}%)\W?", label))]
    if len(measured) >= 3 and 2 * len(measured) > len(left) and len({match[1] for match in measured}) < len(measured):
        yield Doubt(
            DoubtKind.SCALE,
            f"{len(measured):,} labels carry a number, such as {measured[0][0]!r}: each would become a class of its own.",
            (),
            tuple(match[0] for match in measured),
        )
        return
    counted: dict[str, list[str]] = defaultdict(list)
    for label in left:
        if match := _COUNTED.fullmatch(label):
            counted[match[1]].append(label)
    with_numbers = [label for labels in counted.values() if len(labels) > 1 for label in labels]
    if len(counted) > 1 and 2 * len(with_numbers) > len(left) and min(map(len, counted.values())) > 1:
        yield Doubt(
            DoubtKind.SCALE,
            f"{len(with_numbers):,} labels are {len(counted)} with numbers behind them, such as {with_numbers[0]!r}: each "
            "would become a class of its own.",
            (),
            tuple(with_numbers),
        )
        return
    dates = [label for label in left if _is_date(label)]
    years = [label for label in left if re.fullmatch(r"(19|20)\d\d年?", label)]
    if len(years) == len(left) >= _FEWEST_YEARS and len(years) == max(map(_year, years)) - min(map(_year, years)) + 1:
        dates = years
    several = [label for label in left if re.fullmatch(r"[(\[]?-?\d+\.\d+([,; ]+-?\d+\.\d+)+[)\]]?", label)]
    large = [label for label in left if re.fullmatch(r"\d{9,}(\.\d+)?", label)]
    for found, like in (
        (dates, "dates or times, such as {!r},"),
        (several, "several numbers each, such as {!r},"),
        (large, "numbers such as {}, as moments, telephones and rows have,"),
    ):
        if len(found) >= 3 and 2 * len(found) >= len(left):
            what = f"{len(found):,} labels are {like.format(found[0])} and not classes."
            yield Doubt(DoubtKind.SCALE, what, (), tuple(found))
            return
    numbers = {label: number for label in left if (number := number_of(label)) is not None}
    if len(numbers) < max(2, 0.8 * len(left)):
        return
    values = sorted(set(numbers.values()))
    why = None
    if any(not value.is_integer() for value in values):
        fraction = next(label for label, number in numbers.items() if not number.is_integer())
        why = f"with fractions, such as {fraction}"
    elif _is_scale([int(value) for value in values], {int(number): left[label] for label, number in numbers.items()}):
        why = "on a scale"
    if why:
        ends = sorted(numbers, key=lambda label: numbers[label])
        yield Doubt(
            DoubtKind.SCALE,
            f"The {len(numbers):,} labels from {ends[0]} to {ends[-1]} are numbers {why}: each would become a class of its "
            "own, and that 3 lies nearer to 4 than to 9 is not learnt.",
            ("task.problem_type=regression",) if all(as_score(label) is not None for label in left) else (),
            (ends[0], ends[-1]),
        )


def _is_date(label: str) -> bool:
    """Whether it is a day, an hour or both, in figures or with a month's name."""
    if _DATE.fullmatch(label):
        return True
    letters = {word.casefold()[:3] for word in re.findall(r"[^\W\d_]+", label)}
    return any(map(str.isdigit, label)) and bool(letters & _MONTHS) and letters <= _MONTHS | _OF_DATES


def _is_scale(values: list[int], rows: dict[int, int]) -> bool:
    """Whether whole numbers were measured. Numbers of classes begin at 0 or 1 and leave none out, and codes have wide gaps;
    scores have an end at 100, steps of 5 or 10, small gaps where nobody scored, or most rows in the middle.
    """
    low, high = values[0], values[-1]
    steps = {after - before for before, after in pairwise(values)}
    step = math.gcd(*steps)
    if len(values) >= 8 and step % 5 == 0 and high <= 1000 and 2 * step * len(values) > high - low:
        return True
    if len(values) < _MOST_STEPS:
        return False
    span = high - low + 1
    if low in (0, 1) and high == 100:
        return True
    if low in _FIRST_CODES and span < 3 * len(values) and span <= low:
        return False
    if span > 12 * len(values):
        return False
    if low not in (0, 1) or len(values) < 0.97 * span or (low == 1 and len(values) >= _MOST_FROM_ONE):
        return True
    most = max(rows, key=lambda value: rows[value])
    edge = max(1, len(values) // 8)
    inside = low + 2 * edge < most < high - 2 * edge
    tails = [sum(rows[value] for value in end) / edge for end in (values[:edge], values[-edge:])]
    peak = sorted(rows.values())[-edge:]
    near = sum(abs(rows[before] - rows[after]) for before, after in pairwise(values)) / (len(values) - 1)
    return inside and max(tails) < 0.3 * sum(peak) / len(peak) and near < 0.15 * sum(peak) / len(peak)


def _rare(evidence: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    if not evidence.complete:
        return  # where reading stopped says nothing of a class
    rising = sorted(left, key=lambda label: (left[label], label))
    for place, (fewer, more) in enumerate(pairwise(rising), start=1):
        rows, next_rows = left[fewer], left[more]
        if rows > _FEW_ROWS:
            return
        by = _HANDFUL_FEWER_BY if rows <= _HANDFUL_ROWS else _FEWER_BY
        if next_rows >= max(_MANY_ROWS, by * rows):
            few = rising[:place]
            shown = ", ".join(f"{label!r} {left[label]:,}" for label in few[:_MOST_NAMED])
            yield Doubt(
                DoubtKind.RARE_LABEL,
                f"{_plural(len(few), 'class has', 'classes have')} hardly any rows ({shown}), each other has {next_rows:,} "
                "or more.",
                keep(left, set(few)),
                tuple(few),
            )
            return


def _parts(evidence: Evidence, left: dict[str, int]) -> Iterator[Doubt]:
    """Files that are no class: rows with fields of their own, parts of a data set, lists; and labels that are notes."""
    fields = [
        label for label in left if evidence.looked_at(label) and evidence.with_fields[label] >= 0.9 * evidence.looked_at(label)
    ]
    fields = [label for label in fields if left[label] >= _LEAST_LOOKED_AT or len(fields) > 1]
    if fields:
        yield Doubt(
            DoubtKind.PARTS,
            f"The texts of {quoted(fields)} are rows of several fields, such as {evidence.first[fields[0]].text[:60]!r}: put "
            "the names of the columns above them and give them as .tsv.",
            (),
            tuple(fields),
        )
        return
    tokens = {label: set(re.findall(r"[^\W\d_]+", label.casefold())) for label in left}
    parts = [label for label, names in tokens.items() if names & _PARTS]
    lists = [label for label, names in tokens.items() if names and names <= _LISTS]
    if evidence.table.label_is_file_name:
        found = [label for label in parts if len(parts) > 1 or tokens[label] <= _PARTS] + lists
    else:
        found = parts if len(parts) >= 2 and all(tokens[label] <= _PARTS for label in left) else []
    if found:
        yield Doubt(
            DoubtKind.PARTS,
            f"{quoted(found)} {_reads(found)} like parts of a data set or lists beside it, not like classes.",
            keep(left, set(found)),
            tuple(found),
        )
        return
    notes = [label for label in left if _is_note(label)]
    if notes and (2 * len(notes) <= len(left) or max(map(len, notes)) > _LONG_LABEL_CHARS):
        yield Doubt(
            DoubtKind.PARTS,
            f"{_plural(len(notes), 'label')} of {len(left):,} {_reads(notes)} like a note and not like a class: "
            f"{notes[0][:80]!r}.",
            keep(left, set(notes)),
            tuple(notes),
        )
        return
    if users := _are_names_of_users(left):
        yield Doubt(
            DoubtKind.PARTS,
            f"{len(users):,} of {len(left):,} labels read like names of users and not like classes, such as {users[0][:80]!r}.",
            (),
            tuple(users),
        )
        return
    links = [
        label
        for label in left
        if "://" in label or label.count("/") > 2 or look(label) is Look.DATA or _ADDRESS.fullmatch(label)
    ]
    if len(links) >= 3 and 2 * len(links) > len(left):
        yield Doubt(
            DoubtKind.PARTS,
            f"{len(links):,} of {len(left):,} labels are links, paths, addresses or data, such as {links[0][:80]!r}.",
            (),
            tuple(links),
        )


def _are_names_of_users(left: dict[str, int]) -> list[str]:
    """The labels that are names as people have them in networks: with an @, or in figures that no other of many has."""
    with_at = [label for label in left if re.fullmatch(r"@[\w.]{2,}", label)]
    if len(with_at) >= _FEWEST_USERS and 2 * len(with_at) > len(left):
        return with_at
    before = {label: match[1] for label in left if (match := re.fullmatch(r"(\w+?)\d{1,4}", label))}
    numbered = {label: name for label, name in before.items() if re.search(r"[^\W\d_]{3}", name)}
    unlike = len(set(numbered.values()))
    return list(numbered) if unlike >= max(_FEWEST_USERS, 0.4 * len(left)) and unlike > 0.6 * len(numbered) else []


def _is_note(label: str) -> bool:
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in label)
    if len(label) > _LONG_LABEL_CHARS or wide > _LONG_LABEL_CHARS // 2:
        return True
    return words(label) >= _LONG_LABEL_WORDS or (words(label) >= 4 and label[-1] in ".!?。！？")


# --------------------------------------------------------------------------------------------------------------------
# Figures and words


def _year(label: str) -> int:
    return int(label[:4])


def _whole(label: str) -> int | None:
    """The whole number that a label is, nothing beside it. None means that it is none."""
    return int(float(label)) if re.fullmatch(r"[+-]?\d{1,12}(\.0+)?", label) else None


def keep(left: dict[str, int], out: set[str]) -> tuple[str, ...]:
    """The setting that leaves the classes `out` away. Empty where the rest cannot be written on a line."""
    rest = sorted_labels(label for label in left if label not in out)
    if not 2 <= len(rest) <= _MOST_SETTLED or any("," in label or "\n" in label for label in rest):
        return ()
    return (f"task.labels={','.join(rest)}",)


def quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _reads(labels: Sequence[str]) -> str:
    return "reads" if len(labels) == 1 else "read"
