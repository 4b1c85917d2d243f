"""Files that are no files, and numbers and texts beyond the normal: `start` says in a sentence what is wrong, at once."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.cli_process import a_run, end_supervisors, memsup

MIB = 1 << 20
ROWS = "text,label\n" + "".join(f"这个东西很好用 number {i},{'good' if i % 3 else 'bad'}\n" for i in range(60))
AT_ONCE_CPU_S = 10
"""Far more than an answer takes, and far less than what is to be computed here. What waits for ever is ended by `memsup`."""


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with a `memsup.toml`, data, and a model that is only a config."""
    folder = tmp_path / "job"
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "train.csv").write_text(ROWS, encoding="utf-8")
    (folder / "memsup.toml").write_text('[task]\nmodel = "model"\ntrain = "train.csv"\n[training]\ndevice = "cpu"\n')
    return folder


Put = Callable[[Path], object]


def sparse(file: Path) -> None:
    with file.open("wb") as content:
        content.truncate(1 << 40)


def a_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's name has 107 bytes at most
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, Put] = {
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "a folder": Path.mkdir,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "bytes": sparse,
}


def of_header(length: int) -> bytes:
    return struct.pack("<Q", length) + b"{"


def a_tensor(shape: list[int]) -> Put:
    header = json.dumps({"bert.embeddings.word_embeddings.weight": {"dtype": "F32", "shape": shape}}).encode()
    return lambda file: file.write_bytes(struct.pack("<Q", len(header)) + header)


def enormous_header(file: Path) -> None:
    with file.open("wb") as content:
        content.write(of_header(86 * MIB))
        content.truncate(200 * MIB)


def unpacks_to_more(file: Path) -> None:
    """300 times the same text of 16 MiB, which the file has once, packed: 1 kB."""
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300), ["a" * (16 * MIB)])
    table = pyarrow.table({"text": texts, "label": ["x", "y"] * 150})
    parquet.write_table(table, file, compression="zstd", store_schema=False)


def toml(text: str) -> Put:
    return lambda file: file.write_text(text)


def config(**numbers: object) -> Put:
    names = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return lambda file: file.write_text(json.dumps({"model_type": "bert"} | names | numbers))


def no_file(place: str, *kinds: str) -> dict[str, tuple[dict[str, Put], list[str], list[str]]]:
    return {f"{place}: {kind}": ({place: NO_FILES[kind]}, [], [place.rpartition("/")[2], kind]) for kind in kinds}


BEYOND: dict[str, tuple[dict[str, Put], list[str], list[str]]] = {
    **no_file("model/model.safetensors", "a pipe", "a device", "a folder"),
    **no_file("model/config.json", "a device", "bytes"),
    **no_file("model/vocab.txt", "a pipe", "a socket", "bytes"),
    **no_file("memsup.toml", "a pipe", "a folder", "bytes"),
    "data in a pipe": ({"train.csv": os.mkfifo}, [], ["train.csv", "neither a file nor a folder"]),
    "a label's texts in a pipe": (
        {"texts": Path.mkdir, "texts/a.txt": lambda file: file.write_text("x\n"), "texts/b.txt": os.mkfifo},
        ["--set", "task.train=texts"],
        ["b.txt", "a pipe"],
    ),
    "a header of 86 MiB": ({"model/model.safetensors": enormous_header}, [], ["model.safetensors", "header", "90,177,536"]),
    "a link to nowhere": ({"memsup.toml": lambda file: file.symlink_to("nowhere")}, [], ["memsup.toml", "leads nowhere"]),
    "a link to itself": ({"memsup.toml": lambda file: file.symlink_to(file.name)}, [], ["memsup.toml", "symbolic links"]),
    "a longer name in a path": ({}, ["--set", f"checkpoint.folder=/tmp/{'x' * 300}"], ["checkpoint.folder", "255 bytes"]),
    "a file of 1 kB that unpacks to 5 GB": (
        {"train.parquet": unpacks_to_more},
        ["--set", "task.train=train.parquet"],
        ["768 MiB"],
    ),
    "deep TOML": ({"memsup.toml": toml("x=" + "[" * 900 + "]" * 900)}, [], ["memsup.toml", "nested"]),
    "a number of 5,000 digits in TOML": ({"memsup.toml": toml("x=" + "9" * 5000)}, [], ["memsup.toml", "digits"]),
    "a number of 5,000 hexadecimal digits": (
        {"memsup.toml": toml("[training]\nseed=0x" + "f" * 5000)},
        [],
        ["training.seed", "without end"],
    ),
    "a long memsup.toml": ({"memsup.toml": toml("#" * MIB)}, [], ["memsup.toml", "1,048,576 bytes"]),
    "a long value": ({}, ["--set", f"training.seed={'9' * 5000}"], ["training.seed", "…"]),
    "a limit of 400 digits": ({}, ["--set", f"limits.ram={'9' * 400}"], ["limits.ram", "600MiB"]),
    "a limit beyond all memory": ({}, ["--set", "limits.ram=99999999TB"], ["limits.ram"]),
    "a rhythm of ages": ({}, ["--set", "checkpoint.every=9999999d"], ["checkpoint.every"]),
    "infinite clipping": ({}, ["--set", "training.clip_norm=inf"], ["training.clip_norm", "off for no clipping"]),
    "a seed beyond torch's": ({}, ["--set", "training.seed=999999999999999999999999"], ["training.seed"]),
    "threads beyond all machines": ({}, ["--set", "training.threads=3000"], ["training.threads", "1,024"]),
    "no number": ({}, ["--set", "training.learning_rate=nan"], ["training.learning_rate"]),
    "no device": ({}, ["--set", "training.device=tpu"], ["training.device", "cuda:N"]),
    "a device for a folder": ({}, ["--set", "checkpoint.folder=/dev/null"], ["checkpoint.folder", "no folder"]),
    "a long name": ({}, ["--set", f"task.model={'x' * 5000}"], ["task.model", "4,095"]),
    "a longer name than files have": ({}, ["--set", f"task.model={'x' * 300}"], ["no model folder"]),
    "a zero byte in a path": (
        {"memsup.toml": toml('[checkpoint]\nfolder="a\\u0000b"')},
        [],
        ["checkpoint.folder", "zero byte"],
    ),
    "a model of 10^300": ({"model/config.json": config(hidden_size=10**300)}, [], ["limits.ram"]),
    "a model of 10^30 layers": ({"model/config.json": config(num_hidden_layers=10**30)}, [], ["limits.ram"]),
    "a tensor of 2^384 numbers": (
        {
            "model/config.json": config(),
            "model/tokenizer.json": toml("{}"),
            "model/model.safetensors": a_tensor([1 << 48] * 8),
        },
        [],
        ["vocab_size"],
    ),
    "deep JSON": ({"model/config.json": toml("[" * 5000)}, [], ["config.json", "nested"]),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_beyond_the_normal_gets_a_sentence_at_once(name: str, job: Path, tmp_path: Path) -> None:
    """Exit 2, the place, no traceback; nothing comes to be. A pipe made it wait for ever, a header cost 45 s and 1.5 GiB."""
    put, arguments, words = BEYOND[name]
    for file, make in put.items():
        (job / file).unlink(missing_ok=True)
        make(job / file)
    done = memsup("start", "--dry-run", *arguments, cwd=job)
    assert done.returncode == 2, done
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 1000
    assert done.cpu_s < AT_ONCE_CPU_S
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "bytes"])
def test_state_that_is_no_file_stops_nobody_from_looking(kind: str, tmp_path: Path) -> None:
    """What lies in the run's folder is read by every command, and each of them answers."""
    paths = a_run()
    for name in ("status.json", "ledger.jsonl", "history.jsonl", "worker.log", "supervisor.log", "blackbox", "plan.jsonl"):
        NO_FILES[kind](paths.state / name)
    for command, code in (("status", 3), ("logs", 0), ("report", 0), ("checkpoint --list", 0), ("start --dry-run -- true", 2)):
        done = memsup(*command.split(), cwd=tmp_path)
        assert done.cpu_s < AT_ONCE_CPU_S
        assert done.returncode in {code, 1}, (command, done)
        assert "Traceback" not in done.stderr
    paths.record.unlink()
    NO_FILES[kind](paths.record)
    for command in ("status", "logs", "report", "stop", "start --dry-run -- true"):
        done = memsup(*command.split(), cwd=tmp_path)
        assert done.cpu_s < AT_ONCE_CPU_S
        assert done.returncode in {2, 3, 4}, (command, done)
        assert "Traceback" not in done.stderr


def test_a_folder_where_a_file_has_to_go_is_said(tmp_path: Path) -> None:
    """As on a disk that may only be read: what `start` cannot put in its place, it names."""
    paths = a_run(command=["true"])
    paths.claim.mkdir()
    done = memsup("start", cwd=tmp_path)
    assert done.returncode == 2, done
    assert "claim.json cannot be removed: Is a directory" in done.stderr
    paths.checkpoints.write_text("")
    done = memsup("checkpoint", "--list", cwd=tmp_path)
    assert done.returncode == 1, done
    assert "checkpoints cannot be read: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("own", ["a file", "a link to itself"])
@pytest.mark.parametrize("of_job", ["a link to nowhere", "a link to itself", "nothing"])
def test_links_in_the_place_of_settings_are_said(own: str, of_job: str, tmp_path: Path) -> None:
    """Two files are compared, since a person may stand in the folder of their own; a link may be no file at all."""
    links: dict[str, Put] = {
        "a file": lambda file: file.write_text(""),
        "a link to nowhere": lambda file: file.symlink_to("nowhere"),
        "a link to itself": lambda file: file.symlink_to(file.name),
        "nothing": lambda _: None,
    }
    for folder, kind in (("own/memsup", own), ("job", of_job)):
        (tmp_path / folder).mkdir(parents=True)
        links[kind](tmp_path / folder / "memsup.toml")
    done = memsup("start", "--dry-run", "--", "true", cwd=tmp_path / "job", XDG_CONFIG_HOME=str(tmp_path / "own"))
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if (own, of_job) == ("a file", "nothing") else 2), done


@pytest.mark.parametrize("name", ["../x", "", "a/b", "x" * 65, "a\nb"])
def test_what_is_no_name_of_a_run_is_none_for_any_command(name: str, tmp_path: Path) -> None:
    """`service status` told to install what `service install` refuses."""
    for command in ("service status", "service remove", "notify --test", "status"):
        done = memsup(*command.split(), "--run", name, cwd=tmp_path)
        assert done.returncode == 2, (command, done)
        assert "cannot be a run's name" in done.stderr
