"""Promise: addresses are secrets wherever they go, and a `memsup.toml` that lies in a folder sends nothing unasked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import end_supervisors, memsup, said
from kit.hub import hub_that_answers
from kit.run_state import until

from memsup.shared.loading import variable_of
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.shared.settings import Written, keys

PARTS = ("s3cr3t", "t0k3n", "k3y")
ADDRESS = "json://user:s3cr3t@127.0.0.1:9/t0k3n?key=k3y"
PING = "http://user:s3cr3t@127.0.0.1:9/t0k3n?key=k3y"
SECRETS = {name: key for name, key in keys().items() if key.is_secret}
CONTACTS = {name: key for name, key in keys().items() if key.contacts}
DRY = ["start", "--dry-run", "--set", "training.device=cpu"]
MALFORMED = [ADDRESS, f"{ADDRESS} 5", "s3cr3t", f"env:{ADDRESS}", f"file:{ADDRESS}", f"[{ADDRESS}]"]
AS_TOML = [f'"{ADDRESS}"', f'["{ADDRESS}", 5]', f'{{ url = "{ADDRESS}" }}', f'[["{ADDRESS}"]]', f'[{{ url = "{ADDRESS}" }}]']


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def assert_kept(text: str) -> None:
    assert not [part for part in PARTS if part in text], text


# --------------------------------------------------------------------------------------------------------------------
# Secrets


def test_the_settings_that_hold_addresses_are_secret() -> None:
    """And the key that machines show to one another."""
    assert set(CONTACTS) == {"notify.urls", "notify.ping_url"}
    assert set(SECRETS) == {*CONTACTS, "nodes.key"}


@pytest.mark.parametrize("key", SECRETS)
def test_no_way_of_giving_one_shows_it(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Well or badly written; as a flag, a variable, or in a file; in words and as JSON."""
    monkeypatch.chdir(tmp_path)
    command = ["--", "true"]
    for value, more in itertools.product(MALFORMED, ([], ["--json"])):
        assert_kept(said(capfd, *DRY, *more, "--set", f"{key}={value}", *command)[1])
        with monkeypatch.context() as environment:
            environment.setenv(variable_of(key), value)
            assert_kept(said(capfd, *DRY, *more, *command)[1])
    section, _, name = key.partition(".")
    for value, more in itertools.product(AS_TOML, ([], ["--trust", "--json"])):
        (tmp_path / "memsup.toml").write_text(f"[{section}]\n{name} = {value}\n")
        assert_kept(said(capfd, *DRY, *more, *command)[1])


def test_a_slip_of_the_pen_shows_none(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A blank where the equals sign should be, a wrong name, an address as a path."""
    monkeypatch.chdir(tmp_path)
    for flag in (f"notify.urls {ADDRESS}", f"notify.urls:{ADDRESS}", f"notify.url={ADDRESS}", ADDRESS):
        code, text = said(capfd, *DRY, "--set", flag, "--", "true")
        assert code == 2
        assert_kept(text)
    for key in (name for name, key in keys().items() if key.written in {Written.PATH, Written.PATHS, Written.MODEL}):
        code, text = said(capfd, *DRY, "--set", f"{key}={PING}", "--", "true")
        assert code == 2
        assert key in text
        assert_kept(text)


def test_a_run_keeps_them_in_run_json_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not in the ledger, the logs, the report, an argument or an environment, also where a message does not arrive."""
    environment = {variable_of("notify.ping_url"): PING, "NO_PROXY": "127.0.0.1"}
    started = memsup("start", "--set", f"notify.urls={ADDRESS}", "--", "sleep", "1000", cwd=tmp_path, **environment)
    assert started.returncode == 0, started.stderr
    assert "json://127.0.0.1" in started.stdout
    assert "http://127.0.0.1" in started.stdout
    assert_kept(started.stdout + started.stderr)
    seen = until(lambda now: now["worker_pid"])
    for pid in (seen["pid"], seen["worker_pid"]):
        assert_kept(Path(f"/proc/{pid}/cmdline").read_text())
        assert_kept(Path(f"/proc/{pid}/environ").read_text())
    paths = run_paths("default")
    until(lambda _: b'"event":"message"' in paths.ledger.read_bytes())
    for words in ("status --json", "report --json", "report --output -", "logs --json", "service install --print"):
        assert_kept(said(capfd, *words.split())[1])
    again = memsup("start", "--json", cwd=tmp_path)
    assert_kept(again.stdout + again.stderr)
    stopped = memsup("stop", "--now")
    assert_kept(stopped.stdout + stopped.stderr)
    assert oct(paths.record.stat().st_mode)[-3:] == "600"
    held = {
        file.name for file in paths.state.rglob("*") if file.is_file() and any(p.encode() in file.read_bytes() for p in PARTS)
    }
    assert held == {"run.json"}


# --------------------------------------------------------------------------------------------------------------------
# A file that lies in a folder


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose `memsup.toml` names addresses."""
    folder = tmp_path / "cloned"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "memsup.toml").write_text(f'[notify]\nurls = ["{ADDRESS}"]\nping_url = "{PING}"\n')
    return folder


@pytest.mark.parametrize("words", [[*DRY, "--", "true"], ["start", "--", "true"], ["notify", "--test"]])
def test_it_sends_nothing_unasked(words: list[str], strangers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It says what the file wants, what to type, and leaves nothing."""
    code, text = said(capfd, *words)
    assert code == 2
    for part in (str(strangers / "memsup.toml"), "json://127.0.0.1", "http://127.0.0.1", "--trust", "--set notify.urls="):
        assert part in text
    assert_kept(text)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--trust"],
        ["--set", "notify.urls=", "--set", "notify.ping_url="],
        ["--set", f"notify.urls={ADDRESS}", "--set", "notify.ping_url="],
    ],
)
def test_with_what_it_says_to_type_it_goes_on(more: list[str], strangers: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, text = said(capfd, *DRY, *more, "--", "true")
    assert code == 0, text
    assert ("json://127.0.0.1" in text) == (more[-1] != "notify.ping_url=" or ADDRESS in more[1])


@pytest.mark.parametrize(
    ("written", "without"),
    [
        ('join = "10.0.0.5"', ["nodes.join="]),
        ('join = "10.0.0.5"\nany_network = true', ["nodes.any_network=false", "nodes.join="]),
        ('count = 2\naddress = "10.0.0.5"', ["nodes.count=1", "nodes.address="]),
        (f'key = "{"k" * 43}"', ["nodes.key="]),
    ],
)
def test_a_folders_file_has_no_other_machine_take_part_unasked(
    written: str, without: list[str], strangers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither does it send the data to a machine that has a key of the file's, nor compute what another machine wants."""
    (strangers / "memsup.toml").write_text(f'[task]\nmodel = "x"\ntrain = "y.csv"\n[nodes]\n{written}\n')
    assert said(capfd, *DRY, "--", "true")[0] == 0  # a command's own launcher joins machines, so nothing of this is used
    code, text = said(capfd, *DRY)
    assert code == 2
    assert "computed together with other machines" in text
    assert "k" * 43 not in text
    assert "--trust" in text
    assert not (tmp_path / "state").exists()
    for one in without:
        assert f"--set {one}" in text
    more = [word for one in without for word in ("--set", one)]
    assert "computed together with other machines" not in said(capfd, *DRY, *more)[1]
    assert "computed together with other machines" not in said(capfd, *DRY, "--trust")[1]


def test_what_the_user_says_needs_no_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The user's own file, also when one stands in its folder, a variable, a flag: each is named with its address."""
    own = tmp_path / "config/memsup"
    own.mkdir(parents=True)
    (own / "memsup.toml").write_text(f'[notify]\nurls = ["{ADDRESS}"]\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder in (tmp_path, own):
        monkeypatch.chdir(folder)
        code, text = said(capfd, *DRY, "--", "true")
        assert code == 0, text
        assert f"to json://127.0.0.1  ← {own / 'memsup.toml'}" in text
    monkeypatch.setenv(variable_of("notify.ping_url"), PING)
    assert "to http://127.0.0.1  ← environment" in said(capfd, *DRY, "--", "true")[1]
    document = memsup(*DRY, "--json", "--", "true").document
    assert document["settings"]["notify"] == {"urls": ["hidden"], "ping_url": "hidden"}
    assert document["contacts"] == {"notify.urls": "json://127.0.0.1", "notify.ping_url": "http://127.0.0.1"}


def test_trust_is_asked_for_once_and_again_when_the_address_changes(strangers: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = memsup("start", "--trust", *DRY[2:], "--", "sleep", "1000", NO_PROXY="127.0.0.1")
    assert first.returncode == 0, first.stderr
    memsup("stop", "--now")
    record = read_record(run_paths("default").record)
    assert record is not None
    assert record.settings.notify.urls[0].reveal() == ADDRESS
    code, text = said(capfd, *DRY)
    assert code == 0, text
    (strangers / "memsup.toml").write_text('[notify]\nurls = ["json://elsewhere.example"]\n')
    code, text = said(capfd, *DRY)
    assert code == 2
    assert "json://elsewhere.example" in text


def test_start_says_what_is_fetched_and_where_checkpoints_are_written_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(20)))
    (tmp_path / "memsup.toml").write_text('[task]\nmodel = "some/body"\ntrain = "rows.csv"\n[checkpoint]\nfolder = "kept"\n')
    with hub_that_answers() as hub:
        hub.put("some/body", {"model_type": "bert"}, ["config.json", "model.safetensors", "tokenizer.json"])
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        code, text = said(capfd, *DRY)
    assert code == 0, text
    assert f"the model some/body from the hub  ← {tmp_path / 'memsup.toml'}" in text
    assert f"in {tmp_path / 'kept'}, where its own older ones are deleted  ← {tmp_path / 'memsup.toml'}" in text
