"""The worker's program on a machine whose memory runs out in the middle of an optimizer's step, once: at the 9th."""

from __future__ import annotations

import sys
from typing import Any

import torch

import memsup.worker.__main__ as worker

real = torch.optim.AdamW.step
steps = 0


def starved(self: torch.optim.AdamW, *arguments: Any) -> Any:
    global steps
    steps += 1
    real(self, *arguments)
    if steps == 9:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


torch.optim.AdamW.step = starved
sys.exit(worker.main())
