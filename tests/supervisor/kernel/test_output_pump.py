"""The output pump: the beginning and the end of what a program prints are kept, and nothing makes the program wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cli_process import a_run, eventually
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.shared.paths import RunPaths
from memsup.supervisor.fence.output import OutputPump
from memsup.supervisor.kernel import output_pump
from memsup.supervisor.kernel.output_pump import AFTER_HEAD, LEFT_OUT, Files, Lines, Queue, end_file
from memsup.supervisor.record.output import Line, worker_log

PUMP = [sys.executable, "-I", "-S", output_pump.__file__]


@pytest.fixture
def paths() -> RunPaths:
    return a_run()


def lines_of(paths: RunPaths) -> list[Line]:
    return list(worker_log(paths).all())


def texts_of(paths: RunPaths) -> list[str]:
    return [line.text for line in lines_of(paths)]


def pump(paths: RunPaths, text: bytes) -> None:
    subprocess.run([*PUMP, str(paths.worker_log), paths.name], input=text, check=True, timeout=60)


def test_a_line_becomes_an_event_with_its_time(paths: RunPaths) -> None:
    """Quotes, control characters and what is no UTF-8 make no difference to the file, which only its owner may read."""
    before_s = time.time()
    pump(paths, b'plain\n"quoted" \\ \x1b[2J\ttab\n\n\xe4\xbd\xa0\xe5\xa5\xbd \xff\nno newline')
    lines = lines_of(paths)
    assert [line.text for line in lines] == ["plain", '"quoted" \\ \x1b[2J\ttab', "", "你好 �", "no newline"]
    assert all(line.at_unix_s is not None and before_s - 0.01 <= line.at_unix_s <= time.time() for line in lines)
    assert {json.loads(line)["run"] for line in paths.worker_log.read_bytes().splitlines()} == {"default"}
    assert oct(paths.worker_log.stat().st_mode & 0o777) == "0o600"


def test_an_event_of_ours_is_kept_as_it_is(paths: RunPaths) -> None:
    event = b'{"time":"2026-05-12T04:31:22.123Z","level":"info","event":"Leaving","run":"default","reason":"SIGTERM"}\n'
    pump(paths, b"before\n" + event + b"after\n")
    assert paths.worker_log.read_bytes().splitlines(keepends=True)[1] == event
    assert texts_of(paths) == ["before", "Leaving: reason SIGTERM", "after"]


pieces = st.lists(st.binary(min_size=1, max_size=60) | st.sampled_from([b"\n", b"a\n", b"\xe4\xbd", b"\xa0\n"]), max_size=20)


@given(pieces)
def test_however_the_output_comes_its_lines_are_the_same(cut: list[bytes]) -> None:
    """Pieces of a pipe know nothing of lines and characters."""
    whole, parts = Lines("r"), Lines("r")
    text = b"".join(cut)
    assert b"".join(parts.take(0.0, piece) for piece in cut) + parts.end(0.0) == whole.take(0.0, text) + whole.end(0.0)


@given(st.binary(max_size=200))
def test_every_byte_that_is_printed_can_be_read_again(text: bytes) -> None:
    lines = Lines("r")
    made = lines.take(0.0, text + b"\n")
    assert [json.loads(line)["event"] for line in made.splitlines()] == text.decode(errors="replace").split("\n")


def test_a_line_that_has_not_ended_is_told_after_a_pause_and_once() -> None:
    """A question, say; what follows on the same line is told as another one, and a newline alone adds none."""
    lines = Lines("r")
    assert lines.take(0.0, b"Continue? ") == b""
    assert b'"Continue? "' in lines.pause(0.0, 1.0)
    assert lines.pause(0.0, 2.0) == b""
    assert lines.take(0.0, b"\n") == b""
    lines.take(0.0, b"Loading ")
    lines.pause(0.0, 3.0)
    assert [json.loads(line)["event"] for line in lines.take(0.0, b"done\n").splitlines()] == ["done"]


def test_a_progress_bar_does_not_fill_the_log() -> None:
    """Drawn over itself for ten minutes, twice a second."""
    lines, told = Lines("r"), b""
    for half_s in range(1200):
        told += lines.take(0.0, f"\r{half_s / 12:.0f}%|####".encode()) + lines.pause(0.0, half_s / 2)
    assert 15 <= told.count(b"\n") <= 25
    last = json.loads((lines.take(0.0, b"\r100%|####\n")).splitlines()[-1])["event"]
    assert last.rpartition("\r")[2] == "100%|####"


def test_a_line_without_end_is_cut_between_characters() -> None:
    """Memory and lines stay small, and no letter is broken."""
    lines = Lines("r")
    made = b"".join(lines.take(0.0, "你".encode() * 5000) for _ in range(100)) + lines.end(0.0)
    events = [json.loads(line)["event"] for line in made.splitlines()]
    assert "".join(events) == "你" * 500_000
    assert max(map(len, made.splitlines())) < 256 << 10


@given(st.lists(st.integers(1, 50), max_size=60), st.data())
def test_the_queue_keeps_the_beginning_and_the_end_and_counts_the_middle(sizes: list[int], data: st.DataObject) -> None:
    """Whatever is taken in between: what comes out is what went in, in order, but for the gaps, whose size is told."""
    queue = Queue(first_bytes=100, last_bytes=100)
    put, taken, at = 0, 0, 0
    for number, size in enumerate(sizes):
        queue.put(float(put), bytes([number]) * size)
        put += size
        if data.draw(st.booleans()):
            found = queue.take(0.0)
            assert found is not None
            at = int(found[0])
            assert at == taken + found[2], "it begins where the last one ended, or the gap"
            taken = at + len(found[1])
    queue.put(0.0, b"")
    while (found := queue.take(0.0)) is not None and found[1]:
        assert int(found[0]) == taken + found[2]
        taken = int(found[0]) + len(found[1])
    assert taken == put, "the end is always there"


@given(st.lists(st.integers(1, 400), max_size=80))
def test_the_files_stay_small_and_keep_both_ends(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """What is not in them was after the beginning, and its size stands in the file of the end."""
    log = str(tmp_path_factory.mktemp("log") / "worker.log")
    files = Files(log, Lines("r"), head_bytes=2_000, end_bytes=1_000)
    texts = [f'{{"n":{number},"x":"{"x" * size}"}}\n'.encode() for number, size in enumerate(sizes)]
    for text in texts:
        files.write(0.0, text)
    for fd in (files._head, files._end):  # the pump's end closes them
        if fd is not None:
            os.close(fd)
    whole = b"".join(texts)
    head = Path(log).read_bytes() if texts else b""
    ends = []
    for file in (Path(end_file(log, 0)), Path(end_file(log, 1))):
        if file.exists():
            first, _, rest = file.read_bytes().partition(b"\n")
            ends.append((json.loads(first)[AFTER_HEAD], rest))
            assert len(rest) <= 1_000
    ends.sort()
    assert len(head) <= 2_000
    assert whole.startswith(head)
    end = b"".join(rest for _, rest in ends)
    assert whole.endswith(end)
    left_out = ends[0][0] if ends else 0
    assert len(head) + left_out + len(end) == len(whole)


def test_short_lives_share_a_log_and_a_long_one_is_set_aside(paths: RunPaths) -> None:
    """One generation is kept, with its ends; what is older than JSON lines is set aside as well."""
    pump(paths, b"first\n")
    pump(paths, b"second\n")
    assert texts_of(paths) == ["first", "second"]
    flood = b"".join(b"%07d\n" % number for number in range(600_000))
    pump(paths, flood)
    assert Path(end_file(str(paths.worker_log), 1)).exists()
    pump(paths, b"after the flood\n")
    told = texts_of(paths)
    assert told[:3] == ["first", "second", "0000000"]
    assert told[-2:] == ["0599999", "after the flood"]
    assert sum("left out" in text for text in told) >= 1
    assert [line.text for line in worker_log(paths).last(2)] == ["0599999", "after the flood"]
    assert paths.worker_log.stat().st_size < 1000
    paths.worker_log.write_text("a line from before\n")
    pump(paths, b"a line of now\n")
    assert texts_of(paths) == ["a line from before", "a line of now"]


def test_a_full_disk_makes_nobody_wait_and_is_said_when_there_is_room_again(paths: RunPaths) -> None:
    """A real one, filled to the last byte: the program gets on, and what was lost is counted."""

    def play() -> None:
        a_run()
        log = OutputPump(paths.worker_log, paths.name)
        writing = os.fdopen(log.write_end, "wb", buffering=0)
        writing.write(b"before\n")
        eventually(lambda: texts_of(paths) == ["before"])
        ballast = fill(paths.state)
        lost = b"x" * 63 + b"\n"
        for _ in range(200_000):
            writing.write(lost)
        ballast.unlink()
        writing.write(b"after\n")
        writing.close()
        eventually(lambda: log.step(time.monotonic()))
        lines = [json.loads(line) for file in paths.state.glob("worker.log*") for line in file.read_bytes().splitlines()]
        assert sum(line.get(LEFT_OUT, 0) for line in lines) > 0
        assert texts_of(paths)[0] == "before"
        assert texts_of(paths)[-1] == "after"

    on_a_small_disk(paths.state, 32 * MIB, play)  # as JSON lines, what waited for room takes 18 MiB


def test_a_pump_that_stands_still_costs_no_output_and_a_dead_one_is_replaced(paths: RunPaths) -> None:
    """The program keeps printing into the same pipe, and never finds it closed."""
    log = OutputPump(paths.worker_log, paths.name)
    first = log._child.pid
    writing = os.fdopen(log.write_end, "wb", buffering=0)
    os.kill(first, signal.SIGSTOP)
    writing.write(b"while it stands\n")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: log.step(time.monotonic()) or log._child.pid != first)
    writing.write(b"afterwards\n")
    eventually(lambda: texts_of(paths) == ["while it stands", "afterwards"])
    writing.close()
    eventually(lambda: log.step(time.monotonic()))


def test_it_outlives_who_started_it_and_ends_with_the_last_that_could_print(paths: RunPaths) -> None:
    """The supervisor is killed; what the worker says while it saves and leaves is not lost."""
    code = (
        "import os, sys; from pathlib import Path; from memsup.supervisor.fence.output import OutputPump; "
        f"pump = OutputPump(Path({str(paths.worker_log)!r}), 'default'); "
        "worker = os.fork(); "
        "sys.stdin.read() if worker == 0 else None; "
        "os.write(pump.write_end, b'last words\\n') if worker == 0 else print(pump._child.pid, flush=True); "
        "os._exit(0) if worker == 0 else os.kill(os.getpid(), 9)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    assert supervisor.stdin is not None
    pid = int(supervisor.stdout.readline())
    assert supervisor.wait(30) == -signal.SIGKILL
    assert Path(f"/proc/{pid}").exists()
    supervisor.stdin.close()
    eventually(lambda: texts_of(paths) == ["last words"])
    eventually(lambda: not Path(f"/proc/{pid}").exists() or b"\0" not in Path(f"/proc/{pid}/cmdline").read_bytes())
    supervisor.stdout.close()


def test_a_log_that_is_a_link_is_refused(paths: RunPaths, tmp_path: Path) -> None:
    """Nothing is written where somebody else wants it."""
    paths.worker_log.symlink_to(tmp_path / "elsewhere")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="symbolic link"):
        OutputPump(paths.worker_log, paths.name)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 1, "pipes and pidfds are given back"
