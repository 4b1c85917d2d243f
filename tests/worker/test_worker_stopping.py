"""Promise: a training with evaluations in between ends early, and with its best weights, as if nobody had killed it."""

from __future__ import annotations

import filecmp
import random
import shutil
from pathlib import Path

import pytest
from kit.lone_supervisor import newest_checkpoint, state_of, tiny_settings
from kit.one_life import whole_life

from memsup.shared.messages import DecisionKind, Finished
from memsup.shared.paths import run_paths
from memsup.shared.settings import Settings

pytestmark = pytest.mark.slow  # torch takes its seconds


EVERY, PATIENCE = 3, 5


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of 48 steps. Where it was written the best comes after 15, another as good after 21, and it ends at 30."""
    return tiny_settings(
        tmp_path,
        rows=160,
        hidden=16,
        words=6,
        training__epochs=4,
        training__learning_rate=2e-2,
        training__max_length=16,
        training__tune="false",
        training__eval_share=0.4,
        training__evaluate_every=EVERY,
        training__patience=PATIENCE,
        training__keep="best",
    )


def stopped_early(finished: Finished | None) -> Finished:
    assert finished is not None
    assert finished.stopped_early
    assert finished.steps < 48
    assert finished.evaluation is not None
    assert finished.evaluation.without_rise == PATIENCE
    assert finished.evaluation.best_step == finished.steps - PATIENCE * EVERY
    return finished


def test_whoever_kills_it_it_ends_after_the_same_step_with_the_same_model(settings: Settings) -> None:
    """Killed after any piece of work, of evaluations and saves as well, again and again, later each time; then its best
    weights are damaged, and those of the other taken away.
    """
    alone = stopped_early(whole_life(settings, name="alone")[0])
    assert alone.evaluation is not None
    assert alone.model_step == alone.evaluation.best_step
    assert alone.metrics["accuracy"] == alone.evaluation.best

    settings.checkpoint.every_s = 0.2  # so that it gets on, and results that are as good or worse are saved as well
    draw, lives, end = random.Random(5), 0, None
    while end is None:
        end, _ = whole_life(settings, name="killed", killed_after=draw.randint(100, 200 + 60 * lives))
        lives += 1
    killed = stopped_early(end)
    assert lives > 2, lives
    assert (killed.evaluation, killed.metrics, killed.steps) == (alone.evaluation, alone.metrics, alone.steps)
    one, other = run_paths("alone"), run_paths("killed")
    for key in ("step", "digest", "loss", "evaluated", "best", "without_rise"):
        assert state_of(one)[key] == state_of(other)[key]
    assert filecmp.cmp(one.model / "model.safetensors", other.model / "model.safetensors", shallow=False)
    best = next((one.state / "checkpoints").glob(f"step-{alone.model_step:08}*"))
    assert filecmp.cmp(one.model / "model.safetensors", best / "model.safetensors", shallow=False)
    assert not filecmp.cmp(one.model / "model.safetensors", newest_checkpoint(one) / "model.safetensors", shallow=False)

    # The same run, whose model is to be made again when its best weights are damaged.
    (best / "model.safetensors").write_bytes((newest_checkpoint(one) / "model.safetensors").read_bytes())
    end, decided = whole_life(settings, name="alone")
    again = stopped_early(end)
    assert [(said.what, said.step) for said in decided] == [(DecisionKind.BEST_LOST, alone.model_step)]
    assert Path(decided[0].checkpoint or "").name.startswith("damaged-step-")
    assert again.model_step == again.steps
    assert again.metrics["accuracy"] == state_of(one)["evaluated"]["metrics"]["accuracy"]
    assert filecmp.cmp(one.model / "model.safetensors", newest_checkpoint(one) / "model.safetensors", shallow=False)

    shutil.rmtree(next((other.state / "checkpoints").glob(f"step-{killed.model_step:08}*")))
    end, decided = whole_life(settings, name="killed")
    again = stopped_early(end)
    assert [(said.what, said.step, said.checkpoint) for said in decided] == [(DecisionKind.BEST_LOST, killed.model_step, None)]
    assert filecmp.cmp(other.model / "model.safetensors", newest_checkpoint(other) / "model.safetensors", shallow=False)
    assert again.metrics["accuracy"] == state_of(other)["evaluated"]["metrics"]["accuracy"]
