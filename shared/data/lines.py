"""The lines of a file of text, one by one and in bounded memory, whatever it is packed in, in whatever encoding is certain.

Bytes become UTF-8 on the way (`packing.py`, `encodings.py`), so all readers see the same lines. What cannot be decoded is named
by line and byte, with the command that converts it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memsup.shared.data.encodings import HEAD_BYTES, Writing, recognise
from memsup.shared.data.errors import InputError
from memsup.shared.data.packing import MAGIC_BYTES, PIECE_BYTES, foreign_format, packing_of, unpacked
from memsup.shared.files import open_regular

MAX_LINE_BYTES = 16 << 20
"""A longer line, or a longer quoted field, is a broken file and not a text."""
_WORD_BYTES = 4
"""So many high bytes in a row are no accented letters."""
_TABLES = (b"PAR1", b"ARROW1")
_MOST_BLANK_LINES = 1 << 20
"""So many of them in a row are no file of texts; they make no rows, at which a reader could look at the clock."""


class Begin(NamedTuple):
    """A place in a file from which its lines are read."""

    line: int = 1
    """The number of the line that comes next."""
    byte: int = 0
    """How many bytes of UTF-8 the lines before it have, whatever they are packed in."""


FIRST = Begin()


def lines(path: Path, begin: Begin = FIRST) -> Iterator[str]:
    """The lines of a file from `begin` on, each with its end. Raises InputError."""
    for number, raw in enumerate(raw_lines(path, begin), start=begin.line):
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error.start, raw) from None


def raw_lines(path: Path, begin: Begin = FIRST) -> Iterator[bytes]:
    """As `lines`, in bytes of UTF-8, which are decoded by nobody yet. Raises InputError."""
    with _opened(path) as text:
        _skip(text.file, begin.byte)
        number, blank = begin.line - 1, 0
        while True:
            try:
                raw = text.file.readline(MAX_LINE_BYTES + 1)
            except _UndecodableError as error:
                raise _undecodable(path, number + 1, error.reason, text.writing) from None
            if not raw:
                return
            number += 1
            blank = blank + 1 if raw.isspace() else 0
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB: it is no text file.")
            if blank > _MOST_BLANK_LINES:
                raise InputError(f"{path} has {blank:,} blank lines up to line {number:,}: it is no file of texts.")
            yield raw


def _skip(file: BinaryIO, count: int) -> None:
    """Passes over so many bytes, which takes as long as to unpack them where they are packed."""
    if file.seekable():
        file.seek(count, os.SEEK_CUR)
        return
    while count > 0 and (passed := file.read(min(count, PIECE_BYTES))):
        count -= len(passed)


def pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces of bounded size, for what does not come in lines. Raises InputError."""
    with _opened(path) as text:
        decoder = codecs.getincrementaldecoder("utf-8")()
        number = 1
        while True:
            try:
                raw = text.file.read(PIECE_BYTES)
                piece = decoder.decode(raw, not raw)
            except _UndecodableError as error:
                raise _undecodable(path, number, error.reason, text.writing) from None
            except UnicodeDecodeError as error:
                number += error.object.count(b"\n", 0, error.start)
                line_start = error.object.rfind(b"\n", 0, error.start) + 1
                raise _not_utf8(path, number, error.start - line_start, error.object[line_start:]) from None
            if not raw:
                return
            number += raw.count(b"\n")
            yield piece


def writing_of(path: Path) -> Writing:
    """How the characters of a file are written. Raises InputError."""
    with _opened(path) as text:
        return text.writing


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, as it lies there. Raises InputError."""
    try:
        fd, _ = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            return file.read(MAGIC_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def something_else(path: Path) -> str | None:
    """What stands in the place of a table, such as a pointer or a web page, as an end of a sentence. None means that nothing is
    known against it. Raises InputError.
    """
    head = first_bytes(path)
    if re.match(rb"\s*<(!doctype html|html)\b", head, re.IGNORECASE):
        return "is a web page and not the file itself: get it again, from its download link."
    return None if head.startswith(_TABLES) else foreign_format(head, path)


# --------------------------------------------------------------------------------------------------------------------
# Bytes of UTF-8


class _Text(NamedTuple):
    file: BinaryIO
    """Its content as UTF-8, with lines that end in a newline; reading raises `_UndecodableError`."""
    writing: Writing
    """How it is written itself."""


class _UndecodableError(Exception):
    def __init__(self, reason: UnicodeDecodeError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Text]:
    try:
        fd, _ = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            packing = packing_of(file.read(MAGIC_BYTES))
            file.seek(0)
            packed = None if packing is None else unpacked(file, packing, path)
            head = file.read(HEAD_BYTES) if packed is None else _beginning(packed)
            if (foreign := foreign_format(head, path)) is not None:
                raise InputError(f"{path} {foreign}")
            writing = recognise(head, is_whole=len(head) < HEAD_BYTES)
            if packed is None and writing.codec == "utf-8" and not writing.ends_in_cr:
                file.seek(writing.mark_bytes)
                yield _Text(file, writing)
                return
            rest = iter(lambda: file.read(PIECE_BYTES), b"") if packed is None else packed
            content = chain([head[writing.mark_bytes :]], rest)
            yield _Text(io.BufferedReader(_Chunks(_as_utf8(content, writing)), PIECE_BYTES), writing)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _beginning(packed: Iterator[bytes]) -> bytes:
    head = bytearray()
    for piece in packed:
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    return bytes(head)


def _as_utf8(content: Iterator[bytes], writing: Writing) -> Iterator[bytes]:
    decoder = None if writing.codec == "utf-8" else codecs.getincrementaldecoder(writing.codec)()
    for raw in chain(content, [b""]):
        piece, broken = raw, None
        if decoder is not None:
            try:
                piece = decoder.decode(raw, not raw).encode()
            except UnicodeDecodeError as error:
                piece, broken = error.object[: error.start].decode(writing.codec).encode(), error
        if writing.ends_in_cr:
            piece = piece.replace(b"\r", b"\n")
        if piece:
            yield piece
        if broken is not None:
            raise _UndecodableError(broken)


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


# --------------------------------------------------------------------------------------------------------------------
# What cannot be decoded


def _undecodable(path: Path, number: int, error: UnicodeDecodeError, writing: Writing) -> InputError:
    byte = error.object[error.start]
    return InputError(
        f"{path}, line {number}: a byte (0x{byte:02X}) is no {writing.name}, in which the rest of the file is written: "
        "save the file as UTF-8."
    )


def _not_utf8(path: Path, number: int, bad: int, raw: bytes) -> InputError:
    target = f"{shlex.quote(f'utf8{path.suffix}')}"
    convert = f"iconv -f {{}} -t UTF-8 {shlex.quote(str(path))} > {target}"
    high = re.findall(rb"[\x80-\xff]+", raw)
    if _may_be_chinese(raw):
        advice = (
            "pairs of such bytes are Chinese, Japanese or Korean. Convert it from what it is, GB18030, BIG5, EUC-JP or EUC-KR: "
            f"{convert.format('GB18030')}"
        )
    elif max(map(len, high)) >= _WORD_BYTES:
        advice = (
            "words of such bytes are in another alphabet than the Latin one. Convert it from what it is, such as WINDOWS-1251 "
            f"for Russian or SHIFT_JIS for Japanese: {convert.format('WINDOWS-1251')}"
        )
    else:
        # What has signs below 0xA0 is no Latin-1, which has none there, but what Windows writes.
        latin = "WINDOWS-1252" if any(byte < 0xA0 for run in high for byte in run) else "LATIN1"
        advice = f"save the file as UTF-8. If you know that it is {latin}: {convert.format(latin)}"
    return InputError(f"{path}, line {number}: byte {bad + 1} of the line (0x{raw[bad]:02X}) is not UTF-8; {advice}")


def _may_be_chinese(raw: bytes) -> bool:
    """Chinese in GBK is pairs of high bytes, while an accented letter of Latin-1 stands alone."""
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return False
    in_pairs = 2 * len(re.findall(rb"[\x81-\xfe]{2}", raw))
    return in_pairs > 0.8 * sum(byte > 0x7F for byte in raw)
