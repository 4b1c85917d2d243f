"""Promise 4, the worker's own decisions: checkpoints that were damaged between two lives are named wherever a person looks, and
so is the one that was used instead. Real command line, supervisor and worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.killed_runs import make_job
from kit.run_state import status

from memsup.checkpoint.store import Store
from memsup.shared.paths import run_paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    make_job(tmp_path / "job", epochs=2000, lanes=1)
    yield tmp_path / "job"
    end_supervisors()


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_a_file(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def said_of_checkpoints() -> list[tuple[str, str | None, str | None, int | None]]:
    """What the ledger says of them, in its order: event, by whom, which folder, which step."""
    lines = [msgspec.json.decode(line) for line in run_paths("default").ledger.read_bytes().splitlines()]
    return [
        (line["event"], line.get("by"), line.get("checkpoint"), line.get("checkpoint_step"))
        for line in lines
        if line["event"].startswith("checkpoint_")
    ]


def attention() -> str:
    return " ".join(status()["attention"])


def test_damaged_checkpoints_and_the_one_that_is_used_are_named_in_ledger_status_and_report(job: Path) -> None:
    """Each of the newest is damaged in its own way, between two lives."""
    paths = run_paths("default")
    damages = (flip_a_bit, cut, remove_a_file)
    assert memsup("start", "--set", "checkpoint.keep=4", cwd=job).returncode == 0
    eventually(lambda: sum(info.problem is None for info in Store(paths.checkpoints).list()) > len(damages))
    assert memsup("stop").returncode == 0
    *newest, before = [info for info in Store(paths.checkpoints).list() if info.problem is None][: len(damages) + 1]
    for damage, info in zip(damages, newest, strict=True):
        damage(info.path)

    assert memsup("start", cwd=job).returncode == 0
    said = eventually(lambda: len(said := said_of_checkpoints()) > len(damages) and said)
    aside = [info.path.with_name(f"damaged-{info.path.name}") for info in newest]
    assert said == [
        *(("checkpoint_damaged", "worker", str(path), info.step) for path, info in zip(aside, newest, strict=True)),
        ("checkpoint_used", "worker", str(before.path), before.step),
    ]
    assert all(path.is_dir() for path in aside)
    report = memsup("report").stdout
    for path in (*aside, before.path):
        assert eventually(lambda name=path.name: name in attention(), 10)
        assert path.name in memsup("status").stdout
        assert path.name in report
