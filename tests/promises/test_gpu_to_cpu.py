"""A run that was computed on a GPU goes on on the CPU only where it may, and then from exactly the state that it had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.lone_supervisor import state_of, tiny_settings
from kit.one_life import one_life

from memsup.shared.messages import FailureCause
from memsup.worker.hardware import choose_device
from memsup.worker.session import GiveUp
from memsup.worker.state import model_tensors, optimizer_tensors
from memsup.worker.train import take_step
from memsup.worker.training import Training


def bits(life: Training) -> dict[str, bytes]:
    tensors = model_tensors(life.prepared.model) | optimizer_tensors(life.prepared.model, life.optimizer)
    return {name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def saved_on_a_gpu(folder: Path) -> dict[str, bytes]:
    """A checkpoint of three steps that says it comes from a GPU. (Its tensors come from a CPU: there is no GPU here.)"""
    with one_life(tiny_settings(folder, training__device="auto")) as life:
        for _ in range(3):
            take_step(life)
        life.device = torch.device("cuda")
        life.session.checkpoint_now()
        assert state_of(life.paths)["device"] == "cuda"
        return bits(life)


def test_it_is_refused_with_the_way_to_allow_it(tmp_path: Path) -> None:
    saved_on_a_gpu(tmp_path)
    with pytest.raises(GiveUp) as refused, one_life(tiny_settings(tmp_path, training__device="auto")):
        pass
    assert refused.value.cause is FailureCause.BAD_INPUT, "which is not tried again"
    assert "memsup start --run life --set recovery.continue_on_cpu=true" in str(refused.value)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_where_it_is_allowed_the_whole_state_moves(tmp_path: Path, device: str) -> None:
    saved = saved_on_a_gpu(tmp_path)
    settings = tiny_settings(tmp_path, training__device=device, recovery__continue_on_cpu="true")
    with one_life(settings) as life:
        assert life.device.type == "cpu"
        assert life.step == 3
        assert all(tensor.device.type == "cpu" for tensor in optimizer_tensors(life.prepared.model, life.optimizer).values())
        assert bits(life) == saved
        take_step(life)
        life.session.checkpoint_now()
        assert (state_of(life.paths)["device"], state_of(life.paths)["step"]) == ("cpu", 4)


def test_who_chose_the_cpu_has_been_asked(tmp_path: Path) -> None:
    saved_on_a_gpu(tmp_path)
    with one_life(tiny_settings(tmp_path, training__device="cpu")) as life:
        assert life.step == 3


def test_a_gpu_that_is_lost_is_left_alone_when_the_supervisor_says_so() -> None:
    assert choose_device("cuda:1", on_cpu=True).type == "cpu"
    with pytest.raises(GiveUp):
        choose_device("cuda:1")
