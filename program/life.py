"""One life of a program under its supervisor: the link, the session over it, and how the end of the process is told.

A process has one, in which trainings follow each other (`training.py`). Without `memsup start`, in a process that was forked,
there is none. Of several ranks (`ranks.py`) rank 0 has the link, and the others follow it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from memsup import messages
from memsup.about import About, NotAttached, Seam
from memsup.link import Link, Lost, NotAttachedError, Told, told
from memsup.memory import OURS, is_out_of_memory, lift
from memsup.ranks import Group, RankLink, Ranks, group
from memsup.session import Following, Leave, Session
from memsup.sleep import Sleep
from memsup.store import CheckpointError
from memsup.training import Training

_life: Life | None = None
"""The life of this process. It is None before the first training of it begins."""


class TwiceError(RuntimeError):
    """Two trainings of a program would have the same key, or be under way at once."""


class Life:
    """What only a process under a supervisor has: `begin` makes it."""

    def __init__(self, found: Told, about: About, ours: Group | None = None) -> None:
        """`ours` are the ranks that this process is one of. It is None where it is alone."""
        self.told = found
        self.rank = ours.rank if ours is not None else 0
        self.ranks = Ranks(found, ours)
        self.link: Link | RankLink
        self.session: Session
        if ours is not None and ours.rank > 0:
            self.link = RankLink(found, about, ours)
            self.session = Following(self.link, about)
        else:
            self.link = Link(found, about)
            self.session = Session(self.link, about, found.every_s, self.ranks)
            self.ranks.report, self.ranks.step = self.link.report, lambda: int(self.link.progress["step"])
        self.training = Training(found, about.training, self.rank, self.ranks.count)
        """The training that runs now, or the last one."""
        self._keys: set[str] = set()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it, and no fork of that."""
        return self.link.is_ours

    @property
    def memory_limit_bytes(self) -> int | None:
        """What the process and all that belongs to it may use; of several ranks each has the same part. It is None where
        nothing limits it.
        """
        limit_bytes = self.link.memory_limit_bytes
        return None if limit_bytes is None else limit_bytes // self.ranks.count

    @property
    def micro_tokens_limit(self) -> int | None:
        """Caps the first micro-batch. It is None but after a restart for want of memory."""
        return self.link.micro_tokens_limit

    def open(self) -> None:
        """Connects, and finds the newest checkpoint of the training. Raises `NotAttachedError`."""
        try:
            if self.rank == 0:
                self.ranks.meet()
                self.training.look()
            self.link.open()
            _tell_of_the_end(self)
            self._find()
        except NotAttachedError as error:
            self.ranks.refuse(str(error))
            self.link.close()
            raise
        _leave_on_sigterm(self.link)

    def follow(self, about: About) -> None:
        """Another training follows: its newest checkpoint is found. Raises `NotAttachedError`, and `TwiceError`."""
        if not self.training.is_complete:
            raise TwiceError(
                "memsup.guard was called again before the training before it was complete: a program has one at a time. "
                "Call run.finish() when one is complete, and then guard the next."
            )
        if about.training in self._keys:
            raise TwiceError(f"memsup.guard was called twice for the training {about.training!r}: give each a name of its own.")
        self.training = Training(self.told, about.training, self.rank, self.ranks.count)
        self.session.about = about
        self.session.publish(phase="loading", total_steps=None, eta_s=None, loss=None)
        self.link.batch = None
        self.link.report(messages.hello(self.link.pid, self.told.run_id, about))
        self._find()

    def _find(self) -> None:
        self._keys.add(self.training.key)
        self.session.publish(phase="loading")
        if isinstance(self.link, RankLink):
            self._follow_first(self.link)
        else:
            self.training.find(self.session)
            self.ranks.begin(
                memory_limit_bytes=self.link.memory_limit_bytes,
                micro_tokens_limit=self.link.micro_tokens_limit,
                deaths=self.link.deaths,
                **self.training.as_told(),
            )
        newest, resumed = self.training.newest, self.training.resumed
        if newest is not None and resumed is not None:
            self.session.found(newest)
            self.session.trained_s = resumed.trained_s

    def _follow_first(self, link: RankLink) -> None:
        """Takes over what rank 0 says of the training that begins. Raises `NotAttachedError`, and `RankGone`."""
        while (told := link.next(self.session.tick))["what"] != "begins":
            if told["what"] == "alone":
                raise NotAttachedError(NotAttached.SEVERAL_RANKS, told["why"])
        link.memory_limit_bytes, link.micro_tokens_limit = told["memory_limit_bytes"], told["micro_tokens_limit"]
        link.deaths = told["deaths"]
        self.training.follow(told)

    @property
    def trainings(self) -> int:
        """How many trainings this process has begun."""
        return len(self._keys)

    def refuse(self, error: TwiceError) -> None:
        """Has the supervisor told that the program calls for what makes no sense, so that nobody tries it again."""
        self.link.report(messages.failed("bad_input", str(error), None, self.link.progress["step"]))
        self.link.flush()


def begin(about: About, key: str | None = None) -> Life | None:
    """The life of this process, at the training that begins now: `key` is its name, or None for its number in the program. Its
    newest checkpoint is found (`life.training.newest`) and not loaded. `life.session.begin` has to follow.

    Returns None where the process is not attached to a supervisor, which is said. Raises `TwiceError` for a training that was
    begun before, or begins before the last one is complete.
    """
    global _life
    found = told()
    if found is None:
        return None
    is_first = _life is None or not _life.is_ours
    about = about._replace(training=key or ("1" if is_first or _life is None else str(_life.trainings + 1)))
    try:
        if threading.current_thread() is not threading.main_thread():
            raise NotAttachedError(NotAttached.NOT_MAIN_THREAD, "memsup was not called in the main thread")
        ours = group(os.environ)
        if ours is not None and about.seam is Seam.LIGHTNING:
            raise NotAttachedError(NotAttached.SEVERAL_RANKS, "memsup does not join the ranks of a Lightning trainer")
        if is_first or _life is None:
            life = Life(found, about, ours)
            life.open()
            _life = life
        else:
            _follow(_life, about)
    except NotAttachedError as error:
        not_attached(found, error)
        return None
    except TwiceError as error:
        assert _life is not None
        _life.refuse(error)
        raise
    return _life


def _follow(life: Life, about: About) -> None:
    try:
        life.follow(about)
    except NotAttachedError:
        let_go()
        raise


def let_go() -> None:
    """Ends the life of this process, which nobody will carry out orders in: the process is fenced, not attached."""
    global _life
    if _life is not None and _life.is_ours:
        _life.ranks.refuse("rank 0 is not attached any more")
        _life.link.close()
    _life = None


def not_attached(found: Told, error: NotAttachedError) -> None:
    """Says why this process is not attached, to people and to the supervisor."""
    rank = os.environ.get("LOCAL_RANK", "").strip() or os.environ.get("RANK", "").strip()
    if rank not in {"", "0"}:
        return  # the first of its ranks on this machine says it, to the supervisor here
    print(f"memsup: this process is fenced, not attached: {error}. It trains without memsup's checkpoints.", file=sys.stderr)
    if error.why not in {NotAttached.NO_SUPERVISOR, NotAttached.TURNED_AWAY}:
        Link(found).tell_not_attached(error.why, str(error))


def _leave_on_sigterm(link: Link | RankLink) -> None:
    """Has a SIGTERM, as at a shutdown, end the program at its next boundary, with a checkpoint; unless the program has a use
    for it itself. A rank beside rank 0 waits for what that says of it: all of them are told.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def leave(_number: int, _frame: Any) -> None:
        link.orders.put(Lost("SIGTERM"))
        link.urge()

    leave.is_memsups = True  # type: ignore[attr-defined]  # for a child that is forked
    signal.signal(signal.SIGTERM, leave)


def _tell_of_the_end(life: Life) -> None:
    """Has the supervisor told of the last step of a program that ends, and of an exception that ends it, before Python prints
    that; and other ranks of the end.
    """
    link, ranks = life.link, life.ranks
    has_failed, sleep = False, Sleep()

    @atexit.register
    def last_beat() -> None:
        if link.is_ours:
            link.flush(1.0)
            if not has_failed:
                ranks.over()
                life.session.end()

    before = sys.excepthook

    def told_first(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        nonlocal has_failed
        has_failed = True
        is_ours = link.is_ours and not isinstance(error, (KeyboardInterrupt, Leave, TwiceError))
        if is_ours and not ranks.is_lost():
            lift()  # what is left to be done is not to fail for want of what a step may not take
            stack = "".join(traceback.format_exception(kind, error, where))[-messages.MOST_TEXT :]
            link.report(last_words(error, stack, link.progress["step"], sleep))
            ranks.ends()
            link.flush()
        before(kind, error, where)

    sys.excepthook = told_first


def last_words(error: BaseException, stack: str, step: int, sleep: Sleep) -> messages.Message:
    """What the supervisor is told of an exception that ends the program after `step`, with what memsup has added to it; `sleep`
    is the machine's since the program was attached.
    """
    if (dead := sleep.killed_cuda(error, "the program")) is not None:
        return messages.failed("after_sleep", dead, stack, step)
    if isinstance(error, CheckpointError):
        return messages.failed("bad_input", str(error), stack, step)
    text = f"The program ended with {type(error).__name__} after step {step:,}: {error}"
    for note in getattr(error, "__notes__", ()):
        if str(note).startswith(OURS):
            text = f"{text.rstrip('. ')}. {note[len(OURS) :]}"
    return messages.failed("out_of_memory" if is_out_of_memory(error) else "crash", text, stack, step)
