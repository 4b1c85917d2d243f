"""Promise 4, the worker's own decisions: a checkpoint that was damaged between two lives is named wherever a person looks, and
so is the one that was used instead. Real command line, supervisor and worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.killed_runs import make_job

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


def said_since(known: int) -> dict[str, tuple[Any, ...]]:
    """What the ledger says of checkpoints after its first `known` lines: event → by whom, which folder, which step."""
    lines = [msgspec.json.decode(line) for line in run_paths("default").ledger.read_bytes().splitlines()[known:]]
    return {
        line["event"]: (line.get("by"), line.get("checkpoint"), line.get("checkpoint_step"))
        for line in lines
        if line["event"].startswith("checkpoint_")
    }


def attention() -> str:
    return " ".join(memsup("status", "--json").document["attention"])


def test_a_damaged_checkpoint_and_the_one_that_is_used_are_named_in_ledger_status_and_report(job: Path) -> None:
    """Each life is damaged in its turn: what it saved before it was told to stop is what the next one finds."""
    paths = run_paths("default")
    assert memsup("start", cwd=job).returncode == 0
    for damage in (flip_a_bit, cut, remove_a_file):
        eventually(lambda: sum(info.problem is None for info in Store(paths.checkpoints).list()) >= 2)
        assert memsup("stop").returncode == 0
        newest, before, *_ = (info for info in Store(paths.checkpoints).list() if info.problem is None)
        damage(newest.path)
        known = len(paths.ledger.read_bytes().splitlines())

        assert memsup("start", cwd=job).returncode == 0
        said = eventually(lambda known=known: len(said := said_since(known)) >= 2 and said)
        aside = newest.path.with_name(f"damaged-{newest.path.name}")
        assert said == {
            "checkpoint_damaged": ("worker", str(aside), newest.step),
            "checkpoint_used": ("worker", str(before.path), before.step),
        }
        assert aside.is_dir()
        assert eventually(lambda aside=aside: aside.name in attention(), 10)
        assert before.path.name in attention()
        report = memsup("report").stdout
        assert aside.name in report, damage
        assert before.path.name in report, damage
