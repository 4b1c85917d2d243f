"""What a supervisor is told of steps that may be computed in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from memsup.about import About, Seam
from memsup.joined_step import JoinedStep
from memsup.life import Life
from memsup.link import Told
from memsup.memory import lift


def test_below_a_limit_how_large_a_part_is_is_told_before_it_is_computed(tmp_path: Path) -> None:
    """Else nobody knows what did not fit when the first one is killed for it, and each life would begin as large."""
    words = {"socket": "/", "run_id": "r", "checkpoints": str(tmp_path), "every_s": None, "keep": 2}
    life = Life(Told(json.dumps(words)), About(Seam.CALLS))
    life.link.memory_limit_bytes = 1 << 40
    model = torch.nn.Linear(4, 1)
    known: list[tuple[int, Any]] = []

    def loss_of(part: torch.Tensor) -> torch.Tensor:
        known.append((len(part), life.link.batch))
        return model(part).square().mean()

    try:
        JoinedStep(life, [model], optimizers=[]).micro_batch(torch.randn(16, 4), loss_of)
    finally:
        lift()
    rows, batch = known[-1]
    assert rows == 16
    assert batch == {"effective": 16, "micro_tokens": 64, "micro_rows": 16, "peak_bytes": None, "predicted_bytes": None}
