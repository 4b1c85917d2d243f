"""ZeroMQ's wire protocol (ZMTP 3.0, https://rfc.zeromq.org/spec/23/) as bytes in and messages out. Does no I/O.

Whoever reads what strangers send cannot leave that to libzmq: it collects a message of any number of parts, however long,
before it hands it on, and it aborts the process that has no descriptor left for a connection. So the supervisor serves its two
sockets itself (`supervisor/daemon/door.py`), with this. To a DEALER socket of libzmq, as the worker has one, it looks like a
ROUTER. The command line asks in the same way, and needs no library for it. Mechanism NULL only: who may connect, the folder
says.
"""

from __future__ import annotations

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION_AT, _MECHANISM_AT, _GREETING_BYTES = 10, 12, 64
_LEAST_VERSION = 3
_MECHANISM = b"NULL".ljust(20, b"\0")
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY, _SOCKET_TYPE = b"\x05READY", b"\x0bSocket-Type"

MOST_PARTS = 16
"""A message of more parts is nobody's mistake any more; memsup's own have two."""


class ZmtpError(Exception):
    """The bytes are not ZMTP, or more than this side takes: nothing that follows can be read. The text is a plain clause."""


def opening(socket_type: bytes) -> bytes:
    """All that a peer of the type `DEALER` or `ROUTER` has to say at first. With that it need not wait for the other one; with
    its first message it has to, until `Incoming.is_ready`.
    """
    greeting = (_SIGNATURE + b"\x03\x00" + _MECHANISM).ljust(_GREETING_BYTES, b"\0")
    return greeting + _frame(_COMMAND, _READY + _SOCKET_TYPE + len(socket_type).to_bytes(4, "big") + socket_type)


def message(parts: list[bytes]) -> bytes:
    """A message of `parts`, at least one, as it goes over the wire."""
    *before, last = parts
    return b"".join([*(_frame(_MORE, part) for part in before), _frame(0, last)])


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


class Incoming:
    """What one peer has sent. At most one message that is not whole yet is kept, beside what was fed last."""

    def __init__(self, most_bytes: int) -> None:
        """A message may have `most_bytes`, all parts together; a longer one is refused as soon as its length is known."""
        self.most_bytes = most_bytes
        self._bytes = bytearray()
        self._at = 0
        """Where in `_bytes` the next frame begins."""
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._is_greeted = False
        self.is_ready = False
        """Whether the handshake is over, so that messages may be sent."""

    def feed(self, received: bytes | memoryview) -> None:
        self._bytes += received

    def next_message(self) -> list[bytes] | None:
        """The parts of the next message. It is None where none has come in whole yet. Raises `ZmtpError`."""
        if not self._is_greeted and not self._greet():
            return None
        while (frame := self._next_frame()) is not None:
            flags, body = frame
            if flags & _COMMAND:
                self._obey(body)
                continue
            if not self.is_ready:
                raise ZmtpError("a message before the handshake")
            self._parts.append(body)
            self._parts_bytes += len(body)
            if not flags & _MORE:
                whole, self._parts, self._parts_bytes = self._parts, [], 0
                return whole
            if len(self._parts) == MOST_PARTS:
                raise ZmtpError(f"a message of more than {MOST_PARTS} parts")
        del self._bytes[: self._at]
        self._at = 0
        return None

    def _greet(self) -> bool:
        """Takes the greeting off what has come, and tells whether it was whole."""
        come = self._bytes[:_GREETING_BYTES]
        is_other = come[:1] != _SIGNATURE[:1] or (len(come) > 9 and not come[9] & 1)
        if come and (is_other or (len(come) > _VERSION_AT and come[_VERSION_AT] < _LEAST_VERSION)):
            raise ZmtpError("another protocol")
        if len(come) < _GREETING_BYTES:
            return False
        if come[_MECHANISM_AT : _MECHANISM_AT + len(_MECHANISM)] != _MECHANISM:
            raise ZmtpError("another security mechanism")
        self._at, self._is_greeted = _GREETING_BYTES, True
        return True

    def _next_frame(self) -> tuple[int, bytes] | None:
        """The flags and the body of the next frame. It is None where none has come in whole yet."""
        received, at = self._bytes, self._at
        if len(received) - at < 2:
            return None
        flags = received[at]
        if flags > (_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise ZmtpError("a frame of no known kind")
        if flags & _LONG:
            begin = at + 9
            if len(received) < begin:
                return None
            size_bytes = int.from_bytes(received[at + 1 : begin], "big")
        else:
            begin, size_bytes = at + 2, received[at + 1]
        if self._parts_bytes + size_bytes > self.most_bytes:
            raise ZmtpError(f"a message of more than {self.most_bytes:,} bytes")
        if len(received) < begin + size_bytes:
            return None
        self._at = begin + size_bytes
        return flags, bytes(received[begin : self._at])

    def _obey(self, command: bytes) -> None:
        """READY ends the handshake. Commands after that are of no concern here: nothing here asks for a PONG."""
        if not self.is_ready:
            if not command.startswith(_READY):
                raise ZmtpError("a command other than READY in the handshake")
            self.is_ready = True
