"""The black box: the last half hour of readings in a ring of fixed size on disk, which survives the death of the machine.

Once a second one *frame* is written and flushed, so a power cut loses a second at most. A frame holds what was so at that
second and a trace of the memory readings within it. Every frame has a number and a checksum: a torn or foreign block is
recognised and left out, whatever it holds. The main loop only notes (`note`, memory only, never blocks); writing is the
scribe thread's (`flush`). What the frames mean is judged in `postmortem.py`.

What it costs a disk. A frame is one sector of 512 bytes, written past the page cache (O_DIRECT), since through it the kernel
writes a page of 4 KiB each time. The file's size never changes and its blocks were written once beforehand, so that a flush
finds no metadata to write; only the file's date joins ext4's journal every five seconds. Measured on ext4 with all of that
(benchmarks/blackbox_writes.py): 202 MB a day. A drive of 1 TB is commonly rated for 600 TB in five years, 329 GB a day, so this
is 0.06 % of what it may write. Where sectors cannot be written alone (`writes_sectors`) it is 493 MB, 0.15 %.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from memsup.shared.files import open_regular
from memsup.supervisor.decide.readings import GpuReading, MemoryReading, TemperatureReading, limit_c

BLOCK_BYTES = 512
BLOCKS = 1_800
"""The ring holds half an hour of seconds."""
LEAST_APART_S = 0.099
"""Readings of a trace that come faster than this are left out: ten a second show any runaway."""
_HEAD = struct.Struct("<4sIQH")
"""Magic, checksum of all that follows it, number of the frame, length of its content."""
_MAGIC = b"mbb1"
_MIB = 1 << 20
_ABSURD_NUMBER = 1 << 48
"""No ring has lived for so many seconds: such a number is garbage."""


class Mark:
    """What a frame says besides its readings."""

    START = "start"
    """A supervisor begins."""
    CLEAN = "clean"
    """A supervisor ends in good order; `reason` says why."""


class Heat(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One GPU, or, with index -1, the hottest other sensor."""

    index: int
    celsius: float | None = None
    slowdown_c: float | None = None
    shutdown_c: float | None = None
    power_w: float | None = None
    used_mib: int | None = None
    lost: bool = False


class Facts(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What changes slowly, noted about once a second."""

    state: str
    phase: str | None = None
    worker_pid: int | None = None
    step: int | None = None
    ticks: int | None = None
    """What the worker's main thread has finished, which stands still in a hang."""
    rung: int | None = None
    limit_mib: int | None = None
    disk_free_mib: int | None = None
    """Free space where the run's state lies. It is None in files of versions that did not note it."""
    checkpoint_step: int | None = None
    checkpoint_unix_s: float | None = None
    loop_stall_s: float | None = None
    """The longest time by which the supervisor's own loop came too late since it started."""
    heats: tuple[Heat, ...] = ()


class Memory(msgspec.Struct, array_like=True, frozen=True):
    """One reading of a trace, `ago_ms` before its frame."""

    ago_ms: int
    worker_mib: int | None
    available_mib: int | None
    pressure: float | None


class Frame(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One second: what was so, and a trace of the memory readings within it."""

    boot: str
    at: float
    """The Unix time in seconds."""
    mono: float
    pid: int
    """The supervisor's process."""
    mark: str | None = None
    reason: str | None = None
    total_mib: int | None = None
    swap_free_mib: int | None = None
    fence_oom_kills: int | None = None
    facts: Facts | None = None
    trace: tuple[Memory, ...] = ()
    """The memory readings of this second, oldest first."""


@dataclass(frozen=True)
class Recording:
    """The frames that are whole, oldest first, and how many blocks held something else."""

    frames: tuple[Frame, ...]
    broken: int

    @property
    def last(self) -> Frame | None:
        return self.frames[-1] if self.frames else None


def heat_of_sensor(sensor: TemperatureReading) -> Heat:
    """The hottest sensor that is not a GPU's, as a frame keeps it."""
    return Heat(index=-1, celsius=sensor.celsius, slowdown_c=limit_c(sensor), shutdown_c=sensor.critical_c)


def heat_of(gpu: GpuReading) -> Heat:
    """A GPU as a frame keeps it: in MiB, since a frame has 512 bytes."""
    return Heat(
        index=gpu.index,
        celsius=gpu.temperature_c,
        slowdown_c=gpu.slowdown_c,
        shutdown_c=gpu.shutdown_c,
        power_w=gpu.power_w,
        used_mib=_mib(gpu.used_bytes),
        lost=gpu.lost,
    )


class BlackBox:
    """Opens or makes the ring at `path` and goes on behind what is in it. Raises OSError where there can be none."""

    def __init__(self, path: Path, boot: str) -> None:
        self._boot = boot
        self.facts: Facts | None = None
        """What the next frames say; the main loop sets it whenever it knows better. It is None until the loop has."""
        self._noted: list[MemoryReading] = []
        self._slot_s = 0.0
        """When the last reading of the trace began its tenth of a second."""
        self._sector = mmap.mmap(-1, mmap.PAGESIZE)  # O_DIRECT wants memory at the start of a page
        self._number = 0
        known = [number for number, _ in _blocks(path) if number < _ABSURD_NUMBER]
        self._number = max(known, default=-1) + 1
        _lay_out(path)
        self._fd, self._direct = _open(path)

    @property
    def writes_sectors(self) -> bool:
        """Whether sectors are written. False where the file system wants whole pages, eight times as much."""
        return self._direct

    def note(self, memory: MemoryReading) -> None:
        """Takes a reading, at each look of the main loop. It never blocks."""
        noted = self._noted
        if not noted or memory.at_s - self._slot_s >= LEAST_APART_S:
            self._slot_s = memory.at_s
            noted.append(memory)
            if len(noted) > 20:  # the scribe is busy with a slow disk: the newest are what counts
                del noted[:10]
        else:
            noted[-1] = memory

    def flush(self, now_s: float, unix_s: float, mark: str | None = None, reason: str | None = None) -> None:
        """Writes a frame and waits until it is on the disk; the scribe does it, once a second. Raises OSError."""
        frame = self._frame(now_s, unix_s, mark, reason)
        self._sector[:BLOCK_BYTES] = block(self._number, frame)
        os.pwrite(self._fd, memoryview(self._sector)[:BLOCK_BYTES], self._number % BLOCKS * BLOCK_BYTES)
        os.fdatasync(self._fd)
        self._number += 1

    def close_cleanly(self, now_s: float, unix_s: float, reason: str) -> None:
        """Writes the last frame, which says that nothing died here. To be called when the scribe has ended. Raises OSError."""
        self.flush(now_s, unix_s, Mark.CLEAN, reason[:80])
        os.close(self._fd)

    def _frame(self, now_s: float, unix_s: float, mark: str | None, reason: str | None) -> Frame:
        noted, self._noted = self._noted, []
        last = noted[-1] if noted else None
        return Frame(
            boot=self._boot,
            at=round(unix_s, 3),
            mono=round(now_s, 3),
            pid=os.getpid(),
            mark=mark,
            reason=reason,
            total_mib=_mib(last.ram_total_bytes) if last else None,
            swap_free_mib=_mib(last.swap_free_bytes) if last else None,
            fence_oom_kills=last.fence_oom_kills if last else None,
            facts=self.facts,
            trace=tuple(_traced(reading, now_s) for reading in noted),
        )


def _traced(reading: MemoryReading, now_s: float) -> Memory:
    return Memory(
        max(0, min(65_535, round((now_s - reading.at_s) * 1000))),
        _mib(reading.worker_bytes),
        _mib(reading.ram_available_bytes),
        None if reading.pressure_fraction is None else round(reading.pressure_fraction, 3),
    )


def read_blackbox(path: Path) -> Recording:
    """What the ring holds. Never raises: a missing file, garbage and torn blocks are what a bad death leaves."""
    found: list[tuple[int, Frame]] = []
    broken = 0
    for number, content in _blocks(path):
        try:
            found.append((number, _decoder.decode(content)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            broken += 1
    broken += sum(1 for _ in _torn(path))
    found.sort(key=lambda pair: pair[0])
    return Recording(tuple(frame for _, frame in found), broken)


# --------------------------------------------------------------------------------------------------------------------
# One block

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def block(number: int, frame: Frame) -> bytes:
    """`frame` as exactly `BLOCK_BYTES`. What does not fit is left out: first the trace's oldest, then GPUs, then the words."""
    content = _encoder.encode(frame)
    while len(content) > BLOCK_BYTES - _HEAD.size:
        frame = _shorter(frame)
        content = _encoder.encode(frame)
    rest = struct.pack("<QH", number, len(content)) + content
    return (_MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest).ljust(BLOCK_BYTES, b"\0")


def _shorter(frame: Frame) -> Frame:
    if frame.trace:
        return msgspec.structs.replace(frame, trace=frame.trace[1:])
    if frame.facts is not None and len(frame.facts.heats) > 1:
        heats = frame.facts.heats[:-1]
        return msgspec.structs.replace(frame, facts=msgspec.structs.replace(frame.facts, heats=heats))
    if frame.reason:
        return msgspec.structs.replace(frame, reason=frame.reason[: len(frame.reason) // 2] or None)
    return msgspec.structs.replace(frame, facts=None, boot=frame.boot[:36], mark=frame.mark and frame.mark[:16])


def unpack(raw: bytes) -> tuple[int, bytes] | None:
    """The number and the content of a block. Returns None for anything that is not a whole one."""
    if len(raw) != BLOCK_BYTES:
        return None
    magic, checksum, number, length = _HEAD.unpack_from(raw)
    if magic != _MAGIC or length > BLOCK_BYTES - _HEAD.size or zlib.crc32(raw[8 : _HEAD.size + length]) != checksum:
        return None
    return number, raw[_HEAD.size : _HEAD.size + length]


def _mib(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else size_bytes // _MIB


# --------------------------------------------------------------------------------------------------------------------
# The file


def _content(path: Path) -> bytes:
    try:
        fd, _ = open_regular(path, follow_links=False)
    except OSError:
        return b""
    with os.fdopen(fd, "rb") as file:
        try:
            return file.read(BLOCKS * BLOCK_BYTES)
        except OSError:
            return b""


def _raw(path: Path) -> Iterator[bytes]:
    content = _content(path)
    return (content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES))


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    return (found for raw in _raw(path) if (found := unpack(raw)) is not None)


def _torn(path: Path) -> Iterator[bytes]:
    """The blocks that are neither whole nor unwritten."""
    return (raw for raw in _raw(path) if raw.strip(b"\0") and unpack(raw) is None)


def _lay_out(path: Path) -> None:
    """Makes the file with every block written once, so that a later write changes no metadata that a flush would have to write.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size_bytes = BLOCKS * BLOCK_BYTES
        has_bytes = os.fstat(fd).st_size
        if has_bytes > size_bytes:
            os.ftruncate(fd, size_bytes)
        elif has_bytes < size_bytes:
            has_bytes -= has_bytes % BLOCK_BYTES
            os.pwrite(fd, bytes(size_bytes - has_bytes), has_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(path: Path) -> tuple[int, bool]:
    """The ring for writing, past the page cache where a sector can be written that way (tried on the spot)."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:
        return os.open(path, flags), False
    sector = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        with memoryview(sector)[:BLOCK_BYTES] as first:
            os.preadv(fd, [first], 0)
            os.pwrite(fd, first, 0)
    except OSError:  # drives with sectors of 4 KiB
        os.close(fd)
        return os.open(path, flags), False
    finally:
        sector.close()
    return fd, True
