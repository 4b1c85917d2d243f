"""Memory as the sensors see it: recorded trees of several kinds of machine, files that vanish or lie, and this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsup.supervisor.fence.cgroup2 import Cgroup2
from memsup.supervisor.kernel.cgroups import Hierarchy, find_hierarchy, lineage
from memsup.supervisor.kernel.kernel_file import KernelFile
from memsup.supervisor.sense.memory import MemorySensor, read_disk

MIB = 1 << 20
GIB = 1 << 30
MEMINFO = """MemTotal:       16384000 kB
MemFree:         1000000 kB
MemAvailable:    8192000 kB
SwapTotal:       2000000 kB
SwapFree:        1500000 kB
"""
PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "37 31 0:34 {root} /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
V1_OWN = "9:name=systemd:/\n6:freezer:/\n4:cpuset,memory:{own}\n0::/\n"

Tree = dict[str, str]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Tree], Path]:
    def write(tree: Tree) -> Path:
        for name, text in tree.items():
            file = tmp_path / "root" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "root"

    return write


def cgroup2(folder: str, *, limit: str = "max", current: int = 0, inactive: int = 0, active: int = 0, slab: int = 0) -> Tree:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{current}\n",
        f"{folder}/memory.stat": (
            f"anon 1\nfile 2\ninactive_anon 7\ninactive_file {inactive}\nactive_file {active}\n"
            f"slab_reclaimable {slab}\nslab_unreclaimable 8\nslab 9\n"
        ),
    }


def cgroup1(folder: str, *, limit: int = 9223372036854771712, usage: int = 0, inactive: int = 0, active: int = 0) -> Tree:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": (
            f"cache 1\ninactive_file 5\nactive_file 6\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
        ),
    }


V2 = {
    "proc/meminfo": MEMINFO,
    "proc/pressure/memory": PSI.format(some=0, full=0),
    "proc/self/mountinfo": V2_MOUNT,
    "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
    **cgroup2("sys/fs/cgroup/user.slice"),
    **cgroup2("sys/fs/cgroup/user.slice/session-1.scope"),
}


# --------------------------------------------------------------------------------------------------------------------
# The machine and its cgroups


def test_a_machine_without_cgroup_limits_is_what_meminfo_says(write: Callable[[Tree], Path]) -> None:
    reading = MemorySensor(None, write(V2)).read(100.0)
    assert reading.ram_total_bytes == 16384000 * 1024
    assert reading.ram_available_bytes == 8192000 * 1024
    assert reading.swap_free_bytes == 1500000 * 1024
    assert reading.worker_bytes is None
    assert reading.at_s == 100.0


def test_the_tightest_of_all_enclosing_limits_counts(write: Callable[[Tree], Path]) -> None:
    """Dask reads only the root's; the limit may stand at any level."""
    root = write(
        V2
        | cgroup2("sys/fs/cgroup/user.slice", limit=str(4 * GIB), current=3 * GIB)
        | cgroup2("sys/fs/cgroup/user.slice/session-1.scope", limit=str(6 * GIB), current=2 * GIB)
    )
    reading = MemorySensor(None, root).read(1.0)
    assert reading.ram_total_bytes == 4 * GIB
    assert reading.ram_available_bytes == 1 * GIB


def test_caches_are_not_used_memory(write: Callable[[Tree], Path]) -> None:
    """Neither pages of files nor, after a data set of a million files, the kernel's cache of their names."""
    tree = cgroup2("sys/fs/cgroup/user.slice", limit=str(5 * GIB), current=5 * GIB, inactive=2 * GIB, active=GIB, slab=GIB)
    assert MemorySensor(None, write(V2 | tree)).read(1.0).ram_available_bytes == 4 * GIB


def test_v1_counts_the_whole_subtree_and_its_page_cache(write: Callable[[Tree], Path]) -> None:
    tree = {
        "proc/meminfo": MEMINFO,
        "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
        "proc/self/cgroup": V1_OWN.format(own="/job"),
        **cgroup1("sys/fs/cgroup/memory"),
        **cgroup1("sys/fs/cgroup/memory/job", limit=2 * GIB, usage=2 * GIB, inactive=GIB // 2, active=GIB // 4),
    }
    reading = MemorySensor(None, write(tree)).read(1.0)
    assert (reading.ram_total_bytes, reading.ram_available_bytes) == (2 * GIB, GIB // 2 + GIB // 4)
    assert reading.pressure_fraction is None


def test_a_limit_set_while_it_runs_is_seen(write: Callable[[Tree], Path]) -> None:
    root = write(V2)
    sensor = MemorySensor(None, root)
    assert sensor.read(1.0).ram_total_bytes == 16384000 * 1024
    write(cgroup2("sys/fs/cgroup/user.slice", limit=str(GIB), current=GIB // 2))
    assert sensor.read(2.1).ram_available_bytes == GIB // 2
    write(cgroup2("sys/fs/cgroup/user.slice"))
    assert sensor.read(3.2).ram_total_bytes == 16384000 * 1024


def test_the_workers_own_enclosing_cgroups_count_and_the_fence_itself_does_not(write: Callable[[Tree], Path]) -> None:
    tree = V2 | cgroup2("sys/fs/cgroup/memsup.slice", limit=str(3 * GIB), current=GIB)
    tree |= cgroup2("sys/fs/cgroup/memsup.slice/memsup-x", limit=str(2 * GIB), current=GIB, inactive=MIB, active=MIB)
    tree |= {"sys/fs/cgroup/memsup.slice/memsup-x/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n"}
    root = write(tree)
    fence = Cgroup2Here(root / "sys/fs/cgroup/memsup.slice/memsup-x")
    write({"sys/fs/cgroup/memsup.slice/memsup-x/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 5\noom_group_kill 2\n"})
    reading = MemorySensor(fence, root).read(1.0)
    assert reading.ram_total_bytes == 3 * GIB
    assert reading.ram_available_bytes == 2 * GIB
    assert reading.worker_bytes == GIB - 2 * MIB
    assert reading.fence_oom_kills == 3


class Cgroup2Here(Cgroup2):
    """The v2 fence's readings on a recorded folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("x", 2 * GIB, folder)

    def launch_prefix(self) -> list[str]:
        raise AssertionError("nothing is started in a recorded folder")


# --------------------------------------------------------------------------------------------------------------------
# Pressure


def test_pressure_is_the_share_of_time_since_the_reading_before(write: Callable[[Tree], Path]) -> None:
    root = write(V2)
    sensor = MemorySensor(None, root)
    assert sensor.read(10.0).pressure_fraction is None, "one reading of a counter says nothing"
    write({"proc/pressure/memory": PSI.format(some=50_000, full=20_000)})
    assert sensor.read(10.2).pressure_fraction == pytest.approx(0.25)
    assert sensor.read(10.3).pressure_fraction == 0.0
    write({"proc/pressure/memory": PSI.format(some=900_000, full=20_000)})
    assert sensor.read(10.4).pressure_fraction == 1.0, "counters are folded late; more than all the time is all the time"
    write({"proc/pressure/memory": PSI.format(some=10, full=0)})
    assert sensor.read(10.5).pressure_fraction is None, "a counter that runs backwards says nothing"


# --------------------------------------------------------------------------------------------------------------------
# What vanishes or lies


def test_each_source_may_vanish_and_come_back(write: Callable[[Tree], Path]) -> None:
    tree = V2 | cgroup2("sys/fs/cgroup/user.slice", limit=str(GIB), current=MIB)
    root = write(tree)
    sensor = MemorySensor(None, root)
    sensor.read(1.0)
    shutil.rmtree(root)
    root.mkdir()
    deadline_s = time.monotonic() + 30
    sensor = MemorySensor(None, root)
    reading = sensor.read(2.0)
    assert (reading.ram_total_bytes, reading.ram_available_bytes, reading.swap_free_bytes) == (None, None, None)
    assert reading.pressure_fraction is None
    write(tree)
    while sensor.read(3.0).ram_total_bytes is None:
        assert time.monotonic() < deadline_s


def test_a_limit_whose_use_cannot_be_read_makes_the_rest_unknown_not_plenty(write: Callable[[Tree], Path]) -> None:
    root = write(V2 | cgroup2("sys/fs/cgroup/user.slice", limit=str(GIB), current=GIB))
    (root / "sys/fs/cgroup/user.slice/memory.stat").unlink()
    reading = MemorySensor(None, root).read(1.0)
    assert reading.ram_total_bytes == GIB
    assert reading.ram_available_bytes is None


@pytest.mark.parametrize(
    "meminfo",
    [
        MEMINFO.replace("8192000", "-8192000"),
        MEMINFO.replace("8192000", "99999999999"),  # more than there is
        MEMINFO.replace("8192000 kB", ""),
        MEMINFO.replace("MemAvailable", "MemAvailabl"),
        MEMINFO.replace("8192000", "8_192_000"),
        MEMINFO.replace("8192000", "9" * 5000),
    ],
    ids=range(6),
)
def test_absurd_numbers_are_unknown(write: Callable[[Tree], Path], meminfo: str) -> None:
    reading = MemorySensor(None, write(V2 | {"proc/meminfo": meminfo})).read(1.0)
    assert reading.ram_available_bytes is None
    assert reading.ram_total_bytes == 16384000 * 1024


def test_more_cache_than_use_is_unknown_not_negative(write: Callable[[Tree], Path]) -> None:
    root = write(V2 | cgroup2("sys/fs/cgroup/x", current=10, inactive=8, active=8))
    assert Cgroup2Here(root / "sys/fs/cgroup/x").used_bytes() is None


def test_values_that_jump_are_passed_on_as_they_are(write: Callable[[Tree], Path]) -> None:
    """Whether a jump is believed is the ladder's to decide."""
    sensor = MemorySensor(None, write(V2))
    for kib in (8192000, 3, 16384000, 0, 8192000):
        write({"proc/meminfo": MEMINFO.replace("8192000", str(kib))})
        assert sensor.read(1.0).ram_available_bytes == kib * 1024


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_garbage_anywhere_never_raises_and_never_becomes_a_negative(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "garbage"
    shutil.rmtree(root, ignore_errors=True)
    tree = V2 | cgroup2("sys/fs/cgroup/user.slice", limit=str(GIB), current=MIB)
    victims = data.draw(st.sets(st.sampled_from(sorted(tree)), min_size=1))
    for name, text in tree.items():
        content = text.encode()
        if name in victims:
            junk = data.draw(st.binary(max_size=80))
            at = data.draw(st.integers(0, len(content)))
            content = data.draw(st.sampled_from([junk, content[:at] + junk + content[at:], content[:at]]))
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    sensor = MemorySensor(None, root)
    for now_s in (1.0, 1.1):
        reading = sensor.read(now_s)
        for value in (reading.ram_total_bytes, reading.ram_available_bytes, reading.swap_free_bytes):
            assert value is None or value >= 0
        assert reading.pressure_fraction is None or 0 <= reading.pressure_fraction <= 1


@given(st.binary(max_size=400), st.binary(min_size=1, max_size=8))
def test_a_number_is_digits_or_unknown(content: bytes, key: bytes) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    file = KernelFile(Path(f"/proc/self/fd/{read_end}"))  # a name that is not there
    assert file.read() is False
    assert file.number() is None
    assert file.number_after(key) is None
    memory = os.memfd_create("memsup-test")
    os.write(memory, content)
    file = KernelFile(Path(f"/proc/self/fd/{memory}"))
    assert file.read() is (len(content) > 0)
    for number in (file.number(), file.number_after(key)):
        assert number is None or number >= 0
    if content.strip().isdigit() and len(content.strip()) < 18:
        assert file.number() == int(content)
    file.close()
    os.close(memory)


def test_a_file_replaced_under_its_name_is_found_again(tmp_path: Path) -> None:
    """A cgroup of the same name made anew: the old descriptor answers ENODEV. Shown on a process's own file in /proc."""
    link = tmp_path / "stat"
    first, second = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    link.symlink_to(f"/proc/{first.pid}/stat")
    file = KernelFile(link)
    assert file.read()
    assert file.text().startswith(f"{first.pid} ")
    first.kill()
    first.wait()
    link.unlink()
    assert file.read() is False
    assert file.text() == ""
    link.symlink_to(f"/proc/{second.pid}/stat")
    deadline_s = time.monotonic() + 30
    while not file.read():
        assert time.monotonic() < deadline_s
    assert file.text().startswith(f"{second.pid} ")
    second.kill()
    second.wait()


# --------------------------------------------------------------------------------------------------------------------
# Where we stand in the cgroups


@pytest.mark.parametrize(
    ("tree", "controller", "expected"),
    [
        pytest.param(
            {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/cgroup.controllers": "memory\n"},
            "memory",
            (2, "sys/fs/cgroup", "sys/fs/cgroup/a/b"),
            id="v2",
        ),
        pytest.param(
            {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/cgroup.controllers": "cpu\n"},
            "memory",
            None,
            id="v2 without the memory controller",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
                "proc/self/cgroup": V1_OWN.format(own="/a/b"),
                "sys/fs/cgroup/memory/a/b/x": "",
            },
            "memory",
            (1, "sys/fs/cgroup/memory", "sys/fs/cgroup/memory/a/b"),
            id="v1 beside v2",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V1_MOUNTS.format(root="/docker/abc"),
                "proc/self/cgroup": V1_OWN.format(own="/docker/abc"),
                "sys/fs/cgroup/memory/x": "",
            },
            "memory",
            (1, "sys/fs/cgroup/memory", "sys/fs/cgroup/memory"),
            id="v1 in a container that sees the host's names",
        ),
        pytest.param(
            {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cgroup.controllers": "memory\n"},
            "memory",
            (2, "sys/fs/cgroup", "sys/fs/cgroup"),
            id="outside of its own namespace",
        ),
        pytest.param({}, "memory", None, id="no proc"),
        pytest.param({"proc/self/mountinfo": "garbage\n- - -\n", "proc/self/cgroup": "x\n"}, "memory", None, id="garbage"),
    ],
)
def test_the_own_cgroup_is_found(
    write: Callable[[Tree], Path], tree: Tree, controller: str, expected: tuple[int, str, str] | None
) -> None:
    root = write({"x": "", **tree})
    for folder in ("a/b", "memory"):
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
    found = find_hierarchy(controller, root)
    assert found == (expected and Hierarchy(expected[0], root / expected[1], root / expected[2]))


def test_a_lineage_ends_at_the_mount() -> None:
    assert lineage(Path("/m/a/b"), Path("/m")) == [Path("/m/a/b"), Path("/m/a"), Path("/m")]
    assert lineage(Path("/m"), Path("/m")) == [Path("/m")]
    with pytest.raises(ValueError, match="below"):
        lineage(Path("/elsewhere"), Path("/m"))


# --------------------------------------------------------------------------------------------------------------------
# This machine


def test_this_machine_can_be_read() -> None:
    reading = MemorySensor(None).read(time.monotonic())
    assert 0 < reading.ram_available_bytes <= reading.ram_total_bytes
    assert reading.swap_free_bytes is not None


@pytest.mark.alone
def test_a_reading_costs_microseconds() -> None:
    """At 100 readings a second, half a percent of a core, or what the kernel alone takes for it twice on a slower one. The
    quickest of many batches, since load is no fault of ours.
    """
    sensor = MemorySensor(None)
    sensor.read(0.0)
    kernel_file = os.open("/proc/meminfo", os.O_RDONLY)

    def batch_s(once: Callable[[int], object]) -> float:
        began_s = time.process_time()
        for number in range(100):
            once(number)
        return (time.process_time() - began_s) / 100

    batches = range(50)
    kernel_s, best_s = (
        min(batch_s(once) for _ in batches)
        for once in (lambda _: os.pread(kernel_file, 8192, 0), lambda number: sensor.read(number / 100))
    )
    os.close(kernel_file)
    assert best_s < max(50e-6, 2 * kernel_s)


def test_reading_opens_nothing_and_keeps_nothing() -> None:
    """Descriptors and buffers stay as they are over thousands of readings."""
    code = (
        "import os, tracemalloc\n"
        "from memsup.supervisor.sense.memory import MemorySensor\n"
        "sensor = MemorySensor(None)\n"
        "for number in range(100): sensor.read(number / 100)\n"
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        "tracemalloc.start()\n"
        "first = tracemalloc.get_traced_memory()[0]\n"
        "for number in range(100, 5000): sensor.read(number / 100)\n"
        "assert sorted(os.listdir('/proc/self/fd')) == before\n"
        "assert tracemalloc.get_traced_memory()[0] - first < 4096, tracemalloc.get_traced_memory()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_disk_space_is_read_and_a_folder_that_went_away_is_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    assert read_disk(1.0, folder).free_bytes == pytest.approx(shutil.disk_usage(folder).free, rel=0.2)
    folder.rmdir()
    assert read_disk(2.0, folder).free_bytes is None
