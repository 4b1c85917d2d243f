"""Heat: compute as much as the cooling carries, and not a degree more. Pure.

Covers every source of heat alike, GPUs and CPU: *pace* (gaps between micro-batches) is found by a controller that looks for the
largest part of the time which keeps the pace level; where the driver allows it, a lower power limit takes over, since it costs
less speed than gaps; *hold* comes when pacing did not help, and ends well below, after a minimum time, so that nothing flaps.
A smaller micro-batch makes no less heat and is not tried. Which temperatures these are is `thresholds.py`; the duty is
carried out by the worker, the power limit by the GPU probe.

The controller works on where the temperature will be in `AHEAD_S` at its present slope, since a cooler goes on warming up for
minutes after the chip has: an integrator finds the duty, a proportional part answers what is above the level, both limited in
how fast they move, upwards much slower than down. It never climbs on a reading that it does not have, nor while the source is
given less to do than usual (waiting for data): what the cooler carries then says nothing about the full load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memsup.supervisor.decide.thresholds import HeatLimits
from memsup.supervisor.words import percent

STEP_S = 1.0
"""Calls that come more often than this are answered from the last step."""
AHEAD_S = 30.0
PER_DEGREE, PER_DEGREE_SECOND = 0.006, 0.0018
"""The duty that is given up for each degree above the level, and for each degree and second."""
UP_PER_S, DOWN_PER_S = 0.005, 0.1
LEAST_DUTY = 0.05
SHOWN_STEP = 0.02
"""The worker is told of changes of at least this much."""
UNKNOWN_YET_DUTY, FIRST_SEEN_HOT_C = 0.5, 10.0
"""Computing begins with this duty where the first reading is already this near to the level: how it got there is not known."""
SLOWED_DUTY, SLOWED_C, SLOWED_CALM_S = 0.5, 5.0, 300.0
"""A device whose hardware slows it down because of heat is treated as if it were this many degrees above its level, whatever
its sensor says, until the duty is down to this: the sensor may lie, or another part of the device may be hot. For the last of
these times after that the duty is not raised."""

HOLD_AFTER_S, LEAST_HOLD_S = 10.0, 60.0
RESUME_DUTY = 0.7
"""Computing begins again with this part of the duty that was in force before the hold."""
TELL_HOLD_S, TELL_SLOW_S, TELL_BLIND_S = 600.0, 1800.0, 600.0
SLOW_DUTY, NOT_SLOW_DUTY = 0.5, 0.8

CAP_BELOW_DUTY, CAP_AFTER_S, UNCAP_AFTER_S, UNCAP_BELOW_C = 0.9, 60.0, 600.0, 6.0
CAP_STEP, LEAST_CAP = 0.05, 0.6
"""Below this part of its default limit a card loses more speed than heat."""

_LEVEL_GAIN, _SLOPE_GAIN = 0.35, 0.03
_GAP_S = 10.0
"""The slope is forgotten after so long without a reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatSource:
    """Something that gets warm when the worker computes."""

    name: str
    temperature_c: float | None
    limits: HeatLimits
    heat: float | None = None
    """Anything in proportion to the heat that is being made now: watts, or the part of the CPU in use. It is None where that is
    not known."""
    slowed: bool | None = None
    """Whether its hardware slows it down because of heat now. It is None where the hardware does not tell."""
    cappable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatDecision:
    """`duty_fraction` and `power_fraction` (of the default power limit) hold until the next decision; 1.0 is no restriction."""

    duty_fraction: float = 1.0
    power_fraction: float = 1.0
    hold: bool = False
    reason: str = ""
    forecast_s: float | None = None
    """The seconds until it may go on, while it is held, and otherwise until the hold level is reached. It is None where it does
    not get nearer to that."""
    tell: str | None = None
    """A sentence for a person, told once: it stays too hot, or too slow, or blind. It is None where there is nothing new to
    tell."""
    troubles: tuple[tuple[str, str], ...] = ()
    """Each trouble that was told and still lasts: what it is about, and the sentence."""


@dataclass(slots=True)
class _Track:
    """One source over time: smoothed temperature and slope (an alpha-beta filter), and its usual heat at full duty."""

    level_c: float | None = None
    slope_c_per_s: float = 0.0
    at_s: float = 0.0
    """The time of the last known reading."""
    hot_since_s: float | None = None
    slowed_at_s: float | None = None
    heat: float = 0.0
    usual_heat: float = 0.0

    def follow(self, now_s: float, source: HeatSource) -> None:
        if source.slowed:
            self.slowed_at_s = now_s
        if source.heat is not None:
            self.heat += 0.2 * (source.heat - self.heat) if self.heat else source.heat
            self.usual_heat = max(self.heat, 0.9998 * self.usual_heat)
        celsius = source.temperature_c
        if celsius is None:
            return
        elapsed_s = now_s - self.at_s
        if self.level_c is None or elapsed_s > _GAP_S:
            self.level_c, self.slope_c_per_s, self.hot_since_s = celsius, 0.0, None
        elif elapsed_s > 0:
            expected = self.level_c + self.slope_c_per_s * elapsed_s
            self.level_c = expected + _LEVEL_GAIN * (celsius - expected)
            self.slope_c_per_s += _SLOPE_GAIN / elapsed_s * (celsius - expected)
        self.at_s = now_s
        if celsius < source.limits.hold_c:
            self.hot_since_s = None
        elif self.hot_since_s is None:
            self.hot_since_s = now_s

    def idles(self, duty: float) -> bool:
        """Whether the source makes clearly less heat than it usually does at this duty."""
        return self.heat < 0.7 * duty * self.usual_heat

    def ahead_c(self) -> float:
        assert self.level_c is not None
        return self.level_c + AHEAD_S * self.slope_c_per_s


@dataclass
class HeatControl:
    """Decides on duty, power and hold. `step` is to be called about once a second."""

    _tracks: dict[str, _Track] = field(default_factory=dict)
    _found: float = 1.0
    """The duty that the cooling is believed to carry, as the integrator has found it."""
    _duty: float = 1.0
    _lately: float = 1.0
    """The mean duty of the last seconds."""
    _power: float = 1.0
    _power_since_s: float | None = None
    _held_since_s: float | None = None
    _stepped_s: float | None = None
    _since_s: dict[str, float] = field(default_factory=dict)
    """The time since which each thing lasts that a person may have to be told."""
    _told: dict[str, str] = field(default_factory=dict)
    """The sentences that were told about what still lasts, by what they are about."""
    _last: HeatDecision = field(default_factory=HeatDecision)

    def step(
        self, now_s: float, sources: Sequence[HeatSource], *, computing: bool = True, may_cap: bool = False
    ) -> HeatDecision:
        """What to do now. `computing` tells that the worker has work and is not held by somebody else, `may_cap` that power
        limits work.
        """
        if self._stepped_s is not None and now_s - self._stepped_s < 0.9 * STEP_S:
            return replace(self._last, tell=None)
        elapsed_s = STEP_S if self._stepped_s is None else min(now_s - self._stepped_s, _GAP_S)
        self._stepped_s = now_s
        for source in sources:
            self._see(now_s, source)
        if self._held_since_s is None:
            self._pace(now_s, elapsed_s, sources, computing)
            if computing:
                self._cap(now_s, sources, may_cap)
            hottest = self._too_hot(now_s, sources)
            if hottest is not None:
                self._held_since_s = now_s
        elif self._cool_enough(now_s, self._held_since_s, sources):
            self._held_since_s = None
            self._found = self._duty = max(LEAST_DUTY, RESUME_DUTY * self._found)
        self._last = self._decision(now_s, sources, computing)
        return self._last

    # -- pace ---------------------------------------------------------------------------------------------------------

    def _see(self, now_s: float, source: HeatSource) -> None:
        track = self._tracks.setdefault(source.name, _Track())
        first = track.level_c is None
        track.follow(now_s, source)
        if first and track.level_c is not None and track.level_c > source.limits.pace_c - FIRST_SEEN_HOT_C:
            self._found = self._duty = min(self._found, UNKNOWN_YET_DUTY)

    def _pace(self, now_s: float, elapsed_s: float, sources: Sequence[HeatSource], computing: bool) -> None:
        up = UP_PER_S * elapsed_s
        if not computing or any(self._hinders_climbing(now_s, source) for source in sources):
            up = 0.0
        spare_c = min((self._spare_c(source) for source in sources), default=float("inf"))
        self._found = _within(LEAST_DUTY, self._found + min(PER_DEGREE_SECOND * elapsed_s * spare_c, up), 1.0)
        wanted = _within(LEAST_DUTY, self._found + PER_DEGREE * min(0.0, spare_c), 1.0)
        self._duty += _within(-DOWN_PER_S * elapsed_s, wanted - self._duty, up)
        self._found = min(self._found, self._duty + SHOWN_STEP)  # it must not run ahead of what is tried
        self._lately += 0.3 * (self._duty - self._lately)

    def _spare_c(self, source: HeatSource) -> float:
        """How far below its level the source will be, negative where it will be above."""
        spare = float("inf")
        if source.temperature_c is not None:
            spare = source.limits.pace_c - self._tracks[source.name].ahead_c()
        if source.slowed and self._duty > SLOWED_DUTY:
            spare = min(spare, -SLOWED_C)
        return spare

    def _hinders_climbing(self, now_s: float, source: HeatSource) -> bool:
        track = self._tracks[source.name]
        if source.temperature_c is None and track.level_c is not None:  # it was known and is not any more
            return True
        slowed_lately = track.slowed_at_s is not None and now_s - track.slowed_at_s < SLOWED_CALM_S
        return slowed_lately or track.idles(self._lately)

    # -- power limit --------------------------------------------------------------------------------------------------

    def _cap(self, now_s: float, sources: Sequence[HeatSource], may_cap: bool) -> None:
        """The part of the power limit, which changes slowly, and only where the GPU is what limits: a step lower while
        pacing costs much, a step back when it is cool.
        """
        if not may_cap:
            self._power = 1.0
            return
        narrow = min(sources, key=self._spare_c, default=None)
        lower = narrow is not None and narrow.cappable and self._duty < CAP_BELOW_DUTY and self._power > LEAST_CAP
        cool = self._duty >= 1.0 and all(self._spare_c(source) > UNCAP_BELOW_C for source in sources)
        higher = self._power < 1.0 and cool
        if not (lower or higher):
            self._power_since_s = None
            return
        self._power_since_s = now_s if self._power_since_s is None else self._power_since_s
        if now_s - self._power_since_s >= (CAP_AFTER_S if lower else UNCAP_AFTER_S):
            self._power = round(_within(LEAST_CAP, self._power + (-CAP_STEP if lower else CAP_STEP), 1.0), 2)
            self._power_since_s = now_s
            for track in self._tracks.values():
                track.heat = track.usual_heat = 0.0  # what is usual changes with the limit

    # -- hold ---------------------------------------------------------------------------------------------------------

    def _too_hot(self, now_s: float, sources: Sequence[HeatSource]) -> HeatSource | None:
        for source in sources:
            since_s = self._tracks[source.name].hot_since_s
            if source.temperature_c is None or since_s is None:
                continue
            if now_s - since_s >= HOLD_AFTER_S or source.temperature_c >= source.limits.slowdown_c:
                return source
        return None

    def _cool_enough(self, now_s: float, since_s: float, sources: Sequence[HeatSource]) -> bool:
        """Whether a hold may end: below the resume level, after the minimum time. A hold has a deadline: after it, below
        the pace level is enough, and what is not known does not hold for ever.
        """
        held_s = now_s - since_s
        if held_s < LEAST_HOLD_S:
            return False
        late = held_s >= TELL_HOLD_S
        for source in sources:
            if source.temperature_c is None:
                if self._tracks[source.name].level_c is not None and not late:
                    return False
            elif source.temperature_c > (source.limits.pace_c - 1.0 if late else source.limits.resume_c):
                return False
        return True

    # -- what is said -------------------------------------------------------------------------------------------------

    def _decision(self, now_s: float, sources: Sequence[HeatSource], computing: bool) -> HeatDecision:
        known = [source for source in sources if source.temperature_c is not None]
        hottest = min(known, key=self._spare_c, default=None)
        holding = self._held_since_s is not None
        shown = self._last.duty_fraction
        exact = round(self._duty, 2)
        if abs(self._duty - shown) >= SHOWN_STEP or exact in (1.0, LEAST_DUTY):
            shown = exact
        return HeatDecision(
            duty_fraction=shown,
            power_fraction=self._power,
            hold=holding,
            reason=self._reason(hottest, holding, shown),
            forecast_s=self._forecast_s(now_s, hottest),
            tell=self._tell(now_s, sources, hottest, computing),
            troubles=tuple(self._told.items()),
        )

    def _reason(self, hottest: HeatSource | None, holding: bool, duty: float) -> str:
        if not holding and duty >= 1.0 and self._power >= 1.0:
            return ""
        if hottest is None or hottest.temperature_c is None:
            return "no temperature can be read; " + ("holding" if holding else f"computing {percent(duty)} of the time")
        limits = hottest.limits
        at = f"{hottest.name} is at {hottest.temperature_c:.0f} °C"
        if holding:
            return f"{at} and rests until {limits.resume_c:.0f} °C: it must not stay at {limits.hold_c:.0f} °C"
        how = [f"computing {percent(duty)} of the time"] if duty < 1.0 else []
        how += [f"power limit {percent(self._power)} of the default"] if self._power < 1.0 else []
        return f"{at}: {', '.join(how)} to stay below {limits.pace_c:.0f} °C"

    def _forecast_s(self, now_s: float, hottest: HeatSource | None) -> float | None:
        if hottest is None or hottest.temperature_c is None:
            return None
        slope = self._tracks[hottest.name].slope_c_per_s
        if self._held_since_s is None:
            left_c = hottest.limits.hold_c - hottest.temperature_c
            return max(0.0, left_c / slope) if slope > 0.01 else None
        at_least_s = LEAST_HOLD_S - (now_s - self._held_since_s)
        left_c = hottest.temperature_c - hottest.limits.resume_c
        if left_c <= 0:
            return max(0.0, at_least_s)
        return max(at_least_s, left_c / -slope) if slope < -0.01 else None

    def _tell(self, now_s: float, sources: Sequence[HeatSource], hottest: HeatSource | None, computing: bool) -> str | None:
        """The sentence that a person is told, once for each episode. Returns None where there is nothing new to tell."""
        where = f"{hottest.name} is at {hottest.temperature_c:.0f} °C" if hottest else "No temperature can be read"
        rests = f"{where} after {TELL_HOLD_S / 60:.0f} minutes of rest. Check fans, dust and the room; training waits."
        slows = (
            f"{where}: training has run at less than {percent(SLOW_DUTY)} of its speed for {TELL_SLOW_S / 60:.0f} minutes "
            "to stay cool. Check fans, dust and the room."
        )
        slow = self._duty < (NOT_SLOW_DUTY if "slow" in self._told else SLOW_DUTY)
        fresh = self._lasts(now_s, "hold", self._held_since_s is not None, TELL_HOLD_S, rests)
        fresh = self._lasts(now_s, "slow", computing and slow, TELL_SLOW_S, slows) or fresh
        for source in sources:
            blind = source.temperature_c is None and self._tracks[source.name].level_c is not None
            since = f"{source.name} has told no temperature for {TELL_BLIND_S / 60:.0f} minutes"
            sentence = f"{since}; only its own limits protect it. Look at: memsup check"
            fresh = self._lasts(now_s, source.name, computing and blind, TELL_BLIND_S, sentence) or fresh
        return fresh

    def _lasts(self, now_s: float, what: str, is_so: bool, seconds: float, sentence: str) -> str | None:
        """The sentence about `what`, given once, when it has lasted for that long. Returns None before and after."""
        if not is_so:
            self._since_s.pop(what, None)
            self._told.pop(what, None)
            return None
        if what in self._told or now_s - self._since_s.setdefault(what, now_s) < seconds:
            return None
        self._told[what] = sentence
        return sentence


def _within(low: float, value: float, high: float) -> float:
    return max(low, min(value, high))
