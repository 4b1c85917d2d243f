"""Promise: no word of others drives the terminal, or begins a line as if it were memsup's, whatever way it comes.

What can be printed is listed by the code itself: every setting, every text of a status, a ledger line, a point of the history,
every argument of every command. All of it is poisoned, and what comes out is judged by Unicode's tables (`kit/terminal.py`).
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from kit import ROOT
from kit.cli_process import a_run, control_server, memsup, on_a_terminal, said
from kit.terminal import EVIL, FORGED, obeyed
from msgspec import inspect

from memsup.shared.messages import Reply
from memsup.shared.settings import Written, keys
from memsup.shared.status import RunState, Status, Wanted
from memsup.supervisor.cli.group import COMMANDS
from memsup.supervisor.cli.group import memsup as group
from memsup.supervisor.cli.screen import json_data, paint, shown
from memsup.supervisor.decide.events import Event
from memsup.supervisor.record.history import Point
from memsup.supervisor.record.ledger import VERSION, Entry

_ORDINARY = {"tier": "full", "schema": 1}
"""What the poisoned document needs to be believed at all."""


def poisoned(kind: inspect.Type, name: str, numbers: Iterator[int]) -> Any:
    """A value of the type in which every text is poison, each with a number of its own."""
    match kind:
        case inspect.StrType() | inspect.AnyType():
            return f"#{next(numbers)}{EVIL}{FORGED}"
        case inspect.StructType():
            return {field.encode_name: poisoned(field.type, field.encode_name, numbers) for field in kind.fields}
        case inspect.UnionType():
            return poisoned(max(kind.types, key=_rank), name, numbers)
        case inspect.ListType() | inspect.CollectionType():
            return [poisoned(kind.item_type, name, numbers)]
        case inspect.VarTupleType():
            return [poisoned(kind.item_type, name, numbers)]
        case inspect.TupleType():
            return [poisoned(item, name, numbers) for item in kind.item_types]
        case inspect.DictType():
            return {
                poisoned(kind.key_type, name, numbers) if isinstance(kind.key_type, inspect.StrType) else "x": poisoned(
                    kind.value_type, name, numbers
                )
            }
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.BoolType():
            return False
        case inspect.FloatType():
            return 1.5
        case inspect.IntType():
            return 3
        case _:
            return None


def _rank(kind: inspect.Type) -> int:
    """Of several types the one with most text in it."""
    order = (inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.EnumType, inspect.LiteralType)
    return order.index(type(kind)) if type(kind) in order else len(order)


def assert_harmless(text: str, *, markers: int = 0) -> None:
    """`markers`: so many of the poisoned texts are in it at least, so that there was something to be made harmless."""
    assert not obeyed(text), sorted(map(ascii, obeyed(text)))
    assert not any(line.startswith(FORGED.strip()) for line in text.splitlines()), text
    assert len(set(re.findall(r"#\d+", text))) >= markers, text


@pytest.fixture(scope="module")
def status_document() -> dict[str, Any]:
    found: dict[str, Any] = poisoned(inspect.type_info(Status), "", itertools.count())
    return found | {"state": RunState.FAILED, "wanted": Wanted.RUNNING, "run_id": None}


@pytest.fixture
def evil_run(status_document: dict[str, Any]) -> Any:
    """A run in whose files every text is poison: status, ledger (a line for each event), history, logs."""
    paths = a_run(run_id=(poison := f"#0{EVIL}{FORGED}"), tier_reason=poison, command=["true", poison], command_folder=poison)
    paths.status.write_bytes(msgspec.json.encode(status_document | {"run_id": poison}))
    numbers = itertools.count(1000)
    entries = []
    for number, event in enumerate(Event):
        entry = poisoned(inspect.type_info(Entry), "", numbers)
        entries.append(entry | {"event": event, "v": VERSION, "at": time.time() - 60 + number / 10, "mono": 10.0 + number})
    paths.ledger.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    points = [
        poisoned(inspect.type_info(Point), "", numbers) | {"at": time.time() - 60 + n, "mono": 10.0 + n, "spent_s": {}}
        for n in range(5)
    ]
    paths.history.write_bytes(b"".join(msgspec.json.encode(point) + b"\n" for point in points))
    evil = EVIL.replace("\r", "")  # before which nothing of a worker's line is shown
    log = json.dumps({"time": "2026-05-12T04:31:22.123Z", "level": "info", "event": f"#1{evil}{FORGED}", f"{EVIL}": EVIL})
    for file in (paths.worker_log, paths.supervisor_log):
        file.write_text(f"#2{evil}\n{log}\n", encoding="utf-8")
    return paths


READING = [
    ("status", 7),
    ("status --json", 20),
    ("status --watch", 7),
    ("wait", 1),
    ("wait --json", 20),
    ("logs --since 2020-01-01", 30),
    ("logs --since 2020-01-01 --json", 30),
    ("logs --worker", 2),
    ("report", 1),
    ("report --output -", 10),
    ("report --json", 0),
    ("stop", 0),
    ("checkpoint --list", 0),
    ("service status", 0),
]


@pytest.mark.parametrize(("words", "markers"), READING, ids=[words for words, _ in READING])
def test_what_a_runs_files_hold(words: str, markers: int, evil_run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _, text = said(capfd, *words.split())
    assert_harmless(text.replace(evil_run.state.as_posix(), ""), markers=markers)
    if words == "report":
        assert_harmless((evil_run.state / "report.html").read_text(encoding="utf-8"), markers=10)
    if "--json" in words:
        assert all(json.loads(line) is not None for line in text.splitlines() if line.startswith("{"))


@pytest.mark.parametrize(
    "words", ["pause", "pause --release", "resume", "stop", "checkpoint", "checkpoint --json", "stop --json"]
)
@pytest.mark.parametrize("ok", [True, False])
def test_what_a_supervisor_answers(
    words: str, ok: bool, status_document: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Or whoever has taken its place: the sentence, the path, and the status that comes with it."""
    poison = f"#0{EVIL}{FORGED}"
    reply = Reply(request_id=1, ok=ok, text=poison, status_json=msgspec.json.encode(status_document), checkpoint_path=poison)
    with control_server(a_run(), lambda _: reply):
        code, text = said(capfd, *words.split())
    assert code == (0 if ok and words == "resume" else 1)  # of all others the checkpoint is looked for, and is none
    assert_harmless(text, markers=1)


@pytest.mark.parametrize("key", keys())
def test_every_setting_from_everywhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a flag, a variable, and in a file, whether it is refused or shown; as a list and as a table, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(20)))
    base = ["start", "--dry-run", "--trust", "--set", "training.device=cpu"]
    job = [f"--set=task.{name}={value}" for name, value in (("model", "model"), ("train", "rows.csv"))]
    job = [word for word in job if not word.startswith(f"--set={key}=")]
    poison = f"x{EVIL}{FORGED}"
    assert_harmless(said(capfd, *base, *job, "--set", f"{key}={poison}")[1])
    assert_harmless(said(capfd, *base, *job, "--json", "--set", f"{key}={poison}")[1])
    monkeypatch.setenv("MEMSUP_" + key.replace(".", "_").upper(), poison)
    assert_harmless(said(capfd, *base, *job)[1])
    monkeypatch.delenv("MEMSUP_" + key.replace(".", "_").upper())
    quoted = json.dumps(poison).replace("\x7f", "\\u007f")  # as TOML has it, too
    section, _, name = key.rpartition(".")
    for value in (quoted, f"[{quoted}]", f"{{ {quoted} = {quoted} }}"):
        (tmp_path / "memsup.toml").write_text((f"[{section}]\n" if section else "") + f"{name} = {value}\n")
        code, text = said(capfd, *base, *job)
        assert_harmless(text)
        takes_any = {Written.PATH, Written.PATHS, Written.MODEL, Written.WORDS, Written.NAMES, None}
        assert code == 2 or keys()[key].written in takes_any


def commands() -> Iterator[tuple[str, click.Parameter]]:
    """Each argument and option of each command that takes a text."""
    context = click.Context(group)
    for name in COMMANDS:
        found = group.get_command(context, name)
        assert found is not None
        inner = found.commands.items() if isinstance(found, click.Group) else [("", found)]
        for sub, command in inner:
            for parameter in command.params:
                if not isinstance(parameter.type, click.types.BoolParamType) and not (
                    isinstance(parameter, click.Option) and parameter.is_flag
                ):
                    yield f"{name} {sub}".strip(), parameter


@pytest.mark.parametrize(("command", "parameter"), list(commands()), ids=[f"{c} {p.name}" for c, p in commands()])
def test_every_argument_of_every_command(
    command: str,
    parameter: click.Parameter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A name that a shell's `*` has put there, for instance; also one longer than any file's, and one that is not UTF-8."""
    if command == "drill":
        pytest.skip("NOT RUN: a drill takes no text but a run's name, which it does not use, and two minutes")
    monkeypatch.chdir(tmp_path)
    more = ["--test"] if command == "notify" else []
    a_run()
    for poison in (f"x{EVIL}{FORGED}", "x" * 5000, os.fsdecode(b"\xff\xfe"), "9" * 5000):
        words = [parameter.opts[0], poison] if isinstance(parameter, click.Option) else ["--", poison]
        code, text = said(capfd, *command.split(), *words, *more)
        assert_harmless(text)
        assert "Traceback" not in text
        assert code in range(5), code


@pytest.mark.parametrize("words", [[EVIL], ["start", f"--{EVIL}"], ["status", f"x{EVIL}{FORGED}"], ["service", EVIL + FORGED]])
def test_what_is_no_command_and_no_option(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, text = said(capfd, *words)
    assert code == 2
    assert_harmless(text)


def test_names_of_files_folders_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The current folder's too, and those of the environment."""
    poison = f"x{EVIL}{FORGED}".replace("/", "")
    here = tmp_path / poison
    (here / "model").mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "model/config.json").write_text('{"model_type": "bert"}')
    (here / f"{poison}.csv").write_text(f"text{EVIL},label\n" + "".join(f"row {n},{EVIL}{n % 2}\n" for n in range(20)))
    (here / "labels").mkdir()
    for label in (f"a{poison}", f"b{poison}"):
        (here / "labels" / f"{label}.txt").write_text("one\ntwo\n")
    start = ["start", "--dry-run", "--set", "training.device=cpu", "--set", "task.model=model", "--set"]
    for train in ("labels", f"{poison}.csv", "missing.csv"):
        assert_harmless(said(capfd, *start, f"task.train={train}")[1])
    (here / "labels" / f"c{poison}.txt").write_text("")
    assert_harmless(said(capfd, *start, "task.train=labels")[1])
    assert_harmless(said(capfd, "start", "--dry-run")[1])
    assert_harmless(said(capfd, "checkpoint", "--verify", str(here))[1])
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(here / "state"))
    for words in ("status", "report", "logs", "wait"):
        assert_harmless(said(capfd, words)[1])
    (here / "state").write_text("no folder")
    assert_harmless(said(capfd, "status")[1])
    monkeypatch.setenv(f"MEMSUP_{EVIL}", "1")
    assert_harmless(said(capfd, "start", "--dry-run")[1])


def test_a_name_that_is_not_utf8_is_shown_and_stays_json(capfd: pytest.CaptureFixture[str]) -> None:
    """As a file in a folder may have one."""
    name = os.fsdecode(b"/tmp/\xff")
    json_data({"path": name})
    document = capfd.readouterr().out
    assert_harmless(document)
    assert json.loads(document)["path"] == name


@pytest.mark.parametrize("words", ["status", "status --watch", "wait", "logs", "status --json"])
def test_on_a_terminal_only_memsups_own_colours_and_moves_get_through(words: str, evil_run: Any) -> None:
    text = on_a_terminal(*words.split(), COLUMNS="200", NO_COLOR="")
    assert "\x1b[3" in text or words in {"logs", "status --json"}
    own = r"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[lh]|\r"  # colour, clear the line, a line up, the cursor hidden and shown
    assert_harmless(re.sub(own, "", text), markers=1)
    assert "\x1b[2J" not in text


def test_no_text_colours_itself() -> None:
    """Not even one that knows how colours are marked, but for the number."""
    assert shown(paint("fine", "green", "bold"), in_colour=True) == "\x1b[32m\x1b[1mfine\x1b[0m"
    assert shown(paint("fine", "green"), in_colour=False) == "fine"
    assert not obeyed(shown("\x1b[31m\x1b[123456;31mred", in_colour=True))


def test_a_traceback_drives_nothing_either() -> None:
    code = f"from memsup.supervisor.cli.screen import guard; guard(); raise ValueError({EVIL!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ValueError" in done.stderr
    assert_harmless(done.stderr)


def test_the_command_line_prints_in_one_place_only() -> None:
    """No module but `screen.py`, and `streams.py` below it, writes to a stream, and no line that it prints is two."""
    past = {"print", "echo", "secho", "style", "Console", "write", "writelines", "print_exc"}
    for file in sorted((ROOT / "supervisor/cli").glob("*.py")):
        if file.name in {"screen.py", "streams.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            by_console = isinstance(node.func, ast.Attribute) and ast.unparse(node.func).endswith("console.print")
            assert name not in past or by_console, f"{file.name}:{node.lineno} prints past screen.py"
            if name in {"data", "message"}:
                texts = [
                    part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                lines = [text for text in texts if "\n" in text and text != "\n"]
                assert not lines, f"{file.name}:{node.lineno} gives two lines as one: {lines}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_that_completes_a_word_is_answered(shell: str, tmp_path: Path) -> None:
    """Click answers it in bytes, which pass the guard as well."""
    script = memsup(cwd=tmp_path, _MEMSUP_COMPLETE=f"{shell}_source")
    assert script.returncode == 0, script
    assert "_MEMSUP_COMPLETE" in script.stdout
    for words, word in ((f"memsup {EVIL}", EVIL), ("memsup sta", "sta")):
        asked = {"_MEMSUP_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": word if shell == "fish" else "1"}
        done = memsup(cwd=tmp_path, **asked)
        assert "Traceback" not in done.stderr
        assert not obeyed((done.stdout + done.stderr).replace("\t", " "))  # which fish wants
    assert "status" in done.stdout
