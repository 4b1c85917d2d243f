"""The worker is told in mid-run that it may hold less, or more: it plans for that at the next boundary, and learns the same."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.lone_supervisor import tiny_settings
from kit.one_life import StarvedTask, exhaustions, one_life, reports

from memsup.memory import SOFT_FRACTION, held, lift
from memsup.shared.messages import Done, LimitMicroBatch
from memsup.supervisor.kernel.processes import limit_growth
from memsup.worker import train
from memsup.worker.__main__ import LIBRARIES
from memsup.worker.plan.footprint import Shape
from memsup.worker.plan.planner import LEAST_STEPS_TO_LEAVE, planned_bytes
from memsup.worker.session import Leave
from memsup.worker.training import Training

pytestmark = pytest.mark.slow  # torch and transformers take their seconds

MIB, GIB = 1 << 20, 1 << 30
FLOOR_BYTES, TOKEN_BYTES, LANE_BYTES = 1000 * MIB, MIB, 40 * MIB
"""What is made up of the memory of this model, whose own is too small to be seen."""


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def life(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Training]:
    size = {"training__micro_tokens": 120, "training__threads": 2, "training__lanes": request.param, "training__tune": True}
    settings = tiny_settings(tmp_path, **size)
    try:
        with one_life(settings) as training:
            _seen(training, request.param)
            _order(training, limit_bytes=64 * GIB)
            training.boundary()
            reports(training)
            yield training
    finally:
        lift()


def _seen(training: Training, lanes: int) -> None:
    """Micro-batches in so many lanes, and in one, as the planner would have seen them."""
    planner = training.measuring.planner
    for count in {1, lanes}:
        planner.compute_in(count)
        for tokens in range(10, 130, 10):
            for part in (Shape(tokens // count, 1), Shape(1, tokens // count)):
                parts = part if count == 1 else part._replace(beside=part)
                peak_bytes = FLOOR_BYTES + tokens * TOKEN_BYTES + (count - 1) * LANE_BYTES
                planner.observe(parts, checkpointed=False, peak_bytes=peak_bytes, before_bytes=FLOOR_BYTES)
    planner.compute_in(lanes)


def _order(training: Training, **limit: Any) -> None:
    training.session.link.orders.put(LimitMicroBatch(order_id=1, reason="a test", **limit))


def _limit_for(tokens: int) -> int:
    """The limit that has room for so many tokens at once."""
    return int((FLOOR_BYTES + tokens * TOKEN_BYTES + 8 * MIB) / 0.84)


def _weights(training: Training) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in training.prepared.model.parameters()])


class _OrderedAt(StarvedTask):
    """The task, in which an order comes in with the micro-batch of this number."""

    def __init__(self, training: Training, number: int, *limits: dict[str, Any]) -> None:
        super().__init__(training.task, lambda *_: False)
        self._training, self._number, self._limits = training, number, list(limits)

    def loss(self, model: Any, batch: Any) -> Any:
        loss = super().loss(model, batch)
        if self.calls >= self._number:
            while self._limits:
                _order(self._training, **self._limits.pop(0))
        return loss


@pytest.mark.parametrize("number", [1, 2])
def test_within_a_step_the_plan_follows_at_once_and_what_is_learnt_is_the_same(life: Training, number: int) -> None:
    model = {name: value.clone() for name, value in life.prepared.model.state_dict().items()}
    optimizer = life.optimizer.state_dict()
    train.take_step(life)
    undisturbed, before = _weights(life), life.plan.at(1)
    life.prepared.model.load_state_dict(model)
    life.optimizer.load_state_dict(optimizer)
    life.step = 0
    life.audit.resume(0)
    life.task = _OrderedAt(life, number, {"limit_bytes": _limit_for(60)})
    train.take_step(life)
    after = life.plan.at(1)
    assert after.most_tokens(48) <= 60 < before.most_tokens(48)
    assert after.cause == "ordered: a test"
    assert life.largest_tokens <= 60, "the step in hand was done again by the new plan"
    assert torch.linalg.vector_norm(_weights(life) - undisturbed) <= 1e-4 * torch.linalg.vector_norm(undisturbed)
    assert not exhaustions(life)


def test_what_is_taken_back_at_the_same_boundary_loses_nothing_of_the_gradient(life: Training) -> None:
    """The plan is again as it was, and yet the gradients of the first micro-batches are gone: so the step is done again."""
    model = {name: value.clone() for name, value in life.prepared.model.state_dict().items()}
    optimizer = life.optimizer.state_dict()
    train.take_step(life)
    undisturbed = _weights(life)
    life.prepared.model.load_state_dict(model)
    life.optimizer.load_state_dict(optimizer)
    life.step = 0
    life.audit.resume(0)
    life.task = _OrderedAt(life, 2, {"halve": True, "may_grow": False}, {})
    train.take_step(life)
    assert torch.linalg.vector_norm(_weights(life) - undisturbed) <= 1e-4 * torch.linalg.vector_norm(undisturbed)


def test_a_limit_that_leaves_no_room_for_a_second_lane_ends_it(life: Training) -> None:
    lanes = life.plan.at(1).lanes
    _order(life, limit_bytes=_limit_for(int(1.5 * life.prepared.train.lengths.max())))
    life.boundary()
    assert life.plan.at(1).lanes_used == 1
    train.take_step(life)
    for calm in ({"may_grow": False}, {}, {"limit_bytes": _limit_for(int(1.2 * life.prepared.train.lengths.max()))}):
        _order(life, **calm)
        life.boundary()
        assert life.plan.at(2).lanes_used == 1, "there is no room for it, however calm memory is"
    _order(life, limit_bytes=64 * GIB)
    for _ in range(8):
        train.take_step(life)
    assert life.plan.at(life.step + 1).lanes_used == lanes


def test_where_no_row_fits_any_more_a_new_process_goes_on_row_by_row_and_one_that_is_new_stays(life: Training) -> None:
    """What libraries and the allocator keep is gone with the old one; a new one would leave for nothing."""
    life.measuring.planner.compute_in(1)
    _order(life, limit_bytes=FLOOR_BYTES)
    life.boundary()
    _order(life, limit_bytes=64 * GIB)
    life.boundary()
    life.measuring.planner._first_step = life.step + 1 - LEAST_STEPS_TO_LEAVE
    _order(life, limit_bytes=FLOOR_BYTES)
    with pytest.raises(Leave, match="a new one begins with less") as left:
        life.boundary()
    assert left.value.checkpoint is not None
    entry = life.plan.at(1)
    assert (entry.bands, entry.checkpointed_from, entry.lanes_used) == ((), None, 1)
    assert entry.ceiling == life.prepared.train.lengths.max()
    assert entry.planned_bytes == planned_bytes(FLOOR_BYTES)[0], "so it is not what is gone back to when there is more again"


def test_when_there_is_as_much_again_the_next_step_is_cut_as_it_was_then(life: Training) -> None:
    """Whatever was found out meanwhile, in however small steps."""
    _order(life, limit_bytes=2 * GIB)
    life.boundary()
    train.take_step(life)
    before = life.plan.at(2)
    _order(life, limit_bytes=_limit_for(int(1.2 * life.prepared.train.lengths.max())))
    life.boundary()
    train.take_step(life)
    _order(life, halve=True, may_grow=False)
    life.boundary()
    train.take_step(life)
    assert life.plan.at(4).micro_tokens < before.micro_tokens
    _order(life, limit_bytes=2 * GIB)
    life.boundary()
    assert life.plan.at(4).same_cuts(before)


def test_the_answer_says_how_large_micro_batches_are_now_and_the_soft_limit_follows(life: Training) -> None:
    _order(life, limit_bytes=_limit_for(60))
    life.boundary()
    (done,) = (report for report in reports(life) if isinstance(report, Done))
    assert done.micro_tokens == life.plan.at(1).micro_tokens
    soft, now = resource.getrlimit(resource.RLIMIT_DATA)[0], held()
    least_bytes = life.measuring.planner.least_bytes()
    assert least_bytes is not None
    has_bytes = soft - (now.data_bytes - now.anonymous_bytes)
    assert has_bytes <= max(_limit_for(60), least_bytes / SOFT_FRACTION) * SOFT_FRACTION + 16 * MIB
    assert has_bytes >= least_bytes - 16 * MIB, "a row has to be computed all the same"


def test_a_row_that_does_not_fit_into_what_is_left_now_does_not_end_the_run(life: Training) -> None:
    """It fitted into what the run had, so that is tried before anything is given up."""
    _order(life, limit_bytes=_limit_for(60))
    life.boundary()
    lifted = life.soft_limit._most_bytes
    life.task = StarvedTask(
        life.task, lambda at, rows, number: at == "forward" and life.soft_limit._worker_limit_bytes != lifted
    )
    train.take_step(life)
    assert life.step == 1
    assert life.soft_limit._worker_limit_bytes == lifted


def test_what_the_supervisor_said_while_memory_ran_out_is_planned_for_instead_of_halving(life: Training) -> None:
    def fails(where: str, _rows: int, number: int) -> bool:
        if where == "forward" and number == 1:
            _order(life, limit_bytes=_limit_for(100))
            return True
        return False

    before = life.plan.at(1)
    life.task = StarvedTask(life.task, fails)
    train.take_step(life)
    (report,) = exhaustions(life)
    assert report.micro_tokens_before == before.micro_tokens
    after = life.plan.at(1)
    assert after.ceiling is None, "no half of anything"
    assert 60 < after.most_tokens(48) <= 100


def test_a_soft_limit_that_was_lowered_from_outside_stays_until_something_is_said() -> None:
    """As the supervisor does to a worker that it thaws: the next large allocation fails, is caught, and it hears its order."""
    program = """
import os, resource, sys, time
import memsup.memory
from memsup.memory import SoftLimit, held
soft = SoftLimit(held().anonymous_bytes + (512 << 20))
soft.renew()
print(os.getpid(), flush=True)
sys.stdin.readline()
soft.keep()
try:
    bytearray(64 << 20)
    print("grew", flush=True)
except MemoryError:
    print("caught", flush=True)
soft.renew()
soft.limit_to(held().anonymous_bytes + (511 << 20))
soft.keep()
print(len(bytearray(64 << 20)), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        limit_growth(int(child.stdout.readline()), 8 * MIB)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "caught\n"
        assert child.stdout.readline() == f"{64 * MIB}\n"


def test_nobody_who_keeps_no_soft_limit_is_kept_small() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(1 << 22, MIB)  # no such process
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        limit_growth(child.pid, MIB)
        assert resource.prlimit(child.pid, resource.RLIMIT_DATA) == before
        assert child.stdin is not None
        child.stdin.close()


def test_what_libraries_keep_for_good_they_have_before_memory_is_short(tmp_path: Path) -> None:
    """LAPACK, with which the planner fits its lines, ends the process where it does not get its 32 MiB at the first call."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from kit.lone_supervisor import tiny_settings
from kit.one_life import one_life
numbers = np.arange(1.0, 181.0).reshape(60, 3) ** 0.5
with one_life(tiny_settings(Path(sys.argv[1]))):
    held = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
    resource.setrlimit(resource.RLIMIT_DATA, ((int(held) << 10) - (8 << 20), resource.getrlimit(resource.RLIMIT_DATA)[1]))
    np.linalg.lstsq(numbers, np.arange(60.0), rcond=None)
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
"""
    as_a_worker = os.environ | LIBRARIES
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=as_a_worker,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
