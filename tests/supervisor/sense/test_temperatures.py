"""CPU and board sensors, read from real files: limits are the sensor's own, what is odd is unknown. Mains and battery."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.decide.battery import HOLD_AFTER_S, RESUME_AFTER_S, BatteryControl
from memsup.supervisor.decide.heat import HeatControl, HeatDecision
from memsup.supervisor.decide.readings import TemperatureReading, limit_c
from memsup.supervisor.decide.stuck_sensor import BELIEVED_FROM_C, STILL_S, StuckSensorWatch
from memsup.supervisor.sense import temperatures
from memsup.supervisor.sense.power_supply import PowerSupply
from memsup.supervisor.sense.temperatures import TemperatureSensors, sensor_limits, sensor_sources


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def chip(number: int, name: str, **files: str) -> dict[str, str]:
    """One hwmon folder as the kernel lays it out."""
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": f"{name}\n"} | {f"{folder}/{file}": f"{content}\n" for file, content in files.items()}


INTEL = chip(0, "coretemp", temp1_label="Package id 0", temp1_input="71000", temp1_max="84000", temp1_crit="100000")
RYZEN = chip(0, "k10temp", temp1_label="Tctl", temp1_input="95000")
BOARD = chip(1, "acpitz", temp1_input="27800", temp1_crit="119000") | chip(
    2, "nvme", temp1_label="Composite", temp1_input="45850", temp1_max="81850", temp1_crit="84850"
)


# -- reading -------------------------------------------------------------------------------------------------------------


def test_every_sensor_is_read_with_its_own_limits(tmp_path: Path) -> None:
    write(tmp_path, INTEL | BOARD)
    assert TemperatureSensors(tmp_path).read(5.0) == (
        TemperatureReading(at_s=5, name="coretemp Package id 0", celsius=71, high_c=84, critical_c=100),
        TemperatureReading(at_s=5, name="acpitz temp1", celsius=27.8, critical_c=119),
        TemperatureReading(at_s=5, name="nvme Composite", celsius=45.85, high_c=81.85, critical_c=84.85),
    )


def test_sensors_of_the_same_kind_are_told_apart(tmp_path: Path) -> None:
    """Two sockets, each with its own track of how warm it gets; Prometheus takes no name twice."""
    write(tmp_path, chip(0, "k10temp", temp1_label="Tctl", temp1_input="95000", temp1_crit="100000"))
    write(tmp_path, chip(1, "k10temp", temp1_label="Tctl", temp1_input="60000", temp1_crit="100000"))
    first, second = TemperatureSensors(tmp_path).read(5.0)
    assert [(one.name, one.celsius) for one in (first, second)] == [("k10temp Tctl", 95), ("k10temp Tctl (2)", 60)]
    assert sensor_limits(second, None) == sensor_limits(first, None) is not None


def test_a_machine_without_sensors_is_a_normal_machine(tmp_path: Path) -> None:
    assert TemperatureSensors(tmp_path).read(0) == ()


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    for reading in TemperatureSensors().read(0):
        assert reading.celsius is None or 0 < reading.celsius < 150


def test_a_new_value_is_seen_through_the_kept_descriptor(tmp_path: Path) -> None:
    write(tmp_path, INTEL)
    sensors = TemperatureSensors(tmp_path)
    sensors.read(0)
    write(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": "99500\n"})
    assert sensors.read(1)[0].celsius == 99.5


@pytest.mark.parametrize("content", ["0\n", "-128000\n", "65261850\n", "", "garbage\n", "99" * 30])
def test_an_unconnected_or_broken_sensor_is_unknown_and_never_nought(tmp_path: Path, content: str) -> None:
    write(tmp_path, INTEL | {"sys/class/hwmon/hwmon0/temp1_input": content})
    assert TemperatureSensors(tmp_path).read(0)[0].celsius is None


def test_a_sensor_that_vanishes_is_unknown_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, INTEL)
    sensors = TemperatureSensors(tmp_path)
    file = tmp_path / "sys/class/hwmon/hwmon0/temp1_input"
    assert sensors.read(0)[0].celsius == 71
    file.write_text("")  # what a removed module's descriptor reads like
    assert sensors.read(1)[0].celsius is None
    file.write_text("66000\n")
    assert sensors.read(2)[0].celsius == 66


@pytest.mark.parametrize(
    ("limit", "known"), [("0", None), ("-1", None), ("65261850", None), ("28000", None), ("100000", 100.0)]
)
def test_absurd_limits_are_no_limits(tmp_path: Path, limit: str, known: float | None) -> None:
    write(tmp_path, INTEL | {"sys/class/hwmon/hwmon0/temp1_crit": limit})
    assert TemperatureSensors(tmp_path).read(0)[0].critical_c == known


def test_a_sensor_whose_firmware_is_slow_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that reads it has more urgent work. (The clock says that each reading took 20 ms.)"""
    write(tmp_path, INTEL)
    sensors = TemperatureSensors(tmp_path)
    clock = iter(number * 0.02 for number in range(100))
    monkeypatch.setattr(temperatures, "monotonic_s", lambda: next(clock))
    for now in range(temperatures.SLOW_READS):
        assert len(sensors.read(now)) == 1
    assert sensors.read(9) == ()
    assert sensors.left_out == ["coretemp Package id 0"]


def test_cpu_use_is_the_part_of_all_ticks_that_was_not_idle(tmp_path: Path) -> None:
    write(tmp_path, INTEL | {"proc/stat": "cpu  1000 0 1000 8000 0 0 0 0 0 0\ncpu0 1 1 1 1\n"})
    sensors = TemperatureSensors(tmp_path)
    sensors.read(0)
    assert sensors.cpu_use is None
    write(tmp_path, {"proc/stat": "cpu  1300 0 1000 8100 0 0 0 0 0 0\ncpu0 1 1 1 1\n"})
    sensors.read(1)
    assert sensors.cpu_use == pytest.approx(0.75)
    write(tmp_path, {"proc/stat": "garbage\n"})
    sensors.read(2)
    assert sensors.cpu_use is None


# -- limits --------------------------------------------------------------------------------------------------------------


def reading(
    name: str, celsius: float | None = 70, high: float | None = None, critical: float | None = None
) -> TemperatureReading:
    return TemperatureReading(at_s=0, name=name, celsius=celsius, high_c=high, critical_c=critical)


def test_a_ryzen_at_95_by_design_is_no_alarm() -> None:
    """Its sensor names no limit, and 95 is where it is made to run."""
    ryzen = reading("k10temp Tctl", 95)
    assert sensor_limits(ryzen, None) is None
    assert sensor_sources([ryzen], 1.0) == []
    assert limit_c(ryzen) is None


def test_an_intel_cpu_is_paced_just_below_its_critical_temperature() -> None:
    limits = sensor_limits(reading("coretemp Package id 0", high=84, critical=100), None)
    assert limits is not None
    assert (limits.pace_c, limits.hold_c) == (97, 100)


def test_high_alone_is_shown_but_nothing_is_done_for_it() -> None:
    """k10temp called 70 high for years."""
    old = reading("k10temp temp1", high=70)
    assert limit_c(old) == 70
    assert sensor_limits(old, None) is None


def test_the_users_limit_counts_where_the_sensor_has_none_and_never_beyond_a_critical_one() -> None:
    assert sensor_limits(reading("k10temp Tctl"), 85).pace_c == 85  # type: ignore[union-attr]
    assert sensor_limits(reading("coretemp Package id 0", critical=100), 85).pace_c == 85  # type: ignore[union-attr]
    assert sensor_limits(reading("coretemp Package id 0", critical=100), 120).pace_c == 100  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["nvme Composite", "acpitz temp1", "nct6798 SYSTIN"])
def test_a_sensor_of_the_board_counts_by_its_own_critical_value_alone(name: str) -> None:
    """A machine was reset twice at 95 °C of its board, its GPU at 80."""
    limits = sensor_limits(reading(name, critical=84.85), 60)
    assert limits is not None
    assert (limits.pace_c, limits.hold_c) == pytest.approx((81.85, 84.85))
    assert sensor_limits(reading(name, high=60), 60) is None, "shown only"


def test_a_cpu_becomes_a_source_of_heat_with_its_use_and_a_board_without() -> None:
    cpu, board = sensor_sources(
        [
            reading("coretemp Package id 0", 80, critical=100),
            reading("nvme Composite"),
            reading("acpitz temp1", 90, critical=95),
        ],
        0.5,
    )
    assert (cpu.name, cpu.temperature_c, cpu.heat, cpu.cappable) == ("coretemp Package id 0", 80, 0.5, False)
    assert (board.name, board.temperature_c, board.heat) == ("acpitz temp1", 90, None)


def test_a_hot_board_is_paced_then_held_and_one_that_never_moves_keeps_nothing_back(tmp_path: Path) -> None:
    write(tmp_path, BOARD | {"proc/stat": "cpu  1000 0 1000 8000 0 0 0 0 0 0\n"})
    sensors, control = TemperatureSensors(tmp_path), HeatControl()

    def decided(nvme_c: float, seconds: range) -> HeatDecision:
        for second in seconds:
            use = 400 * second * (second % 2)
            write(tmp_path, {"proc/stat": f"cpu  {1000 + use} 0 1000 {8000 + 500 * second} 0 0 0 0 0 0\n"})
            write(tmp_path, {"sys/class/hwmon/hwmon2/temp1_input": f"{1000 * nvme_c + second % 2 * 100:.0f}\n"})
            decision = control.step(float(second), sensor_sources(sensors.read(second), sensors.cpu_use))
        return decision

    assert decided(46, range(20)).duty_fraction == 1
    paced = decided(83.5, range(20, 50))
    assert paced.duty_fraction < 1
    assert "nvme Composite" in paced.reason
    assert decided(86, range(50, 65)).hold
    assert not decided(50, range(65, 200)).hold
    assert decided(46, range(200, 600)).duty_fraction == 1, "acpitz has said 27.8 all the time"


def test_one_beyond_its_critical_value_while_the_machine_runs_names_none(tmp_path: Path) -> None:
    write(tmp_path, INTEL | BOARD | {"sys/class/hwmon/hwmon1/temp1_input": "119000\n"})
    write(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": "100000\n"})
    cpu, acpi, _ = TemperatureSensors(tmp_path).read(5.0)
    assert (cpu.critical_c, acpi.critical_c) == (100, None)


# -- distrust ------------------------------------------------------------------------------------------------------------


def watched(temperature: Callable[[float], float | None], heat: Callable[[float], float | None], seconds: int) -> list[bool]:
    watch = StuckSensorWatch()
    return [watch.trusts(float(second), temperature(second), heat(second)) for second in range(seconds)]


def test_a_sensor_that_stays_the_same_while_the_heat_changes_is_not_believed() -> None:
    trusts = watched(lambda _: 27.8, lambda second: 0.05 if second < 100 else 1.0, 800)
    assert all(trusts[: int(STILL_S)])
    assert not any(trusts[int(STILL_S) + 60 :])


def test_it_is_believed_again_as_soon_as_it_moves() -> None:
    trusts = watched(lambda second: 27.8 if second < 700 else 28.0, lambda second: 0.05 if second < 100 else 1.0, 702)
    assert not trusts[699]
    assert trusts[700]


def test_a_steady_load_at_a_steady_temperature_is_believed() -> None:
    assert all(watched(lambda _: 62.0, lambda second: 1.0 + 0.1 * (second % 2), 5000))


def test_short_swings_of_the_heat_are_no_evidence() -> None:
    """Gaps of a few seconds, as in pacing, are too short for a sensor to follow."""
    assert all(watched(lambda _: 62.0, lambda second: 1.0 if second % 4 < 2 else 0.1, 5000))


def test_a_hot_sensor_is_believed_even_when_it_stands_still() -> None:
    """A Ryzen at exactly its 95 °C for an hour. Distrust would be the dangerous side."""
    assert all(watched(lambda _: BELIEVED_FROM_C + 20, lambda second: 1.0 if second % 600 < 300 else 0.3, 5000))


def test_without_a_measure_of_heat_nothing_is_distrusted() -> None:
    assert all(watched(lambda _: 27.8, lambda _: None, 5000))


@given(st.lists(st.tuples(st.floats(0, 1000), st.none() | st.floats(1, 149), st.none() | st.floats(0, 1000)), max_size=100))
def test_a_sensor_that_just_moved_is_always_believed(night: list[tuple[float, float | None, float | None]]) -> None:
    watch, now, before = StuckSensorWatch(), 0.0, None
    for passed, celsius, heat in night:
        now += passed
        trusts = watch.trusts(now, celsius, heat)
        if celsius != before or celsius is None:
            assert trusts
        if celsius is not None:
            before = celsius


# -- mains and battery ---------------------------------------------------------------------------------------------------


def supply(name: str, **files: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{file}": f"{content}\n" for file, content in files.items()}


LAPTOP = supply("AC", type="Mains", online="1") | supply("BAT0", type="Battery", status="Charging")


def test_mains_and_battery_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    power = PowerSupply(tmp_path)
    assert power.on_battery() is False
    write(tmp_path, supply("AC", online="0") | supply("BAT0", status="Discharging"))
    assert power.on_battery() is True
    write(tmp_path, supply("AC", online="1") | supply("BAT0", status="Full"))
    assert power.on_battery() is False


def test_a_desktop_with_a_wireless_mouse_has_no_battery(tmp_path: Path) -> None:
    write(tmp_path, supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging"))
    assert PowerSupply(tmp_path).on_battery() is None


def test_a_laptop_charged_over_usb_is_not_on_its_battery(tmp_path: Path) -> None:
    """A weak charger: the battery loses charge although it is plugged in."""
    write(tmp_path, supply("ucsi0", type="USB", online="1") | supply("BAT0", type="Battery", status="Discharging"))
    assert PowerSupply(tmp_path).on_battery() is False


def test_a_battery_that_vanishes_is_unknown(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    power = PowerSupply(tmp_path)
    os.truncate(tmp_path / "sys/class/power_supply/BAT0/status", 0)
    assert power.on_battery() is None


def test_hold_begins_and_ends_only_after_a_while() -> None:
    """Unplugged to move to another room: nothing. Unplugged for good: hold. Back: go on after half a minute."""
    control = BatteryControl()
    story = [(0, False), (5, True), (5 + HOLD_AFTER_S - 1, True), (20, False), (30, True), (30 + HOLD_AFTER_S, True)]
    assert [control.step(now, on_battery) for now, on_battery in story] == [False, False, False, False, False, True]
    story = [(50, None), (51, False), (51 + RESUME_AFTER_S - 1, False), (51 + RESUME_AFTER_S, False)]
    assert [control.step(now, on_battery) for now, on_battery in story] == [True, True, True, False]


def test_an_unknown_power_supply_changes_nothing() -> None:
    held, free = BatteryControl(holding=True), BatteryControl()
    for now in range(1000):
        assert held.step(now, None)
        assert not free.step(now, None)
