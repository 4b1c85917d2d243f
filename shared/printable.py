"""What of others' words may stand on a terminal or a page. Pure.

File names, values of settings, what a worker prints and what a library says are others' words. A terminal obeys what is
hidden in them: C0 and C1 controls and DEL move the cursor, set the title, answer for the user; bidi controls (UAX #9) show
text in an order that it has not; line and paragraph separators forge lines of ours; what is invisible (UTR #36) makes two
names look the same. The joiners U+200C and U+200D stay, for Persian, Indic scripts and emoji are written with them. One
character is shown for one.
"""

from __future__ import annotations

import re

SHOWN_INSTEAD = "�"
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\u2028\u2029"
    "\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
    "\ud800-\udfff"  # half a surrogate, as in a file name that is not UTF-8
)
# Compiled when they are used: a `status` needs one of them, and waits for that.
_IN_LINES, _IN_A_LINE = f"[{_UNSAFE}]", f"[{_UNSAFE}\n]"


def printable(text: str) -> str:
    """`text` as it may stand in one line: what drives a terminal, and what would end the line, is shown as �."""
    return re.sub(_IN_A_LINE, SHOWN_INSTEAD, text.replace("\t", " "))


def printable_lines(text: str) -> str:
    """The same of a text whose lines are meant to be lines."""
    return re.sub(_IN_LINES, SHOWN_INSTEAD, text)


def printable_json(document: str) -> str:
    r"""A JSON document with the same content that a terminal may show: what would drive it is written as `\uXXXX`."""
    return re.sub(_IN_LINES, lambda found: "".join(f"\\u{unit:04x}" for unit in _utf16(found[0])), document)


def _utf16(character: str) -> tuple[int, ...]:
    code = ord(character)
    return (code,) if code < 0x10000 else (0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF))
