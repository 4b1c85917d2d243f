"""Several ranks: the same samples and the same model, whatever their number; they pause, run out of memory, die and go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from kit.lone_supervisor import LoneSupervisor, state_of, tiny_settings
from kit.memory_of import starve
from kit.one_life import one_life
from kit.run_end import End, pids_of_ranks, settings_of_ranks, undisturbed_end

from memsup.shared.messages import (
    Done,
    Failed,
    Leaving,
    LimitMicroBatch,
    OutOfMemory,
    Pause,
    PauseMode,
    Phase,
    Resume,
    Stop,
)
from memsup.shared.settings import Settings
from memsup.worker import train
from memsup.worker.micro_batch_limit import limit_micro_batch
from memsup.worker.training import OneRank


def test_a_limit_that_comes_while_a_rank_waits_counts_from_the_next_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says of each step how it was computed, since a later life does it again by that. A rank that has done its part
    carries out orders until all have.
    """
    with one_life(tiny_settings(tmp_path, training__effective_batch=8)) as training:
        add_up, limit = training.ranks.add_up, LimitMicroBatch(order_id=1, reason="a test", micro_tokens=40)

        def told_meanwhile(training: OneRank, loss: torch.Tensor) -> torch.Tensor:
            limit_micro_batch(training, limit)
            return add_up(training, loss)

        before = training.plan.at(1).micro_tokens
        with monkeypatch.context() as patch:
            patch.setattr(training.ranks, "add_up", told_meanwhile)
            train.take_step(training)
        assert (training.plan.at(1).micro_tokens, training.plan.at(2).micro_tokens) == (before, 40)
        assert before > 40
        limit_micro_batch(training, msgspec.structs.replace(limit, micro_tokens=30))  # between two steps
        assert training.plan.at(2).micro_tokens == 30


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

STEPS = 54


def settings_for(folder: Path, ranks: int) -> Settings:
    return settings_of_ranks(folder, ranks, training__epochs=2, training__micro_tokens=512)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def undisturbed(data: Path) -> dict[int, End]:
    """The ends of runs that nobody disturbs, with one rank and with two."""
    return {ranks: undisturbed_end(f"undisturbed-{ranks}", settings_for(data, ranks)) for ranks in (1, 2)}


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_one_and_two_ranks_learn_the_same(undisturbed: dict[int, End]) -> None:
    one, two = undisturbed[1], undisturbed[2]
    assert one.step == two.step == STEPS
    assert one.learned_from == two.learned_from
    assert one.differs_by(two) <= 1e-5
    assert one.evaluated == pytest.approx(two.evaluated, rel=1e-4)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_run_goes_on_with_another_number_of_ranks(data: Path, undisturbed: dict[int, End]) -> None:
    """Begun by two, gone on with by one, ended by three: it learns what a run learns that nobody has stopped. One of the two
    runs out of memory, does its part again while the other waits, and is named. A limit that is ordered on the way reaches
    each rank's plan, and ends with that life.
    """

    def limits_of_rank_1() -> list[int | None]:
        lines = supervisor.paths.plan_of_rank(1).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["limit"] for line in lines]

    with LoneSupervisor(settings_for(data, 2), name="moved") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        supervisor.order(LimitMicroBatch(order_id=0, reason="a test", micro_tokens=400))
        supervisor.until("rank 1 obeys as well", lambda: 400 in limits_of_rank_1())
        starve(pids_of_ranks(supervisor, 2)[1])
        starved = supervisor.first(OutOfMemory)
        assert starved.rank == 1
        assert starved.micro_tokens_after < starved.micro_tokens_before <= 400
        supervisor.send(Stop(order_id=1, reason="a test", checkpoint=True))
        assert isinstance(supervisor.last_words(), Leaving)
    with LoneSupervisor(settings_for(data, 1), name="moved") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 25)
        assert isinstance(supervisor.order(Stop(order_id=1, reason="a test", checkpoint=True)), Done)
        supervisor.last_words()
    with LoneSupervisor(settings_for(data, 3), name="moved") as supervisor:
        supervisor.start()
        assert len(pids_of_ranks(supervisor, 3)) == 3
        supervisor.finish()
        moved = End(supervisor)
        assert limits_of_rank_1()[-1] is None
    assert moved.learned_from == undisturbed[1].learned_from
    assert moved.differs_by(undisturbed[1]) <= 1e-5


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_rank_that_is_killed_costs_no_step_and_a_pause_reaches_all(data: Path, undisturbed: dict[int, End]) -> None:
    """The worker saves what it has, and says which rank it was and how it ended, also where it was about to meet it. The run
    ends with the bits of one that nobody has disturbed.
    """
    with LoneSupervisor(settings_for(data, 2), name="disturbed") as supervisor:
        supervisor.start()
        supervisor.until("they are about to meet", lambda: any(supervisor.paths.runtime.glob("ranks-*/store")))
        assert supervisor.worker is not None
        (other,) = psutil.Process(supervisor.worker.pid).children()
        other.kill()
        words = supervisor.last_words()
        assert isinstance(words, Failed)
        assert words.message.startswith("Rank 1 was killed by SIGKILL ")
        supervisor.exit_status()

        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        other = pids_of_ranks(supervisor, 2)[1]
        os.kill(other, signal.SIGKILL)
        words = supervisor.last_words()
        assert isinstance(words, Failed)
        assert words.exit_status == -signal.SIGKILL
        assert words.message == f"Rank 1 was killed by SIGKILL in step {words.step}, so the step ended for all 2 ranks."
        assert words.step is not None
        assert state_of(supervisor.paths)["step"] == words.step - 1, "only the step in hand is done again"

        supervisor.exit_status()
        supervisor.start()
        supervisor.reach(Phase.TRAINING, words.step + 3)
        other = pids_of_ranks(supervisor, 2)[1]
        supervisor.order(Pause(order_id=1, reason="a test", mode=PauseMode.HOLD))

        def rests() -> bool:
            before = _cpu_ticks(other)
            supervisor.pump(1.0)
            return _cpu_ticks(other) - before <= 10

        supervisor.until("the other rank rests", rests)
        supervisor.order(Resume(order_id=2, reason="a test"))
        supervisor.finish()
        assert End(supervisor).digest == undisturbed[2].digest


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
