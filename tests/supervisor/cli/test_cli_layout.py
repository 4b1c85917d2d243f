"""At any width of a terminal: no line is wider than it, no word is broken, nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from kit.cli_process import a_run, control_server, said, said_on_a_terminal
from kit.nights import Night
from kit.statuses import full_status

from memsup.shared.paths import run_paths
from memsup.shared.status import RunState, Status, encode_status
from memsup.supervisor.cli.group import COMMANDS
from memsup.supervisor.cli.group import memsup as group
from memsup.supervisor.cli.layout import laid_out
from memsup.supervisor.words import width

WIDTHS = (60, 80, 120)
words = st.text(st.sampled_from("abcxyz/=,.评论，🙂é"), min_size=1, max_size=30)
sentences = st.lists(words, min_size=1, max_size=12).map(" ".join)
lines = st.lists(sentences | st.lists(sentences, min_size=1, max_size=4).map(tuple), max_size=6)


@given(lines, st.integers(20, 130))
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(lines: list[str | tuple[str, ...]], cells: int) -> None:
    shown = list(laid_out(lines, cells))
    assert max(map(width, shown), default=0) <= cells
    given_ = "".join(line if isinstance(line, str) else "".join(line) for line in lines)
    assert sorted("".join(shown).replace(" ", "")) == sorted(given_.replace(" ", ""))


@given(lines, st.integers(70, 130))
def test_no_word_is_broken(lines: list[str | tuple[str, ...]], cells: int) -> None:
    """Words of letters: Chinese is written without blanks, and goes on below after any character."""
    shown = {word for line in laid_out(lines, cells) for word in line.split()}
    for line in lines:
        for word in (line if isinstance(line, str) else " ".join(line)).split():
            assert word in shown or (not word.isascii() and width(word) != len(word))


@pytest.mark.parametrize("cells", WIDTHS)
def test_every_help_page_fits_its_terminal(cells: int) -> None:
    """Those of the commands below `service` and `completion` as well."""
    for name in [None, *COMMANDS]:
        command = group if name is None else group.get_command(click.Context(group), name)
        parts = list(getattr(command, "commands", [])) if name is not None else []
        for words in [[name] if name else [], *([name, part] for part in parts)]:
            page = CliRunner().invoke(group, [*words, "--help"], terminal_width=cells).output  # type: ignore[arg-type]
            assert "Usage: " in page
            assert max(map(width, page.splitlines())) <= cells, words


def test_off_a_terminal_a_line_is_a_line() -> None:
    """For grep, and whoever reads with a program."""
    rows = [("name", "x" * 200, "last"), ("a", "b " * 100 + "c", "d")]
    assert len(list(laid_out(["word " * 100, *rows], None))) == 3


def test_colours_take_no_room_and_are_not_cut() -> None:
    row = ("\x1b[33mname\x1b[0m", "\x1b[2m" + "word " * 20 + "end\x1b[0m")
    shown = list(laid_out([row, ("评论", "x")], 40))
    assert max(width(click.unstyle(line)) for line in shown) <= 40
    assert "".join(shown).count("\x1b[33m") == 1
    assert all(line.count("\x1b[2m") + line.count("\x1b[33m") == line.count("\x1b[0m") for line in shown)
    assert click.unstyle(shown[0]).index("word") == width(click.unstyle(shown[-1])[: shown[-1].index("x")]) == 8


def test_what_is_too_wide_for_any_column_has_a_line_of_its_own() -> None:
    """A path, which is still broken only after a slash."""
    path = "/home/somebody/.local/state/memsup/a-run-with-a-long-name/model"
    shown = list(laid_out([("model", path), ("state", "finished")], 70))
    assert shown == ["  model", f"    {path}", "  state  finished"]
    narrow = list(laid_out([("model", path)], 40))
    assert all(line.endswith("/") for line in narrow[1:-1])


def _finished() -> Status:
    return msgspec.structs.replace(full_status(), state=RunState.FINISHED, model_path="/x/model", result={"accuracy": 0.9})


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a model as a person has them, with long names."""
    folder = tmp_path_factory.mktemp("my comments")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "bert"}')
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(40)))
    return folder


@pytest.mark.parametrize("cells", WIDTHS)
def test_every_screen_fits_its_terminal(
    cells: int, csv: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the commands print them: what a person sees first, and most often."""
    monkeypatch.chdir(csv)
    job = [f"--set=task.{name}={value}" for name, value in (("model", "model"), ("train", "rows.csv"))]
    night = Night(run_paths("night"))
    night.run(200, RunState.RUNNING, "training")
    a_run("night")
    night.paths.status.write_bytes(encode_status(_finished()))
    a_run("plain").status.write_bytes(encode_status(_finished()))
    with control_server(a_run(), lambda _: full_status()):
        for command in (
            ["status"],
            ["status", "--run", "plain"],
            ["status", "--run", "nobody"],
            ["start", "--dry-run", "--run", "new", "--set=training.device=cpu", *job],
            ["start", "--dry-run", "--run", "new"],
            ["start", "--run", "new", "--set=training.lr=1", *job],
            ["report", "--run", "night"],
            ["pause", "--run", "plain"],
            ["checkpoint", "--list"],
            ["list"],
            ["logs", "--run", "night"],
            ["checkpoint", "--verify", "nothing"],
            ["check"],
        ):
            _, plain = said(capfd, *command)
            _, shown = said_on_a_terminal(cells, *command)
            shown = click.unstyle(shown)
            too_wide = [line for line in shown.splitlines() if width(line) > cells]
            assert not too_wide, (command, too_wide)
            seen = set(shown.split())
            broken = [word for word in plain.split() if word not in seen and width(word) < cells - 6 and _is_a_word(word)]
            assert not broken, (command, broken, shown)


def _is_a_word(word: str) -> bool:
    """Numbers may be others a moment later, bars and curves are drawn to fit."""
    return re.search(r"[0-9█░▁-▇]", word) is None
