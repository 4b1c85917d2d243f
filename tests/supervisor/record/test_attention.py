"""What needs a person's attention: composed in one place, each sentence with its kind, for people and for programs alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memsup.about import Seam
from memsup.shared import messages as m
from memsup.shared.messages import PauseMode, Phase, RequestKind
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import RunState, Status, Trouble, TroubleKind, Wanted, decode_status, encode_status
from memsup.supervisor.decide.heat import HeatDecision
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.record.status import Surroundings, status_of

RECORD = RunRecord(
    run="r", run_id="abc", created_unix_s=1.0, wanted=Wanted.RUNNING, tier="safe", tier_reason="so", settings=Settings()
)
QUIET = Surroundings(
    now_unix_s=2.0,
    since_unix_s=1.0,
    pid=1,
    worker_pid=None,
    memory=MemoryReading(at_s=1.0),
    disk=DiskReading(at_s=1.0, free_bytes=100),
    limit_bytes=1,
    fence_kind="none",
    fence_bytes=None,
    fence_reason="",
    gpus=(),
    gpu_note=None,
    temperatures=(),
    heat=HeatDecision(),
    last_action=None,
    worst_stall_s=0.0,
    recent_stall_s=0.0,
    troubles=(),
    own_errors=0,
    supervisor_log="/s/supervisor.log",
    records_lost=0,
    why_lost=None,
    disk_floor_bytes=100,
    undead=0,
)


def life() -> Lifecycle:
    return Lifecycle(wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="abc", lease_s=10.0, memory_limit_bytes=None)


def test_where_all_is_well_nobody_is_called() -> None:
    """Free disk that is exactly the limit is enough: the ladder does not hold at it either."""
    assert status_of(RECORD, life(), QUIET).attention == []


@pytest.mark.parametrize(
    ("around", "keys"),
    [
        (replace(QUIET, own_errors=3), ["own_errors"]),
        (replace(QUIET, records_lost=2, why_lost="ledger.jsonl: No space left"), ["records_lost"]),
        (replace(QUIET, disk_floor_bytes=101), ["disk"]),
        (replace(QUIET, disk=DiskReading(at_s=1.0), disk_floor_bytes=101), []),  # not known is neither fine nor full
        (replace(QUIET, undead=4), ["undead"]),
        (
            replace(QUIET, own_errors=1, troubles=(Trouble(TroubleKind.GPU_LOST, "GPU 1 is lost.", "1"),), undead=1),
            ["own_errors", "gpu_lost:1", "undead"],
        ),
    ],
)
def test_each_trouble_of_the_supervisor_has_its_kind(around: Surroundings, keys: list[str]) -> None:
    status = status_of(RECORD, life(), around)
    assert status.attention_kinds == keys
    assert len(status.attention) == len(keys)
    assert decode_status(encode_status(status)).attention_kinds == keys


def test_each_trouble_of_the_worker_has_its_kind() -> None:
    """Two things that did not come back are two troubles."""
    run = life()
    run.failure = "It gave up."
    run.given_back = GivenBack(missing=("VRAM did not come back.", "RAM did not come back."))
    run.worker.unresponsive = True
    status = status_of(RECORD, run, QUIET)
    assert status.attention_kinds == ["failed", "not_given_back:0", "not_given_back:1", "unresponsive"]
    assert status.attention[0] == "It gave up."


def test_a_document_of_an_earlier_version_takes_a_new_trouble_at_the_right_place() -> None:
    """It had sentences without kinds; `memsup status` adds that nobody guards the run."""
    old = b'{"schema":1,"run":"r","state":"running","wanted":"running","attention":["The disk is full."]}'
    status: Status = decode_status(old)
    status.call_for(Trouble(TroubleKind.SUPERVISOR_GONE, "Nobody guards it."))
    assert list(zip(status.attention_kinds, status.attention, strict=True)) == [
        ("", "The disk is full."),
        ("supervisor_gone", "Nobody guards it."),
    ]


def test_an_exit_code_is_that_of_a_command_which_does_not_run() -> None:
    was = replace(life(), is_command=True)
    was.on_start(0.0, leftover=False)
    was.on_spawned(0.0)
    assert status_of(RECORD, was, QUIET).exit_code is None
    was.on_exit(1.0, -9, 0)
    assert status_of(RECORD, was, QUIET).exit_code == -9
    was.on_tick(100.0)
    was.on_spawned(100.0)
    assert status_of(RECORD, was, QUIET).exit_code is None


def test_what_a_program_has_left_running_is_not_said_to_be_one_that_has_called_nobody() -> None:
    was = replace(life(), is_command=True)
    was.on_start(0.0, leftover=False)
    was.on_spawned(0.0)
    about = m.About(seam=Seam.CALLS, training="1", saves=True, cuts=True, not_cut=None, detail="")
    was.on_report(0.0, m.Hello(pid=1, run_id="abc", program=about))
    was.on_let_go(1.0)
    seen = status_of(RECORD, was, QUIET).program
    assert seen is not None
    assert seen.what == "fenced only, since its program has ended its training, or itself"


@pytest.mark.parametrize("saved", [None, 6])
def test_a_run_that_is_stopped_while_it_loads_stands_where_its_newest_checkpoint_is(saved: int | None) -> None:
    """And not where a life before had been."""
    was = life()
    was.on_start(0.0, leftover=False)
    was.on_spawned(0.0)
    was.on_report(0.0, m.Hello(pid=1, run_id="abc"))
    note = None if saved is None else m.CheckpointNote(path="/c/6", step=saved, at_unix_s=1.0, verified=True, save_s=0.1)
    progress = m.Progress(
        phase=Phase.TRAINING,
        ticks=1,
        epoch=0.1,
        step=13,
        total_steps=180,
        samples=None,
        loss=0.5,
        samples_per_s=None,
        eta_s=9.0,
    )
    memory = m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None)
    was.on_report(0.0, m.Heartbeat(progress=progress, batch=None, memory=memory, checkpoint=note, digest=None))
    was.on_exit(1.0, -9, 0)
    was.on_tick(100.0)
    was.on_spawned(100.0)
    was.on_request(100.0, 1, RequestKind.STOP_NOW)
    was.on_exit(101.0, -9, 0)
    seen = status_of(RECORD, was, QUIET)
    assert (seen.state, seen.progress.step) == (RunState.STOPPED, saved or 0)
