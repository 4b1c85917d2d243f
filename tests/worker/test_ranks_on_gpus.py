"""Ranks on GPUs: each has a card of its own, by which it is watched, limited and made smaller, and gradients find their way.

There is no GPU: `fake_cuda/` stands for torch's allocator at the worker's seam, `fake_nvml/` for the driver's cards, and what
NCCL would add up gloo does. All else is real. So nothing here says what CUDA or NCCL do themselves.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import end_supervisors, eventually, memsup
from kit.fake_cuda import in_every_worker
from kit.fake_nvml import FakeNvml, installed
from kit.run_state import as_scenery, endless_job, ledger, until

from memsup.worker.hardware import cards, device_of_rank
from memsup.worker.ranks.adding import Way, way_for

GIB = 1 << 30
MIB = 1 << 20

RANK = r"""
import os, sys, torch
from pathlib import Path
from memsup.worker.ranks import adding
from memsup.worker.ranks.adding import Adding, Way, store_in

class HostMemory:
    def page_locked(self, size_bytes):
        return torch.empty(size_bytes, dtype=torch.uint8)

rank, way, store, ends = int(sys.argv[1]), Way[sys.argv[2]], Path(sys.argv[3]), sys.argv[4] == "ends"
right = adding.c10d.init_process_group
adding.way_for = lambda device, memory: way
adding.torch.cuda.set_device = lambda device: None
adding.c10d.init_process_group = lambda backend, **more: right("gloo", **{k: v for k, v in more.items() if k != "device_id"})
adding._PIECE_NUMBERS = 100_003
called_off = []
adding.abort = lambda: called_off.append(True)
looks = []

def meanwhile():
    looks.append(True)
    if ends and len(looks) > 20:
        met.call_off()
        raise InterruptedError

torch.manual_seed(5)
shapes = [(3, 5), (700, 500), (8,), (1, 1), (300_000,)]
parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
met = Adding(store_in(store, 2), rank, 2, parameters, device=torch.device("cpu"), memory=HostMemory(), meanwhile=meanwhile)
if ends:
    if rank:
        sys.stdin.read()
    try:
        met.add(torch.tensor(1.0))
    except InterruptedError:
        print(called_off, flush=True)
        os._exit(7)  # as a worker ends, whatever the collective waits for
state = [torch.full((4, 70_001), rank + 3.0).t(), torch.full((), rank + 1.0), torch.empty(0)]
met.give(state)
assert all((tensor == first).all() for tensor, first in zip(state, (3.0, 1.0, 0.0))), state
torch.manual_seed(rank)
for number, parameter in enumerate(parameters):
    if number != 3 and (number, rank) != (1, 1):
        parameter.grad = torch.randn(parameter.shape)
loss = met.add(torch.tensor(rank + 0.5))
assert loss == 2.0
assert parameters[3].grad is None
met.close()
import hashlib
print(hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in parameters if p.grad is not None)).hexdigest(), flush=True)
"""


def ranks_of(tmp_path: Path, way: Way, *, ends: bool = False) -> list[subprocess.Popen[str]]:
    script, store = tmp_path / "rank.py", tmp_path / f"store-{way.name}-{ends}"
    script.write_text(RANK)
    words = [way.name, str(store), "ends" if ends else "adds"]
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def test_gradients_are_the_same_whichever_way_they_take(tmp_path: Path) -> None:
    """Where they lie, from card to card, and by way of host memory in pieces; with parameters that one rank or none has a
    gradient of. What rank 0 has is given the same ways.
    """
    found = {}
    for way in Way:
        ranks = ranks_of(tmp_path, way)
        found[way] = {rank.communicate(timeout=300)[0] for rank in ranks}
        assert [rank.returncode for rank in ranks] == [0, 0], way
    assert len(set.union(*found.values())) == 1


def test_a_collective_on_gpus_that_another_rank_has_left_is_called_off(tmp_path: Path) -> None:
    first, other = ranks_of(tmp_path, Way.NCCL, ends=True)
    try:
        said, _ = first.communicate(timeout=300)
        assert (first.returncode, said.strip()) == (7, "[True]")
        assert other.poll() is None, "it never came to the collective"
    finally:
        other.kill()
        other.communicate()


def test_a_rank_on_a_cpu_has_everybodys_and_no_card() -> None:
    import torch

    cpu = torch.device("cpu")
    assert device_of_rank(cpu, 1, 2) is cpu
    assert device_of_rank(torch.device("cuda", 3), 0, 1) == torch.device("cuda", 3)
    assert cards(cpu) == 0
    assert cards(torch.device("cuda", 3)) == 1
    assert way_for(cpu, None) is Way.IN_PLACE


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """Two cards. A rank holds 2 GiB of its own, and 50 MiB a token of a micro-batch: 96 tokens take 6.7 GiB in all."""
    library = installed(tmp_path, monkeypatch, devices=2)
    in_every_worker(monkeypatch, weights_bytes=2 * GIB, token_bytes=50 * MIB)
    yield library
    end_supervisors()


def tokens_of_ranks(seen: Any) -> list[int]:
    return [seen["batch"]["micro_tokens"], *(rank["micro_tokens"] for rank in seen["batch"]["ranks"][1:])]


def actions() -> list[str]:
    return [line.get("action") or "" for line in ledger()]


def limits_of_rank_1() -> int:
    """How often it was told how much of its card it may take."""
    return len([action for action in actions() if action.endswith("of the GPU of rank 1")])


@pytest.mark.slow
def test_a_game_on_one_card_makes_the_rank_smaller_that_computes_there_and_no_other(tmp_path: Path, fake: FakeNvml) -> None:
    """Without being asked there is a rank for each of two cards, with its own limit. What is wanted of one of them is taken
    from its rank alone, and the run goes on with the same processes.
    """

    def both_hold(seen: Any) -> bool:
        ranks = seen["batch"]["ranks"] or ()
        return len(ranks) == 2 and all((rank["cuda_allocated_bytes"] or 0) > 3 * GIB for rank in ranks)

    said = memsup("start", cwd=endless_job(tmp_path / "job"), within_s=600)
    assert "in 2 ranks" in said.stdout + said.stderr
    before = as_scenery(until(lambda seen: (seen["progress"]["step"] or 0) > 20 and both_hold(seen), 900))
    ranks = before["batch"]["ranks"]
    assert [rank["gpu"] for rank in ranks] == [fake[card].uuid.decode() for card in range(2)]
    assert [int(fake[card].worker_pid) for card in range(2)] == [rank["pid"] for rank in ranks]
    assert any(line["event"] == "cut_refused" and "NCCL" in line["reason"] for line in ledger())
    whole = tokens_of_ranks(before)
    before_it = limits_of_rank_1()
    fake.set(1, others_bytes=fake[1].total_bytes - fake[1].worker_bytes)  # all that is free: more than there is nobody has
    eventually(lambda: limits_of_rank_1() > before_it, 600)
    after = until(lambda seen: tokens_of_ranks(seen)[1] < whole[1], 600)
    assert tokens_of_ranks(after)[0] == whole[0], "the other card has room"
    step = after["progress"]["step"]
    later = until(lambda seen: seen["progress"]["step"] > step + 20, 600)
    assert (later["restarts"], [rank["pid"] for rank in later["batch"]["ranks"]]) == (0, [rank["pid"] for rank in ranks])
    assert later["batch"]["effective"] == before["batch"]["effective"]
    assert not any("halve the micro-batch of rank 0" in action for action in actions())


@pytest.mark.slow
def test_more_ranks_than_cards_are_refused_in_a_sentence(
    tmp_path: Path, fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = endless_job(tmp_path / "job")
    refused = memsup("start", "--dry-run", "--ranks", "3", cwd=job)
    assert refused.returncode == 2
    assert "there are 2 GPUs that it may compute on, and each rank takes one" in refused.stderr
    refused = memsup("start", "--dry-run", "--ranks", "2", "--set", "training.device=cuda:1", cwd=job)
    assert refused.returncode == 2
    assert "cuda:1, which is one GPU" in refused.stderr
    assert memsup("start", "--dry-run", "--ranks", "3", "--set", "training.device=cpu", cwd=job).returncode == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert " ranks (tier" not in memsup("start", "--dry-run", cwd=job).stdout
