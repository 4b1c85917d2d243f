"""The temperatures at which to act, chosen from what a device says about itself. Pure.

A device's own slowdown temperature S decides everything: colour at S - 12, pace at S - 8, hold at S - 5 kept for a while,
resume at S - 15. "Maximum operating temperature" is not used: an MX330 says 57 and slows down at 97. GeForce's usual set point
of 83 to 84 stays below the pace level of the cards that name an absolute threshold; on those that speak in margins (T.Limit:
RTX 40 and later, H100) S follows whichever of the chip's sensors is nearest to its limit, and is lower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memsup.supervisor.decide.uses import COLOUR_BELOW_C, HOLD_BELOW_C

ASSUMED_SLOWDOWN_C = 93.0
"""The slowdown temperature of a device that does not say: the lowest that is usual (30-series)."""
PACE_BELOW_C, RESUME_BELOW_C = 8.0, 15.0
_LEAST_SLOWDOWN_C, _MOST_SLOWDOWN_C = 60.0, 120.0
_MOST_MARGIN_C = 120.0


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Where the device slows itself down and switches itself off, in °C. Each is None where the device does not say, or says
    nonsense.
    """

    slowdown_c: float | None = None
    shutdown_c: float | None = None


def device_limits(
    *,
    temperature_c: float | None = None,
    margin_c: float | None = None,
    slowdown_margin_c: float | None = None,
    shutdown_margin_c: float | None = None,
    slowdown_threshold_c: float | None = None,
    shutdown_threshold_c: float | None = None,
) -> DeviceLimits:
    """The device's limits, from its margins where it has them (it no longer maintains the old thresholds), else from those.

    A margin counts down to 0 at the operating limit and goes on below; the device slows down when it falls to
    `slowdown_margin_c` (-2, say). So S is as far above the present temperature as the margin is above that.
    """
    slowdown = shutdown = None
    if temperature_c is not None and margin_c is not None and abs(margin_c) <= _MOST_MARGIN_C:
        if slowdown_margin_c is not None:
            slowdown = _sensible(temperature_c + margin_c - slowdown_margin_c)
        if shutdown_margin_c is not None:
            shutdown = _sensible(temperature_c + margin_c - shutdown_margin_c)
    if slowdown is None:
        slowdown, shutdown = _sensible(slowdown_threshold_c), _sensible(shutdown_threshold_c)
    if slowdown is None and temperature_c is not None and margin_c is not None:  # it has margins, but names no thresholds
        slowdown = _sensible(temperature_c + margin_c)
    if slowdown is not None and shutdown is not None and shutdown < slowdown:
        shutdown = None
    return DeviceLimits(slowdown, shutdown)


def _sensible(celsius: float | None) -> float | None:
    return celsius if celsius is not None and _LEAST_SLOWDOWN_C <= celsius <= _MOST_SLOWDOWN_C else None


@dataclass(frozen=True, slots=True)
class HeatLimits:
    """What memsup does at which temperature (°C) of one device or sensor."""

    colour_c: float
    """`status` shows the device as warm from this temperature on."""
    pace_c: float
    """The temperature that is kept by computing with gaps."""
    hold_c: float
    resume_c: float
    slowdown_c: float
    assumed: bool = False
    """Whether `slowdown_c` is assumed, since the device does not say."""

    def cooler(self, by_c: float) -> HeatLimits:
        """These limits with everything that memsup does done so many degrees earlier."""
        return replace(
            self,
            colour_c=self.colour_c - by_c,
            pace_c=self.pace_c - by_c,
            hold_c=self.hold_c - by_c,
            resume_c=self.resume_c - by_c,
        )


def heat_limits(slowdown_c: float | None, chosen_c: float | None = None) -> HeatLimits:
    """The limits of a device that slows down at `slowdown_c`, which is None where it does not say. `chosen_c` is the pace level
    that the user set. It is None where none was set.

    The user may go nearer to the slowdown than the default, but not past the hold level.
    """
    slowdown = ASSUMED_SLOWDOWN_C if slowdown_c is None else slowdown_c
    pace = slowdown - PACE_BELOW_C
    if chosen_c is not None:
        pace = min(chosen_c, slowdown - HOLD_BELOW_C)
    return HeatLimits(
        colour_c=pace + PACE_BELOW_C - COLOUR_BELOW_C,
        pace_c=pace,
        hold_c=pace + PACE_BELOW_C - HOLD_BELOW_C,
        resume_c=pace + PACE_BELOW_C - RESUME_BELOW_C,
        slowdown_c=slowdown,
        assumed=slowdown_c is None,
    )
