"""`python -m memsup.worker.ranks.receive`: receives data and model of a run that is joined from its first machine, each file
verified, for the `start` that waits for it (`supervisor/client/joining.py`).

What is to be done comes on standard input (`shared/nodes.Receive`), what came of it goes to standard output, a JSON line each.
Files that are whole already are not sent again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from memsup.shared.nodes import (
    OTHER_VERSION,
    PIECE_BYTES,
    Address,
    Describe,
    Described,
    NotReceived,
    NotYet,
    Offer,
    OfferedFile,
    Piece,
    Read,
    Receive,
    Received,
    Told,
    Unreadable,
    decoded_offer,
    frames_of,
    is_of_another_version,
    unlike,
)
from memsup.shared.settings import SettingsError
from memsup.worker.ranks.lock import keys_of, use_key
from memsup.worker.ranks.versions import versions

ANSWERS_WITHIN_S = 120.0
"""A first machine that says nothing for so long is not there. It may be loading torch, or begin anew just now."""
_ASK_EVERY_S = 1.0
_WINDOW = 8
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_REFUSALS = 3
_MOST_PATH = 3000


class RefusedError(Exception):
    """It cannot be received; the text is one plain sentence with what to do."""

    def __init__(self, text: str, *, is_bad: bool = True) -> None:
        super().__init__(text)
        self.is_bad = is_bad


def main() -> int:
    wanted = msgspec.json.decode(sys.stdin.buffer.read(1 << 20), type=Receive)
    try:
        asks = Asking(Address(wanted.address, wanted.port), wanted.key)
        try:
            offer = asks.describe()
            _tell(offer)
            fetch_all(asks, offer.files, Path(wanted.draft))
        finally:
            asks.close()
    except (RefusedError, SettingsError) as error:
        _tell(NotReceived(why=str(error), is_bad=getattr(error, "is_bad", True)))
        return 1
    _tell(Received())
    return 0


def _tell(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def fetch_all(asks: Asking, files: list[OfferedFile], draft: Path) -> None:
    """Has every file lie in `draft` as it is on the first machine. Raises `RefusedError`."""
    wanted_bytes = sum(file.size_bytes for file in files if _size_of(place(draft, file)) != file.size_bytes)
    free_bytes = shutil.disk_usage(draft).free
    if wanted_bytes > free_bytes:
        raise RefusedError(
            f"{wanted_bytes >> 20:,} MiB are to be received, and {draft} has room for {free_bytes >> 20:,} MiB: make room."
        )
    kept = set()
    for number, file in enumerate(files):
        target = place(draft, file)
        kept.add(target)
        if not _is_whole(target, file):
            asks.fetch(number, file, target)
    for folder, _, names in os.walk(draft):  # what an earlier start has received of other files would be found as data
        for name in names:
            if Path(folder) / name not in kept:
                os.unlink(Path(folder) / name)


def place(draft: Path, file: OfferedFile) -> Path:
    """Where a file comes to lie: nowhere but below the draft, whatever it is called."""
    path = file.path
    if not path.startswith("/") or os.path.normpath(path) != path or path.startswith("//") or len(path) > _MOST_PATH:
        raise RefusedError(f"The first machine offers a file with a name that is none: {path[:100]!r}.")
    return draft / path[1:]


def _is_whole(target: Path, file: OfferedFile) -> bool:
    try:
        return target.stat().st_size == file.size_bytes and _hash(target) == file.blake2b
    except OSError:
        return False


def _size_of(target: Path) -> int | None:
    try:
        return target.stat().st_size
    except OSError:
        return None


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space, then start again"
    if error.errno == errno.ENAMETOOLONG:
        return "Have the data in a folder with a shorter name on the first machine, then start again"
    return "Mend that, then start again"


def _hash(path: Path) -> str:
    found = hashlib.blake2b(digest_size=32)
    with path.open("rb") as content:
        while chunk := content.read(4 << 20):
            found.update(chunk)
    return found.hexdigest()


class Asking:
    """A connection to the first machine."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        use_key(self._socket, keys_of(key), address)
        self._socket.linger = 0
        self._monitor = self._socket.get_monitor_socket(_FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._refusals = 0
        """How often in a row the lock did not open for the key."""
        self._socket.connect(f"tcp://{address}")

    def close(self) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    def describe(self) -> Described:
        """What is trained there. Raises `RefusedError`."""
        until_s = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < until_s:
            self._send(Describe())
            match self._answer(_ASK_EVERY_S):
                case Described(versions=theirs) as found:
                    if (why := unlike(theirs, versions())) is not None:
                        raise RefusedError(f"The first machine has {why}: have the same on both.")
                    return found
                case NotYet():
                    until_s = time.monotonic() + ANSWERS_WITHIN_S
                    time.sleep(0.1)
                case Unreadable(why=why):
                    raise RefusedError(f"The first machine cannot send what is trained: {why}.", is_bad=False)
            self._refuse_another_lock()
        raise RefusedError(
            f"{self._address} does not answer: look whether the run is up there (memsup status), whether a firewall "
            "stands between, and whether that is the first machine's address.",
            is_bad=False,
        )

    def _refuse_another_lock(self) -> None:
        """Raises `RefusedError` where somebody is there, and does not know the key."""
        while self._monitor.poll(0):
            happened = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self._refusals = self._refusals + 1 if happened & _FAILED else 0
        if self._refusals >= _REFUSALS:  # once, and it may have begun anew in that moment
            raise RefusedError(
                f"{self._address} does not take the key: it is another run's, or no run of memsup listens there. The first "
                "machine says the whole line when the run is started there."
            )

    def fetch(self, number: int, file: OfferedFile, target: Path) -> None:
        """Receives a file, a few pieces on their way at a time, and verifies it. Raises `RefusedError`."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                offset = 0
                while offset < file.size_bytes:
                    for content in self._pieces(number, offset, file.size_bytes):
                        offset += out.write(content)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise RefusedError(f"{target} cannot be written: {error.strerror}. {_advice(error)}.") from None
        if not _is_whole(target, file):
            target.unlink(missing_ok=True)
            raise RefusedError(f"{file.path} has changed on the first machine meanwhile: start again.", is_bad=False)

    def _pieces(self, number: int, offset: int, size_bytes: int) -> list[bytes]:
        """The next pieces, as many as are asked for at a time; fewer where the connection broke meanwhile."""
        offsets = list(range(offset, min(size_bytes, offset + _WINDOW * PIECE_BYTES), PIECE_BYTES))
        until_s = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < until_s:
            found: dict[int, bytes] = {}
            for one in offsets:
                self._send(Read(file=number, offset=one))
            while len(found) < len(offsets):
                match self._answer(_ASK_EVERY_S * 5):
                    case Piece(file=of, offset=at, content=content) if of == number and at in offsets:
                        found[at] = content
                    case Unreadable(why=why):
                        raise RefusedError(f"The first machine cannot send a file: {why}.", is_bad=False)
                    case None | NotYet():  # it is being described anew, or nobody is there
                        break
            if len(found) == len(offsets):
                return [found[one][: size_bytes - one] or b"\0" for one in offsets]  # what is too short shows in the hash
        raise RefusedError(f"{self._address} does not answer any more: start again, and what is whole is kept.", is_bad=False)

    def _send(self, message: msgspec.Struct) -> None:
        try:
            self._socket.send_multipart(frames_of(message), zmq.DONTWAIT)
        except zmq.Again:  # nobody is there
            time.sleep(0.1)

    def _answer(self, within_s: float) -> Offer | None:
        """What comes within the time. None means that nothing does."""
        until_s = time.monotonic() + within_s
        while (left_s := until_s - time.monotonic()) > 0:
            if self._socket.poll(int(left_s * 1000) + 1):
                frames = self._socket.recv_multipart()
                offer = decoded_offer(frames)
                if offer is not None:
                    return offer
                if is_of_another_version(frames):
                    raise RefusedError(f"The first machine {OTHER_VERSION}.")
        return None


if __name__ == "__main__":
    sys.exit(main())
