"""GPU memory that other programs want: torch is limited to what they leave, and its own error is an ordinary event.

There is no GPU: `fake_cuda/` stands for torch's allocator at the worker's seam, `fake_nvml/` for the driver. All else is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.fake_cuda import in_every_worker
from kit.fake_nvml import FakeNvml, Fault, installed
from kit.lone_supervisor import tiny_settings
from kit.run_state import as_scenery, endless_job, ledger, until

from memsup.shared.messages import Done, LimitMemory

GIB = 1 << 30
MIB = 1 << 20


# -- the worker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """2 GiB of weights and 50 MiB a token: the micro-batch of 96 tokens takes 6.7 GiB in all."""
    from kit import fake_cuda

    from memsup.worker import train
    from memsup.worker.ranks import other

    for name in ("device_memory", "to_device", "cards"):
        monkeypatch.setattr(train, name, getattr(train, name))
    monkeypatch.setattr(other, "device_memory", other.device_memory)
    allocator = fake_cuda.Allocator(weights_bytes=2 * GIB, token_bytes=50 * MIB)
    fake_cuda.install(allocator)
    return allocator


@pytest.mark.parametrize("on_host", [False, True])
def test_a_step_on_a_gpu_takes_the_moments_from_where_the_settings_say(tmp_path: Path, allocator: Any, on_host: bool) -> None:
    from kit.one_life import one_life

    from memsup.worker.compute.offloaded_adam import OffloadedAdamW
    from memsup.worker.train import take_step

    with one_life(tiny_settings(tmp_path, training__optimizer_on_host=on_host)) as life:
        assert isinstance(life.optimizer, OffloadedAdamW) is on_host
        take_step(life)
        assert life.step == 1
        assert all(state["exp_avg_sq"].device.type == "cpu" for state in life.optimizer.state.values())


def test_what_was_ordered_becomes_torchs_own_limit_and_beyond_it_the_step_is_done_again_smaller(
    tmp_path: Path, allocator: Any
) -> None:
    from kit.one_life import exhaustions, one_life, reports

    from memsup.worker.train import take_step

    with one_life(tiny_settings(tmp_path)) as life:
        assert allocator.limits == [int(0.95 * 10 * GIB)]
        take_step(life)
        assert not exhaustions(life)
        assert allocator.reserved_bytes() > 5 * GIB
        life.session.link.orders.put(LimitMemory(order_id=7, reason="a game", device_bytes=5 * GIB))
        life.boundary()
        answer = next(report for report in reports(life) if isinstance(report, Done))
        assert answer.detail == "at most 5120 MiB of the GPU, of which 2048 MiB are taken"
        assert allocator.limits[-1] == 5 * GIB
        for _ in range(6):
            take_step(life)
        found = exhaustions(life)
        assert found
        assert "5120.00 MiB allowed" in found[0].detail
        assert found[-1].micro_tokens_after * 50 * MIB <= 3 * GIB
        assert life.step == 7
        assert life.schedule.effective_batch == 8
        assert allocator.reserved_bytes() <= 5 * GIB


def test_what_is_planned_for_follows_what_others_leave(tmp_path: Path, allocator: Any) -> None:
    """The planner knows the limit and does not run into it again and again; when they are gone it takes the room they had."""
    from kit.one_life import exhaustions, one_life

    from memsup.worker.train import take_step

    with one_life(tiny_settings(tmp_path, training__tune="true", training__epochs=20)) as life:
        for _ in range(8):
            take_step(life)
        before = life.plan.at(life.step + 1).micro_tokens
        assert 2 * GIB + before * 50 * MIB > 5 * GIB
        exhaustions(life)
        life.session.link.orders.put(LimitMemory(order_id=7, reason="a game", device_bytes=5 * GIB))
        life.boundary()
        for _ in range(120):
            take_step(life)
        assert len(exhaustions(life)) <= 1, "only by the plan that was in force"
        assert 2 * GIB + life.plan.at(life.step + 1).micro_tokens * 50 * MIB < 5 * GIB
        life.session.link.orders.put(LimitMemory(order_id=8, reason="the game is over", device_bytes=allocator.limits[0]))
        life.boundary()
        sizes = []
        for _ in range(60):
            take_step(life)
            sizes.append(life.plan.at(life.step + 1).micro_tokens)
        assert 2 * GIB + max(sizes) * 50 * MIB > 5 * GIB


def test_micro_batches_of_a_size_that_was_set_grow_back_to_it_and_no_further(tmp_path: Path, allocator: Any) -> None:
    from kit.one_life import exhaustions, one_life

    from memsup.worker.train import take_step

    with one_life(tiny_settings(tmp_path, training__epochs=20)) as life:
        assert not life.settings.tune
        was_set = life.plan.at(1).micro_tokens
        life.session.link.orders.put(LimitMemory(order_id=7, reason="a game", device_bytes=5 * GIB))
        life.boundary()
        for _ in range(40):
            take_step(life)
        assert len(exhaustions(life)) == 1, "only by the setting, and not again and again"
        assert life.plan.at(life.step + 1).micro_tokens < was_set
        life.session.link.orders.put(LimitMemory(order_id=8, reason="the game is over", device_bytes=allocator.limits[0]))
        life.boundary()
        for _ in range(40):
            take_step(life)
        assert life.plan.at(life.step + 1).micro_tokens == was_set
        assert not exhaustions(life)


def test_a_row_that_does_not_fit_on_the_gpu_names_the_setting_that_bounds_it(tmp_path: Path, allocator: Any) -> None:
    from kit.one_life import one_life

    from memsup.shared.messages import FailureCause
    from memsup.worker.session import GiveUp
    from memsup.worker.train import take_step

    with one_life(tiny_settings(tmp_path, limits__vram="2100MiB")) as life:
        with pytest.raises(GiveUp) as refused:
            take_step(life)
        assert refused.value.cause is FailureCause.OUT_OF_MEMORY
        assert "of at most 2100 MiB" in str(refused.value)
        assert "limits.vram" in str(refused.value)


def test_a_worker_on_the_cpu_answers_that_there_is_nothing_to_limit(tmp_path: Path) -> None:
    from kit.one_life import one_life, reports

    with one_life(tiny_settings(tmp_path)) as life:
        life.session.link.orders.put(LimitMemory(order_id=7, reason="a game", device_bytes=5 * GIB))
        life.boundary()
        assert [report.detail for report in reports(life) if isinstance(report, Done)] == [
            "it computes on the CPU, so there is nothing to limit"
        ]


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    library = installed(tmp_path, monkeypatch)
    in_every_worker(monkeypatch, weights_bytes=2 * GIB, token_bytes=50 * MIB)
    yield library
    end_supervisors()


def actions() -> list[str]:
    return [line["action"] for line in ledger() if "of the GPU" in (line.get("action") or "")]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return endless_job(tmp_path / "job")


def in_gpu(seen: Any) -> bool:
    return (seen["progress"]["step"] or 0) > 20 and (seen["gpus"][0]["used_bytes"] or 0) > 6 * GIB


@pytest.mark.slow
def test_pause_release_is_proven_by_the_devices_own_count(job: Path, fake: FakeNvml) -> None:
    memsup("start", cwd=job)
    as_scenery(until(in_gpu))
    released = memsup("pause", "--release", "--json").document
    assert 6 * GIB < released["freed_vram_bytes"] <= 2448 * MIB + 96 * 50 * MIB
    assert released["freed_ram_bytes"] > 100 * MIB
    assert "of VRAM by the device's own count. Continue with: memsup resume" in released["text"]
    assert released["status"]["attention"] == []
    given_back = [line for line in memsup("logs", "--events", "--json").stdout.splitlines() if '"given back"' in line]
    assert len(given_back) == 1
    memsup("resume")
    until(in_gpu)


@pytest.mark.slow
def test_vram_that_does_not_come_back_is_said_and_so_is_what_is_not_known(job: Path, fake: FakeNvml) -> None:
    """A driver that keeps a dead process's memory; then one that does not answer any more."""
    memsup("start", cwd=job)
    as_scenery(until(in_gpu))
    fake.set(frees_of_dead=0)
    kept = memsup("pause", "--release", "--json").document
    assert kept["freed_vram_bytes"] == 0
    assert any("only 0 B came back by the device's own count" in sentence for sentence in kept["status"]["attention"])
    fake.set(frees_of_dead=1)
    memsup("resume")
    until(in_gpu)
    fake.set(fault=Fault.HANG)
    unknown = memsup("pause", "--release", "--json").document
    assert unknown["freed_vram_bytes"] is None
    assert "how much VRAM came back is not known" in unknown["text"]


@pytest.mark.slow
def test_a_game_at_night_gets_its_memory_and_the_run_goes_on_smaller(job: Path, fake: FakeNvml) -> None:
    """It takes all that is free, gets more as the worker gives way, and leaves. At last one comes that takes everything."""
    memsup("start", cwd=job)
    before = as_scenery(until(in_gpu))
    device = fake[0]
    for tokens in (96, 48):  # of a micro-batch; the game takes what that leaves
        fake.set(others_bytes=device.total_bytes - (2448 + 50 * tokens) * MIB)
        eventually(lambda: 0.95 * device.total_bytes - device.others_bytes - device.worker_bytes > -128 * MIB)
    left_mib = (0.95 * device.total_bytes - device.others_bytes) / MIB
    step = until(lambda seen: 2448 + 50 * seen["batch"]["micro_tokens"] <= left_mib)["progress"]["step"]
    during = until(lambda seen: seen["progress"]["step"] > step + 20)
    assert during["state"] == "running"
    assert (during["restarts"], during["worker_pid"]) == (0, before["worker_pid"])
    assert during["batch"]["effective"] == 8
    assert device.others_bytes + device.worker_bytes <= 0.97 * device.total_bytes
    orders = len(actions())
    fake.set(others_bytes=512 * MIB)
    eventually(lambda: any("8.61 GiB of the GPU" in action for action in actions()[orders:]), 90)

    def grab(seen: Any) -> bool:
        fake.set(others_bytes=device.total_bytes - (device.worker_bytes if seen["worker_pid"] else 0))
        return seen["state"] == "recovering" and seen["worker_pid"] is None

    crowded = until(grab)
    assert crowded["restarts"] == 0, "it is counted when it begins"
    assert "It found no room on the GPU: other programs hold" in crowded["last_action"]["reason"]
    assert "tries again every 5 minutes" in crowded["last_action"]["reason"]
