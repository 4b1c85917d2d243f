"""Tells systemd how the supervisor does (sd_notify(3)): ready, alive, about to end. Says nothing where nobody asked.

What it says goes as datagrams to the socket in `NOTIFY_SOCKET` and never blocks: a service manager that does not read must not
hold up the guard.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping


class Notifier:
    """The supervisor's line to systemd. `environment` is `os.environ`; what is read there is taken out, so that no child speaks
    in our name.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        usec, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        meant = pid in ("", str(os.getpid()))
        self.watchdog_every_s = int(usec) / 1e6 / 2 if usec.isdecimal() and meant else None
        """How often `alive` has to be said. It is None where nobody waits for it."""
        self._next_s = 0.0
        self._socket: socket.socket | None = None
        self._address: str | bytes = address
        if address.startswith("@"):  # an abstract socket
            self._address = b"\0" + os.fsencode(address[1:])
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self, now_s: float) -> None:
        """Says that the loop turns, as often as systemd wants to hear it; to be called at every turn."""
        if self.watchdog_every_s is not None and now_s >= self._next_s:
            self._next_s = now_s + self.watchdog_every_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def tell(self, sentence: str) -> None:
        """Says one line that `systemctl status` shows."""
        self._send("STATUS=" + " ".join(sentence.split())[:500])

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError:  # full or gone: the next one will tell, or the watchdog bites
            pass
