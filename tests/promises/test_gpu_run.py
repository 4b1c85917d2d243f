"""The GPU guard in a real run: command line, supervisor and training as they are, beside a library that speaks NVML's ABI.

The worker computes on the CPU, since there is no GPU; what the supervisor reads, decides and orders is what it would be. Where
training only has to go on, a program does that waits more than it computes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import MEMSUP, end_supervisors, eventually, memsup
from kit.fake_nvml import UNSUPPORTED, FakeNvml, Fault, compiler, installed
from kit.faults.night_clock import FAST, NightClock
from kit.own_program import endless_loop
from kit.run_state import as_scenery, endless_job, status, step_of, until
from kit.small_disk import on_a_small_disk
from kit.yardstick import Sleeper

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="NOT RUN: there is no C compiler to build the NVML library with"),
]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    yield endless_job(tmp_path / "job")
    end_supervisors()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[list[str]]:
    yield endless_loop(tmp_path)
    end_supervisors()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return installed(tmp_path, monkeypatch)


def trains() -> Any:
    """The first document of a run that computes and has a reading of the GPU; from then on its training is scenery."""
    wanted = until(lambda seen: step_of(seen) > 3 and seen["gpus"] and seen["gpus"][0]["temperature_c"] is not None)
    return as_scenery(wanted)


MEND = {"fault": Fault.NONE}
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hang": ({"fault": Fault.HANG}, MEND),
    "crash": ({"fault": Fault.CRASH}, MEND),
    "garbage": ({"fault": Fault.GARBAGE}, MEND),
    "error": ({"fault": Fault.ERROR}, MEND),
    "not supported": (
        {"has_temperature": 0, "has_power": 0, "total_bytes": UNSUPPORTED},
        {"has_temperature": 1, "has_power": 1, "total_bytes": 10 << 30},
    ),
}
"""What is done to the device, and what mends it. A value that stands still takes minutes to be found out; that is in
`test_gpu_probe.py`.
"""


def test_each_fault_of_the_driver_costs_readings_and_nothing_else(loop: list[str], tmp_path: Path, fake: FakeNvml) -> None:
    """The run goes on, `status` shows unknown, and when the driver is well again the readings come back."""
    with Sleeper() as sleeper:
        told = memsup("start", "-v", "--", *loop, cwd=tmp_path)
        assert "NVIDIA GeForce RTX 3080" in told.stdout
        trains()
        for name, (fault, mend) in FAULTS.items():
            before = status()
            fake.set(**fault)
            blind = until(lambda seen: seen["gpus"][0]["temperature_c"] is None)
            later = until(lambda seen, blind=blind: step_of(seen) > step_of(blind))
            assert later["state"] == "running"
            assert (later["restarts"], later["pid"]) == (before["restarts"], before["pid"]), name
            assert later["gpus"][0]["used_bytes"] is later["gpus"][0]["power_w"] is None
            fake.set(**mend)
            until(lambda seen: seen["gpus"][0]["temperature_c"] is not None, within_s=150)
        assert status()["worst_stall_s"] < max(0.25, 2 * sleeper.take_worst_s()), "a probe is waited for up to two seconds"


@pytest.mark.alone
def test_while_the_probe_hangs_memory_is_looked_at_in_time(
    loop: list[str], tmp_path: Path, fake: FakeNvml, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probe after probe hangs, is killed and replaced. Other load can make any process late, so the best of three windows
    counts, each with a hang, a kill and a start in it, and the supervisor may be twice as late as a thread that only sleeps.
    """
    memsup("start", "--", *loop, cwd=tmp_path)
    trains()
    fake.set(fault=Fault.HANG)
    until(lambda seen: seen["gpus"][0]["temperature_c"] is None)
    late_s: list[tuple[float, float]] = []
    with Sleeper() as sleeper:
        while len(late_s) < 3 and not in_time(late_s):
            over_s = time.monotonic() + 21  # what is said to be recent reaches back 10 to 20 s
            sleeper.take_worst_s()
            seen = until(lambda _, over_s=over_s: time.monotonic() > over_s)  # type: ignore[misc]
            assert seen["gpus"][0]["temperature_c"] is None
            late_s.append((seen["recent_stall_s"], sleeper.take_worst_s()))
    with capsys.disabled():
        print(f" [late {', '.join(f'{s * 1000:.1f} beside {sleeps * 1000:.1f}' for s, sleeps in late_s)} ms]", end="")
    assert in_time(late_s)


def in_time(late_s: list[tuple[float, float]]) -> bool:
    """Of the supervisor and of a thread that only sleeps: at least once within 50 ms, or twice what this machine imposes."""
    return any(supervisor_s <= max(0.05, 2 * sleeper_s) for supervisor_s, sleeper_s in late_s)


def test_a_machine_without_nvidias_library_is_a_normal_machine(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is one: a file that is no library comes first. No probe lives, and nothing is tried again."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "libnvidia-ml.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "none"))
    told = memsup("start", "--set", "training.epochs=1", "--wait", cwd=job, within_s=300)
    assert told.returncode == 0
    seen = status()
    assert (seen["state"], seen["gpus"], seen["attention"]) == ("finished", [], [])
    assert seen["gpu_probe"] == "No GPU is watched: this run computes on the CPU."


@pytest.mark.usefixtures("unhurried")
def test_a_hot_gpu_is_paced_and_one_at_its_slowdown_holds_the_run_until_it_has_cooled(
    job: Path, fake: FakeNvml, night_clock: NightClock
) -> None:
    """The device's own model is driven by hand here: its room gets hot. (The controller is judged in test_heat.py.)"""
    memsup("start", cwd=job)
    trains()
    fake.set(ambient_c=92, cooler_s=3, full_w=0, idle_w=0)
    cooling = until(lambda seen: seen["state"] == "cooling")
    assert "°C" in cooling["last_action"]["reason"]
    held = until(lambda seen: seen["progress"]["phase"] == "holding")
    assert until(lambda seen: seen["checkpoint"]["step"] == step_of(held))["checkpoint"]["verified"]
    assert held["cooling"]["holding"]
    fake.set(ambient_c=60, cooler_s=40)
    until(lambda seen: (seen["cooling"] or {}).get("forecast_s") is not None)
    assert "goes on in about" in memsup("status").stdout
    with night_clock.fast(FAST / 6):  # the probe has to answer within two seconds of that clock
        until(lambda seen: seen["state"] == "running" and step_of(seen) > step_of(held), within_s=150)


def test_a_power_limit_is_set_for_the_run_and_back_when_the_supervisor_is_killed(
    loop: list[str], tmp_path: Path, fake: FakeNvml
) -> None:
    memsup("start", "--set", "limits.power_w=250", "--", *loop, cwd=tmp_path)
    eventually(lambda: fake[0].power_limit_w == 250)
    os.kill(status()["pid"], signal.SIGKILL)
    eventually(lambda: fake[0].power_limit_w == 320)
    memsup("start", cwd=tmp_path)
    eventually(lambda: fake[0].power_limit_w == 250)
    assert memsup("stop").returncode == 0
    eventually(lambda: fake[0].power_limit_w == 320)


LAPTOP = {"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: only root can put another folder over /sys/class/power_supply")
def test_a_laptop_that_is_unplugged_holds_the_run_and_goes_on_at_the_mains(
    loop: list[str], tmp_path: Path, night_clock: NightClock
) -> None:
    """The supervisor sees these files where the kernel's would be, in a mount namespace of its own."""
    supplies = tmp_path / "power_supply"
    for name, content in LAPTOP.items():
        (supplies / name).parent.mkdir(parents=True, exist_ok=True)
        (supplies / name).write_text(content + "\n")
    mounted = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /sys/class/power_supply && exec "$@"', str(supplies)]
    started = subprocess.run(
        [*mounted, *MEMSUP, "start", "--", *loop], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    if started.returncode and "mount" in started.stderr:
        pytest.skip(f"NOT RUN: {started.stderr.strip()}")
    until(lambda seen: step_of(seen) > 3)
    (supplies / "AC/online").write_text("0\n")
    with night_clock.fast(FAST):
        held = until(lambda seen: seen["progress"]["phase"] == "holding")
    assert any("runs on its battery" in sentence for sentence in held["attention"])
    assert "runs on its battery" in held["last_action"]["reason"]
    (supplies / "AC/online").write_text("1\n")
    with night_clock.fast(FAST):
        on = until(lambda seen: step_of(seen) > step_of(held))
    assert (on["state"], on["attention"]) == ("running", [])


def test_on_a_gpu_without_cgroups_no_limit_is_claimed_and_start_says_why_and_what_to_do(tmp_path: Path, fake: FakeNvml) -> None:
    """`RLIMIT_DATA`, which stands in for a cgroup elsewhere, counts what CUDA maps and never uses."""
    said: list[Any] = []

    def play() -> None:
        said.append(memsup("check", cwd=tmp_path))
        said.append(memsup("start", "--", "sleep", "1000", cwd=tmp_path))

    on_a_small_disk(Path("/sys/fs/cgroup"), 1 << 20, play)
    found, started = said
    try:
        assert found.returncode == 1
        assert "Ready" not in found.stdout
        for text in (found.stdout, started.stderr):
            assert "The kernel enforces no limit on the worker's RAM here" in text
            assert "CUDA maps far more memory than it uses" in text
            assert "limits.ram_reserve" in text
        assert status()["memory"]["fence"] == "none"
    finally:
        end_supervisors()


def test_a_lost_gpu_ends_the_run_with_the_sentence_when_the_worker_dies_of_it(
    loop: list[str], tmp_path: Path, fake: FakeNvml
) -> None:
    memsup("start", "--", *loop, cwd=tmp_path)
    seen = trains()
    fake.set(fault=Fault.LOST)
    until(lambda seen: any("fallen off the bus" in sentence for sentence in seen["attention"]))
    os.kill(seen["worker_pid"], 6)  # as CUDA's own abort would
    failed = until(lambda seen: seen["state"] == "failed")
    assert "only a reboot brings it back" in failed["failure"]
    assert failed["restarts"] == 0


@pytest.mark.usefixtures("unhurried")
def test_a_lost_gpu_moves_the_run_to_the_cpu_where_that_is_allowed(job: Path, fake: FakeNvml) -> None:
    memsup("start", "--set", "recovery.continue_on_cpu=true", cwd=job)
    trains()
    saved = memsup("checkpoint", "--json").document
    assert saved["ok"]
    fake.set(fault=Fault.LOST)
    seen = until(lambda seen: any("fallen off the bus" in sentence for sentence in seen["attention"]))
    os.kill(seen["worker_pid"], 6)
    on = until(lambda now: now["worker_pid"] not in (None, seen["worker_pid"]) and now["state"] == "running")
    assert on["restarts"] == 1
    assert "this run computes on the CPU" in on["gpu_probe"]
    assert "The run continues on the CPU" in memsup("logs", "--events").stdout
    assert until(lambda now: step_of(now) > step_of(on))["restarts"] == 1
