"""How much of something others may take: some of it at once, the rest as time passes. Pure; `now_s` is an argument."""

from __future__ import annotations


class Allowance:
    """An allowance is full at first, and fills up again at a steady pace (a token bucket)."""

    def __init__(self, most: float, per_s: float) -> None:
        """So much can be taken at once, and so much comes back in a second."""
        self._most, self._per_s = most, per_s
        self._left, self._at_s = most, float("-inf")

    def left(self, now_s: float) -> float:
        """How much may be taken now; below 0 where more was taken than there was."""
        if now_s > self._at_s:
            self._left = min(self._most, self._left + self._per_s * (now_s - self._at_s))
            self._at_s = now_s
        return self._left

    def take(self, amount: float, now_s: float) -> None:
        """Takes `amount`, though it may be more than is left; at most the whole allowance is owed afterwards."""
        self._left = max(-self._most, self.left(now_s) - amount)

    def due_s(self, amount: float, now_s: float) -> float:
        """The time at which `amount` is there."""
        return now_s + max(0.0, amount - self.left(now_s)) / self._per_s

    def is_full(self, now_s: float) -> bool:
        return self.left(now_s) >= self._most
