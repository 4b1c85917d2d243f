"""Hot nights on a device that behaves like one: the whole chain, from the library through probe and client to the duty cycle.

The device is `fake_nvml/`; without a C compiler these are not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import fake_nvml
from kit.fake_nvml import UNSUPPORTED, FakeNvml, Fault
from kit.fake_nvml.night import best_constant_duty, controlled_night, hottest

from memsup.supervisor.sense.gpu.client import GpuClient

pytestmark = pytest.mark.skipif(fake_nvml.compiler() is None, reason="NOT RUN: no C compiler (cc) to build the NVML library")

HOUR_S = 3600
PACE_C = 87
"""Of an RTX 3080, which slows itself down at 95."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(library, tmp_path / "control")
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    fake.control.clock_s = 0
    return fake


@pytest.fixture
def client(fake: FakeNvml) -> Iterator[GpuClient]:
    client = GpuClient()
    yield client
    client.close()


@pytest.mark.parametrize(
    "hours", [pytest.param(0.5, id="half an hour"), pytest.param(8, id="a whole night", marks=pytest.mark.nightly)]
)
def test_a_hot_summer_night_stays_cool_at_nine_tenths_of_the_best_speed(
    library: Path, fake: FakeNvml, client: GpuClient, hours: float
) -> None:
    """The room goes from 26 to 38 °C; the cooler would let the GPU pass 100 °C at full load. Never more than 2 °C above the
    pace level, not one slowdown by the device itself, not one hold, and ≥ 90 % of the best constant duty cycle.
    """
    seconds = int(hours * HOUR_S)
    fake.set(0, ambient_c=26, ambient_c_per_h=12 / hours)
    best = best_constant_duty(library, fake, seconds, PACE_C + 2)
    night = controlled_night(fake, client, seconds)
    assert max(night.celsius) <= PACE_C + 2
    assert fake[0].slowdowns == 0
    assert not any(decision.hold for decision in night.decisions)
    assert night.mean_duty >= 0.9 * best
    assert night.duty[-1] < 0.85


def test_without_the_control_the_same_night_is_too_hot(library: Path, fake: FakeNvml) -> None:
    fake.set(0, ambient_c=26, ambient_c_per_h=24)
    assert hottest(library, fake, HOUR_S // 2, 1.0) > 95


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.CRASH, Fault.LOST, Fault.ERROR, Fault.GARBAGE])
def test_a_fault_in_mid_run_is_shown_as_unknown_and_the_night_goes_on(fake: FakeNvml, client: GpuClient, fault: Fault) -> None:
    """From minute 20 to 22 the driver misbehaves: nothing is known, the duty does not rise on that, and it is found again."""
    fake.set(0, ambient_c=34)
    begin, end, seconds = 1200, 1320, 2400

    def each_second(second: int) -> None:
        fake.set(0, fault=fault if begin <= second < end else Fault.NONE)

    night = controlled_night(fake, client, seconds, each_second)
    before = night.decisions[begin - 1].duty_fraction
    assert before < 1.0
    assert all(seen is None for seen in night.seen_c[begin + 5 : end - 1])
    assert all(decision.duty_fraction <= before + 0.02 for decision in night.decisions[begin : end - 1])
    assert all(seen is not None for seen in night.seen_c[end + 90 :])
    assert max(night.celsius) <= PACE_C + 2
    assert not any(decision.hold for decision in night.decisions)
    if fault in (Fault.HANG, Fault.CRASH):
        assert any("unknown" in (note or "") for note in night.notes[begin:end])


def test_a_sensor_that_freezes_cold_is_found_out_by_the_devices_own_slowdown(fake: FakeNvml, client: GpuClient) -> None:
    """It says 40 °C while the chip goes to 95 and beyond: the hardware's slowdown is believed, and the chip cools down."""
    fake.set(0, ambient_c=36, noise_c=0)
    night = controlled_night(fake, client, 1800, lambda second: fake.set(0, fault=Fault.FROZEN if second > 5 else Fault.NONE))
    assert max(night.celsius) > 95
    assert sum(celsius > 95 for celsius in night.celsius[600:]) < 60
    assert max(night.celsius[600:]) < 97
    assert night.decisions[-1].duty_fraction < 1.0


def test_a_card_that_speaks_in_margins_is_kept_by_them(fake: FakeNvml, client: GpuClient) -> None:
    """An RTX 5090: slowdown at 92 by its margin, so the pace level is 84."""
    fake.set(0, ambient_c=33, slowdown_c=UNSUPPORTED, shutdown_c=UNSUPPORTED)
    fake.set(0, limit_c=90, slowdown_margin_c=-2, shutdown_margin_c=-5)
    night = controlled_night(fake, client, 2400)
    assert max(night.celsius) <= 84 + 2
    assert max(night.celsius[1200:]) >= 84 - 3
    assert fake[0].slowdowns == 0


def test_a_blocked_fan_ends_in_a_hold_and_not_in_a_shutdown(fake: FakeNvml, client: GpuClient) -> None:
    """Within two minutes even the least duty is too much: it rests, says when it goes on, and goes on when the fan does."""
    fake.set(0, ambient_c=30, cooler_s=40)

    def each_second(second: int) -> None:
        if 900 <= second < 1020:
            fake.set(0, degrees_per_w=0.22 + (second - 900) / 120 * 1.6)  # 40 °C above the room for idling alone
        if second == 1500:
            fake.set(0, degrees_per_w=0.22)

    night = controlled_night(fake, client, 2400, each_second)
    held = [second for second, decision in enumerate(night.decisions) if decision.hold]
    assert held
    assert 900 <= held[0] < 1100
    assert max(night.celsius) < 95
    assert any(decision.forecast_s is not None for decision in night.decisions[held[0] :])
    assert not night.decisions[-1].hold
    assert night.decisions[-1].duty_fraction > 0.5
