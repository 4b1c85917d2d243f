"""Trainings on a stream, for every task that reads rows: the rows are those of all others, and a kill changes no bit."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.chat import THINGS, dialogues, tiny_chat, tiny_chat_model, written
from kit.killed_runs import Tally, disturbed, undisturbed
from kit.lone_supervisor import made_up_reviews, tiny_job, tiny_settings
from kit.one_life import one_life, whole_life

from memsup.checkpoint.reading import verify
from memsup.shared.data import streams
from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.errors import InputError
from memsup.shared.paths import run_paths
from memsup.shared.settings import Settings
from memsup.worker.tasks import corpus

pytestmark = pytest.mark.slow  # torch and transformers take their seconds

ROWS = 60


def streamed(folder: Path, **more: Any) -> dict[str, Any]:
    """The settings of a stream, over and over its few rows."""
    chosen = {
        "task__stream": True,
        "task__eval": folder / "other.csv",
        "task__shuffle_buffer": 20,
        "training__max_steps": 24,
        "training__evaluate_every": 9,
        "checkpoint__every": "1ms",
    }
    return chosen | more


def classes(folder: Path) -> Settings:
    made = tiny_settings(folder, rows=ROWS, **streamed(folder, task__class_weights="bad:2,good:1"))
    (folder / "other.csv").write_text(made_up_reviews(20, 8), encoding="utf-8")
    return made


def numbers(folder: Path) -> Settings:
    made = tiny_settings(folder, **streamed(folder, task__problem_type="regression"))
    for name, rows in (("reviews.csv", ROWS), ("other.csv", 20)):
        lines = [f"{name[0]}好坏大小{'不错' * (row % 3)}{row},{row % 3}.5" for row in range(rows)]
        (folder / name).write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return made


def several(folder: Path) -> Settings:
    made = tiny_settings(folder, **streamed(folder, task__problem_type="multi_label_classification", task__labels="a,b,c"))
    for name, rows in (("reviews.csv", ROWS), ("other.csv", 20)):
        lines = [
            f"{name[0]}好坏大小{'不错' * (row % 3)}{row},{'|'.join('abcd'[row % 4 : row % 4 + row % 3])}" for row in range(rows)
        ]
        (folder / name).write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return made


def tags(folder: Path) -> Settings:
    """A file of columns; some sentences are divided."""
    made = tiny_settings(
        folder,
        **streamed(folder, task__kind="token-classification", task__train=folder / "data.conll", training__max_length=16),
    )
    draw = random.Random(5)
    for name, rows in (("data.conll", ROWS), ("other.csv", 20)):
        words = [[draw.choice(["anna\tB-PER", "rome\tB-LOC", "in\tO"]) for _ in range(draw.randint(1, 7))] for _ in range(rows)]
        body = "\n\n".join("\n".join(one) for one in words)
        (folder / name.replace("csv", "conll")).write_text(body + "\n", encoding="utf-8")
    made.task.eval = str(folder / "other.conll")
    return made


def chat(folder: Path) -> Settings:
    made = tiny_chat(folder, rows=dialogues(ROWS), **streamed(folder))
    made.task.eval = str(written(folder / "other.jsonl", dialogues(12)))
    return made


def plain(folder: Path) -> Settings:
    """Texts of which each is several rows."""
    model = tiny_chat_model(folder / "model", template=None)
    rows = [{"text": f"I like {THINGS[row % 6]}, the {row}th. " * (1 + row % 5)} for row in range(ROWS)]
    more = streamed(folder, training__max_length=48, training__method="full")
    made = tiny_chat(folder, rows=rows, model=model, **more)
    made.task.eval = str(written(folder / "other.jsonl", rows[:5]))
    return made


JOBS: list[Callable[[Path], Settings]] = [classes, numbers, several, tags, chat, plain]


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_run_on_a_stream_ends_with_the_bits_of_the_undisturbed_one(tmp_path: Path, job: Any) -> None:
    draw = random.Random(job.__name__)
    wanted = job(tmp_path)
    with one_life(wanted, name="rows") as life:
        # The first rows are what the rows of any other training are, looked at before anything is trained.
        stream, head = life.prepared.stream, life.prepared.train
        assert stream is not None
        assert stream.rows == 24, "whole steps of 8 samples, at least 20 rows"
        for row in range(min(len(head), 2 * stream.rows)):
            one, other = stream.batch(np.array([row])), head.batch(np.array([row]))
            assert one.keys() == other.keys()
            assert all(one[name].equal(other[name]) for name in one), row
            assert stream.weight(np.array([row])) == head.weight(np.array([row]))
            assert stream.where(np.array([row])) == head.where(np.array([row]))

    ends = []
    for name, lives in (("undisturbed", [None]), ("killed", [*(draw.randint(20, 130) for _ in range(4)), None])):
        finished = None
        for killed_after in lives:
            if finished is None:
                finished, _ = whole_life(wanted, name=name, killed_after=killed_after)
        assert finished is not None
        assert (finished.steps, finished.samples) == (24, 192)
        paths = run_paths(name)
        assert len(list((paths.cache / "stream").iterdir())) <= 4, "blocks that are done with are gone"
        newest = max(paths.checkpoints.glob("step-*"))
        verify(newest)
        weights = [(newest / part).read_bytes() for part in sorted(map(str, newest.glob("*.safetensors")))]
        ends.append(((paths.state / "audit.txt").read_bytes(), finished.metrics, weights))
    assert ends[0][2], "there are weights to compare"
    assert ends[0] == ends[1]


def test_what_a_stream_turns_out_to_have_is_refused_with_its_line_once_all_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEAD_ROWS", 40)
    monkeypatch.setattr(corpus, "_CHUNK_ROWS", 4)  # so many are read at once, and met when the first of them is
    wanted = classes(tmp_path)
    wanted.task.class_weights, wanted.task.accept = None, [DoubtKind.EVALUATION]
    wanted.checkpoint.every_s, wanted.training.evaluate_every = 600.0, 100
    with (tmp_path / "reviews.csv").open("a", encoding="utf-8") as grown:
        grown.write("什么,odd\n")
    line = ROWS + 2  # in the third block of 24 rows
    with pytest.raises(InputError, match=rf"reviews\.csv, line {line}: the label 'odd' is none of the first rows"):
        whole_life(wanted, name="odd")
    assert [path.name for path in run_paths("odd").checkpoints.glob("step-*")] == ["step-00000006"]


@pytest.mark.nightly
def test_a_worker_that_is_killed_goes_on_in_a_packed_stream_with_the_very_next_row(tmp_path: Path) -> None:
    """Real processes, killed at any instant, on a file that ends several times; what the test above says of lives in one."""
    tiny_job(tmp_path, epochs=1, more='learning_rate = 1e-3\nthreads = 1\n[checkpoint]\nevery = "200ms"\n')
    (tmp_path / "other.csv").write_text(made_up_reviews(20, 8), encoding="utf-8")
    (tmp_path / "reviews.csv.gz").write_bytes(gzip.compress((tmp_path / "reviews.csv").read_bytes()))
    job = tmp_path / "memsup.toml"
    stream = 'train = "reviews.csv.gz"\neval = "other.csv"\nstream = true\nshuffle_buffer = 100\n'
    text = job.read_text(encoding="utf-8").replace('train = "reviews.csv"\n', stream)
    job.write_text(text.replace("epochs = 1\n", "max_steps = 150\n"), encoding="utf-8")
    expected = undisturbed(tmp_path, "calm")
    tally = Tally()
    assert disturbed(tmp_path, "killed", random.Random(4), tally, kills=2, longest_life_s=6) == expected
    assert expected.step == 150
    assert tally.total
