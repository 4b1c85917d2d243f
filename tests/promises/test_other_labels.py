"""What is learnt besides classes, from `start` to the answers of the saved model, through the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kit.asked_again import check_accuracy
from kit.cli_process import end_supervisors, memsup
from kit.lone_supervisor import BAD, GOOD, tiny_job
from kit.run_state import status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    tiny_job(folder, epochs=2, more="learning_rate = 2e-3\nthreads = 1\nlanes = 1\n")
    return folder


def relabel(job: Path, good: list[str], bad: list[str]) -> None:
    file = job / "reviews.csv"
    head, *rows = file.read_text(encoding="utf-8").splitlines()
    texts = [row.rsplit(",", 1) for row in rows]
    told = [f"{text},{(good if label == 'good' else bad)[number // 2 % 3]}" for number, (text, label) in enumerate(texts)]
    file.write_text("\n".join([head, *told]) + "\n", encoding="utf-8")


def test_scores_are_offered_learnt_told_and_answered(job: Path) -> None:
    relabel(job, ["1.0", "1.1", "1.2"], ["-1.0", "-1.1", "-1.2"])
    try:
        refused = memsup("start", cwd=job)
        assert refused.returncode == 2
        offered = "--set task.problem_type=regression"
        assert offered in refused.stdout + refused.stderr

        done = memsup("start", "--wait", *offered.split(), cwd=job, within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a number, 'label'" in done.stdout
        assert "pearson" in done.stdout
        result = status()["result"]
        assert result["pearson"] > 0.8
        assert result["spearman"] > 0.5, "the fractions are drawn"
        assert check_accuracy(Path(os.environ["MEMSUP_STATE_DIR"]) / "default")

        other = memsup("start", "--set", "task.problem_type=single_label_classification", cwd=job)
        assert other.returncode == 2
        assert "task.problem_type" in other.stdout + other.stderr

        (name, good, _), (_, bad, _) = (
            line.split(maxsplit=2) for line in memsup("predict", "".join(GOOD), "".join(BAD)).stdout.splitlines()
        )
        assert name == "label"
        assert float(good) > 0 > float(bad), "two passes tell the two apart, and do not yet reach 1 and -1"
    finally:
        end_supervisors()


def test_several_labels_a_text_are_offered_learnt_told_and_answered(job: Path) -> None:
    """Joined in a cell, and as columns of 0 and 1."""
    offered = "--set task.problem_type=multi_label_classification"
    names = ["good", "bad", "cheap", "dear"]
    for separate in (False, True):
        if separate:
            file = job / "reviews.csv"
            rows = [row.rsplit(",", 1) for row in file.read_text(encoding="utf-8").splitlines()[1:]]
            cells = [[text, *(str(int(name in label.split("|"))) for name in names)] for text, label in rows]
            lines = [",".join(row) for row in [["text", *names], *cells]]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            relabel(job, ["good", "good|cheap", "cheap"], ["bad", "bad|dear", "dear"])
        refused = memsup("start", cwd=job)
        assert refused.returncode == 2
        assert offered in refused.stdout + refused.stderr
    try:
        done = memsup("start", "--wait", "--set", "training.epochs=6", *offered.split(), cwd=job, within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "4 labels" in done.stdout
        assert "micro f1" in done.stdout
        result = status()["result"]
        assert result["micro_f1"] > 0.4
        assert result["exact_match"] >= 0
        assert check_accuracy(Path(os.environ["MEMSUP_STATE_DIR"]) / "default")

        for said in memsup("predict", "--json", "".join(GOOD), "".join(BAD)).document["predictions"]:
            assert set(said["scores"]) == {"good", "bad", "cheap", "dear"}
            assert said["label"].split("|") == [name for name, share in said["scores"].items() if share > 0.5] or [""]
    finally:
        end_supervisors()


def test_weights_of_classes_are_taken_from_the_command_line(job: Path) -> None:
    weights = ("--set", "task.class_weights=good:3")
    try:
        other = memsup("start", "--set", "task.class_weights=fine:3", cwd=job)
        assert (other.returncode, "task.class_weights names 'fine', and the labels are" in other.stderr) == (2, True)
        done = memsup("start", "--wait", "--set", "training.epochs=1", *weights, cwd=job, within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        state = Path(os.environ["MEMSUP_STATE_DIR"]) / "default"
        weight_of_steps = [float(line.split()[2]) for line in (state / "audit.txt").read_text().splitlines()]
        assert sum(weight_of_steps) > 1.5 * status()["progress"]["samples"], "half of the rows count three times"
        assert check_accuracy(state)
    finally:
        end_supervisors()
