"""Packed files, unpacked a piece at a time: the first bytes say how one is packed, whatever its name says.

Covers gzip, bzip2, xz and zstd. A piece is of bounded size, and so is the memory to make it; a file that unpacks to far more
than any text is refused where it begins to. Archives of several files, and other formats that are no text, are only named
(`foreign_format`), with the command that makes a file of text out of them. Only the standard library is imported, and pyarrow
where a zstd file is opened.
"""

from __future__ import annotations

import bz2
import enum
import gzip
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from memsup.shared.data.errors import InputError

MAGIC_BYTES = 265
"""So many first bytes tell every format; the last of them are those of a tar archive."""
PIECE_BYTES = 1 << 16
MOST_UNPACKED_BYTES = 256 << 20
"""As much may come out of the smallest file."""
_MOST_RATIO = 100
"""Of more, so many bytes may come out of each one; text makes 3 to 30."""
_MOST_XZ_BYTES = 256 << 20
"""What a dictionary of xz may take; the largest of its own presets takes 64 MiB."""


class Packing(enum.Enum):
    """How a file is packed; the value is its magic number."""

    GZIP = b"\x1f\x8b"
    BZIP2 = b"BZh"
    XZ = b"\xfd7zXZ\0"
    ZSTD = b"\x28\xb5\x2f\xfd"


ENDINGS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
"""What names of packed files end in."""
_UNPACK = {Packing.GZIP: "gzip -dk", Packing.BZIP2: "bzip2 -dk", Packing.XZ: "xz -dk", Packing.ZSTD: "zstd -dk"}


def packing_of(head: bytes) -> Packing | None:
    """How the file that begins with `head` is packed. None means that it is not."""
    return next((packing for packing in Packing if head.startswith(packing.value)), None)


def unpack_command(path: Path, packing: Packing) -> str:
    return f"{_UNPACK[packing]} {shlex.quote(str(path))}"


def unpacked(file: IO[bytes], packing: Packing, path: Path) -> Iterator[bytes]:
    """What is packed in `file`, in pieces of bounded size, none of them empty. Raises InputError."""
    total_bytes = 0
    try:
        read = _OPEN[packing](file)
        while piece := read(PIECE_BYTES):
            total_bytes += len(piece)
            if total_bytes > MOST_UNPACKED_BYTES and total_bytes > _MOST_RATIO * file.tell():
                raise InputError(
                    f"{path} unpacks to more than {_MOST_RATIO} times its size, at {total_bytes >> 20:,} MiB: it is no file of "
                    f"texts. If you know better, unpack it yourself: {unpack_command(path, packing)}"
                )
            yield piece
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:  # of OSError, those of these libraries too
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"{path} is a damaged {packing.name.lower()} file: after {total_bytes:,} bytes it cannot be unpacked ({what}). "
            "Get it again."
        ) from None


def _open_zstd(file: IO[bytes]) -> Callable[[int], bytes]:
    try:
        import pyarrow
    except ImportError:
        raise InputError("Reading a zstd file needs pyarrow: pip install pyarrow") from None
    stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return lambda most_bytes: bytes(stream.read(most_bytes))


def _open_xz(file: IO[bytes]) -> Callable[[int], bytes]:
    """`lzma.LZMAFile` without its hole: a file says itself how much memory its dictionary takes, up to 4 GiB."""
    decompressor = None

    def read(most_bytes: int) -> bytes:
        nonlocal decompressor
        while True:
            if decompressor is None or decompressor.eof:
                rest = decompressor.unused_data if decompressor is not None else b""
                rest = (rest or file.read(PIECE_BYTES)).lstrip(b"\0")  # between two streams may be padding
                if not rest:
                    return b""
                decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_XZ_BYTES)
            elif decompressor.needs_input:
                rest = file.read(PIECE_BYTES)
                if not rest:
                    raise EOFError("it ends in the middle")
            else:
                rest = b""
            if piece := decompressor.decompress(rest, most_bytes):
                return piece

    return read


_OPEN: dict[Packing, Callable[[IO[bytes]], Callable[[int], bytes]]] = {
    Packing.GZIP: lambda file: gzip.GzipFile(fileobj=file).read,
    Packing.BZIP2: lambda file: bz2.BZ2File(file).read,
    Packing.XZ: _open_xz,
    Packing.ZSTD: _open_zstd,
}


# --------------------------------------------------------------------------------------------------------------------
# What is no text

_PANDAS = 'python -c "import pandas, sys; pandas.{read}(sys.argv[1]).to_csv(sys.argv[2], index=False)" {path} {stem}.csv'
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {path}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unrar x {path}"),
    (257, b"ustar", "a tar archive", "tar xf {path}"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", _PANDAS.replace("{read}", "read_excel")),
    (0, b"SQLite format 3\0", "a SQLite database", "sqlite3 -header -csv {path} 'SELECT * FROM NAME_OF_TABLE' > {stem}.csv"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _PANDAS.replace("{read}", "read_hdf")),
    (0, b"ORC", "an ORC file", _PANDAS.replace("{read}", "read_orc")),
    (0, b"Obj\x01", "an Avro file", "avro-tools tojson {path} > {stem}.jsonl"),
    (0, b"%PDF-", "a PDF", "pdftotext {path} {stem}.txt"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", "lz4 -dk {path}"),
    (0, b"PAR1", "a Parquet file", "mv {path} {stem}.parquet"),
    (0, b"ARROW1", "an Arrow file", "mv {path} {stem}.arrow"),
    (0, b"version https://git-lfs.github.com/spec/", "a pointer that git-lfs left in place of the file", "git lfs pull"),
)


def foreign_format(head: bytes, path: Path) -> str | None:
    """What the file that begins with `head` is instead of text, and the command that makes text of it, as an end of a sentence.
    None means that nothing is known against it.
    """
    if head.startswith(b"PK\x03\x04"):
        if path.suffix.lower() in (".xlsx", ".xlsm") or b"[Content_Types].xml" in head:
            return _told("an Excel file", _PANDAS.replace("{read}", "read_excel"), path)
        return _told("a zip archive", "unzip {path}", path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "is a pickle, which could run a program of somebody else's, so memsup does not open it. If you made it yourself: "
            + _command(_PANDAS.replace("{read}", "read_pickle"), path)
        )
    for place, magic, what, command in _FOREIGN:
        if head.startswith(magic, place):
            return _told(what, command, path)
    return None


def _told(what: str, command: str, path: Path) -> str:
    return f"is {what} and not text. This makes it readable: {_command(command, path)}"


def _command(template: str, path: Path) -> str:
    return template.replace("{path}", shlex.quote(str(path))).replace("{stem}", shlex.quote(path.stem))
