"""Training programs in torch, with accelerate and with Lightning, under `memsup start --`: killed, or short of memory, they end
with the weights that they end with by themselves.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import end_supervisors, memsup
from kit.own_program import printed
from kit.own_torch import (
    ACCELERATE_LAUNCH,
    ACCELERATED,
    COMPUTED_IN_PARTS,
    LIGHTNING,
    RANKED,
    RANKED_BY_ONE,
    STAY,
    TORCH,
    TORCHRUN,
    alone_and_guarded,
    most_difference,
)
from kit.run_state import ledger, status, step_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]
_DIES_IN_RANK_1 = 'os.environ["RANK"] == "1" and os.environ.get("DIES_AT") == str(run.step)'


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.mark.parametrize("loads", ["by itself", "by processes that stay"])
def test_a_torch_loop_with_dropout_shuffling_and_accumulation_ends_with_the_same_bits(tmp_path: Path, loads: str) -> None:
    """Killed in the middle of an epoch, and of adding up gradients."""
    alone_and_guarded(tmp_path, TORCH if loads == "by itself" else TORCH.replace(*STAY), DIES_AT="17")
    assert len([line for line in ledger() if line["event"] == "attached"]) == 2
    assert (tmp_path / "guarded" / "began").read_text() in {"0 16 ", "0 17 "}
    assert most_difference(tmp_path) == 0
    assert status()["restarts"] == 1
    assert "Warning" not in printed()


def test_a_batch_that_does_not_fit_is_computed_in_parts_by_backward_and_the_next_life_knows_in_which(tmp_path: Path) -> None:
    """Killed in its second step: memory does not run out once more for that."""
    alone_and_guarded(tmp_path, COMPUTED_IN_PARTS, "--set", "limits.ram=600MiB", DIES_AT="1")
    assert any("evaluate" in line["reason"] for line in ledger() if line["event"] == "out_of_memory"), "predictions fit"
    events = [line["event"] for line in ledger()]
    assert "out_of_memory" in events[: events.index("death")], "it fits, so this shows nothing"
    assert "out_of_memory" not in events[events.index("death") :]
    assert status()["restarts"] == 1
    assert (status()["batch"]["effective"], status()["batch"]["micro_rows"]) in {(2048, 1024), (2048, 512)}
    assert most_difference(tmp_path) <= 1e-5


def test_ranks_of_torchrun_end_with_what_one_process_learns_where_one_is_short_of_memory_and_dies(tmp_path: Path) -> None:
    """Rank 1 runs out of memory in a forward pass, in a backward pass and in an evaluation, each time alone, and is killed
    while rank 0 waits for it in a collective, with gradients of half a window. The optimizer steps in every second step.
    """
    alone_and_guarded(tmp_path, RANKED, by_one=RANKED_BY_ONE, launcher=TORCHRUN, DIES_AT="1 7")
    starved = [line for line in ledger() if line["event"] == "out_of_memory"]
    assert len(starved) == 3, starved
    assert all("(rank 1)" in line["reason"] for line in starved)
    (death,) = [line for line in ledger() if line["event"] == "death"]
    assert (death["cause"], status()["restarts"]) == ("killed", 1)
    assert death["reason"] == "Rank 1 was killed by SIGKILL in step 8, so the step ended for all 2 ranks."
    assert "cut_refused" not in {line["event"] for line in ledger()}
    assert most_difference(tmp_path) <= 1e-5


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="NOT RUN: accelerate is not installed here")
def test_an_accelerate_loop_with_accumulation_and_a_collator_that_draws_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Killed in the middle of a window, and of an epoch; its loader reads one batch ahead."""
    alone_and_guarded(tmp_path, ACCELERATED, DIES_AT="17")
    assert (tmp_path / "guarded" / "began").read_text() in {"0\n16\n", "0\n17\n"}
    attached = [line["reason"] for line in ledger() if line["event"] == "attached"]
    assert attached == ["the program is attached by its Accelerator"] * 2
    assert most_difference(tmp_path) == 0


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="NOT RUN: accelerate is not installed here")
def test_two_processes_of_accelerate_launch_end_with_the_bits_of_two_that_nobody_killed(tmp_path: Path) -> None:
    """Rank 1 is killed in the middle of a window; all go on from a checkpoint that has the part of each."""
    program = ACCELERATED.replace('os.environ.get("DIES_AT") == str(run.step)', _DIES_IN_RANK_1)
    program = program.replace("torch.save(", 'if os.environ["RANK"] == "0":\n    torch.save(')
    for name in ("alone", "guarded"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(program)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*ACCELERATE_LAUNCH, "train.py"], cwd=tmp_path / "alone", env=environment, check=True, timeout=1200)
    command = ["start", "--wait", "--", *ACCELERATE_LAUNCH, "train.py"]
    started = memsup(*command, cwd=tmp_path / "guarded", within_s=1200, DIES_AT="7", OMP_NUM_THREADS="1")
    assert started.returncode == 0, started.stderr + printed()
    (death,) = [line for line in ledger() if line["event"] == "death"]
    assert death["reason"].startswith("Rank 1 was killed by SIGKILL in step ")
    assert status()["restarts"] == 1
    assert most_difference(tmp_path) == 0


@pytest.mark.parametrize("said", [None, "0"])
def test_torchrun_makes_a_store_for_each_of_its_own_restarts_unless_the_environment_says_otherwise(
    said: str | None, tmp_path: Path
) -> None:
    environment = {} if said is None else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": said}
    command = ["sh", "-c", "echo $TORCH_DISABLE_SHARE_RDZV_TCP_STORE > told"]
    assert memsup("start", "--wait", "--", *command, cwd=tmp_path, **environment).returncode == 0
    assert (tmp_path / "told").read_text().strip() == (said or "1")


def test_restarts_of_torchruns_own_are_told_and_lose_nothing(tmp_path: Path) -> None:
    """With `--max-restarts` it is torchrun that begins the ranks anew, or, where that fails, memsup that begins torchrun."""
    launcher = [*TORCHRUN, "--max-restarts", "2"]
    alone_and_guarded(tmp_path, RANKED, by_one=RANKED_BY_ONE, launcher=launcher, within_s=1200, DIES_AT="1 7")
    events = [line["event"] for line in ledger()]
    (lost,) = [line["reason"] for line in ledger() if line["event"] == "rank_lost"]
    assert "Rank 1 was killed by SIGKILL in step 8" in lost
    assert status()["restarts"] == events.count("death") <= 1
    assert most_difference(tmp_path) <= 1e-5


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="NOT RUN: lightning is not installed here")
@pytest.mark.parametrize(("dies_at", "loads"), [("10", "by itself"), ("17", "by itself"), ("17", "by processes that stay")])
def test_a_lightning_script_with_one_call_added_ends_with_the_same_bits(tmp_path: Path, dies_at: str, loads: str) -> None:
    """Killed behind an epoch and its validation, and in the middle of one."""
    stay = LIGHTNING.replace("* (torch.rand_like(inputs) > 0.2)", "").replace(*STAY)  # what processes draw begins anew
    alone_and_guarded(tmp_path, LIGHTNING if loads == "by itself" else stay, DIES_AT=dies_at)
    assert (status()["restarts"], step_of(status())) == (1, 12)
    assert "Restored all states from the checkpoint" in printed()
    assert most_difference(tmp_path) == 0
