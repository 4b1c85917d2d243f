"""A model that is shared out to ranks: it learns what one rank learns, in less memory each. Whatever happens to one of
them, all go on from the newest checkpoint, which any number of ranks reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit.lone_supervisor import LoneSupervisor, newest_checkpoint, state_of
from kit.memory_of import peak_bytes, starve
from kit.run_end import End, pids_of_ranks, settings_of_ranks, undisturbed_end
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)

from memsup.checkpoint.errors import Damaged
from memsup.checkpoint.reading import verify
from memsup.shared.data.errors import InputError
from memsup.shared.messages import Checkpoint, Done, Failed, Leaving, LimitMicroBatch, OrderFailed, OutOfMemory, Phase, Stop
from memsup.shared.settings import Settings
from memsup.worker.ranks.sharded import gathered_apart, rows_of

STEPS = 27


def settings_for(folder: Path, ranks: int, *, shard: bool = True, **values: Any) -> Settings:
    """Each row is alone in its micro-batch, or nearly so: ranks seldom have as many."""
    return settings_of_ranks(folder, ranks, **{"training__shard": shard, "training__micro_tokens": 256} | values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def undisturbed(data: Path) -> dict[int, End]:
    """The ends of runs that nobody disturbs, on one rank and on two that share the model."""
    return {
        ranks: undisturbed_end(f"undisturbed-sharing-{ranks}", settings_for(data, ranks, shard=ranks > 1)) for ranks in (1, 2)
    }


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_ranks_that_share_a_model_learn_what_one_rank_learns(undisturbed: dict[int, End]) -> None:
    one, two = undisturbed[1], undisturbed[2]
    assert one.step == two.step == STEPS
    assert one.learned_from == two.learned_from
    assert one.differs_by(two) <= 1e-5
    assert one.evaluated == pytest.approx(two.evaluated, rel=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(two.model)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert all(np.array_equal(model.state_dict()[name].numpy(), weight) for name, weight in two.weights.items())


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_rank_that_is_killed_has_all_go_on_from_the_newest_checkpoint_with_the_same_bits(
    data: Path, undisturbed: dict[int, End]
) -> None:
    """With a rank its part of the model is gone, so nothing is saved; the other one is named. Where the worker is killed the
    other ends with it. A checkpoint is written in the middle of a step. All steps are done again as they were.
    """
    with LoneSupervisor(settings_for(data, 2), name="killed") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        done = supervisor.order(Checkpoint(order_id=1, reason="a test"))
        assert isinstance(done, Done)
        assert done.checkpoint is not None
        assert verify(Path(done.checkpoint.path)).step == done.checkpoint.step
        supervisor.reach(Phase.TRAINING, done.checkpoint.step + 2)
        os.kill(other_rank(supervisor), signal.SIGKILL)
        words = supervisor.last_words()
        assert isinstance(words, Failed)
        assert words.exit_status == -signal.SIGKILL
        assert words.message == f"Rank 1 was killed by SIGKILL in step {words.step}, so the step ended for all 2 ranks."
        assert state_of(supervisor.paths)["step"] == done.checkpoint.step, "there was nothing whole to be saved"
        supervisor.exit_status()

        supervisor.start()
        supervisor.reach(Phase.TRAINING, done.checkpoint.step + 1)
        other = psutil.Process(other_rank(supervisor))
        supervisor.kill()
        other.wait(60)

        supervisor.start()
        supervisor.finish()
        end = End(supervisor)
        assert end.digest == undisturbed[2].digest
        assert end.has_the_bits_of(undisturbed[2])


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_run_whose_supervisor_is_gone_is_saved_and_goes_on_with_another_number_of_ranks(
    data: Path, undisturbed: dict[int, End], tmp_path: Path
) -> None:
    """Two share the model until their supervisor is gone; one goes on with all of it, and three that share it end the run. A
    checkpoint of theirs that is damaged afterwards is refused.
    """
    with LoneSupervisor(settings_for(data, 2), name="moved") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        supervisor.drop_lifeline()  # as the kernel does where a supervisor is killed
        assert isinstance(supervisor.last_words(), Leaving)
        shutil.copytree(newest_checkpoint(supervisor.paths), tmp_path / "copy")
    with LoneSupervisor(settings_for(data, 1, shard=False), name="moved") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 14)
        supervisor.send(Stop(order_id=1, reason="a test", checkpoint=True))
        assert isinstance(supervisor.last_words(), Leaving)
    with LoneSupervisor(settings_for(data, 3), name="moved") as supervisor:
        supervisor.run_to_end()
        end = End(supervisor)
    assert end.learned_from == undisturbed[1].learned_from
    assert end.differs_by(undisturbed[1]) <= 1e-5
    _garbled_and_missing_files_are_refused(tmp_path / "copy")


def _garbled_and_missing_files_are_refused(checkpoint: Path) -> None:
    verify(checkpoint)
    file = checkpoint / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(Damaged, match=r"^optimizer\.safetensors is not what was written: its hash does not match\.$"):
        verify(checkpoint)
    file.unlink()
    with pytest.raises(Damaged, match=r"^optimizer\.safetensors is missing\.$"):
        verify(checkpoint)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_where_memory_runs_out_on_one_rank_all_begin_again_with_less(data: Path, undisturbed: dict[int, End]) -> None:
    with LoneSupervisor(settings_for(data, 2), name="starved") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 3)
        starve(other_rank(supervisor))
        starved = supervisor.first(OutOfMemory)
        assert starved.rank == 1
        assert starved.micro_tokens_after < starved.micro_tokens_before
        assert isinstance(supervisor.last_words(), Leaving)
        supervisor.start()
        supervisor.finish()
        end = End(supervisor)
        assert end.learned_from == undisturbed[1].learned_from
        assert end.differs_by(undisturbed[1]) <= 1e-5
        plan = supervisor.paths.plan.read_text(encoding="utf-8")
        assert f"rank 1 ran out of memory in {starved.where}" in plan


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_save_that_was_given_up_in_the_middle_of_anothers_rows_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    """No file may be larger, for a moment, than the first rank's part of the table of positions with some of the other's."""
    model = Path(str(settings_for(tmp_path, 2).task.model)) / "config.json"

    def settings() -> Settings:
        found = settings_for(tmp_path, 2, training__max_steps=6)
        model.write_text(
            json.dumps(json.loads(model.read_text(encoding="utf-8")) | {"max_position_embeddings": 20_000}), encoding="utf-8"
        )
        return found

    undisturbed = undisturbed_end("undisturbed-large", settings())
    with LoneSupervisor(settings(), name="disk-full") as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 2)
        assert supervisor.worker is not None
        with files_of_at_most(8 << 20, supervisor.worker.pid):
            assert isinstance(supervisor.order(Checkpoint(order_id=1, reason="a test")), OrderFailed)
        done = supervisor.order(Checkpoint(order_id=2, reason="a test"))
        assert isinstance(done, Done)
        supervisor.finish()
        assert End(supervisor).has_the_bits_of(undisturbed)


@contextlib.contextmanager
def files_of_at_most(size_bytes: int, pid: int) -> Iterator[None]:
    """No file that a process writes may become larger."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_model_that_was_computed_in_lanes_is_shared_out_in_mid_run_and_back(data: Path, undisturbed: dict[int, End]) -> None:
    """As many ranks go on, in one lane while they share it, and in two when each has all of it again."""
    with_lanes: dict[str, Any] = {"training__threads": 2, "training__micro_tokens": 128}

    def lanes() -> int:
        return int(json.loads(supervisor.paths.plan.read_text(encoding="utf-8").splitlines()[-1])["lanes"])

    for step, shard in ((4, False), (8, True)):
        settings = settings_for(data, 2, shard=shard, **with_lanes)
        with LoneSupervisor(settings, name="lanes", memory_limit_bytes=4 << 30) as supervisor:
            supervisor.start()
            supervisor.reach(Phase.TRAINING, step)
            assert lanes() == (1 if shard else 2)
            supervisor.send(Stop(order_id=1, reason="a test", checkpoint=True))
            assert isinstance(supervisor.last_words(), Leaving)
    with LoneSupervisor(
        settings_for(data, 2, shard=False, **with_lanes), name="lanes", memory_limit_bytes=8 << 30
    ) as supervisor:
        supervisor.run_to_end()
        assert lanes() == 2
        end = End(supervisor)
    assert end.learned_from == undisturbed[1].learned_from
    assert end.differs_by(undisturbed[1]) <= 1e-5


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_more_room_reaches_the_soft_limit_of_each_rank(data: Path) -> None:
    """All cut by the first rank's plan, which grows with the room; another one that still kept to the old limit would run out
    of memory with that, and all begin again.
    """

    def soft_bytes() -> int:
        return resource.prlimit(other_rank(supervisor), resource.RLIMIT_DATA)[0]

    with LoneSupervisor(settings_for(data, 2), name="roomier", memory_limit_bytes=4 << 30) as supervisor:
        supervisor.start()
        supervisor.reach(Phase.TRAINING, 2)
        before = soft_bytes()
        assert before < 3 << 30
        supervisor.order(LimitMicroBatch(order_id=1, reason="a test", limit_bytes=8 << 30))
        supervisor.until("rank 1 may hold more as well", lambda: soft_bytes() > before + (1 << 30))


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_each_rank_of_a_model_that_is_shared_out_takes_less_memory(tmp_path: Path) -> None:
    """Of 38 million weights two ranks have 16 bytes each, 576 MiB; where they share them half of that, and a layer's."""
    peaks = {}
    for shard in (False, True):
        settings = settings_for(tmp_path, 2, shard=shard, hidden=768, training__max_steps=3, training__max_length=16)
        config = Path(str(settings.task.model)) / "config.json"
        layers = {"num_hidden_layers": 8}
        config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | layers), encoding="utf-8")
        with LoneSupervisor(settings, name=f"shard-{shard}") as supervisor:
            supervisor.start()
            supervisor.reach(Phase.TRAINING, 2)
            assert supervisor.worker is not None
            peaks[shard] = [peak_bytes(supervisor.worker.pid), peak_bytes(other_rank(supervisor))]
    print(peaks)
    assert max(peaks[True]) < min(peaks[False]) - (150 << 20), peaks


def other_rank(supervisor: LoneSupervisor) -> int:
    """The process of rank 1."""
    return pids_of_ranks(supervisor)[1]


# ---------------------------------------------------------------------------------------------------------------------
# What is shared out, and how


@given(st.integers(1, 300), st.integers(1, 9))
def test_each_row_of_a_weight_has_one_rank_and_torch_shares_them_out_alike(rows: int, ranks: int) -> None:
    whole = torch.arange(rows)
    parts = [whole[slice(*rows_of(rank, ranks, rows))] for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), whole)
    torchs = torch.chunk(whole, ranks)
    assert all(torch.equal(part, theirs) for part, theirs in zip(parts, torchs, strict=False))
    assert not any(len(part) for part in parts[len(torchs) :])


def test_layers_and_large_tables_are_gathered_apart_unless_they_are_used_twice() -> None:
    config = BertConfig(vocab_size=5000, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    model = BertForMaskedLM(config)
    table = model.bert.embeddings.word_embeddings
    assert gathered_apart(model) == [*model.bert.encoder.layer], "the table is the last layer as well"
    model.cls.predictions.decoder.weight = torch.nn.Parameter(table.weight.detach().clone())
    assert gathered_apart(model) == [*model.bert.encoder.layer, table]


def test_a_model_that_calls_its_layers_in_a_way_of_its_own_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16, "vocab_size": 32}
    groups = dict.fromkeys(
        ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 1
    )
    model = SqueezeBertForSequenceClassification(SqueezeBertConfig(**sizes, embedding_size=16, **groups))
    with pytest.raises(InputError, match=r"SqueezeBertForSequenceClassification calls its layers .* leave out training.shard"):
        gathered_apart(model)


def test_what_a_model_does_not_call_is_gathered_with_the_rest_of_it() -> None:
    """DeBERTa takes the weights of its positions as they are; Funnel's blocks are lists of layers."""
    deberta = DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=5000,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            relative_attention=True,
            max_relative_positions=2100,
        )
    )
    assert deberta.deberta.encoder.rel_embeddings.weight.numel() > 1 << 18
    assert gathered_apart(deberta) == [*deberta.deberta.encoder.layer, deberta.get_input_embeddings()]
    funnel = FunnelForSequenceClassification(
        FunnelConfig(vocab_size=100, block_sizes=[1, 2], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=32)
    )
    assert gathered_apart(funnel) == [layer for block in funnel.funnel.encoder.blocks for layer in block]
