"""Promise 2: kill -9 of either process at any instant, and training goes on bit-identically. The long version, with hundreds of
kills, is `benchmarks/kills.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import end_supervisors
from kit.killed_runs import Tally, disturbed, make_job, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "job"
    end_supervisors()


@pytest.mark.parametrize(
    ("kills", "epochs", "lanes", "amp"), [(3, 8, 1, "off"), pytest.param(8, 30, 2, "auto", marks=pytest.mark.nightly)]
)
def test_a_run_killed_again_and_again_ends_with_the_bits_of_the_undisturbed_run(
    job: Path, kills: int, epochs: int, lanes: int, amp: str
) -> None:
    make_job(job, epochs=epochs, lanes=lanes, amp=amp)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    tally = Tally()
    expected = undisturbed(job, "undisturbed")
    assert expected.step == 27 * epochs
    assert disturbed(job, "killed", random.Random(seed), tally, kills=kills, longest_life_s=5.0) == expected, f"seed {seed}"
    assert tally.total >= kills // 2, tally
