"""Nothing that a program prints can fill the disk, stop the program or keep the guard from its work.

With the real command line and the real supervisor; what prints a gigabyte does so as fast as C can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import end_supervisors, eventually, memsup

from memsup.shared.paths import run_paths
from memsup.supervisor.record.output import worker_log

pytestmark = pytest.mark.slow
MIB = 1 << 20
MOST_RESIDENT_MIB = 38
"""Of the supervisor: what structlog brings with it is in there."""


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    end_supervisors()


def supervisor_pid() -> int:
    return int(run_paths("default").lock.read_text())


def resident_kib(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0])


def test_a_gigabyte_leaves_its_beginning_and_its_end_and_less_than_64_mib(tmp_path: Path) -> None:
    """The program gets through, its first and last words are there, what is left out is said, and the guard stays small."""
    done = tmp_path / "done"
    line = "a line of forty-one characters, as many are"
    printing = f"echo the beginning; yes '{line}' | head -c 1G; echo; printf 'the end'; touch {done}; sleep 600"
    assert memsup("start", "--", "sh", "-c", printing, cwd=tmp_path).returncode == 0
    paths = run_paths("default")
    eventually(done.exists, within_s=200)
    eventually(lambda: [line.text for line in worker_log(paths).last(1)] == ["the end"])
    assert sum(file.stat().st_blocks * 512 for file in paths.state.iterdir()) <= 64 * MIB
    assert resident_kib(supervisor_pid()) <= MOST_RESIDENT_MIB << 10
    texts = [read.text for read in worker_log(paths).all()]
    assert texts[0] == "the beginning"
    assert texts[1:50_000] == [line] * 49_999
    assert sum("left out here" in text for text in texts) >= 1
    assert set(texts[-40_000:-3]) == {line}
    memsup("stop", "--now")
    assert memsup("logs", "--worker", "-n", "1").stdout == "the end\n"


def test_the_supervisor_is_small_and_stays_so(tmp_path: Path) -> None:
    """At rest, beside a program that does nothing, after its loop has been through all that it does."""
    assert memsup("start", "--", "sleep", "600", cwd=tmp_path).returncode == 0
    eventually(lambda: (memsup("status", "--json").document["worst_stall_s"]) is not None)
    assert resident_kib(supervisor_pid()) <= MOST_RESIDENT_MIB << 10
