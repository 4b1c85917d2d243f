"""A run's curves, read back by the libraries' own readers; where one is not installed, a test that needs it is not run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

Series = list[tuple[int, float]]


def tensorboard_library() -> Any:
    return pytest.importorskip("tensorboard", reason="NOT RUN: tensorboard is not installed")


def trackio_library() -> Any:
    return pytest.importorskip("trackio", reason="NOT RUN: trackio is not installed")


def read_tensorboard(folder: Path) -> tuple[dict[str, Series], list[tuple[int, str]]]:
    """The curves by name, and the texts of the interventions: as a program reads them, and as TensorBoard itself does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Shown

    everything, shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}), Shown(str(folder), {"tensors": 0})
    everything.Reload()
    shown.Reload()
    scalars = {tag: [(one.step, one.value) for one in everything.Scalars(tag)] for tag in everything.Tags()["scalars"]}
    tensors = {tag: [(one.step, one.tensor_proto) for one in shown.Tensors(tag)] for tag in shown.Tags()["tensors"]}
    texts = tensors.pop("interventions/text_summary", [])
    assert {tag: [step for step, _ in found] for tag, found in tensors.items()} == {
        tag: [step for step, _ in series] for tag, series in scalars.items()
    }
    return scalars, [(step, text.string_val[0].decode()) for step, text in texts]


def read_trackio(folder: Path, run: str) -> tuple[dict[str, Series], list[tuple[int, str]]]:
    """The same of Trackio's database."""
    from trackio import sqlite_storage

    sqlite_storage.TRACKIO_DIR = folder
    storage = sqlite_storage.SQLiteStorage
    scalars: dict[str, Series] = {}
    for row in storage.get_logs("memsup", run):
        for name in row.keys() - {"timestamp", "step"}:
            scalars.setdefault(name, []).append((row["step"], row[name]))
    alerts = sorted(storage.get_alerts("memsup", run_name=run), key=lambda alert: alert["timestamp"])
    return scalars, [(alert["step"], alert["text"]) for alert in alerts]


def check_whole(scalars: Mapping[str, Series], *, steps: int) -> None:
    """Each step of the training is there once, and no curve goes back."""
    for name in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert [step for step, _ in scalars[name]] == list(range(1, steps + 1)), name
    for name, series in scalars.items():
        assert all(one < other for (one, _), (other, _) in itertools.pairwise(series)), (name, series)
