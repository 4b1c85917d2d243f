"""Words with tags, from `start` to the answers of the saved model, through the command line."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from kit.asked_again import check_accuracy
from kit.cli_process import end_supervisors, memsup
from kit.killed_runs import Tally, disturbed, make_job, undisturbed
from kit.lone_supervisor import tiny_job
from kit.run_state import status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KIND = ("--set", "task.kind=token-classification")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The file that the job names holds texts and no tags."""
    tiny_job(tmp_path / "job", epochs=6, more="learning_rate = 3e-3\nthreads = 1\nlanes = 1\n")
    write_names(tmp_path / "job")
    return tmp_path / "job"


def write_names(folder: Path) -> None:
    """Names of two words in sentences of six."""
    draw, lines = random.Random(3), []
    for _ in range(240):
        words = draw.choices(["saw", "in", "was", "with", "the"], k=6)
        tags = ["O"] * 6
        place = draw.randint(0, 4)
        words[place : place + 2], tags[place : place + 2] = draw.choice(
            [(["anna", "berg"], ["B-PER", "I-PER"]), (["new", "york"], ["B-LOC", "I-LOC"])]
        )
        lines += [*map("\t".join, zip(words, tags, strict=True)), ""]
    (folder / "names.conll").write_text("\n".join(lines), encoding="utf-8")


def test_tags_are_offered_learnt_told_and_answered(job: Path) -> None:
    data = ("--set", f"task.train={job / 'names.conll'}")
    try:
        refused = memsup("start", *data, cwd=job)
        assert refused.returncode == 2
        assert "--set task.kind=token-classification" in refused.stderr

        none = memsup("start", *KIND, cwd=job)
        assert none.returncode == 2
        assert "has no sentences with tags: its columns are 'text', 'label'" in none.stderr

        done = memsup("start", "--wait", *data, *KIND, cwd=job, within_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "240 rows, spans of 2 labels in 'column 1', from 'column 2'" in done.stdout
        assert "f1 of LOC" in done.stdout
        result = status()["result"]
        assert result["f1"] > 0.9
        assert check_accuracy(Path(os.environ["MEMSUP_STATE_DIR"]) / "default")

        text = "the anna berg saw new york"
        (said,) = memsup("predict", "--json", text).document["predictions"]
        assert [(span["label"], span["text"]) for span in said["spans"]] == [("PER", "anna berg"), ("LOC", "new york")]
        assert [text[span["start"] : span["end"]] for span in said["spans"]] == ["anna berg", "new york"]
        (job / "asked.jsonl").write_text('{"tokens": ["the", "anna", "berg"]}\n')
        told = memsup("predict", "--text", "tokens", str(job / "asked.jsonl"))
        assert json.loads(told.stdout)["predicted"] == "PER: anna berg", told.stderr
        assert memsup("predict", text).stdout.strip().startswith("PER: anna berg, LOC: new york")
    finally:
        end_supervisors()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_tagger_that_is_killed_ends_with_the_bits_of_the_undisturbed_run(tmp_path: Path) -> None:
    """By signals; by day `worker/test_tagging.py` does it in one process."""
    kills = 40
    make_job(tmp_path, epochs=200, lanes=1)
    write_names(tmp_path)
    settings = tmp_path / "memsup.toml"
    text = settings.read_text(encoding="utf-8").replace('"reviews.csv"', '"names.conll"\nkind = "token-classification"')
    settings.write_text(text, encoding="utf-8")
    seed = random.SystemRandom().randrange(2**32)
    try:
        expected, tally = undisturbed(tmp_path, "undisturbed"), Tally()
        found = disturbed(tmp_path, "killed", random.Random(seed), tally, kills=kills, longest_life_s=5.0)
        assert found == expected, f"seed {seed}"
        assert tally.total >= kills // 2, tally
        print(f"seed {seed}, {tally}")
    finally:
        end_supervisors()
