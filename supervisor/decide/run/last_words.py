"""How long a worker that has ended by itself may still be heard. Pure.

Its exit is seen at once, but what it said before comes through a thread of the socket's; and that a machine goes down may be
told to a foreign command a moment before it is told to us.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST_WORDS_WITHIN_S = 0.5


@dataclass
class LastWords:
    """The wait for one worker's last words; a new worker has a new one."""

    _until_s: float | None = None

    def may_come(self, now_s: float, exit_status: int | None, *, owed: bool) -> bool:
        """Whether last words may still come, so that the worker's end has to wait. A worker that was killed by a signal, or
        owes none, has none to come.

        `exit_status` is the worker's own, negative for a signal. It is None where the worker was not seen to exit.
        """
        if exit_status is None or exit_status < 0 or not owed:
            return False
        if self._until_s is None:
            self._until_s = now_s + LAST_WORDS_WITHIN_S
        return now_s < self._until_s
