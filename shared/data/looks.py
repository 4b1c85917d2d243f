"""What a text looks like, whatever its language: prose, or links, ids, numbers and data. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

_HEAD_CHARS = 400
"""What a text is shows in its beginning."""
_MOST_TOKENS = 40


class Look(enum.Enum):
    """What a text looks like."""

    LANGUAGE = "language"
    LINK = "links or paths"
    ID = "ids or codes"
    NUMBER = "numbers"
    DATA = "encoded data or lists"


_LINK = re.compile(
    r"(?:[a-z][a-z0-9+.-]{1,20}://|www\.|mailto:)\S+"
    r"|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.[a-z]{2,6}(?:[:/?]\S*)?"
    r"|(?:[a-z]:)?[\\/.~]{0,2}(?:[\w.%@ -]*[\\/]){2,}[\w.%@-]*"
    r"|[\w.%@-]+[\\/][\w.%@-]+\.[a-z][a-z0-9]{1,4}",  # data/image_7.jpg, and not and/or
    re.IGNORECASE | re.ASCII,
)
_MAIL = re.compile(r"[^\s@]+@[^\s@]+\.\w{2,}")
_HEX = re.compile(r"(?:0x)?(?=[a-f-]*[0-9])[0-9a-f]{8,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ENCODED = re.compile(r"(?=.*[0-9+/])(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/_-]{20,}={0,2}")
_LIST = re.compile(r"\[(?=.*['\",]).+\]|\{(?=.*[\"':]).+\}|\((?=.*,)(?=.*['\"]).+\)", re.DOTALL)
_CHANGES = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[a-z0-9])|(?<=[0-9])(?=[A-Za-z])")
_WORD = re.compile(r"[^\W\d_]{2,}")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
_HIGH = re.compile(r"[\xc2-\xf4][\x80-\xbf\u0152-\u2122]+")
"""What a character of two bytes and more becomes where each byte is read as one."""
_CASED_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_]{2,}")


def look(text: str) -> Look:
    """What `text`, which is not blank, looks like."""
    head = text[:_HEAD_CHARS].strip()
    if head[:2] in ("b'", 'b"') and text.rstrip()[-1:] == head[1]:
        return Look.DATA  # bytes, as Python prints them
    if head[:1] in ("{", "[") and len(text) <= _HEAD_CHARS and _LIST.fullmatch(head):
        return Look.DATA
    tokens = head.split(None, _MOST_TOKENS)[:_MOST_TOKENS]
    if len(tokens) > 3 and sum(token.isalpha() for token in tokens) * 2 > len(tokens):
        return Look.LANGUAGE  # nearly all texts, so they are found first
    if head.startswith("data:") or (_LIST.fullmatch(head) and (len(text) <= _HEAD_CHARS or head[0] in "[{")):
        return Look.DATA
    if head[:2] in ("['", '["', '{"', "{'", "[{") and len(text) > _HEAD_CHARS:
        return Look.DATA
    if len(tokens) > 1 and head[:1] in "/~\\" and _LINK.fullmatch(head):
        return Look.LINK
    seen = [_token_look(token) for token in tokens]
    odd = [one for one in seen if one is not Look.LANGUAGE]
    if len(odd) < 0.8 * len(seen):
        return Look.LANGUAGE
    return max(odd, key=odd.count) if odd else Look.LANGUAGE


def _token_look(token: str) -> Look:
    """Of one token without blanks."""
    token = token.strip("\"'“”‘’,;()<>")
    letters = sum(map(str.isalpha, token))
    digits = sum(map(str.isdigit, token))
    if not digits and letters == len(token) and (len(token) < 8 or not token.isascii()):
        return Look.LANGUAGE
    if _LINK.fullmatch(token):
        return Look.LINK if letters > 1 else Look.NUMBER
    if _MAIL.fullmatch(token) or _HEX.fullmatch(token):
        return Look.ID if letters else Look.NUMBER
    if _ENCODED.fullmatch(token):
        return Look.DATA
    if digits and digits >= 2 * letters:
        return Look.NUMBER
    if token.isascii() and len(token) >= 4 and digits >= 0.25 * (letters + digits) and digits:
        return Look.ID
    if token.isascii() and len(token) >= 8 and len(_CHANGES.findall(token)) >= (0.3 if digits else 0.5) * len(token):
        return Look.ID
    return Look.LANGUAGE


def is_broken(text: str) -> bool:
    """Whether a wrong encoding has broken its characters: they are lost, or are bytes of UTF-8 that were read as Latin-1 or as
    Windows has it, which makes no word of any language.
    """
    head = text[:_HEAD_CHARS]
    if head.isascii():
        return False
    if "\ufffd" in head:
        return True
    runs = _HIGH.findall(head)
    return any(_is_utf8(run, codec) for run in runs for codec in ("latin-1", "cp1252"))


def _is_utf8(run: str, codec: str) -> bool:
    try:
        return len(run.encode(codec).decode()) < len(run)
    except UnicodeError:
        return False


def words(text: str) -> int:
    """How many words `text` has, roughly: two characters of a script without blanks count as one."""
    wide = len(_WIDE.findall(text))
    return len(_WORD.findall(_WIDE.sub(" ", text) if wide else text)) + wide // 2


def is_prose(values: Iterable[str]) -> bool:
    """Whether a column of these values is text that somebody wrote to be read, rather than names, dates or categories."""
    values = [value for value in values if value.strip()]
    if not values:
        return False
    counts = sorted(words(value) for value in values)
    median = counts[len(counts) // 2]
    different = len(set(values))
    if median < 3 or different < 5 or (different < 0.3 * len(values) and median < 6):
        return False
    return 2 * sum(_reads(value) for value in values) >= len(values)


def _reads(value: str) -> bool:
    """Names and addresses capitalise each of their words; sentences and most titles do not."""
    if look(value) is not Look.LANGUAGE:
        return False
    return any(not word[0].isupper() for word in _CASED_WORD.findall(value))
