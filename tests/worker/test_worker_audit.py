"""Two runs that differ are found out at the first step in which they do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memsup.worker.audit import BEFORE_FIRST, LINE_BYTES, Audit, Step, line, rolled

floats = st.floats(allow_nan=False, allow_infinity=False)
steps = st.builds(
    Step,
    step=st.integers(1, 10**9),
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=20).map(lambda rows: np.array(rows, np.int64)),
    weight=floats,
    learning_rate=floats,
    loss=floats,
    gradient_norm=floats,
)


def taken(step: int, *, loss: float = 0.5, rows: int = 3) -> Step:
    return Step(step, np.arange(rows) + step, float(rows), 1e-4, loss, 1.5)


@given(steps)
def test_every_line_has_the_same_length_and_reads_back_exactly(step: Step) -> None:
    digest = rolled(BEFORE_FIRST, step)
    written = line(step, digest)
    assert len(written) == LINE_BYTES
    number, _, weight, rate, loss, norm, written_digest = written.decode().split()
    assert (int(number), float(weight), float(rate), float(loss), float(norm)) == (
        step.step,
        step.weight,
        step.learning_rate,
        step.loss,
        step.gradient_norm,
    )
    assert written_digest == digest


@given(st.lists(steps, min_size=1, max_size=10), st.data())
def test_any_difference_shows_from_its_step_on(history: list[Step], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(history) - 1))
    field = data.draw(st.sampled_from(["weight", "learning_rate", "loss", "gradient_norm"]))
    before = getattr(history[place], field)
    other = list(history)
    other[place] = history[place]._replace(**{field: float(np.nextafter(before, 1e308))})
    one_digest = other_digest = BEFORE_FIRST
    for number, (one, another) in enumerate(zip(history, other, strict=True)):
        one_digest, other_digest = rolled(one_digest, one), rolled(other_digest, another)
        planned_alike = one_digest.split(".")[0] == other_digest.split(".")[0]
        if number < place:
            assert one_digest == other_digest
        else:
            assert one_digest.split(".")[1] != other_digest.split(".")[1]
            assert planned_alike == (field in {"loss", "gradient_norm"}), "the first half covers the plan alone"


def test_other_rows_are_another_plan() -> None:
    assert rolled(BEFORE_FIRST, taken(1)).split(".")[0] != rolled(BEFORE_FIRST, taken(1, rows=4)).split(".")[0]


@given(length=st.integers(1, 12), data=st.data())
def test_a_resumed_run_writes_the_same_file(length: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        straight, stopped = Path(folder) / "straight", Path(folder) / "stopped"
        audit = Audit(straight)
        digests = [audit.digest]
        for step in range(1, length + 1):
            audit.record(taken(step))
            digests.append(audit.digest)

        killed_after = data.draw(st.integers(0, length))
        checkpoint = data.draw(st.integers(0, killed_after))
        first_life = Audit(stopped)
        for step in range(1, killed_after + 1):
            first_life.record(taken(step))
        second_life = Audit(stopped)
        assert second_life.last_step() == killed_after
        second_life.resume(checkpoint, digests[checkpoint])
        for step in range(checkpoint + 1, length + 1):
            second_life.record(taken(step))
        assert stopped.read_bytes() == straight.read_bytes()
        assert second_life.digest == digests[-1]


def test_lines_lost_in_a_power_cut_do_not_move_the_others(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.txt")
    audit.resume(5, "0" * 16 + "." + "1" * 16)
    audit.record(taken(6))
    content = (tmp_path / "audit.txt").read_bytes()
    assert content[5 * LINE_BYTES :] == line(taken(6), audit.digest)
    assert not any(content[: 5 * LINE_BYTES])
