"""`status --watch` is a screen: it fits any terminal, its keys act, and however it ends the terminal is as it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cli_process import MEMSUP, a_run, control_server
from kit.statuses import a_status, full_status
from kit.terminal import Terminal, terminal

from memsup.shared.messages import Reply, RequestKind
from memsup.shared.run_file import read_record, write_record
from memsup.shared.status import RunState, Status, Wanted, encode_status
from memsup.supervisor.cli.board import Board, Reading, binned, board
from memsup.supervisor.cli.watch import DOWN, Watch
from memsup.supervisor.words import width

WATCH = [*MEMSUP, "status", "--watch"]
ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"


# --------------------------------------------------------------------------------------------------------------------
# What is on it


def a_night(status: Status) -> list[Reading]:
    now = time.time()
    return [(now - 7500 + n * 10, 2**30 + n * 2**20, 0.7 / (1 + n / 100)) for n in range(750)]


readings = st.lists(
    st.tuples(st.floats(0, 1e9), st.none() | st.floats(0, 1e12), st.none() | st.floats(allow_nan=True)), max_size=30
).map(lambda found: sorted(found, key=lambda reading: reading[0]))


@given(readings, st.integers(20, 200), st.integers(1, 60), st.integers(0, 30), st.booleans(), st.text(max_size=90))
def test_it_fits_every_terminal(found: list[Reading], cells: int, lines: int, others: int, helps: bool, note: str) -> None:
    """No line too wide, and none too many, whatever is shown."""
    status = full_status()
    runs = [status, *(a_status(run=f"other-{n}") for n in range(others))]
    shown = board(Board(status, runs, found, note, helps, time.time()), cells, lines, in_colour=False)
    assert len(shown) <= lines
    assert max(map(width, shown), default=0) <= cells


@pytest.mark.parametrize(("cells", "lines"), [(60, 12), (80, 24), (120, 40)])
def test_it_says_what_a_person_watches_for(cells: int, lines: int) -> None:
    """All runs, how far, memory against its limit, the loss, the micro-batch, a temperature, the checkpoint's age, the last
    decision, and which keys there are.
    """
    status = full_status()
    runs = [status, a_status(run="night-2", state=RunState.FINISHED)]
    shown = "\n".join(board(Board(status, runs, a_night(status), now_unix_s=time.time()), cells, lines, in_colour=False))
    for words in (
        "night-2",
        "default: running for 2 h 5 min",
        "step 1,240 of 5,000 (25 %)",
        "memory 2 GiB of 20 GiB (10 %)",
        "loss 0.4123",
        "2,048 tokens at a time",
        "88 °C",
        "step 1,200, 40 s old, verified",
        "halve the micro-batch (host",
        "q",
    ):
        assert words in shown, shown
    assert "▁" in shown
    assert "█" in shown


def test_stretches_of_equal_time_have_a_value_each_and_gaps_stay_gaps() -> None:
    every_second = [(float(n), float(n)) for n in range(10)]
    assert binned(every_second, 5, max) == [1.0, 3.0, 5.0, 7.0, 9.0]
    pause = [(float(n), 1.0) for n in (*range(100), *range(900, 1000))]
    values = binned(pause, 100, max)
    assert values[0] == values[-1] == 1.0
    assert values[50] is None
    assert binned([(0.0, None)], 3, max) == [None, None, None]


# --------------------------------------------------------------------------------------------------------------------
# On a terminal


@pytest.fixture
def asked() -> Iterator[list[RequestKind]]:
    """A run, whose supervisor does what it is told, and another run that is over."""
    paths = a_run()
    over = a_run("earlier")
    over.status.write_bytes(encode_status(a_status(RunState.FINISHED, run="earlier")))
    state = [RunState.RUNNING]

    def answer(what: RequestKind) -> Status | Reply:
        wanted = {RequestKind.PAUSE_HOLD: Wanted.PAUSED, RequestKind.RESUME: Wanted.RUNNING, RequestKind.STOP: Wanted.STOPPED}
        if what in wanted:
            record = read_record(paths.record)
            assert record is not None
            write_record(paths.record, msgspec.structs.replace(record, wanted=wanted[what]))
            state[0] = {"paused": RunState.PAUSED, "stopped": RunState.STOPPED}.get(str(wanted[what]), RunState.RUNNING)
            return Reply(request_id=1, ok=True, text=f"Done: {what}.")
        return msgspec.structs.replace(full_status(), state=state[0])

    with control_server(paths, answer) as asked:
        yield asked


def is_whole(screen: list[str], cells: int, lines: int) -> bool:
    return len(screen) == lines and all(width(line) <= cells for line in screen)


def test_keys_act_and_a_stop_is_asked_for(asked: list[RequestKind]) -> None:
    with terminal(WATCH, 80, 24) as seen:
        seen.until(lambda screen: any("earlier" in line for line in screen))
        assert seen.is_raw()
        seen.type("p")
        seen.until(lambda screen: any("Done: pause_hold." in line for line in screen))
        seen.until(lambda screen: any("default: paused" in line for line in screen))
        seen.type("?")
        seen.until(lambda screen: any("memsup pause --release" in line for line in screen))
        seen.type("?r")
        seen.until(lambda screen: any("Done: resume." in line for line in screen))
        seen.type("s")
        seen.until(lambda screen: any("Stop run 'default'?" in line for line in screen))
        seen.type("n\x1b[B")
        seen.until(lambda screen: any("earlier: finished" in line for line in screen))
        seen.type("\x1b[A")
        seen.until(lambda screen: any("default: running" in line for line in screen))
        assert RequestKind.STOP not in asked
        seen.type("sy")
        assert seen.end() == 3
        left = seen.text.rpartition(NORMAL)[2]
    assert "default: stopped" in click.unstyle(left)
    assert [what for what in asked if what is not RequestKind.STATUS] == [
        RequestKind.PAUSE_HOLD,
        RequestKind.RESUME,
        RequestKind.STOP,
    ]


def test_a_run_that_was_removed_since_the_last_look_can_be_chosen() -> None:
    screen = Watch(a_run(), a_status(run="default"))
    screen._others.append(a_status(run="removed"))
    screen.take([DOWN])
    assert screen.board().chosen.run == "removed"
    screen.take([DOWN])
    assert screen.board().chosen.run == "default"


def test_it_survives_any_size_and_every_end(asked: list[RequestKind]) -> None:
    """Leaving, Ctrl-C, a signal: the screen and the way keys are read are as before, and the run goes on."""

    def ended(seen: Terminal, code: int) -> None:
        assert seen.end() == code
        assert seen.text.count(ALTERNATE) == seen.text.count(NORMAL) == 1
        assert seen.text.rindex("\x1b[?25h") > seen.text.rindex("\x1b[?25l")

    with terminal(WATCH, 60, 12, NO_COLOR="1") as seen:
        seen.until(lambda screen: is_whole(screen, 60, 12))
        for cells, lines in ((100, 30), (20, 4), (60, 12)):
            seen.resize(cells, lines)
            seen.until(lambda screen, cells=cells, lines=lines: is_whole(screen, cells, lines))
        assert "\x1b[3" not in seen.text
        seen.type("q")
        ended(seen, 0)
    for end, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with terminal(WATCH, 80, 24) as seen:
            seen.until(lambda screen: any("default: running" in line for line in screen) and seen.is_raw())
            os.kill(seen.pid, end)
            ended(seen, code)
    assert set(asked) == {RequestKind.STATUS}
