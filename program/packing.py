"""msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md), as far as memsup's messages need it. Pure.

None, bool, int of 64 bits, float, str, bytes, list and dict; no extension types. Whatever bytes come, `unpack` gives back a
value or raises `PackingError`, and takes no more memory than they have.
"""

from __future__ import annotations

import struct
from typing import Any

MOST_DEPTH = 32
"""No message is nested more deeply."""


class PackingError(ValueError):
    """The bytes are no value, or the value has no bytes. The text is a plain clause."""


def pack(value: Any) -> bytes:
    """The bytes of `value`. Raises `PackingError`."""
    out = bytearray()
    _put(out, value, 0)
    return bytes(out)


def _put(out: bytearray, value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise PackingError("it is nested too deeply")
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _put_int(out, value)
    elif isinstance(value, float):
        out += b"\xcb" + struct.pack(">d", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "replace")
        _put_head(out, len(text), (0xA0, 31), (0xD9, 0xDA, 0xDB))
        out += text
    elif isinstance(value, (bytes, bytearray)):
        _put_head(out, len(value), None, (0xC4, 0xC5, 0xC6))
        out += value
    elif isinstance(value, (list, tuple)):
        _put_head(out, len(value), (0x90, 15), (None, 0xDC, 0xDD))
        for item in value:
            _put(out, item, depth + 1)
    elif isinstance(value, dict):
        _put_head(out, len(value), (0x80, 15), (None, 0xDE, 0xDF))
        for key, item in value.items():
            _put(out, key, depth + 1)
            _put(out, item, depth + 1)
    else:
        raise PackingError(f"a {type(value).__name__} cannot be packed")


def _put_int(out: bytearray, value: int) -> None:
    if -32 <= value < 128:
        out += struct.pack(">b", value) if value < 0 else bytes([value])
    elif 0 <= value < 1 << 64:
        out += b"\xcf" + struct.pack(">Q", value)
    elif -(1 << 63) <= value < 0:
        out += b"\xd3" + struct.pack(">q", value)
    else:
        raise PackingError("an integer of more than 64 bits cannot be packed")


def _put_head(out: bytearray, size: int, short: tuple[int, int] | None, kinds: tuple[int | None, int, int]) -> None:
    """The kind of a text, a list and so on, with its size in as few bytes as may be."""
    if short is not None and size <= short[1]:
        out.append(short[0] | size)
    elif size < 1 << 8 and kinds[0] is not None:
        out += bytes([kinds[0], size])
    elif size < 1 << 16:
        out += bytes([kinds[1]]) + struct.pack(">H", size)
    elif size < 1 << 32:
        out += bytes([kinds[2]]) + struct.pack(">I", size)
    else:
        raise PackingError("it is too long")


def unpack(packed: bytes) -> Any:
    """The value whose bytes are `packed`, all of them. Raises `PackingError`."""
    reader = _Reader(packed)
    value = reader.value(0)
    if reader.at != len(packed):
        raise PackingError("there is more than one value")
    return value


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SIZES = {0: ">B", 1: ">H", 2: ">I"}


class _Reader:
    def __init__(self, packed: bytes) -> None:
        self.packed, self.at = packed, 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.packed):
            raise PackingError("it is cut off")
        taken, self.at = self.packed[self.at : end], end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        if depth > MOST_DEPTH:
            raise PackingError("it is nested too deeply")
        kind = self.take(1)[0]
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind < 0x90:
            return self._map(kind & 15, depth)
        if kind < 0xA0:
            return self._list(kind & 15, depth)
        if kind < 0xC0:
            return self._text(kind & 31)
        if 0xC4 <= kind <= 0xC6:
            return self.take(self.number(_SIZES[kind - 0xC4]))
        if 0xD9 <= kind <= 0xDB:
            return self._text(self.number(_SIZES[kind - 0xD9]))
        if kind in {0xDC, 0xDD}:
            return self._list(self.number(_SIZES[kind - 0xDB]), depth)
        if kind in {0xDE, 0xDF}:
            return self._map(self.number(_SIZES[kind - 0xDD]), depth)
        raise PackingError(f"the kind {kind:#x} is not used here")

    def _text(self, size: int) -> str:
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise PackingError("a text is not UTF-8") from None

    def _list(self, size: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(size)]

    def _map(self, size: int, depth: int) -> dict[Any, Any]:
        found = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if isinstance(key, (list, dict)):
                raise PackingError("a list or a map is no key")
            found[key] = self.value(depth + 1)
        return found
