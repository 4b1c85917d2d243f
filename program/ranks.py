"""Several ranks of one program, as torchrun starts them: processes of one machine that compute each step together.

Rank 0 is the one that the supervisor hears. Each time its ranks *meet*, at a boundary say, the others do what rank 0 says until
it goes on: they write their part of a checkpoint, or leave. What rank 0 waits for meanwhile, a pause of hours, they wait for on
a socket, and nobody in a collective, so no timeout of one runs. A rank that dies is noticed at once by the end of its
connection, whatever the main threads do; rank 0 says which one it was, or rank 1 of rank 0.

They find each other by a socket in the run's runtime folder, which is its user's alone. What is said are packets of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple

from memsup import messages
from memsup.about import About, NotAttached
from memsup.link import Link, NotAttachedError, Told, connected
from memsup.memory import read_memory
from memsup.store import CheckpointError

MEET_WITHIN_S = 120.0
"""All ranks have come to `memsup.guard`, or to `train()`, so many seconds after the first one."""
SAID_AFTER_S = 10.0
PARTS_WITHIN_S = 300.0
"""The others are where rank 0 is when it saves, and have written their parts, within so many seconds."""
ENDS_WITHIN_S = 5.0
"""A process that knows that another rank is gone has so many seconds to end by itself: it may wait in a collective."""
_TOLD_WITHIN_S = _SIGN_OF_LIFE_S = 1.0
_MOST_BYTES = 160 << 10
_MOST_TEXT = 8000
"""Characters of each text of a report, so that it is one packet."""
_GONE = "memsup: another rank is gone, so this one ends as well"
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class RankGone(SystemExit):
    """Unwinds a rank where another one is gone."""


class Group(NamedTuple):
    """The ranks of one program, and which of them this process is."""

    rank: int
    size: int
    key: str
    """What all of them have in common, and no other group of the same machine."""
    restarts: int = 0
    """How often its launcher has begun all of them anew."""
    most_restarts: int = 0


def group(environment: Mapping[str, str]) -> Group | None:
    """The group that this process is one of, as its launcher says. It is None where it is alone. Raises `NotAttachedError`
    where its ranks are on several machines.
    """

    def number(name: str, otherwise: int) -> int:
        word = environment.get(name, "").strip()
        return int(word) if word.isascii() and word.isdigit() else otherwise

    count = number("WORLD_SIZE", 1)
    if count <= 1:
        return None
    address, rank = environment.get("MASTER_ADDR", ""), number("RANK", -1)
    if number("LOCAL_WORLD_SIZE", count if address in _LOCAL else 0) != count or not 0 <= rank < count:
        text = "this is one of several ranks, and not all of them are on this machine, as far as their launcher says"
        raise NotAttachedError(NotAttached.SEVERAL_RANKS, text)
    restarts = number("TORCHELASTIC_RESTART_COUNT", 0)
    names = [address, environment.get("MASTER_PORT", ""), environment.get("TORCHELASTIC_RUN_ID", ""), str(restarts)]
    key = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    return Group(rank, count, key, restarts, number("TORCHELASTIC_MAX_RESTARTS", 0))


def part_of(folder: str, rank: int) -> str:
    """Where the part of a rank is in a checkpoint's folder; rank 0 has none of its own."""
    return os.path.join(folder, f"memsup-rank-{rank}") if rank else folder


# --------------------------------------------------------------------------------------------------------------------
# Rank 0


class _Other(NamedTuple):
    rank: int
    pid: int
    end: socket.socket


class Ranks:
    """The other ranks, as rank 0 has them. In a process that is alone there are none, and every method comes back at once."""

    def __init__(self, told: Told | None = None, group: Group | None = None) -> None:
        """Neither may be None but in a process that is alone."""
        self.count = group.size if group is not None else 1
        self.report: Callable[[messages.Message], None] = _drop
        """What the supervisor is told by. To be set before `meet`."""
        self.step: Callable[[], int] = int
        """The step that is told of a rank that dies."""
        self._told, self._group = told, group
        self._others: list[_Other] = []
        self._answers: queue.SimpleQueue[tuple[int, messages.Message]] = queue.SimpleQueue()
        self._through: set[int] = set()
        """The ranks that have said that they end."""
        self._is_over = False
        self._loss = threading.Event()
        self._has_said_why = False
        self._lock = threading.Lock()

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def meet(self) -> None:
        """Waits until all ranks are here. Raises `NotAttachedError`."""
        if self._group is None or self._told is None or self._others:
            return
        path = os.path.join(os.path.dirname(self._told.socket), f"ranks-{self._group.key}")
        try:
            self._others = _met(path, self.count)
        except OSError as error:
            text = f"its ranks cannot find each other ({error.strerror or error})"
            raise NotAttachedError(NotAttached.SEVERAL_RANKS, text) from None
        for other in self._others:
            threading.Thread(target=self._hear, args=(other,), name=f"memsup-rank-{other.rank}", daemon=True).start()
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def tell(self, what: str, **more: Any) -> None:
        """Says something to each of the others."""
        if self._others:
            packet = json.dumps({"what": what, **more}).encode()
            for other in self._others:
                with contextlib.suppress(OSError):  # it is gone, and its thread sees that
                    other.end.send(packet, socket.MSG_NOSIGNAL)

    def begin(self, **what: Any) -> None:
        """A training begins, of which the others are told `what`."""
        self._is_over = False
        self.tell("begins", **what)

    def over(self) -> None:
        """Lets the others go on without this one from now on."""
        self._is_over = True
        self.tell("over")

    def refuse(self, why: str) -> None:
        """As `over`, since this process is not attached."""
        self._is_over = True
        self.tell("alone", why=why)

    @contextlib.contextmanager
    def parts(self, folder: str) -> Iterator[None]:
        """Has the others write their parts into `folder` while this one writes its own inside; all are written afterwards.
        Raises `CheckpointError` where one is not, and `RankGone`.
        """
        self.tell("save", folder=folder)
        until_s, missing = time.monotonic() + PARTS_WITHIN_S, {other.rank for other in self._others}
        yield
        why = None
        while missing:
            try:
                rank, answer = self._answers.get(timeout=0.05)
            except queue.Empty:
                self.look()
                if time.monotonic() > until_s:
                    text = f"Rank {min(missing)} has not come to where it would write its part, in {PARTS_WITHIN_S:.0f} s."
                    raise CheckpointError(text) from None
                continue
            if answer.get("folder") == folder:
                missing.discard(rank)
                why = answer.get("why") or why
        if why is not None:
            raise CheckpointError(str(why))

    def look(self) -> None:
        """Raises `RankGone` where another rank is gone: nothing that begins now would come to its end."""
        if self._loss.is_set():
            raise RankGone(_GONE)

    def is_lost(self) -> bool:
        """Whether another rank is the reason why this process has an exception, which may be known a moment later. A rank
        beside rank 0 knows nothing of that, and speaks a moment later than who knows more.
        """
        return not self.is_alone and self._loss.wait(_TOLD_WITHIN_S)

    def ends(self) -> None:
        """This rank ends for a reason of its own, which it has said."""
        with self._lock:
            self._has_said_why = True
        self.tell("lost")

    # -- a thread for each ----------------------------------------------------------------------------------------------

    def _hear(self, other: _Other) -> None:
        for message in _messages(other.end):
            what = message["what"]
            if what == "written":
                self._answers.put((other.rank, message))
            elif what == "ends":
                self._through.add(other.rank)
            elif what == "report":
                self._pass_on(other.rank, message["message"])
        if not self._is_over and other.rank not in self._through and not self._loss.is_set():
            self._lose(other)

    def _pass_on(self, rank: int, report: messages.Message) -> None:
        kind = report.get("kind")
        if kind == "out_of_memory":
            self.report({**report, "rank": rank})
        elif kind == "failed" and self._is_first_to_say():
            self.report({**report, "message": f"Rank {rank}: {report['message']}"})
            self._loss.set()

    def _is_first_to_say(self) -> bool:
        with self._lock:
            before, self._has_said_why = self._has_said_why, True
        return not before

    def _lose(self, other: _Other) -> None:
        assert self._group is not None
        says, status = self._is_first_to_say(), exit_status(other.pid)
        if says:
            for report in lost_rank(other.rank, status, self.step() + 1, self._group):
                self.report(report)
        self._loss.set()
        self.tell("lost")
        time.sleep(ENDS_WITHIN_S)
        os._exit(1)

    def _leave_to_parent(self) -> None:
        for other in self._others:
            other.end.close()
        self._others = []


def _drop(_message: messages.Message) -> None:
    """What is said where nobody hears."""


def _met(path: str, count: int) -> list[_Other]:
    """A connection to each other rank. Raises OSError and `NotAttachedError`."""
    found: dict[int, _Other] = {}
    began_s, has_said = time.monotonic(), False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a life before this one
    with _at(path) as (place, listener):
        listener.bind(place)
        try:
            listener.listen(count)
            while len(found) < count - 1:
                waited_s = time.monotonic() - began_s
                missing = min(set(range(1, count)) - set(found))
                if waited_s > MEET_WITHIN_S:
                    text = f"rank {missing} of its {count} ranks has not called memsup within {MEET_WITHIN_S:.0f} s"
                    raise NotAttachedError(NotAttached.SEVERAL_RANKS, text)
                if waited_s > SAID_AFTER_S and not has_said:
                    has_said = True
                    text = f"memsup: rank 0 waits for rank {missing} to come to memsup.guard, or to train()"
                    print(text, file=sys.stderr, flush=True)
                listener.settimeout(0.5)
                with contextlib.suppress(socket.timeout):
                    end, _ = listener.accept()
                    end.settimeout(5.0)
                    here = json.loads(end.recv(_MOST_BYTES) or b"{}")
                    end.settimeout(None)
                    if here.get("what") == "here":
                        end.send(json.dumps({"what": "here", "pid": os.getpid()}).encode(), socket.MSG_NOSIGNAL)
                        found[here["rank"]] = _Other(here["rank"], here["pid"], end)
        except NotAttachedError as error:
            for other in found.values():
                with contextlib.suppress(OSError):
                    other.end.send(json.dumps({"what": "alone", "why": str(error)}).encode(), socket.MSG_NOSIGNAL)
            raise
        finally:
            os.unlink(path)
    return [found[rank] for rank in sorted(found)]


@contextlib.contextmanager
def _at(path: str) -> Iterator[tuple[str, socket.socket]]:
    """An address for `path`, which may be longer than the 107 bytes that one has, and a socket that is closed in the end."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            yield f"/proc/self/fd/{folder}/{os.path.basename(path)}", end
    finally:
        os.close(folder)


def _messages(end: socket.socket) -> Iterator[messages.Message]:
    """What comes in at one end, until the other one is gone."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        while packet := end.recv(_MOST_BYTES):
            yield json.loads(packet)


# --------------------------------------------------------------------------------------------------------------------
# How a rank has ended


def exit_status(pid: int) -> int | None:
    """How a process that ends has ended: its exit code, or minus a signal's number. It is None where its parent was quicker in
    asking than we are.
    """
    until_s = time.monotonic() + _TOLD_WITHIN_S
    with contextlib.suppress(OSError, ValueError, IndexError):
        while time.monotonic() < until_s:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read(4096).rpartition(b")")[2].split()
            if fields[0] in {b"Z", b"X"}:
                return os.waitstatus_to_exitcode(int(fields[49]))
            time.sleep(0.001)
    return None


def lost_rank(rank: int, status: int | None, step: int, group: Group) -> list[messages.Message]:
    """What the supervisor is told of a rank that has ended without a word, and of what its launcher does then."""
    text = f"Rank {rank} {_how(status)} in step {step:,}, so the step ended for all {group.size} ranks."
    said, left = [messages.failed("crash", text, None, step, exit_status=status)], group.most_restarts - group.restarts
    if left > 0:
        more = f"{left} more times" if left > 1 else "once more"
        text = f"{text} Their launcher begins all of them anew, as it may do {more}."
        said.insert(0, messages.decided("rank_lost", text, step=step))
    return said


def _how(status: int | None) -> str:
    if status is None:
        return "ended without a word"
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


# --------------------------------------------------------------------------------------------------------------------
# The others


class RankLink:
    """Another rank's end of its connection to rank 0, in the place of a link to the supervisor (`link.Link`)."""

    def __init__(self, told: Told, about: About, group: Group) -> None:
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Nothing comes in here but a `Lost`: what rank 0 says is in `words`."""
        self.words: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        self.progress: messages.Message = messages.progress()
        self.checkpoint: messages.Note | None = None
        self.batch: messages.Message | None = None
        self.read_memory: Callable[[], messages.Message] = read_memory
        self.urge: Callable[[], None] = int  # type: ignore[assignment]
        self.memory_limit_bytes: int | None = None
        self.micro_tokens_limit: int | None = None
        self.deaths = 0
        self.pid = os.getpid()
        self.group = group
        self._told, self._about = told, about
        self._end: socket.socket | None = None
        """It is None before the link is open."""
        self._first_pid = 0
        self.is_over = self._is_lost = False
        """Whether rank 0 goes on without this one."""
        self._has_told = threading.Event()
        """All is told that this rank has to tell of rank 0's end."""

    def open(self) -> None:
        """Connects to rank 0. Raises `NotAttachedError`."""
        path = os.path.join(os.path.dirname(self._told.socket), f"ranks-{self.group.key}")
        until_s = time.monotonic() + MEET_WITHIN_S
        while self._end is None:
            if time.monotonic() > until_s:
                raise NotAttachedError(NotAttached.SEVERAL_RANKS, "rank 0 of its ranks has not called memsup")
            with contextlib.suppress(OSError):
                self._end = connected(path, socket.SOCK_SEQPACKET)
            time.sleep(0.02)
        self._say("here", rank=self.group.rank, pid=self.pid)
        os.register_at_fork(after_in_child=self._end.close)
        threading.Thread(target=self._hear, args=(self._end,), name="memsup", daemon=True).start()

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self.pid

    def next(self, tick: Callable[[], None]) -> messages.Message:
        """What rank 0 says next. `tick` is called while nothing is said. Raises `RankGone`."""
        while True:
            try:
                message = self.words.get(timeout=_SIGN_OF_LIFE_S)
            except queue.Empty:
                tick()
                continue
            if message["what"] == "lost":
                raise RankGone(_GONE)
            return message

    def written(self, folder: str, why: str | None) -> None:
        """Tells that the part of a checkpoint is written, or `why` it is not."""
        self._say("written", folder=folder, why=why)

    def report(self, message: messages.Message) -> None:
        """Tells rank 0 what is told of the process, as far as that is not its own affair."""
        if message["kind"] in {"failed", "out_of_memory"}:
            short = {name: text[:_MOST_TEXT] if isinstance(text, str) else text for name, text in message.items()}
            self._say("report", message=short)

    def flush(self, within_s: float = 5.0) -> None:
        """Waits until all is told. Of what is said to rank 0 nothing waits: a packet is the kernel's at once."""
        if self._is_lost:
            self._has_told.wait(within_s)

    def ends(self) -> None:
        """Tells that this process ends as it should."""
        self._say("ends")

    def close(self) -> None:
        self.is_over = True
        self.ends()
        if self._end is not None:
            with contextlib.suppress(OSError):
                self._end.shutdown(socket.SHUT_RDWR)

    def _say(self, what: str, **more: Any) -> None:
        if self._end is not None:
            with contextlib.suppress(OSError):
                self._end.send(json.dumps({"what": what, **more}).encode(), socket.MSG_NOSIGNAL)

    def _hear(self, end: socket.socket) -> None:
        is_told = False
        for message in _messages(end):
            if message["what"] == "here":
                self._first_pid = message["pid"]
                continue
            if message["what"] in {"over", "alone", "begins"}:
                self.is_over = message["what"] != "begins"
            is_told = is_told or message["what"] == "lost"
            self.words.put(message)
            if is_told:
                break
        if self.is_over:
            self.words.put({"what": "over"})
            return
        self._is_lost = True
        self.words.put({"what": "lost"})
        if not is_told and self.group.rank == 1:
            self._tell_of_first()
        self._has_told.set()
        time.sleep(ENDS_WITHIN_S)
        os._exit(1)

    def _tell_of_first(self) -> None:
        """Rank 0, which the supervisor heard, has ended without a word."""
        status, link = exit_status(self._first_pid), Link(self._told, self._about)
        with contextlib.suppress(NotAttachedError):
            link.open()
            for report in lost_rank(0, status, self.progress["step"] + 1, self.group):
                link.report(report)
            link.flush()
            link.close()
