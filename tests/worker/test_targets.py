"""What a label may be besides one class: its loss is transformers' own under any cut, and so are a saved model's answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from kit.gradients import check_any_cut
from kit.lone_supervisor import tiny_settings
from kit.one_life import lives_to_the_end
from kit.task_rows import tiny_task

from memsup.shared.data.targets import ProblemType
from memsup.shared.paths import RunPaths
from memsup.worker.predict import _shares
from memsup.worker.tasks import Prepared, Task, find_task
from memsup.worker.tasks.classification import load_finished
from memsup.worker.tasks.corpus import alike_for_the_split, hold_out
from memsup.worker.tasks.targets import TARGETS

pytestmark = pytest.mark.slow  # torch and transformers take their seconds

ROWS = 24
WORDS = "好坏大小高低快慢冷热新旧"


def data(kind: ProblemType) -> str:
    """A text a row, of 2 to 9 characters, and what is learnt of it."""
    draw, lines = random.Random(3), ["text,label"]
    for number in range(ROWS):
        text = "".join(draw.choices(WORDS, k=draw.randint(2, 9))) + str(number)
        several = "|".join(sorted(draw.sample("abc", draw.randint(0, 2))))
        label = {
            "multi_label_classification": several,
            "regression": f"{draw.randint(0, 8) / 4}",
            "single_label_classification": draw.choice("ab"),
        }[kind]
        lines.append(f"{text},{label}")
    return "\n".join(lines) + "\n"


def prepare(folder: Path, kind: ProblemType) -> tuple[Task, Prepared]:
    wanted = tiny_settings(folder, task__problem_type=kind, training__eval_share=0.25)
    (folder / "reviews.csv").write_text(data(kind), encoding="utf-8")
    task = find_task(wanted.task.kind, kind)
    return task, task.load(wanted, RunPaths("test", folder, folder), lambda: None)


@pytest.fixture(scope="module", params=["regression", "multi_label_classification"])
def learnt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Prepared]:
    return prepare(tmp_path_factory.mktemp("task"), request.param)


def all_of(prepared: Prepared) -> Any:
    return prepared.train.batch(np.arange(len(prepared.train)))


def test_any_cut_gives_the_gradient_of_transformers_own_loss_of_the_whole(learnt: tuple[Task, Prepared]) -> None:
    check_any_cut(*learnt)


def ranks(values: Any) -> list[float]:
    return [((values < value).sum() + (values <= value).sum()) / 2 for value in values]


def of_several(told: Any, true: Any) -> dict[str, float]:
    """F1 as it is defined, from precision and recall."""

    def f1(told: Any, true: Any) -> float:
        right = float((told & true).sum())
        precision, recall = right / max(1, told.sum()), right / max(1, true.sum())
        return float(2 * precision * recall / (precision + recall)) if right else 0.0

    of_label = [f1(told[:, place], true[:, place]) for place in range(told.shape[1])]
    exact = float(np.mean([(one == other).all() for one, other in zip(told, true, strict=True)]))
    return {"micro_f1": f1(told, true), "macro_f1": float(np.mean(of_label)), "exact_match": exact}


@torch.no_grad()
def test_measures_are_those_of_all_rows_however_they_are_batched(learnt: tuple[Task, Prepared]) -> None:
    task, prepared = learnt
    several = prepared.model.config.problem_type == "multi_label_classification"
    batch = all_of(prepared)
    said = prepared.model(**batch)
    outputs, labels = said.logits.double().numpy(), batch["labels"].double().numpy()
    one, other = outputs[:, 0], labels
    wanted = (
        {**of_several(outputs > 0, labels > 0), "loss": said.loss.item(), "rows": float(len(labels))}
        if several
        else {
            "pearson": np.corrcoef(one, other)[0, 1],
            "spearman": np.corrcoef(ranks(one), ranks(other))[0, 1],
            "loss": said.loss.item(),
            "rows": float(len(labels)),
        }
    )
    for at_once in (1, 5, 100):
        metrics = task.new_metrics()
        for part in np.split(np.arange(len(labels)), range(at_once, len(labels), at_once)):
            metrics.add(prepared.model, prepared.train.batch(part))
        assert metrics.result() == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    shared = [task.new_metrics() for _ in range(2)]
    for rank, metrics in enumerate(shared):
        metrics.add(prepared.model, prepared.train.batch(np.arange(rank, len(labels), 2)))
    shared[0].add_counts(msgspec.msgpack.decode(msgspec.msgpack.encode(shared[1].counts())))
    assert shared[0].result() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_numbers_that_do_not_vary_have_no_correlation_and_a_loss() -> None:
    metrics = TARGETS["regression"].new_metrics()
    constant: Any = lambda **_: type("Said", (), {"logits": torch.full((3, 1), 2.0)})  # noqa: E731
    metrics.add(constant, {"labels": torch.tensor([1.0, 2.0, 3.0])})
    assert metrics.result() == {"loss": pytest.approx(2 / 3), "rows": 3.0}


def test_the_saved_model_answers_in_a_pipeline_as_memsup_does(learnt: tuple[Task, Prepared], tmp_path: Path) -> None:
    _, prepared = learnt
    prepared.model.save_pretrained(tmp_path)
    prepared.tokenizer.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    texts = ["大好", "很冷很冷"]
    model, tokens, has_types = load_finished(str(tmp_path), None)
    shares = _shares(model, TARGETS[model.config.problem_type], tokens, texts, has_types=has_types)
    names = model.config.id2label
    for row, said in zip(shares, pipeline(texts, top_k=None), strict=True):
        assert row is not None
        assert {names[place]: share for place, share in enumerate(row)} == pytest.approx(
            {one["label"]: one["score"] for one in said}, abs=1e-5
        )


def test_what_is_held_out_has_each_label_and_all_heights_of_a_score() -> None:
    draw = np.random.default_rng(2)
    scores = draw.normal(size=1000)
    hashes = draw.integers(0, 1 << 63, 1000).astype(np.uint64)
    held = scores[hold_out(alike_for_the_split(scores, "regression"), hashes, 0.1, 5)]
    assert np.allclose(np.quantile(held, [0.1, 0.5, 0.9]), np.quantile(scores, [0.1, 0.5, 0.9]), atol=0.25)
    several = draw.random((1000, 11)) < np.array([0.5] * 9 + [0.02, 0.004])
    groups = alike_for_the_split(np.packbits(several, axis=1), "multi_label_classification")
    assert set(groups[~several.any(axis=1)]) <= {-1}
    taken = hold_out(groups, hashes, 0.1, 5)
    assert (several[taken].any(axis=0) & several[~taken].any(axis=0)).all(), "each label is on either side"


def test_another_kind_of_label_is_another_fingerprint(tmp_path: Path) -> None:
    """So that a checkpoint of the one is not gone on with as another."""
    prints = []
    for kind in TARGETS:
        folder = tmp_path / kind
        wanted = tiny_settings(folder, task__problem_type=kind, training__eval_share=0.25)
        (folder / "reviews.csv").write_text("text,label\n" + "".join(f"{c}好{n},{n % 2}\n" for n, c in enumerate(WORDS)))
        prepared = find_task(wanted.task.kind, kind).load(wanted, RunPaths("test", folder, folder), lambda: None)
        assert prepared.model.config.problem_type == kind
        prints.append(prepared.fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("weights", ["balanced", "rare:3"])
def test_class_weights_are_of_the_whole_batch_however_it_is_cut(weights: str, tmp_path: Path) -> None:
    wanted = tiny_settings(tmp_path, task__class_weights=weights, training__eval_share=0.25)
    (tmp_path / "reviews.csv").write_text(
        "text,label\n" + "".join(f"{c}好{n},{'rare' if n % 4 else 'often'}\n" for n, c in enumerate(3 * WORDS))
    )
    task = find_task(wanted.task.kind)
    prepared = task.load(wanted, RunPaths("test", tmp_path, tmp_path), lambda: None)
    with torch.no_grad():  # or the two classes' gradients cancel out, and rounding is all that is left
        prepared.model.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
    rows, batch = np.arange(len(prepared.train)), all_of(prepared)
    of_label = len(rows) / (2 * torch.bincount(batch["labels"]).double())
    if weights != "balanced":
        of_label = torch.tensor([3.0 if prepared.model.config.id2label[place] == "rare" else 1.0 for place in range(2)])
    inputs = {name: values for name, values in batch.items() if name not in ("labels", "weights")}
    torch.nn.functional.cross_entropy(prepared.model(**inputs).logits, batch["labels"], of_label.float()).backward()
    parameters = [value for value in prepared.model.parameters() if value.grad is not None]
    whole = torch.cat([value.grad.flatten() for value in parameters])
    total = task.weight(prepared.train, rows)
    for places in ([], [1], [3, 9, 10], list(rows[1:])):
        prepared.model.zero_grad()
        for part in np.split(rows, places):
            (task.loss(prepared.model, prepared.train.batch(part)) / total).backward()
        assert (torch.cat([value.grad.flatten() for value in parameters]) - whole).norm() <= 1e-6 * whole.norm()
    assert total == pytest.approx(sum(task.weight(prepared.train, rows[n : n + 1]) for n in rows))
    assert "weights" not in prepared.evaluation.batch(np.arange(2))


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("task", ["pairs", "labels", "scores"])
def test_a_run_that_is_killed_ends_with_the_bits_of_the_undisturbed_one(task: str, kills: int, tmp_path: Path) -> None:
    """In two lanes; by signals `benchmarks/kills.py --task` does it."""
    draw = random.Random(kills)
    lanes = {"training__threads": 2, "training__lanes": 2}
    wanted = tiny_task(tmp_path, task, rows=100, checkpoint__every="1ms", training__epochs=kills / 2, **lanes)
    undisturbed, _ = lives_to_the_end(wanted, name="undisturbed")
    killed, lived = lives_to_the_end(wanted, name="killed", killed_after=[draw.randint(5, 80) for _ in range(kills)])
    assert lived == kills + 1, "each kill was one"
    assert killed == undisturbed
