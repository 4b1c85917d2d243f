"""A fake of CUDA's driver library for tests: programs that have memory on a card, and the calls that move it into RAM and back.

`build` compiles it, `FakeLibcuda` says how its calls fail, and `write_program` makes a program that computes on it. The product
is not told: it finds the library as it finds NVIDIA's. The layout below is that of `fake_libcuda.c`.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
from pathlib import Path

from kit.fake_nvml import compiled

SOURCE = Path(__file__).with_name("fake_libcuda.c")
SLOTS, SLOT_BYTES, MOST_PROGRAMS = 64, 64 << 10, 8
NOT_SUPPORTED, OUT_OF_MEMORY = 801, 2


class Operation(enum.IntEnum):
    LOCK = 1
    CHECKPOINT = 2
    RESTORE = 3
    UNLOCK = 4


class State(enum.IntEnum):
    RUNNING = 0
    LOCKED = 1
    CHECKPOINTED = 2
    FAILED = 3


class Program(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ["pid", "state", "asked", "result", "calls"]]


class Control(ctypes.Structure):
    _fields_ = [
        ("result", ctypes.c_double * 5),
        ("hangs", ctypes.c_double * 5),
        ("crashes", ctypes.c_double * 5),
        ("breaks", ctypes.c_double * 5),
        ("entangled", ctypes.c_double),
        ("slot_bytes", ctypes.c_double),
        ("owner", ctypes.c_double * SLOTS),
        ("done", ctypes.c_double * 5),
        ("program", Program * MOST_PROGRAMS),
    ]


class FakeLibcuda:
    """The card and its driver. A slot of 64 KiB counts for 256 MiB on the NVML device, if there is one."""

    def __init__(self, library_folder: Path, folder: Path) -> None:
        self._library_folder, self._file, self._card = library_folder, folder / "libcuda.control", folder / "libcuda.card"
        self._file.write_bytes(bytes(ctypes.sizeof(Control)))
        self._card.write_bytes(bytes(SLOTS * SLOT_BYTES))
        with self._file.open("r+b") as file:
            self.control = Control.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(Control)))
        self.control.slot_bytes = 256 << 20

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to find this library instead of NVIDIA's."""
        return {
            "LD_LIBRARY_PATH": str(self._library_folder),
            "FAKE_LIBCUDA": str(self._file),
            "FAKE_LIBCUDA_CARD": str(self._card),
        }

    @property
    def programs(self) -> list[Program]:
        """Those that have had memory on the card, the first one first."""
        return [program for program in self.control.program if program.pid]

    def states(self) -> list[State]:
        return [State(int(program.state)) for program in self.programs]


def build(folder: Path, *extra: str) -> Path:
    """Compiles the library into `folder`, which is what LD_LIBRARY_PATH must name. Raises `subprocess.CalledProcessError`."""
    return compiled(SOURCE, folder / "libcuda.so.1", "-pthread", *extra)


PROGRAM = """
import ctypes, hashlib, os, sys, time

cuda = ctypes.CDLL("libcuda.so.1")
steps, processes, slots = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
which = 0
for child in range(1, processes):
    if which == 0 and os.fork() == 0:
        which = child
assert cuda.cuInit(0) == 0
at, words = ctypes.c_uint64(), slots * (64 << 10) // 4
assert cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(4 * words)) == 0
for step in range(steps):
    if which == 0:
        with open("step.new", "w") as file:
            file.write(str(step))
        os.replace("step.new", "step")
    cuda.fakeStep(at, ctypes.c_size_t(min(words, 4096)), 31 * which + step)
    time.sleep(float(os.environ.get("STEP_S", "0.01")))
    if os.path.exists("enough"):
        break
out = ctypes.create_string_buffer(4 * words)
assert cuda.cuMemcpyDtoH_v2(out, at, ctypes.c_size_t(4 * words)) == 0
os.write(1, f"digest {step} {hashlib.sha256(out.raw).hexdigest()}\\n".encode())  # in one piece, since others write there too
for child in range(1, processes if which == 0 else 1):
    os.wait()
"""


def write_program(folder: Path) -> Path:
    """A program that computes on the card: STEPS, PROCESSES and SLOTS are its arguments. It prints what it has come to."""
    file = folder / "on_the_card.py"
    file.write_text(PROGRAM, encoding="utf-8")
    return file
