"""Lightning's Trainer: what becomes of the next `fit()` when one has failed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import memsup
from memsup import life
from memsup.link import VARIABLE, Link
from memsup.places import read_place

lightning: Any = pytest.importorskip("lightning", reason="NOT RUN: lightning is not installed here")
pytestmark = pytest.mark.slow


def test_the_fit_after_one_that_has_failed_and_was_caught_is_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, number: int) -> Any:
            if number == fails_at:
                raise ValueError("on purpose")
            return self.net(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    def fitted() -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
        memsup.guard(trainer).fit(Model(), torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2))

    kept = tmp_path / "kept"
    told = {"socket": "/", "run_id": "r", "checkpoints": str(kept), "every_s": 1e9, "keep": 2}
    monkeypatch.setenv(VARIABLE, json.dumps(told))
    monkeypatch.setattr(Link, "open", lambda _link: None)
    monkeypatch.setattr(life, "_life", None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        fails_at = 2
        with pytest.raises(ValueError, match="on purpose"):
            fitted()
        fails_at = -1
        fitted()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [read_place(str(path)).training for path in kept.glob("step-*")] == ["2"]
