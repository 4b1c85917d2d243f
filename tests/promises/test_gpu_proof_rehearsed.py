"""The proof for a real GPU (`benchmarks/gpu/`) goes through from its first line to its last where there is none.

What it would find out on a card it cannot find out here; that it asks, reads, waits and ends as it should, it can.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import KIT, ROOT
from kit.fake_nvml import compiler

PROOF = ROOT / "benchmarks" / "gpu"
NEEDS_CUDA = {
    "main_job.peak",
    "main_job.memory",
    "memory_runs_out.first",
    "memory_runs_out.optimizer",
    "optimizer_on_host.room",
    "main_job.waits",
    "attached.beside_others",
    *(f"small_cards.base_{gib}" for gib in (4, 8, 12)),
    *(f"small_cards.large_{gib}" for gib in (6, 8, 12, 24)),
    *(f"two_cards.{line}" for line in ("a_rank_a_card", "speed", "killed", "same_samples")),
    *(f"small_cards.{cell}" for cell in ("lora05_6", "lora15_8", "lora3_12")),
}
MAY_BE_MISSED = {
    "main_job.built_in",
    "main_job.prediction",
    "main_job.speed",
    "main_job.accuracy",
    "language_model.speed",
    "others.second_program",
    "others.released",
    "others.resumed",
    "optimizer_on_host.price",
    "any_program.leaves",
    "any_program.comes_back",
    "any_program.makes_way",
    "any_program.returns",
    "attached.released",
}
"""Goals about speed, accuracy and peaks, which a rehearsal is too short, or this machine too busy, to reach."""
NEEDS_ACCELERATE = {"main_job.speed", "main_job.accuracy", "language_model.speed"}


@pytest.fixture(scope="module")
def lines() -> Any:
    """`benchmarks/gpu/lines.py`, which is no package's."""
    spec = importlib.util.spec_from_file_location("gpu_proof_lines", PROOF / "lines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(compiler() is None, reason="NOT RUN: there is no C compiler to build the NVML library with")
def test_every_line_is_held_or_says_why_it_was_not_run(tmp_path: Path) -> None:
    command = ["bash", str(PROOF / "prove.sh"), "--rehearse", "--quick"]
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    verdicts = {f"{line['part']}.{line['key']}": line["verdict"] for line in proof["lines"]}
    assert set(verdicts.values()) == {"held", "NOT RUN"}, done.stdout + done.stderr
    not_run = {name for name, verdict in verdicts.items() if verdict == "NOT RUN"}
    has_accelerate = importlib.util.find_spec("accelerate") is not None or (ROOT / "build/gpu/rehearsal/accelerate").exists()
    assert not_run - MAY_BE_MISSED == (NEEDS_CUDA if has_accelerate else NEEDS_CUDA | NEEDS_ACCELERATE) - MAY_BE_MISSED
    assert [part["ended"] for part in proof["parts"]] == ["whole"] * 11
    assert done.returncode == 0
    page = (tmp_path / "out" / "proof.txt").read_text()
    assert "REHEARSAL" in page
    assert all(line["promise"] in page and line["measured"] in page for line in proof["lines"])
    assert not (tmp_path / "out" / "proof.log").exists(), "nothing went wrong"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("memsup-proof-")] == [], (
        "it leaves no runs behind"
    )


@pytest.mark.slow
def test_the_programs_that_only_a_card_runs_are_run_from_their_first_line_to_their_last(tmp_path: Path) -> None:
    """A rehearsal has others in their place; here the device `cuda` is the CPU."""
    peers = PROOF / "peers"
    words = [peers / "matrix_peak.py", "--", peers / "second_program.py", "0.9", "--", peers / "any_program.py", "12", "2"]
    command = [sys.executable, str(KIT / "fake_cuda" / "as_cpu.py"), *map(str, words)]
    with (tmp_path / "stdin").open("wb+") as stdin:  # which has ended: the second program is to leave
        done = subprocess.run(
            command, cwd=tmp_path, stdin=stdin, env=os.environ | {"STEP_S": "0"}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    peak, digest = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert json.loads(peak)["flop_per_s"] > 0
    assert digest.startswith("digest 11 ")
    assert (tmp_path / "step").read_text() == "11"


def test_the_table_of_small_cards_is_what_its_script_predicts() -> None:
    done = subprocess.run([sys.executable, str(PROOF / "predicted.py")], capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    table = done.stdout.replace("*", r"\*").splitlines()
    assert len(table) == 7
    assert all(row in page for row in table), done.stdout


def test_a_check_that_breaks_costs_its_own_line_and_those_that_need_it(lines: Any) -> None:
    def check() -> Iterator[Any]:
        yield lines.Finding(key="first", held=True, measured="1 s")
        raise ZeroDivisionError("no seconds")

    found = {one.key: one for one in lines.attempt(["first", "second", "third"], check)}
    assert [one.verdict for one in found.values()] == ["held", "failed", "NOT RUN"]
    assert "ZeroDivisionError: no seconds" in found["second"].measured


def test_a_promise_that_was_not_kept_is_not_a_broken_proof(lines: Any) -> None:
    def check() -> Iterator[Any]:
        raise lines.Unproved("the run failed at step 3")
        yield

    assert [one.verdict for one in lines.attempt(["first", "second"], check)] == ["not held", "NOT RUN"]


def test_lines_that_a_part_did_not_come_to_stand_on_the_page_all_the_same(lines: Any) -> None:
    promises = {"one": "It comes.", "two": "It stays.", "three": "It goes."}
    late = lines.unreached("part", promises, ["one"], "the time was over", broke=False)
    assert [(line["key"], line["verdict"]) for line in late] == [("two", "NOT RUN"), ("three", "NOT RUN")]
    crashed = lines.unreached("part", promises, ["one"], "a crash", broke=True)
    assert [(line["key"], line["verdict"]) for line in crashed] == [("two", "failed"), ("three", "NOT RUN")]


def test_a_machine_that_has_nothing_of_memsup_finds_all_of_it(tmp_path: Path) -> None:
    """prove.sh lays it out; who asks here is an interpreter without any packages."""
    asked = (
        "import importlib.util as u, memsup.about, memsup.memory; memsup.guard; "
        "print(all(u.find_spec(f'memsup.{name}') for name in ('supervisor', 'worker', 'shared', 'checkpoint')))"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exec "{sys.executable}" -S -c "{asked}"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "PYTHONPATH": ""}
    done = subprocess.run(["bash", str(PROOF / "prove.sh")], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
