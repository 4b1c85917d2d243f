"""Promise: two machines compute one run, and whatever happens to one of them, or to the cable, it learns what one would have
learnt alone.

Each test is a story on two network namespaces (`kit/two_machines.py`), with the real command line on both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import pytest
from kit import FAULTS
from kit.cli_process import eventually, memsup
from kit.killed_runs import End, end_of
from kit.lone_supervisor import tiny_job
from kit.one_life import without_dropout
from kit.small_disk import MIB, fill, on_a_small_disk
from kit.two_machines import Machine, joined, missing, two_machines
from safetensors.numpy import load_file

from memsup.shared.paths import RunPaths, run_paths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.xdist_group("machines"),
    pytest.mark.timeout(1800),
]
EPOCHS = 12
STEPS = 27 * EPOCHS


def make_job(folder: Path) -> Path:
    """Without dropout, whose draws are by row, and the same: so only the order of adding up is another."""
    more = 'learning_rate = 1e-4\nthreads = 1\nlanes = 1\n[checkpoint]\nevery = "1s"\n[nodes]\nwait = "5m"\n'
    without_dropout(tiny_job(folder, epochs=EPOCHS, more=more))
    return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


_ALONE: list[tuple[End, dict[str, Any]]] = []


@pytest.fixture
def alone(job: Path) -> tuple[End, dict[str, Any]]:
    """The end of the same run on one machine, with its weights."""
    if not _ALONE:
        for done in (memsup("start", "--run", "alone", cwd=job), memsup("wait", "--run", "alone", within_s=900)):
            assert done.returncode == 0, done.stdout + done.stderr
        _ALONE.append((end_of(run_paths("alone")), weights_of(run_paths("alone"))))
    return _ALONE[0]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    if (why_not := missing()) is not None:
        pytest.skip(why_not)
    with two_machines(tmp_path) as both:
        yield both


def weights_of(paths: RunPaths) -> dict[str, Any]:
    weights: dict[str, Any] = load_file(max(paths.checkpoints.glob("step-*")) / "model.safetensors")
    return weights


def learns_the_same(machine: Machine, alone: tuple[End, dict[str, Any]]) -> None:
    """Waits for the end, and compares samples, steps and weights with those of the run on one machine."""
    machine.memsup("wait", within_s=900)
    end, weights = end_of(machine.paths()), weights_of(machine.paths())
    assert end.step == alone[0].step == STEPS
    assert end.digest.partition(".")[0] == alone[0].digest.partition(".")[0]
    assert max(float(np.abs(weight - alone[1][name]).max()) for name, weight in weights.items()) <= 1e-5


def events(machine: Machine) -> list[str]:
    return [line["event"] for line in machine.ledger()]


def started_again(machine: Machine, pid: int) -> None:
    """As a person does after the death of a supervisor."""
    eventually(lambda: not psutil.pid_exists(pid), 60)
    machine.memsup("start")


def test_two_machines_learn_what_one_does_and_say_so(
    machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]]
) -> None:
    first, other = machines
    joined(first, other, job)
    seen = other.trains_beyond(2)
    assert [(node["is_first"], node["is_here"]) for node in seen["nodes"]] == [(True, True)]
    seen = first.trains_beyond(5)
    (node,) = seen["nodes"]
    assert (node["rank"], node["is_here"], node["share"]) == (1, True, 0.5)
    assert node["resident_bytes"] > 50 << 20
    received = other.folder / "state" / "default" / "received"
    assert sorted(path.name for path in received.rglob("*") if path.is_file()) == ["config.json", "reviews.csv"]
    key = (first.paths().state / "nodes.key").read_text().strip()
    for process in psutil.process_iter(["cmdline"]):
        assert key not in " ".join(process.info["cmdline"] or ())
    learns_the_same(first, alone)
    other.memsup("wait")
    assert other.status()["state"] == "finished"
    assert other.status()["model_path"].startswith(f"{first.address}:")
    assert not other.paths().checkpoints.exists() or not list(other.paths().checkpoints.iterdir())
    for machine in machines:
        assert "node_joined" in events(machine)
        logs = b"".join(path.read_bytes() for path in machine.paths().state.glob("*.log*"))
        assert key.encode() not in logs + machine.paths().ledger.read_bytes()


@pytest.mark.parametrize(
    "victim", ["the other's worker", "the first's worker", "the other's supervisor", "the first's supervisor"]
)
def test_a_kill_on_either_machine_costs_no_sample(
    victim: str, machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]]
) -> None:
    first, other = machines
    joined(first, other, job)
    step = first.trains_beyond(10)["progress"]["step"]
    machine = first if "first" in victim else other
    (pid,) = machine.kill("worker_pid" if "worker" in victim else "pid")
    if "supervisor" in victim:
        started_again(machine, pid)
    first.trains_beyond(step + 5)
    learns_the_same(first, alone)
    other.memsup("wait")
    lost = [line.get("lost_steps") for line in other.ledger() if line["event"] == "death"]
    assert not any(lost), "the first machine has what the other one computed"


@pytest.mark.parametrize("pulled_s", [5, 60])
def test_a_cable_that_is_pulled_holds_both_machines_and_nothing_is_done_again(
    pulled_s: int, machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]]
) -> None:
    first, other = machines
    joined(first, other, job)
    first.trains_beyond(10)
    workers = [machine.status()["worker_pid"] for machine in machines]
    other.plug(is_in=False)
    Event().wait(pulled_s)
    step = first.status()["progress"]["step"]
    if pulled_s > 30:
        assert first.status()["nodes"][0]["silent_s"] > 20
        assert other.status()["nodes"][0]["silent_s"] > 20
    other.plug(is_in=True)
    first.trains_beyond(step + 5)
    assert [machine.status()["worker_pid"] for machine in machines] == workers
    learns_the_same(first, alone)


def test_a_pause_on_either_machine_holds_both(
    machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]]
) -> None:
    first, other = machines
    joined(first, other, job)
    first.trains_beyond(5)
    other.memsup("pause")
    first.until(lambda seen: seen["nodes"][0]["holds"])
    held = first.status()["progress"]["step"]
    Event().wait(10)
    assert first.status()["progress"]["step"] == held
    other.memsup("resume")
    step = first.trains_beyond(held + 3)["progress"]["step"]
    first.memsup("pause", "--release")
    Event().wait(10)
    first.memsup("resume")
    first.trains_beyond(step + 3)
    learns_the_same(first, alone)


def test_a_pause_of_five_minutes_is_longer_than_any_collectives_timeout(
    machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collectives give up after 20 s here. Nobody waits in one, so both go on with the same processes."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_MEETS_S", "20")
    first, other = machines
    joined(first, other, job)
    first.trains_beyond(5)
    workers = [machine.status()["worker_pid"] for machine in machines]
    other.memsup("pause")
    first.until(lambda seen: seen["nodes"][0]["holds"])
    held = first.status()["progress"]["step"]
    Event().wait(300)
    assert first.status()["progress"]["step"] == held
    other.memsup("resume")
    first.trains_beyond(held + 3)
    assert [machine.status()["worker_pid"] for machine in machines] == workers
    assert all(machine.status()["restarts"] == 0 for machine in machines)
    learns_the_same(first, alone)


def test_a_run_goes_on_with_one_machine_and_takes_the_other_in_again(
    machines: tuple[Machine, Machine], job: Path, alone: tuple[End, dict[str, Any]]
) -> None:
    """With `nodes.fewer` and a short wait it goes on without a machine that was stopped, and with it when that comes back."""
    first, other = machines
    joined(first, other, job, "nodes.fewer=true", "nodes.wait=5s")
    first.trains_beyond(10)
    other.memsup("stop")
    first.until(lambda seen: "nodes_fewer" in events(first))
    step = first.status()["progress"]["step"]
    first.until(lambda seen: seen["state"] == "running" and seen["progress"]["step"] > step + 5)
    other.memsup("start")
    first.until(lambda seen: seen["state"] == "finished" or (seen["nodes"] and seen["nodes"][0]["rank"] == 1))
    learns_the_same(first, alone)


def test_a_run_that_does_not_go_on_without_a_machine_rests_and_says_so(machines: tuple[Machine, Machine], job: Path) -> None:
    first, other = machines
    joined(first, other, job, "nodes.wait=5s")
    first.trains_beyond(10)
    other.memsup("stop")
    eventually(lambda: (first.status() or {}).get("state") == "failed", 120)
    failure = first.status()["failure"]
    assert "has not been heard of for 5 s" in failure
    assert "memsup start" in failure
    first.memsup("start", "--set", "nodes.count=1", cwd=job)
    first.memsup("wait", within_s=900)
    assert json.loads((max(first.paths().checkpoints.glob("step-*")) / "state.json").read_text())["step"] == STEPS


def test_nobody_comes_in_without_the_key(machines: tuple[Machine, Machine], job: Path) -> None:
    first, other = machines
    first.memsup("start", "--nodes", "2", cwd=job)
    first.until(lambda seen: seen["nodes"] == [])
    refused = other.tried("start", "--join", first.address, MEMSUP_NODES_KEY="x" * 43)
    assert refused.returncode == 2
    assert "does not take the key" in refused.stderr
    refused = other.tried("start", "--join", first.address)
    assert refused.returncode == 2
    assert "MEMSUP_NODES_KEY" in refused.stderr
    refused = other.tried("start", "--join", "8.8.8.8", MEMSUP_NODES_KEY="x" * 43)
    assert refused.returncode == 2
    assert "private network" in refused.stderr
    assert not other.paths().state.exists() or not os.listdir(other.paths().state)
    assert first.status()["nodes"] == []


def test_several_ranks_on_each_of_several_machines_are_refused_in_a_sentence(
    machines: tuple[Machine, Machine], job: Path
) -> None:
    """On the first one before anything starts, on another before anything is sent to it."""
    first, other = machines
    refused = first.tried("start", "--nodes", "2", "--ranks", "2", cwd=job)
    assert refused.returncode == 2
    assert "set training.ranks to 1 (not 2)" in refused.stderr
    first.memsup("start", "--nodes", "2", cwd=job)
    first.until(lambda seen: seen["nodes"] is not None)
    key = (first.paths().state / "nodes.key").read_text().strip()
    refused = other.tried("start", "--join", first.address, "--ranks", "2", MEMSUP_NODES_KEY=key)
    assert refused.returncode == 2
    assert "set training.ranks to 1 (not 2)" in refused.stderr
    assert not other.paths().state.parent.exists() or not os.listdir(other.paths().state.parent)


# ---------------------------------------------------------------------------------------------------------------------
# A full disk on the other machine


def on_a_small_disk_of(machines: tuple[Machine, Machine], size_bytes: int, play: Callable[[], None]) -> None:
    """Has the other machine's state lie on a disk of its own, which ends with what is played."""
    state = machines[1].folder / "state"
    state.mkdir(mode=0o700)

    def with_an_end() -> None:
        try:
            play()
        finally:
            for machine in machines:
                machine.end()

    on_a_small_disk(state, size_bytes, with_an_end)


def test_a_machine_without_room_for_what_is_sent_is_refused_with_both_sizes(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    first, other = machines
    folder = tmp_path / "large"
    make_job(folder)
    reviews = folder / "reviews.csv"
    with reviews.open("a") as file:
        for number in range(9_000):
            file.write(f"{'long ' * 200}{number},good\n")

    def play() -> None:
        first.memsup("start", "--nodes", "2", cwd=folder)
        first.until(lambda seen: seen["nodes"] is not None)
        key = (first.paths().state / "nodes.key").read_text().strip()
        refused = other.tried("start", "--join", first.address, MEMSUP_NODES_KEY=key)
        assert refused.returncode == 2
        assert "8 MiB are to be received" in refused.stderr
        assert "has room for 4 MiB: make room." in " ".join(refused.stderr.split())
        assert other.status() is None
        assert first.status()["failure"] is None

    on_a_small_disk_of(machines, 4 * MIB, play)


def test_a_full_disk_on_the_other_machine_holds_both_and_nothing_is_lost(
    machines: tuple[Machine, Machine],
    job: Path,
    alone: tuple[End, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the run is saved there, but nothing that happens could be written down. Its worker dies meanwhile as well."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_STEP_S", "0.05")
    first, other = machines

    def play() -> None:
        joined(first, other, job)
        first.trains_beyond(10)
        ballast = fill(other.folder / "state")
        seen = other.until(lambda seen: seen["progress"]["phase"] == "holding")
        assert "The disk has only 0 MiB left; make room and training goes on." in seen["attention"]
        first.until(lambda seen: seen["nodes"] and seen["nodes"][0]["holds"])
        other.kill("worker_pid")
        Event().wait(10)
        step = first.status()["progress"]["step"]
        ballast.unlink()
        first.trains_beyond(step + 5)
        learns_the_same(first, alone)
        other.memsup("wait")

    on_a_small_disk_of(machines, 256 * MIB, play)


# ---------------------------------------------------------------------------------------------------------------------
# A command of one's own, whose launcher joins the machines

RANK = """
import json, os, sys, time, torch, torch.distributed as c10d
import memsup
c10d.init_process_group("gloo")
rank, count = c10d.get_rank(), c10d.get_world_size()
run, added = memsup.guard(), torch.zeros(1)
while not os.path.exists("go"):
    time.sleep(0.05)
for step in range(int(sys.argv[1])):
    mine = torch.full((1,), float(rank + step))
    c10d.all_reduce(mine)
    added += mine
    run.boundary()
with open(f"{os.environ['MEMSUP_STATE_DIR']}/rank{rank}.json", "w") as file:
    json.dump([rank, count, added.item()], file)
c10d.destroy_process_group()
"""


def test_torchrun_on_two_machines_is_fenced_on_each_and_says_that_this_is_all(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    first, _ = machines
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    for number, machine in enumerate(machines):
        where = ["--node-rank", str(number), "--master-addr", first.address, "--master-port", "29511"]
        command = [*torchrun, *where, "rank.py", "50"]
        machine.memsup("start", "--", *command, cwd=tmp_path, GLOO_SOCKET_IFNAME=machine.interface, OMP_NUM_THREADS="1")
    for machine in machines:
        program = machine.until(lambda seen: seen["program"] is not None and seen["program"]["not_attached"])["program"]
        assert (program["attached"], program["not_attached"]) == (False, "several_ranks")
        assert "not all of them are on this machine" in program["detail"]
    (tmp_path / "go").touch()
    for number, machine in enumerate(machines):
        machine.memsup("wait")
        for rank in (2 * number, 2 * number + 1):
            found = json.loads((machine.folder / "state" / f"rank{rank}.json").read_text())
            assert found == [rank, 4, float(sum(4 * step + 6 for step in range(50)))]


@pytest.mark.parametrize("setting", ["nodes.count=2", "nodes.join=10.217.83.1"])
def test_what_joins_machines_for_the_built_in_training_is_refused_for_a_command(
    setting: str, machines: tuple[Machine, Machine]
) -> None:
    refused = machines[0].tried("start", "--set", setting, "--", "true")
    assert refused.returncode == 2
    assert "torchrun --nnodes" in refused.stderr
    assert machines[0].status() is None
