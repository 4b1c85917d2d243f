"""`memsup start`: bad input gets one plain sentence and leaves nothing; good input leaves a supervisor behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, RUN_ID, a_run, control_server, end_supervisors, eventually, memsup
from kit.run_state import ledger, status, until
from kit.terminal import terminal

from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.run_file import read_record
from memsup.shared.settings import Share
from memsup.shared.status import RunState, Status, Wanted, encode_status
from memsup.supervisor.client.contact import is_held

ROWS = "text,label\n" + "".join(f"这个东西很好用 number {i},{'good' if i % 3 else 'bad'}\n" for i in range(60))
WAIT_FOREVER = ["--", "sleep", "1000"]


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
    (folder / "memsup.toml").write_text('[task]\nmodel = "model"\ntrain = "train.csv"\n')
    return folder


def left_behind(tmp_path: Path) -> list[str]:
    return [name for name in ("state", "runtime") if (tmp_path / name).exists()]


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def toml(text: str) -> dict[str, bytes | None]:
    return {"memsup.toml": text.encode()}


def data(content: bytes | None, name: str = "train.csv") -> dict[str, bytes | None]:
    return {name: content}


BAD_INPUT: dict[str, tuple[dict[str, bytes | None], list[str], list[str]]] = {
    "no job at all": (
        toml("") | {"memsup.toml": None},
        [],
        ["no memsup.toml", "memsup start --demo", "--train FILE", "-- python"],
    ),
    "missing data": (data(None), [], ["train.csv"]),
    "empty data": (data(b""), [], ["train.csv", "empty"]),
    "a heading and no rows": (data(b"text,label\n"), [], ["train.csv", "no rows"]),
    "one label only": (data(b"text,label\n" + b"fine,good\n" * 50), [], ["label", "good", "at least two"]),
    "a column that is not there": ({}, ["--set", "task.text=sentence"], ["sentence", "task.text", "text"]),
    "a broken line": (data(ROWS.encode() + b'"never closed,good\n' + b"x,y,z,w\n"), [], ["train.csv", "line"]),
    "undecodable bytes": (data(ROWS.encode() + "坏,bad\n".encode("gb18030")), [], ["UTF-8", "line 62"]),
    "an unknown ending": ({}, ["--set", "task.train=memsup.toml"], [".toml", ".csv"]),
    "an unknown model folder": ({}, ["--set", "task.model=./no/such/model"], ["no/such/model", "config.json"]),
    "a folder that is no model": ({}, ["--set", "task.model=."], ["config.json"]),
    "no model": (toml('[task]\ntrain = "train.csv"\n'), [], ["task.model is not set"]),
    "an unknown setting": ({}, ["--set", "training.epoch=2"], ["training.epoch", "training.epochs"]),
    "an unknown setting in the file": (
        toml("[trainin]\nepochs = 3\n"),
        [],
        ["trainin.epochs", "memsup.toml", "training.epochs"],
    ),
    "a setting without a value": ({}, ["--set", "training.epochs"], ["KEY=VALUE"]),
    "a value that is none": ({}, ["--set", "training.epochs=many"], ["training.epochs", "many", "flag"]),
    "broken TOML": (toml("[task\n"), [], ["memsup.toml", "TOML"]),
    "text without quotation marks": (
        toml("[task]\nmodel = bert-base-chinese\n"),
        [],
        ["line 2", "The line is: model = bert-base-chinese; text needs quotation marks", 'model = "bert-base-chinese"'],
    ),
    "a broken address": (toml("[notify]\nping_url = https://secret.example\n"), [], ["The line is: ping_url = ….\n"]),
    "a share without its sign": ({}, ["--set", "limits.ram=90"], ["limits.ram = 90", "90%", "90GiB"]),
    "another trainer's name": ({}, ["--set", "per_device_train_batch_size=8"], ["it is training.effective_batch"]),
    "another trainer's name in the file": (toml("[training]\nfp16 = true\n"), [], ["training.fp16", "training.amp", "float32"]),
    "another trainer's option": ({}, ["--gradient-clip-val", "1"], ["--gradient-clip-val", "it is training.clip_norm"]),
    "another trainer's option that memsup has not": ({}, ["--fsdp", "full"], ["--fsdp", "no such setting"]),
    "a pattern that the shell has taken apart": (
        {"b.csv": b"text,label\n"},
        ["--train", "train.csv", "b.csv"],
        ["b.csv is no command", "--train train.csv,b.csv", "commas"],
    ),
    "data in place of a command": ({}, ["train.csv"], ["--model MODEL --train train.csv"]),
    "an option given twice": ({}, ["--epochs", "2", "--set", "training.epochs=3"], ["--epochs", "training.epochs"]),
    "options of a training for a command": ({}, ["--epochs", "2", "--", "sleep", "1"], ["--epochs", "behind the two dashes"]),
    "an unknown tier in the file": (toml('tier = "huge"\n'), [], ["tier", "huge"]),
    "an unknown tier": ({}, ["--tier", "huge"], ["huge", "safe"]),
    "a limit below what a worker needs": ({}, ["--set", "limits.ram=100MiB"], ["limits.ram", "100 MiB", "512 MiB"]),
    "a reserve above all there is": ({}, ["--set", "limits.ram_reserve=900TiB"], ["limits.ram_reserve", "900 TiB"]),
    "a size that is none": ({}, ["--set", "limits.ram=lots"], ["limits.ram", "lots", "600MiB"]),
    "a checkpoint that is none": ({}, ["--set", "checkpoint.resume_from=model"], ["checkpoint.resume_from", "manifest"]),
    "a run's name that is none": ({}, ["--run", "../elsewhere"], ["../elsewhere", "letters"]),
    "a command that is not there": ({}, ["--", "no-such-command"], ["no-such-command", "-- python"]),
    "a command that may not be run": (
        toml("") | {"train.py": b"print()"},
        ["--", "./train.py"],
        ["chmod +x ./train.py", "python"],
    ),
    "a command that is a folder": ({}, ["--", "./model"], ["./model is a folder"]),
    "a run's name too long for a folder": ({}, ["--run", "𠀀" * 64], ["256 bytes", "shorter"]),
    "two ways to look on": ({}, ["--wait", "--foreground"], ["--foreground", "--wait"]),
    "an unknown option": ({}, ["--frehs"], ["--frehs"]),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_a_plain_sentence_and_leaves_nothing(name: str, job: Path, tmp_path: Path) -> None:
    """Exit 2, what is wrong and what to do, no traceback, and neither folder comes to be."""
    files, arguments, words = BAD_INPUT[name]
    for file, content in files.items():
        if content is None:
            (job / file).unlink()
        else:
            (job / file).write_bytes(content)
    done = memsup("start", *arguments, cwd=job)
    assert done.returncode == 2, done
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert left_behind(tmp_path) == []


def test_a_program_that_asks_for_a_document_gets_the_reason_in_one(job: Path) -> None:
    """Of bad settings, bad data, a misuse and a run that is not there: one document on stdout, the sentence on stderr."""
    (job / "train.csv").write_text("")
    for arguments, code, words in (
        (["start", "--json"], 2, "is empty"),
        (["start", "--json", "--set", "training.epoch=2"], 2, "training.epochs"),
        (["start", "--json", "--wait", "--foreground"], 2, "Choose one"),
        (["wait", "--json"], 1, "There is no run"),
        (["start", "--", "no-such-command", "--json"], 2, None),
    ):
        done = memsup(*arguments, cwd=job)
        assert done.returncode == code, done
        if words is None:
            assert done.stdout == ""
        else:
            assert words in done.document["error"]
            assert done.document["ok"] is False
            assert done.document["error"] in done.stderr


def test_an_unknown_variable_of_the_environment_is_named(job: Path, tmp_path: Path) -> None:
    """A typo in MEMSUP_… would otherwise do nothing for a night."""
    done = memsup("start", cwd=job, MEMSUP_TRAINING_EPOCH="2")
    assert done.returncode == 2
    assert "MEMSUP_TRAINING_EPOCH" in done.stderr
    assert "training.epochs" in done.stderr
    assert left_behind(tmp_path) == []


def test_a_state_folder_that_others_can_write_to_is_refused(job: Path, tmp_path: Path) -> None:
    """Whoever could write there could choose what we load. The sentence says how to close it."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    done = memsup("start", cwd=job)
    assert done.returncode == 2
    assert "chmod 700" in done.stderr
    assert list(state.iterdir()) == []
    assert left_behind(tmp_path) == ["state"]


def test_a_link_in_place_of_the_state_folder_is_not_followed(job: Path, tmp_path: Path) -> None:
    """Links in shared folders lead where their owner likes."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "runtime").symlink_to(tmp_path / "elsewhere")
    done = memsup("start", cwd=job)
    assert done.returncode == 2
    assert "runtime" in done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert left_behind(tmp_path) == ["runtime"]


def test_a_state_folder_that_cannot_be_made_is_named(job: Path, tmp_path: Path) -> None:
    """A file stands where it should be; the runtime folder is not left behind either."""
    (tmp_path / "state").write_text("not a folder")
    done = memsup("start", cwd=job)
    assert done.returncode == 2
    assert str(tmp_path / "state") in done.stderr
    assert left_behind(tmp_path) == ["state"]


@pytest.mark.skipif(os.getuid() != 0, reason="NOT RUN: mounting a small disk takes root")
def test_a_full_disk_is_refused_before_anything_is_written(job: Path, tmp_path: Path) -> None:
    """A real file system of 4 MiB: the sentence names what is free and what is needed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("NOT RUN: this container may not mount")
    try:
        done = memsup("start", cwd=job, MEMSUP_STATE_DIR=str(disk / "state"))
        assert done.returncode == 2
        assert "4 MiB are free" in done.stderr
        assert "MEMSUP_STATE_DIR" in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert left_behind(tmp_path) == []


def test_a_damaged_run_says_how_to_begin_anew(job: Path) -> None:
    """run.json of a disk that went bad; --fresh gets by it and keeps what is there."""
    paths = a_run("night")
    paths.record.write_text("{half")
    done = memsup("start", "--run", "night", cwd=job)
    assert done.returncode == 2
    assert "run.json" in done.stderr
    assert "memsup start --run night --fresh" in done.stderr
    assert memsup("start", "--run", "night", "--fresh", *WAIT_FOREVER, cwd=job).returncode == 0
    assert (paths.state.parent / "night.old-1/run.json").read_text() == "{half"


# --------------------------------------------------------------------------------------------------------------------
# Doubtful data

DOUBTFUL = "text,label\n" + "".join(
    f"这个东西很好用 number {i},{'nan' if i % 20 == 0 else 'good' if i % 3 else 'bad'}\n" for i in range(200)
)


def test_doubtful_data_are_shown_and_train_only_when_that_is_accepted(job: Path, tmp_path: Path) -> None:
    """Exit 2, what was seen, rows as they would be trained, and what to type; each of these lines settles it."""
    (job / "train.csv").write_text(DOUBTFUL, encoding="utf-8")
    done = memsup("start", cwd=job)
    assert done.returncode == 2
    assert left_behind(tmp_path) == []
    said = done.stderr.splitlines()
    assert (
        said[1] == "! 10 rows of 200 have the label 'nan', which looks like a missing one and would become a class of its own."
    )
    assert said[3:6] == [f"  {label:4}  ← 这个东西很好用 number {row}" for label, row in (("nan", 0), ("good", 1), ("bad", 3))]
    settings = [line.split("  ")[1] for line in said[7:]]
    assert settings == ["--set task.labels=bad,good", "--accept"]
    for setting in settings:
        settled = memsup("start", "--dry-run", "--json", *setting.split(), cwd=job)
        assert settled.returncode == 0, settled.stderr
        assert settled.document["verdict"] == ("doubtful" if setting == "--accept" else "clear")
        assert settled.document["settings"]["task"]["accept"] == (["no-label"] if setting == "--accept" else [])
    for other in (["--set", "task.accept=header scale"], ["--set", "task.accept=no_label"]):
        assert memsup("start", "--dry-run", *other, cwd=job).returncode == 2, "another doubt, and none"


def test_a_doubt_is_a_document_for_programs_and_a_warning_of_check(job: Path) -> None:
    (job / "train.csv").write_text(DOUBTFUL, encoding="utf-8")
    found = memsup("start", "--json", cwd=job)
    assert found.returncode == 2
    assert found.document["verdict"] == "doubtful"
    (doubt,) = found.document["doubts"]
    assert doubt["kind"] == "no-label"
    assert doubt["settle"] == ["--set task.labels=bad,good", "--accept"]
    assert [(row["label"], row["line"]) for row in found.document["examples"]] == [("nan", 2), ("good", 3), ("bad", 5)]
    checked = memsup("check", "--json", "--set", "training.device=cpu", cwd=job)
    assert checked.returncode == 1
    assert checked.document["doubts"] == found.document["doubts"]
    assert any("have the label 'nan'" in sentence for sentence in checked.document["warnings"])
    (job / "train.csv").write_text(ROWS.replace(",good", ",bad"), encoding="utf-8")
    none = memsup("start", "--json", cwd=job)
    assert (none.returncode, none.document["verdict"]) == (2, "not a set of this task")


# --------------------------------------------------------------------------------------------------------------------
# What is found, decided and said


def test_a_dry_run_says_everything_and_writes_nothing(job: Path, tmp_path: Path) -> None:
    """What was found, the tier and why, each limit and where it came from; as text and as JSON."""
    done = memsup("start", "--dry-run", "--set", "limits.ram=4GiB", cwd=job, MEMSUP_TRAINING_EPOCHS="2")
    assert done.returncode == 0, done.stderr
    for words in (
        "RAM",
        "GPU",
        "sensors",
        "60 rows",
        "'bad' 20, 'good' 40",
        "Tier ",
        "at most 4 GiB",
        "limits.ram = 4 GiB (flag)",
    ):
        assert words in done.stdout
    assert "nothing was written" in done.stderr
    found = memsup("start", "--dry-run", "--json", "--set", "limits.ram=4GiB", cwd=job, MEMSUP_TRAINING_EPOCHS="2").document
    assert found["dry_run"] is True
    assert found["limits"]["worker_bytes"] == 4 * 2**30
    assert found["settings"]["training"]["epochs"] == 2.0
    assert found["machine"]["ram_total_bytes"] > 0
    assert left_behind(tmp_path) == []


def test_flags_beat_the_environment_beats_the_file_beats_the_user(job: Path, tmp_path: Path) -> None:
    """And each value says which of them it came from."""
    (tmp_path / "config/memsup").mkdir(parents=True)
    (tmp_path / "config/memsup/memsup.toml").write_text(
        "[training]\nmax_length = 11\nthreads = 1\nmicro_tokens = 100\nseed = 1\n"
    )
    with (job / "memsup.toml").open("a") as file:
        file.write("[training]\nmax_length = 12\nmicro_tokens = 200\neffective_batch = 8\n")
    environment = {"MEMSUP_TRAINING_MAX_LENGTH": "13", "MEMSUP_TRAINING_MICRO_TOKENS": "300"}
    done = memsup("start", "--dry-run", "--json", "--set", "training.max_length=14", cwd=job, **environment)
    training = done.document["settings"]["training"]
    assert (training["max_length"], training["micro_tokens"], training["effective_batch"], training["threads"]) == (
        14,
        300,
        8,
        1,
    )
    origins = {value["name"]: value["origin"] for value in done.document["values"]}
    assert origins["longest text"] == "training.max_length (flag)"
    assert origins["micro-batch"] == "training.micro_tokens (environment)"
    assert origins["effective batch"] == f"training.effective_batch ({job / 'memsup.toml'})"
    assert origins["threads"].startswith(f"training.threads ({tmp_path}/config")


def test_what_is_set_most_has_options_also_as_training_scripts_spell_them(job: Path, tmp_path: Path) -> None:
    """Batch size × accumulation is the effective batch; what comes behind a command is the command's own."""
    (job / "memsup.toml").unlink()
    plain = "--model model --train train.csv --epochs 2 --batch-size 8 --max-length 64 --learning-rate 2e-5 --device cpu"
    spelt = "--model_name_or_path=model --train train.csv --num_train_epochs 2 --batch_size 4 --gradient_accumulation_steps 2 "
    spelt += "--max_length 64 --learning_rate 2e-5 --device cpu --use_amp"
    for options in (plain, spelt):
        found = memsup("start", "--dry-run", "--json", *options.split(), cwd=job)
        assert found.returncode == 0, found.stderr
        training = found.document["settings"]["training"]
        assert (training["epochs"], training["effective_batch"], training["max_length"]) == (2.0, 8, 64)
        assert (training["learning_rate"], training["device"]) == (2e-5, "cpu")
        assert found.document["settings"]["task"]["model"] == str(job / "model")
    lonely = memsup("start", "--gradient_accumulation_steps", "4", cwd=job)
    assert (lonely.returncode, "--batch-size" in lonely.stderr) == (2, True)
    theirs = ["sleep", "9", "--epochs", "5", "--num_train_epochs", "2", "--lr=3"]
    own = memsup("start", "--dry-run", "--json", "--set", "limits.ram=1GiB", "--device", "cpu", *theirs, cwd=tmp_path)
    assert own.document["command"] == theirs, own


def test_texts_that_a_length_would_cut_are_counted(job: Path) -> None:
    """A tier with short texts is a choice that the data should have a say in."""
    (job / "train.csv").write_text(
        "text,label\n" + "".join(f"{'很' * (10 * i)},{i % 2}\n" for i in range(1, 101)), encoding="utf-8"
    )
    done = memsup("start", "--dry-run", "--set", "training.max_length=502", cwd=job)
    assert "about 50 % of them are cut at 502 tokens" in done.stdout


# --------------------------------------------------------------------------------------------------------------------
# A supervisor is left behind


def test_start_detaches_and_answers_within_seconds(tmp_path: Path) -> None:
    """Another session, no terminal, no folder and no descriptor of ours held: closing the terminal cannot reach it."""
    done = memsup("start", *WAIT_FOREVER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Started in the background; its first step is still to come" in done.stdout, "no script is kept waiting"
    assert "memsup status" in done.stdout
    assert done.stdout.startswith("Run 'default': sleep 1000\n  memory")
    assert "sensors" not in done.stdout, "what else was found is for --verbose"
    pid = status()["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    log = str(run_paths("default").supervisor_log)
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)] == [log, log]
    assert oct(run_paths("default").supervisor_log.stat().st_mode & 0o777) == "0o600"


def test_a_second_start_says_that_it_runs_and_succeeds(tmp_path: Path) -> None:
    """Idempotent: the same supervisor, the same run."""
    assert memsup("start", *WAIT_FOREVER, cwd=tmp_path).returncode == 0
    before = status()
    done = memsup("start", *WAIT_FOREVER, cwd=tmp_path)
    assert done.returncode == 0
    assert "is up already" in done.stdout
    assert memsup("start", "--json", cwd=tmp_path).document["already_running"] is True
    after = status()
    assert (before["pid"], before["run_id"]) == (after["pid"], after["run_id"])
    refused = memsup("start", "--fresh", *WAIT_FOREVER, cwd=tmp_path)
    assert refused.returncode == 2
    assert "memsup stop" in refused.stderr


@pytest.mark.slow
def test_many_starts_at_once_make_one_run(tmp_path: Path) -> None:
    """Cron and a person at the same second: one of them starts, the others say that it runs."""
    starts = [
        subprocess.Popen(
            [*MEMSUP, "start", *WAIT_FOREVER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=120) for process in starts]
    assert [process.returncode for process in starts] == [0, 0, 0, 0], outputs
    assert sum("Started" in out for out, _ in outputs) == 1, outputs
    assert sum("is up already" in out for out, _ in outputs) == 3, outputs
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["default"]


def test_a_command_runs_where_it_was_started_and_its_end_is_the_runs(tmp_path: Path) -> None:
    """`-- COMMAND` with --wait: plain lines off a terminal, exit 0 only if it finished."""
    done = memsup("start", "--wait", "--", "sh", "-c", "pwd > here.txt; umask > umask.txt", cwd=tmp_path)
    assert done.returncode == 0, done
    umask = subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "umask.txt").read_text() == umask
    assert (tmp_path / "here.txt").read_text().strip() == str(tmp_path)
    assert "Finished" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    again = memsup("start", "--wait", cwd=tmp_path)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert "--fresh" in again.stderr


@pytest.mark.slow
def test_wait_is_not_content_with_a_run_that_was_stopped(tmp_path: Path) -> None:
    """Exit 1, and how to go on."""
    waiting = subprocess.Popen(
        [*MEMSUP, "start", "--wait", *WAIT_FOREVER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda seen: seen["state"] == "running")
    assert memsup("stop").returncode == 0
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "Continue with: memsup start" in err


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_and_not_the_run(tmp_path: Path) -> None:
    """It says so, and the supervisor has not heard of it."""
    waiting = subprocess.Popen(
        [*MEMSUP, "start", "--wait", *WAIT_FOREVER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda seen: seen["state"] == "running")
    os.killpg(waiting.pid, signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, err
    assert "The run goes on" in err
    assert memsup("status").returncode == 0


@pytest.mark.slow
def test_ctrl_c_in_the_foreground_stops_the_run(tmp_path: Path) -> None:
    """The supervisor is this very process: what systemd or a container starts is what guards."""
    said = tmp_path / "said"
    with said.open("w") as stderr:
        foreground = subprocess.Popen(
            [*MEMSUP, "start", "--foreground", *WAIT_FOREVER], cwd=tmp_path, stderr=stderr, start_new_session=True
        )
    assert until(lambda seen: seen["state"] == "running")["pid"] == foreground.pid
    eventually(lambda: "\nrunning" in said.read_text())  # it shows how far it is
    os.killpg(foreground.pid, signal.SIGINT)
    foreground.wait(60)
    eventually(lambda: "Continue with: memsup start" in said.read_text())
    err = said.read_text()
    assert "Traceback" not in err
    assert "In the foreground" in err
    assert memsup("status").returncode == 3


def test_on_a_terminal_the_end_of_a_run_in_the_foreground_is_the_last_word(tmp_path: Path) -> None:
    """What came of it stands there before the shell asks for the next command, with the supervisor's own exit code."""
    with terminal([*MEMSUP, "start", "--foreground", *WAIT_FOREVER], 80, 24) as seen:
        until(lambda status: status["state"] == "running")
        seen.until(lambda _: "running" in seen.text)
        seen.type("\x03")
        assert seen.end() == 0, seen.text
    assert seen.text.rstrip().endswith("Continue with: memsup start")
    with terminal([*MEMSUP, "start", "--foreground", "--run", "ended", "--", "true"], 80, 24) as seen:
        assert seen.end() == 0
    assert seen.text.rstrip().endswith("Finished.")


def test_a_supervisor_that_cannot_start_leaves_its_last_words(tmp_path: Path) -> None:
    """Exit 1 with the reason that it gave, where a traceback in a log would not be looked for."""
    paths = a_run(command=["sleep", "1000"])
    (paths.runtime / "worker.sock").mkdir()
    done = memsup("start", cwd=tmp_path)
    assert done.returncode == 1
    assert "did not start: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not is_held(paths)
    (paths.runtime / "worker.sock").rmdir()
    paths.supervisor_log.unlink()
    paths.supervisor_log.symlink_to(tmp_path / "elsewhere")
    done = memsup("start", cwd=tmp_path)
    assert done.returncode == 1
    assert "supervisor.log cannot be written: it is a link. Move it away, then start again." in done.stderr
    assert not (tmp_path / "elsewhere").exists()
    paths.supervisor_log.unlink()
    os.mkfifo(paths.supervisor_log)
    done = memsup("start", cwd=tmp_path)
    assert done.returncode == 1
    assert "it is a pipe and not a file" in done.stderr
    paths.supervisor_log.unlink()
    assert memsup("start", cwd=tmp_path).returncode == 0  # which takes over, and takes away, the fence of the one that failed


# --------------------------------------------------------------------------------------------------------------------
# A run that exists


def a_job_run(job: Path, **fields: object) -> None:
    """A run of `job` as an earlier `start` made it."""
    document = memsup("start", "--dry-run", "--json", cwd=job).document
    import msgspec

    from memsup.shared.settings import Settings

    a_run(settings=msgspec.convert(document["settings"], Settings), **fields)


def finished(job: Path) -> RunPaths:
    """A run of `job` that has finished."""
    a_job_run(job)
    paths = run_paths("default")
    paths.model.mkdir()
    status = Status(
        run="default",
        run_id=RUN_ID,
        state=RunState.FINISHED,
        wanted=Wanted.RUNNING,
        result={"accuracy": 0.913, "majority_accuracy": 0.527},
        model_path=str(paths.model),
    )
    paths.status.write_bytes(encode_status(status))
    return paths


def test_a_run_takes_over_its_limits_and_says_so(job: Path) -> None:
    """Another limit only guards differently."""
    a_job_run(job)
    done = memsup("start", "--dry-run", "--set", "limits.ram=2GiB", "--set", "checkpoint.every=90s", cwd=job)
    assert done.returncode == 0, done.stderr
    assert "limits.ram is now 2 GiB" in done.stderr
    assert "checkpoint.every is now 1 min 30 s" in done.stderr
    found = memsup("start", "--dry-run", "--json", "--set", "limits.ram=2GiB", cwd=job).document
    assert found["continued"] is True
    assert found["limits"]["worker_bytes"] == 2 * 2**30
    assert [d["key"] for d in found["taken"]] == ["limits.ram"]


def test_what_would_be_another_training_is_not_done_silently_otherwise(job: Path, tmp_path: Path) -> None:
    """It is refused with all that differs, and with what to type; also where it is a file in this folder that says it."""
    a_job_run(job)
    before = run_paths("default").record.read_bytes()
    done = memsup("start", "--set", "training.learning_rate=0.01", "--set", "limits.ram=2GiB", "--tier", "low", cwd=job)
    assert done.returncode == 2
    assert "training.learning_rate: 0.01 (flag), but it has 5e-05" in done.stderr
    assert "tier: low (flag), but it has auto" in done.stderr
    assert "memsup start --fresh " in done.stderr
    assert "memsup start --run NAME " in done.stderr
    assert "To go on as it was: memsup start --set limits.ram=2GiB\n" in done.stderr
    other = tmp_path / "other"
    other.mkdir()
    (other / "memsup.toml").write_text("[training]\nepochs = 7\n")
    done = memsup("start", cwd=other)
    assert done.returncode == 2
    assert f"training.epochs: 7.0 ({other / 'memsup.toml'}), but it has 3.0" in done.stderr
    assert "To go on as it was: (cd / && memsup start)" in done.stderr
    hook = "notify.ping_url=https://example.org/t0k3n"
    typed = memsup("start", "--set", "limits.ram=2GiB", "--set", hook, cwd=other)
    again = "(cd / && memsup start --set limits.ram=2GiB --set notify.ping_url=…)"
    assert f"To go on as it was: {again}" in typed.stderr, "what was typed is not lost"
    assert "t0k3n" not in typed.stderr + typed.stdout
    assert run_paths("default").record.read_bytes() == before


def test_a_command_goes_on_from_a_folder_with_somebody_elses_job(job: Path) -> None:
    """What a file says of the built-in training is nothing to it; what is given with the start is."""
    a_run(command=["sleep", "1000"], command_folder="/")
    assert memsup("start", "--dry-run", cwd=job).returncode == 0
    refused = memsup("start", "--dry-run", "--set", "training.epochs=7", cwd=job)
    assert refused.returncode == 2
    assert "training.epochs: 7.0 (flag)" in refused.stderr
    a_run(command=["sleep", "1000"], command_folder="/nowhere")
    gone = memsup("start", cwd=job)
    assert gone.returncode == 2
    assert "make /nowhere again" in gone.stderr


def test_a_run_goes_on_from_any_folder(job: Path, tmp_path: Path) -> None:
    """Its settings are its own; no memsup.toml is needed any more, and unset means as it was."""
    a_job_run(job)
    found = memsup("start", "--dry-run", "--json", cwd=tmp_path).document
    assert found["continued"] is True
    assert found["taken"] == []
    assert found["settings"]["task"]["train"] == str(job / "train.csv")


def test_a_paused_run_stays_paused_over_a_restart_of_its_supervisor(tmp_path: Path) -> None:
    """Only `resume` ends a pause; start says so."""
    assert memsup("start", *WAIT_FOREVER, cwd=tmp_path).returncode == 0
    assert memsup("pause").returncode == 0
    pid = status()["pid"]
    os.kill(pid, 9)
    eventually(lambda: not is_held(run_paths("default")))
    done = memsup("start", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "still paused" in done.stdout
    assert "memsup resume" in done.stdout
    record = read_record(run_paths("default").record)
    assert record is not None
    assert record.wanted is Wanted.PAUSED


def test_another_command_is_another_run(tmp_path: Path) -> None:
    """Its state means nothing to the new one."""
    a_run(command=["sleep", "1000"])
    done = memsup("start", "--", "sleep", "2000", cwd=tmp_path)
    assert done.returncode == 2
    assert "--fresh" in done.stderr
    assert "--run" in done.stderr


def test_a_finished_run_says_where_its_model_is(job: Path) -> None:
    """Exit 0: what was asked for is there. Nothing is started."""
    paths = finished(job)
    done = memsup("start", cwd=job)
    assert done.returncode == 0
    assert "accuracy 91.3 %" in done.stdout
    assert "52.7 %" in done.stdout
    assert str(paths.model) in done.stdout
    assert "--fresh" in done.stderr
    assert not is_held(paths)


def test_another_job_on_a_finished_run_keeps_that_one_and_is_trained(job: Path, tmp_path: Path) -> None:
    """From the demo to one's own data with the command that is typed next; what is wrong with those is said, nothing moved."""
    paths = finished(job)
    own = tmp_path / "own"
    own.mkdir()
    (own / "own.csv").write_text("text,label\n")
    asked = ("start", "--set", f"task.model={job / 'model'}", "--set", "task.train=own.csv")
    broken = memsup(*asked, cwd=own)
    assert (broken.returncode, "own.csv" in broken.stderr) == (2, True), broken
    (own / "own.csv").write_text(ROWS, encoding="utf-8")
    dry = memsup(*asked, "--dry-run", cwd=own)
    assert dry.returncode == 0, dry
    assert "it would be kept under another name" in dry.stderr
    assert [path.name for path in paths.state.parent.iterdir()] == ["default"]
    done = memsup("start", *WAIT_FOREVER, cwd=own)
    assert done.returncode == 0, done
    assert "The earlier run 'default' is called 'default.old-1' now" in done.stderr
    assert status()["is_command"]
    kept = status("default.old-1")
    assert (kept["run"], kept["state"], kept["result"]["accuracy"]) == ("default.old-1", "finished", 0.913)
    assert kept["model_path"] == str(paths.state.with_name("default.old-1") / "model")
    assert Path(kept["model_path"]).is_dir()


def test_a_run_that_is_up_takes_over_what_may_change_and_refuses_the_rest(tmp_path: Path) -> None:
    """It says what changed, keeps it, and other runs know of it; never exit 0 in silence."""
    paths = run_paths("default")
    assert memsup("start", *WAIT_FOREVER, cwd=tmp_path).returncode == 0
    told = tmp_path / "told"
    asked = ("--set", "limits.ram=1GiB", "--set", "checkpoint.keep=5", "--set", f"notify.urls=file:{told}")
    dry = memsup("start", *asked, "--dry-run", cwd=tmp_path)
    assert (dry.returncode, "Dry run" in dry.stdout) == (0, True), dry
    assert status()["memory"]["limit_bytes"] > 2**30
    refused = memsup("start", *asked, "--set", "training.epochs=5", cwd=tmp_path)
    assert refused.returncode == 2
    assert "training.epochs: 5.0 (flag), but it has 3.0" in refused.stderr
    small = memsup("start", "--set", "limits.ram=8MiB", cwd=tmp_path)
    assert small.returncode == 2
    assert "less than the 16 MiB" in small.stderr
    assert "Nothing was changed" in small.stderr
    assert status()["memory"]["limit_bytes"] > 2**30

    done = memsup("start", *asked, cwd=tmp_path)
    assert done.returncode == 0, done
    assert re.search(r"  limits\.ram +90 % → 1 GiB +\(flag\)", done.stdout)
    assert "The worker may take 1 GiB now" in done.stdout
    assert "given anew, and not shown" in done.stdout
    assert "For the worker checkpoint.keep counts when it begins again: memsup pause --release" in done.stdout
    assert status()["memory"]["limit_bytes"] == 2**30
    record = eventually(lambda: (found := read_record(paths.record)) and found.settings.checkpoint.keep == 5 and found)
    assert record.settings.limits.ram == 2**30
    eventually(lambda: json.loads(paths.claim.read_bytes())["ram_bytes"] == 2**30)
    (line,) = eventually(lambda: [line for line in ledger() if line["event"] == "settings"])
    assert line["by"] == "user"
    again = memsup("start", *asked, "--json", cwd=tmp_path).document
    assert again["taken"] == []
    raised = memsup("start", "--set", "limits.ram=2GiB", "--json", cwd=tmp_path).document
    assert [d["key"] for d in raised["taken"]] == ["limits.ram"]
    assert raised["text"].startswith("The worker may take 2 GiB now")
    assert "begins again" not in raised["text"]


def test_fresh_moves_the_earlier_run_aside(tmp_path: Path) -> None:
    """Nothing learned is deleted by a start; it says where it went."""
    paths = a_run()
    (paths.state / "checkpoints").mkdir()
    done = memsup("start", "--fresh", *WAIT_FOREVER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "default.old-1" in done.stderr
    assert (paths.state.parent / "default.old-1/checkpoints").is_dir()
    assert not (paths.state / "checkpoints").exists()
    record = read_record(paths.record)
    assert record is not None
    assert record.run_id != RUN_ID
    assert record.settings.limits.ram == Share(0.9)


def test_start_tells_of_a_run_that_another_session_guards(tmp_path: Path) -> None:
    """With a server at the control socket and the lock held, start leaves it alone."""
    import fcntl

    paths = a_run()
    fd = os.open(paths.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    status = Status(run="default", run_id=RUN_ID, state=RunState.PAUSED, wanted=Wanted.PAUSED)
    with control_server(paths, lambda _: status):
        done = memsup("start", cwd=tmp_path)
    os.close(fd)
    assert done.returncode == 0
    assert "is up already: paused" in done.stdout
    assert "memsup resume" in done.stderr
