"""The manifest: which files a checkpoint consists of, how large they are and what they hash to. Pure; opens nothing.

It is written last and read first, and its own bytes are sealed with a hash, so that no flipped bit in it goes unseen. It is
treated as hostile when read: only plain names, no duplicates, no absurd sizes, no huge document. Its words are in
`program/manifest.py`.

The hash is XXH3 with 128 bits. It guards against damage, not against forgery: whoever can write into the folder could write a
matching manifest with any hash. docs/checkpoints.md has the figures of the choice. A person's own program, which has the
standard library alone, seals its checkpoints with SHA-256 (`program/store.py`); these are read here, and never written.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec
import xxhash

from memsup.checkpoint.errors import Damaged
from memsup.manifest import (
    END,
    FORMAT,
    MOST_BYTES,
    NAME,
    PROGRAMS_FORMAT,
    PROGRAMS_SEAL,
    SEAL,
    SHA256_DIGITS,
    XXH3_DIGITS,
    is_file_name,
    is_path,
)

__all__ = ["NAME", "is_file_name"]

MAX_BYTES = MOST_BYTES
MAX_FILES = 10_000
MAX_TOTAL_BYTES = 1 << 42
"""Four terabytes: a forged size must not keep a reader busy for days."""
MAX_STEP = 10**15

_SEALS = {SEAL.encode(): XXH3_DIGITS, PROGRAMS_SEAL.encode(): SHA256_DIGITS}
"""What comes before the document's own hash, and how many digits that has."""
_END = END.encode()

Hash = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{XXH3_DIGITS}}}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{SHA256_DIGITS}}}$")]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file of the checkpoint, with one of the two hashes."""

    name: str
    """The file's name within the checkpoint's folder; a person's own program may have put it into a folder there."""
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOTAL_BYTES)]
    xxh3_128: Hash | None = None
    sha256: Sha256 | None = None

    def new_hash(self) -> Hasher:
        """What hashes the file's content in the way in which it was hashed when it was written."""
        return xxhash.xxh3_128() if self.sha256 is None else _sha256()

    def is_hash(self, found: str) -> bool:
        """Whether this is the hash of what was written."""
        return found == (self.xxh3_128 if self.sha256 is None else self.sha256)


class Hasher(Protocol):
    """What takes content piece by piece, and tells its hash."""

    def update(self, content: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def _sha256(content: bytes = b"") -> Hasher:
    import hashlib  # with OpenSSL behind it, which the supervisor is spared where nothing was sealed so

    return hashlib.sha256(content)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The files of a checkpoint, and what it is a checkpoint of."""

    format: Annotated[str, msgspec.Meta(pattern=f"^({FORMAT}|{PROGRAMS_FORMAT})$")] = FORMAT
    """The second one is that of a person's own program."""
    step: Annotated[int, msgspec.Meta(ge=0, lt=MAX_STEP)]
    created_unix_s: Annotated[float, msgspec.Meta(ge=0)]
    metric: float | None
    """The evaluation's result, the greater the better. None means that there was no evaluation."""
    files: Annotated[list[File], msgspec.Meta(min_length=1, max_length=MAX_FILES)]
    xxh3_128: Hash = "0" * XXH3_DIGITS
    """The hash of every byte of the document before this value."""
    sha256: Sha256 | msgspec.UnsetType = msgspec.UNSET
    """The same, in the manifest of a person's own program."""

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


_decoder = msgspec.json.Decoder(Manifest)


def seal(manifest: Manifest) -> bytes:
    """The document of `manifest`, with its hash in it. Raises ValueError for what `unseal` would refuse."""
    document = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    covered = document[: -len(_END) - XXH3_DIGITS]
    document = covered + xxhash.xxh3_128(covered).hexdigest().encode() + _END
    try:
        unseal(document)
    except Damaged as problem:
        raise ValueError(f"no checkpoint can be made of this: {problem}") from None
    return document


def unseal(document: bytes) -> Manifest:
    """The manifest in `document`. Raises `Damaged` unless that is exactly what was made of a sensible one."""
    if not document:
        raise Damaged("its manifest is empty, as after a power cut.")
    if len(document) > MAX_BYTES:
        raise Damaged(f"its manifest is larger than {MAX_BYTES} bytes, which no real one is.")
    digits = next((n for seal, n in _SEALS.items() if document[: -len(_END) - n].endswith(seal)), 0)
    covered, written = document[: -len(_END) - digits], document[-len(_END) - digits :]
    if not digits or not written.endswith(_END):
        raise Damaged("its manifest is cut off or not one of memsup's.")
    found = xxhash.xxh3_128(covered) if digits == XXH3_DIGITS else _sha256(covered)
    if found.hexdigest().encode() + _END != written:
        raise Damaged("its manifest is not what was written: its own hash does not match.")
    try:
        manifest = _decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"its manifest makes no sense: {error}.") from None
    problem = _problem(manifest)
    if problem:
        raise Damaged(f"its manifest is refused: {problem}.")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    seen = set()
    for file in manifest.files:
        if not is_path(file.name):
            return f"{file.name[:80]!r} is not the plain name of a file in the checkpoint"
        if file.name in seen:
            return f"{file.name} stands in it twice"
        if (file.xxh3_128 is None) is (file.sha256 is None):
            return f"{file.name} has not one hash"
        seen.add(file.name)
    if manifest.total_bytes > MAX_TOTAL_BYTES:
        return f"its files would take {manifest.total_bytes} bytes"
    return None
