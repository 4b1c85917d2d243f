"""What `machine.py` finds on machines recorded elsewhere (tests/machines: captured files, nothing invented) and on this one."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kit import KIT

from memsup.shared.settings import Settings
from memsup.supervisor.decide.readings import THIS_MACHINE
from memsup.supervisor.decide.tier_lines import notes
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.sense.machine import disk_free_bytes, largest_users, look
from memsup.supervisor.sense.memory import MemorySensor

MACHINES = KIT / "machines"
MIB = 2**20


def recorded(name: str, root: Path, **more: str) -> Path:
    """The captured files of machine `name`, laid out below `root`; `more` adds or replaces files."""
    files = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))["files"]
    for path, text in (files | more).items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "total", "source", "limits"),
    [
        ("v2-desktop", 990876 * 1024, THIS_MACHINE, []),
        ("v1-unlimited", 24684084 * 1024, THIS_MACHINE, []),
        ("v2-namespace-old-mount", 990876 * 1024, THIS_MACHINE, []),
        ("v2-container", 500 * MIB, "cgroup /", [("/", 500 * MIB)]),
        ("v1-docker", 2048 * MIB, "cgroup /", [("/", 2048 * MIB)]),
        (
            "v1-nested",
            2048 * MIB,
            "cgroup /machine/docker/3f5a",
            [("/machine/docker/3f5a", 2048 * MIB), ("/machine/docker", 3072 * MIB)],
        ),
    ],
)
def test_ram_is_the_smallest_of_the_machine_and_every_enclosing_cgroup(
    name: str, total: int, source: str, limits: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Unlimited values (`max`, 9223372036854771712) are no limit, and each limit is named by the cgroup that sets it."""
    machine = look(tmp_path, root=recorded(name, tmp_path / "root"))
    assert machine.ram_total_bytes == total
    assert machine.ram_source == source
    assert machine.machine_ram_bytes is not None
    assert (machine.machine_ram_bytes > total) == bool(limits)
    assert list(machine.cgroup_limits) == limits


def test_memory_high_counts_because_the_kernel_throttles_above_it(tmp_path: Path) -> None:
    """A scope with MemoryMax=400M and MemoryHigh=350M may use 350 MiB."""
    assert look(tmp_path, root=recorded("v2-scope", tmp_path / "root")).ram_total_bytes == 350 * MIB


def test_a_tighter_slice_around_a_wider_scope_wins(tmp_path: Path) -> None:
    """Reading the innermost group alone would promise twice what there is."""
    machine = look(tmp_path, root=recorded("v2-slice", tmp_path / "root"))
    assert machine.ram_total_bytes == 300 * MIB
    assert machine.ram_source.endswith("/training.slice")
    assert [size for _, size in machine.cgroup_limits] == [600 * MIB, 300 * MIB]


@pytest.mark.parametrize("name", ["v2-container", "v1-docker", "v2-slice"])
def test_page_cache_does_not_count_as_used(name: str, tmp_path: Path) -> None:
    """The kernel takes cache back before it refuses anybody (ray-project/ray#33741 killed for it)."""
    root = recorded(name, tmp_path / "root")
    before = look(tmp_path, root=root)
    assert before.ram_available_bytes is not None
    assert 0 < before.ram_available_bytes < before.ram_total_bytes
    cached = 100 * MIB
    for stat in root.glob("sys/fs/cgroup/**/memory.stat"):
        prefix = "total_" if "total_inactive_file" in stat.read_text() else ""
        lines = dict(line.split() for line in stat.read_text().splitlines())
        lines[prefix + "inactive_file"] = str(int(lines[prefix + "inactive_file"]) + cached)
        stat.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        for usage in ("memory.current", "memory.usage_in_bytes"):
            if (stat.parent / usage).exists():
                (stat.parent / usage).write_text(f"{int((stat.parent / usage).read_text()) + cached}\n")
    assert look(tmp_path, root=root).ram_available_bytes == before.ram_available_bytes


def test_v1_tells_a_container_of_the_limits_above_it(tmp_path: Path) -> None:
    """Docker shows only our own part of the tree; the sum of what lies above stands in `hierarchical_memory_limit`."""
    root = recorded("v1-docker", tmp_path / "root")
    stat = root / "sys/fs/cgroup/memory/memory.stat"
    stat.write_text(stat.read_text().replace("hierarchical_memory_limit 2147483648", "hierarchical_memory_limit 1073741824"))
    assert look(tmp_path, root=root).ram_total_bytes == 1024 * MIB


def tightened(root: Path) -> Path:
    """The same machine after somebody set a throttle (v2), or a limit that a container cannot see (v1), and filled the caches
    of names and inodes.
    """
    for stat in root.glob("sys/fs/cgroup/**/memory.stat"):
        lines = dict(line.split() for line in stat.read_text().splitlines())
        if "hierarchical_memory_limit" in lines:
            lines["hierarchical_memory_limit"] = str(400 * MIB)
        else:
            lines["slab_reclaimable"] = str(int(lines["slab_reclaimable"]) + 40 * MIB)
        stat.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    for high in root.glob("sys/fs/cgroup/**/memory.high"):
        high.write_text(f"{250 * MIB}\n")
    for current in root.glob("sys/fs/cgroup/**/memory.current"):
        current.write_text(f"{int(current.read_text()) + 40 * MIB}\n")
    return root


@pytest.mark.parametrize("change", [lambda root: root, tightened], ids=["as it was", "tightened"])
@pytest.mark.parametrize("name", sorted(file.stem for file in MACHINES.glob("*.json")))
def test_a_run_is_sized_by_the_same_memory_that_the_ladder_watches(
    name: str, change: Callable[[Path], Path], tmp_path: Path
) -> None:
    """There were two accounts: one knew `memory.high` and what lies above a container, the other the caches of inodes."""
    root = change(recorded(name, tmp_path / "root"))
    machine, reading = look(tmp_path, root=root), MemorySensor(None, root).read(1.0)
    assert machine.ram_total_bytes == reading.ram_total_bytes
    assert machine.ram_available_bytes == reading.ram_available_bytes


@pytest.mark.parametrize(("name", "total_bytes"), [("v2-container", 250 * MIB), ("v1-docker", 400 * MIB)])
def test_the_ladder_counts_what_throttles_and_what_a_container_cannot_see(name: str, total_bytes: int, tmp_path: Path) -> None:
    root = recorded(name, tmp_path / "root")
    before = MemorySensor(None, root).read(1.0)
    reading = MemorySensor(None, tightened(root)).read(1.0)
    assert reading.ram_total_bytes == total_bytes
    assert before.ram_total_bytes is not None
    assert before.ram_available_bytes is not None
    assert reading.ram_available_bytes == before.ram_available_bytes - (before.ram_total_bytes - total_bytes)


@pytest.mark.parametrize(("name", "cpus"), [("v2-desktop", 2), ("v1-unlimited", 2), ("v2-scope", 1), ("v2-container", 1)])
def test_cpus_are_those_that_a_quota_leaves(name: str, cpus: int, tmp_path: Path) -> None:
    """Half a CPU of quota is one thread; one and a half is one, too: the other would only be throttled."""
    machine = look(tmp_path, root=recorded(name, tmp_path / "root"))
    assert machine.cpus == cpus
    assert (machine.cpu_source == THIS_MACHINE) == (cpus == 2)


def test_affinity_ranges_are_counted(tmp_path: Path) -> None:
    """`taskset` and cpuset cgroups show in /proc/self/status."""
    root = recorded("v2-desktop", tmp_path / "root", **{"/proc/self/status": "Cpus_allowed_list:\t0-3,8,10-11\n"})
    assert look(tmp_path, root=root).cpus == 7


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("model name\t: Intel Xeon\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("model name\t: Intel Core\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU implementer\t: 0x41\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\nModel\t\t: Raspberry Pi 5\n", False),
        ("processor\t: 0\n", None),
    ],
)
def test_bfloat16_in_hardware_is_told_by_the_cpus_flags(cpuinfo: str, bf16: bool | None, tmp_path: Path) -> None:
    """As x86 and ARM spell it; where the kernel tells no flags it is unknown."""
    root = recorded("v2-desktop", tmp_path / "root", **{"/proc/cpuinfo": cpuinfo})
    assert look(tmp_path, root=root).cpu_bf16 is bf16


def test_wsl_is_recognised_by_its_kernel(tmp_path: Path) -> None:
    """Both generations say Microsoft in their kernel's name, with other capitals."""
    for kernel in ("6.6.87.2-microsoft-standard-WSL2\n", "4.4.0-19041-Microsoft\n"):
        root = recorded("v2-desktop", tmp_path / "root", **{"/proc/sys/kernel/osrelease": kernel})
        assert look(tmp_path, root=root).is_wsl
    assert not look(tmp_path, root=recorded("v2-desktop", tmp_path / "debian")).is_wsl


@pytest.mark.parametrize(("namespace", "own"), [("pid:[4026531836]", False), ("pid:[4026532281]", True), (None, False)])
def test_a_container_is_seen_in_which_processes_have_other_numbers(namespace: str | None, own: bool, tmp_path: Path) -> None:
    root = recorded("v2-desktop", tmp_path / "root")
    if namespace is not None:
        (root / "proc/self/ns").mkdir()
        (root / "proc/self/ns/pid").symlink_to(namespace)
    assert look(tmp_path, root=root).has_own_pids is own


def test_no_sensor_is_normal_and_a_sensor_is_read_in_degrees(tmp_path: Path) -> None:
    """A virtual machine has no hwmon; a laptop has its CPU's with limits, and one that cannot be read is unknown, not zero."""
    root = recorded("v2-desktop", tmp_path / "root")
    assert look(tmp_path, root=root).temperatures == ()
    chip = root / "sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    for name, text in (("name", "k10temp"), ("temp1_input", "61375"), ("temp1_label", "Tctl"), ("temp1_crit", "95000")):
        (chip / name).write_text(text + "\n")
    (chip / "temp2_input").write_text("\n")
    known, unknown = look(tmp_path, root=root).temperatures
    assert (known.name, known.celsius, known.high_c, known.critical_c) == ("k10temp Tctl", 61.375, None, 95.0)
    assert (unknown.name, unknown.celsius) == ("k10temp temp2", None)


def test_a_laptop_on_battery_is_told_from_one_on_mains_and_from_a_mouse(tmp_path: Path) -> None:
    """A wireless mouse's battery discharges for ever and says nothing about the machine."""
    root = recorded("v2-desktop", tmp_path / "root")
    supplies = root / "sys/class/power_supply"

    def supply(name: str, **files: str) -> None:
        (supplies / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (supplies / name / file).write_text(text + "\n")

    assert look(tmp_path, root=root).on_battery is None
    supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging")
    assert look(tmp_path, root=root).on_battery is None
    supply("BAT0", type="Battery", status="Discharging")
    supply("AC", type="Mains", online="0")
    assert look(tmp_path, root=root).on_battery is True
    supply("AC", type="Mains", online="1")
    assert look(tmp_path, root=root).on_battery is False


def test_the_largest_users_are_named_with_what_their_end_would_give_back(tmp_path: Path) -> None:
    """Processes of one name are added up, file pages are not counted, and memory swapped out is."""
    root = tmp_path / "root"

    def process(pid: int, name: str, **kib: int) -> None:
        folder = root / f"proc/{pid}"
        folder.mkdir(parents=True)
        lines = [f"Name:\t{name}", *(f"{field}:\t{size:8} kB" for field, size in kib.items())]
        (folder / "status").write_text("\n".join(lines) + "\n")

    process(10, "firefox", RssAnon=1000, RssFile=900_000, RssShmem=24)
    process(11, "Web Content", RssAnon=3000, VmSwap=2000)
    process(12, "Web Content", RssAnon=1000)
    process(13, "memsup", RssAnon=50_000)
    process(14, "kthreadd")
    (root / "proc/15").mkdir()  # gone while we look
    first, second = largest_users(5, without=[13], root=root)
    assert (first.name, first.size_bytes, first.processes) == ("Web Content", 6000 * 1024, 2)
    assert (second.name, second.size_bytes, second.processes) == ("firefox", 1024 * 1024, 1)


def test_disk_space_is_asked_where_the_state_will_be(tmp_path: Path) -> None:
    """The folder need not exist yet."""
    found = os.statvfs(tmp_path)
    free = disk_free_bytes(tmp_path / "not" / "yet")
    assert free is not None
    assert abs(free - found.f_bavail * found.f_frsize) < 256 * MIB


@pytest.mark.alone
def test_this_machine_is_seen_quickly_and_without_a_fork(tmp_path: Path) -> None:
    """Everything the kernel tells about this machine, against what the C library says of it; a look starts no process."""
    code = (
        "import time; began = time.perf_counter()\n"
        "import sys, json; from pathlib import Path; from memsup.supervisor.sense.machine import look, largest_users\n"
        "importing = time.perf_counter() - began\n"
        "forks = ('os.fork', 'subprocess.Popen', 'os.posix_spawn')\n"
        "sys.addaudithook(lambda event, _: sys.exit(3) if event in forks else None)\n"
        "began = time.perf_counter(); m = look(Path('/')); seconds = time.perf_counter() - began\n"
        "print(json.dumps([m.ram_total_bytes, m.ram_available_bytes, m.cpus, m.kernel, seconds, importing, "
        "len(largest_users())]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    total, available, cpus, kernel, seconds, importing, users = json.loads(done.stdout)
    assert 0 < available <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= cpus <= len(os.sched_getaffinity(0))
    assert kernel == os.uname().release
    assert seconds < max(0.3, importing), f"a look took {seconds:.3f} s, and importing it {importing:.3f} s"
    assert users > 0


def test_who_came_by_ssh_is_told_that_the_run_ends_with_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = recorded("v2-desktop", tmp_path / "root")
    (root / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert not look(tmp_path, root=root).ends_with_ssh
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    machine = look(tmp_path, root=root)
    assert machine.ends_with_ssh
    large = replace(machine, ram_total_bytes=8 << 30)
    assert any("loginctl enable-linger" in note for note in notes(resolve(Settings(), {}, large)))
    linger = root / "var/lib/systemd/linger"
    linger.mkdir(parents=True)
    (linger / pwd.getpwuid(os.getuid()).pw_name).touch()
    assert not look(tmp_path, root=root).ends_with_ssh
