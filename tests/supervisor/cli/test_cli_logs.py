"""`memsup logs`: the end of the ledger and of the worker's output, and what is added, through rotation and truncation."""

from __future__ import annotations

import json
import subprocess
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cli_process import MEMSUP, a_run, eventually, memsup

from memsup.supervisor.cli.logs import LONGEST_LINE_BYTES, Tail, event_line, worker_line

EVENT = {
    "at": 1_700_000_000.0,
    "mono": 5.0,
    "event": "rung",
    "rung": "shrink",
    "action": "halve the micro-batch",
    "reason": "host memory 91 %",
    "result": "done",
    "step": 1240,
}


def a_run_with_logs() -> Path:
    paths = a_run()
    paths.ledger.write_text(json.dumps(EVENT) + "\n" + '{"torn": tr')
    paths.worker_log.write_text("".join(f"line {i}\n" for i in range(100)))
    return paths.state


def test_both_are_shown_with_a_heading_unless_one_is_asked_for() -> None:
    """The ledger first: it says why; then the end of what the worker printed."""
    a_run_with_logs()
    both = memsup("logs", "-n", "3").stdout
    assert both.index("ledger.jsonl") < both.index("halve the micro-batch (host memory 91 %) → done")
    assert both.index("halve") < both.index("worker.log") < both.index("line 97")
    assert "line 96" not in both
    assert "step 1,240" in both
    assert memsup("logs", "--worker", "-n", "2").stdout == "line 98\nline 99\n"
    assert "line" not in memsup("logs", "--events").stdout
    assert memsup("logs", "--worker", "-n", "0").stdout == ""


def test_json_lines_name_their_log() -> None:
    """A torn line of the ledger is null, not a traceback."""
    state = a_run_with_logs()
    with (state / "ledger.jsonl").open("a") as file:
        file.write("\n")
    lines = [json.loads(line) for line in memsup("logs", "--json", "-n", "2").stdout.splitlines()]
    assert lines == [
        {"log": "events", "event": EVENT},
        {"log": "events", "event": None},
        {"log": "worker", "line": "line 98"},
        {"log": "worker", "line": "line 99"},
    ]


def test_since_takes_what_was_decided_from_then_on_through_all_parts_of_the_ledger() -> None:
    """Minutes ago or a local time, in the reader's time zone; the lines of older parts come first, torn ones not at all."""
    paths, now = a_run(), time.time()
    ago_s = {"ledger.2.jsonl": (9000, 7500), "ledger.1.jsonl": (7000, 3500), "ledger.jsonl": (1700, 20)}
    for name, ages in ago_s.items():
        lines = [json.dumps(EVENT | {"at": now - age_s, "reason": f"{age_s} s ago"}) + "\n" for age_s in ages]
        (paths.state / name).write_text("".join(lines))
    with paths.ledger.open("a") as file:
        file.write('{"torn": tr\n')
    paths.worker_log.write_text("a line without a time\n")

    def told(*arguments: str, **environment: str) -> list[str]:
        done = memsup("logs", "--json", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["event"]["reason"] for line in done.stdout.splitlines()]

    assert told("--events", "--since", "2h") == ["7000 s ago", "3500 s ago", "1700 s ago", "20 s ago"]
    assert told("--since", "30m") == ["1700 s ago", "20 s ago"]
    assert told("--since", "1h30m", "-n", "2") == ["1700 s ago", "20 s ago"]
    for zone in ("UTC", "Asia/Shanghai"):
        then = datetime.fromtimestamp(now - 5000, ZoneInfo(zone))
        for when in (f"{then:%Y-%m-%d %H:%M}", f"{then:%H:%M}", f"{then:%Y-%m-%dT%H:%M:%S}"):
            assert told("--since", when, TZ=zone) == ["3500 s ago", "1700 s ago", "20 s ago"], (zone, when)
    assert len(told("--since", f"{datetime.fromtimestamp(now - 2 * 86400, ZoneInfo('UTC')):%Y-%m-%d}")) == 6
    assert "(20 s ago)" in memsup("logs", "--since", "2m").stdout
    quiet = memsup("logs", "--since", "2s")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert quiet.stderr.startswith("No decision since 2")


@pytest.mark.parametrize("when", ["yesterday", "25:00", "2h ago", "2026-13-01", "-5m", "auto", "", "99999999999999d"])
def test_a_time_that_is_none_is_refused_in_a_sentence(when: str) -> None:
    """Exit 2, what was written, and what could be."""
    a_run_with_logs()
    refused = memsup("logs", "--events", f"--since={when}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"memsup: --since {when!r} is no time: write how long ago (2h, 30m), a time (06:30), a date (2026-05-12) or both "
        "('2026-05-12 22:00').\n"
    )


def test_since_is_refused_for_the_future_and_for_the_worker() -> None:
    a_run_with_logs()
    future = memsup("logs", "--since", "2999-01-01")
    assert (future.returncode, future.stderr) == (2, "memsup: --since '2999-01-01' is still to come.\n")
    worker = memsup("logs", "--worker", "--since", "2h")
    assert worker.returncode == 2
    assert "carry no time" in worker.stderr


def test_follow_goes_on_where_since_ended() -> None:
    """No line is told twice."""
    paths = a_run()
    first, second = (json.dumps(EVENT | {"at": time.time(), "reason": reason}) + "\n" for reason in ("first", "second"))
    paths.ledger.write_text(first)
    following = subprocess.Popen([*MEMSUP, "logs", "-f", "--since", "1h", "--json"], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    try:
        assert json.loads(following.stdout.readline())["event"]["reason"] == "first"
        with paths.ledger.open("a") as file:
            file.write(second)
        assert json.loads(following.stdout.readline())["event"]["reason"] == "second"
    finally:
        following.terminate()
        following.communicate(timeout=30)


def test_an_unknown_run_is_exit_4_and_a_young_one_is_told() -> None:
    """No log yet is no error."""
    unknown = memsup("logs", "--run", "nobody")
    assert unknown.returncode == 4
    assert "memsup start --run nobody" in unknown.stderr
    a_run()
    young = memsup("logs")
    assert young.returncode == 0
    assert "worker.log does not exist yet" in young.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    """Memsup logs | head"""
    a_run_with_logs()
    done = subprocess.run(
        ["sh", "-c", '"$@" logs -n 100 | head -n 1', "sh", *MEMSUP], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("==>")


def test_follow_goes_through_truncation_rotation_and_late_birth() -> None:
    """What `tail -F` does, without waking a hundred times a second."""
    paths = a_run()
    following = subprocess.Popen([*MEMSUP, "logs", "-f", "--worker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert following.stdout is not None
    try:
        lines = iter(following.stdout.readline, "")
        paths.worker_log.write_text("born late\n")
        assert next(lines) == "born late\n"
        with paths.worker_log.open("a") as file:
            file.write("half a ")
        with paths.worker_log.open("a") as file:
            file.write("line\n")
        assert next(lines) == "half a line\n"
        paths.worker_log.write_text("cut\n")
        assert next(lines) == "cut\n"
        paths.worker_log.rename(paths.state / "worker.log.1")
        paths.worker_log.write_text("a new file, longer than the one before\n")
        assert next(lines) == "a new file, longer than the one before\n"
        seconds = sum(int(field) for field in Path(f"/proc/{following.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
        assert seconds < 200, "hundredths of a second of CPU"
    finally:
        following.terminate()
        following.communicate(timeout=30)


def test_ctrl_c_ends_following_without_a_traceback() -> None:
    """Exit 130, as shells expect."""
    import signal

    a_run_with_logs()
    following = subprocess.Popen(
        [*MEMSUP, "logs", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a job in the background of a shell ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert following.stdout is not None
    eventually(lambda: "line 99" in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "Traceback" not in err


lines = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30)


@given(lines, lines, st.integers(0, 40), st.integers(1, 60))
def test_no_line_is_lost_or_told_twice(before: list[bytes], after: list[bytes], wanted: int, piece: int) -> None:
    """However the writes are cut, `last` and then `more` give every completed line once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        tail = Tail(path)
        assert tail.last(5) == []
        path.write_bytes(b"".join(line + b"\n" for line in before))
        assert tail.last(wanted) == (before[-wanted:] if wanted else [])
        seen: list[bytes] = []
        added = b"".join(line + b"\n" for line in after)
        for start in range(0, len(added), piece):
            with path.open("ab") as file:
                file.write(added[start : start + piece])
            seen += tail.more()
    assert seen == after


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """It is shown in pieces."""
    path = tmp_path / "log"
    path.write_bytes(b"")
    tail = Tail(path)
    tail.last(1)
    path.write_bytes(b"x" * (3 * LONGEST_LINE_BYTES))
    pieces = list(tail.more())
    assert len(pieces) >= 2
    assert max(map(len, pieces)) <= 2 * LONGEST_LINE_BYTES


def test_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    """A sparse file of 4 GiB: only its last pieces are touched."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.seek(4 * 2**30)
        file.write(b"\nlast but one\nlast\n")
    assert Tail(path).last(2) == [b"last but one", b"last"]


def test_a_log_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Neither leads us elsewhere nor makes us wait."""
    import os

    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    assert Tail(tmp_path / "link").last(5) == []
    assert Tail(tmp_path / "pipe").last(5) == []


@given(st.binary())
def test_worker_output_cannot_drive_the_terminal(line: bytes) -> None:
    """Escape sequences, carriage returns and bytes that are no UTF-8."""
    assert worker_line(line).isprintable()
    assert event_line(line) is None or event_line(line).isprintable()  # type: ignore[union-attr]


def test_a_postmortem_of_several_sentences_is_one_readable_line() -> None:
    line = json.dumps({"at": 0, "event": "postmortem", "reason": "It died.", "result": "First.\nSecond."}).encode()
    assert str(event_line(line)).endswith("It died. → First. / Second.")


def test_a_progress_bar_shows_its_last_state() -> None:
    """Tqdm redraws one line with carriage returns."""
    assert worker_line(b" 10%|#    |\r 50%|###  |\r100%|#####|\r") == "100%|#####|"
