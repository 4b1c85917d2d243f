"""The status document holds what was measured, and documents and files of earlier versions are still understood.

`old/` was written by the version before `shared/readings.py`: every field filled, with a different value each.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memsup.shared import messages as m
from memsup.shared.readings import KnownBatch, KnownGpu, KnownMemory, KnownProgress
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import (
    ActionStatus,
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    Trouble,
    TroubleKind,
    Wanted,
    decode_status,
    encode_status,
)
from memsup.supervisor.decide.heat import HeatDecision
from memsup.supervisor.decide.readings import DiskReading, GpuReading, MemoryReading, TemperatureReading
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.record.blackbox import Heat, heat_of_sensor, read_blackbox
from memsup.supervisor.record.history import GpuPoint, Point, read_points, sample_of
from memsup.supervisor.record.status import Surroundings, status_of
from memsup.supervisor.words import reached

OLD = Path(__file__).parent / "old"
RYZEN = TemperatureReading(at_s=1.0, name="k10temp Tctl", celsius=68.0, high_c=70.0, critical_c=95.0)


def a_life(*reports: m.AnyReport) -> Lifecycle:
    """A run whose worker has come up and told `reports`."""
    life = Lifecycle(run_id="r1", wanted=Wanted.RUNNING, pause_mode=m.PauseMode.HOLD, lease_s=10.0, memory_limit_bytes=7000)
    life.on_start(0.0, leftover=False)
    life.on_spawned(0.0)
    for report in reports:
        life.on_report(0.0, report)
    return life


def a_beat() -> m.Heartbeat:
    """What the worker of the old document tells."""
    return m.Heartbeat(
        progress=m.Progress(
            phase=m.Phase.TRAINING,
            ticks=400,
            epoch=1.25,
            step=40,
            total_steps=96,
            samples=640,
            loss=0.4375,
            samples_per_s=12.5,
            eta_s=71.0,
        ),
        batch=m.BatchShape(effective=16, micro_tokens=512, micro_rows=4, peak_bytes=900, predicted_bytes=880),
        memory=m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=2, cuda_reserved_bytes=3, data_limit_bytes=4),
        checkpoint=m.CheckpointNote(path="/c/step-30", step=30, at_unix_s=988.0, verified=True, save_s=None),
        digest="d1",
    )


def a_status(life: Lifecycle, **changes: Any) -> Status:
    """The document of the machine that the old one is about."""
    around = Surroundings(
        now_unix_s=1000.5,
        since_unix_s=900.0,
        pid=11,
        worker_pid=12,
        memory=MemoryReading(
            at_s=1.0, ram_total_bytes=8000, ram_available_bytes=4000, worker_bytes=2000, pressure_fraction=0.125
        ),
        disk=DiskReading(at_s=1.0, free_bytes=12345),
        limit_bytes=7000,
        fence_kind="cgroup2",
        fence_bytes=7000,
        fence_reason="scope: no systemd",
        gpus=(
            GpuReading(
                at_s=1.0,
                index=0,
                uuid="GPU-1",
                name="A card",
                used_bytes=300,
                total_bytes=600,
                worker_bytes=200,
                temperature_c=71.5,
                slowdown_c=93.0,
                shutdown_c=100.0,
                power_w=88.25,
            ),
            GpuReading(at_s=1.0, index=1),
        ),
        gpu_note="The probe was started again.",
        temperatures=(RYZEN,),
        heat=HeatDecision(duty_fraction=0.5, power_fraction=0.75, reason="GPU 0 is warm", forecast_s=33.0),
        last_action=ActionStatus(at=1.0, rung="pace", action="pace 0.5", reason="GPU 0 is warm", result="carried out"),
        worst_stall_s=0.0125,
        recent_stall_s=0.002,
        troubles=(Trouble(TroubleKind.HEAT, "Look at this."),),
        own_errors=0,
        supervisor_log="/s/supervisor.log",
        records_lost=0,
        why_lost=None,
        disk_floor_bytes=0,
        undead=0,
    )
    record = RunRecord(
        run="夜",
        run_id="r1",
        created_unix_s=0.0,
        wanted=Wanted.RUNNING,
        tier="low",
        tier_reason="",
        settings=Settings(),
    )
    return status_of(record, life, around)


def old(name: str) -> Any:
    return msgspec.json.decode((OLD / name).read_bytes())


def assert_holds(document: Any, earlier: Any, where: str = "status") -> None:
    """Every field of the `earlier` document is there, in its place and with its value; more fields may be."""
    if isinstance(earlier, dict):
        assert isinstance(document, dict), where
        for name, value in earlier.items():
            assert name in document, f"{where}.{name}"
            assert_holds(document[name], value, f"{where}.{name}")
    elif isinstance(earlier, list):
        assert len(document) == len(earlier), where
        for number, value in enumerate(earlier):
            assert_holds(document[number], value, f"{where}[{number}]")
    else:
        assert document == earlier, where


@pytest.mark.parametrize("name", ["status_full.json", "status_empty.json"])
def test_a_document_of_the_version_before_keeps_every_field(name: str) -> None:
    """`status.json` of a run that goes on under a newer memsup, and whoever reads `status --json` with a script."""
    document = msgspec.json.decode(encode_status(decode_status((OLD / name).read_bytes())))
    assert_holds(document, old(name))


def test_an_absent_reading_is_null_and_its_place_is_there() -> None:
    """A script may write `document["progress"]["step"]` before there is a worker."""
    document = msgspec.json.decode(encode_status(Status(run="default", state=RunState.STARTING, wanted=Wanted.RUNNING)))
    assert_holds(document, old("status_empty.json"))


def test_what_was_measured_stands_where_it_stood() -> None:
    """The document that the supervisor makes of the same readings, beside the one that the version before wrote."""
    life = a_life(m.Hello(pid=12, run_id="r1"), a_beat())
    document = msgspec.json.decode(encode_status(a_status(life)))
    earlier = old("status_full.json")
    for part in ("run", "tier", "progress", "batch", "memory", "gpus", "gpu_probe", "cooling", "checkpoint", "worst_stall_s"):
        assert_holds(document[part], earlier[part], part)
    assert document["disk_free_bytes"] == 12345


def test_a_run_that_has_finished_is_at_its_last_step() -> None:
    """Its last steps may lie behind its last heartbeat."""
    life = a_life(m.Hello(pid=12, run_id="r1"), a_beat(), m.Finished(model_path="/m", metrics={}, steps=96, samples=640))
    assert a_status(life).progress.step == 40
    life.on_exit(1.0, 0, 0)
    seen = a_status(life).progress
    assert (life.state, seen.step) == (RunState.FINISHED, 96)
    assert (seen.phase, seen.samples_per_s, seen.eta_s) == (None, None, None), "nobody does anything any more"


def test_a_worker_that_was_begun_anew_does_nothing_yet_that_the_one_before_did() -> None:
    """Until it has said its first word it starts: it neither trains nor is where that one was."""
    life = a_life(m.Hello(pid=12, run_id="r1"), a_beat())
    assert a_status(life).progress.phase is m.Phase.TRAINING
    life.on_exit(1.0, None, 9)
    life.on_tick(60.0)
    life.on_spawned(60.0)
    seen = a_status(life)
    assert (seen.progress.phase, seen.progress.samples_per_s, seen.progress.eta_s) == (m.Phase.STARTING, None, None)
    assert reached(seen) == (30, 40), "at what is saved, going back from what was reached"


def test_before_the_first_word_of_a_worker_only_the_settings_are_known() -> None:
    """Nothing is read as zero."""
    status = a_status(a_life())
    assert status.progress == ProgressStatus()
    assert status.batch == KnownBatch(effective=Settings().training.effective_batch)


def test_a_cpus_limit_is_its_critical_temperature() -> None:
    """In `status`, in the history, and so in the report, and in the black box: k10temp called 70 °C high for years."""
    status = a_status(a_life())
    assert [(shown.celsius, shown.limit_c) for shown in status.temperatures] == [(68.0, 95.0)]
    point = sample_of(status, at=1.0, mono=1.0, boot="b")
    assert (point.cpu_c, point.cpu_limit_c) == (68.0, 95.0)
    assert heat_of_sensor(RYZEN) == Heat(index=-1, celsius=68.0, slowdown_c=95.0, shutdown_c=95.0)


def test_the_history_of_the_version_before_is_read_and_written_on() -> None:
    """Every line is a point, and what is recorded of the same status now has every field of its first line."""
    lines = (OLD / "history.jsonl").read_bytes().splitlines()
    points, bad = read_points(lines)
    assert (len(points), bad) == (4, 0)
    assert points[-1].step == 64
    assert points[-1].gpus == (
        GpuPoint(index=0, used_bytes=300, total_bytes=600, temperature_c=71.5, slowdown_c=93.0, power_w=88.25),
        GpuPoint(index=1),
    )
    status = decode_status((OLD / "status_full.json").read_bytes())
    sample = sample_of(status, at=1_800_000_000.0, mono=100.0, boot="b1", duty_fraction=0.5, reserve_bytes=512)
    assert msgspec.json.decode(msgspec.json.encode(sample)) == msgspec.json.decode(lines[0])


def test_a_black_box_of_the_version_before_is_read() -> None:
    """Its frames are arrays: a field that moved would be read as another."""
    history = read_blackbox(OLD / "blackbox")
    assert history.broken == 0
    assert history.last is not None
    facts = history.last.facts
    assert facts is not None
    assert (facts.step, facts.ticks, facts.rung, facts.limit_mib, facts.disk_free_mib) == (40, 400, 2, 7000, None)
    assert (facts.checkpoint_step, facts.loop_stall_s, facts.heats[0].used_mib) == (30, 0.0125, 300)
    assert [reading.worker_mib for reading in history.last.trace] == [2000, 2010]


@pytest.mark.parametrize(
    ("kind", "sources"),
    [
        (ProgressStatus, [m.Progress]),
        (KnownBatch, [m.BatchShape]),
        (MemoryStatus, [MemoryReading]),
        (KnownGpu, [GpuReading]),
        (GpuPoint, [KnownGpu]),
        (Point, [ProgressStatus, KnownBatch, MemoryStatus]),
    ],
)
def test_a_name_means_the_same_wherever_it_is_taken_to(kind: type[msgspec.Struct], sources: list[type[msgspec.Struct]]) -> None:
    """`narrow` goes by names, so a field must hold the same kind of value in both, and no name may come from two sources."""
    wanted = typing.get_type_hints(kind)
    seen: set[str] = set()
    for source in sources:
        has = typing.get_type_hints(source)
        shared = wanted.keys() & has.keys()
        assert shared, f"{kind.__name__} takes nothing from {source.__name__}"
        assert not shared & seen
        seen |= shared
        for name in shared:
            assert _kinds(has[name]) <= _kinds(wanted[name]), f"{kind.__name__}.{name} and {source.__name__}.{name}"


def _kinds(annotation: Any) -> set[type]:
    kinds = set(typing.get_args(annotation)) or {annotation}
    return {str if isinstance(kind, type) and issubclass(kind, str) else kind for kind in kinds} - {type(None)}


@pytest.mark.parametrize("known", [KnownProgress, KnownBatch, KnownMemory])
def test_nothing_is_known_by_default(known: type[msgspec.Struct]) -> None:
    """Unknown is None; neither zero nor fine."""
    assert set(msgspec.structs.asdict(known()).values()) == {None}
