"""Runs scripts that are for CUDA on a CPU, one after the other: the device `cuda` is the CPU, and large tensors are small.

    python as_cpu.py SCRIPT [WORD …] [-- SCRIPT …]

What a script says of speed or memory then says nothing; that it runs from its first line to its last does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SMALLER = {"1 << 30,": "1 << 12,", "8192, 20": "64, 2", "4 << 30": "1 << 12", "2048": "32", "512, ": "8, "}
"""Sizes, as scripts write them, and what stands for them here."""


class AsCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if str(named.get("device", "")).startswith("cuda"):
            named["device"] = "cpu"
        return func(*("cpu" if isinstance(one, str) and one == "cuda" else one for one in args), **named)


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other._at_s - self._at_s) or 1e-3


def main() -> None:
    cuda: Any = torch.cuda
    cuda.Event, cuda.mem_get_info, cuda.get_device_name = Event, lambda: (1 << 30, 1 << 30), lambda: "a CPU"
    torch.nn.Module.cuda = lambda self: self  # type: ignore[method-assign, assignment, misc]
    words: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        words.append([]) if word == "--" else words[-1].append(word)
    for script, *arguments in words:
        source = Path(script).read_text(encoding="utf-8")
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        sys.argv = [script, *arguments]
        with AsCpu():
            exec(compile(source, script, "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
