"""The fences that are cgroups, each kind held to the same promises with real limits, runaways, freezers and kills.

A kind that cannot be made here is reported as not run; `tests/kit/vm/run` runs them all, as root and as an ordinary user.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.fenced import MIB, kill, misbehave, subreaper, wait_for

from memsup.supervisor.fence import Fence, FenceError, Kind
from memsup.supervisor.fence.cgroup1 import Cgroup1Fence
from memsup.supervisor.fence.cgroup2 import DelegatedFence
from memsup.supervisor.fence.scope import ScopeFence
from memsup.supervisor.kernel.processes import look_at

pytestmark = pytest.mark.slow
LIMIT = 200 * MIB
KINDS: dict[Kind, Callable[[str, int], Fence]] = {
    Kind.SCOPE: ScopeFence,
    Kind.CGROUP2: DelegatedFence,
    Kind.CGROUP1: Cgroup1Fence,
}
# The same facts under the names of the two versions.
LIMIT_FILE = {1: "memory.limit_in_bytes", 2: "memory.max"}
HIGHEST_FILE = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
CHARGED_FILE = {1: "memory.usage_in_bytes", 2: "memory.current"}
NO_LIMIT = {1: "-1", 2: "max"}
_numbers = itertools.count()

Make = Callable[..., Fence]


def why_not(kind: Kind) -> str | None:
    """Why this kind cannot be had here. Returns None when it can."""
    try:
        assert KINDS[kind](f"test_{os.getpid()}_first", LIMIT).remove()
    except FenceError as error:
        return str(error)
    return None


REFUSED = {kind: why for kind in KINDS if (why := why_not(kind))}


@pytest.fixture(params=[kind for kind in KINDS if kind not in REFUSED])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Fence] = []

    def make(limit_bytes: int = LIMIT, run: str | None = None) -> Fence:
        made.append(KINDS[request.param](run or f"test_{os.getpid()}_{next(_numbers)}", limit_bytes))
        return made[-1]

    with subreaper():
        yield make
        for fence in made:
            kill(fence, None)
            assert fence.remove()
            assert not fence.folder.exists()


@pytest.fixture
def fence(make: Make) -> Fence:
    return make()


def version(fence: Fence) -> int:
    return 1 if fence.kind is Kind.CGROUP1 else 2


def number(fence: Fence, names: dict[int, str]) -> int:
    text = (fence.folder / names[version(fence)]).read_text().strip()
    return 1 << 62 if text == "max" else int(text)


def wait_for_limit(fence: Fence, limit_bytes: int) -> None:
    """The slice reads "max" after systemd started or ended a scope in it; until `renew` the scope's own property holds."""

    def renewed() -> bool:
        fence.renew()
        return number(fence, LIMIT_FILE) == fence.limit_bytes == limit_bytes

    wait_for("the limit is in force", renewed)


@pytest.mark.parametrize("kind", KINDS)
def test_this_machine_offers(kind: Kind) -> None:
    """Not a promise: shows which kinds the tests below did not run with, and why."""
    if kind in REFUSED:
        pytest.skip(f"{kind}: {REFUSED[kind]}")


@pytest.mark.parametrize(
    "faults",
    [
        {"LEAK_MB_PER_S": "full"},
        {"LEAK_MB_PER_S": 500},
        {"LEAK_MB_PER_S": "full", "NATIVE": 1, "LEAK_MB": 600},
        {"LEAK_MB_PER_S": "full", "IGNORES": 1},
    ],
    ids=str,
)
def test_a_runaway_meets_the_limit_and_the_kernel_ends_it_there(fence: Fence, faults: dict[str, object]) -> None:
    """Not one page beyond: the machine's reserve is untouched whatever the allocator does."""
    child = misbehave(fence, **faults)
    wait_for("the kernel killed it", lambda: child.exit_code() is not None)
    assert child.exit_code() == -9
    assert fence.oom_kills() >= 1
    assert LIMIT * 0.95 < number(fence, HIGHEST_FILE) <= LIMIT
    assert fence.populated() is False


def test_leaking_children_are_bounded_together(fence: Fence) -> None:
    """Four loaders of 100 MB each do not fit in 200 MiB; each alone would."""
    child = misbehave(fence, FORKS=4, LEAK_MB_PER_S="full", LEAK_MB=100)
    wait_for("the kernel killed one", lambda: fence.oom_kills())
    assert number(fence, HIGHEST_FILE) <= LIMIT
    kill(fence, child)


@pytest.mark.parametrize(
    "faults",
    [
        {"IGNORES": 1},
        {"STOPS": 1},
        {"FORKS": 3},
        {"ESCAPES": 1},
        {"ESCAPES": 1, "FORGETS": 1},
        {"FORK_BOMB": 200},
        {"NATIVE": 1, "LEAK_MB": 150},
    ],
    ids=str,
)
def test_the_whole_tree_dies_and_its_memory_is_back(fence: Fence, faults: dict[str, object]) -> None:
    child = misbehave(fence, **{"LEAK_MB_PER_S": "full", "LEAK_MB": 24, **faults})
    wait_for("it holds memory", lambda: (fence.used_bytes() or 0) > 24_000_000)
    pids = fence.pids()
    assert child.pid in pids
    kill(fence, child)
    assert all((found := look_at(pid)) is None or found.dead for pid in pids)
    assert fence.used_bytes() < 8 * MIB, "what is left is the kernel's own, and goes when it tidies up"


def test_a_frozen_tree_stands_still_and_goes_on_after_the_thaw(fence: Fence, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    child = misbehave(fence, FORKS=3, PROGRESS=progress)
    wait_for("it works", lambda: progress.exists() and progress.stat().st_size > 10)
    fence.freeze()
    wait_for("it is frozen", fence.frozen)
    size = progress.stat().st_size
    time.sleep(0.2)  # time in which it would have written
    assert progress.stat().st_size == size
    fence.thaw()
    wait_for("it works again", lambda: progress.stat().st_size > size + 10)
    assert fence.frozen() is False
    kill(fence, child)


def test_a_frozen_tree_can_be_killed(fence: Fence) -> None:
    child = misbehave(fence, FORKS=3)
    wait_for("all are there", lambda: len(fence.pids()) == 4)
    fence.freeze()
    kill(fence, child)


def test_a_limit_that_somebody_else_changed_is_put_back(fence: Fence) -> None:
    with_swap = fence.folder / "memory.memsw.limit_in_bytes"
    if with_swap.exists():
        with_swap.write_text("-1")
    (fence.folder / LIMIT_FILE[version(fence)]).write_text(NO_LIMIT[version(fence)])
    wait_for_limit(fence, LIMIT)
    assert not with_swap.exists() or int(with_swap.read_text()) == LIMIT


def test_page_cache_does_not_count_as_the_workers(fence: Fence) -> None:
    """Ray killed for it (ray-project/ray#33741): a data set that was read is not memory that only death gives back."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as data:  # a disk; /tmp may be memory itself
        data.write(os.urandom(MIB) * 96)
        data.flush()
        os.fsync(data.fileno())
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # charged to who reads it next, inside
        child = misbehave(fence, READS=data.name)
        wait_for("the file was read", lambda: number(fence, CHARGED_FILE) > 80 * MIB)
        assert fence.used_bytes() < 30 * MIB
        kill(fence, child)


def test_a_supervisor_that_starts_again_finds_and_kills_what_the_first_left(make: Make) -> None:
    first = make()
    child = misbehave(first, ESCAPES=1, FORGETS=1)
    wait_for("both are there", lambda: len(first.pids()) >= 2)
    again = make(run=first.name.removeprefix("memsup-"))
    assert again.populated() is True
    assert set(again.pids()) == set(first.pids())
    kill(again, child)


def test_kills_from_before_do_not_count_for_the_next_supervisor(make: Make) -> None:
    first = make()
    child = misbehave(first, LEAK_MB_PER_S="full")
    wait_for("the kernel killed it", lambda: child.exit_code() is not None)
    assert first.oom_kills() >= 1
    assert make(run=first.name.removeprefix("memsup-")).oom_kills() == 0


def test_nobody_else_is_touched(make: Make) -> None:
    """A bystander beside the fence and one inside another run's fence live on through freeze, limit and kill."""
    bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    neighbour_fence, fence = make(), make()
    neighbour = misbehave(neighbour_fence)
    child = misbehave(fence, FORKS=2, LEAK_MB_PER_S="full")
    wait_for("the kernel killed one", lambda: fence.oom_kills())
    fence.freeze()
    kill(fence, child)
    assert bystander.poll() is None
    assert neighbour.exit_code() is None
    assert neighbour_fence.oom_kills() == 0
    bystander.kill()
    bystander.wait()


def test_readings_of_a_fence_that_was_taken_away_are_unknown_and_orders_to_it_do_nothing(
    make: Make,
) -> None:
    fence = make()
    assert fence.used_bytes() is not None
    assert fence.remove()
    assert fence.used_bytes() is None
    assert fence.oom_kills() is None
    assert fence.pids() == []
    assert fence.populated() is False
    assert fence.frozen() is None
    for order in (fence.freeze, fence.thaw, fence.kill, fence.renew):
        order()


def test_the_worker_may_not_swap(fence: Fence) -> None:
    """A worker that swaps drags the whole machine along; it is ended instead."""
    file = fence.folder / ("memory.swappiness" if version(fence) == 1 else "memory.swap.max")

    def off() -> bool:
        fence.renew()
        return file.read_text() == "0\n"

    wait_for("swap is off", off)  # the slice as in `wait_for_limit`


def test_v2_ends_the_tree_as_a_whole(fence: Fence) -> None:
    """With `memory.oom.group` no loader dies alone and leaves the worker waiting for it."""
    if version(fence) == 1:
        pytest.skip("cgroup v1 knows no groups; the supervisor sees `oom_kills` and ends the rest")
    child = misbehave(fence, FORKS=4, LEAK_MB_PER_S="full", LEAK_MB=100)
    wait_for("all are gone", lambda: fence.populated() is False)
    wait_for("its parent hears of it", lambda: child.exit_code() is not None)
    assert child.exit_code() == -9
    assert fence.oom_kills() >= 2


def test_systemd_forgets_no_limit_when_it_reads_its_units_again(fence: Fence) -> None:
    if fence.kind is not Kind.SCOPE:
        pytest.skip("not systemd's")
    child = misbehave(fence)
    wait_for("it is inside", lambda: child.pid in fence.pids())
    manager = ["systemctl"] if os.geteuid() == 0 else ["systemctl", "--user"]
    subprocess.run([*manager, "daemon-reload"], check=True, timeout=60)
    wait_for_limit(fence, LIMIT)
    scope = fence.folder / f"{fence.name}.scope"
    assert int((scope / "memory.max").read_text()) == LIMIT
    assert (scope / "memory.oom.group").read_text() == "1\n"
    kill(fence, child)


def test_the_worker_is_in_no_terminals_scope(fence: Fence) -> None:
    """systemd-oomd killed 2,104 processes of one session because they shared its scope (omarchy#9799)."""
    child = misbehave(fence)
    wait_for("it is inside", lambda: child.pid in fence.pids())
    cgroups = Path(f"/proc/{child.pid}/cgroup").read_text()
    assert f"/{fence.name}" in cgroups
    assert "session-" not in cgroups.replace("session-test", "")
    kill(fence, child)


@pytest.mark.skipif(not shutil.which("systemd-run"), reason="needs systemd-run")
def test_a_user_without_a_manager_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logged in by `su` or `cron`: no bus of one's own."""
    if os.geteuid() == 0 or not Path("/run/systemd/system").is_dir():
        pytest.skip("NOT RUN: needs an ordinary user on a machine run by systemd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with pytest.raises(FenceError, match="this user's systemd manager makes no scope"):
        ScopeFence("test_nobus", LIMIT)
