"""The hold while a laptop runs on its battery. Pure; `sense/power_supply.py` reads.

A laptop that is unplugged at night would be empty, and off, within an hour or two of training.
"""

from __future__ import annotations

from dataclasses import dataclass

HOLD_AFTER_S = 10.0
"""A plug that is pulled and put back within this time costs nothing."""
RESUME_AFTER_S = 30.0


@dataclass
class BatteryControl:
    """Decides whether to hold because of the battery. Where that is not known (None), nothing changes."""

    holding: bool = False
    _other_since_s: float | None = None

    def step(self, now_s: float, on_battery: bool | None) -> bool:
        """Whether to hold now. `on_battery` is None where it is not known."""
        if on_battery is None or on_battery is self.holding:
            self._other_since_s = None
        elif self._other_since_s is None:
            self._other_since_s = now_s
        elif now_s - self._other_since_s >= (HOLD_AFTER_S if on_battery else RESUME_AFTER_S):
            self.holding, self._other_since_s = on_battery, None
        return self.holding
