"""What a run of one or several ranks has come to, beside one that nobody disturbs: weights, moments, and what it learned from.

Steps take long enough to be met in the middle, and nothing is drawn, so that ranks differ by rounding alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from kit.lone_supervisor import LoneSupervisor, newest_checkpoint, state_of, tiny_settings
from kit.one_life import without_dropout
from memsup.shared.messages import Heartbeat
from memsup.shared.settings import Settings


def settings_of_ranks(folder: Path, ranks: int, **values: Any) -> Settings:
    """A small BERT without dropout, 27 steps an epoch, computed in so many ranks."""
    chosen: dict[str, Any] = {
        "hidden": 128,
        "training__ranks": ranks,
        "training__max_length": 128,
        "training__learning_rate": 1e-4,
    }
    return without_dropout(tiny_settings(folder, rows=240, words=100, **chosen | values))


class End:
    """What a run has come to."""

    def __init__(self, supervisor: LoneSupervisor) -> None:
        state = state_of(supervisor.paths)
        checkpoint, self.model = newest_checkpoint(supervisor.paths), supervisor.paths.model
        self.weights = load_file(checkpoint / "model.safetensors")
        self.moments = load_file(checkpoint / "optimizer.safetensors")
        self.step, self.digest = state["step"], str(state["digest"])
        self.evaluated = state["evaluated"]["metrics"]

    @property
    def learned_from(self) -> str:
        """The half of the digest that nothing but samples, their weights and learning rates go into."""
        return self.digest.partition(".")[0]

    def differs_by(self, other: End) -> float:
        assert self.weights.keys() == other.weights.keys()
        assert self.moments.keys() == other.moments.keys()
        return max(float(np.abs(weight - other.weights[name]).max()) for name, weight in self.weights.items())

    def has_the_bits_of(self, other: End) -> bool:
        pairs = [(self.weights, other.weights), (self.moments, other.moments)]
        return all(np.array_equal(tensor, theirs[name]) for ours, theirs in pairs for name, tensor in ours.items())


_ENDS: dict[str, End] = {}


def undisturbed_end(name: str, settings: Settings) -> End:
    """The end of a run that nobody disturbs; trained once for all that ask for this name."""
    if name not in _ENDS:
        with LoneSupervisor(settings, name=name) as supervisor:
            supervisor.run_to_end()
            _ENDS[name] = End(supervisor)
    return _ENDS[name]


def pids_of_ranks(supervisor: LoneSupervisor, ranks: int = 2) -> list[int]:
    """The processes of all ranks, as soon as the worker tells of so many."""

    def told() -> list[int] | None:
        for report in reversed(supervisor.reports):
            if isinstance(report, Heartbeat) and report.batch and report.batch.ranks and len(report.batch.ranks) == ranks:
                return [rank.pid for rank in report.batch.ranks]
        return None

    return supervisor.until("ranks are told of", told)
