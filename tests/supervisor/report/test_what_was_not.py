"""No sentence speaks of what a run's state, ledger and history do not hold: no step, restart, percentage or speed of nobody's.

Drawn are all states with each kind of run (built-in, or a command), having or lacking each fact. What may be said follows from
the facts alone, and is looked for in everything that `status`, `wait` and `report` say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import click
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.cli_process import a_run, control_server, memsup

from memsup.shared.messages import Phase
from memsup.shared.readings import KnownBatch, KnownGpu
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import (
    OVER,
    ActionStatus,
    CheckpointStatus,
    CoolingStatus,
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
    Wanted,
)
from memsup.supervisor.cli.layout import laid_out
from memsup.supervisor.cli.picture import BAR_CELLS, one_line, picture
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.record.history import Activity, Point
from memsup.supervisor.record.ledger import VERSION, Entry
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.outcome import figures, headline, summary
from memsup.supervisor.report.terminal import screen

GIB = 2**30
NOW = 1_780_000_000.0
ONE_OF_MANY = re.compile(r"\b1 (times|records|errors|processes|rows|samples|steps|deaths|interventions|worker restarts)\b")


@st.composite
def statuses(draw: st.DrawFn) -> Status:
    """A status as a supervisor makes it: a command has neither progress nor batches, and who is over has no worker."""
    state, is_command = draw(st.sampled_from(RunState)), draw(st.booleans())
    runs = state is RunState.RUNNING
    has_worker = runs or (state not in OVER and draw(st.booleans()))
    phases = [phase for phase in Phase if not runs or phase not in (Phase.STARTING, Phase.LOADING)]
    step = draw(st.none() | st.sampled_from([0, 1, 246]))
    progress = ProgressStatus(
        phase=draw(st.sampled_from(phases) if runs else st.none() | st.sampled_from(phases)),
        step=step,
        total_steps=draw(st.none() | st.just(382)),
        loss=draw(st.none() | st.just(0.4123)),
        samples_per_s=draw(st.none() | st.just(23.4)),
        eta_s=draw(st.none() | st.just(2572.0)),
    )
    return Status(
        run="night",
        state=state,
        wanted=Wanted.RUNNING,
        pid=None if state in OVER else draw(st.sampled_from([None, 4711])),
        worker_pid=4712 if has_worker else None,
        since=NOW - 60,
        progress=ProgressStatus() if is_command else progress,
        batch=KnownBatch() if is_command else KnownBatch(effective=16, micro_tokens=2048, micro_rows=5),
        memory=MemoryStatus(
            ram_total_bytes=24 * GIB,
            ram_available_bytes=14 * GIB,
            worker_bytes=draw(st.none() | st.sampled_from([124 << 10, 2 * GIB])),
            limit_bytes=20 * GIB,
            fence="scope",
            fence_bytes=20 * GIB,
        ),
        gpus=draw(st.sampled_from([[], [KnownGpu(index=0, temperature_c=88.0)]])),
        temperatures=draw(st.sampled_from([[], [TemperatureStatus(name="k10temp", celsius=61.0)]])),
        cooling=draw(
            st.none()
            | st.just(CoolingStatus(duty_fraction=0.5, power_fraction=1.0, holding=False, reason="hot", forecast_s=None))
        ),
        checkpoint=CheckpointStatus()
        if is_command
        else draw(st.sampled_from([CheckpointStatus(), CheckpointStatus(path="/x", step=169, age_s=9.0, verified=True)])),
        last_action=draw(
            st.none()
            | st.just(ActionStatus(at=NOW - 9, rung=None, action="restart after 0.5 s", reason="It was killed by SIGKILL."))
        ),
        restarts=0,
    )


@given(statuses())
def test_status_says_nothing_of_a_worker_that_is_not_there(status: Status) -> None:
    """No speed, phase or memory of nobody's, no bar beyond what is kept, and no reading of a run that nobody measures."""
    lines = [click.unstyle(line) for line in laid_out(picture(status, NOW), None)]
    text = "\n".join([*lines[1:], one_line(status).partition(", ")[2]])
    loaded = status.progress.phase not in (None, Phase.STARTING, Phase.LOADING)
    trains = status.worker_pid is not None and (loaded or status.state is RunState.RUNNING)
    if not trains or status.state is not RunState.RUNNING:
        assert "samples/s" not in text
        assert " left" not in text
    if status.worker_pid is None:
        assert not any(line.startswith("  progress") and phase in line for line in lines for phase in Phase)
        assert " of at most " not in text
        assert "(now " not in text
    step, kept = status.progress.step, status.checkpoint.step or 0
    lost = step is not None and step > kept and not trains and status.state is not RunState.FINISHED
    assert ("going back from step" in text or "and not saved" in text) == lost
    if lost:
        assert re.search(rf"step {kept}\b", text)
        assert "loss" not in text
    if step is None:
        assert "step" not in text.replace("samples a step", "").replace("step 169, 9 s old", "")
    elif status.progress.total_steps:
        assert text.count("█") == round((kept if lost else step) / 382 * BAR_CELLS)
    if status.state in OVER:
        assert not [line for line in lines if line.startswith(("  GPU", "  heat", "  cooling", "  fence"))]
        assert " free" not in text
        assert "yet" not in text
        assert not step or "always" in text or status.batch.effective is None
        assert step or "always" not in text
    if status.batch.effective is None:
        assert "checkpoint" not in text
    assert ".)" not in text


EVENTS = (Event.DEATH, Event.KILL, Event.RECOVERED, Event.END, Event.POSTMORTEM, Event.ORDER, Event.WANTED, Event.OUT_OF_MEMORY)


BETWEEN_S = 40
"""The time from one line of the ledger to the next."""


@st.composite
def materials(draw: st.DrawFn) -> Material:
    status = draw(statuses())
    is_command = status.batch.effective is None
    record = RunRecord(
        run="night",
        run_id="x",
        created_unix_s=NOW,
        wanted=Wanted.RUNNING,
        tier="full",
        tier_reason="there is plenty",
        settings=Settings(),
        command=["python3", "train.py"] if is_command else None,
    )
    works = Activity.RUNNING if is_command else Activity.TRAINING
    spent = draw(st.lists(st.sampled_from([works, Activity.STARTING, Activity.PAUSED]), max_size=3))
    points = [
        Point(at=NOW + n, mono=100.0 + n, boot="b", state="running", spent_s={str(name): 1.0}) for n, name in enumerate(spent)
    ]
    entries = []
    for n, event in enumerate(draw(st.lists(st.sampled_from(EVENTS), max_size=5))):
        again = draw(st.booleans()) if event is Event.DEATH else None
        entries.append(
            Entry(
                v=VERSION,
                at=NOW + BETWEEN_S * n,
                mono=100.0 + BETWEEN_S * n,
                boot="b",
                state="running",
                event=event,
                reason="so",
                action=None if event in (Event.RECOVERED, Event.END, Event.POSTMORTEM) else "did",
                by=draw(st.sampled_from([By.USER, By.SUPERVISOR])) if event is Event.WANTED else By.SUPERVISOR,
                wanted=Wanted.STOPPED if event is Event.WANTED else None,
                again=again,
                delay_s=draw(st.none() | st.sampled_from([1.0, 60.0])) if again else None,
                cause=Cause.CRASH if event is Event.DEATH else None,
            )
        )
    return Material(
        run="night",
        record=record,
        status=status,
        entries=tuple(entries),
        points=tuple(points),
        checkpoints=(),
        unreadable=(),
        now_unix_s=NOW + 300,
    )


def stopped_first(entries: Sequence[Entry], death: Entry) -> bool:
    """Whether the run had ended before the life after `death` was to begin."""
    later = [e for e in entries if e.at > death.at and e.event in (Event.RECOVERED, Event.DEATH, Event.END)]
    return bool(later) and later[0].event is Event.END and later[0].at - death.at < (death.delay_s or 0)


def waits(material: Material, death: Entry) -> bool:
    """Whether the life after `death` is still to begin."""
    ends = [e for e in material.entries if e.at > death.at and e.event in (Event.RECOVERED, Event.DEATH, Event.END)]
    status = material.status
    return death.again is True and not ends and status is not None and status.pid is not None and status.worker_pid is None


@settings(max_examples=100)
@given(materials())
def test_the_report_says_nothing_that_did_not_happen(material: Material) -> None:
    """Interventions, restarts, percentages and steps are those of ledger, history and status."""
    reckoned, status = account(material), material.status
    assert status is not None
    told = summary(material, reckoned)
    tiles = [f"{figure.value} {figure.meaning}" for figure in figures(material, reckoned)]
    text = "\n".join([headline(material, reckoned)[0], told, *tiles, *laid_out(screen(material, reckoned), None)])
    assert not ONE_OF_MANY.search(text)
    assert "since" not in headline(material, reckoned)[0]

    died = [entry for entry in material.entries if entry.event is Event.DEATH]
    waiting = sum(waits(material, entry) for entry in died)
    again = sum(entry.again is True and not stopped_first(material.entries, entry) for entry in died) - waiting
    assert f"{again} worker restart" in text
    for_good = len(died) - again - waiting
    did = [e for e in material.entries if e.event in (Event.KILL, Event.OUT_OF_MEMORY, Event.ORDER)]
    did += [e for e in material.entries if e.event is Event.WANTED and e.by is By.SUPERVISOR]
    assert ("stepped in" in told) == bool(again or did)
    assert ("was not started again" in told) == bool(for_good)
    assert ("is to be started again" in told) == bool(waiting)
    unasked = [i for i in reckoned.interventions if not i.asked]
    assert ("Nothing had to be done" in told) == bool(material.entries and not unasked)
    if "Every optimizer step" in told:
        assert status.progress.step
    if not status.progress.step:
        assert "It is at step" not in told
    spent = {name for point in material.points for name in point.spent_s}
    assert ("spent training" in text) == (Activity.TRAINING in spent)
    assert ("spent running" in text) == (Activity.RUNNING in spent)
    if material.record is not None and material.record.command:
        assert "training" not in text
        assert "step" not in told.replace("stepped in", "")


RELEASED = Status(
    run="default",
    state=RunState.PAUSED,
    wanted=Wanted.PAUSED,
    progress=ProgressStatus(phase="starting", step=382, total_steps=1000, loss=0.4, eta_s=600.0),
    batch=KnownBatch(effective=16, micro_tokens=2048),
    memory=MemoryStatus(
        ram_total_bytes=24 * GIB, ram_available_bytes=23 * GIB, worker_bytes=124 << 10, limit_bytes=21 * GIB, fence="scope"
    ),
    checkpoint=CheckpointStatus(path="/x", step=382, age_s=9.0, verified=True),
    last_action=ActionStatus(at=NOW, rung=None, action="release", reason="the user asked", result="done: left at step 382"),
)
GOES_BACK = msgspec.structs.replace(
    RELEASED,
    state=RunState.RECOVERING,
    wanted=Wanted.RUNNING,
    worker_pid=4712,
    progress=ProgressStatus(phase="loading", step=246, total_steps=382, loss=0.4),
    checkpoint=CheckpointStatus(path="/x", step=169, age_s=9.0, verified=True),
)
FAILED_AT_LOAD = msgspec.structs.replace(
    RELEASED, state=RunState.FAILED, progress=ProgressStatus(step=0), checkpoint=CheckpointStatus(), last_action=None
)


@pytest.mark.parametrize(
    ("status", "says", "never"),
    [
        (RELEASED, ["step 382 of 1,000", "no worker now, worker at most 21 GiB"], ["starting", "124 KiB", "0 %)", "10 min"]),
        (GOES_BACK, ["step 169 of 382 (44 %), going back from step 246", "loading"], ["loss", "246 of"]),
        (FAILED_AT_LOAD, ["checkpoint  none"], ["always", "yet", "free", "fence"]),
    ],
    ids=["released", "goes back", "failed at load"],
)
def test_what_the_command_line_says(status: Status, says: list[str], never: list[str]) -> None:
    """The rows that a person reads, of the three moments in which they were wrong most easily."""
    with control_server(a_run(), lambda _: status):
        shown = memsup("status").stdout
    assert not [words for words in says if words not in shown], shown
    assert not [words for words in never if words in shown], shown


def test_a_command_that_fails_was_neither_trained_nor_started_again() -> None:
    """A real one, from its start to its report."""
    memsup("start", "--set=limits.ram=1GiB", "--", "sh", "-c", "sleep 1; exit 3")
    assert memsup("wait").returncode == 1
    shown, told = memsup("status").stdout, memsup("report").stdout
    for words in ("training", "always", "checkpoint", "free"):
        assert words not in shown
    assert "The worker ended and was not started again." in told
    assert "0        worker restarts" in told or "0      worker restarts" in told or "\n0  " in told
    for words in ("training", "stepped in", "optimizer", "1 worker"):
        assert words not in told
