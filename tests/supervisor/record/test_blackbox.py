"""The black box keeps the last half hour whatever happens to the machine, and believes no torn block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.record.blackbox import (
    BLOCK_BYTES,
    BLOCKS,
    BlackBox,
    Facts,
    Frame,
    Heat,
    Mark,
    Memory,
    block,
    read_blackbox,
    unpack,
)

BOOT = "0b4f3b5c-6f2e-4d38-9c5d-0123456789ab"
FACTS = Facts(state="running", phase="training", step=12, limit_mib=4096, heats=(Heat(index=0, celsius=71.0, slowdown_c=96.0),))


def reading(at_s: float, worker_bytes: int = 2**30) -> MemoryReading:
    return MemoryReading(
        at_s=at_s, ram_total_bytes=2**34, ram_available_bytes=2**33, worker_bytes=worker_bytes, pressure_fraction=0.25
    )


def test_what_was_flushed_is_read_back(tmp_path: Path) -> None:
    """Readings, facts and times of every second, in order."""
    box = BlackBox(tmp_path / "box", BOOT)
    box.facts = FACTS
    for second in range(1, 6):
        for tenth in range(10):
            box.note(reading(second + tenth / 10 - 0.95))
        box.flush(float(second), 1000.0 + second)
    history = read_blackbox(tmp_path / "box")
    assert [frame.at for frame in history.frames] == [1001, 1002, 1003, 1004, 1005]
    last = history.last
    assert last is not None
    assert (last.boot, last.pid, last.facts, last.total_mib) == (BOOT, os.getpid(), FACTS, 2**14)
    assert last.trace[-1] == Memory(50, 1024, 8192, 0.25)
    assert len(last.trace) == 10
    assert history.broken == 0


def test_a_hundred_readings_a_second_are_thinned_and_the_latest_is_kept(tmp_path: Path) -> None:
    """A burst fills no memory, and its last reading is in the frame."""
    box = BlackBox(tmp_path / "box", BOOT)
    for i in range(100):
        box.note(reading(10 + i / 100, worker_bytes=i << 20))
    box.flush(11.0, 0.0)
    last = read_blackbox(tmp_path / "box").last
    assert last is not None
    assert 10 <= len(last.trace) <= 11
    assert [m.worker_mib for m in last.trace[:3]] == [9, 19, 29]
    assert last.trace[-1].worker_mib == 99


def test_a_scribe_that_is_stuck_costs_no_memory(tmp_path: Path) -> None:
    """Nobody flushes for an hour: the newest readings are kept, not all."""
    box = BlackBox(tmp_path / "box", BOOT)
    for i in range(36_000):
        box.note(reading(i / 10, worker_bytes=i << 20))
    box.flush(3600.0, 0.0)
    last = read_blackbox(tmp_path / "box").last
    assert last is not None
    assert last.trace[-1].worker_mib == 35_999


def test_the_ring_has_a_fixed_size_and_forgets_the_oldest(tmp_path: Path) -> None:
    """After more than half an hour the file is as large as before and holds the last half hour."""
    path = tmp_path / "box"
    box = BlackBox(path, BOOT)
    for second in range(BLOCKS + 10):
        box.flush(float(second), float(second))
    assert path.stat().st_size == BLOCKS * BLOCK_BYTES
    frames = read_blackbox(path).frames
    assert [frames[0].at, frames[-1].at, len(frames)] == [10, BLOCKS + 9, BLOCKS]


def test_a_new_life_goes_on_behind_the_old_one(tmp_path: Path) -> None:
    """What the earlier supervisor left can still be read after the new one has begun."""
    first = BlackBox(tmp_path / "box", BOOT)
    first.flush(1.0, 1.0)
    second = BlackBox(tmp_path / "box", "another")
    second.flush(2.0, 2.0, Mark.START)
    assert [frame.mark for frame in read_blackbox(tmp_path / "box").frames] == [None, Mark.START]


def test_a_clean_end_is_marked(tmp_path: Path) -> None:
    """And says why."""
    box = BlackBox(tmp_path / "box", BOOT)
    box.flush(1.0, 1.0)
    box.close_cleanly(2.0, 2.0, "stopped by the user" + "!" * 500)
    last = read_blackbox(tmp_path / "box").last
    assert last is not None
    assert last.mark == Mark.CLEAN
    assert (last.reason or "").startswith("stopped by the user")


words = st.text(max_size=700)
mib = st.one_of(st.none(), st.integers(0, 2**40))
memories = st.builds(Memory, st.integers(0, 65_535), mib, mib, st.one_of(st.none(), st.floats(0, 1)))
heats = st.builds(Heat, index=st.integers(-1, 64), celsius=st.one_of(st.none(), st.floats(0, 200)), used_mib=mib)
facts = st.builds(
    Facts, state=words, phase=st.one_of(st.none(), words), step=mib, heats=st.lists(heats, max_size=12).map(tuple)
)
frames = st.builds(
    Frame,
    boot=words,
    at=st.floats(0, 1e10),
    mono=st.floats(0, 1e10),
    pid=st.integers(0, 2**22),
    mark=st.one_of(st.none(), words),
    reason=st.one_of(st.none(), words),
    facts=st.one_of(st.none(), facts),
    trace=st.lists(memories, max_size=30).map(tuple),
)


@given(st.integers(0, 2**47), frames)
def test_every_frame_fits_its_block(number: int, frame: Frame) -> None:
    """However much is to be said, a block has the size of a sector; the last reading goes last."""
    raw = block(number, frame)
    assert len(raw) == BLOCK_BYTES
    found = unpack(raw)
    assert found is not None
    assert found[0] == number


@given(frames, st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255))
def test_a_flipped_bit_is_noticed(frame: Frame, position: int, flip: int) -> None:
    """Anywhere in what was written; behind it there is only padding."""
    raw = bytearray(block(7, frame))
    raw[position] ^= flip
    found = unpack(bytes(raw))
    assert found is None or found == unpack(block(7, frame))


@settings(max_examples=50)
@given(st.binary(max_size=4 * BLOCK_BYTES))
def test_garbage_is_no_history(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    """Whatever a bad disk left in the file: no exception, no invented frame, and a new box works in it."""
    path = tmp_path_factory.mktemp("box") / "box"
    path.write_bytes(garbage)
    assert read_blackbox(path).frames == ()
    box = BlackBox(path, BOOT)
    box.flush(1.0, 2.0)
    assert [frame.at for frame in read_blackbox(path).frames] == [2.0]
    box.close_cleanly(2.0, 3.0, "the test is over")


def test_a_block_torn_by_a_power_cut_is_left_out(tmp_path: Path) -> None:
    """Half old, half new: counted, not believed; its neighbours stand."""
    path = tmp_path / "box"
    box = BlackBox(path, BOOT)
    box.facts = FACTS
    for second in range(3):
        box.flush(float(second), float(second))
    with open(path, "r+b") as file:
        file.seek(2 * BLOCK_BYTES + 60)
        file.write(b"\xff" * 200)
    history = read_blackbox(path)
    assert [frame.at for frame in history.frames] == [0, 1]
    assert history.broken == 1


def test_a_number_of_the_far_future_does_not_stop_the_box(tmp_path: Path) -> None:
    """A whole block with an absurd number, as only somebody's hand writes it."""
    path = tmp_path / "box"
    path.write_bytes(block(2**64 - 1, Frame(boot=BOOT, at=1.0, mono=1.0, pid=1)))
    box = BlackBox(path, BOOT)
    box.flush(1.0, 5.0)
    assert 5.0 in [frame.at for frame in read_blackbox(path).frames]


def test_no_file_is_no_history_and_a_link_is_not_followed(tmp_path: Path) -> None:
    """Missing is ordinary; a link in its place is refused for writing and read as nothing."""
    assert read_blackbox(tmp_path / "none").frames == ()
    target = tmp_path / "target"
    target.write_bytes(block(0, Frame(boot=BOOT, at=1.0, mono=1.0, pid=1)))
    (tmp_path / "link").symlink_to(target)
    assert read_blackbox(tmp_path / "link").frames == ()
    with pytest.raises(OSError, match="symbolic"):
        BlackBox(tmp_path / "link", BOOT)


FLUSHER = """
import sys, time
from pathlib import Path
from memsup.supervisor.record.blackbox import BlackBox
box = BlackBox(Path(sys.argv[1]), "b")
second = 0
while True:
    box.flush(float(second), float(second))
    print(second, flush=True)
    second += 1
"""


def test_kill_9_loses_no_frame_that_was_flushed(tmp_path: Path) -> None:
    """A process killed while it writes at full speed: everything that it reported as flushed is there, and nothing is torn."""
    path = tmp_path / "box"
    process = subprocess.Popen([sys.executable, "-c", FLUSHER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + 60
        while int(process.stdout.readline() or 200) < 200:
            assert time.monotonic() < deadline
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
    reported = int(([*rest.splitlines()] or ["200"])[-1])
    history = read_blackbox(path)
    assert history.broken == 0
    assert history.last is not None
    assert history.last.at >= reported
