"""`memsup predict` before the model is asked: what it is asked about, and what there is no answer to.

That its answers are those of the training's own tokenizer and labels is in `promises/test_the_main_job.py`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import a_run, said
from kit.statuses import a_status

from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings, Task
from memsup.shared.status import RunState, encode_status
from memsup.supervisor.cli import predict as cli
from memsup.supervisor.client.prediction import Predicted
from memsup.supervisor.words import use_rows


def finished(name: str = "default", *, task: Task | None = None) -> RunPaths:
    """A run that has a model, whose files are none."""
    paths = a_run(name, settings=Settings(task=task or Task()))
    paths.model.mkdir()
    (paths.model / "config.json").write_text("{half")
    status = a_status(RunState.FINISHED, model_path=str(paths.model))
    paths.status.write_bytes(encode_status(status))
    return paths


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--run", "nix", "a"], 4, "no run 'nix'"),
        (["--run", "night", "a"], 3, "memsup wait --run night"),
        (["--run", "own", "a"], 3, "a command of your own"),
        (["no.csv"], 2, "There is no file no.csv."),
        (["--output", "x.csv", "a text"], 2, "for a file of texts"),
        (["other.csv"], 2, "Name it with --text"),
        (["--text", "titel", "other.csv"], 2, "no column 'titel'"),
        (["--output", "x.docx", "good.csv"], 2, "name it .csv or .jsonl"),
        (["--output", "good.csv", "good.csv"], 2, "is there already"),
        (["--run", "pairs", "a premise alone"], 2, "two texts a row"),
        (["--run", "pairs", "-"], 2, "a line is one"),
        (["--run", "pairs", "lines.txt"], 2, "a line is one"),
        (["--text-pair", "label", "good.csv"], 2, "leave out --text-pair"),
        ([], 2, "TEXT"),
    ],
)
def test_what_cannot_be_asked_is_answered_in_one_sentence(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("name,town\na,b\n")
    (tmp_path / "good.csv").write_text("text,label\na,b\n")
    (tmp_path / "lines.txt").write_text("a\nb\n")
    finished()
    finished("pairs", task=Task(text="premise", text_pair="hypothesis"))
    a_run("night")
    a_run("own", command=["sleep", "1"])
    found, text = said(capfd, "predict", *arguments)
    assert (found, words in text) == (code, True), text
    assert "Traceback" not in text
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said_so(capfd: pytest.CaptureFixture[str]) -> None:
    """By the process that loads it, which is another one; nothing of it is left."""
    paths = finished()
    code, text = said(capfd, "predict", "a text")
    assert code == 1
    assert f"memsup: The model {paths.model} cannot be loaded" in text
    assert text.count("\n") == 1


def test_pairs_files_and_pipes_are_asked_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every column stays, beside a label and a score; a file that could not be written whole is not there."""
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    def long_is_good(_paths: Any, _record: Any, _model: Any, rows: Any, **_: Any) -> Any:
        for row in rows:
            seen.append(tuple(row))
            yield Predicted("good", 0.75, {"good": 0.75, "bad": 0.25}) if row[0] else Predicted(None, None, None)

    monkeypatch.setattr(cli, "asked", long_is_good)
    finished()
    finished("pairs", task=Task(text="premise", text_pair="hypothesis"))
    assert said(capfd, "predict", "很好", "差") == (0, "  good  0.750  很好\n  good  0.750  差\n")
    document = json.loads(said(capfd, "predict", "--json", "很好")[1])
    assert document["predictions"] == [{"text": "很好", "label": "good", "score": 0.75, "scores": {"good": 0.75, "bad": 0.25}}]
    assert said(capfd, "predict", "--run", "pairs", "It rains.", "It is wet.")[0] == 0
    assert seen[-1] == ("It rains.", "It is wet.")
    (tmp_path / "asked.csv").write_text('id,评论\n1,"很好, 真的"\n2,\n', encoding="utf-8")
    assert said(capfd, "predict", "asked.csv", "-o", "out.csv") == (0, "Written: out.csv, 2 rows; 1 of them without a text\n")
    assert (tmp_path / "out.csv").read_text(encoding="utf-8-sig") == (
        'id,评论,predicted,score\n1,"很好, 真的",good,0.75\n2,,,\n'
    )
    (tmp_path / "pairs.jsonl").write_text('{"hypothesis": "h", "premise": "p"}\n')
    lines = said(capfd, "predict", "--run", "pairs", "pairs.jsonl")[1].splitlines()
    assert seen[-1] == ("p", "h")
    assert json.loads(lines[0]) == {"hypothesis": "h", "premise": "p", "predicted": "good", "score": 0.75}
    (tmp_path / "lines.txt").write_text("a\nb\n")
    assert len(said(capfd, "predict", "lines.txt")[1].splitlines()) == 2
    (tmp_path / "piped.txt").write_bytes(b"one\r\n\xff\xe9\n")
    with (tmp_path / "piped.txt").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert said(capfd, "predict", "-") == (0, "  good  0.750  one\n  good  0.750  \ufffd\ufffd\n")


def test_a_table_has_every_column_that_any_row_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also those that only a later row has, and one that is called as one of the two that are added."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "asked", lambda _p, _r, _m, rows, **_: (Predicted("good", 0.75, {}) for _ in rows))
    finished()
    rows = ['{"text": "a", "score": 5}', '{"from": {"page": 1}, "text": "b"}']
    (tmp_path / "asked.jsonl").write_text("\n".join(rows))
    assert said(capfd, "predict", "asked.jsonl", "-o", "out.csv")[0] == 0
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as table:
        first, second = csv.DictReader(table)
    assert first == {"text": "a", "score": "5", "from": "", "predicted": "good", "score_2": "0.75"}
    assert second == {"text": "b", "score": "", "from": '{"page": 1}', "predicted": "good", "score_2": "0.75"}
    (tmp_path / "none.csv").write_text("text,label\n")
    assert "no rows" in said(capfd, "predict", "none.csv", "-o", "none_out.csv")[1]
    (tmp_path / "wide.jsonl").write_text("".join(f'{{"text": "a", "{n}": 1}}\n' for n in range(1_100)))
    assert "more than 1,000 columns" in said(capfd, "predict", "wide.jsonl")[1]


def test_a_finished_run_says_how_its_model_is_used() -> None:
    status = a_status(RunState.FINISHED, model_path="/x/model")
    assert [name for name, _ in use_rows(status)] == ["use it", "in Python"]
    assert 'memsup predict "a text"' in use_rows(status)[0][1]
    for counted in ("spans", "words"):  # a head of another kind would be made at random
        status.result = {"f1": 0.9, counted: 5.0}
        assert 'pipeline("token-classification"' in use_rows(status)[1][1]
    assert use_rows(a_status()) == []
    status.is_command = True
    assert use_rows(status) == [], "what a command has made is its own affair"
