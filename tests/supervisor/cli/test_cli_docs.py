"""docs/settings.md and docs/commands.md say what the program does: every setting with its default, every command and option."""

from __future__ import annotations

import re

import click
import msgspec
import pytest
from kit import ROOT
from kit.statuses import EVALUATION

from memsup.shared.readings import KnownGpu
from memsup.shared.settings import Settings, Written, keys
from memsup.shared.status import ActionStatus, ProgramStatus, RunState, Status, TemperatureStatus, Wanted, encode_status
from memsup.supervisor.cli.group import COMMANDS
from memsup.supervisor.cli.group import memsup as group
from memsup.supervisor.client.preparing import shown
from memsup.supervisor.decide.tiers import TIERS

DOCS = ROOT / "docs"
SETTINGS = (DOCS / "settings.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (DOCS / "commands.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \| ([^|]*) \|$", SETTINGS, flags=re.MULTILINE)


def test_every_setting_stands_on_the_page_once() -> None:
    """And none that does not exist."""
    assert sorted(key for key, _, _ in ROWS) == sorted(keys())


@pytest.mark.parametrize(("key", "default", "meaning"), ROWS, ids=[key for key, _, _ in ROWS])
def test_each_default_is_the_one_in_force(key: str, default: str, meaning: str) -> None:
    """With its mark where a run that exists may take another value."""
    assert default.strip() == shown(key, keys()[key].value(Settings()))
    assert ("↻" in meaning) == keys()[key].may_change


@pytest.mark.parametrize(
    ("heading", "written"),
    [
        ("Sizes", {Written.SIZE}),
        ("Durations", {Written.DURATION}),
        ("Paths", {Written.PATH, Written.PATHS, Written.MODEL}),
        ("Lists", {Written.WORDS}),
        ("Names", {Written.NAMES}),
    ],
)
def test_how_a_value_is_written_is_said_of_every_setting_that_it_is_true_of(heading: str, written: set[Written]) -> None:
    """And of no other one."""
    listed = re.search(rf"^\* {heading} \(([^)]*)\)", SETTINGS, flags=re.MULTILINE)
    assert listed is not None
    assert sorted(re.findall(r"`([a-z_.]+)`", listed[1])) == sorted(
        name for name, key in keys().items() if key.written in written
    )


def test_the_table_of_tiers_is_the_one_in_force() -> None:
    """Micro-batch, length, effective batch, activation checkpointing."""
    for name, row in TIERS.items():
        switch = "on" if row.gradient_checkpointing else "off"
        cells = f"| {row.rows} × {row.max_length} | {row.max_length} | {row.effective_batch} | {switch} |"
        assert re.search(rf"^\| {name} \|.*{re.escape(cells)}$", SETTINGS, flags=re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_stands_on_the_page(name: str) -> None:
    """`--run` and `--json` once for all of them."""
    assert f"| `memsup {name}` |" in COMMANDS_PAGE
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                assert option in COMMANDS_PAGE, option


def test_every_key_of_the_status_document_stands_on_the_page() -> None:
    """Nested ones, too."""
    document = msgspec.json.decode(
        encode_status(
            Status(
                run="default",
                state=RunState.RUNNING,
                wanted=Wanted.RUNNING,
                gpus=[KnownGpu(index=0)],
                temperatures=[TemperatureStatus(name="x")],
                last_action=ActionStatus(at=0, rung=None, action="", reason=""),
                program=ProgramStatus(attached=True),
                evaluation=EVALUATION,
            )
        )
    )

    def keys(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        return set(value) | set().union(*map(keys, value.values())) if isinstance(value, dict) else set()

    for key in keys(document):
        assert f'"{key}"' in COMMANDS_PAGE, key
    for state in RunState:
        assert state in COMMANDS_PAGE
