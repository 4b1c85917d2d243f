"""What is read of GPUs and mains becomes what the ladder is asked for, and what a person is told: real probe, own clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.fake_nvml import FakeNvml, Fault, installed

from memsup.shared.descriptors import wait_ready
from memsup.shared.messages import WorkerMemory
from memsup.shared.readings import RankReading
from memsup.shared.settings import Limits
from memsup.shared.status import RunState, Status, Trouble, TroubleKind, Wanted
from memsup.supervisor.decide.battery import HOLD_AFTER_S, RESUME_AFTER_S
from memsup.supervisor.decide.heat import TELL_HOLD_S
from memsup.supervisor.decide.ladder import HoldReason, MemoryLimits, Proposal
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.run.card import CardView, Place
from memsup.supervisor.devices import Devices, Load
from memsup.supervisor.sense.gpu.client import ProbeState
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.tell.policy import ATTENTION_HOLDS_S, Kind, Policy, Told

GIB = 1 << 30
PATIENCE_S = 60.0
AT_WORK = Load(alive=True, computing=True, pids=(), memory=None)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return installed(tmp_path, monkeypatch)


def devices_of(tmp_path: Path, limits: Limits | None = None, *, watches_gpus: bool = True) -> Devices:
    return Devices(limits or Limits(), watches_gpus=watches_gpus, power_record=tmp_path / "power-limits.json")


@pytest.fixture
def devices(fake: FakeNvml, tmp_path: Path) -> Iterator[Devices]:
    devices = devices_of(tmp_path)
    yield devices
    devices.close()


def pass_second(devices: Devices, fake: FakeNvml, now_s: float, load: Load = AT_WORK) -> tuple[Proposal, ...]:
    """The supervisor's second, in which the probe's answer is waited for."""
    fake.control.clock_s = now_s
    devices.client.wake()
    devices.client.ask(now_s)
    devices.on_tick(now_s)
    give_up_s = time.monotonic() + PATIENCE_S
    while devices.client.state is ProbeState.ASKED and time.monotonic() < give_up_s:
        if wait_ready([devices.client], 1.0):
            devices.on_readable(now_s)
    return devices.step(now_s, load, calm=True)


def status(devices: Devices) -> Status:
    shown = Status(run="r", run_id="1", state=RunState.COOLING, wanted=Wanted.RUNNING)
    shown.call_for(*devices.troubles)
    return shown


def test_a_gpu_that_stays_too_hot_for_ten_minutes_is_told_to_a_person_once_and_as_long_as_it_is_so(
    devices: Devices, fake: FakeNvml
) -> None:
    """A room at 89 °C: just below the hold level of 90."""
    fake.set(0, ambient_c=96, cooler_s=3, full_w=0, idle_w=0)
    policy, news, notices, held_s = Policy(Told(run_id="1")), [], [], 0
    for now_s in range(1, 60 + int(TELL_HOLD_S + ATTENTION_HOLDS_S)):
        proposals = pass_second(devices, fake, float(now_s))
        held_s += proposals[0].hold is HoldReason.HEAT
        if held_s == 30:
            fake.set(0, ambient_c=89)
        news += devices.take_news()
        notices += policy.step(float(now_s), 3, "2026-06-01", status(devices))
    assert held_s > TELL_HOLD_S
    assert len(news) == 1
    assert "GPU 0 is at 89 °C after 10 minutes of rest" in news[0]
    assert devices.troubles == (Trouble(TroubleKind.HEAT, news[0], "hold"),)
    assert [notice.kind for notice in notices] == [Kind.ATTENTION]
    assert "after 10 minutes of rest" in notices[0].text
    fake.set(0, ambient_c=40)
    for second in range(200):
        pass_second(devices, fake, float(now_s + second))
    assert devices.troubles == ()


def test_on_wsl_memory_that_was_moved_into_ram_is_told_once_and_as_long_as_it_is_so(fake: FakeNvml, tmp_path: Path) -> None:
    devices = Devices(Limits(), watches_gpus=True, power_record=tmp_path / "power-limits.json", is_wsl=True)
    fake.set(0, others_bytes=9.9 * GIB)
    try:
        news = []
        for now_s in range(1, 100):
            pass_second(devices, fake, float(now_s), replace(AT_WORK, samples_per_s=80.0 if now_s < 10 else 20.0))
            news += devices.take_news()
        assert len(news) == 1
        assert devices.troubles == (Trouble(TroubleKind.VRAM_SPILLS, news[0]),)
        pass_second(devices, fake, 100.0, replace(AT_WORK, samples_per_s=70.0))
        assert devices.troubles == ()
    finally:
        devices.close()


@pytest.fixture
def two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return installed(tmp_path, monkeypatch, devices=2)


def test_a_card_that_one_of_several_ranks_has_lost_is_told(two_cards: FakeNvml, tmp_path: Path) -> None:
    """The other rank still has memory on its own; on the lost one nobody has any, by what the driver says."""
    devices = devices_of(tmp_path)
    for card in range(2):
        two_cards.set(card, worker_pid=40 + card, worker_bytes=4 * GIB)
    load = replace(AT_WORK, pids=(40, 41))
    try:
        pass_second(devices, two_cards, 1.0, load)
        pass_second(devices, two_cards, 2.0, load)
        assert [gpu.index for gpu in devices.workers] == [0, 1]
        two_cards.set(1, fault=Fault.LOST)
        pass_second(devices, two_cards, 3.0, load)
        pass_second(devices, two_cards, 4.0, load)
        assert (devices.lost or "").startswith("GPU 1 (NVIDIA GeForce RTX 3080) is lost: ")
    finally:
        devices.close()


def test_each_of_several_ranks_answers_for_its_own_card(two_cards: FakeNvml, tmp_path: Path) -> None:
    """Cards are known by their own numbers: CUDA counts them in another order than the driver. A rank of which nobody knows
    where it computes is told nothing.
    """
    fake = two_cards
    devices, uuids = devices_of(tmp_path), [fake[card].uuid.decode() for card in range(2)]
    for card in range(2):
        fake.set(card, worker_pid=40 + card, worker_bytes=4 * GIB, others_bytes=0)
    own = {"share": 0.5, "cuda_allocated_bytes": 3 * GIB, "cuda_reserved_bytes": 3 * GIB}
    ranks = (RankReading(pid=41, gpu=uuids[1], **own), RankReading(pid=40, gpu=uuids[0], **own))
    memory = WorkerMemory(resident_bytes=GIB, cuda_allocated_bytes=3 * GIB, cuda_reserved_bytes=3 * GIB, data_limit_bytes=None)
    load = replace(AT_WORK, pids=(40, 41), ranks=ranks, memory=memory)

    def asked(now_s: float, load: Load) -> dict[int | None, Proposal]:
        return {each.rank: each for each in pass_second(devices, fake, now_s, load) if each.vram_limit_bytes or each.shrink}

    try:
        for now_s in (1.0, 2.0, 3.0):
            calm = asked(now_s, load)
        assert sorted(calm, key=str) == [0, 1], "and nothing is said of all of them"
        assert not any(each.shrink for each in calm.values())
        fake.set(0, others_bytes=5.9 * GIB)  # the driver's first card, on which rank 1 computes
        for now_s in (4.0, 5.0):
            tight = asked(now_s, load)
        assert (tight[0].shrink, tight[1].shrink) == (False, True)
        assert tight[1].reason.startswith("rank 1: the worker holds")
        assert (tight[1].vram_limit_bytes or 0) < 3 * GIB < (tight[0].vram_limit_bytes or 0)
        unknown = replace(load, ranks=(ranks[0], RankReading(pid=40, share=0.5)))
        assert set(asked(6.0, unknown)) == {0}
    finally:
        devices.close()


def test_what_each_process_of_a_program_holds_is_known_and_the_room_for_it(devices: Devices, fake: FakeNvml) -> None:
    fake.set(0, worker_pid=41, worker_bytes=3 * GIB)
    memory = MemoryReading(at_s=1, ram_total_bytes=40 * GIB, ram_available_bytes=30 * GIB, worker_bytes=GIB)
    limits = MemoryLimits(worker_bytes=20 * GIB, reserve_bytes=0)
    load = replace(AT_WORK, pids=(41, 42), place=Place.ON_CARD)
    for now_s in (1.0, 2.0):
        pass_second(devices, fake, now_s, load)
    assert devices.card_view(2.0, memory, limits) == CardView(holders={41: 3 * GIB}, room_bytes=16 * GIB)
    assert devices.card_view(9.0, memory, limits).holders is None, "that was long ago"
    fake.set(0, has_processes=0)
    pass_second(devices, fake, 10.0, load)
    assert devices.card_view(10.0, memory, limits).why_not is not None


def test_in_a_container_nobody_is_taken_to_have_nothing_on_the_card(fake: FakeNvml, tmp_path: Path) -> None:
    """The driver names the processes by the host's numbers."""
    fake.set(0, worker_pid=41, worker_bytes=3 * GIB)
    memory = MemoryReading(at_s=1, ram_total_bytes=40 * GIB, ram_available_bytes=30 * GIB, worker_bytes=GIB)
    limits = MemoryLimits(worker_bytes=20 * GIB, reserve_bytes=0)
    devices = Devices(Limits(), watches_gpus=True, power_record=tmp_path / "power-limits.json", has_own_pids=True)
    try:
        pass_second(devices, fake, 1.0, replace(AT_WORK, pids=(7,), place=Place.ON_CARD))
        view = devices.card_view(1.0, memory, limits)
        assert view.holders is None
        assert "as in a container" in str(view.why_not)
        for now_s in (2.0, 3.0):
            pass_second(devices, fake, now_s, replace(AT_WORK, pids=(41,), place=Place.ON_CARD))
        assert devices.card_view(3.0, memory, limits).why_not is None, "a driver that translates them is believed"
    finally:
        devices.close()


def test_a_temperature_that_stands_still_is_shown_as_unknown_and_the_duty_does_not_rise_on_it(
    devices: Devices, fake: FakeNvml
) -> None:
    """It says 37 °C for ever, while the device goes from idling to full power."""
    fake.set(0, noise_c=0)
    seen, duties = [], []
    for now_s in range(1, 500):
        fake.set(0, duty=1 if now_s > 60 else 0, fault=Fault.FROZEN if now_s > 10 else Fault.NONE)
        duties.append(pass_second(devices, fake, float(now_s))[0].duty_fraction)
        seen.append(devices.gpus[0].temperature_c)
    assert seen[250] is not None
    assert seen[-1] is None
    assert (devices.gpus[0].power_w or 0) > 200
    assert all(later <= before for before, later in itertools.pairwise(duties[300:]))
    fake.set(0, fault=Fault.NONE)
    pass_second(devices, fake, 500.0)
    assert devices.gpus[0].temperature_c is not None


# -- battery -----------------------------------------------------------------------------------------------------------


def laptop(root: Path, *, online: bool) -> PowerSupply:
    for name, files in {
        "AC": {"type": "Mains", "online": str(int(online))},
        "BAT0": {"type": "Battery", "status": "Charging" if online else "Discharging"},
    }.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content + "\n")
    return PowerSupply(root)


def holds(devices: Devices, seconds: range) -> list[bool]:
    return [any(p.hold is HoldReason.POWER for p in devices.step(float(s), AT_WORK, calm=True)) for s in seconds]


def test_on_its_battery_a_laptop_holds_says_why_and_goes_on_at_the_mains(tmp_path: Path) -> None:
    devices = devices_of(tmp_path, watches_gpus=False)
    devices._supply = laptop(tmp_path, online=False)
    held = holds(devices, range(60))
    assert held.count(False) == HOLD_AFTER_S
    assert held[-1]
    assert [trouble.kind for trouble in devices.troubles] == [TroubleKind.BATTERY]
    laptop(tmp_path, online=True)
    held = holds(devices, range(60, 120))
    assert held.count(True) == RESUME_AFTER_S
    assert not held[-1]
    assert devices.troubles == ()


def test_who_wants_to_train_on_the_battery_may(tmp_path: Path) -> None:
    devices = devices_of(tmp_path, Limits(on_battery="run"), watches_gpus=False)
    devices._supply = laptop(tmp_path, online=False)
    assert not any(holds(devices, range(600)))
    assert devices.troubles == ()
