"""A Trainer's training that is begun again and again goes on where it was, to the bit: in the middle of an epoch, of a window,
of an evaluation, and between the two ends of an epoch. In one process, since most of a life is the import of torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kit.trainer_program import Lives, checkpoints, differences, needs_trainer

from memsup.places import read_place

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    needs_trainer()
    return Lives(tmp_path, monkeypatch)


BEST = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "loss"}
PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0},
    "eval_strategy": "steps",
    "eval_steps": 2,
}
STAY = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
CASES = {
    "masks that the collator draws, evaluated now and then": ("masked", {"eval_strategy": "steps", "save_total_limit": 2}),
    "the best model is loaded at the end": ("masked", BEST),
    "a data set without a length, several times over": ("stream", {"max_steps": 12, "eval_strategy": "epoch"}),
    "so many steps, ending within an epoch": ("classes", {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 4}),
    "nothing is saved for the user": ("classes", {"save_strategy": "no", "gradient_accumulation_steps": 1}),
    "rows of a length together": ("masked", {"train_sampling_strategy": "group_by_length"}),
    "two loader processes": ("classes", {"dataloader_num_workers": 2}),
    "two loader processes that stay": ("classes", STAY),
    "they stay, and an order is drawn for each pass": ("classes", STAY | {"train_sampling_strategy": "group_by_length"}),
    "a rate that waits for evaluations": ("masked", PLATEAU),
    "an average of labels, noise on embeddings": ("classes", {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_boundaries_it_ends_with_the_same_bits_and_the_same_log(lives: Lives, case: str) -> None:
    kind, arguments = CASES[case]
    environment = {"KIND": kind, "ARGUMENTS": json.dumps(arguments)}
    alone = lives.alone("alone", **environment)
    assert differences(alone, lives.killed_at_random("killed", 1, **environment)) == []


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("case", CASES)
def test_and_so_it_does_however_the_lot_falls(lives: Lives, case: str, seed: int) -> None:
    kind, arguments = CASES[case]
    environment = {"KIND": kind, "ARGUMENTS": json.dumps(arguments)}
    alone = lives.alone("alone", **environment)
    assert differences(alone, lives.killed_at_random("killed", seed, **environment)) == []


EARLY = """
from transformers import EarlyStoppingCallback
trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
"""


def test_a_training_that_is_ended_early_ends_in_the_same_step(lives: Lives) -> None:
    arguments = json.dumps(BEST | {"num_train_epochs": 9, "learning_rate": 0.1})
    environment = {"KIND": "masked", "ARGUMENTS": arguments, "BEFORE": EARLY}
    alone = lives.alone("alone", **environment)
    assert json.loads((alone / "log1.json").read_text())[0] < 45, "it is not ended early, so this shows nothing"
    assert differences(alone, lives.killed_at_random("killed", 1, **environment)) == []


def test_of_two_trainings_the_first_is_not_redone_when_the_second_dies(lives: Lives, capfd: pytest.CaptureFixture[str]) -> None:
    alone = lives.alone("alone", TRAININGS="2")
    assert differences(alone, lives.killed_at_random("killed", 3, TRAININGS="2")) == []
    assert "memsup: this training is complete at step 15, so no step is left" in capfd.readouterr().err


def test_whatever_is_damaged_of_the_newest_it_is_set_aside_and_the_one_before_is_used(lives: Lives, tmp_path: Path) -> None:
    """Trainer alone loads a flipped bit without a word. What the user finds is the same file, so it may be damaged there."""
    alone = lives.alone("alone")
    assert not lives.guarded("killed", 24, 1)
    kept = tmp_path / "killed-kept"
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "memsup-place.json", "rng_state.pth"):
        newest = max(kept.glob("step-*"))
        copy = tmp_path / "killed" / "out1" / "checkpoint-7"
        path = copy / name if newest.name == "step-00000007" else newest / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert not lives.guarded("killed", 6, 2)
        assert (kept / f"damaged-{newest.name}" / "WHY.txt").exists()
    assert lives.guarded("killed")
    assert differences(alone, tmp_path / "killed") == []


def test_what_a_user_had_in_the_folder_is_neither_overwritten_nor_rotated_out_nor_continued(
    lives: Lives, tmp_path: Path
) -> None:
    """But a checkpoint of the same training from before memsup, where it is not over."""
    arguments = json.dumps({"save_total_limit": 1})
    alone = lives.alone("alone")
    out = tmp_path / "killed" / "out1"
    shutil.copytree(alone / "out1", out)
    state = json.loads((out / "checkpoint-15" / "trainer_state.json").read_text())
    (out / "checkpoint-15" / "trainer_state.json").write_text(json.dumps(state | {"num_train_epochs": 9}))
    assert lives.guarded("killed", ARGUMENTS=arguments)
    assert checkpoints(out) == ["checkpoint-15", *(f"earlier-checkpoint-{step}" for step in (14, 15, 7))]
    assert json.loads((out / "earlier-checkpoint-15" / "trainer_state.json").read_text())["num_train_epochs"] == 9

    shutil.copytree(alone / "out1" / "checkpoint-7", tmp_path / "taken" / "out1" / "checkpoint-7")
    assert lives.guarded("taken")
    begun = json.loads((tmp_path / "taken" / "log1.json").read_text())[2]
    ours = json.loads((alone / "log1.json").read_text())[2]
    assert begun[0] == ours[0]  # which Trainer has read from it
    assert [line.get("grad_norm") for line in begun] == [line.get("grad_norm") for line in ours]


OWN_LOOP = """
def loop(batch_size=None, args=None, **_):
    trainer.create_optimizer()
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 6, 1
    trainer.callback_handler.on_train_begin(args, trainer.state, trainer.control)
    for inputs in trainer.get_train_dataloader():
        loss = trainer.training_step(trainer.model, inputs)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.state.global_step += 1
        trainer.callback_handler.on_step_end(args, trainer.state, trainer.control)
        if trainer.state.global_step == 6:
            return TrainOutput(6, float(loss), {})

from transformers.trainer_utils import TrainOutput
trainer.model.train()
trainer._inner_training_loop = loop
"""
SHRINKS = """
tried = [0]

class Shrinks(type(trainer)):
    def training_step(self, *given, **named):
        tried[0] += 1
        if tried[0] == 2:
            raise RuntimeError("CUDA out of memory. (not really)")
        return super().training_step(*given, **named)

trainer.__class__ = Shrinks
trainer.args.auto_find_batch_size = True
"""


def test_a_loop_of_somebody_elses_is_attached_neither_cut_nor_saved_and_learns_the_same(
    lives: Lives, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = lives.alone("alone", BEFORE=OWN_LOOP)
    assert lives.guarded("guarded", BEFORE=OWN_LOOP)
    assert capfd.readouterr().err.count("attached, and can be neither cut nor saved: its loop is not Trainer's") == 1
    assert differences(alone, lives.folder / "guarded") == []
    assert not list((lives.folder / "guarded-kept").glob("step-*"))


def test_a_trainer_that_finds_its_own_batch_size_begins_anew_as_it_does_alone(lives: Lives) -> None:
    """Where memsup does not cut: its first batch is the one that does not fit."""
    arguments = json.dumps({"gradient_accumulation_steps": 1, "max_steps": 8})
    alone = lives.alone("alone", BEFORE=SHRINKS, ARGUMENTS=arguments)
    refuses = f"{SHRINKS}\ntrainer._generate_completions = None"
    assert lives.guarded("guarded", BEFORE=refuses, ARGUMENTS=arguments)
    assert differences(alone, lives.folder / "guarded") == []


def test_trainers_are_told_apart_by_their_names(lives: Lives, tmp_path: Path) -> None:
    named = "import memsup\nmemsup.guard(trainer, name=f'seed {number}')"
    assert lives.guarded("named", BEFORE=named, TRAININGS="2")
    kept = [read_place(str(path)).training for path in sorted((tmp_path / "named-kept").glob("step-*"))]
    assert set(kept) == {"seed 1", "seed 2"}
