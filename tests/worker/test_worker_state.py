"""What is written is what is read, in small pieces; and a checkpoint that belongs to something else is not continued."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from kit.lone_supervisor import tiny_settings
from kit.one_life import decisions, one_life

from memsup.checkpoint.durable import PIECE_BYTES
from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.store import Store
from memsup.shared.messages import DecisionKind, FailureCause
from memsup.worker import train
from memsup.worker.__main__ import failed
from memsup.worker.saving import save_if_possible
from memsup.worker.session import GiveUp
from memsup.worker.state import _outgoing, model_tensors, optimizer_tensors, read_tensors
from memsup.worker.training import Training

pytestmark = pytest.mark.slow  # torch takes its seconds


def nothing() -> None:
    pass


def written(tensors: dict[str, torch.Tensor], folder: Path, staging: torch.Tensor | None = None) -> Path:
    with Store(folder).draft(1) as draft:
        draft.write_tensors("model", [_outgoing(name, tensor, nothing, staging) for name, tensor in tensors.items()])
        return draft.commit().path


TENSORS = {
    "large": torch.randn(3_000_001),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 7),
    "half": torch.randn(5, 3).half(),
    "brain": torch.randn(5, 3).bfloat16(),
    "double": torch.randn(2, 2, 2).double(),
    "counts": torch.arange(10),
    "mask": torch.tensor([True, False, True]),
    "turned": torch.randn(700, 900).t(),
    "large and turned": torch.randn(1500, 1500).t(),
    "every second": torch.randn(40, 6)[::2, 1:5],
}


@pytest.mark.parametrize("is_staged", [False, True], ids=["on the host", "by way of page-locked memory"])
def test_every_kind_of_tensor_comes_back_with_its_bits(tmp_path: Path, is_staged: bool) -> None:
    staging = torch.full((PIECE_BYTES,), 7, dtype=torch.uint8) if is_staged else None
    folder = written(TENSORS, tmp_path, staging)
    into = {name: torch.full_like(tensor, 1) for name, tensor in TENSORS.items()}
    assert not into["turned"].is_contiguous()
    read_tensors(folder, "model", into, nothing, staging)
    assert all(torch.equal(into[name], tensor) for name, tensor in TENSORS.items())

    from safetensors.torch import load_file

    others = load_file(folder / "model.safetensors")
    assert all(torch.equal(others[name], tensor) for name, tensor in TENSORS.items())


def test_pieces_are_small_and_each_is_a_sign_of_life() -> None:
    ticks: list[int] = []
    for name, tensor in TENSORS.items():
        pieces = [len(piece) for piece in _outgoing(name, tensor, lambda: ticks.append(1)).chunks()]
        assert sum(pieces) == tensor.numel() * tensor.element_size()
        assert max(pieces, default=0) <= PIECE_BYTES
    assert len(ticks) >= 12_000_004 // PIECE_BYTES


def test_what_lies_on_a_device_passes_through_one_piece_of_memory(tmp_path: Path) -> None:
    """Page-locked memory cannot be swapped out, so it is small and used again; a file is read straight into it."""
    staging = torch.zeros(PIECE_BYTES, dtype=torch.uint8)
    for piece in _outgoing("large", TENSORS["large"], nothing, staging).chunks():
        assert np.frombuffer(piece, np.uint8).ctypes.data == staging.data_ptr()
    last_bytes = TENSORS["counts"].numpy().tobytes()
    folder = written({"counts": TENSORS["counts"]}, tmp_path)
    read_tensors(folder, "model", {"counts": torch.zeros_like(TENSORS["counts"])}, nothing, staging)
    assert staging[: len(last_bytes)].numpy().tobytes() == last_bytes


def test_on_the_host_a_piece_is_the_tensors_own_memory() -> None:
    """Nothing is copied: a save needs no memory for it."""
    tensor = torch.zeros(10)
    (piece,) = _outgoing("ten", tensor, nothing).chunks()
    tensor.fill_(1)
    assert bytes(piece) == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        ({"a": torch.zeros(3)}, "which the model does not have"),
        ({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1)}, "lacks 1 tensors, among them c"),
        ({"a": torch.zeros(4), "b": torch.zeros(2)}, "the model as"),
        ({"a": torch.zeros(3).double(), "b": torch.zeros(2)}, "the model as"),
    ],
)
def test_another_models_tensors_are_refused(tmp_path: Path, targets: dict[str, torch.Tensor], complaint: str) -> None:
    folder = written({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path)
    with pytest.raises(Damaged, match=complaint):
        read_tensors(folder, "model", targets, nothing)


def test_tied_weights_are_written_once_under_the_name_that_loads(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForMaskedLM(config)
    tensors = model_tensors(model)
    assert "bert.embeddings.word_embeddings.weight" in tensors
    assert "cls.predictions.decoder.weight" not in tensors
    folder = written(tensors, tmp_path)
    config.save_pretrained(folder)
    loaded = BertForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def tensors_of(training: Training) -> dict[str, torch.Tensor]:
    both = model_tensors(training.prepared.model) | optimizer_tensors(training.prepared.model, training.optimizer)
    return {name: tensor.clone() for name, tensor in both.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_training_has_every_bit_of_the_one_that_was_saved(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with one_life(settings) as training:
        for _ in range(3):
            train.take_step(training)
        training.session.checkpoint_now()
        saved = tensors_of(training)
        for _ in range(2):
            train.take_step(training)
        ahead, digest = tensors_of(training), training.audit.digest
    with one_life(settings) as training:
        assert training.step == 3
        assert same(tensors_of(training), saved)
        assert {value.data_ptr() % 64 for value in training.prepared.model.parameters()} == {0}, "or products would differ"
        for _ in range(2):
            train.take_step(training)
        assert same(tensors_of(training), ahead)
        assert training.audit.digest == digest


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_both_are_on_record(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with one_life(settings) as training:
        train.take_step(training)
        before = training.session.checkpoint_now()
        train.take_step(training)
        note = training.session.checkpoint_now()
        damaged = Path(note.path) / "optimizer.safetensors"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    with one_life(settings) as training:
        assert training.step == 1
        aside, used = decisions(training)
    assert (aside.what, aside.step) == (DecisionKind.CHECKPOINT_DAMAGED, 2)
    assert aside.checkpoint == str(Path(note.path).with_name("damaged-step-00000002"))
    assert Path(aside.checkpoint).is_dir()
    assert (used.what, used.step, used.checkpoint) == (DecisionKind.CHECKPOINT_USED, 1, before.path)


def test_where_no_checkpoint_is_whole_the_run_begins_anew_and_says_so(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with one_life(settings) as training:
        train.take_step(training)
        (Path(training.session.checkpoint_now().path) / "config.json").unlink()
    with one_life(settings) as training:
        assert training.step == 0
        aside, used = decisions(training)
    assert (aside.what, aside.step) == (DecisionKind.CHECKPOINT_DAMAGED, 1)
    assert (used.what, used.step, used.checkpoint) == (DecisionKind.CHECKPOINT_USED, 0, None)


def test_other_last_bits_are_on_record(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path, training__threads=1)) as training:
        train.take_step(training)
        training.session.checkpoint_now()
        assert decisions(training) == []
    with one_life(tiny_settings(tmp_path, training__threads=2)) as training:
        (said,) = decisions(training)
    assert (said.what, said.step) == (DecisionKind.OTHER_BITS, 1)


def test_a_lost_line_of_the_plan_is_on_record_since_steps_may_be_cut_otherwise(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with one_life(settings) as training:
        training.plan.change(2, "a test", limit=40)
        file = training.paths.plan
    file.write_bytes(file.read_bytes().replace(b'"limit":40', b'"limit":4?'))
    with one_life(settings) as training:
        (said,) = decisions(training)
    assert said.what is DecisionKind.OTHER_BITS


def test_rows_without_a_text_are_left_out_and_that_is_on_record_once(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    assert settings.task.train is not None
    data = Path(settings.task.train)
    label = data.read_text(encoding="utf-8").splitlines()[1].rsplit(",", 1)[1]
    with data.open("a", encoding="utf-8") as file:
        file.write(f",{label}\n   ,{label}\n")
    with one_life(settings) as training:
        (said,) = decisions(training)
        assert (said.what, said.rows) == (DecisionKind.ROWS_LEFT_OUT, 2)
        train.take_step(training)
        training.session.checkpoint_now()
    with one_life(settings) as training:
        assert decisions(training) == []


def test_lanes_that_do_not_divide_the_threads_are_refused_on_record(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path, training__threads=3, training__lanes=2)) as training:
        assert len(training.lanes) == 1
        (said,) = decisions(training)
    assert said.what is DecisionKind.CUT_REFUSED


def test_a_checkpoint_that_was_damaged_since_is_written_again_when_it_is_asked_for(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path)) as training:
        train.take_step(training)
        first = training.session.checkpoint_now()
        assert training.session.checkpoint_now() == first
        (Path(first.path) / "model.safetensors").unlink()
        second = training.session.checkpoint_now()
        assert second.path != first.path
        assert second.step == 1
        (said,) = decisions(training)
        assert (said.what, said.checkpoint) == (DecisionKind.CHECKPOINT_DAMAGED, first.path)


def test_a_checkpoint_that_the_disk_gives_back_otherwise_is_on_record(tmp_path: Path) -> None:
    """The disk, here: somebody who goes on writing into the draft once a file is in it."""
    with one_life(tiny_settings(tmp_path)) as training:
        train.take_step(training)
        tokenizer = training.prepared.tokenizer

        class GoesOnWriting:
            def save_pretrained(self, folder: Path) -> None:
                tokenizer.save_pretrained(folder)
                with (folder / "model.safetensors").open("r+b") as file:
                    file.seek(-1, 2)
                    file.write(b"later")

        training.prepared = dataclasses.replace(training.prepared, tokenizer=GoesOnWriting())
        save_if_possible(training)
        assert training.newest is None
        (said,) = decisions(training)
    assert (said.what, said.step) == (DecisionKind.CHECKPOINT_DAMAGED, 1)
    assert said.checkpoint is not None
    assert Path(said.checkpoint).name == "damaged-step-00000001"


def test_resuming_from_another_runs_checkpoint_goes_on_with_its_steps(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path), name="one") as training:
        for _ in range(3):
            train.take_step(training)
        note = training.session.checkpoint_now()
        saved, digest = tensors_of(training), training.audit.digest
    settings = tiny_settings(tmp_path, checkpoint__resume_from=note.path)
    with one_life(settings, name="other", run_id="ba9876543210") as training:
        assert training.step == 3
        assert same(tensors_of(training), saved)
        assert training.audit.digest == digest
        train.take_step(training)
        own = training.session.checkpoint_now()
    with one_life(settings, name="other", run_id="ba9876543210") as training:
        assert training.step == 4, "from now on its own checkpoints count"
        assert training.newest is not None
        assert training.newest.path == own.path


def test_resuming_from_a_plain_folder_takes_its_weights_only(tmp_path: Path, logged: list[dict[str, Any]]) -> None:
    with one_life(tiny_settings(tmp_path), name="one") as training:
        for _ in range(3):
            train.take_step(training)
        note = training.session.checkpoint_now()
        weights = {name: tensor.clone() for name, tensor in model_tensors(training.prepared.model).items()}
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in Path(note.path).iterdir():
        if not file.name.startswith("optimizer") and file.name not in {"state.json", "manifest.json"}:
            shutil.copy(file, plain)
    settings = tiny_settings(tmp_path, checkpoint__resume_from=plain)
    with one_life(settings, name="other", run_id="ba9876543210") as training:
        assert training.step == 0
        assert same(dict(model_tensors(training.prepared.model)), weights)
        assert all(not state["exp_avg"].any() for state in training.optimizer.state.values())
    assert [event["path"] for event in logged if event["level"] == "warning"] == [str(plain)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"training__seed": 7}, "training.seed was 42"),
        ({"training__effective_batch": 4}, "training.effective_batch was 8"),
        ({"rows": 150}, "the data, its split or its length limit changed"),
        ({"training__max_length": 10}, "the data, its split or its length limit changed"),
        ({"training__epochs": 0.05}, "set more training.epochs"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_in_plain_words(
    tmp_path: Path, change: dict[str, int], complaint: str
) -> None:
    with one_life(tiny_settings(tmp_path)) as training:
        for _ in range(3):
            train.take_step(training)
        training.session.checkpoint_now()
    with pytest.raises(GiveUp, match=complaint) as refused, one_life(tiny_settings(tmp_path, **change)):
        pass
    assert refused.value.cause is FailureCause.BAD_INPUT
    assert "memsup start --run life --fresh --set task.model=/" in str(refused.value)


def test_a_full_disk_is_named_with_the_command_that_continues_this_run() -> None:
    said = failed(OSError(errno.ENOSPC, "No space left on device"), "night")
    assert said.cause is FailureCause.DISK_FULL
    assert said.message.endswith("Free some space, then: memsup start --run night")


def test_a_folder_with_another_runs_checkpoints_is_not_taken_over(tmp_path: Path) -> None:
    with one_life(tiny_settings(tmp_path, checkpoint__folder=tmp_path / "shared"), name="one") as training:
        train.take_step(training)
        training.session.checkpoint_now()
    settings = tiny_settings(tmp_path, checkpoint__folder=tmp_path / "shared")
    with (
        pytest.raises(GiveUp, match="checkpoints of another run"),
        one_life(settings, name="other", run_id="ba9876543210"),
    ):
        pass


def test_a_checkpoint_of_a_later_version_is_not_thrown_away(tmp_path: Path) -> None:
    """It is whole; only this program cannot read it."""
    settings = tiny_settings(tmp_path)
    with one_life(settings) as training:
        train.take_step(training)
        note = training.session.checkpoint_now()
        state = msgspec.json.decode((Path(note.path) / "state.json").read_bytes()) | {"format": 2}
        shutil.rmtree(note.path)
        with training.store.draft(1) as draft:
            draft.write_json("state.json", state)
            draft.commit()
    with pytest.raises(GiveUp, match=r"not written by this version.*: memsup start --run life --fresh$"), one_life(settings):
        pass
    assert Path(note.path).exists()
