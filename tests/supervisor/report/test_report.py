"""The report: what the night came to, what each intervention cost, and a page on which nothing hostile survives."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit.cli_process import MEMSUP, a_run, control_server, eventually
from kit.nights import Night, eventful
from kit.statuses import a_status

from memsup.shared.files import replace_file
from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import RunState, Status, Wanted, encode_status
from memsup.supervisor.cli.layout import laid_out
from memsup.supervisor.cli.report import report
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.decide.events import By, Event, OrderKind, Outcome
from memsup.supervisor.decide.ladder import HoldReason
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.record.history import Point
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.record.rotation import parts_of
from memsup.supervisor.report.account import Account, Gap, account
from memsup.supervisor.report.axis import place
from memsup.supervisor.report.gather import Material, gather
from memsup.supervisor.report.interventions import Kind
from memsup.supervisor.report.marks import time_ticks, value_ticks
from memsup.supervisor.report.page import page
from memsup.supervisor.report.terminal import screen, sparkline


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    return eventful(RunPaths(name="default", state=folder / "state" / "default", runtime=folder / "runtime" / "default"))


@pytest.fixture
def night(recorded: Night, private_folders: Path) -> Night:
    """The same night for each test, in folders of its own."""
    paths = run_paths("default")
    shutil.copytree(recorded.paths.state, paths.state)
    return replace(recorded, paths=paths)


def read(night: Night) -> tuple[Material, Account]:
    status = night.status()
    status.result = {"accuracy": 0.93, "majority_accuracy": 0.55}
    material = gather(night.paths, status, night.at)
    return material, account(material)


def record_of(night: Night, command: list[str] | None = None) -> RunRecord:
    return RunRecord(
        run="default",
        run_id="0123456789ab",
        created_unix_s=night.at,
        wanted=Wanted.RUNNING,
        tier="safe",
        tier_reason="<it> was asked for",
        settings=Settings(),
        command=command,
    )


def material_of(entries: list[Entry], points: list[Point], status: Status | None = None) -> Material:
    return Material(
        run="r",
        record=None,
        status=status,
        entries=tuple(entries),
        points=tuple(points),
        checkpoints=(),
        unreadable=(),
        now_unix_s=1e9,
    )


# --------------------------------------------------------------------------------------------------------------------
# What it came to


def test_each_intervention_has_its_reason_and_its_price(night: Night) -> None:
    """Halving costs nothing, pacing its gaps, a freeze its length, a death its restart and the steps that were redone."""
    _, reckoned = read(night)
    told = [(i.kind, i.what.split(",")[0], i.cost_s and round(i.cost_s), i.redone_steps) for i in reckoned.interventions]
    step_s = reckoned.step_s
    assert step_s is not None
    assert math.isclose(step_s, 2.0, rel_tol=0.05)
    assert told == [
        (Kind.MEMORY, "halve the micro-batch", None, 0),
        (Kind.HEAT, "compute 70 % of the time", 720, 0),
        (Kind.MEMORY, "froze the worker", 2, 0),
        (Kind.DEATH, "killed the whole tree", round(22 + 120 * step_s), 120),
        (Kind.USER, "paused", 2700, 0),
        (Kind.MACHINE, "the machine was started again", told[5][2], told[5][3]),
    ]
    machine = reckoned.interventions[5]
    assert 280 <= machine.redone_steps <= 300
    assert machine.why.startswith("The machine went down")
    assert machine.cost_s is not None
    assert 810 + 280 * step_s <= machine.cost_s <= 830 + 305 * step_s


def test_a_death_while_the_run_is_stopping_costs_what_it_lost(private_folders: Path) -> None:
    """Nothing follows that could show it: the next start begins where the checkpoint is."""
    night = Night(run_paths("stopped"))
    night.say(Event.DEATH, "It was killed.", cause=Cause.KILLED, again=False, lost_steps=11, lost_s=34.0)
    night.say(Event.END, "stopped", by=By.USER)
    (death,) = read(night)[1].interventions
    assert (death.cost_s, death.result, death.redone_steps) == (34.0, "11 steps lost", 0)


def test_a_pause_that_was_asked_for_is_not_charged(night: Night) -> None:
    """The 45 minutes that a person wanted stand in the table, not in the sum."""
    _, reckoned = read(night)
    assert reckoned.cost_s == sum(i.cost_s or 0 for i in reckoned.interventions if i.kind is not Kind.USER)


def test_the_whole_night_is_accounted_for(night: Night) -> None:
    """Where the time went adds up to the time from the first to the last record."""
    _, reckoned = read(night)
    assert math.isclose(sum(reckoned.spent_s.values()), reckoned.end - reckoned.begin, abs_tol=2)
    assert math.isclose(reckoned.spent_s["paused"], 2700, abs_tol=2)
    assert math.isclose(reckoned.spent_s["cooled"], 720, abs_tol=2)
    assert math.isclose(reckoned.spent_s[Gap.OFF], 780, abs_tol=2)


def test_a_gap_is_called_what_it_was(private_folders: Path) -> None:
    """Stopped, without a supervisor, or with the machine off: by what the ledger says before it and the boot after it."""
    night = Night(run_paths("gaps"), gpu=False)
    night.run(60, RunState.RUNNING, "training")
    night.rest()
    night.say(Event.END, "stopped")
    night.pass_unrecorded(600)
    night.new_supervisor()
    night.say(Event.FOUND, "nothing")
    night.run(60)
    night.rest()
    night.pass_unrecorded(300)
    night.new_supervisor()
    night.run(60)
    night.rest()
    night.pass_unrecorded(900)
    night.new_boot("boot-b")
    night.run(60)
    _, reckoned = read(night)
    assert [(gap.why, round(gap.end - gap.begin)) for gap in reckoned.gaps] == [
        (Gap.STOPPED, 600),
        (Gap.UNGUARDED, 300),
        (Gap.OFF, 900),
    ]


def test_a_stop_before_a_reboot_is_nobodys_fault(private_folders: Path) -> None:
    """Who stops the run and reboots the machine does not read about a death of the machine."""
    night = Night(run_paths("reboot"))
    night.run(30, RunState.RUNNING, "training")
    night.say(Event.END, "stopped")
    night.pass_unrecorded(3600)
    night.new_boot("boot-b")
    night.say(Event.FOUND, "nothing")
    night.run(30)
    _, reckoned = read(night)
    (restart,) = reckoned.interventions
    assert restart.asked
    assert restart.cost_s is None
    assert "good order" in restart.why


def test_a_dead_supervisor_is_no_death_of_the_machine(private_folders: Path) -> None:
    """Within one boot the machine lived on; and the evidence, of many lines, does not fill the screen."""
    night = Night(run_paths("killed"))
    night.run(30, RunState.RUNNING, "training")
    why = "The supervisor was killed; the machine lived on."
    night.say(Event.POSTMORTEM, why, result="Last record: 9 s ago.\nFor it: much", machine_died=False)
    night.run(30)
    material, reckoned = read(night)
    assert [i.kind for i in reckoned.interventions] == [Kind.OTHER]
    shown = "\n".join(laid_out(screen(material, reckoned), None))
    assert "death of the machine" not in shown
    assert "Last record: 9 s ago." in shown
    assert "For it" not in shown


def test_what_has_not_ended_has_no_price(private_folders: Path) -> None:
    """A worker that is frozen while the report is written costs an unknown time, not none."""
    night = Night(run_paths("frozen"))
    night.say(Event.FREEZE, "memory", action="freeze", rung="freeze", by=By.LADDER)
    _, reckoned = read(night)
    assert reckoned.interventions[0].cost_s is None


def test_an_order_is_told_by_its_kind_whatever_its_words(private_folders: Path) -> None:
    """Sentences are for people: improved or translated, they change nothing that is reckoned."""
    night = Night(run_paths("orders"))
    orders: list[tuple[OrderKind, dict[str, Any]]] = [
        (OrderKind.PACE, {"duty_fraction": 0.7}),
        (OrderKind.PACE, {"duty_fraction": 1.0}),
        (OrderKind.HOLD, {}),
        (OrderKind.RESUME, {}),
        (OrderKind.HALVE, {"pressures": (HoldReason.MEMORY,)}),
        (OrderKind.HOLD, {"by": By.USER}),
        (OrderKind.HOLD, {"pressures": (HoldReason.DISK,)}),
        (OrderKind.CHECKPOINT, {}),
    ]
    for kind, fields in orders:
        night.say(Event.ORDER, "内存不足", "一句话", "好", order=kind, outcome=Outcome.DONE, **{"by": By.LADDER} | fields)
        night.pass_unrecorded(100)
    _, reckoned = read(night)
    assert [(i.kind, i.what, i.cost_s and round(i.cost_s)) for i in reckoned.interventions] == [
        (Kind.HEAT, "一句话", 30),
        (Kind.OTHER, "held the worker, its memory kept", 100),
        (Kind.MEMORY, "一句话", None),
        (Kind.DISK, "held the worker, its memory kept", None),
        (Kind.OTHER, "一句话", None),
    ]


def test_who_wanted_it_stopped_decides_whether_it_was_asked_for(private_folders: Path) -> None:
    """After the machine died the supervisor itself waits for a person; nobody asked for that."""
    night = Night(run_paths("waits"))
    for by in (By.SUPERVISOR, By.USER):
        night.say(Event.WANTED, "so", "stopped", wanted=Wanted.STOPPED, by=by)
    night.say(Event.KILL, "asked to stop now, without a checkpoint", "kill the whole tree", by=By.USER)
    _, reckoned = read(night)
    assert [(i.what, i.asked) for i in reckoned.interventions] == [
        ("waited for a person to start it again", False),
        ("asked to stop", True),
    ]


def test_a_rest_by_the_hours_stands_in_the_table_with_its_length_and_is_not_charged(private_folders: Path) -> None:
    """And what was ordered for it, or frozen, is no intervention beside it."""
    night = Night(run_paths("hours"))
    night.say(Event.HOURS_END, "it is outside of its hours", "pause until Sun 23:00", by=By.HOURS)
    night.say(Event.ORDER, "it is outside of its hours", "pause (release)", by=By.HOURS, order=OrderKind.RELEASE)
    night.say(Event.FREEZE, "it is outside of its hours", "freeze", by=By.HOURS)
    night.run(600, RunState.PAUSED, None)
    night.say(Event.HOURS_BEGIN, "its hours begin", "go on", by=By.HOURS)
    _, reckoned = read(night)
    (rest,) = reckoned.interventions
    assert (rest.kind, rest.what, round(rest.cost_s or 0), rest.asked) == (Kind.USER, "paused by its hours", 600, True)
    assert reckoned.cost_s == 0


def test_a_damaged_checkpoint_is_named_with_the_one_that_was_used(private_folders: Path) -> None:
    """In the table, in the document, on the page and in the terminal; a fact that each life tells anew stands there once."""
    night = Night(run_paths("damaged"))
    for _ in range(2):
        night.say(
            Event.CHECKPOINT_DAMAGED,
            "step-00000900 was damaged.",
            by=By.WORKER,
            checkpoint="/s/step-00000900.damaged",
            checkpoint_step=900,
        )
        night.say(Event.CHECKPOINT_USED, "It goes on.", by=By.WORKER, checkpoint="/s/step-00000800", checkpoint_step=800)
        night.say(Event.ROWS_LEFT_OUT, "3 rows have no text.", by=By.WORKER, rows=3)
        night.say(Event.CUT_REFUSED, "This model sees cuts.", by=By.WORKER)
        night.say(Event.RECOVERED, "so")
        night.pass_unrecorded(60)
    night.say(Event.CHECKPOINT_DAMAGED, "step-00000800 was damaged.", by=By.WORKER, checkpoint_step=800)
    night.say(Event.DEATH, "so", cause=Cause.CRASH, again=True)
    night.say(Event.CHECKPOINT_USED, "It goes on.", checkpoint_step=700)
    material, reckoned = read(night)
    damaged = [i for i in reckoned.interventions if i.event is Event.CHECKPOINT_DAMAGED]
    assert [(i.kind, i.what, i.result) for i in damaged] == [
        (Kind.DISK, "set the damaged checkpoint of step 900 aside", "went on from the checkpoint step-00000800, of step 800"),
        (Kind.DISK, "set the damaged checkpoint of step 900 aside", "went on from the checkpoint step-00000800, of step 800"),
        (Kind.DISK, "set the damaged checkpoint of step 800 aside", None),
    ]
    document = json.loads(msgspec.json.encode(reckoned.as_document()))
    assert [(fact["event"], fact["checkpoint_step"], fact["rows"]) for fact in document["facts"]] == [
        ("checkpoint_used", 800, None),
        ("rows_left_out", None, 3),
        ("cut_refused", None, None),
        ("checkpoint_used", 700, None),
    ]
    for shown in (re.sub("<[^>]*>", "", page(material, reckoned)), "\n".join(laid_out(screen(material, reckoned), None))):
        assert "set the damaged checkpoint of step 900 aside" in shown
        assert "step-00000800, of step 800" in shown
        assert "3 rows have no text." in shown
        assert "This model sees cuts." in shown


# --------------------------------------------------------------------------------------------------------------------
# The axis of time


def test_a_clock_that_is_set_back_folds_nothing_over() -> None:
    """Within a boot the supervisor's own clock gives the distance."""
    assert place([("a", 10, 1000), ("a", 20, 1010), ("a", 30, 20)], ["a"]) == [1000, 1010, 1020]


def test_a_sleeping_machine_leaves_its_gap() -> None:
    """The wall clock ran on while the other stood still."""
    assert place([("a", 10, 1000), ("a", 11, 4600)], ["a"]) == [1000, 4600]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.floats(0, 1e9, allow_nan=False, width=32), st.floats(0, 4e9, allow_nan=False, width=32)
        )
    )
)
def test_time_on_the_page_never_runs_backwards(stamps: list[tuple[str, float, float]]) -> None:
    """Whatever the clocks said."""
    xs = place(stamps, list("abc"))
    order = sorted(range(len(stamps)), key=lambda i: (stamps[i][0], stamps[i][1]))
    placed = [xs[i] for i in order]
    assert all(b >= a for a, b in itertools.pairwise(placed))


@given(st.floats(0, 4e9), st.floats(0, 1e8))
def test_ticks_of_time_are_few_and_inside(begin: float, lasts_s: float) -> None:
    ticks = list(time_ticks(begin, begin + lasts_s))
    assert len(ticks) <= 60
    assert all(begin <= x <= begin + lasts_s for x, _ in ticks)


@given(st.floats(-1e14, 1e14), st.floats(-1e14, 1e14))
@example(-5e-324, 0.0)
def test_ticks_of_value_are_few_and_inside(low: float, high: float) -> None:
    ticks = value_ticks(low, high)
    assert len(ticks) <= 12
    slack = abs(high) * 1e-6 + abs(low) * 1e-6 + 1e-9
    assert all(min(low, high) - slack <= tick <= max(low, high) + slack for tick in ticks)


# --------------------------------------------------------------------------------------------------------------------
# Hostile and broken files

ALLOWED = {
    "abbr",
    "article",
    "br",
    "dd",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "h3",
    "i",
    "pre",
    "html",
    "head",
    "meta",
    "link",
    "title",
    "style",
    "body",
    "main",
    "p",
    "h1",
    "h2",
    "div",
    "b",
    "span",
    "svg",
    "text",
    "line",
    "path",
    "rect",
    "circle",
    "a",
    "table",
    "tr",
    "th",
    "td",
    "code",
    "details",
    "summary",
    "footer",
}


class Tags(HTMLParser):
    """Collects what a browser would take for markup."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}


def markup(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    tags.close()
    return tags


hostile = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</style><script>",
            "javascript:alert(1)",
            "\x1b]0;owned\x07\x1b[2J",
            "]]><!--",
            "' onmouseover='x",
            "&lt;b&gt;",
        ]
    ),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)  # JSON knows no others, and msgspec takes no others
entries = st.builds(
    Entry,
    at=st.floats(0, 4e9),
    mono=st.floats(0, 4e9),
    boot=hostile,
    event=st.sampled_from(Event),
    reason=hostile,
    state=hostile,
    rung=st.one_of(st.none(), hostile),
    action=st.one_of(st.none(), hostile),
    result=st.one_of(st.none(), hostile),
    step=st.one_of(st.none(), st.integers(-(2**60), 2**60)),
    by=st.none() | st.sampled_from(By),
    order=st.none() | st.sampled_from(OrderKind),
    duty_fraction=st.none() | numbers,
    wanted=st.none() | st.sampled_from(Wanted),
    pressures=st.lists(st.sampled_from(HoldReason), max_size=2).map(tuple),
    checkpoint=st.none() | hostile,
    checkpoint_step=st.none() | st.integers(-(2**60), 2**60),
    rows=st.none() | st.integers(-(2**60), 2**60),
)
points = st.builds(
    Point,
    at=st.floats(0, 4e9),
    mono=st.floats(0, 4e9),
    boot=hostile,
    state=hostile,
    phase=st.one_of(st.none(), hostile),
    spent_s=st.dictionaries(st.one_of(hostile, st.sampled_from(["training", "paused"])), numbers, max_size=3),
    step=st.one_of(st.none(), st.integers(-(2**60), 2**60)),
    loss=st.one_of(st.none(), numbers),
    samples_per_s=st.one_of(st.none(), numbers),
    duty_fraction=st.one_of(st.none(), numbers),
    micro_tokens=st.one_of(st.none(), st.integers(-5, 2**62)),
    worker_bytes=st.one_of(st.none(), st.integers(-(2**62), 2**62)),
    cpu_c=st.one_of(st.none(), numbers),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries, max_size=8), st.lists(points, max_size=8), st.lists(hostile, max_size=2))
def test_nothing_that_others_wrote_becomes_markup(written: list[Entry], read: list[Point], attention: list[str]) -> None:
    """Whatever stands in the files, the page has the page's own tags, no handler, and links only into itself."""
    status = Status(run="<b>", state=RunState.FAILED, wanted=Wanted.RUNNING, attention=attention, failure="<script>")
    material = material_of(written, read, status)
    reckoned = account(material)
    html = page(material, reckoned)
    found = markup(html)
    assert found.tags <= ALLOWED
    assert not [name for name in found.attributes if name.startswith("on") or name == "src"]
    assert all(link.startswith("#i") or link == "data:," for link in found.links)
    assert "nan" not in "".join(part for part in html.split("<") if part.startswith(("path", "rect", "line")))
    assert not any("\x1b" in line or "\x07" in line for line in laid_out(screen(material, reckoned), None))


def test_damaged_files_cost_their_lines_and_nothing_else(night: Night) -> None:
    """Torn lines, other people's JSON and dates of the year 9999 are left out, counted, and told."""
    for name in ("ledger.jsonl", "history.jsonl"):
        with open(night.paths.state / name, "ab") as file:
            file.write(
                b'\x00\xff{"at":\n[1,2]\n{"at":9e99,"mono":1,"boot":"","event":"","reason":"","state":""}\n{"at":1.0,"mo'
            )
    material, reckoned = read(night)
    assert len(reckoned.interventions) == 6
    assert [sentence.split(" ")[0] for sentence in material.unreadable] == ["4", "4"]
    assert all(sentence in "\n".join(laid_out(screen(material, reckoned), None)) for sentence in material.unreadable)


def test_a_link_in_the_place_of_a_file_is_not_followed(night: Night, tmp_path: Path) -> None:
    """A report that is passed around must not carry another file's content."""
    secret = tmp_path / "secret"
    secret.write_bytes(night.paths.ledger.read_bytes())
    night.paths.ledger.unlink()
    night.paths.ledger.symlink_to(secret)
    material, _ = read(night)
    assert material.entries == ()


def test_a_run_without_any_record_has_a_report(private_folders: Path) -> None:
    """An empty folder gives a page and a screen that say so."""
    night = Night(run_paths("empty"))
    material = gather(night.paths, None, night.at)
    reckoned = account(material)
    assert "No readings were recorded" in page(material, reckoned)
    assert "Nothing is known" in next(iter(laid_out(screen(material, reckoned), None)))


def test_rotated_parts_of_the_ledger_are_read_in_order(night: Night) -> None:
    """`ledger.2.jsonl` is older than `ledger.1.jsonl`, which is older than `ledger.jsonl`."""
    lines = night.paths.ledger.read_bytes().splitlines(keepends=True)
    folder = night.paths.state
    (folder / "ledger.2.jsonl").write_bytes(b"".join(lines[:4]))
    (folder / "ledger.1.jsonl").write_bytes(b"".join(lines[4:9]))
    night.paths.ledger.write_bytes(b"".join(lines[9:]))
    (folder / "ledger.old.jsonl").write_bytes(b"not a part")
    assert [file.name for file in parts_of(night.paths.ledger)] == ["ledger.2.jsonl", "ledger.1.jsonl", "ledger.jsonl"]
    assert len(read(night)[0].entries) == len(lines)


def test_a_supervised_commands_arguments_stay_out_of_the_page(night: Night) -> None:
    """People put passwords into arguments, and send the page to others."""
    write_record(night.paths.record, record_of(night, command=["python", "--password=hunter2"]))
    html = page(*read(night))
    assert "hunter2" not in html
    assert "python with 1 argument" in html
    assert "&lt;it&gt; was asked for" in html


# --------------------------------------------------------------------------------------------------------------------
# In a terminal, and as a document


def test_the_terminal_gets_the_answer_in_one_screenful(night: Night) -> None:
    """Outcome, figures, curves, where the time went, and the dearest interventions with their reasons."""
    lines = list(laid_out(screen(*read(night)), None))
    text = "\n".join(lines)
    assert len(lines) < 50
    assert "Finished after 6 h" in lines[0]
    assert "accuracy 93.0 %" in text.lower()
    assert "machine off" in text
    assert "compute 70 % of the time (GPU 0 is at 90 °C)" in text


def test_the_account_is_json(night: Night) -> None:
    """`--json` prints numbers and words that any reader takes."""
    _, reckoned = read(night)
    document = json.loads(msgspec.json.encode(reckoned.as_document()))
    assert document["schema"] == 1
    assert [i["kind"] for i in document["interventions"]] == ["memory", "heat", "memory", "death", "user", "machine"]


@given(st.lists(st.one_of(st.none(), st.floats(-1e12, 1e12)), max_size=80))
def test_a_sparkline_has_a_cell_for_each_value(values: list[float | None]) -> None:
    assert len(sparkline(values)) == len(values)


# --------------------------------------------------------------------------------------------------------------------
# memsup report


def invoke(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(report, list(words), standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, RefusedError):
        raise result.exception
    code = result.return_value if isinstance(result.return_value, int) else getattr(result.exception, "code", -1)
    return code, result.stdout, result.stderr


@pytest.fixture
def run(night: Night) -> Night:
    """The night's folder with the two documents that a supervisor leaves."""
    status = night.status()
    write_record(night.paths.record, record_of(night))
    replace_file(night.paths.status, encode_status(status))
    return night


def test_report_writes_the_page_and_prints_a_screenful(run: Night, tmp_path: Path) -> None:
    """Data on stdout, where the page is on stderr; the file holds a whole page."""
    code, out, err = invoke("--output", str(tmp_path / "night.html"))
    assert code == 0
    assert out.startswith("default: Finished after 6 h")
    assert str(tmp_path / "night.html") in err
    html = (tmp_path / "night.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")
    assert markup(html).tags <= ALLOWED


def test_report_to_stdout_and_as_json(run: Night) -> None:
    """`--output -` is the page alone; `--json` names the page beside the numbers."""
    assert invoke("--output", "-")[1].startswith("<!doctype html>")
    document = json.loads(invoke("--json")[1])
    assert document["page"] == str(run.paths.state / "report.html")
    assert (run.paths.state / "report.html").is_file()


def test_report_refuses_what_it_cannot_replace(run: Night, tmp_path: Path) -> None:
    """A folder, a device, a place that does not exist: one sentence, nothing written."""
    for target in (str(tmp_path), "/dev/null", str(tmp_path / "none" / "x.html")):
        assert invoke("--output", target)[0] == 2


def test_report_of_an_unknown_run(private_folders: Path) -> None:
    assert invoke("--run", "nobody")[0] == 4


@pytest.mark.slow
def test_report_follows_a_run_until_it_ends(private_folders: Path, tmp_path: Path) -> None:
    """An open page is loaded again and again while the run goes on, and stays as it is afterwards."""
    page_file, state = tmp_path / "night.html", [RunState.RUNNING]
    with control_server(a_run(), lambda _: a_status(state[0])):
        following = subprocess.Popen([*MEMSUP, "report", "--follow", "--output", str(page_file)], stdout=subprocess.PIPE)
        eventually(page_file.exists)
        assert 'http-equiv="refresh"' in page_file.read_text()
        state[0] = RunState.FINISHED
        told, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert b"Finished" in told
    assert 'http-equiv="refresh"' not in page_file.read_text()
