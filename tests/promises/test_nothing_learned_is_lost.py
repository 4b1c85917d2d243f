"""Promise 2: kill -9 of either process at any instant, and training goes on bit-identically. The long version, with hundreds of
kills, is `benchmarks/kills.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kit.cli_process import end_supervisors
from kit.curves_read import check_whole, read_tensorboard, read_trackio
from kit.killed_runs import Tally, disturbed, make_job, undisturbed

from memsup.shared.model.libraries import is_installed
from memsup.shared.paths import run_paths
from memsup.shared.settings import CurveKind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "job"
    end_supervisors()


@pytest.mark.parametrize(
    ("kills", "epochs", "lanes", "amp", "ranks"),
    [
        (3, 8, 1, "off", 1),
        pytest.param(8, 30, 2, "auto", 1, marks=pytest.mark.nightly),
        pytest.param(12, 12, 1, "off", 2, marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_again_and_again_ends_with_the_bits_of_the_undisturbed_run(
    job: Path, kills: int, epochs: int, lanes: int, amp: str, ranks: int
) -> None:
    make_job(job, epochs=epochs, lanes=lanes, amp=amp, ranks=ranks)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    tally = Tally()
    expected = undisturbed(job, "undisturbed")
    assert expected.step == 27 * epochs
    wanted = [kind for kind in CurveKind if is_installed(kind)]
    make_job(job, epochs=epochs, lanes=lanes, amp=amp, ranks=ranks, report_to=",".join(wanted) or "off")
    assert disturbed(job, "killed", random.Random(seed), tally, kills=kills, longest_life_s=5.0) == expected, f"seed {seed}"
    assert tally.total >= kills // 2, tally
    for kind in wanted:
        read = {CurveKind.TENSORBOARD: read_tensorboard, CurveKind.TRACKIO: partial(read_trackio, run="killed")}[kind]
        scalars, _ = read(run_paths("killed").curves / kind)
        check_whole(scalars, steps=expected.step)
        assert len(scalars["eval/accuracy"]) == epochs
