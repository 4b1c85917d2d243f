"""The generators of random numbers that a step draws from, remembered and put back: Python's, numpy's, torch's on
the CPU and on CUDA.

As objects, since a step remembers them each time; as JSON, for a checkpoint, they are in `places.py`. numpy and torch are asked
only where the program has imported them.
"""

from __future__ import annotations

import random
import sys
from typing import Any

Generators = dict[str, Any]
"""The state of each generator, by its name."""


def take() -> Generators:
    """The generators as they are now. Takes some microseconds, and waits for no device."""
    taken: Generators = {"random": random.getstate()}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and hasattr(numpy, "random"):  # not where it is just being imported
        taken["numpy"] = numpy.random.get_state()
    if torch is not None and hasattr(torch, "get_rng_state"):
        taken["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            taken["cuda"] = torch.cuda.get_rng_state_all()
    return taken


def put_back(taken: Generators) -> None:
    """Has the generators go on as they were when they were taken."""
    random.setstate(taken["random"])
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and "numpy" in taken:
        numpy.random.set_state(taken["numpy"])
    if torch is not None and "torch" in taken:
        torch.set_rng_state(taken["torch"])
        if "cuda" in taken:
            torch.cuda.set_rng_state_all(taken["cuda"])
