"""How many threads compute: found out once, before a run's first step, by trying, and kept for the run (bits depend on it).

Two threads on one core with simultaneous multithreading share its arithmetic, so as many threads as cores may be faster than
as many as the kernel counts; and the last core gains little where memory is what is waited for, but leaves the machine usable.
So these numbers are tried, on a layer of a transformer. On fewer than four cores none can be spared, and without
multithreading there is nothing to try. Where the number is kept is `journal.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from memsup.shared.clock import monotonic_s

WORTH_FRACTION = 0.03
"""The part by which more threads have to be faster."""
_SPARE_ONE_FROM = 4
_ROUNDS = 5
_ROWS, _LENGTH, _HIDDEN, _HEADS = 8, 64, 384, 6


def find_threads(at_most: int) -> int:
    """Finds the number of threads to compute with. It takes a second or two where there is a choice, and leaves torch's
    generators of random numbers as they were.
    """
    counts = candidates(at_most, cores(os.sched_getaffinity(0)))
    if len(counts) == 1:
        return counts[0]
    with torch.random.fork_rng(devices=[]):
        return fewest_fast(_timed(counts, _layer()))


def candidates(cpus: int, cores: int | None) -> list[int]:
    """The numbers of threads worth trying, the largest first, where `cpus` CPUs may be used that belong to `cores` cores. None
    means that the cores are not known.
    """
    whole = min(cpus, cores or cpus)
    spared = whole - 1 if whole >= _SPARE_ONE_FROM else whole
    return sorted({cpus, whole, spared}, reverse=True)


def fewest_fast(seconds: Mapping[int, float]) -> int:
    """The fewest threads that no other number beats by `WORTH_FRACTION`."""
    best_s = min(seconds.values())
    return min(count for count, took_s in seconds.items() if took_s <= best_s * (1 + WORTH_FRACTION))


def cores(cpus: set[int], root: Path = Path("/")) -> int | None:
    """How many cores these CPUs are, by the kernel's topology (kernel docs, admin-guide/cputopology). None means that it does
    not say.
    """
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii"))
        except OSError:
            return None
    return len(siblings)


def _layer() -> Callable[[], None]:
    layer = torch.nn.TransformerEncoderLayer(_HIDDEN, _HEADS, 4 * _HIDDEN, batch_first=True)
    rows = torch.randn(_ROWS, _LENGTH, _HIDDEN)
    return lambda: layer(rows).sum().backward()


def _timed(counts: list[int], work: Callable[[], None]) -> dict[int, float]:
    """The quickest of some rounds with each number, in seconds. They take turns, so that what else the machine does slows all
    of them alike.
    """
    seconds = dict.fromkeys(counts, float("inf"))
    for _ in range(_ROUNDS):
        for count in counts:
            torch.set_num_threads(count)
            work()  # starts the threads
            began_s = monotonic_s()
            work()
            seconds[count] = min(seconds[count], monotonic_s() - began_s)
    return seconds
