"""Messages and pings of a run, joined: the policy says what, the messenger carries it, and a file remembers what was told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.descriptors import wait_ready
from memsup.shared.files import UnreadableError, read_document
from memsup.shared.settings import Notify
from memsup.shared.status import Status
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.record.scribe import Scribe
from memsup.supervisor.tell.messenger import Messenger, Sent
from memsup.supervisor.tell.policy import Policy, Told

FAREWELL_S = 10.0
"""The message that the run is over has this long to arrive: under systemd, what is on its way dies with the supervisor."""


class Notices:
    def __init__(self, file: Path, settings: Notify, scribe: Scribe) -> None:
        """`file` remembers what was told over restarts of the supervisor."""
        self.policy = Policy(_read_told(file))
        self._file, self._scribe = file, scribe
        self._written = b""
        self._settings = settings
        self._messenger = Messenger(settings.urls, settings.ping_url)
        self._ping_arrives: bool | None = None
        """Whether the last ping arrived. It is None before the first answer."""

    def start(self, now_s: float) -> None:
        """Starts the sender where there is something to send and none lives; not to be called while memory is short."""
        self._messenger.start(now_s)

    def take_over(self, now_s: float, settings: Notify) -> Iterator[Record]:
        """Other addresses count from now on; who has to send something still does so."""
        if settings == self._settings:
            return
        yield from self._answers()
        self._messenger.close()
        self._settings, self._messenger = settings, Messenger(settings.urls, settings.ping_url)
        self._ping_arrives = None
        self.start(now_s)

    def step(self, now_s: float, status: Status) -> Iterator[Record]:
        """Sends what is due, and says what came of what was sent; to be called about once a second."""
        if self._settings.urls:
            here = time.localtime()
            for notice in self.policy.step(unix_s(), here.tm_hour, time.strftime("%Y-%m-%d", here), status):
                self._messenger.send(notice)
            told = msgspec.json.encode(self.policy.told)
            if told != self._written:
                self._written = told
                self._scribe.replace(self._file, told)
        if self.policy.ping_due(now_s):
            self._messenger.ping()
        yield from self._answers()

    def say_goodbye(self, now_s: float, status: Status) -> Iterator[Record]:
        """Sends what is due at the end and waits until it is delivered, at most `FAREWELL_S`."""
        yield from self.step(now_s, status)
        until_s = now_s + FAREWELL_S
        while self._messenger.on_its_way and self._messenger.fd is not None and (left_s := until_s - monotonic_s()) > 0:
            wait_ready([self._messenger.fd], min(1.0, left_s))
            yield from self._answers()
        self._messenger.close()

    def _answers(self) -> Iterator[Record]:
        """What came of what was sent: a line for every message, and one when pings begin or cease to arrive."""
        for sent in self._messenger.answers():
            if not sent.ping:
                yield _line(sent, "delivered" if sent.ok else "not delivered")
            elif sent.ok is not self._ping_arrives:
                self._ping_arrives = sent.ok
                yield _line(sent, "pings arrive" if sent.ok else "pings do not arrive")


def _line(sent: Sent, result: str) -> Record:
    return Record(event=Event.MESSAGE, reason=sent.text, result=result, by=By.SUPERVISOR, delivered=sent.ok)


_told = msgspec.json.Decoder(Told)


def _read_told(file: Path) -> Told:
    """What was told before. Where the file is missing or damaged it is nothing: at worst something is told a second time."""
    try:
        return read_document(file, _told.decode)
    except (FileNotFoundError, UnreadableError):
        return Told()
