"""What the run leaves in its folder: lines with their circumstances, the last action, the state that is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memsup.shared.messages import PauseMode, RequestKind
from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.guard import Guard
from memsup.supervisor.decide.ladder import Ladder, MemoryLimits
from memsup.supervisor.decide.readings import DiskReading, MemoryReading
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.restarts import Budget
from memsup.supervisor.record.earlier_life import read_budget
from memsup.supervisor.record.journal import Journal, budget_file
from memsup.supervisor.record.ledger import Entry, read_entry
from memsup.supervisor.record.scribe import Scribe

BOOT = "0b4f3b5c-6f2e-4d38-9c5d-0123456789ab"
GIB = 1 << 30


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MEMSUP_RUNTIME_DIR", str(tmp_path / "runtime"))
    paths = run_paths("default")
    prepare(paths)
    return paths


RECORD = RunRecord(
    run="default",
    run_id="abc",
    created_unix_s=1.0,
    wanted=Wanted.RUNNING,
    tier="full",
    tier_reason="there is plenty",
    settings=Settings(),
)


class Desk:
    """A journal with its scribe, a life and a guard that have seen nothing yet."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths, self.scribe = paths, Scribe()
        self.scribe.start()
        self.life = Lifecycle(
            wanted=Wanted.RUNNING, pause_mode=PauseMode.HOLD, run_id="abc", lease_s=10.0, memory_limit_bytes=None
        )
        ladder = Ladder(MemoryLimits(worker_bytes=4 * GIB, reserve_bytes=GIB))
        self.guard = Guard(ladder, MemoryReading(at_s=1.0, worker_bytes=5), DiskReading(at_s=1.0, free_bytes=7))
        self.journal = Journal(paths, RECORD, BOOT, self.scribe, self.life, self.guard, Lock(paths).take_again)

    def written(self) -> list[Entry]:
        """Every line of the ledger, once the scribe has ended."""
        assert self.scribe.finish(within_s=20.0)
        return [read_entry(line) for line in self.paths.ledger.read_bytes().splitlines()]


@pytest.fixture
def desk(paths: RunPaths) -> Iterator[Desk]:
    desk = Desk(paths)
    yield desk
    desk.scribe.finish(within_s=20.0)


def test_each_line_says_what_was_so_when_it_was_written(desk: Desk) -> None:
    """The readings in force at that moment and the state, not those of the end."""
    desk.journal.record(2.0, Record(event=Event.CLOCK, reason="first", by=By.SUPERVISOR))
    desk.guard.memory = MemoryReading(at_s=3.0, worker_bytes=6)
    desk.life.on_request(3.0, 1, RequestKind.PAUSE_HOLD)
    desk.journal.record(3.0, Record(event=Event.CLOCK, reason="second"), Record(event=Event.CLOCK, reason="third"))
    first, second, third = desk.written()
    assert (first.reason, first.by, first.mono, first.boot, first.state) == ("first", By.SUPERVISOR, 2.0, BOOT, "starting")
    assert (second.mono, second.state, third.reason) == (3.0, "paused", "third")
    assert [entry.memory and entry.memory.worker_bytes for entry in (first, second)] == [5, 6]
    assert first.disk == DiskReading(at_s=1.0, free_bytes=7)


def test_the_last_action_is_what_was_done_last_not_what_was_found_last(desk: Desk) -> None:
    """And of its result only the first line: a traceback is for the ledger. How a process ended is no result of starting it
    again; that it trains again is.
    """
    assert desk.journal.last_action is None
    desk.journal.record(
        2.0, Record(event=Event.DEATH, reason="it crashed", action="restart after 1.0 s", result="Error: x\n  at y")
    )
    desk.journal.record(3.0, Record(event=Event.CLOCK, reason="the machine slept"))
    last = desk.journal.last_action
    assert last is not None
    assert (last.action, last.reason, last.result) == ("restart after 1.0 s", "it crashed", None)
    assert desk.written()[0].result == "Error: x\n  at y"
    desk.journal.record(4.0, Record(event=Event.RECOVERED, reason="training again at step 5"))
    assert desk.journal.last_action == last
    assert last.result == "training again at step 5"
    desk.journal.record(5.0, Record(event=Event.ORDER, reason="asked", action="checkpoint", result="failed: full\n  at y"))
    assert desk.journal.last_action.result == "failed: full"


def test_a_change_of_state_is_seen_once(desk: Desk) -> None:
    assert not desk.journal.state_changed()
    desk.life.on_request(1.0, 1, RequestKind.PAUSE_HOLD)
    assert desk.journal.state_changed()
    assert not desk.journal.state_changed()


def test_what_is_left_of_restarts_is_read_back_by_the_next_supervisor(desk: Desk) -> None:
    budget = Budget(deaths=3, durable_step=1200, failed_step=1234, failures=2)
    desk.journal.save_budget(budget)
    assert desk.scribe.finish(within_s=20.0)
    assert read_budget(budget_file(desk.paths)) == budget
