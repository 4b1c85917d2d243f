"""How long the supervisor's own loop stands still while memory thrashes around it, at the real machine's speed.

    python benchmarks/thrash.py [--seconds 18] [--as root|user] [--left 18]

Needs root and cgroup version 1. In a box of 640 MiB (`boxed.py`) are the supervisor, which guards `sleep`, a program that
nobody guards and that takes all but `--left` MiB, two readers of a file that is larger than that, and a canary that wakes every
10 ms; another canary is outside. Once as root, whose supervisor is locked in memory, and once as user 65534 with 8 MiB to lock,
whose is not. All in the box run a copy of this Python: what is read first by somebody outside is charged to him and would never
be taken back here, and an ordinary user may read it. After 20 s memsup by design ends a command for which there is no room.
TMPDIR must be on a disk. The kernel's own figures show that it thrashed; some kernels leave memory.failcnt at 0 whatever
happens. Prints Markdown. How fast the guard acts is measured by `guard.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import zmq
from boxed import Box, box
from guard import MEMSUP, ms, private_folder

from memsup.shared.endpoints import CONTROL_SOCKET
from memsup.shared.messages import Request, RequestKind, decode_reply, encode
from memsup.supervisor.kernel.cgroups import MemoryUse

BOX_BYTES = 640 << 20
"""The least in which memsup guards a worker: 512 MiB and a reserve of 64 MiB, and some."""
ROOM = ("--set", "limits.ram=512MiB", "--set", "limits.ram_reserve=64MiB")
FILE_BYTES = 320 << 20
TOUCHED_BYTES = 64 << 20
"""Of the file, at random. Little enough that the kernel takes it for pages in use, which drive out those of programs."""
STEP_BYTES = 1 << 20
USER_ID = 65534
USER = [
    *("prlimit", "--memlock=8388608:8388608", "--", "setpriv"),
    *(f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups", "--"),
]
IMPORTED = ("click", "msgspec", "nvidia-ml-py", "platformdirs", "psutil", "pyzmq", "rich", "typing_extensions", "xxhash")
"""By supervisor and command line."""
CANARY = Path(__file__).parent / "survival/case.py"
HOG = """
import mmap, sys, time
from pathlib import Path
from memsup.supervisor.kernel.cgroups import MemoryUse
use, most, step, ones, held = MemoryUse(Path(sys.argv[1]), 1), int(sys.argv[2]), int(sys.argv[3]), b"1" * 256, []
while True:
    now = use.held_bytes()
    if now is None or now + step > most:  # also for a moment, while the kernel moves pages about
        time.sleep(0.01)
        continue
    held.append(mmap.mmap(-1, step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    memoryview(held[-1])[::4096] = ones * (step >> 20)
"""
READER = """
import os
file = os.open(__import__("sys").argv[1], os.O_RDONLY)
buffer, at = bytearray(1 << 17), 0
while True:
    count = os.preadv(file, [buffer], at)
    at = at + count if count else 0
"""
TOUCHER = """
import mmap, os, random, sys
size = int(sys.argv[2])
pages = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), size, prot=mmap.PROT_READ)
pages.madvise(mmap.MADV_RANDOM)
while True:
    pages[random.randrange(size)]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=18)
    parser.add_argument("--as", dest="users", choices=("root", "user"), action="append", help="default: both")
    parser.add_argument("--left", type=int, default=18, metavar="MIB", help="what the foreign program leaves")
    options = parser.parse_args()
    thrash(options.seconds, options.left << 20, options.users or ["root", "user"])


def thrash(seconds: float, left_bytes: int, users: list[str]) -> None:
    print(f"| {seconds:.0f} s of thrashing, {left_bytes >> 20} MiB left of {BOX_BYTES >> 20} MiB | {' | '.join(users)} |")
    print("|---" * (len(users) + 1) + "|", flush=True)
    seen = [thrashed(seconds, left_bytes, USER if user == "user" else []) for user in users]
    for row in seen[0]:
        print(f"| {row} | {' | '.join(one[row] for one in seen)} |")


def thrashed(seconds: float, left_bytes: int, as_user: list[str]) -> dict[str, str]:
    """One column of the table."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder, environment = stack.enter_context(private_folder())
        made = stack.enter_context(box(BOX_BYTES))
        bed = Bed(made, Path(folder), environment, as_user)
        bed.prepare()
        bed.memsup("start", *ROOM, "--", "sleep", "9999")
        stack.callback(bed.memsup, "stop", "--now")
        canaries = [stack.enter_context(bed.canary(inside=inside)) for inside in (True, False)]
        status, _ = ask(bed.control)
        until(lambda: start_up_is_over(bed.control), within_s=25)
        for code, *arguments in ((READER, bed.file), (TOUCHER, bed.file, TOUCHED_BYTES)):
            stack.enter_context(bed.running(code, *arguments))
        for canary in canaries:
            canary.send_signal(signal.SIGUSR1)
        stack.enter_context(bed.running(HOG, made.folder, BOX_BYTES - left_bytes, STEP_BYTES))
        use = MemoryUse(made.folder, 1)
        if not until(lambda: (use.held_bytes() or 0) + 3 * STEP_BYTES > BOX_BYTES - left_bytes, within_s=30):
            sys.exit("the box did not become full")
        begun_s, before, own_before = time.monotonic(), counts(made.folder), own(status["pid"])
        stalls_s, answers_s, states = watch(bed.control, begun_s + seconds)
        took_s, after, own_after = time.monotonic() - begun_s, counts(made.folder), own(status["pid"])
        left_now_bytes = BOX_BYTES - (use.held_bytes() or BOX_BYTES)
        alive = Path(f"/proc/{status['worker_pid']}").exists()
        locked_kib = of_status(status["pid"], "VmLck")
        for canary in canaries:
            canary.terminate()
            canary.wait()
        inside, outside = (json.loads(bed.note(inside=inside).read_text()) for inside in (True, False))

    def per_s(name: str) -> str:
        return f"{(after[name] - before[name]) / took_s:,.0f}"

    return {
        "supervisor's worst stall (goal: at most 250 ms)": ms(max(stalls_s)),
        "canary late by at most, in the box (before)": f"{ms(inside['worst_s'])} ({ms(inside['quiet_s'])})",
        "the same outside": f"{ms(outside['worst_s'])} ({ms(outside['quiet_s'])})",
        "status answered within (median, worst)": f"{ms(statistics.median(answers_s))}, {ms(max(answers_s))}",
        "the command": ("alive" if alive else "ended") + f"; {', then '.join(states)}",
        "supervisor locked in memory": f"{locked_kib / 1024:.1f} MiB",
        "supervisor's major faults": str(own_after["major_faults"] - own_before["major_faults"]),
        "supervisor ran, and waited for a processor": ", ".join(
            f"{own_after[name] - own_before[name]:.2f} s" for name in ("ran_s", "waited_s")
        ),
        "pages of files read again, per s": per_s("total_workingset_refault_file"),
        "folios brought in, taken back, per s": f"{per_s('total_pgpgin')}, {per_s('total_pgpgout')}",
        "major faults, per s": per_s("total_pgmajfault"),
        "the box at its fullest": f"{after['most_bytes'] / 2**20:.0f} MiB; memory.failcnt {after['failcnt']}",
        "at the end the foreign program left": f"{left_now_bytes / 2**20:.1f} MiB",
        "killed by the kernel": str(after["oom_kill"]),
        "processor time that the host took": f"{after['steal_ticks'] - before['steal_ticks']} ticks",
        "load average of the machine before": f"{load:.1f}",
    }


@dataclass
class Bed:
    """What the programs in the box run on: its own Python, a file to read, folders that the user may write."""

    box: Box
    folder: Path
    environment: dict[str, str]
    as_user: list[str]

    def prepare(self) -> None:
        """In the box, so that all pages of it are charged there."""
        self.folder.chmod(0o755)
        library = self.folder / "python/lib" / Path(sysconfig.get_path("stdlib")).name
        for parent in (library / "site-packages/memsup", self.folder / "python/bin"):
            parent.mkdir(parents=True)
        self._copy(Path(sys.executable).resolve(), self.folder / "python/bin/python3")
        left_out = ("test", "site-packages", "idlelib", "tkinter", "ensurepip")
        self._copy(*(file for file in Path(sysconfig.get_path("stdlib")).iterdir() if file.name not in left_out), library)
        files = [file for name in IMPORTED for file in metadata.files(name) or ()]
        tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
        self._copy(*(Path(sysconfig.get_path("platlib")) / top for top in tops), library / "site-packages")
        self._copy(*map(package_folder, ("supervisor", "shared", "checkpoint")), library / "site-packages/memsup")
        self._copy(*libraries(), self.folder / "python/lib")
        self._run("dd", "if=/dev/urandom", f"of={self.file}", "bs=1M", f"count={FILE_BYTES >> 20}", "conv=fsync")
        os.sync()
        self.environment |= {"LD_LIBRARY_PATH": f"{self.folder}/python/lib", "HOME": f"{self.folder}/home"}
        (self.folder / "home").mkdir()
        for mine in (self.folder, self.folder / "home"):
            os.chown(mine, *(USER_ID, USER_ID) if self.as_user else (0, 0))

    @property
    def file(self) -> Path:
        return self.folder / "file"

    @property
    def control(self) -> Path:
        return self.folder / "runtime/default" / CONTROL_SOCKET

    def note(self, *, inside: bool) -> Path:
        return self.folder / "home" / ("inside" if inside else "outside")

    def memsup(self, *arguments: str) -> None:
        self._run(*self.as_user, *self._python(MEMSUP[-1]), *arguments)

    @contextmanager
    def running(self, code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """The kernel's first victim, so that none of it falls upon the supervisor."""
        command = ["choom", "-n", "1000", "--", *self.as_user, *self._python(code), *map(str, arguments)]
        with ending(self.box.start(command, self.environment, self._log)) as process:
            yield process

    @contextmanager
    def canary(self, *, inside: bool) -> Iterator[subprocess.Popen[bytes]]:
        arguments = [str(CANARY), "canary", "tick", str(self.note(inside=inside))]
        if inside:
            shutil.copy(CANARY, self.folder)
            arguments[0] = str(self.folder / CANARY.name)
            started = self.box.start([*self.as_user, *self._python()[:1], *arguments], self.environment, self._log)
        else:
            started = subprocess.Popen([sys.executable, *arguments])
        with ending(started) as process:
            yield process

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _python(self, code: str = "") -> list[str]:
        return [f"{self.folder}/python/bin/python3", "-c", code]

    def _copy(self, *files: Path) -> None:
        """The last is where to."""
        self._run("cp", "-a", *map(str, files))

    def _run(self, *command: str) -> None:
        if self.box.start(list(command), self.environment, self._log).wait() != 0:
            sys.exit(f"{' '.join(command)[:200]} failed in the box:\n{self._log.read_text()}")


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def package_folder(name: str) -> Path:
    found = util.find_spec(f"memsup.{name}")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations)))


def libraries() -> set[Path]:
    """What this process runs besides Python's own modules and the packages."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line and " r-xp " in line}
    return {file for file in files if not {"site-packages", "lib-dynload"} & set(file.parts)}


def start_up_is_over(control: Path) -> bool:
    """Its stalls are none of those that are told from now on, which reach back 20 s at most."""
    status, _ = ask(control)
    return bool(status["recent_stall_s"] < status["worst_stall_s"])


def watch(control: Path, until_s: float) -> tuple[list[float], list[float], list[str]]:
    """Asked every half second: the supervisor's worst stalls of late, how long it took to answer, and the states it was in."""
    stalls_s: list[float] = []
    answers_s: list[float] = []
    states: list[str] = []
    while not stalls_s or time.monotonic() < until_s:
        status, took_s = ask(control)
        stalls_s.append(status["recent_stall_s"])
        answers_s.append(took_s)
        if status["state"] not in states[-1:]:
            states.append(status["state"])
        time.sleep(max(0.0, min(0.5, until_s - time.monotonic())))
    return stalls_s, answers_s, states


def ask(control: Path) -> tuple[dict[str, Any], float]:
    """What `memsup status` gets, and after how long; from outside the box, of any user's supervisor."""
    with zmq.Context.instance().socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"ipc://{control}")
        began_s = time.monotonic()
        dealer.send_multipart(encode(Request(request_id=1, what=RequestKind.STATUS)))
        if not dealer.poll(60_000):
            sys.exit("the supervisor did not answer within a minute")
        reply = decode_reply(dealer.recv_multipart())
        return json.loads(reply.status_json), time.monotonic() - began_s


def counts(folder: Path) -> dict[str, int]:
    lines = [*(folder / "memory.stat").read_text().splitlines(), *(folder / "memory.oom_control").read_text().splitlines()]
    steal_ticks = int(Path("/proc/stat").read_text().split()[8])
    files = {"failcnt": "memory.failcnt", "most_bytes": "memory.max_usage_in_bytes"}
    numbers = {key: int((folder / file).read_text()) for key, file in files.items()}
    return {line.split()[0]: int(line.split()[1]) for line in lines} | numbers | {"steal_ticks": steal_ticks}


def own(pid: int) -> dict[str, float]:
    """Of one process with all its threads: pages that it had to wait for, time on a processor, and time waiting for one."""
    times_ns = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return {
        "major_faults": int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9]),
        "ran_s": sum(int(one[0]) for one in times_ns) / 1e9,
        "waited_s": sum(int(one[1]) for one in times_ns) / 1e9,
    }


def of_status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def until(true: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.2)
    return True


if __name__ == "__main__":
    main()
