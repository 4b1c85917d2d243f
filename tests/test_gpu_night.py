"""Hot nights on a device that behaves like one: the whole chain, from the library through probe and client to the duty cycle.

The device is `fake_nvml/`; without a C compiler these are not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_nvml
import pytest
from fake_nvml import UNSUPPORTED, FakeNvml, Fault
from fake_nvml.night import best_constant_duty, controlled_night

from memsup.supervisor.gpu.client import GpuClient

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
    "hours", [pytest.param(0.5, id="half an hour"), pytest.param(8, id="a whole night", marks=pytest.mark.slow)]
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


def test_without_the_control_the_same_night_slows_the_device_down(fake: FakeNvml, client: GpuClient) -> None:
    """So the night above is hot indeed."""
    fake.set(0, ambient_c=26, ambient_c_per_h=24, slowdown_c=95)
    controlled_night(fake, client, 1, lambda _: None)
    for second in range(2, HOUR_S // 2):
        fake.control.clock_s = float(second)
        fake.set(0, duty=1)
        client.ask(float(second))
        if second % 60 == 0:
            controlled_second(client, float(second))
    assert fake[0].slowdowns > 0


def controlled_second(client: GpuClient, now_s: float) -> None:
    import select

    client.on_tick(now_s)
    select.select([client.fileno()], [], [], 60)
    client.on_readable(now_s)
