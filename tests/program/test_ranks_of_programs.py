"""Several ranks of a person's own program: each order reaches all of them at the same boundary, a checkpoint has the part of
each, and a rank that dies is named, ends the others, and costs what was computed since the newest checkpoint.

The ranks here are Python alone, begun by a launcher that tells them what torchrun tells its own. torchrun itself is in
`promises/test_own_trainers.py`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import end_supervisors, memsup
from kit.own_program import ended, printed, result, trains_beyond
from kit.own_ranks import LAUNCHER, drawn, drawn_alone, pid_of, write_ranks
from kit.run_state import ledger, status, step_of, until

from memsup.link import NotAttachedError
from memsup.ranks import group


@pytest.fixture
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_keeps_running")
def test_ranks_obey_together_die_together_and_end_with_what_they_end_with_undisturbed(tmp_path: Path) -> None:
    """Each rank draws numbers of its own. Held, saved while held, released, each of both killed, stopped and started."""
    command = write_ranks(tmp_path, 2)
    environment = {"STEP_S": "0.03", "EPOCHS": "4"}
    assert memsup("start", "-d", "--", *command, cwd=tmp_path, **environment).returncode == 0
    trains_beyond(3)
    assert memsup("pause").returncode == 0
    held = status()
    assert step_of(held) > 0
    saved = memsup("checkpoint")
    assert saved.returncode == 0, saved.stderr
    place = json.loads(Path(saved.stdout.strip(), "memsup-rank-1", "memsup-place.json").read_text())
    assert (place["step"], place["ranks"]) == (step_of(held), 2)
    released = memsup("pause", "--release")
    assert released.returncode == 0, released.stdout + released.stderr
    assert step_of(status()) == step_of(held), "both stood where the pause met them"
    assert memsup("resume").returncode == 0

    for lives, rank in enumerate((1, 0), 1):
        trains_beyond(step_of(status()) + 5)
        os.kill(pid_of(rank), signal.SIGKILL)
        until(lambda seen: seen["restarts"] == lives, 30)  # noqa: B023
        death = [line for line in ledger() if line["event"] == "death"][-1]
        if rank == 0 and death["cause"] == "crash" and "ended without a word" in death["reason"]:
            continue  # its launcher collected it before rank 1, which has no processor of its own here, could see how it ended
        assert death["cause"] == "killed", death
        assert death["reason"].startswith(f"Rank {rank} was killed by SIGKILL in step"), death
    trains_beyond(step_of(status()) + 1)
    stopped = memsup("stop")
    assert "with the verified checkpoint of step" in stopped.stdout, stopped.stdout + stopped.stderr

    assert memsup("start", "--wait", **environment).returncode == 0, printed()
    assert ended()["state"] == "finished"
    for rank in (0, 1):
        assert drawn(tmp_path, rank) == drawn_alone(tmp_path / f"alone{rank}", rank)
    assert json.loads((tmp_path / "result0.json").read_text()) == result(tmp_path / "alone0")
    assert printed().count("begins at step 0 attached") == 2


@pytest.mark.usefixtures("nothing_keeps_running")
def test_a_checkpoint_of_two_ranks_is_refused_to_one_and_what_one_rank_raises_is_told_with_its_number(tmp_path: Path) -> None:
    command = write_ranks(tmp_path, 2)
    fails = "if rank == 1 and run.step == 3: raise ValueError('no such row')"
    assert memsup("start", "-d", "--", *command, cwd=tmp_path, IN_A_STEP=fails, EVERY_S="0").returncode == 0
    until(lambda _: any(line["event"] == "death" for line in ledger()), 30)
    first = next(line for line in ledger() if line["event"] == "death")
    assert first["reason"] == "Rank 1: The program ended with ValueError after step 3: no such row"
    assert memsup("stop").returncode in {0, 1}
    (tmp_path / "launch.py").write_text(LAUNCHER.replace("int(sys.argv[1])", "3"))
    assert memsup("start", "--wait").returncode == 1
    assert "is one of 2 ranks, and now there are 3" in status()["failure"]


# ---------------------------------------------------------------------------------------------------------------------
# One process


ONE_MACHINE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, (1, 2)),
        ({"LOCAL_WORLD_SIZE": "", "MASTER_ADDR": "127.0.0.1"}, (1, 2)),
        ({"WORLD_SIZE": ""}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_WORLD_SIZE": "1"}, NotAttachedError),
        ({"LOCAL_WORLD_SIZE": ""}, NotAttachedError),
        ({"RANK": ""}, NotAttachedError),
        ({"RANK": "2"}, NotAttachedError),
    ],
)
def test_which_rank_a_process_is_says_its_launcher(change: dict[str, str], wanted: Any) -> None:
    if wanted is NotAttachedError:
        with pytest.raises(NotAttachedError, match="one of several ranks"):
            group(ONE_MACHINE | change)
        return
    found = group(ONE_MACHINE | change)
    assert (found and (found.rank, found.size)) == wanted


def test_ranks_that_a_launcher_has_begun_anew_are_another_group() -> None:
    keys = [group(ONE_MACHINE | {"TORCHELASTIC_RESTART_COUNT": str(count)}) for count in range(2)]
    assert len({found.key for found in keys if found is not None}) == 2
