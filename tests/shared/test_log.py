"""Events of both processes: one JSON line in a file, plain words on a terminal, nothing set for anybody else."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.terminal import EVIL, FORGED, obeyed

from memsup.shared import log as logging_of_ours
from memsup.shared.log import IN_LEDGER, FromLibraries, json_lines, log, log_to, plain_words, time_text, words


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """What goes into the file, and what onto the terminal."""
    file: list[bytes] = []
    terminal: list[bytes] = []
    before = logging_of_ours._outputs.outputs
    log_to("night", json_lines(file.append), plain_words(terminal.append))
    yield file, terminal
    log_to(None, *before)


def test_an_event_is_a_json_line_and_plain_words(written: tuple[list[bytes], list[bytes]]) -> None:
    """Time, level, event and run first; then its own fields."""
    before_s = time.time()
    log.warning("GPU probe given up", why="it hung", after_s=2.5, loss=0.123456789, note=None)
    (line,), (text,) = written
    fields = json.loads(line)
    assert list(fields) == ["time", "level", "event", "run", "why", "after_s", "loss", "note"]
    assert (fields["level"], fields["event"], fields["run"], fields["after_s"]) == (
        "warning",
        "GPU probe given up",
        "night",
        2.5,
    )
    assert before_s - 0.01 < datetime.fromisoformat(fields["time"]).timestamp() < time.time() + 0.01
    assert text.decode()[8:] == "  warning: GPU probe given up: why it hung, after 2.5 s, loss 0.123457\n"


def test_an_exception_has_its_traceback(written: tuple[list[bytes], list[bytes]]) -> None:
    """One line in the file, however many the traceback has."""
    try:
        raise ValueError("bad %s luck")
    except ValueError:
        log.exception("The training ends here")
    (line,), (text,) = written
    assert line.count(b"\n") == 1
    assert "ValueError: bad %s luck" in json.loads(line)["exception"]
    assert text.decode().endswith("ValueError: bad %s luck\n")


def test_what_the_ledger_has_is_not_written_again(written: tuple[list[bytes], list[bytes]]) -> None:
    """It is shown on the terminal all the same."""
    log.info("end: finished", in_ledger=True)
    file, terminal = written
    assert (file, len(terminal)) == ([], 1)
    assert terminal[0].endswith(b"  end: finished\n")


def test_libraries_speak_through_it(written: tuple[list[bytes], list[bytes]]) -> None:
    """What they log by the standard library is an event with the logger's name, even where their format is wrong."""
    logger = logging.Logger("transformers.trainer")
    logger.addHandler(FromLibraries())
    logger.warning("%d rows", 3)
    logger.error("%d rows", "three")
    events = [json.loads(line) for line in written[0]]
    assert [(event["level"], event["event"], event["logger"]) for event in events] == [
        ("warning", "3 rows", "transformers.trainer"),
        ("error", "%d rows", "transformers.trainer"),
    ]


@given(
    st.text(), st.dictionaries(st.text(min_size=1).filter(lambda name: name not in {"event", "level", IN_LEDGER}), st.text())
)
def test_every_text_makes_one_line_of_json(event: str, fields: dict[str, str]) -> None:
    """Also what is no Unicode, as in the name of a file."""
    written: list[bytes] = []
    json_lines(written.append)({"time": time_text(0), "level": "info", "event": event + "\udcff", **fields})
    (line,) = written
    assert line.count(b"\n") == 1
    assert json.loads(line)["event"] == event + "\udcff"
    assert isinstance(words(json.loads(line)), str)


def test_nobody_elses_structlog_is_touched_and_what_it_would_load_is_not() -> None:
    """A program that uses structlog keeps its settings, and what of structlog is asynchronous works as ever; rich and asyncio,
    which structlog would load, cost 10 MiB.
    """
    code = (
        "import sys; import memsup.shared.log; assert not {'rich', 'asyncio'} & set(sys.modules); import structlog; "
        "assert not structlog.is_configured(); import rich; assert sys.modules['rich'] is rich; "
        "import asyncio; asyncio.run(structlog.get_logger().ainfo('said')); assert sys.modules['asyncio'] is asyncio"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert "said" in said


def test_before_anything_is_said_warnings_go_to_standard_error() -> None:
    """And nothing to standard output, which belongs to data."""
    code = "from memsup.shared.log import log; log.info('quiet'); log.warning('loud', path='x')"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr[8:] == "  warning: loud: path x\n"


def test_a_terminal_is_not_driven_by_what_is_logged(written: tuple[list[bytes], list[bytes]]) -> None:
    """In the foreground the log goes to a terminal; a field is no more than a part of a line."""
    log.warning(f"It broke{EVIL}", path=f"/x{EVIL}{FORGED}")
    (line,) = written[1]
    assert not obeyed(line.decode())
    assert line.decode().count("\n") == 1
