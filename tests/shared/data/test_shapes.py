"""Data in the shapes in which people have them: read as they are meant, or refused with what makes them readable."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kit.cli_process import memsup

from memsup.shared.data import layout as layout_module
from memsup.shared.data import packing as packing_module
from memsup.shared.data.check import check_data, check_task
from memsup.shared.data.columns import Columns, find_columns
from memsup.shared.data.encodings import recognise
from memsup.shared.data.errors import InputError
from memsup.shared.data.examples import Example, read_examples
from memsup.shared.data.packing import Packing
from memsup.shared.data.sources import locate
from memsup.shared.settings import Task

ROWS = [("the room was good", "pos"), ("房间很好,服务也好", "pos"), ("the room was bad", "neg"), ("这家酒店太差了", "neg")]
CSV = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS)


def lay(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def examples(value: object, **columns: str) -> list[Example]:
    source = locate([str(each) for each in value] if isinstance(value, list) else str(value))
    return list(read_examples(source, find_columns(source, **columns)))


def pairs(value: object, **columns: str) -> list[tuple[str, str]]:
    return [(e.text, e.label) for e in examples(value, **columns)]


def refusal(value: object, **columns: str) -> str:
    with pytest.raises(InputError) as caught:
        check_data([str(each) for each in value] if isinstance(value, list) else str(value), budget_s=60, **columns)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def notes(value: object) -> str:
    return " ".join(check_data(str(value), budget_s=60).notes)


# --------------------------------------------------------------------------------------------------------------------
# Packed, and in other encodings


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_file_is_read_as_what_is_in_it(tmp_path: Path, ending: str) -> None:
    pack = PACKED[ending]
    lay(tmp_path, {f"a.csv.{ending}": pack(CSV.encode()), f"b.jsonl.{ending}": pack(b'{"text": "a", "label": 1}\n' * 9)})
    assert pairs(tmp_path / f"a.csv.{ending}") == ROWS
    assert len(pairs(tmp_path / f"b.jsonl.{ending}")) == 9
    lay(
        tmp_path,
        {"really packed.csv": pack(CSV.encode("utf-16")), f"twice.csv.{ending}": pack(CSV.encode()) + pack(b'"x",y\n')},
    )
    assert pairs(tmp_path / "really packed.csv") == ROWS, "the first bytes count, not the name"
    assert pairs(tmp_path / f"twice.csv.{ending}") == [*ROWS, ("x", "y")], "packed in two pieces, put together"
    whole = pack(b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000)))
    lay(tmp_path, {f"cut.csv.{ending}": whole[: len(whole) // 2]})
    assert "cannot be unpacked" in refusal(tmp_path / f"cut.csv.{ending}")


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize(
    ("filling", "says"),
    [
        (b"\n" * (2 << 20), "blank lines up to line"),
        (b"x" * (17 << 20), "line 2 is longer than 16 MiB"),
        ((b'"' + b"x" * 999 + b'",pos\n') * (8 << 10), "unpacks to more than 100 times its size"),
    ],
    ids=["blank", "line", "rows"],
)
def test_what_unpacks_without_end_is_refused_in_bounded_bytes(
    tmp_path: Path, ending: str, filling: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines, one line, and rows, of which fewer are enough here."""
    if says.startswith("unpacks"):
        monkeypatch.setattr(packing_module, "MOST_UNPACKED_BYTES", 4 << 20)
    file = lay(tmp_path, {f"bomb.csv.{ending}": PACKED[ending](b"text,label\n" + filling)}) / f"bomb.csv.{ending}"
    assert file.stat().st_size < len(filling) / 100
    with pytest.raises(InputError, match=says):
        for _ in read_examples(locate(str(file)), Columns("text", "label")):
            pass


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "gb18030", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_encoding_that_is_certain_is_read_and_said(tmp_path: Path, encoding: str, end: str) -> None:
    """Whatever the line ends are, a lone CR of an old Macintosh included."""
    content = CSV.replace("\n", end).encode(encoding)
    file = lay(tmp_path, {"a.csv": content}) / "a.csv"
    assert pairs(file) == ROWS
    assert [e.line for e in examples(file)] == [2, 3, 4, 5]
    said = {"utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-8-sig": ""}.get(encoding, encoding.upper())
    assert (f"is read as {said}." if said else "") in notes(file)
    lines = "".join(json.dumps({"text": t, "label": c}, ensure_ascii=False) + end for t, c in ROWS)
    assert pairs(lay(tmp_path, {"a.jsonl": lines.encode(encoding)}) / "a.jsonl") == ROWS


FOREIGN = [
    ("euc_kr", "이 호텔은 정말 깨끗하고 직원들도 친절했습니다. 다음에 또 오고 싶어요."),
    ("euc_jp", "このホテルはとても清潔で、スタッフも親切でした。また来たいと思います。"),
    ("shift_jis", "このホテルはとても清潔で、スタッフも親切でした。また来たいと思います。"),
    ("big5", "這家酒店非常乾淨,服務人員也很親切,下次還會再來。"),
    ("cp1251", "Отель очень чистый, персонал вежливый. Мы обязательно вернёмся ещё раз."),
    ("koi8_r", "Отель очень чистый, персонал вежливый. Мы обязательно вернёмся ещё раз."),
    ("latin-1", "Très bon hôtel, où l'été à la plage était agréable; ça m'a plu."),
    ("cp1253", "Το ξενοδοχείο ήταν πολύ καθαρό και το προσωπικό ευγενικό."),
    ("cp1255", "המלון היה נקי מאוד והצוות אדיב"),
    ("tis_620", "โรงแรมสะอาดมากและพนักงานเป็นมิตร"),
]


@pytest.mark.parametrize(("encoding", "text"), FOREIGN)
def test_other_encodings_are_not_taken_for_chinese(tmp_path: Path, encoding: str, text: str) -> None:
    raw = ("text,label\n" + f'"{text}",1\n' * 20).encode(encoding)
    assert recognise(raw, is_whole=True).codec == "utf-8"
    assert "is not UTF-8" in refusal(lay(tmp_path, {"a.csv": raw}) / "a.csv")


@given(st.text(min_size=1, max_size=200))
def test_utf8_is_never_taken_for_anything_else(text: str) -> None:
    raw = text.replace("\0", "").encode("utf-8", "replace")
    assert recognise(raw, is_whole=True).codec in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    if not raw.startswith((b"\xff", b"\xfe")):
        assert recognise(raw, is_whole=True).codec == "utf-8"


# --------------------------------------------------------------------------------------------------------------------
# Tables as programs write them


@pytest.mark.parametrize("sign", [";", "|", "\t", ","])
def test_excels_own_line_says_what_is_between_the_columns(tmp_path: Path, sign: str) -> None:
    content = f"sep={sign}\r\ntext{sign}label\r\n" + "".join(f'"{t}"{sign}{c}\r\n' for t, c in ROWS)
    file = lay(tmp_path, {"excel.csv": content}) / "excel.csv"
    assert pairs(file) == ROWS
    assert [e.line for e in examples(file)] == [3, 4, 5, 6]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("sign", ["|", ";", "\t", ","])
def test_what_is_between_the_columns_is_seen(tmp_path: Path, name: str, sign: str) -> None:
    content = f"text{sign}label\n" + "".join(f'"{t}"{sign}{c}\n' for t, c in ROWS)
    assert pairs(lay(tmp_path, {name: content}) / name) == ROWS
    assert "one column only" in refusal(lay(tmp_path, {"one.csv": content.replace(sign, "~")}) / "one.csv") or sign == ","


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_a_table_without_names_is_read_where_the_columns_are_named_by_place(tmp_path: Path, name: str) -> None:
    sign = "," if name == "a.csv" else "\t"
    file = lay(tmp_path, {name: "".join(f'"{t}"{sign}{c}\n' for t, c in ROWS)}) / name
    assert pairs(file, text="column 1", label="column 2") == ROWS
    assert [e.line for e in examples(file, text="column 1", label="column 2")] == [1, 2, 3, 4]
    assert "has no column 'column 3'" in refusal(file, text="column 1", label="column 3")


def test_names_put_together_with_their_rows_name_the_line_that_repeats_them(tmp_path: Path) -> None:
    file = lay(tmp_path, {"a.csv": CSV + CSV}) / "a.csv"
    assert "a.csv, line 6 repeats the first line" in refusal(file)
    assert f"sed -i 6d {file}" in refusal(file)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_without_anything_are_none(tmp_path: Path, name: str) -> None:
    """A spreadsheet exports as many of them as it has ever had."""
    sign = "\t" if name == "a.tsv" else ";"
    rows = "".join(f"{text}{sign}{label}\n" for text, label in ROWS)
    assert pairs(lay(tmp_path, {name: f"text{sign}label\n{rows}" + f"{sign}\n {sign}\n" * 9}) / name) == ROWS


@pytest.mark.parametrize("dumped", [{"indent": None}, {"indent": 1}, {"indent": None, "separators": (",", ":")}])
@pytest.mark.parametrize("as_array", [True, False])
def test_json_in_an_array_or_over_several_lines_is_rows(tmp_path: Path, dumped: dict[str, Any], as_array: bool) -> None:
    objects = [{"text": t, "label": c, "more": {"deep": [1, "]"]}} for t, c in ROWS] * 400
    content = json.dumps(objects, **dumped) if as_array else "\n".join(json.dumps(each, **dumped) for each in objects)
    file = lay(tmp_path, {"a.json": content}) / "a.json"
    assert pairs(file) == ROWS * 400
    if dumped["indent"]:
        height = round(content.count("\n") / len(objects))
        first = 1 + as_array
        assert [e.line for e in examples(file)[:3]] == [first, first + height, first + 2 * height]


def test_an_array_of_any_size_is_read_in_little_memory(tmp_path: Path) -> None:
    """60 MB on one line, in a process with 24 MiB to spare."""
    file = tmp_path / "large.json"
    with file.open("w") as out:
        out.write("[")
        for number in range(30_000):
            out.write(("," if number else "") + json.dumps({"text": f"{number} " + "word " * 400, "label": number % 2}))
        out.write("]")
    probe = (
        "import resource, sys\n"
        "from memsup.shared.data.examples import read_examples\n"
        "from memsup.shared.data.columns import Columns\n"
        "from memsup.shared.data.sources import locate\n"
        "from pathlib import Path\n"
        "held = int(Path('/proc/self/statm').read_text().split()[5]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (held + (24 << 20),) * 2)\n"
        "print(sum(1 for _ in read_examples(locate(sys.argv[1]), Columns('text', 'label'))))\n"
        "assert 'pyarrow' not in sys.modules"
    )
    child = subprocess.run([sys.executable, "-c", probe, file], capture_output=True, check=False)
    assert child.stdout.split() == [b"30000"], child.stderr.decode()[-2000:]


def saved(folder: Path, rows: list[tuple[str, str]], *, old: bool = False) -> Path:
    """A folder as `Dataset.save_to_disk` writes it, in two shards."""
    import pyarrow

    folder.mkdir(parents=True)
    names = ["neg", "pos"]
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.int64())])
    if not old:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    files = []
    for number, part in enumerate((rows[::2], rows[1::2])):
        files.append({"filename": f"data-{number:05}-of-00002.arrow"})
        with pyarrow.ipc.new_stream(str(folder / files[-1]["filename"]), schema) as out:
            table = {"text": [t for t, _ in part], "label": [names.index(c) for _, c in part]}
            out.write_table(pyarrow.table(table, schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x"}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_that_datasets_saved_is_read_with_the_names_of_its_labels(tmp_path: Path, old: bool) -> None:
    folder = saved(tmp_path / "saved", ROWS, old=old)
    assert sorted(pairs(folder)) == sorted(ROWS)
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "lacks its file data-00001-of-00002.arrow" in refusal(folder)


@pytest.mark.slow
def test_what_the_library_itself_saves_is_what_these_tests_take_it_for(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [c for _, c in ROWS]}, features=features)
    splits = datasets.DatasetDict(train=data, test=data.select([0, 2]))
    splits.save_to_disk(str(tmp_path / "dict"))
    data.select([3, 1, 0, 2]).save_to_disk(str(tmp_path / "picked"))
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert pairs(tmp_path / "dict") == ROWS
    assert pairs(tmp_path / "a.parquet") == ROWS
    assert pairs(tmp_path / "picked") == [ROWS[place] for place in (3, 1, 0, 2)]
    beside = locate(str(tmp_path / "dict")).evaluation
    assert beside is not None
    assert [e.label for e in read_examples(beside, find_columns(beside))] == ["pos", "neg"]


def test_the_parts_of_a_dataset_dict_are_used(tmp_path: Path) -> None:
    model = lay(tmp_path / "model", {"config.json": '{"model_type": "bert"}'})
    folder = tmp_path / "dict"
    for part in ("train", "validation", "test"):
        saved(folder / part, ROWS[: 3 if part == "validation" else 4])
    lay(folder, {"dataset_dict.json": '{"splits": ["train", "validation", "test"]}'})
    found = check_task(Task(model=str(model), train=str(folder)), budget_s=60)
    assert found.evaluation is not None
    assert (found.train.rows, found.evaluation.rows) == (4, 3)
    assert "evaluates, as it lies beside the training data" in " ".join(found.evaluation.notes)
    assert locate(str(folder), evaluates=True).files[0].path.parent.name == "validation"
    (folder / "dataset_dict.json").write_text('{"splits": ["validation", "test"]}')
    assert "without a part for training" in refusal(folder)
    (folder / "dataset_dict.json").write_text('{"splits": ["validation\\n", "test"]}')
    assert "\n" not in refusal(folder)
    (folder / "dataset_dict.json").write_text('{"splits": ["../../etc", 7, "train"]}')
    assert len(pairs(folder)) == 4


def test_class_labels_decimals_and_bytes_in_parquet_are_what_they_stand_for(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def written(name: str, labels: Any, metadata: dict[str, str] | None = None) -> Path:
        table = pyarrow.table({"text": [t.encode() for t, _ in ROWS], "label": labels})
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
        return tmp_path / name

    said = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    assert pairs(written("class.parquet", [1, 1, 0, 0], {"huggingface": json.dumps(said)})) == ROWS
    missing = written("missing.parquet", [1, 1, 0, -1], {"huggingface": json.dumps(said)})
    assert "missing.parquet, row 4 has no label" in refusal(missing)
    decimals = pyarrow.array([Decimal(0), Decimal(1), Decimal(0), Decimal(1)], pyarrow.decimal128(5, 0))
    assert [label for _, label in pairs(written("sql.parquet", decimals))] == ["0", "1", "0", "1"]
    assert pairs(written("odd.parquet", [1, 1, 0, 0], {"huggingface": "["}))[0] == (ROWS[0][0], "1")


# --------------------------------------------------------------------------------------------------------------------
# Several files, and folders


def test_a_copy_of_a_file_is_no_second_file(tmp_path: Path) -> None:
    """As browsers save what is there already; empty shards are alike as well, and mean nothing."""
    rows = "".join(f"the room number {n} was fine,{'ab'[n % 2]}\n" for n in range(400))
    lay(tmp_path, {"set/train.csv": f"text,label\n{rows}", "set/train (1).csv": f"text,label\n{rows}"})
    with pytest.raises(InputError, match=r"has the same content as .*each of its rows would count twice"):
        locate(str(tmp_path / "set"))
    lay(tmp_path, {"set/train (1).csv": "text,label\n", "set/train (2).csv": "text,label\n"})
    assert len(locate(str(tmp_path / "set")).files) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"data": [{"text": "a b", "label": "x"}] * 9}, "jq -c '.[\"data\"][]'"),
        ({"train": [{"text": "a b", "label": "x"}], "test": []}, "jq -c '.[\"train\"][]'"),
        ({"text": {str(n): f"a {n}" for n in range(9)}, "label": {str(n): "x" for n in range(9)}}, "pandas.read_json"),
        ({"text": [f"a {n}" for n in range(9)], "label": ["x"] * 9}, "column by column"),
    ],
)
def test_a_table_inside_of_one_json_object_is_named_with_what_makes_it_rows(
    tmp_path: Path, content: dict[str, Any], says: str
) -> None:
    lay(tmp_path, {"a.json": json.dumps(content)})
    with pytest.raises(InputError, match=re.escape(says)):
        find_columns(locate(str(tmp_path / "a.json")))


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {"t1.csv": CSV, "t2.csv": "label;text\npos;fine\n", "t3.jsonl.gz": gzip.compress(b'{"text":"x","label":"neg"}')},
    )
    every = [*ROWS, ("fine", "pos")]
    assert pairs([tmp_path / "t1.csv", tmp_path / "t2.csv"]) == every
    assert pairs(tmp_path / "t?.csv") == every
    assert pairs([tmp_path / "t1.csv", tmp_path / "t3.jsonl.gz"])[-1] == ("x", "neg")
    last = examples(tmp_path / "t?.csv")[-1]
    assert (last.file, last.line) == (tmp_path / "t2.csv", 2)
    assert "Nothing matches" in refusal(tmp_path / "u*.csv")
    assert "is named twice" in refusal([tmp_path / "t1.csv", tmp_path / "t1.csv"])
    lay(tmp_path, {"t4.csv": "review,stars\nfine,4\n"})
    assert "t4.csv has other columns than" in refusal([tmp_path / "t1.csv", tmp_path / "t4.csv"])
    lay(tmp_path, {"a[1].csv": CSV, "x/pos.txt": "good\n", "x/neg.txt": "bad\n"})
    assert pairs(tmp_path / "a[1].csv") == ROWS, "a file of that very name is no pattern"
    assert pairs(tmp_path / "x/*.txt") == [("bad", "neg"), ("good", "pos")]


SHARDS = {"train-00000-of-00002.csv": CSV, "train-00001-of-00002.csv": CSV}


@pytest.mark.parametrize(
    ("files", "rows", "evaluated", "said"),
    [
        (SHARDS, 8, None, ""),
        ({**SHARDS, "test-00000-of-00001.csv": CSV, "README.md": "x"}, 8, 4, ""),
        ({"data/" + name: content for name, content in SHARDS.items()} | {"README.md": "x"}, 8, None, ""),
        ({"part-00000-ab.csv": CSV, "part-00001-ab.csv": CSV, "_SUCCESS": "", ".part.crc": "x"}, 8, None, ""),
        (
            {"train.csv": CSV, "dev.csv": CSV, "test.csv": CSV, "sample_submission.csv": "id,label\n"},
            4,
            4,
            "sample_submission.csv",
        ),
        ({"train/a.csv": CSV, "test/a.csv": CSV}, 4, 4, ""),
        ({"reviews_train.tsv": CSV.replace(",", "\t"), "reviews_test.tsv": CSV.replace(",", "\t")}, 4, 4, ""),
        ({"test_reviews.csv": CSV}, 4, None, ""),
        ({"pos.txt": "good\nfine\n", "neg.txt": "bad\n", "README.txt": "a\nb\n", "LICENSE.txt": "x"}, 3, None, "README.txt"),
        (
            {"pos/0_7.txt": "good\nindeed", "pos/1_9.txt": "fine", "neg/0_1.txt": "bad", "urls_pos.txt": "http://x"},
            3,
            None,
            "urls_pos",
        ),
        ({"pos/0_7": "good", "pos/1_9": "fine", "neg/0_1": "bad"}, 3, None, ""),
        ({"pos/a.txt": "x", "pos/b.txt": "y", "neg/a.txt": "z", "unsup/a.txt": "q"}, 3, None, "unsup"),
        (
            {f"{p}/{c}/{n}.txt": "x" for p in ("train", "test") for c in ("pos", "neg") for n in (1, 2)} | {"imdb.vocab": "x"},
            4,
            4,
            "",
        ),
        ({"pos/all.txt": "good\nfine\n", "neg/all.txt": "bad\n"}, 3, None, "one text a line"),
        ({"class.txt": "x\ny\n", "train.txt": "a\t0\nb\t1\n", "dev.txt": "c\t1\n", "test.txt": "d\t0\n"}, 2, 1, ""),
        ({"classes.txt": "x\ny\n", "train.txt": "0\ta\n1\tb\n", "vocab.txt": "a\n"}, 2, None, "vocab.txt"),
        ({"reviews/pos.txt": "good\n", "reviews/neg.txt": "bad\n"}, 2, None, ""),
        (
            {
                "c.train.txt": "text\tlabel\nx\tb\n",
                "c.val.txt": "text\tlabel\nx\tc\n",
                "c.vocab.txt": "a\n",
                "class.txt": "y\n",
            },
            1,
            1,
            "c.vocab.txt",
        ),
        ({f"20news-{p}/{c}/{n}": "x" for p in ("train", "test") for c in ("a.b", "c.d") for n in (1, 2)}, 4, 4, ""),
    ],
    ids=lambda value: ",".join(value)[:50] if isinstance(value, dict) else None,
)
def test_a_folder_is_read_as_people_mean_it(
    tmp_path: Path, files: dict[str, str | bytes], rows: int, evaluated: int | None, said: str
) -> None:
    source = locate(str(lay(tmp_path / "set", files)))
    columns = find_columns(source)
    assert len(list(read_examples(source, columns))) == rows
    beside = source.evaluation
    assert (None if beside is None else len(list(read_examples(beside, columns)))) == evaluated
    assert said in " ".join(source.notes)
    assert bool(said) == bool(source.notes)
    if beside is not None:
        alone = locate(source.alone.split(","))
        assert (len(list(read_examples(alone, columns))), alone.evaluation) == (rows, None)


def test_parts_in_a_folder_of_their_own_are_named_without_what_evaluates(tmp_path: Path) -> None:
    """As a clone of a hub's repository has them; the folder alone would be the same once more."""
    source = locate(str(lay(tmp_path, {"README.md": "x", "data/train.csv": CSV, "data/test.csv": CSV})))
    assert source.evaluation is not None
    assert source.alone == str(tmp_path / "data" / "train.csv")


def test_numbers_have_the_names_that_class_txt_says(tmp_path: Path) -> None:
    folder = lay(tmp_path, {"class.txt": "finance\nsports\n", "train.txt": "好\t球\t1\n钱\t0\n"})
    assert pairs(folder) == pairs(folder / "train.txt") == [("好\t球", "sports"), ("钱", "finance")]
    lay(tmp_path, {"train.txt": "a\t0\nb\t2\n"})
    assert "train.txt, line 2: '2' is none of the numbers 0 to 1 that have a name" in refusal(folder)


def test_each_text_of_a_folder_is_a_row_of_its_own_file(tmp_path: Path) -> None:
    folder = lay(
        tmp_path, {"pos/2.txt": "good\nindeed\n", "pos/1.txt": "\n", "neg/1.txt.gz": gzip.compress(b"bad"), "neg/2.txt": "x"}
    )
    assert [(e.text, e.label, e.file) for e in examples(folder)] == [
        ("bad", "neg", folder / "neg/1.txt.gz"),
        ("x", "neg", folder / "neg/2.txt"),
        ("", "pos", folder / "pos/1.txt"),
        ("good\nindeed", "pos", folder / "pos/2.txt"),
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.csv": CSV, "b.jsonl": "{}"}, "a.csv and b.jsonl are of different kinds"),
        ({"train.txt": "good\n", "test.txt": "bad\n"}, r"are parts and not labels \(test.txt, train.txt\)"),
        ({"train.txt": "good\n", "bus.txt": "bad\n"}, "are parts and not labels"),
        ({"dev.txt": "a\t1\n", "test.txt": "a\t1\n"}, "are parts and not labels"),
        ({"my_train.txt": "good\n", "my_test.txt": "bad\n"}, "are parts and not labels"),
        ({"pos.txt": "x\n", "neg.txt": "y\n", "old/pos.txt": "z\n"}, "It is not clear where the labels in"),
        ({"dev.csv": CSV, "test.csv": CSV}, "It is not clear what in .* is to be trained on"),
        ({"train-00001-of-00002.csv": CSV}, "lacks train-00000-of-00002; 1 of its 2 shards"),
        ({"a.xlsx": "PK", "b/c/d/e/f.csv": CSV}, r"no other data that is read \(only a.xlsx, b/\)"),
        ({}, r"holds no <label>.txt and no other data that is read \(nothing\)"),
        ({"state.json": "[" * 99_999, "dataset_info.json": "{}"}, "state.json cannot be read"),
        ({"state.json": '{"_data_files": [{"filename": "../x"}]}', "dataset_info.json": "{}"}, r"lacks its file \.\./x"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused(tmp_path: Path, files: dict[str, str | bytes], says: str) -> None:
    text = refusal(lay(tmp_path / "set", files) if files else tmp_path)
    assert re.search(says, text), text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            b"PK\x03\x04" + b"[Content_Types].xml" * 9,
            "is an Excel file and not text. This makes it readable: python -c",
        ),
        ("a b.zip", b"PK\x03\x04\x14", "is a zip archive .*: unzip '.*/a b.zip'"),
        ("a.tar.gz", gzip.compress(b"x" * 257 + b"ustar\0" + bytes(500)), "unknown ending|tar archive"),
        ("a.csv.gz", gzip.compress(b"x" * 257 + b"ustar\0" + bytes(500)), "is a tar archive .*: tar xf"),
        ("a.db", b"SQLite format 3\0", "is a SQLite database .*: sqlite3 -header -csv"),
        ("a.pkl", b"\x80\x04\x95", "is a pickle, which could run a program of somebody else's"),
        ("a.csv", b"PAR1" + bytes(20), "cannot be read as Parquet"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), "is packed, .*: gzip -dk"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.parquet", b"<!DOCTYPE html>\n<html>", "is a web page and not the file itself"),
        ("a.csv", b"\n <HTML>", "is a web page and not the file itself"),
        ("a.txt", b"just texts\nand texts\n", "has no labels: name the folder of all the <label>.txt"),
        ("a.txt", b"a text;joy\nanother;anger\n", r"has ';' once on each line, as a table has: mv .*a.txt .*a.csv"),
        ("a.json", b'{"data": [' + b'{"text": "a", "label": 1},' * 1_000_000, "is longer than 16 MiB|more begins here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # what is packed has the time in it
)
def test_what_is_not_read_is_named_with_what_makes_it_readable(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    text = refusal(lay(tmp_path, {name: content}) / name)
    assert re.search(says, text), text


# --------------------------------------------------------------------------------------------------------------------
# Through the command line


def test_start_says_what_it_made_of_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as the film reviews unpack, in GB18030, named in a file as Notepad writes it."""
    lay(tmp_path / "model", {"config.json": '{"model_type": "bert"}'})
    texts = {
        f"set/{part}/{label}/{number}.txt": f"第{part}{number}次来,这家酒店的房间{word},服务也{word}"
        for part in ("train", "test")
        for label, word in (("pos", "很好"), ("neg", "太差"))
        for number in range(30)
    }
    lay(tmp_path, {name: text.encode("gb18030") for name, text in texts.items()})
    lay(tmp_path, {"set/train/urls_pos.txt": "http://x\n", "set/train/unsup/1.txt": "x", "set/README": "x"})
    (tmp_path / "memsup.toml").write_bytes(b'\xef\xbb\xbf[task]\nmodel = "model"\ntrain = "set"\n')
    monkeypatch.chdir(tmp_path)
    told = memsup("start", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert re.search(r"labels +'neg' 30, 'pos' 30", told.stdout)
    assert "are read as GB18030" in told.stderr
    assert "60 rows" in told.stdout
    assert f"! unsup in {tmp_path}/set/train is not read: its texts have no label." in told.stderr
    assert "urls_pos.txt" in told.stderr
    assert "(test) evaluates, as it lies beside the training data" in told.stderr
    named = ["--set", "task.train=set/train,set/test", "--set", "task.eval=set/test"]
    both = memsup("start", "--dry-run", "--json", "--accept", *named)
    assert both.returncode == 0, both.stderr
    assert both.document["settings"]["task"]["train"] == [f"{tmp_path}/set/train", f"{tmp_path}/set/test"]


def test_files_beside_the_data_that_are_called_like_libraries_are_not_run(tmp_path: Path) -> None:
    """`datasets.py` and `random.py` lie where people work; nor does a variable that says nothing do anything."""
    lay(
        tmp_path,
        {f"{name}.py": "open('run', 'w')\nraise SystemExit(9)\n" for name in ("datasets", "random", "json", "numpy", "csv")},
    )
    rows = "".join(f"the room number {n} was fine,{'ab'[n % 2]}\n" for n in range(40))
    lay(tmp_path, {"model/config.json": '{"model_type": "bert"}', "a.csv": f"text,label\n{rows}"})
    start = ["start", "--dry-run", "--set", "task.model=model", "--set", "task.train=a.csv", "--set", "training.device=cpu"]
    program = Path(sys.executable).with_name("memsup")  # as it is installed; `python -c` would look into the current folder
    environment = os.environ | {"OMP_NUM_THREADS": "abc"}
    told = subprocess.run([program, *start], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------------------
# Made to do harm


def test_circles_of_links_in_a_folder_hold_nobody_up(tmp_path: Path) -> None:
    folder = lay(tmp_path / "set", {"pos/1.txt": "a", "pos/2.txt": "b", "neg/1.txt": "c"})
    (folder / "circle").symlink_to(folder)
    (folder / "pos/up").symlink_to(folder)
    assert len(pairs(folder)) == 3
    only = tmp_path / "only"
    only.mkdir()
    (only / "again").symlink_to(only)
    assert "no other data that is read" in refusal(only)


@pytest.mark.parametrize("place", ["neg/2.txt", "other/1.txt"])
def test_what_is_no_file_is_refused_and_not_left_out_unseen(tmp_path: Path, place: str) -> None:
    """It may be a label's only text."""
    made: dict[str, Callable[[Path], None]] = {
        "a pipe": os.mkfifo,
        "No such file": lambda path: path.symlink_to("nothing"),
        "symbolic links": lambda path: path.symlink_to(path.name),
    }
    for number, (says, make) in enumerate(made.items()):
        folder = lay(tmp_path / str(number), {"pos/1.txt": "a", "pos/2.txt": "b", "neg/1.txt": "c"})
        (folder / place).parent.mkdir(exist_ok=True)
        make(folder / place)
        text = refusal(folder)
        assert place in text
        assert says in text


def test_a_folder_of_a_million_files_is_refused_after_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "MOST_NAMES", 50)
    folder = lay(tmp_path / "set", {f"{label}/{n}.txt": "x" for label in ("a", "b", "c") for n in range(20)})
    assert "are more than 50 files: make one file for each label, such as with cd " in refusal(folder)
    assert f"cd {folder} && mkdir ../LABELS" in refusal(folder)


def test_an_xz_that_wants_gigabytes_for_its_dictionary_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    raw = bytearray(lzma.compress(CSV.encode(), filters=filters))
    place = raw.index(b"\x21\x01\x10")  # the filter, the size of its properties, and 2 ** 20 in its own way
    raw[place + 2] = 40  # 4 GiB
    header_end = 12 + (raw[12] + 1) * 4
    raw[header_end - 4 : header_end] = zlib.crc32(bytes(raw[12 : header_end - 4])).to_bytes(4, "little")
    assert "cannot be unpacked" in refusal(lay(tmp_path, {"a.csv.xz": bytes(raw)}) / "a.csv.xz")


@given(
    st.sampled_from([".csv", ".json", ".txt", ".arrow", ".parquet"]),
    st.sampled_from([*(p.value for p in Packing), b"ARROW1\0\0", b"[{", b"\xff\xfe", b"sep=", b""]),
    st.binary(max_size=200),
)
def test_no_beginning_makes_anything_but_rows_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, magic: bytes, rest: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / f"begins{suffix}"
    file.write_bytes(magic + rest)
    with contextlib.suppress(InputError):
        check_data(str(file), budget_s=60)
