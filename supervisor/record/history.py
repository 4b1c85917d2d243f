"""The run's readings over time, one line every ten seconds or so in `history.jsonl`: what `memsup report` draws.

Pure: `Recorder` turns samples, noted once a second, into lines that `scribe.py` appends; `read_points` reads them back and
forgives whatever is no point; `thin` bounds how many are kept. A point stands for the stretch of time since the point before
it, by the *worst* of each reading and by where its seconds went, so that neither recording every tenth second nor thinning
hides a peak. The last seconds before a death of the machine are the black box's (`blackbox.py`), the decisions the ledger's.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from memsup.shared.messages import Phase
from memsup.shared.readings import KnownBatch, KnownGpu, hottest, narrow
from memsup.shared.status import RunState, Status

EVERY_S = 10.0
FULL_RATE_S = 100_000.0
"""A run older than this (27 h) is recorded more and more rarely, so that the file grows with the logarithm of its age:
2 MB for a night, 5 MB for the first day, 24 MB after a month (measured: 560 bytes a line with a GPU)."""
MOST_LINE_BYTES = 64 * 1024
"""A line that is longer than this is no point."""
_SLEPT_S = 2.0
"""Where the wall clock ran this much further than the monotonic one, the machine slept in between (or its clock was set)."""


class Activity(enum.StrEnum):
    """Where time goes, from the run's state and the worker's phase."""

    WAITING = "waiting"
    """It is queued: other runs come first."""
    STARTING = "starting"
    TRAINING = "training"
    RUNNING = "running"
    """A foreign command runs; what it does is not known."""
    COOLED = "cooled"
    """The gaps between micro-batches that keep a temperature down."""
    EVALUATING = "evaluating"
    SAVING = "saving"
    PAUSED = "paused"
    COOLING = "cooling"
    RECOVERING = "recovering"
    """The worker is held, frozen or started again, because of memory, the disk or a death."""
    ENDING = "ending"
    ASLEEP = "asleep"
    """The machine slept, or its clock was set forward."""


_OF_STATE = {
    RunState.WAITING: Activity.WAITING,
    RunState.PAUSING: Activity.PAUSED,
    RunState.PAUSED: Activity.PAUSED,
    RunState.COOLING: Activity.COOLING,
    RunState.RECOVERING: Activity.RECOVERING,
    RunState.STOPPING: Activity.ENDING,
    RunState.STOPPED: Activity.ENDING,
    RunState.FINISHED: Activity.ENDING,
    RunState.FAILED: Activity.ENDING,
}
_OF_PHASE = {
    Phase.STARTING: Activity.STARTING,
    Phase.LOADING: Activity.STARTING,
    Phase.EVALUATING: Activity.EVALUATING,
    Phase.SAVING: Activity.SAVING,
    Phase.HOLDING: Activity.RECOVERING,
    Phase.FINISHING: Activity.ENDING,
}


def activity_of(state: RunState, phase: Phase | None) -> Activity:
    """What the time goes into. A `phase` of None is not known, as for a foreign command, which is only said to run."""
    if state in _OF_STATE:
        return _OF_STATE[state]
    if phase is None:
        return Activity.STARTING if state is RunState.STARTING else Activity.RUNNING
    return _OF_PHASE.get(phase, Activity.TRAINING)


class GpuPoint(KnownGpu, frozen=True, omit_defaults=True):
    """A GPU in a point: the most that was used and drawn, and its highest temperature."""


class Point(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """One line of `history.jsonl`, in which what is not known is absent. `spent_s` is empty in a sample, before it is recorded.

    Figures of which nothing else is said are means over the stretch of time that the point stands for.
    """

    at: float
    """The Unix time in seconds at the end of the stretch that the point stands for."""
    mono: float
    """The same instant on the supervisor's monotonic clock, which is only comparable within one `boot`."""
    boot: str
    state: str
    phase: str | None = None
    spent_s: dict[str, float] = {}
    """The seconds since the point before, by `Activity`. It is empty in the first point of each life of the supervisor."""
    epoch: float | None = None
    step: int | None = None
    total_steps: int | None = None
    samples: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    duty_fraction: float | None = None
    micro_tokens: int | None = None
    """The smallest of the values within the stretch."""
    micro_rows: int | None = None
    """The smallest of the values within the stretch."""
    prediction_error: float | None = None
    """How far the predicted peak of a step was off, as a part of the measured one, whichever way."""
    worker_bytes: int | None = None
    """The largest of the values within the stretch."""
    limit_bytes: int | None = None
    """What the ladder lets the worker's tree use, at the end of the stretch."""
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    """The smallest of the values within the stretch."""
    reserve_bytes: int | None = None
    pressure: float | None = None
    """The largest of the values within the stretch."""
    cpu_c: float | None = None
    """The highest temperature of the hottest sensor that is not a GPU's."""
    cpu_limit_c: float | None = None
    gpus: tuple[GpuPoint, ...] = ()


def sample_of(
    status: Status, *, at: float, mono: float, boot: str, duty_fraction: float | None = None, reserve_bytes: int | None = None
) -> Point:
    """The run as it is now, for `Recorder.note`. `duty_fraction` is the share of the time in which the worker may compute."""
    sensor = hottest(status.temperatures)
    return narrow(
        Point,
        status.progress,
        status.batch,
        status.memory,
        at=round(at, 3),
        mono=round(mono, 3),
        boot=boot,
        state=str(status.state),
        duty_fraction=duty_fraction,
        prediction_error=_prediction_error(status.batch),
        reserve_bytes=reserve_bytes,
        cpu_c=sensor.celsius if sensor else None,
        cpu_limit_c=sensor.limit_c if sensor else None,
        gpus=tuple(narrow(GpuPoint, gpu, name=None) for gpu in status.gpus),  # the name is the same in line after line
    )


def _prediction_error(batch: KnownBatch) -> float | None:
    if not batch.peak_bytes or batch.predicted_bytes is None:
        return None
    return round(abs(batch.predicted_bytes / batch.peak_bytes - 1), 4)


def fold(points: Sequence[Point]) -> Point:
    """The one point that stands for all of `points` (not empty; of one boot, in order)."""
    last = points[-1]
    spent: dict[str, float] = {}
    for point in points:
        for name, seconds in point.spent_s.items():
            spent[name] = round(spent.get(name, 0.0) + seconds, 3)
    weights = [sum(point.spent_s.values()) or 1.0 for point in points]

    def mean(of: Callable[[Point], float | None], digits: int) -> float | None:
        pairs = zip(points, weights, strict=True)
        known = [(value, weight) for point, weight in pairs if (value := _finite(of(point))) is not None]
        if not known:
            return None
        return round(sum(value * weight for value, weight in known) / sum(weight for _, weight in known), digits)

    return msgspec.structs.replace(
        last,
        spent_s=spent,
        loss=mean(lambda p: p.loss, 6),
        samples_per_s=mean(lambda p: p.samples_per_s, 4),
        duty_fraction=mean(lambda p: p.duty_fraction, 4),
        prediction_error=mean(lambda p: p.prediction_error, 4),
        micro_tokens=min((p.micro_tokens for p in points if p.micro_tokens is not None), default=None),
        micro_rows=min((p.micro_rows for p in points if p.micro_rows is not None), default=None),
        worker_bytes=max((p.worker_bytes for p in points if p.worker_bytes is not None), default=None),
        ram_available_bytes=min((p.ram_available_bytes for p in points if p.ram_available_bytes is not None), default=None),
        pressure=max((p.pressure for p in points if p.pressure is not None), default=None),
        cpu_c=max((p.cpu_c for p in points if p.cpu_c is not None), default=None),
        gpus=tuple(
            _fold_gpu([gpu for point in points for gpu in point.gpus if gpu.index == index])
            for index in sorted({gpu.index for point in points for gpu in point.gpus})
        ),
    )


def _fold_gpu(points: Sequence[GpuPoint]) -> GpuPoint:
    return msgspec.structs.replace(
        points[-1],
        used_bytes=max((p.used_bytes for p in points if p.used_bytes is not None), default=None),
        temperature_c=max((p.temperature_c for p in points if p.temperature_c is not None), default=None),
        power_w=max((p.power_w for p in points if p.power_w is not None), default=None),
    )


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points for the same time: neighbours of one boot and one life of the supervisor are folded."""
    size = math.ceil(len(points) / max(1, most))
    if size <= 1:
        return list(points)
    thinned: list[Point] = []
    group: list[Point] = []
    for point in points:
        begins_life = not point.spent_s or bool(group and point.boot != group[0].boot)
        if group and (begins_life or len(group) >= size):
            thinned.append(fold(group))
            group = []
        group.append(point)
        if not point.spent_s:  # a first point stays alone: the gap before it is all that it tells
            thinned.append(point)
            group = []
    return thinned + ([fold(group)] if group else [])


def interval_s(age_s: float) -> float:
    """The time between two points of a run that began `age_s` ago."""
    return max(EVERY_S, EVERY_S * age_s / FULL_RATE_S)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Point)


class Recorder:
    """Takes samples and gives lines. `begun_unix_s` is when the run was created."""

    def __init__(self, begun_unix_s: float) -> None:
        self._begun_unix_s = begun_unix_s
        self._noted: list[Point] = []
        self._before: Point | None = None
        """The sample before this one."""
        self._written_s = 0.0

    def note(self, sample: Point) -> bytes | None:
        """Takes a sample, about once a second, and gives a line when one is due. Returns None while none is. `sample.mono` is
        now.
        """
        if self._before is None:
            self._before, self._written_s = sample, sample.mono
            return _encoder.encode(sample) + b"\n"
        self._noted.append(msgspec.structs.replace(sample, spent_s=_spent(self._before, sample)))
        self._before = sample
        if sample.mono - self._written_s < interval_s(sample.at - self._begun_unix_s):
            return None
        return self.rest()

    def rest(self) -> bytes | None:
        """The line for what was noted since the last one, to be asked for at the end. Returns None where nothing was noted."""
        if not self._noted or self._before is None:
            return None
        line = _encoder.encode(fold(self._noted)) + b"\n"
        self._written_s = self._before.mono
        self._noted.clear()
        return line


def _spent(before: Point, now: Point) -> dict[str, float]:
    """The seconds from `before` to `now`, by what was so at `before`."""
    seconds = max(0.0, now.mono - before.mono)
    phase = Phase(before.phase) if before.phase in _PHASES else None
    activity = activity_of(RunState(before.state), phase)
    spent = {str(activity): round(seconds, 3)}
    duty = before.duty_fraction
    if activity in (Activity.TRAINING, Activity.RUNNING) and duty is not None and 0 < duty < 1:
        spent = {str(activity): round(seconds * duty, 3), str(Activity.COOLED): round(seconds * (1 - duty), 3)}
    slept_s = (now.at - before.at) - seconds
    if slept_s > _SLEPT_S:
        spent[str(Activity.ASLEEP)] = round(slept_s, 3)
    return spent


_PHASES = {str(phase) for phase in Phase}


def read_points(lines: Iterable[bytes]) -> tuple[list[Point], int]:
    """The points in `lines`, and how many lines were none: torn by a power cut, or written by something else."""
    points, bad = [], 0
    for line in lines:
        if not line.strip():
            continue
        try:
            if len(line) > MOST_LINE_BYTES:
                raise msgspec.DecodeError("too long")
            point = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            bad += 1
            continue
        points.append(point)
    return points, bad


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
