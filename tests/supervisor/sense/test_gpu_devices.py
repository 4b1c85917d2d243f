"""From a driver's answers to readings: what is absurd or not told is unknown, and the worker's own GPUs are found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.sense.gpu.devices import heat_sources, of_worker, power_limits, reading_of, unknown
from memsup.supervisor.sense.gpu.frames import Device

GIB = 1 << 30


def test_not_supported_is_unknown_and_never_nought() -> None:
    reading = reading_of(Device(index=0, uuid="GPU-a", name="MX330"), 1.0, fully=True)
    for field in ("used_bytes", "total_bytes", "worker_bytes", "temperature_c", "slowdown_c", "power_w", "slowed_by_heat"):
        assert getattr(reading, field) is None


def test_absurd_values_are_unknown() -> None:
    reading = reading_of(
        Device(
            index=0,
            total_bytes=10 * GIB,
            free_bytes=(1 << 64) - 1,
            temperature_c=4_000_000,
            power_w=4_294_967.295,
            slowdown_threshold_c=65535,
        ),
        1.0,
        fully=True,
    )
    assert reading.total_bytes == 10 * GIB
    assert reading.used_bytes is reading.temperature_c is reading.power_w is reading.slowdown_c is None
    assert reading_of(Device(index=0, temperature_c=0), 1.0, fully=True).temperature_c is None


def test_the_workers_share_is_the_sum_of_its_own_processes() -> None:
    device = Device(index=0, total_bytes=10 * GIB, free_bytes=GIB, processes=[(7, GIB), (8, 2 * GIB), (9, 3 * GIB)])
    assert reading_of(device, 1.0, fully=True, worker_pids={7, 8}).worker_bytes == 3 * GIB


def test_the_workers_share_is_unknown_in_a_container_and_where_windows_manages_the_memory() -> None:
    """There the driver's pids are others, or it tells no sizes: not the same as holding nothing."""
    device = Device(index=0, total_bytes=10 * GIB, free_bytes=GIB, processes=[(7, GIB), (8, None)])
    assert reading_of(device, 1.0, fully=True, worker_pids={4711}).worker_bytes is None
    assert reading_of(device, 1.0, fully=True, worker_pids={7, 8}).worker_bytes is None


def test_a_look_at_memory_alone_keeps_the_rest() -> None:
    before = reading_of(
        Device(index=0, total_bytes=10 * GIB, free_bytes=9 * GIB, temperature_c=70, power_w=200), 1.0, fully=True
    )
    after = reading_of(Device(index=0, total_bytes=10 * GIB, free_bytes=GIB), 1.25, fully=False, before=before)
    assert (after.at_s, after.used_bytes, after.temperature_c, after.power_w) == (1.25, 9 * GIB, 70, 200)


def test_a_lost_gpu_keeps_its_name_and_nothing_else_is_known() -> None:
    before = reading_of(
        Device(index=0, uuid="GPU-a", name="RTX", total_bytes=GIB, free_bytes=0, temperature_c=70), 1.0, fully=True
    )
    lost = reading_of(Device(index=0, lost=True), 2.0, fully=True, before=before)
    assert (lost.lost, lost.name, lost.uuid, lost.temperature_c, lost.used_bytes) == (True, "RTX", "GPU-a", None, None)


def test_xid_79_means_lost_even_while_the_device_still_answers() -> None:
    first = reading_of(Device(index=0, total_bytes=GIB, free_bytes=0, xids=[13, 79]), 1.0, fully=True)
    assert first.lost
    assert reading_of(Device(index=0), 2.0, fully=True, before=first).lost
    back = reading_of(Device(index=0, total_bytes=GIB, free_bytes=0), 3.0, fully=True, before=first)
    assert not back.lost


def test_an_unknown_device_keeps_what_does_not_change() -> None:
    known = GpuReading(at_s=1, index=2, uuid="GPU-a", name="RTX", total_bytes=GIB, used_bytes=5, temperature_c=60, power_w=9)
    assert unknown(known) == GpuReading(at_s=1, index=2, uuid="GPU-a", name="RTX", total_bytes=GIB)


GPUS = tuple(GpuReading(at_s=0, index=i, uuid=f"GPU-{i}{i}{i}{i}-abc", power_default_w=300.0) for i in range(3))


def test_the_workers_gpus_are_those_on_which_it_has_memory() -> None:
    held = GpuReading(at_s=0, index=1, worker_bytes=5)
    assert of_worker((GPUS[0], held, GPUS[2]), "GPU-0000") == (held,)


def test_a_card_that_a_rank_computes_on_is_the_workers_whatever_the_driver_says_of_its_memory() -> None:
    """In a container the driver's processes are nobody's; of a lost card nothing is known but that it was the worker's."""
    held, lost = GpuReading(at_s=0, index=0, uuid="GPU-a", worker_bytes=5), GpuReading(at_s=0, index=1, uuid="GPU-b", lost=True)
    assert of_worker(GPUS, None, named=["GPU-2222-abc", "GPU-1111-abc"]) == GPUS[1:]
    assert of_worker((held, lost), None, before=(held, replace(lost, lost=False))) == (held, lost)
    assert of_worker((held, lost), None, before=(held,)) == (held,), "it was never the worker's"


def test_the_workers_gpus_are_found_by_uuid_in_cuda_visible_devices() -> None:
    assert of_worker(GPUS, "GPU-1111,GPU-2222-abc") == GPUS[1:]


def test_cudas_numbers_are_not_the_drivers_so_that_all_count() -> None:
    """CUDA puts the fastest GPU first: number 1 may be any. Watching one too many is safe, one too few is not."""
    assert of_worker(GPUS, "1") == GPUS
    assert of_worker(GPUS, None) == GPUS
    assert of_worker(GPUS[:1], "GPU-2222") == GPUS[:1]


def test_power_limits_are_the_smaller_of_the_users_and_the_heat_controls() -> None:
    one = GPUS[:1]
    assert power_limits(one) == {}
    assert power_limits(one, 0.8) == {GPUS[0].uuid: 240.0}
    assert power_limits(one, 0.8, 200) == {GPUS[0].uuid: 200}
    assert power_limits(one, 0.8, 280) == {GPUS[0].uuid: 240.0}
    assert power_limits((GpuReading(at_s=0, index=0, uuid="GPU-x"),), 0.8) == {}


def test_a_gpu_is_a_source_of_heat_with_its_own_limits() -> None:
    gpu = GpuReading(at_s=0, index=3, temperature_c=70, slowdown_c=97, power_w=200, slowed_by_heat=False)
    (source,) = heat_sources([gpu])
    assert (source.name, source.temperature_c, source.limits.pace_c, source.heat) == ("GPU 3", 70, 89, 200)
    assert not source.cappable
    assert heat_sources([gpu], 75)[0].limits.pace_c == 75


@given(
    st.builds(
        Device,
        index=st.integers(0, 16),
        lost=st.booleans(),
        total_bytes=st.none() | st.integers(),
        free_bytes=st.none() | st.integers(),
        processes=st.none() | st.lists(st.tuples(st.integers(), st.none() | st.integers())),
        temperature_c=st.none() | st.floats(),
        margin_c=st.none() | st.floats(),
        power_w=st.none() | st.floats(),
        xids=st.lists(st.integers()),
    ),
    st.booleans(),
)
def test_whatever_is_answered_a_reading_is_sensible_or_unknown(device: Device, fully: bool) -> None:
    reading = reading_of(device, 1.0, fully=fully, worker_pids={1, 2, 3})
    if reading.used_bytes is not None:
        assert reading.total_bytes is not None
        assert 0 <= reading.used_bytes <= reading.total_bytes
    assert reading.temperature_c is None or 0 < reading.temperature_c < 150
    assert reading.power_w is None or 0 < reading.power_w < 5000
    assert reading.worker_bytes is None or reading.worker_bytes >= 0
