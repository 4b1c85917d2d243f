"""A worker that hands its state over in memory, killed with SIGKILL: the next one goes on from it with the same bits, and from
the disk where it is not what was written.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import FAULTS
from kit.killed_runs import end_of
from kit.lone_supervisor import LoneSupervisor, tiny_settings
from kit.nursery import Nursery
from kit.one_life import StarvedTask, exhaustions, one_life, reports

from memsup.shared.descriptors import SEALS
from memsup.shared.messages import Checkpoint, Decided, DecisionKind, Done, KeepState, Kept, OutOfMemory, Phase, StateGivenUp
from memsup.shared.paths import run_paths
from memsup.worker import saving, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("worker") as started:
        yield started


def newer_state(supervisor: LoneSupervisor, than: int) -> Kept:
    """Has the worker hand its state over after each step, and takes it once it is of a step later than this."""
    supervisor.reach(Phase.TRAINING)
    supervisor.send(KeepState(every_s=1e-3))

    def taken() -> Kept | None:
        note = supervisor.take_state()
        return note if note is not None and note.step > than else None

    return supervisor.until(f"a state beyond step {than}", taken)


def used(supervisor: LoneSupervisor) -> tuple[DecisionKind, int | None]:
    kinds = (DecisionKind.MEMORY_USED, DecisionKind.MEMORY_DAMAGED)

    def said() -> Decided | None:
        found = [report for report in supervisor.reports if isinstance(report, Decided) and report.what in kinds]
        return found[0] if found else None

    decided = supervisor.until("it says what it goes on from", said)
    return decided.what, decided.step


def garbled(fd: int) -> int:
    content = bytearray(os.pread(fd, os.fstat(fd).st_size, 0))
    content[random.Random(7).randrange(len(content))] ^= 1
    other = os.memfd_create("garbled", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(other, content)
    fcntl.fcntl(other, fcntl.F_ADD_SEALS, SEALS)
    return other


def test_killed_again_and_again_it_goes_on_from_memory_to_the_same_bits_and_what_is_garbled_is_refused(
    tmp_path: Path, nursery: Nursery
) -> None:
    settings = tiny_settings(tmp_path, training__epochs=12)
    with LoneSupervisor(settings, name="alone", nursery=nursery) as alone:
        alone.start()
        alone.finish()
    with LoneSupervisor(settings, name="killed", nursery=nursery) as supervisor:
        supervisor.environment = {"PYTHONPATH": str(FAULTS), "FAULT_STEP_S": "0.02"}
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 2)
        note = newer_state(supervisor, 3)  # there is no checkpoint yet
        for _ in range(2):
            supervisor.kill()
            note = supervisor.take_state() or note
            supervisor.start()
            assert used(supervisor) == (DecisionKind.MEMORY_USED, note.step)
            note = newer_state(supervisor, note.step)
        done = supervisor.order(Checkpoint(order_id=1, reason="a test"))
        assert isinstance(done, Done)
        assert done.checkpoint is not None
        note = newer_state(supervisor, done.checkpoint.step)
        supervisor.kill()
        note = supervisor.take_state() or note
        assert supervisor.kept is not None
        bad = note, garbled(supervisor.kept[1])
        supervisor.give_up_state()
        supervisor.kept = bad
        supervisor.start()
        assert used(supervisor) == (DecisionKind.MEMORY_DAMAGED, note.step)
        supervisor.give_up_state()
        supervisor.finish()
    assert end_of(run_paths("killed")) == end_of(run_paths("alone"))


def test_memory_that_runs_out_costs_what_is_kept_before_it_costs_the_training_anything(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path)) as training:
        lifeline = training.session.lifeline
        assert lifeline is not None
        lifeline.every_s = 1e-9
        saving.keep_if_due(training)
        assert lifeline.size_bytes > 0
        before, training.task = training.plan.at(1), StarvedTask(training.task, lambda *what: what[2] == 2)
        train.take_step(training)
        said = reports(training)
        assert [report.step for report in said if isinstance(report, StateGivenUp)] == [0]
        assert not [report for report in said if isinstance(report, OutOfMemory)]
        assert training.plan.at(1) == before
        assert (training.step, lifeline.every_s) == (1, None)
        saving.keep_if_due(training)
        assert lifeline.size_bytes == 0, "it is not written any more"
        training.task = StarvedTask(training.task, lambda *what: what[2] == 1)
        train.take_step(training)
        assert len(exhaustions(training)) == 1, "there is nothing left to give up"
