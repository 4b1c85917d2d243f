"""The ledger: what is written is read again, what the documents name is what there is, and the former format still speaks."""

from __future__ import annotations

import enum
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from kit import ROOT
from kit.old_state import OLD_STATE, old_entries

from memsup.shared.messages import PauseMode
from memsup.shared.paths import run_paths
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.cli.report import report
from memsup.supervisor.client.contact import observe
from memsup.supervisor.decide.events import By, Event, Move, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason, Rung
from memsup.supervisor.decide.run.actions import Record
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.record.ledger import Entry, line, read_entry
from memsup.supervisor.report.gather import gather

DOCUMENT = (ROOT / "docs/ledger.md").read_text(encoding="utf-8")
RECORDS = st.builds(
    Record,
    event=st.sampled_from(Event),
    reason=st.text(),
    action=st.none() | st.text(),
    result=st.none() | st.text(),
    by=st.none() | st.sampled_from(By),
    order=st.none() | st.sampled_from(OrderKind),
    outcome=st.none() | st.sampled_from(Outcome),
    move=st.none() | st.sampled_from(Move),
    pressures=st.lists(st.sampled_from(HoldReason), unique=True).map(tuple),
    cause=st.none() | st.sampled_from(Cause),
    again=st.none() | st.booleans(),
    exit_status=st.none() | st.integers(-64, 255),
    tokens=st.none() | st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)),
    duty_fraction=st.none() | st.floats(0, 1),
    wanted=st.none() | st.sampled_from(Wanted),
    pause_mode=st.none() | st.sampled_from(PauseMode),
    rows=st.none() | st.integers(0, 2**40),
)
WORDS = st.text(max_size=40) | st.sampled_from(
    [
        "micro-batch 1,024 → 512 tokens",
        "micro-batch , → , tokens",
        "micro-batch 1 → 99999999999999999999999 tokens",
        "compute 70% of the time",
        "compute 999999999999999999999% of the time",
        "compute ²% of the time",
        "restart in 1.0 s (memory)",
        "restart in . s (memory)",
        "restart in 1.0 s (boredom)",
        "paused (hold)",
        "done: so",
        "the user asked",
        "the disk is nearly full",
    ]
)


def written(record: Record) -> bytes:
    return line(record, at=1.0, mono=1.0, boot="b", state="running", step=None, memory=None, disk=None)


def former(event: Event, reason: str = "so", action: str | None = None, result: str | None = None, **more: Any) -> Entry:
    """A line of the former format, read."""
    fields = {"at": 1.0, "mono": 1.0, "boot": "b", "event": event, "reason": reason, "state": "running"} | more
    fields |= {name: text for name, text in {"action": action, "result": result}.items() if text is not None}
    return read_entry(json.dumps(fields).encode())


# --------------------------------------------------------------------------------------------------------------------
# Today's lines


@given(RECORDS)
def test_what_is_written_is_read_again(record: Record) -> None:
    """Nothing is guessed from the words of a line that has fields."""
    entry = read_entry(written(record))
    assert {name: getattr(entry, name) for name in Record.__struct_fields__} == msgspec.structs.asdict(record)


def test_an_event_that_is_not_known_is_no_line() -> None:
    """As written by a later memsup: left out and counted by who reads, not taken for something else."""
    with pytest.raises(msgspec.ValidationError):
        read_entry(b'{"v":3,"at":1,"mono":1,"boot":"b","event":"levitation","reason":"","state":"running"}')


def in_backticks(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_ ]+)`", text))


def rows(section: str) -> dict[str, str]:
    """The first two cells of a table's rows."""
    cells = [row.split("|") for row in section.splitlines() if row.startswith("| `")]
    return {row[1]: row[2] for row in cells}


def test_docs_name_exactly_the_events_that_are_written() -> None:
    """Each event that the supervisor records has its row in docs/ledger.md, and no row is about another."""
    named = rows(DOCUMENT.partition("## Events")[2].partition("\n## ")[0])
    assert Counter({str(event): 1 for event in Event}) == Counter(name for cell in named for name in in_backticks(cell))


def test_docs_name_exactly_the_fields_of_a_line() -> None:
    named = rows(DOCUMENT.partition("## Events")[0])
    assert Counter(Entry.__struct_fields__) == Counter(name for cell in named for name in in_backticks(cell))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("by", By),
        ("order", OrderKind),
        ("outcome", Outcome),
        ("move", Move),
        ("pressures", HoldReason),
        ("cause", Cause),
        ("rung", {rung.name.lower() for rung in Rung}),
        ("wanted", {*Wanted, *PauseMode}),
    ],
)
def test_docs_name_exactly_what_a_field_can_be(field: str, values: type[enum.Enum] | set[str]) -> None:
    meaning = next(text for cell, text in rows(DOCUMENT.partition("## Events")[0]).items() if cell.split("`")[1] == field)
    assert in_backticks(meaning) == {str(value) for value in values}


# --------------------------------------------------------------------------------------------------------------------
# The former format


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            former(Event.ORDER, "the worker uses much", "halve the micro-batch", "done: 512 tokens"),
            {"by": By.LADDER, "order": OrderKind.HALVE, "outcome": Outcome.DONE},
        ),
        (
            former(Event.ORDER, "GPU 0 is at 90 °C", "compute 70% of the time", "failed: no"),
            {"order": OrderKind.PACE, "outcome": Outcome.FAILED, "duty_fraction": 0.7, "pressures": (HoldReason.HEAT,)},
        ),
        (
            former(Event.ORDER, "the user asked", "pause (release)", "no answer in time"),
            {"by": By.USER, "order": OrderKind.RELEASE, "outcome": Outcome.UNANSWERED},
        ),
        (former(Event.ORDER, "so", "stop growing the micro-batch"), {"order": OrderKind.STOP_GROWING}),
        (former(Event.ORDER, "the supervisor was told to go", "stop"), {"order": OrderKind.STOP, "by": By.SYSTEM}),
        (former(Event.ORDER, "nothing holds it any more", "resume"), {"order": OrderKind.RESUME, "by": None}),
        (former(Event.ORDER, "what others leave it", "take at most 2 GiB of the GPU"), {"order": OrderKind.LIMIT_MEMORY}),
        (
            former(Event.RUNG, "it uses 91%", "ladder up", rung="shrink"),
            {"by": By.LADDER, "move": Move.UP, "pressures": (HoldReason.MEMORY,)},
        ),
        (former(Event.RUNG, "the disk is nearly full", "ladder up", rung="hold"), {"pressures": (HoldReason.DISK,)}),
        (former(Event.FREEZE, "the user asked", "freeze"), {"by": By.USER}),
        (former(Event.KILL, "it uses 99%", "kill the whole tree", rung="kill"), {"by": By.LADDER, "cause": Cause.MEMORY}),
        (former(Event.KILL, "not a word for 121 s"), {"by": By.SUPERVISOR, "cause": Cause.UNRESPONSIVE}),
        (former(Event.KILL, "asked to stop now, without a checkpoint"), {"by": By.USER, "cause": None}),
        (
            former(Event.DEATH, "so", "restart in 1.5 s (killed)"),
            {"again": True, "delay_s": 1.5, "cause": Cause.KILLED, "exit_status": None},
        ),
        (former(Event.DEATH, "so", "gave up"), {"again": False, "cause": None}),
        (former(Event.SMALLER, "so", "micro-batch 1,024 → 512 tokens"), {"tokens": (1024, 512)}),
        (former(Event.OUT_OF_MEMORY, "so", "micro-batch 64 → 32 tokens, step redone"), {"tokens": (64, 32)}),
        (
            former(Event.WANTED, "the user asked", "paused (hold)"),
            {"by": By.USER, "wanted": Wanted.PAUSED, "pause_mode": PauseMode.HOLD},
        ),
        (former(Event.WANTED, "It waits for you.", "stopped"), {"by": By.SUPERVISOR, "wanted": Wanted.STOPPED}),
        (former(Event.POSTMORTEM, "The supervisor crashed; the machine lived on."), {"machine_died": False}),
        (former(Event.MESSAGE, "finished", result="not delivered"), {"delivered": False}),
        (former(Event.THAW, "it may go on", "thaw"), {"by": None}),
    ],
)
def test_a_line_of_the_former_format_gets_the_fields_that_its_words_tell(entry: Entry, expected: dict[str, Any]) -> None:
    assert {name: getattr(entry, name) for name in expected} == expected


@given(st.sampled_from(Event), WORDS, st.none() | WORDS, st.none() | WORDS)
def test_whatever_stands_in_a_line_of_the_former_format_is_no_error(
    event: Event, reason: str, action: str | None, result: str | None
) -> None:
    """And the fields it is given are such as could be written today."""
    entry = former(event, reason, action, result)
    again = msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(entry, v=2)), type=Entry)
    assert again == msgspec.structs.replace(entry, v=2)
    assert entry.duty_fraction is None or 0 <= entry.duty_fraction <= 1


def test_the_recorded_ledger_of_the_former_format_is_understood() -> None:
    """A night of the state before: every order has its kind and its outcome, every death its cause, every wish what it was."""
    entries = old_entries()
    assert {entry.v for entry in entries} == {1}
    told = Counter(entry.event for entry in entries)
    expected = {Event.RUNG, Event.ORDER, Event.FREEZE, Event.KILL, Event.DEATH, Event.SMALLER, Event.RECOVERED, Event.WANTED}
    assert expected | {Event.POSTMORTEM, Event.LEFT, Event.END, Event.GIVEN_BACK} <= set(told)
    for entry in entries:
        match entry.event:
            case Event.ORDER:
                assert entry.order is not None, entry
                assert entry.outcome is not None, entry
                assert (entry.duty_fraction is not None) == (entry.order is OrderKind.PACE), entry
            case Event.DEATH:
                assert entry.cause in (Cause.MEMORY, Cause.KILLED), entry
                assert entry.again, entry
            case Event.RUNG:
                assert entry.move is not None, entry
            case Event.SMALLER:
                assert entry.tokens is not None, entry
            case Event.WANTED:
                assert entry.by is By.USER, entry
                assert entry.wanted is not None, entry
            case Event.POSTMORTEM:
                assert entry.machine_died is False, entry
    orders = {entry.order for entry in entries if entry.order is not None}
    assert {OrderKind.HALVE, OrderKind.GROW, OrderKind.PACE, OrderKind.HOLD, OrderKind.RESUME, OrderKind.STOP} <= orders
    by_pressure = {pressure for entry in entries for pressure in entry.pressures}
    assert by_pressure == {HoldReason.MEMORY, HoldReason.HEAT, HoldReason.DISK}


def test_the_recorded_state_is_reported_as_the_state_before_reported_it(private_folders: Path) -> None:
    """`memsup report --json`: the document that the code of that time made of these files, new fields and words apart."""
    then, today = b"found out what the last death was", b"the supervisor ended and was started again"
    before = json.loads((OLD_STATE / "report.json").read_bytes().replace(then, today))
    paths = run_paths("default")
    shutil.copytree(OLD_STATE, paths.state)
    assert gather(paths, observe(paths).status, 0.0).unreadable == ()
    done = CliRunner().invoke(report, ["--json"], standalone_mode=False)
    assert done.exception is None
    now = json.loads(done.stdout)
    assert only_fields_of(before, now) == before
    assert now["facts"] == []


def only_fields_of(before: Any, now: Any) -> Any:
    """`now` without what `before` has no field for."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {name: only_fields_of(before[name], value) for name, value in now.items() if name in before}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [only_fields_of(b, n) for b, n in zip(before, now, strict=True)]
    return now


def test_a_file_may_begin_in_one_format_and_go_on_in_the_other() -> None:
    """As after an update between two starts."""
    lines = [(OLD_STATE / "ledger.jsonl").read_bytes().splitlines()[0], written(Record(event=Event.END, reason="so"))]
    assert [read_entry(text).v for text in lines] == [1, 2]
    assert RunState(read_entry(lines[0]).state)
