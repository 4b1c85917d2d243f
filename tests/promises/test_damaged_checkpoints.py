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
    make_job(tmp_path / "job", epochs=2000)
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


def ledger() -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in run_paths("default").ledger.read_bytes().splitlines()]


def test_a_damaged_checkpoint_and_the_one_that_is_used_are_named_in_ledger_status_and_report(job: Path) -> None:
    folder = run_paths("default").checkpoints
    for damage in (flip_a_bit, cut, remove_a_file):
        assert memsup("start", cwd=job).returncode == 0
        eventually(lambda: sum(info.problem is None for info in Store(folder).list()) >= 2)
        assert memsup("stop").returncode == 0
        newest, before, *_ = (info for info in Store(folder).list() if info.problem is None)
        damage(newest.path)
        known = len(ledger())

        assert memsup("start", cwd=job).returncode == 0  # which stays until a step is done
        aside = newest.path.with_name(f"damaged-{newest.path.name}")
        assert aside.is_dir()
        said = {line["event"]: line for line in ledger()[known:] if line["event"].startswith("checkpoint_")}
        assert said["checkpoint_damaged"]["by"] == "worker"
        assert (said["checkpoint_damaged"]["checkpoint"], said["checkpoint_damaged"]["checkpoint_step"]) == (
            str(aside),
            newest.step,
        )
        assert (said["checkpoint_used"]["checkpoint"], said["checkpoint_used"]["checkpoint_step"]) == (
            str(before.path),
            before.step,
        )
        attention = " ".join(memsup("status", "--json").document["attention"])
        report = memsup("report").stdout
        for place, text in {"status": attention, "report": report}.items():
            assert aside.name in text, (damage.__name__, place)
            assert before.path.name in text, (damage.__name__, place)
        assert memsup("stop").returncode == 0
