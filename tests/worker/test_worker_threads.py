"""How many threads compute is found out by trying, once: the fewest that are as fast as any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memsup.worker import hardware
from memsup.worker.compute import threads
from memsup.worker.compute.threads import candidates, cores, fewest_fast, find_threads
from memsup.worker.hardware import start_threads
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.journal import Plan


@given(st.integers(1, 256), st.none() | st.integers(1, 256))
def test_only_numbers_that_may_be_worth_it_are_tried(cpus: int, cores: int | None) -> None:
    found = candidates(cpus, cores)
    assert found[0] == cpus
    assert found == sorted(set(found), reverse=True)
    assert len(found) <= 3
    assert all(1 <= count <= cpus for count in found)


@pytest.mark.parametrize(
    ("cpus", "cores", "tried"),
    [(2, 2, [2]), (2, 1, [2, 1]), (8, 4, [8, 4, 3]), (16, None, [16, 15]), (3, 8, [3]), (1, 1, [1])],
)
def test_the_cores_and_one_less_are_tried(cpus: int, cores: int | None, tried: list[int]) -> None:
    assert candidates(cpus, cores) == tried


def test_where_a_gpu_computes_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "find_threads", lambda most: most + 1)
    before = torch.get_num_threads()
    try:
        assert start_threads(None, torch.device("cuda")) == before
        assert start_threads(None, torch.device("cpu")) == before + 1
        assert start_threads(1, torch.device("cuda")) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_more_threads_have_to_be_worth_it() -> None:
    assert fewest_fast({8: 1.00, 4: 1.02, 3: 1.20}) == 4
    assert fewest_fast({8: 1.00, 4: 1.10, 3: 1.20}) == 8
    assert fewest_fast({8: 1.00, 4: 0.90, 3: 0.92}) == 3


def test_cores_are_counted_by_the_threads_they_share(tmp_path: Path) -> None:
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert cores(set(range(8)), tmp_path) == 4
    assert cores({0, 4, 1}, tmp_path) == 2
    assert cores({0, 99}, tmp_path) is None


def test_trying_draws_no_random_number_and_takes_a_number_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.setattr(threads, "cores", lambda _: 1)  # this machine's may leave no choice
    try:
        assert find_threads(2) in (1, 2)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_outlives_a_kill_before_the_first_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "plan.jsonl"
    assert Plan(file).last is None
    Plan(file).begin(Entry(step=1, start=64, threads=3, cause="the settings", at_unix_s=1.0), saved=False)
    again = Plan(file)
    again.change(7, "a test", limit=32)
    assert [plan.last.threads for plan in (again, Plan(file)) if plan.last is not None] == [3, 3]
