"""Files that have their rows in lines are read on from any row as they are read from the first, however they are written."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import pytest
from kit.cli_process import memsup
from kit.lone_supervisor import tiny_settings

from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import Begin, raw_lines
from memsup.shared.data.rows import HEAD_ROWS, read_rows
from memsup.shared.data.sources import locate
from memsup.shared.data.streams import head_of
from memsup.shared.data.tag_files import locate_tagged

FORMS: dict[str, tuple[str, bytes]] = {
    "CSV with texts over several lines": ("a.csv", b'text,label\n"one\n\n,",a\n\ntwo,b\n"thr""ee",a\r\nfour,b\n'),
    "CSV with a mark, as Excel says it": ("a.csv", "\ufeffsep=;\ntext;label\neins;a\nzwei;b\ndrei;a\n".encode()),
    "CSV without a line of names": ("a.csv", b"one,a\ntwo,b\nthree,a\n"),
    "TSV": ("a.tsv", b'text\tlabel\n"one"\ta\n"tw"o\tb\n\nthree\ta\n'),
    "TSV as pandas writes it": ("a.tsv", b'text\tlabel\n"o\tne\nand more"\ta\ntwo\tb\n'),
    "JSON lines": (
        "a.jsonl",
        '{"text": "é", "label": "a"}\n\n{"text": "b", "label": "b"}\n{"text": "c", "label": "a"}'.encode(),
    ),
    "JSON lines, packed": (
        "a.jsonl.gz",
        gzip.compress(b'{"text": "a", "label": "a"}\n' * 3 + b'{"text": "b", "label": "b"}\n'),
    ),
    "UTF-16": ("a.csv", "text,label\nöne,a\n\ntwo,b\nthree,a\n".encode("utf-16")),
    "Chinese": (
        "a.csv",
        "text,label\n这个东西很好的人都是我们在这里,好\n我们的人都不在这里了是这个,差\n".encode("gb18030"),
    ),
    "lone CRs": ("a.csv", b"text,label\rone,a\rtwo,b\rthree,a\r"),
    "columns with names": ("a.conll", b"word\tner\nin\tO\nRome\tB-LOC\n\n-DOCSTART-\tO\n\nAnna\tB-PER\nsaw\tO\n\nit\tO\n"),
    "columns without": ("a.conll", b"# id 1\nin O\nRome B-LOC\n\n\n# id 2\nAnna B-PER\n\nit O"),
    "slashes": ("a.txt", "江/nr 泽民/nr 主席/n\n\n[中央/n 电台/n]nt\n在/p 北京/ns\n".encode()),
    "numbers": ("train.txt", b"one\t0\n\ntwo\t1\nthree\t0\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_on_from_any_row(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form]
    (tmp_path / name).write_bytes(content)
    if form == "numbers":
        (tmp_path / "class.txt").write_text("bad\ngood\n")
    is_tagged = form in ("columns with names", "columns without", "slashes")
    source = (locate_tagged if is_tagged else locate)(str(tmp_path / name))
    columns = ["column 1", "column 2"] if "without a line" in form else None
    (file,) = source.files
    rows = list(read_rows(source, columns))
    assert len(rows) > 1
    bytes_before = [0]
    for raw in raw_lines(file.path):
        bytes_before.append(bytes_before[-1] + len(raw))
    for number, row in enumerate(rows):
        begin = Begin(row.line, bytes_before[row.line - 1])
        assert list(read_rows(replace(source, files=(replace(file, begin=begin),)), columns)) == rows[number:]


def test_of_a_head_only_the_first_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "a text,1\n" * (HEAD_ROWS + 5))
    (tmp_path / "b.csv").write_text("text,label\n" + f"{'x' * (9 << 20)},1\n" * 5)
    for name, count in (("a.csv", HEAD_ROWS), ("b.csv", 4)):
        source = locate(str(tmp_path / name))
        assert sum(1 for _ in read_rows(head_of(source))) == count
        assert sum(1 for _ in read_rows(source)) > count


def test_a_pipe_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"can be read once only, .* write it to a file"):
        locate(str(tmp_path / "rows.jsonl"))


REFUSED: dict[str, tuple[list[str], str]] = {
    "how long": (["--set", "task.stream=true", "--eval", "other.csv"], "--set training.max_steps="),
    "what evaluates": (["--set", "task.stream=true", "--set", "training.max_steps=9"], "--set task.eval=FILE"),
    "a buffer of no stream": (["--set", "task.shuffle_buffer=9"], "task.stream is not set"),
    "an array": (
        ["--set", "task.stream=true", "--set", "training.max_steps=9", "--eval", "other.csv", "--train", "rows.json"],
        "jq -c '.[]?' ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_start_says_what_a_stream_needs(tmp_path: Path, what: str) -> None:
    arguments, said = REFUSED[what]
    tiny_settings(tmp_path)
    (tmp_path / "other.csv").write_text((tmp_path / "reviews.csv").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "rows.json").write_text('[{"text": "a", "label": "b"}]')
    tried = memsup("start", "--model", "tiny-bert", "--train", "reviews.csv", *arguments, "--dry-run", cwd=tmp_path)
    assert tried.returncode == 2
    assert said in " ".join(tried.stderr.split())
