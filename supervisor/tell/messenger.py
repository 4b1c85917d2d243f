"""The supervisor's end of the sender: hands jobs over, takes answers, and never waits for either.

The sender (`sender.py`) is started once, before the worker, since starting a process is slow just when memory is short. When it
dies it is replaced, at most every `AGAIN_AFTER_S`. What is to be told is decided in `policy.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memsup.shared.printable import printable, printable_lines
from memsup.shared.secret import Secret
from memsup.supervisor.kernel.processes import started_here
from memsup.supervisor.tell.policy import Notice

AGAIN_AFTER_S = 300.0
MOST_WAITING_BYTES = 128 * 1024
"""At most this much of jobs that the sender has not read is kept; more is dropped."""


@dataclass(frozen=True)
class Sent:
    """What came of a notice, or of a ping."""

    ping: bool
    ok: bool
    text: str


class Messenger:
    """One sender, or none: without `urls` and `ping_url`, which are as in the settings, nothing is ever started."""

    def __init__(self, urls: Sequence[Secret], ping_url: Secret | None) -> None:
        self._urls, self._ping_url = list(urls), ping_url
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = float("-inf")
        self._waiting = b""
        self._read = b""
        self._asked: dict[int, bool] = {}
        """The jobs without an answer, and whether they are pings."""
        self._next = 1

    @property
    def fd(self) -> int | None:
        """The descriptor that is readable when there are answers. It is None while there is no sender."""
        return self._process.stdout.fileno() if self._process and self._process.stdout else None

    def start(self, now_s: float) -> None:
        """Starts the sender, unless nobody is to be told or one lives. That may take milliseconds, so it is not to be called
        while memory is short.
        """
        if not (self._urls or self._ping_url) or now_s - self._started_s < AGAIN_AFTER_S:
            return
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._forget()
        self._started_s = now_s
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memsup.supervisor.tell.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        started_here(self._process.pid)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)

    def send(self, notice: Notice, *, retry: bool = True) -> None:
        """Hands a notice over; it is lost where there is no sender, or one that has stopped reading."""
        if self._urls:
            job = {
                "urls": [url.reveal() for url in self._urls],
                "title": printable(notice.title),
                "text": printable_lines(notice.text),
                "retry": retry,
            }
            self._hand_over(job, ping=False)

    def ping(self) -> None:
        """Asks for one ping; it is dropped while an earlier one is on its way."""
        if self._ping_url and True not in self._asked.values():
            self._hand_over({"ping": self._ping_url.reveal()}, ping=True)

    @property
    def on_its_way(self) -> bool:
        """Whether a message, not a ping, was handed over and nothing has come back yet."""
        return False in self._asked.values()

    def answers(self) -> list[Sent]:
        """What came back since the last call; to be called when `fd` is readable, and about once a second."""
        self._push()
        fd = self.fd
        if fd is None:
            return []
        try:
            while more := os.read(fd, 64 * 1024):
                self._read += more
        except BlockingIOError:
            pass
        except OSError:
            return []
        *lines, self._read = self._read.split(b"\n")
        return [sent for line in lines if (sent := self._answered(line)) is not None]

    def close(self) -> None:
        """Lets the sender go: it ends when it has delivered what it has, and is not waited for."""
        if self._process is not None:
            self._push()
            self._forget()

    def _answered(self, line: bytes) -> Sent | None:
        try:
            answer = json.loads(line)
            ping = self._asked.pop(int(answer["id"]))
            return Sent(ping, answer["ok"] is True, str(answer["text"])[:500])
        except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
            return None

    def _hand_over(self, job: dict[str, Any], *, ping: bool) -> None:
        line = json.dumps(job | {"id": self._next}).encode() + b"\n"
        if self._process is None or len(self._waiting) + len(line) > MOST_WAITING_BYTES:
            return
        self._asked[self._next] = ping
        self._next += 1
        self._waiting += line
        self._push()

    def _push(self) -> None:
        """Writes as much as the pipe takes."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._process.stdin.fileno(), self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:  # it died: `start` replaces it
            self._waiting = b""

    def _forget(self) -> None:
        process, self._process = self._process, None
        self._waiting = self._read = b""
        self._asked.clear()
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:
                        pass
            process.poll()
