"""`memsup logs`: ledger, worker and supervisor as one stream, and what is added, through rotation and truncation."""

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
from kit.terminal import obeyed

from memsup.shared.log import time_text
from memsup.shared.paths import run_paths
from memsup.supervisor.cli.logs import event_line, readable
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.record.output import LONGEST_LINE_BYTES, GrowingFile, ledger_line, log_line

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


def printed(text: str, at_unix_s: float) -> str:
    """A line that a program printed, as the pump writes it."""
    return json.dumps({"time": time_text(at_unix_s), "event": text, "run": "default"}) + "\n"


def logged(event: str, at_unix_s: float, **fields: object) -> str:
    """An event of the worker or the supervisor, as it stands in the file."""
    head = {"time": time_text(at_unix_s), "level": "warning", "event": event, "run": "default"}
    return json.dumps(head | fields) + "\n"


def a_night() -> Path:
    """Eight seconds, in which each of the three logs has something to say."""
    paths = a_run()
    paths.ledger.write_text("".join(json.dumps(EVENT | {"at": 1000.0 + at, "reason": f"reason {at}"}) + "\n" for at in (1, 5)))
    paths.worker_log.write_text(
        printed("printed 2", 1002) + logged("Checkpoint written", 1004, step=7) + printed("printed 6", 1006)
    )
    paths.supervisor_log.write_text(
        logged("GPU probe given up", 1003, why="it hung") + logged("Dropped a frame", 1008, number=1)
    )
    return paths.state


@pytest.mark.parametrize(
    "line",
    [
        b'{"at":1e300,"event":"x"}',
        b'{"at":' + b"9" * 400 + b',"event":"x"}',
        b'{"at":-1,"event":"x"}',
        b'{"at":253402300800,"event":"x"}',
        b'{"at":5,"event":{"a":1},"step":' + b"9" * 400 + b"}",
        b'{"at":5,"event":null,"action":[1],"reason":{},"result":7}',
        b"[" * 5000,
    ],
)
def test_an_absurd_line_of_the_ledger_breaks_nothing(line: bytes) -> None:
    """Found by hand and by changed documents: a date beyond all calendars, what is no text, nesting without end."""
    paths = a_run()
    paths.ledger.write_bytes(b'{"at":1700000000,"event":"before"}\n' + line + b'\n{"at":1700000001,"event":"after"}\n')
    done = memsup("logs", "--events")
    assert done.returncode == 0, done
    assert "before" in done.stdout
    assert "after" in done.stdout
    assert memsup("logs", "--json", "--since", "2020-01-01").returncode == 0


def test_all_logs_are_one_stream_in_time_order() -> None:
    """Each line with its time and where it comes from; the last lines are the last of all, not of each."""
    a_night()
    stream = memsup("logs", TZ="UTC").stdout.splitlines()
    assert [line[:28].rstrip() for line in stream] == [
        "01-01 00:16:41  rung",
        "01-01 00:16:42  worker",
        "01-01 00:16:43  supervisor",
        "01-01 00:16:44  worker",
        "01-01 00:16:45  rung",
        "01-01 00:16:46  worker",
        "01-01 00:16:48  supervisor",
    ]
    assert stream[2].endswith("  warning: GPU probe given up: why it hung")
    assert stream[3].endswith("  warning: Checkpoint written: step 7")
    assert stream[5].endswith("  printed 6")
    assert memsup("logs", "-n", "3", TZ="UTC").stdout.splitlines() == stream[-3:]
    documents = [json.loads(line) for line in memsup("logs", "--json").stdout.splitlines()]
    assert [document["log"] for document in documents] == [
        "events",
        "worker",
        "supervisor",
        "worker",
        "events",
        "worker",
        "supervisor",
    ]
    assert documents[1] == {"log": "worker", "line": "printed 2", "at": 1002.0, "event": None}
    assert documents[3]["event"]["step"] == 7


def test_each_log_can_be_had_alone() -> None:
    """What a program printed then stands there as it would have without memsup."""
    a_night()
    assert memsup("logs", "--worker", TZ="UTC").stdout == (
        "printed 2\n01-01 00:16:44  warning: Checkpoint written: step 7\nprinted 6\n"
    )
    assert memsup("logs", "--supervisor", "-n", "1", TZ="UTC").stdout == "01-01 00:16:48  warning: Dropped a frame: number 1\n"
    assert [line[16:20] for line in memsup("logs", "--events").stdout.splitlines()] == ["rung", "rung"]
    assert memsup("logs", "-n", "0").stdout == ""


def test_an_exception_keeps_its_lines() -> None:
    """The traceback follows its event, and cannot drive the terminal either."""
    paths = a_run()
    paths.supervisor_log.write_text(logged("Error in the supervisor itself", 1000, exception="Traceback:\n  File\x1b[2J"))
    lines = memsup("logs", "--supervisor", TZ="UTC").stdout.splitlines()
    assert lines == [
        "01-01 00:16:40  warning: Error in the supervisor itself",
        " " * 16 + "Traceback:",
        " " * 16 + "  File�[2J",
    ]


def test_logs_from_before_there_were_json_lines_are_shown() -> None:
    """Lines that begin with a date, as both processes wrote them, have their place; the others come after the one before."""
    paths = a_run()
    paths.ledger.write_text(json.dumps(EVENT | {"at": 1002.5}) + "\n")
    paths.worker_log.write_text(
        "1970-01-01 00:16:42.100 INFO Checkpoint\nloss 0.5\n1970-01-01 00:16:43.000 INFO Leaving\nhalf a li"
    )
    paths.supervisor_log.write_text("1970-01-01 00:16:44,200 end: finished\n")
    stream = memsup("logs", TZ="UTC").stdout.splitlines()
    in_order = ("Checkpoint", "loss", "91 %", "Leaving", "finished", "half a li")
    assert len(stream) == len(in_order)
    assert all(word in line for word, line in zip(in_order, stream, strict=True))


def test_a_torn_line_of_the_ledger_is_null() -> None:
    """And no traceback; on a terminal it is left out."""
    paths = a_run()
    paths.ledger.write_text(json.dumps(EVENT) + '\n{"torn": tr\n')
    assert [json.loads(line) for line in memsup("logs", "--events", "--json").stdout.splitlines()] == [
        {"log": "events", "event": EVENT},
        {"log": "events", "event": None},
    ]
    assert memsup("logs", "--events").stdout.count("\n") == 1


def test_since_takes_what_came_from_then_on_through_all_parts_of_every_log() -> None:
    """Minutes ago or a local time, in the reader's time zone; the lines of older parts come first, torn ones not at all."""
    paths, now = a_run(), time.time()
    ago_s = {"ledger.2.jsonl": (9000, 7500), "ledger.1.jsonl": (7000, 3500), "ledger.jsonl": (1700, 20)}
    for name, ages in ago_s.items():
        lines = [json.dumps(EVENT | {"at": now - age_s, "reason": f"{age_s} s ago"}) + "\n" for age_s in ages]
        (paths.state / name).write_text("".join(lines))
    with paths.ledger.open("a") as file:
        file.write('{"torn": tr\n')
    paths.worker_log.write_text(printed("printed", now - 8000) + printed("printed too", now - 30))
    paths.supervisor_log.write_text(logged("given up", now - 4000))

    def told(*arguments: str, **environment: str) -> list[str]:
        done = memsup("logs", "--json", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        return [document["event"]["reason"] if document["log"] == "events" else document["line"] for document in documents]

    assert told("--events", "--since", "2h") == ["7000 s ago", "3500 s ago", "1700 s ago", "20 s ago"]
    assert told("--since", "30m") == ["1700 s ago", "printed too", "20 s ago"]
    assert told("--since", "1h30m") == ["warning: given up", "3500 s ago", "1700 s ago", "printed too", "20 s ago"]
    assert told("--since", "1h30m", "-n", "2") == ["printed too", "20 s ago"]
    assert told("--worker", "--since", "3h") == ["printed", "printed too"]
    assert told("--supervisor", "--since", "2h") == ["warning: given up"]
    for zone in ("UTC", "Asia/Shanghai"):
        then = datetime.fromtimestamp(now - 5000, ZoneInfo(zone))
        for when in (f"{then:%Y-%m-%d %H:%M}", f"{then:%H:%M}", f"{then:%Y-%m-%dT%H:%M:%S}"):
            assert told("--events", "--since", when, TZ=zone) == ["3500 s ago", "1700 s ago", "20 s ago"], (zone, when)
    assert len(told("--events", "--since", f"{datetime.fromtimestamp(now - 2 * 86400, ZoneInfo('UTC')):%Y-%m-%d}")) == 6
    assert "(20 s ago)" in memsup("logs", "--since", "2m").stdout
    for arguments, what in ((["--events"], "decision"), ([], "line")):
        quiet = memsup("logs", "--since", "2s", *arguments)
        assert (quiet.returncode, quiet.stdout) == (0, "")
        assert quiet.stderr.startswith(f"No {what} since 2")


@pytest.mark.parametrize("when", ["yesterday", "25:00", "2h ago", "2026-13-01", "-5m", "auto", "", "99999999999999d"])
def test_a_time_that_is_none_is_refused_in_a_sentence(when: str) -> None:
    """Exit 2, what was written, and what could be."""
    a_night()
    refused = memsup("logs", "--events", f"--since={when}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"memsup: --since {when!r} is no time: write how long ago (2h, 30m), a time (06:30), a date (2026-05-12) or both "
        "('2026-05-12 22:00').\n"
    )


def test_since_is_refused_for_the_future() -> None:
    a_night()
    future = memsup("logs", "--since", "2999-01-01")
    assert (future.returncode, future.stderr) == (2, "memsup: --since '2999-01-01' is still to come.\n")


def test_follow_goes_on_where_since_ended() -> None:
    """No line is told twice."""
    paths = a_run()
    first, second = (json.dumps(EVENT | {"at": time.time(), "reason": reason}) + "\n" for reason in ("first", "second"))
    paths.ledger.write_text(first)
    lock = Lock(paths)
    following = subprocess.Popen([*MEMSUP, "logs", "-f", "--since", "1h", "--json"], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    try:
        assert json.loads(following.stdout.readline())["event"]["reason"] == "first"
        with paths.ledger.open("a") as file:
            file.write(second)
        assert json.loads(following.stdout.readline())["event"]["reason"] == "second"
    finally:
        lock.release()
        assert following.communicate(timeout=30)[0] == ""
    assert following.returncode == 0


def test_following_ends_when_the_run_does_and_shows_what_came_last() -> None:
    """All that was written before the supervisor let go of the run, a line without an end too."""
    paths = a_run()
    paths.worker_log.write_text(printed("first", time.time()))
    lock = Lock(paths)
    following = subprocess.Popen([*MEMSUP, "logs", "-f", "--worker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert following.stdout.readline() == "first\n"
    with paths.worker_log.open("a") as file:
        file.write(printed("last", time.time()) + "no newline")
    lock.release()
    out, err = following.communicate(timeout=30)
    assert out == "last\nno newline\n"
    assert "no supervisor any more" in err
    assert following.returncode == 0


def test_what_runs_does_not_wait_for_who_follows_what_does_not_run() -> None:
    """Without a supervisor there is nothing to wait for: the last lines, and the end."""
    a_night()
    done = memsup("logs", "-f", "-n", "1")
    assert done.returncode == 0
    assert done.stdout.endswith("Dropped a frame: number 1\n")


def test_an_unknown_run_is_exit_4_and_a_young_one_is_told() -> None:
    """No log yet is no error."""
    unknown = memsup("logs", "--run", "nobody")
    assert unknown.returncode == 4
    assert "memsup start --run nobody" in unknown.stderr
    a_run()
    young = memsup("logs")
    assert young.returncode == 0
    assert "worker.log does not exist yet" in young.stderr
    assert "supervisor.log" not in young.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    """Memsup logs | head"""
    a_night()
    done = subprocess.run(
        ["sh", "-c", '"$@" logs -n 100 | head -n 1', "sh", *MEMSUP], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1


def test_follow_goes_through_truncation_rotation_and_late_birth() -> None:
    """What `tail -F` does, without waking a hundred times a second."""
    paths = a_run()
    lock = Lock(paths)
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
        lock.release()
        following.communicate(timeout=30)


def test_ctrl_c_ends_following_without_a_traceback() -> None:
    """Exit 130, as shells expect."""
    import signal

    lock = Lock(run_paths(a_night().name))
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
    eventually(lambda: "Dropped a frame" in following.stdout.readline())
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=30)
    lock.release()
    assert following.returncode == 130
    assert "Traceback" not in err


lines = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30)


@given(lines, lines, st.integers(0, 40), st.integers(1, 60))
def test_no_line_is_lost_or_told_twice(before: list[bytes], after: list[bytes], wanted: int, piece: int) -> None:
    """However the writes are cut, `last` and then `more` give every completed line once."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        tail = GrowingFile(path)
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
    tail = GrowingFile(path)
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
    assert GrowingFile(path).last(2) == [b"last but one", b"last"]


def test_a_log_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Neither leads us elsewhere nor makes us wait."""
    import os

    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    assert GrowingFile(tmp_path / "link").last(5) == []
    assert GrowingFile(tmp_path / "pipe").last(5) == []


@given(st.binary(), st.booleans())
def test_worker_output_cannot_drive_the_terminal(line: bytes, alone: bool) -> None:
    """Escape sequences, carriage returns and bytes that are no UTF-8, in a log of before and in one of now."""
    wrapped = json.dumps({"time": "2026-05-12T04:31:22.123Z", "event": line.decode(errors="replace")}).encode()
    for text in (line, wrapped):
        assert not any(obeyed(part) or "\n" in part for part in readable("worker", log_line(text), alone=alone))
        told = event_line(ledger_line(text)) or ""
        assert not obeyed(told)
        assert "\n" not in told


def test_a_postmortem_of_several_sentences_is_one_readable_line() -> None:
    line = json.dumps({"at": 0, "event": "postmortem", "reason": "It died.", "result": "First.\nSecond."}).encode()
    assert str(event_line(ledger_line(line))).endswith("It died. → First. / Second.")


def test_a_progress_bar_shows_its_last_state() -> None:
    """Tqdm redraws one line with carriage returns."""
    assert readable("worker", log_line(b" 10%|#    |\r 50%|###  |\r100%|#####|\r"), alone=True) == ["100%|#####|"]
