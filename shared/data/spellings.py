"""Labels that are several spellings of one: by case, width, accents, look-alike letters, slips and scripts. Pure."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

TAG = re.compile(r"</?[A-Za-z][^<>]*>")
"""A mark of HTML."""
_ACCENTED_CHARS = 5
"""So long words and longer are no others without their accents."""
_SLIP_CHARS = 6
_SLIP_FEWER_BY = 5
"""A slip is in few of the rows; two classes whose names differ by one letter have more."""


def several_spellings(left: dict[str, int]) -> list[list[str]]:
    """Groups of labels that stand for the same, the one that is kept first. `left` has the rows of each label."""
    by_folded: dict[str, list[str]] = defaultdict(list)
    plain_numbers = {_folded(label) for label in left if re.fullmatch(r"[\d.,+-]+", label)}
    for label in left:
        by_folded[_folded(label, plain_numbers)].append(label)
    groups = sorted(sorted(names, key=lambda name: -left[name]) for names in by_folded.values() if len(names) > 1)
    for label in sorted(left):
        base = re.match(r"(.*?\w)\s*[?!(*（？！]", label)
        if base and base[1] in left and 10 * left[label] < left[base[1]] and not any(label in group for group in groups):
            groups.append([base[1], label])
    in_groups = {name for group in groups for name in group}
    groups += [pair for pair in (*_behind_something(left), *_in_two_scripts(left)) if not in_groups.intersection(pair)]
    groups += _nearly_the_same([label for label in left if not any(label in group for group in groups)], left)
    return groups


def _behind_something(left: dict[str, int]) -> Iterator[list[str]]:
    """Pairs of a label and the same one behind a number or a word and a sign: `1 - negative`, `Label: negative`."""
    folded = {_folded(label): label for label in left}
    numbered = [
        (label, match[1]) for label in left if (match := re.fullmatch(r"\d{1,3}\s*[-–:.)）、．]\s*([^\W\d_].*)", label))
    ]
    worded = [(label, match[1]) for label in left if (match := re.fullmatch(r"[^\W\d_]+\s*[:=：]\s*(.*\w.*)", label))]
    for found in (numbered, worded):
        pairs = [[folded[_folded(rest)], label] for label, rest in found if _folded(rest) in folded]
        yield from pairs if len(pairs) > (found is worded) else ()


def _in_two_scripts(left: dict[str, int]) -> Iterator[list[str]]:
    """Pairs of a label in simplified and one in traditional Chinese: 体育 and 體育."""
    traditional = [label for label in left if any(map(_is_traditional, label))]
    for there in traditional:
        for here in left:
            differ = [(one, other) for one, other in zip(here, there, strict=False) if one != other]
            if (
                len(here) == len(there)
                and differ
                and all(
                    _is_traditional(other)
                    and _has_sign("gb2312", one)
                    and (len(differ) < len(here) or not _has_sign("big5", one))
                    for one, other in differ
                )
            ):
                yield [here, there]


def _is_traditional(sign: str) -> bool:
    return _has_sign("big5", sign) and not _has_sign("gb2312", sign)


def _has_sign(codec: str, sign: str) -> bool:
    try:
        sign.encode(codec)
    except UnicodeError:
        return False
    return True


def _nearly_the_same(labels: Sequence[str], left: dict[str, int]) -> list[list[str]]:
    """Pairs of words of which one is a slip of the other, the more frequent one first: `postive`, `complaints`. Where all
    labels are pairs of a word and its beginning (neg, negative, pos, positive), those as well.
    """
    plain = [label for label in labels if label.isalpha() and 3 <= len(label) <= 40]
    by_rest: dict[str, set[str]] = defaultdict(set)
    for label in plain:
        if len(label) >= _SLIP_CHARS - 1:
            by_rest[label.casefold()].add(label)
        if len(label) >= _SLIP_CHARS:
            for place in range(1, len(label)):
                by_rest[(label[:place] + label[place + 1 :]).casefold()].add(label)
    pairs = {tuple(sorted(names, key=lambda name: (-left[name], name))) for names in by_rest.values() if len(names) == 2}
    slips = sorted([many, few] for many, few in pairs if _SLIP_FEWER_BY * left[few] <= left[many])
    if slips:
        return slips
    words_only = [label for label in labels if label.isalpha() and len(label) <= 40]
    beginnings = [
        [long, short]
        for short in words_only
        for long in words_only
        if len(long) > len(short) and long.casefold().startswith(short.casefold())
    ]
    paired = {label for pair in beginnings for label in pair}
    return sorted(beginnings) if len(beginnings) >= 2 and len(paired) == 2 * len(beginnings) == len(left) else []


_ALIKE = str.maketrans("АВЕЅІЈКМНОРСТХУΑΒΕΖΗΙΚΜΝΟΡΤΥΧаеѕіјорсхуο", "ABESIJKMHOPCTXYABEZHIKMNOPTYXaesijopcxyo")
"""Letters of Cyrillic and Greek that look like Latin ones."""
_QUOTES = " \t\"'`“”‘’"
_STOPS = ".,;:!?。，；：！？"


def _folded(label: str, plain_numbers: Collection[str] = ()) -> str:
    """The label without what hardly tells one from another: case, width, blanks, quotation marks, brackets around it, invisible
    signs. A number is the same with and without its unit where it stands among `plain_numbers`.
    """
    text = html.unescape(TAG.sub("", label)).strip() or label
    if emphasized := re.fullmatch(r"([*_~`]{1,3})(.*\w.*)\1", text):
        text = emphasized[2]
    if any(map(str.isascii, filter(str.isalpha, text))) or len(text) == 1:
        text = text.translate(_ALIKE)
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(
        sign for sign in text if unicodedata.category(sign) not in ("Cf", "Mn") or sign.isalnum() or ord(sign) < 0x2000
    )
    if inner := re.fullmatch(r"\s*[(\[<【「『]([^()\[\]<>]+)[)\]>】」』]\s*", text):
        text = inner[1]
    text = text.lstrip(_QUOTES).rstrip(_QUOTES + _STOPS) or text
    if sum(map(str.isalpha, text)) >= _ACCENTED_CHARS and any("\u00c0" <= sign < "\u0250" for sign in text):
        text = "".join(sign for sign in unicodedata.normalize("NFD", text) if unicodedata.category(sign) != "Mn")
    number = number_of(text)
    if number is not None:
        folded = repr(float(number))
        unit = "".join(filter(str.isalpha, text))
        return folded if not unit or folded in plain_numbers else f"{folded} {unit}"
    bare = re.sub(r"(?<=\w)[\s_\-–—]+(?=\w)", "", text).strip(_QUOTES + _STOPS)
    return bare or text


def number_of(label: str) -> float | None:
    """The number that a label is, with a sign of money, a percentage or a unit at most. None means that it is none."""
    match = re.fullmatch(
        r"[^\w\s.,+-]?\s*([+-]?\d{1,12}(?:[.,]\d{1,12})?(?:[eE][+-]?\d{1,3})?)\s*(\W?[^\W\d_]{1,8}\.?|/\s*\d+|\W)?", label
    )
    return float(match[1].replace(",", ".")) if match else None
