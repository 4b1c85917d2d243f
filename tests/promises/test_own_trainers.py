"""A program that has Hugging Face's Trainer, and calls nothing of memsup, under `memsup start --`: it is seen, obeys, goes on,
and ends with the weights that it ends with by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import trainer_program
from kit.cli_process import end_supervisors, memsup
from kit.own_program import BARE_PYTHON, ended, is_attached, printed, trains_beyond
from kit.run_state import ledger, status, step_of, until


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.mark.slow
@pytest.mark.xdist_group("trainer")
def test_an_unchanged_trainer_script_is_seen_obeys_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    """It calls nothing of memsup, and its environment has nothing of it. Held, released, stopped in the middle of an
    accumulation, killed, its newest checkpoint damaged.
    """
    trainer_program.needs_trainer()
    folder = tmp_path / "guarded"
    folder.mkdir()
    environment = trainer_program.QUIET | {"KIND": "masked", "STEP_S": "0.08", "ARGUMENTS": '{"eval_strategy": "epoch"}'}
    alone = trainer_program.undisturbed(tmp_path / "alone", **environment | {"STEP_S": "0"})
    started = memsup("start", "-d", "--", *trainer_program.write_program(folder), cwd=folder, **environment)
    assert started.returncode == 0, started.stderr
    seen = trains_beyond(1, 60)
    assert (seen["program"]["seam"], seen["progress"]["total_steps"]) == ("trainer", 15)
    assert seen["progress"]["loss"] is not None
    assert "attached by its Trainer" in memsup("status").stdout
    saved = memsup("checkpoint")
    assert saved.returncode == 0, saved.stderr
    assert memsup("checkpoint", "--verify", saved.stdout.strip()).returncode == 0
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(os.listdir(saved.stdout.strip()))
    released = memsup("pause", "--release")
    assert released.returncode == 0, released.stdout + released.stderr
    assert status()["worker_pid"] is None
    assert memsup("resume").returncode == 0

    killed = trains_beyond(step_of(seen) + 2, 60)["worker_pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda now: now["restarts"] == 1 and is_attached(now) and now["worker_pid"] not in {killed, None}, 60)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    stands = status()
    assert (stands["state"], stands["exit_code"]) == ("stopped", 75)
    newest = Path(stands["checkpoint"]["path"])
    assert 0 < stands["checkpoint"]["step"] < 15
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    assert memsup("start", **environment | {"STEP_S": "0"}).returncode == 0
    assert ended()["state"] == "finished", printed()
    assert trainer_program.differences(alone, folder) == []
    assert {"checkpoint_damaged", "checkpoint_used"} <= {line["event"] for line in ledger()}
    assert Path(status()["model_path"], "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("trainer")
def test_what_dies_behind_a_finished_train_is_begun_again_and_does_not_train_again(tmp_path: Path) -> None:
    trainer_program.needs_trainer()
    folder = tmp_path / "guarded"
    folder.mkdir()
    dies = "if not os.path.exists('died'):\n    open('died', 'w').close()\n    os.kill(os.getpid(), 9)"
    environment = trainer_program.QUIET | {"BEHIND": dies, "IN_A_STEP": "open('steps', 'a').write('.')"}
    command = trainer_program.write_program(folder)
    assert memsup("start", "--wait", "--", *command, cwd=folder, **environment).returncode == 0
    assert len((folder / "steps").read_text()) == 3 * 13
    assert "this training is complete at step 15, so no step is left" in printed()
    assert (folder / "weights1.pt").exists()


LAUNCHERS = {
    "accelerate launch": [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1", "--cpu"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1"],
}


@pytest.mark.slow
@pytest.mark.xdist_group("trainer")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_behind_a_launcher_the_process_that_trains_is_attached_and_obeys(tmp_path: Path, launcher: str) -> None:
    """The launcher imports transformers too, and ends as it likes when what it has launched is gone."""
    trainer_program.needs_trainer()
    trainer_program.write_program(tmp_path)
    environment = trainer_program.QUIET | {"IN_A_STEP": "open('pid', 'w').write(str(os.getpid()))", "STEP_S": "0.05"}
    command = [*LAUNCHERS[launcher], "train.py"]
    assert memsup("start", "-d", "--", *command, cwd=tmp_path, **environment).returncode == 0
    seen = trains_beyond(1, 60)
    assert (tmp_path / "pid").read_text() != str(seen["worker_pid"])
    assert seen["program"]["seam"] == "trainer"
    assert memsup("pause").returncode == 0
    stopped = memsup("stop")
    assert "with the verified checkpoint of step" in stopped.stdout, stopped.stdout + stopped.stderr
    stands = status()
    assert (stands["state"], stands["exit_code"], stands["restarts"]) == ("stopped", None, 0)


def test_a_command_that_is_not_to_be_attached_has_no_sitecustomize(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['PYTHONPATH'], 'sitecustomize' in sys.modules, len(sys.meta_path), flush=True)"
    command = (BARE_PYTHON[0], "-c", code)
    counts = []
    for way in ("--attach", "--no-attach"):
        assert memsup("start", "--fresh", "--wait", way, "--", *command, cwd=tmp_path).returncode == 0
        assert ("attaching" in printed()) is (way == "--attach")
        counts.append(json.loads(printed().splitlines()[0])["event"].split()[-1])
    assert int(counts[0]) == int(counts[1]) + 1


@pytest.mark.slow
@pytest.mark.xdist_group("trainer")
def test_a_trainers_batch_that_does_not_fit_is_computed_in_parts_and_the_same_is_learned(tmp_path: Path) -> None:
    import torch

    trainer_program.needs_trainer()
    shape = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "intermediate_size": 4096, "hidden_size": 64}
    arguments = {"per_device_train_batch_size": 512, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    environment = trainer_program.QUIET | {"ROWS": "1024", "SHAPE": json.dumps(shape), "ARGUMENTS": json.dumps(arguments)}
    alone = trainer_program.undisturbed(tmp_path / "alone", **environment)
    folder = tmp_path / "guarded"
    folder.mkdir()
    command = trainer_program.write_program(folder)
    started = memsup("start", "--wait", "--set", "limits.ram=560MiB", "--", *command, cwd=folder, **environment)
    assert started.returncode == 0, started.stderr + printed()
    assert [line for line in ledger() if line["event"] == "out_of_memory"], "it fits, so this shows nothing"
    seen = status()
    assert seen["restarts"] == 0
    assert seen["batch"]["effective"] == 512
    assert seen["batch"]["micro_rows"] < 512
    first, second = torch.load(alone / "weights1.pt"), torch.load(folder / "weights1.pt")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) <= 1e-5
