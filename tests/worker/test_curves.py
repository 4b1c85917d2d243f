"""Curves are whole and go to the right whatever kills a worker, and cost a training nothing when they cannot be written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from kit.curves_read import check_whole, read_tensorboard, read_trackio, tensorboard_library, trackio_library
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.shared.interventions import _OF_EVENT, _OF_ORDER, _OF_WISH, Intervention, kind_of, read_line
from memsup.shared.messages import DecisionKind
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.settings import CurveKind
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import Event, OrderKind
from memsup.worker.audit import Audit, Step
from memsup.worker.curves import MOST_STEPS, Course, Curves, Position
from memsup.worker.state import Evaluated

STEPS = 40


class Run:
    """A run whose lives write curves without training: each step's figures follow from its number."""

    def __init__(self, paths: RunPaths, kinds: list[CurveKind]) -> None:
        prepare(paths)
        self.paths, self.kinds = paths, kinds
        self.said: list[tuple[DecisionKind, str]] = []
        self.at = 1_780_000_000.0

    def life(self, *, total: int = STEPS) -> Curves:
        return Curves(
            self.paths,
            self.kinds,
            run_id="0123456789ab",
            total_steps=total,
            decided=lambda what, sentence: self.said.append((what, sentence)),
        )

    def say(self, event: str, step: int, **fields: Any) -> None:
        """A line of the ledger."""
        self.at += 1
        with self.paths.ledger.open("a") as ledger:
            ledger.write(json.dumps({"event": event, "reason": "why", "at": self.at, "step": step} | fields) + "\n")

    def note(self, step: int, worker_bytes: int) -> None:
        """A line of the history."""
        self.at += 1
        line = {"at": self.at, "mono": self.at, "boot": "b", "state": "running", "step": step, "worker_bytes": worker_bytes}
        with self.paths.history.open("a") as history:
            history.write(json.dumps(line | {"limit_bytes": 1000, "cpu_c": 50.5}) + "\n")


def taken(step: int) -> Step:
    return Step(step, np.arange(3), 3.0, step * 1e-5, 1 / step, float(step))


Life = tuple[int, int, set[int], bool]
"""So far it comes, its last checkpoint at most, the steps after which something is written, and whether the kill falls between
the points and the note of them."""
MANY_KILLS: list[Life] = [(20, 10, {5, 17}, True), (15, 15, {12}, True), (30, 0, {30}, False)]
LIVES = st.lists(
    st.tuples(
        st.integers(1, STEPS),
        st.integers(0, STEPS),
        st.sets(st.integers(1, STEPS)),
        st.booleans(),
    ),
    max_size=4,
)


@given(lives=LIVES)
@example(lives=MANY_KILLS)
@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
def test_no_step_is_lost_and_none_is_there_twice_however_often_a_worker_is_killed(lives: list[Life]) -> None:
    """Also where a kill takes what was written since the last note of it."""
    tensorboard_library()
    check_killed(CurveKind.TENSORBOARD, lives)


def test_the_same_is_so_of_trackio() -> None:
    trackio_library()
    check_killed(CurveKind.TRACKIO, MANY_KILLS)


def check_killed(kind: CurveKind, lives: list[Life]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(RunPaths("r", Path(folder) / "state" / "r", Path(folder) / "run" / "r"), [kind])
        start, evaluated = 0, None
        for reaches, saves, writes, is_torn in [*lives, (STEPS, STEPS, {STEPS}, False)]:
            audit = Audit(run.paths.state / "audit.txt")
            audit.resume(start)
            curves = run.life()
            curves._taken += curves._of_earlier_lives(start)
            if evaluated is not None:
                curves._evaluated.append(evaluated)
            if start:
                run.say("recovered", start + 1)
            noted = run.paths.curves / "position.json"
            before = noted.read_bytes() if noted.exists() else None
            saved, saved_evaluation = start, evaluated
            for step in range(start + 1, reaches + 1):
                audit.record(taken(step))
                curves.step(taken(step), tokens=100, took_s=0.5)
                run.note(step, 500 + step % 7)
                if step % 8 == 0:
                    evaluated = Evaluated(step=step, metrics={"accuracy": step / STEPS})
                    curves.evaluated(evaluated)
                if step % 9 == 0:
                    run.say("order", step, order="halve", outcome="done", action="halve the micro-batch")
                if step <= saves:
                    saved, saved_evaluation = step, evaluated
                if step in writes or step % 8 == 0:  # an evaluation wakes the thread
                    before = noted.read_bytes() if noted.exists() else None
                    curves._turn()
            if reaches == STEPS and saves == STEPS:
                curves._turn(is_over=True)
                break
            if is_torn and before is not None:
                noted.write_bytes(before)
            run.say("death", reaches)
            start, evaluated = saved, saved_evaluation
        read = read_tensorboard if kind is CurveKind.TENSORBOARD else lambda folder: read_trackio(folder, "r")
        scalars, texts = read(run.paths.curves / kind)
        check_whole(scalars, steps=STEPS)
        assert [value for _, value in scalars["train/loss"]] == pytest.approx([1 / step for step in range(1, STEPS + 1)])
        assert scalars["eval/accuracy"] == [(step, pytest.approx(step / STEPS)) for step in range(8, STEPS + 1, 8)]
        lines = [read_line(line) for line in run.paths.ledger.read_bytes().splitlines()]
        kinds = [str(kind_of(line)) for line in lines if line is not None]
        told = "\n\n".join(text for _, text in texts)
        assert [kind.strip("*") for kind in told.split() if kind.startswith("**")] == [f"{kind}**:" for kind in kinds]
        if kind is CurveKind.TENSORBOARD:  # Trackio's alerts stand in the order of time
            assert [step for step, _ in texts] == sorted({step for step, _ in texts})
        assert max(value for _, value in scalars["memory/worker_bytes"]) <= 506
        assert not run.said


def test_what_a_hold_and_a_squeeze_leave_in_the_curves(tmp_path: Path) -> None:
    """The largest reading of a step counts; at one step there is one text with all that befell it."""
    tensorboard_library()
    run = Run(run_paths("r"), [CurveKind.TENSORBOARD])
    curves = run.life()
    for step in (1, 2, 3):
        curves.step(taken(step), tokens=100, took_s=0.5)
    for held in (300, 900, 400):
        run.note(2, held)
    run.say("wanted", 2, by="user", wanted="paused", pause_mode="hold")
    run.say("order", 2, by="user", order="hold", outcome="done")  # of the wish above
    run.say("order", 2, by="ladder", order="pace", outcome="done", duty_fraction=0.5, action="compute half of the time")
    run.say("order", 2, by="ladder", order="pace", outcome="done", duty_fraction=1.0)
    run.say("order", 2, by="ladder", order="halve", outcome="failed")
    run.note(3, 500)
    curves._turn(is_over=True)
    scalars, texts = read_tensorboard(run.paths.curves / "tensorboard")
    assert scalars["memory/worker_bytes"] == [(2, 900), (3, 500)]
    assert scalars["memory/limit_bytes"] == [(2, 1000), (3, 1000)]
    assert scalars["train/tokens_per_s"] == [(1, 200), (2, 200), (3, 200)]
    assert texts == [(2, "**pause**: why\n\n**pace**: compute half of the time - why")]
    assert scalars["interventions/pause"] == scalars["interventions/pace"] == [(2, 1)]


def test_curves_that_are_asked_for_later_are_those_of_the_whole_run(tmp_path: Path) -> None:
    tensorboard_library()
    run = Run(run_paths("r"), [])
    audit = Audit(run.paths.state / "audit.txt")
    for step in range(1, 31):
        audit.record(taken(step))
    with run.life().written(after_step=30, evaluated=None):
        pass
    assert not run.paths.curves.exists(), "nobody wants any"
    run.kinds = [CurveKind.TENSORBOARD]
    curves = run.life()
    with curves.written(after_step=30, evaluated=None):
        for step in range(31, 41):
            curves.step(taken(step), tokens=1, took_s=1.0)
    check_whole(read_tensorboard(run.paths.curves / "tensorboard")[0], steps=40)


def test_a_long_run_has_as_many_points_as_can_be_drawn(tmp_path: Path) -> None:
    paths = run_paths("r")
    prepare(paths)
    total = 5 * MOST_STEPS - 3
    course = Course(paths, Position(), total_steps=total)
    points, _ = course.next([(step, 0.0, {"train/loss": 1.0}) for step in range(1, total + 1)], [])  # type: ignore[misc]
    assert len(points) == MOST_STEPS - 1
    assert course.next([], [], is_over=True)[0][-1].step == total


def test_a_full_disk_costs_nothing_but_waits(tmp_path: Path) -> None:
    """It is said once, and what was not written comes when there is room again."""
    tensorboard_library()
    run = Run(run_paths("r"), [CurveKind.TENSORBOARD])

    def play() -> None:
        curves = run.life()
        run.paths.curves.mkdir(exist_ok=True)
        ballast = fill(run.paths.curves)
        for step in range(1, 6):
            curves.step(taken(step), tokens=1, took_s=1.0)
            curves._turn()
        assert [what for what, _ in run.said] == [DecisionKind.CURVES_FAILED]
        assert "No space left on device" in run.said[0][1]
        ballast.unlink()
        with curves.written(after_step=0, evaluated=None):
            curves.step(taken(6), tokens=1, took_s=1.0)
        check_whole(read_tensorboard(run.paths.curves / "tensorboard")[0], steps=6)
        assert len(run.said) == 1

    run.paths.curves.mkdir()
    on_a_small_disk(run.paths.curves, 2 * MIB, play)


def test_a_library_that_breaks_costs_its_curves_alone(tmp_path: Path) -> None:
    """Whatever comes out of it: the other file is written, and the training goes on."""
    tensorboard_library()
    trackio_library()
    run = Run(run_paths("r"), [CurveKind.TRACKIO, CurveKind.TENSORBOARD])
    curves = run.life()
    curves._outlets[0]._file._run = object()  # which its own code cannot write
    with curves.written(after_step=0, evaluated=None):
        curves.step(taken(1), tokens=1, took_s=1.0)
    assert len(run.said) == 1
    assert "trackio" in run.said[0][1]
    check_whole(read_tensorboard(run.paths.curves / "tensorboard")[0], steps=1)


def test_the_words_of_the_ledger_are_those_that_interventions_are_told_by() -> None:
    assert set(_OF_EVENT) < set(Event)
    assert set(_OF_ORDER) < set(OrderKind)
    assert set(_OF_WISH) < set(Wanted)
    assert {"order", "wanted", "postmortem", "freeze", "kill"} < set(Event)
    named = {*_OF_EVENT.values(), *_OF_ORDER.values(), *_OF_WISH.values(), Intervention.REBOOT}
    assert named == set(Intervention)
