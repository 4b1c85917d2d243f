"""The GPU probe and its client, for real: a real child, NVIDIA's own Python binding, a library that misbehaves as drivers do.

The library is `fake_nvml/`, built here; without a C compiler these are not run. Deadlines are passed by the client's `now_s`,
so that nothing waits for them; where an answer is really on its way, the real clock bounds the waiting.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from kit import fake_nvml
from kit.fake_nvml import UNSUPPORTED, FakeNvml, Fault
from kit.yardstick import Sleeper

from memsup.shared.descriptors import wait_ready
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.sense.gpu import client as client_module
from memsup.supervisor.sense.gpu.client import ANSWER_S, BACKOFF_S, REOPENED_S, GpuClient, ProbeState
from memsup.supervisor.sense.gpu.devices import XID_LOST
from memsup.supervisor.sense.gpu.facts import facts
from memsup.supervisor.sense.gpu.library import LIBRARY, may_be_found
from memsup.supervisor.sense.gpu.probe import LONGEST_ANSWER_S

pytestmark = pytest.mark.skipif(fake_nvml.compiler() is None, reason="NOT RUN: no C compiler (cc) to build the NVML library")

GIB = 1 << 30
PATIENCE_S = 60.0
"""For something that really happens, on however busy a machine."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(library, tmp_path / "control", devices=2)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


class Loop:
    """A poll loop around one client. `now_s` is the client's clock: it jumps to whatever is due next, except to a deadline."""

    def __init__(self, client: GpuClient) -> None:
        self.client = client
        self.now_s = 1000.0
        self.blocked_s = 0.0
        """The longest time that a call into the client waited for something; having lost the CPU to others does not count."""
        self.spawn_s = self.spawn_cpu_s = 0.0
        """The longest call that started a probe (it waits for the exec, however busy the machine), and its CPU time."""

    def until(self, done: Callable[[], object]) -> None:
        give_up_s = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < give_up_s, f"{self.client.state} {self.client.note} {self.client.readings(self.now_s)}"
            if self.client.state in (ProbeState.READY, ProbeState.WAITING):
                self.now_s = max(self.now_s, self.client.due_s(self.now_s))
            self.turn()

    def turn(self) -> None:
        self._measured(lambda: self.client.on_tick(self.now_s))
        if wait_ready([self.client], 0.02):
            self._measured(lambda: self.client.on_readable(self.now_s))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.turn()

    def look(self) -> tuple[GpuReading, ...]:
        """One more complete look, asked from now on."""
        self.until(lambda: self.client.state in (ProbeState.READY, ProbeState.ABSENT))
        self.client.ask(self.now_s)
        self.client.on_tick(self.now_s)
        self.until(lambda: self.client.state is not ProbeState.ASKED)
        return self.client.readings(self.now_s)

    def _measured(self, call: Callable[[], object]) -> None:
        pid, before, began_s = self.client.pid, resource.getrusage(resource.RUSAGE_THREAD), time.monotonic()
        call()
        took_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_THREAD)
        if pid is None and self.client.pid is not None:
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            self.spawn_s, self.spawn_cpu_s = max(self.spawn_s, took_s), max(self.spawn_cpu_s, cpu_s)
        elif after.ru_nvcsw > before.ru_nvcsw:
            self.blocked_s = max(self.blocked_s, took_s)


@pytest.fixture
def loop(fake: FakeNvml, tmp_path: Path) -> Iterator[Loop]:
    client = GpuClient(tmp_path / "power.json")
    client.wake()
    yield Loop(client)
    pid = client.pid
    client.close()
    assert pid is None or not Path(f"/proc/{pid}").exists(), "the probe is left behind"


def celsius(loop: Loop, index: int = 0) -> float | None:
    readings = loop.client.readings(loop.now_s)
    return readings[index].temperature_c if readings else None


# -- what is read ------------------------------------------------------------------------------------------------------


def test_everything_a_device_tells_arrives(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, worker_pid=4711, worker_bytes=3 * GIB, others_bytes=GIB, noise_c=0)
    fake.set(1, name=b"NVIDIA GeForce GTX 1080", compute_capability=6.1, slowdown_c=96, shutdown_c=99, power_default_w=180)
    loop.client.worker_pids = {4711}
    first, second = loop.look()
    assert (first.bf16, second.bf16) == (True, False)
    assert first.uuid == "GPU-00000000-0000-4000-8000-000000000000"
    assert first.name == "NVIDIA GeForce RTX 3080"
    assert (first.total_bytes, first.used_bytes, first.worker_bytes) == (10 * GIB, 4 * GIB, 3 * GIB)
    assert (first.temperature_c, first.slowdown_c, first.shutdown_c) == (36, 95, 98)
    assert (first.power_w, first.power_limit_w, first.power_default_w) == (25, 320, 320)
    assert first.slowed_by_heat is False
    assert (second.index, second.name, second.slowdown_c, second.power_default_w) == (1, "NVIDIA GeForce GTX 1080", 96, 180)
    assert second.worker_bytes is None
    assert loop.client.note is None


def test_a_newer_card_answers_in_margins(loop: Loop, fake: FakeNvml) -> None:
    """RTX 5090: limit 90, slowdown 2 and shutdown 5 beyond it, as signed and as unsigned fields."""
    fake.set(
        0, slowdown_c=UNSUPPORTED, shutdown_c=UNSUPPORTED, limit_c=90, slowdown_margin_c=-2, shutdown_margin_c=-5, noise_c=0
    )
    reading = loop.look()[0]
    assert reading.slowdown_c == pytest.approx(92, abs=1)
    assert reading.shutdown_c == pytest.approx(95, abs=1)


def test_an_old_driver_has_only_the_old_calls(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, has_old_temperature_only=1, noise_c=0)
    assert loop.look()[0].temperature_c == 36


def test_not_supported_is_unknown_and_never_nought(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, has_temperature=0, has_power=0, has_processes=0, total_bytes=UNSUPPORTED, slowdown_c=UNSUPPORTED)
    fake.set(0, compute_capability=0)
    reading = loop.look()[0]
    assert reading.bf16 is None
    for field in ("total_bytes", "used_bytes", "worker_bytes", "temperature_c", "slowdown_c", "power_w", "power_limit_w"):
        assert getattr(reading, field) is None
    assert celsius(loop, 1) is not None


def test_memory_is_looked_at_four_times_a_second_and_the_rest_once(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, others_bytes=5 * GIB)
    began_s = loop.now_s
    loop.until(lambda: loop.client.readings(loop.now_s)[0].used_bytes == 5 * GIB)
    assert loop.now_s - began_s <= 0.3
    fake.set(0, ambient_c=60, cooler_c=80)
    began_s = loop.now_s
    loop.until(lambda: (celsius(loop) or 0) > 70)
    assert loop.now_s - began_s <= 1.1


def test_warmth_follows_the_duty_and_comes_back(loop: Loop, fake: FakeNvml) -> None:
    """The model itself: computing warms the device towards ambient + power × resistance, resting cools it."""
    fake.control.clock_s = 1
    cold = loop.look()[0].temperature_c
    fake.set(0, duty=1)
    fake.control.clock_s = 601
    warm = loop.look()[0]
    fake.set(0, duty=0)
    fake.control.clock_s = 1801
    assert cold == pytest.approx(36, abs=2)
    assert warm.temperature_c == pytest.approx(30 + 320 * 0.22, abs=2)
    assert warm.power_w == 320
    assert loop.look()[0].temperature_c == pytest.approx(36, abs=2)


def test_the_drivers_errors_are_handed_over_once(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(1, xid=31)
    loop.look()
    assert loop.client.take_xids() == [(1, 31)]
    fake.set(0, ecc_errors=2)
    loop.look()
    assert loop.client.take_xids() == []
    assert loop.client.take_memory_errors() == 2
    loop.look()
    assert loop.client.take_memory_errors() == 0


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_lost_gpu_is_reported_as_lost_and_its_neighbour_goes_on(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, fault=Fault.LOST)
    lost, neighbour = loop.look()
    assert lost.lost
    assert lost.temperature_c is lost.used_bytes is None
    assert lost.name == "NVIDIA GeForce RTX 3080"
    assert neighbour.temperature_c is not None
    assert loop.client.failures == 0


def test_xid_79_is_lost_at_once(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, xid=XID_LOST)
    assert loop.look()[0].lost


def test_a_gpu_that_is_lost_from_the_start_is_found_when_it_comes_back(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, fault=Fault.LOST)
    assert loop.look()[0].lost
    fake.set(0, fault=Fault.NONE)
    back = loop.look()[0]
    assert not back.lost
    assert back.name == "NVIDIA GeForce RTX 3080"


def test_garbage_from_the_library_is_unknown(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, fault=Fault.GARBAGE)
    reading = loop.look()[0]
    assert reading.temperature_c is reading.used_bytes is reading.power_w is None
    assert loop.client.failures == 0


def test_garbage_from_the_start_is_unknown_too(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, fault=Fault.GARBAGE)
    reading = loop.look()[0]
    assert reading.name is reading.slowdown_c is reading.temperature_c is None


def test_errors_of_the_library_are_unknown(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, fault=Fault.ERROR)
    assert loop.look()[0].temperature_c is None


@pytest.mark.alone
def test_a_hang_costs_one_probe_and_the_loop_waits_for_nothing(loop: Loop, fake: FakeNvml) -> None:
    """Unknown while it lasts; killed at its deadline; the next probe reads on."""
    loop.look()
    hung = loop.client.pid
    fake.set(1, fault=Fault.HANG)
    loop.until(lambda: loop.client.state is ProbeState.ASKED)
    loop.blocked_s = 0.0
    with Sleeper() as sleeper:
        for _ in range(20):
            loop.pass_time(ANSWER_S / 20)
    assert loop.blocked_s < max(0.05, 2 * sleeper.take_worst_s())
    assert loop.client.failures == 1
    assert celsius(loop) is None
    assert loop.client.readings(loop.now_s)[0].name == "NVIDIA GeForce RTX 3080"
    assert "has not answered for 2 s" in (loop.client.note or "")
    fake.set(1, fault=Fault.NONE)
    loop.until(lambda: celsius(loop) is not None)
    assert loop.client.pid != hung
    assert not Path(f"/proc/{hung}").exists()
    assert loop.client.note is None


def test_a_hang_while_the_driver_is_opened_has_its_own_deadline(loop: Loop, fake: FakeNvml) -> None:
    fake.control.init_hangs = 1
    loop.until(lambda: loop.client.state is ProbeState.ASKED)
    loop.pass_time(ANSWER_S * 2)
    assert loop.client.failures == 0
    loop.pass_time(client_module.FIRST_ANSWER_S)
    assert loop.client.failures == 1


def test_a_crash_costs_one_probe_and_is_named(loop: Loop, fake: FakeNvml) -> None:
    loop.look()
    fake.set(0, fault=Fault.CRASH)
    loop.until(lambda: loop.client.failures == 1)
    assert celsius(loop) is None
    assert "crashed its probe (SIGABRT)" in (loop.client.note or "")
    fake.set(0, fault=Fault.NONE)
    loop.until(lambda: celsius(loop) is not None)


def test_a_probe_that_is_killed_is_replaced(loop: Loop) -> None:
    loop.look()
    assert loop.client.pid is not None
    os.kill(loop.client.pid, signal.SIGKILL)
    loop.until(lambda: loop.client.failures == 1)
    loop.until(lambda: celsius(loop) is not None)


def test_a_driver_that_keeps_crashing_is_tried_ever_more_rarely(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, fault=Fault.CRASH)
    waits = []
    for failure in range(1, len(BACKOFF_S) + 2):
        loop.until(lambda failure=failure: loop.client.failures == failure and loop.client.state is ProbeState.WAITING)  # type: ignore[misc]
        waits.append(loop.client.due_s(loop.now_s) - loop.now_s)
    assert waits == pytest.approx([*BACKOFF_S, BACKOFF_S[-1]])


def test_a_long_lived_probe_begins_the_backoff_anew(loop: Loop, fake: FakeNvml) -> None:
    for failures in (1, 2):
        fake.set(0, fault=Fault.CRASH)
        loop.until(lambda failures=failures: loop.client.failures == failures)  # type: ignore[misc]
        fake.set(0, fault=Fault.NONE)
        loop.until(lambda: celsius(loop) is not None)
    loop.now_s += client_module.FORGIVEN_AFTER_S
    loop.look()
    assert loop.client.failures == 0


def test_an_answer_that_comes_after_its_deadline_is_not_taken_for_another(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids: an answer to a question nobody waits for changes nothing."""
    loop.look()
    before = loop.client.readings(loop.now_s)
    loop.client._asked = None  # as after a deadline
    loop.client._link.send(client_module.frames.encode(client_module.frames.Look(99_999, fully=True)))  # type: ignore[union-attr]
    assert wait_ready([loop.client], PATIENCE_S)
    assert loop.client.on_readable(loop.now_s) is None
    assert loop.client.readings(loop.now_s) == before


def test_a_probe_that_speaks_nonsense_is_replaced(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child that answers each question with bytes that are no frame."""
    nonsense = "import socket; link = socket.socket(fileno=0)\nwhile link.recv(65536): link.send(b'\\xc1\\xff' * 100)"
    honest = loop.client._command
    loop.client._command = [sys.executable, "-c", nonsense]
    loop.until(lambda: loop.client.failures == 1)
    assert "garbage" in (loop.client.note or "")
    loop.client._command = honest
    loop.until(lambda: celsius(loop) is not None)


def test_a_probe_that_cannot_be_started_is_tried_again_later(loop: Loop) -> None:
    honest = loop.client._command
    loop.client._command = ["/nonexistent/python"]
    loop.until(lambda: loop.client.failures == 1)
    assert "cannot be started (No such file or directory)" in (loop.client.note or "")
    loop.client._command = honest
    loop.until(lambda: celsius(loop) is not None)


def test_a_frozen_sensor_is_no_longer_believed(loop: Loop, fake: FakeNvml) -> None:
    """The same 36 °C for five minutes, while the power went from 25 to 320 W: unknown. As soon as it moves it counts again."""
    loop.look()
    fake.set(0, fault=Fault.FROZEN)
    seen = []
    for second in range(360):
        fake.set(0, duty=1 if second > 60 else 0)
        loop.now_s += 1
        seen.append(loop.look()[0].temperature_c)
    assert seen[250] == seen[0]
    assert seen[-1] is None
    assert loop.client.readings(loop.now_s)[0].power_w == 320
    fake.set(0, fault=Fault.NONE, cooler_c=fake[0].cooler_c + 5)
    assert loop.look()[0].temperature_c is not None


def test_an_idle_device_at_a_steady_temperature_is_believed(loop: Loop, fake: FakeNvml) -> None:
    fake.set(0, noise_c=0)
    for _ in range(400):
        loop.now_s += 1
        assert loop.look()[0].temperature_c is not None


# -- nothing to probe --------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_loop() -> Iterator[Loop]:
    client = GpuClient()
    client.wake()
    yield Loop(client)
    client.close()


def test_a_library_is_looked_for_where_the_loader_does(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_be_found("libc.so.6")
    assert not may_be_found("libnobody-has-this.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{library.parent if library.is_file() else library}")
    assert may_be_found(LIBRARY)


def test_without_the_library_there_is_a_note_and_no_probe(
    bare_loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without NVIDIA's driver is a normal machine: nothing runs and nothing is tried."""
    if may_be_found(LIBRARY):
        pytest.skip("NOT RUN: this machine has NVIDIA's library")
    assert bare_loop.client.state is ProbeState.ABSENT
    assert bare_loop.client.note == "No GPU is watched: no NVIDIA driver found."
    assert bare_loop.client.failures == 0
    bare_loop.pass_time(10_000)
    assert bare_loop.client.pid is None
    assert bare_loop.client.due_s(bare_loop.now_s) == float("inf")
    assert bare_loop.client.readings(bare_loop.now_s) == ()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"devices": 0}, "No GPU is watched: no NVIDIA GPU found."),
        ({"init_result": 9}, "No GPU is watched: the NVIDIA driver is not loaded."),
    ],
)
def test_a_driver_without_a_gpu_is_a_normal_machine_too(
    loop: Loop, fake: FakeNvml, change: dict[str, float], note: str
) -> None:
    for name, value in change.items():
        setattr(fake.control, name, value)
    loop.until(lambda: loop.client.state is ProbeState.ABSENT)
    assert loop.client.note == note


def test_a_driver_that_was_updated_under_it_is_broken_and_tried_again(loop: Loop, fake: FakeNvml) -> None:
    fake.control.init_result = 18  # NVML_ERROR_LIB_RM_VERSION_MISMATCH
    loop.until(lambda: loop.client.failures == 1)
    assert "works again after a reboot" in (loop.client.note or "")
    fake.control.init_result = 0
    loop.until(lambda: celsius(loop) is not None)


def test_facts_are_one_look_that_leaves_nothing_behind(fake: FakeNvml) -> None:
    gpus, note = facts(PATIENCE_S)
    assert [gpu.name for gpu in gpus] == ["NVIDIA GeForce RTX 3080"] * 2
    assert note is None
    assert fake.control.opens == 0


def test_facts_do_not_wait_for_a_hanging_driver(fake: FakeNvml) -> None:
    fake.set(0, fault=Fault.HANG)
    gpus, note = facts(1.0)
    assert gpus == ()
    assert note == "GPU readings are unknown: the NVIDIA driver has not answered for 1 s."


def test_facts_name_a_crash(fake: FakeNvml) -> None:
    fake.set(0, fault=Fault.CRASH)
    assert facts(PATIENCE_S) == ((), "GPU readings are unknown: the NVIDIA driver crashed its probe (SIGABRT).")


# -- rest, and the end -------------------------------------------------------------------------------------------------


def test_at_rest_the_driver_is_closed_and_nothing_runs(loop: Loop, fake: FakeNvml) -> None:
    """So that a laptop's GPU can sleep: its device files are open as long as any process keeps the library open."""
    loop.look()
    assert fake.control.opens == 1
    loop.client.rest(loop.now_s)
    loop.until(lambda: loop.client.state is ProbeState.RESTING)
    assert fake.control.opens == 0
    assert loop.client.pid is None
    assert celsius(loop) is None
    assert loop.client.note == "The GPU is left alone while nothing is computed."
    loop.client.wake()
    loop.until(lambda: celsius(loop) is not None)
    assert loop.client.failures == 0


def test_a_wake_while_it_is_still_leaving_is_not_forgotten(loop: Loop) -> None:
    loop.look()
    loop.client.rest(loop.now_s)
    loop.client.wake()
    loop.until(lambda: celsius(loop) is not None)


def test_nothing_is_started_while_memory_is_short(loop: Loop) -> None:
    for _ in range(20):
        loop.client.on_tick(loop.now_s, calm=False)
        loop.now_s += 1
    assert loop.client.pid is None
    loop.client.on_tick(loop.now_s, calm=True)
    assert loop.client.pid is not None


def test_the_supervisors_side_never_loads_the_binding() -> None:
    """The client costs the supervisor no NVIDIA code and next to no memory."""
    names = "('pynvml', 'numpy', 'torch')"
    code = f"import sys, memsup.supervisor.sense.gpu.client; sys.exit(any(m in sys.modules for m in {names}))"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_the_probe_offers_itself_to_the_oom_killer_before_the_supervisor(loop: Loop) -> None:
    loop.look()
    assert int(Path(f"/proc/{loop.client.pid}/oom_score_adj").read_text()) >= 300


# -- power limits ------------------------------------------------------------------------------------------------------


def test_a_power_limit_is_set_and_given_back(loop: Loop, fake: FakeNvml, tmp_path: Path) -> None:
    first = loop.look()[0]
    loop.client.cap({first.uuid: 250.0})
    loop.until(lambda: fake[0].power_limit_w == 250)
    assert msgspec.json.decode((tmp_path / "power.json").read_bytes())["devices"][first.uuid]["original_mw"] == 320_000
    assert loop.look()[0].power_limit_w == 250
    loop.client.cap({first.uuid: 200.0})
    loop.until(lambda: fake[0].power_limit_w == 200)
    loop.client.cap({})
    loop.until(lambda: fake[0].power_limit_w == 320)
    loop.until(lambda: not (tmp_path / "power.json").exists())
    assert fake[1].power_sets == 0


def test_a_power_limit_never_goes_below_the_least_nor_above_what_it_was(loop: Loop, fake: FakeNvml) -> None:
    first, second = loop.look()
    loop.client.cap({first.uuid: 10.0, second.uuid: 1000.0})
    loop.until(lambda: loop.client.cap_notes)
    assert fake[0].power_limit_w == 100
    assert fake[1].power_limit_w == 320
    assert loop.client.cap_notes == {first.uuid: "100 W is the least it can be set to"}


def test_without_permission_it_says_so_and_stops_trying(loop: Loop, fake: FakeNvml, tmp_path: Path) -> None:
    fake.set(0, may_cap=0)
    first = loop.look()[0]
    loop.client.cap({first.uuid: 250.0})
    loop.until(lambda: loop.client.cap_notes)
    assert loop.client.cap_notes == {first.uuid: "Insufficient Permissions"}
    loop.look()
    assert not loop.client.may_cap
    assert not (tmp_path / "power.json").exists()


def test_the_power_limit_is_given_back_at_rest_and_set_again_after(loop: Loop, fake: FakeNvml) -> None:
    first = loop.look()[0]
    loop.client.cap({first.uuid: 250.0})
    loop.until(lambda: fake[0].power_limit_w == 250)
    loop.client.rest(loop.now_s)
    loop.until(lambda: loop.client.state is ProbeState.RESTING)
    assert fake[0].power_limit_w == 320
    loop.client.wake()
    loop.until(lambda: fake[0].power_limit_w == 250)


def test_the_power_limit_is_given_back_when_the_client_closes(fake: FakeNvml, tmp_path: Path) -> None:
    loop = Loop(GpuClient(tmp_path / "power.json"))
    loop.client.wake()
    first = loop.look()[0]
    loop.client.cap({first.uuid: 250.0})
    loop.until(lambda: fake[0].power_limit_w == 250)
    loop.client.close(PATIENCE_S)
    assert fake[0].power_limit_w == 320


SUPERVISOR = """
import pathlib, sys, time
from memsup.shared.descriptors import wait_ready
from memsup.supervisor.sense.gpu.client import GpuClient
client = GpuClient(pathlib.Path(sys.argv[1]))
client.wake()
told = False
while True:
    client.on_tick(time.monotonic())
    wait_ready([client], 0.05)
    client.on_readable(time.monotonic())
    gpus = client.readings(time.monotonic())
    if gpus and gpus[0].uuid:
        client.cap({gpus[0].uuid: 250.0})
    if gpus and gpus[0].power_limit_w == 250 and not told:
        told = print(client.pid, flush=True) or True
"""


@pytest.fixture
def other_supervisor(fake: FakeNvml, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with a client that has capped the first GPU; its first line is the probe's pid."""
    command = [sys.executable, "-P", "-c", SUPERVISOR, str(tmp_path / "power.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _in_time(done: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    give_up_s = time.monotonic() + seconds
    while not done() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    return bool(done())


def test_a_supervisor_that_is_killed_leaves_no_probe_and_no_power_limit(
    other_supervisor: subprocess.Popen[str], fake: FakeNvml, tmp_path: Path
) -> None:
    """At any moment (kill -9): the probe sees the end of its link, gives the limit back and goes."""
    assert other_supervisor.stdout is not None
    probe = int(other_supervisor.stdout.readline())
    assert fake[0].power_limit_w == 250
    other_supervisor.kill()
    assert _in_time(lambda: fake[0].power_limit_w == 320)
    assert _in_time(lambda: _gone(probe))
    assert not (tmp_path / "power.json").exists()


def test_when_both_are_killed_the_next_start_gives_the_power_limit_back(
    other_supervisor: subprocess.Popen[str], fake: FakeNvml, loop: Loop, tmp_path: Path
) -> None:
    assert other_supervisor.stdout is not None
    probe = int(other_supervisor.stdout.readline())
    other_supervisor.send_signal(signal.SIGSTOP)  # it must not start another probe
    os.kill(probe, signal.SIGKILL)
    other_supervisor.kill()
    assert fake[0].power_limit_w == 250
    loop.look()
    assert fake[0].power_limit_w == 320
    assert not (tmp_path / "power.json").exists()


def test_a_record_of_an_earlier_boot_is_void(loop: Loop, fake: FakeNvml, tmp_path: Path) -> None:
    """Limits do not survive a boot; what the user set since then stays."""
    record = {"boot": "another", "devices": {fake[0].uuid.decode(): {"original_mw": 320_000, "ours_mw": 250_000}}}
    (tmp_path / "power.json").write_bytes(msgspec.json.encode(record))
    fake.set(0, power_limit_w=250)
    loop.look()
    assert fake[0].power_limit_w == 250


def test_of_two_runs_on_one_gpu_the_lower_limit_counts_and_the_last_to_leave_restores_the_original(
    other_supervisor: subprocess.Popen[str], fake: FakeNvml, loop: Loop, tmp_path: Path
) -> None:
    """The other one wants 250 W. Whichever ends first, and however: nobody's limit is taken for the original."""
    assert other_supervisor.stdout is not None
    other_supervisor.stdout.readline()
    first = loop.look()[0]
    loop.client.cap({first.uuid: 200.0})
    loop.until(lambda: fake[0].power_limit_w == 200)
    loop.client.cap({first.uuid: 280.0})
    loop.until(lambda: fake[0].power_limit_w == 250)
    loop.client.cap({})
    loop.until(lambda: loop.client._sent_caps == {} and loop.client.state is ProbeState.READY)
    assert fake[0].power_limit_w == 250
    loop.client.cap({first.uuid: 280.0})
    loop.until(lambda: loop.client._sent_caps != {} and loop.client.state is ProbeState.READY)
    other_supervisor.kill()
    assert _in_time(lambda: fake[0].power_limit_w == 280)
    loop.client.cap({})
    loop.until(lambda: fake[0].power_limit_w == 320)
    loop.until(lambda: not (tmp_path / "power.json").exists())


def test_a_run_that_was_killed_with_its_probe_holds_no_other_runs_gpu_down(
    other_supervisor: subprocess.Popen[str], fake: FakeNvml, loop: Loop, tmp_path: Path
) -> None:
    assert other_supervisor.stdout is not None
    probe = int(other_supervisor.stdout.readline())
    first = loop.look()[0]
    loop.client.cap({first.uuid: 280.0})
    loop.until(lambda: loop.client._sent_caps != {} and loop.client.state is ProbeState.READY)
    assert fake[0].power_limit_w == 250
    other_supervisor.send_signal(signal.SIGSTOP)  # it must not start another probe
    os.kill(probe, signal.SIGKILL)
    other_supervisor.kill()
    assert _in_time(lambda: _gone(probe))
    loop.client.cap({first.uuid: 290.0})
    loop.until(lambda: fake[0].power_limit_w == 290)
    loop.client.cap({})
    loop.until(lambda: fake[0].power_limit_w == 320)


NO_PID = b'{"boot":"BOOT","devices":{"GPU-x":{"original_mw":1,"ours_mw":[],"wanted_mw":{"' + b"9" * 5000 + b' 1":1}}}}'


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b'{"boot": 5}', b"[" * 100_000, NO_PID])
def test_a_damaged_record_stops_nothing(loop: Loop, fake: FakeNvml, tmp_path: Path, content: bytes) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    (tmp_path / "power.json").write_bytes(content.replace(b"BOOT", boot))
    assert loop.look()[0].temperature_c is not None


def test_a_limit_that_somebody_else_set_meanwhile_is_left_alone(loop: Loop, fake: FakeNvml) -> None:
    first = loop.look()[0]
    loop.client.cap({first.uuid: 250.0})
    loop.until(lambda: fake[0].power_limit_w == 250)
    fake.set(0, power_limit_w=280)
    loop.client.cap({})
    loop.until(lambda: loop.client._sent_caps == {} and loop.client.state is ProbeState.READY)
    assert fake[0].power_limit_w == 280


# -- slow ones ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.alone
def test_in_real_time_a_hanging_probe_never_holds_the_loop_up(fake: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that ticks every 10 ms, over two hangs, two kills and two starts: no call into the client waits for anything."""
    loop = Loop(GpuClient())
    loop.client.wake()
    ticks = 0
    worst_late_s = 0.0
    due_s = time.monotonic()
    until_s = due_s + REOPENED_S + ANSWER_S + 5
    with Sleeper() as sleeper:
        while time.monotonic() < until_s:
            loop.now_s = time.monotonic()
            worst_late_s = max(worst_late_s, loop.now_s - due_s)
            due_s = loop.now_s + 0.01
            loop._measured(lambda: loop.client.on_tick(loop.now_s))
            while (left_s := due_s - time.monotonic()) > 0:
                if wait_ready([loop.client], left_s):
                    loop._measured(lambda: loop.client.on_readable(loop.now_s))
            ticks += 1
            if loop.client.readings(loop.now_s):
                fake.set(0, fault=Fault.HANG)
    loop.client.close()
    with capsys.disabled():
        figures = {"blocked": loop.blocked_s, "spawn": loop.spawn_s, "its CPU": loop.spawn_cpu_s, "late": worst_late_s}
        print(f" [{ticks} ticks", *(f"{what} {s * 1000:.1f} ms" for what, s in figures.items()), sep=", ", end="]")
    assert loop.client.failures == 2
    assert loop.blocked_s < max(0.05, 2 * sleeper.take_worst_s())
    assert loop.spawn_cpu_s < max(0.05, 5 * cpu_of_a_spawn_s())


def cpu_of_a_spawn_s() -> float:
    """What starting any child costs the one who starts it, on this machine and as it is now."""
    before = resource.getrusage(resource.RUSAGE_THREAD)
    subprocess.Popen(["true"]).wait()
    after = resource.getrusage(resource.RUSAGE_THREAD)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_probe_that_hangs_when_its_supervisor_dies_is_ended_by_the_kernel(
    other_supervisor: subprocess.Popen[str], fake: FakeNvml
) -> None:
    """Nobody is left to kill it: an alarm that was set before the question does."""
    assert other_supervisor.stdout is not None
    probe = int(other_supervisor.stdout.readline())
    fake.set(0, fault=Fault.HANG)
    fake.set(1, fault=Fault.HANG)
    calls = fake.control.calls
    assert _in_time(lambda: fake.control.calls > calls)
    other_supervisor.send_signal(signal.SIGSTOP)  # before its deadline: the probe hangs in the call just counted
    other_supervisor.kill()
    other_supervisor.wait()
    assert not _gone(probe)
    assert _in_time(lambda: _gone(probe), LONGEST_ANSWER_S + PATIENCE_S)
