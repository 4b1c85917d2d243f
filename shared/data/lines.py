"""The lines of a file of text, one by one and in bounded memory: what is not UTF-8 is named by line and byte."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.files import open_regular

MAX_LINE_BYTES = 16 << 20
"""A longer line, or a longer quoted field, is a broken file and not a text."""


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file (with or without a byte order mark), each with its end. Raises InputError."""
    try:
        fd, _ = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield _decoded(raw, path, number)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _decoded(raw: bytes, path: Path, number: int) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise InputError(f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB: it is no text file.")
    if number == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = error.start
    advice = "save the file as UTF-8."
    if guess := _guess_encoding(raw):
        advice = f"it looks like {guess}, which this converts: iconv -f {guess} -t UTF-8 '{path}' > utf8{path.suffix}"
    raise InputError(f"{path}, line {number}: byte {bad + 1} of the line (0x{raw[bad]:02X}) is not UTF-8; {advice}")


def _guess_encoding(raw: bytes) -> str | None:
    """UTF-16 begins with its mark; Chinese in GBK is pairs of high bytes, while an accented letter of Latin-1 stands alone."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return None
    in_pairs = 2 * len(re.findall(rb"[\x81-\xfe]{2}", raw))
    return "GB18030" if in_pairs > 0.8 * sum(byte > 0x7F for byte in raw) else None
