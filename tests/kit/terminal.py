"""What a terminal would obey, judged by Unicode's own tables, and texts that try it."""

from __future__ import annotations

import unicodedata

EVIL = "\x1b]0;PWN\x07\x1b[2J\x9b31mred\x7f\u202eevil\u2066\u2028\u200b\rgone"
"""A title, an empty screen, a colour by way of C1, DEL, text turned round, a line of its own, nothing, and a new beginning."""
FORGED = "\nReady: all is well"
"""A line that looks like one of memsup's."""


JOINERS = "\u200c\u200d"
SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Signs of Arabic, Syriac and Kaithi that Unicode counts as format characters, though they are seen."""


def obeyed(text: str) -> set[str]:
    """The characters of `text`, lines apart, that a terminal would not show but do."""
    return {character for character in text if character != "\n" and _drives(character)}


def _drives(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or (
        unicodedata.category(character) == "Cf" and character not in JOINERS + SIGNS
    )
