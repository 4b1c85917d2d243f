"""What an evaluation counts, as several ranks add it up that have counted a part each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

Counts = dict[str, Any]
"""Numbers, lists and dictionaries of them."""


class Sums:
    """Metrics, or a part of them, that are sums: numbers, or tensors of them, in the attributes that `summed` names."""

    summed: ClassVar[tuple[str, ...]]

    def counts(self) -> Counts:
        """What was counted so far."""
        return {name: torch.as_tensor(getattr(self, name)).tolist() for name in self.summed}

    def add_counts(self, counts: Counts) -> None:
        """Adds what another rank has counted."""
        for name in self.summed:
            other = torch.from_numpy(np.asarray(counts[name])) if isinstance(counts[name], list) else counts[name]
            setattr(self, name, getattr(self, name) + other)
