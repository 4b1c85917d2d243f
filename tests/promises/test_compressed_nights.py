"""A short version of `benchmarks/nights.py`: a night ends as an undisturbed run, and the ledger explains what was in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from kit import ROOT
from kit.compressed_nights import DISTURBANCES, EACH_NIGHT, NEED_A_MOUNT, Outcome, schedule

BENCHMARK = ROOT / "benchmarks" / "nights.py"
SEED = 0
"""Full disk, a date that is set, kills, a leak, a shutdown."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("most", [1, pytest.param(EACH_NIGHT, marks=pytest.mark.nightly)])
def test_a_disturbed_night_ends_as_an_undisturbed_one_and_is_explained(tmp_path: Path, most: int) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(BENCHMARK), "--seeds", f"{SEED}..{SEED}", "--results", str(results), "--most", str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = msgspec.json.decode(results.read_bytes(), type=Outcome)
    assert outcome.problem is None
    without_mounts = [card.__name__ for card in schedule(SEED) if card not in NEED_A_MOUNT]
    assert len(outcome.disturbances) >= min(most, len(without_mounts))


def test_each_disturbance_comes_about_equally_often_in_fifty_nights() -> None:
    """The decks are dealt to their end, and the same seed has the same night."""
    dealt = [card for seed in range(50) for card in schedule(seed)]
    assert len(dealt) == 50 * EACH_NIGHT
    counts = [dealt.count(card) for card in DISTURBANCES]
    assert max(counts) - min(counts) <= 1
    assert schedule(7) == schedule(7)
