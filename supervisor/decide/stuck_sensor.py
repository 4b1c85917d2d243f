"""Distrust of a temperature sensor that never moves: a stuck one reads fine for ever. Pure.

Standing still is not enough: an idle device, or one kept at its set point, rightly shows the same whole degree for minutes. But
the same number, to the last digit, while the heat being made has changed by a good part, is not a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

STILL_S = 300.0
SWING_FRACTION = 0.3
BELIEVED_FROM_C = 75.0
"""A hot reading is believed even when it stands still: chips are held at their limit for hours, by their own firmware too."""
_SMOOTH_S = 30.0
"""Heat is averaged over about this time: a sensor is right not to follow shorter swings."""


@dataclass
class StuckSensorWatch:
    """Follows one sensor. Call `trusts` with each reading; it forgives a sensor as soon as it moves."""

    _celsius: float | None = None
    _since_s: float = 0.0
    _seen_s: float = 0.0
    _heat: float | None = None
    _heat_since_s: float = 0.0
    _least: float = 0.0
    _most: float = 0.0

    def trusts(self, now_s: float, celsius: float | None, heat: float | None) -> bool:
        """Whether `celsius` can be believed. `heat` is anything in proportion to what warms the sensor (watts, CPU in use);
        without it nothing is ever distrusted.
        """
        if celsius is None:
            return True
        if heat is not None:
            if self._heat is None:
                self._heat, self._heat_since_s = heat, now_s
            self._heat += min(1.0, (now_s - self._seen_s) / _SMOOTH_S) * (heat - self._heat)
        self._seen_s = now_s
        if celsius != self._celsius:
            self._celsius, self._since_s = celsius, now_s
        if self._heat is None:
            return True
        if self._since_s == now_s or now_s - self._heat_since_s < 3 * _SMOOTH_S:  # an average has to settle first
            self._least = self._most = self._heat
        self._least, self._most = min(self._least, self._heat), max(self._most, self._heat)
        swung = self._most - self._least > SWING_FRACTION * self._most
        return celsius >= BELIEVED_FROM_C or not swung or now_s - self._since_s < STILL_S
