"""Imported by every Python below a test that puts this folder on PYTHONPATH: makes real processes fail as the environment says.

FAULT_ROW=N       whatever step has row N of the training rows fails in the middle of it, each time
FAULT_STEP_S=S    each step waits so long before it begins, as if a device computed it
FAULT_MEETS_S=S   collectives of several ranks give up after so long
FAULT_FOLDER=DIR  a file in DIR is an order to the worker for its next step, and is gone when that is carried out:
                      hang     get stuck, while the link to the supervisor goes on answering
                      crash    raise an IndexError
                      nan      have a loss that is not a number
                      mute     its link to the supervisor stops, and training goes on
                      gorge    take memory without end, in one native call that never gives up the GIL
                      save     the next checkpoint takes memory without end
                  DIR/balloon says what a process beside the training is to hold (`balloon.py`)
FAULT_CLOCK=FILE  all processes of memsup have the clock of `night_clock.py`
"""

import ctypes
import datetime
import importlib.abc
import importlib.util
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if clock_file := os.environ.get("FAULT_CLOCK"):
    import night_clock  # type: ignore[import-not-found]  # found beside this file by Python, not by mypy

    night_clock.install(clock_file)


def fail_at_row(row: int) -> None:
    before_each_cut(lambda rows: crash() if row in rows else None)


def take_its_time(step_s: float) -> None:
    before_each_cut(lambda _rows: time.sleep(step_s))


def give_up_collectives(after_s: float) -> None:
    def shorten(adding: Any) -> None:
        adding.NEVER = datetime.timedelta(seconds=after_s)

    when_loaded("memsup.worker.ranks.adding", shorten)


def when_loaded(name: str, then: Callable[[Any], None]) -> None:
    """Calls `then` with the module as soon as somebody has imported it: importing it here would take seconds of torch."""

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            assert spec is not None
            loader: Any = spec.loader
            right = loader.exec_module

            def exec_module(module: Any) -> None:
                right(module)
                then(module)

            loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


def obey(folder: Path) -> None:
    import subprocess

    from memsup.supervisor.drill import balloon as balloon_program

    balloon = [sys.executable, "-I", "-S", balloon_program.__file__, str(folder / "balloon")]
    subprocess.Popen(balloon, stdin=subprocess.DEVNULL)
    faults = {
        "hang": threading.Event().wait,
        "crash": crash,
        "nan": poison_next_loss,
        "mute": stop_the_link,
        "gorge": gorge,
        "save": gorge_in_the_next_save,
    }

    def look(_rows: object) -> None:
        for name, fail in faults.items():
            try:
                (folder / name).unlink()
            except FileNotFoundError:
                continue
            fail()

    before_each_cut(look)


def before_each_cut(look: Callable[[Any], object]) -> None:
    from memsup.worker.plan import batches

    right = batches.cut

    def cut(rows: Any, lengths: Any, micro_tokens: int) -> Any:
        look(rows)
        return right(rows, lengths, micro_tokens)

    batches.cut = cut


def crash() -> None:
    raise IndexError("index out of range in self")


def poison_next_loss() -> None:
    from torch.nn import functional

    right = functional.cross_entropy

    def wrong(*arguments: Any, **named: Any) -> Any:
        functional.cross_entropy = right
        return right(*arguments, **named) * float("nan")

    functional.cross_entropy = wrong


def stop_the_link() -> None:
    from memsup.worker import link

    def never(_message: object) -> list[bytes]:
        threading.Event().wait()
        return []

    link.encode = never


def gorge() -> None:
    """Of shared pages, which the soft limit (RLIMIT_DATA) does not see, as it does not see a library's own."""
    python = ctypes.PyDLL(None)  # unlike CDLL it keeps the GIL during the call
    python.mmap.restype = ctypes.c_void_p
    python.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    python.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    everything = 4 << 30
    shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    python.memset(python.mmap(None, everything, mmap.PROT_READ | mmap.PROT_WRITE, shared, -1, 0), 1, everything)


def gorge_in_the_next_save() -> None:
    from memsup.worker import saving

    saving.write_state = lambda *_arguments, **_named: gorge()


if "memsup.worker" in sys.orig_argv:
    if fault_row := os.environ.get("FAULT_ROW"):
        fail_at_row(int(fault_row))
    if fault_step_s := os.environ.get("FAULT_STEP_S"):
        take_its_time(float(fault_step_s))
    if fault_meets_s := os.environ.get("FAULT_MEETS_S"):
        give_up_collectives(float(fault_meets_s))
    if fault_folder := os.environ.get("FAULT_FOLDER"):
        obey(Path(fault_folder))
