"""The readings over time lose no peak and no second, whatever is recorded rarely, thinned or torn."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.shared.messages import Phase
from memsup.shared.status import RunState
from memsup.supervisor.record.history import (
    EVERY_S,
    Activity,
    GpuPoint,
    Point,
    Recorder,
    activity_of,
    fold,
    interval_s,
    read_points,
    thin,
)

readings = st.one_of(st.none(), st.integers(0, 2**45))
gpus = st.lists(st.builds(GpuPoint, index=st.integers(0, 3), temperature_c=st.one_of(st.none(), st.floats(0, 120))), max_size=2)


@st.composite
def samples(draw: st.DrawFn) -> list[Point]:
    """About a second apart, of one life of a supervisor; the wall clock may jump."""
    at, mono, taken = draw(st.floats(1e9, 2e9)), draw(st.floats(0, 1e6)), []
    for _ in range(draw(st.integers(1, 25))):
        step_s = draw(st.floats(0.01, 5.0))
        mono += step_s
        at += step_s + draw(st.sampled_from([0.0, 0.0, 0.0, 3600.0, -3600.0]))
        taken.append(
            Point(
                at=at,
                mono=mono,
                boot="b",
                state=draw(st.sampled_from([str(state) for state in RunState])),
                phase=draw(st.sampled_from([None, "from the future", *[str(phase) for phase in Phase]])),
                loss=draw(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))),
                duty_fraction=draw(st.one_of(st.none(), st.floats(0.1, 1.0))),
                worker_bytes=draw(readings),
                ram_available_bytes=draw(readings),
                micro_tokens=draw(readings),
                gpus=tuple({gpu.index: gpu for gpu in draw(gpus)}.values()),
            )
        )
    return taken


def recorded(taken: list[Point]) -> list[Point]:
    recorder = Recorder(taken[0].at)
    lines = [line for sample in taken if (line := recorder.note(sample))]
    lines += [line for line in [recorder.rest()] if line]
    points, bad = read_points(lines)
    assert bad == 0
    return points


def hottest(points: list[Point], index: int) -> float | None:
    heats = [gpu.temperature_c for p in points for gpu in p.gpus if gpu.index == index]
    return max((celsius for celsius in heats if celsius is not None), default=None)


@settings(max_examples=40)
@given(samples())
def test_every_second_is_accounted_for(taken: list[Point]) -> None:
    """What the points say was spent is the time that passed, besides the time in which the machine slept."""
    points = recorded(taken)
    spent = sum(seconds for p in points for name, seconds in p.spent_s.items() if name != Activity.ASLEEP)
    assert math.isclose(spent, taken[-1].mono - taken[0].mono, abs_tol=0.002 * len(taken) + 0.002)


@settings(max_examples=40)
@given(samples())
def test_no_peak_is_lost_between_two_points(taken: list[Point]) -> None:
    """The most memory, the least room and the greatest heat of the samples are those of the points, and of the thinned ones."""
    for points in (recorded(taken), thin(recorded(taken), 3)):
        for field, worst in (("worker_bytes", max), ("ram_available_bytes", min), ("micro_tokens", min)):
            known = [getattr(p, field) for p in taken if getattr(p, field) is not None]
            kept = [getattr(p, field) for p in points if getattr(p, field) is not None]
            assert worst(known, default=None) == worst(kept, default=None)
        for index in range(4):
            heats = [
                max(
                    (g.temperature_c for p in some for g in p.gpus if g.index == index and g.temperature_c is not None),
                    default=None,
                )
                for some in (taken, points)
            ]
            assert heats[0] == heats[1]


@settings(max_examples=40)
@given(samples(), st.integers(1, 20))
def test_thinning_bounds_the_number_and_keeps_the_sums(taken: list[Point], most: int) -> None:
    """At most about as many points as asked for, and the same seconds in them."""
    points = [msgspec.structs.replace(p, spent_s={"training": 1.0}) for p in taken]
    thinned = thin(points, most)
    assert len(thinned) <= most + 1
    assert math.isclose(sum(p.spent_s["training"] for p in thinned), len(points))


def test_thinning_keeps_lives_and_boots_apart() -> None:
    """The first point of each life of the supervisor stays alone, since it tells of the gap before it."""

    def point(mono: float, boot: str, *, first: bool = False) -> Point:
        return Point(at=mono, mono=mono, boot=boot, state="running", spent_s={} if first else {"training": 1.0})

    points = [point(0, "a", first=True), *(point(t, "a") for t in range(1, 20))]
    points += [point(40, "a", first=True), *(point(t, "a") for t in range(41, 50)), point(5, "b", first=True), point(6, "b")]
    thinned = thin(points, 6)
    assert [(p.mono, p.boot) for p in thinned if not p.spent_s] == [(0, "a"), (40, "a"), (5, "b")]


@given(st.lists(st.one_of(st.binary(max_size=80), st.just(b'{"at":1,"mono":2,"boot":"b","state":"running"}'))))
def test_torn_and_foreign_lines_are_counted_and_left_out(lines: list[bytes]) -> None:
    """A power cut may leave anything in the file; reading it never raises and never invents a point."""
    points, bad = read_points(lines)
    assert len(points) + bad <= len(lines)
    assert all(isinstance(p, Point) for p in points)


def test_nesting_bombs_and_endless_lines_are_no_points() -> None:
    """A line that is deep or long is refused, whatever it says."""
    assert read_points([b"[" * 50_000, b'{"at":1,"mono":2,"boot":"' + b"x" * 70_000 + b'","state":""}']) == ([], 2)


def test_pacing_is_told_apart_from_training() -> None:
    """A worker that may compute 70 % of the time spent 30 % of it staying cool."""
    taken = [Point(at=t, mono=t, boot="b", state="running", phase="training", duty_fraction=0.7) for t in range(100)]
    spent = fold(recorded([msgspec.structs.replace(p, at=float(p.at), mono=float(p.mono)) for p in taken])).spent_s
    assert math.isclose(spent["training"], 69.3, abs_tol=0.1)
    assert math.isclose(spent["cooled"], 29.7, abs_tol=0.1)


def test_a_sleep_of_the_machine_is_seen() -> None:
    """The supervisor's clock stands still while the machine sleeps; the wall clock tells."""
    before = Point(at=1000, mono=50, boot="b", state="running", phase="training")
    after = Point(at=4601, mono=51, boot="b", state="running", phase="training")
    (_, point) = recorded([before, after])
    assert point.spent_s == {"training": 1.0, "asleep": 3600.0}


def test_a_pause_is_a_pause_in_every_phase() -> None:
    """What the state says comes before what the worker's main thread does."""
    for phase in [None, *Phase]:
        assert activity_of(RunState.PAUSED, phase) is Activity.PAUSED
        assert activity_of(RunState.COOLING, phase) is Activity.COOLING
    assert activity_of(RunState.RUNNING, None) is Activity.RUNNING
    assert activity_of(RunState.STARTING, None) is Activity.STARTING


def test_an_old_run_is_recorded_more_rarely() -> None:
    """Every ten seconds in the first day; after a month the file has grown by the logarithm of its age only."""
    assert interval_s(0) == interval_s(86_400) == EVERY_S
    lines, age_s = 0.0, 0.0
    while age_s < 30 * 86_400:
        age_s += interval_s(age_s)
        lines += 1
    assert lines < 45_000
