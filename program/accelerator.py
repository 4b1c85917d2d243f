"""What memsup has to know of an Accelerator (Hugging Face's accelerate): what it has prepared is what there is to save, and its
`backward` is what gradients are computed by.

Its checkpoints are its own, of `save_state`, with what the program has registered (`register_for_checkpointing`), and the
gradients of a window that is under way. The loader that it prepares reads one batch ahead, which `run.py` undoes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable

from memsup.places import give_gradients, gradients_of

GRADIENTS = "memsup-gradients.pt"


def is_one(given: Any) -> bool:
    """Whether `given` is an Accelerator, of whose package nothing is imported here."""
    return any(kind.__name__ == "Accelerator" and kind.__module__.startswith("accelerate.") for kind in type(given).__mro__)


def prepared(accelerator: Any) -> tuple[list[Any], list[Any]]:
    """The models and the optimizers that it has prepared. Raises TypeError where it has none."""
    models, optimizers = list(accelerator._models), list(accelerator._optimizers)
    if not models:
        raise TypeError(
            "memsup.guard(accelerator) comes after accelerator.prepare(…), with all that is to be saved: it has no model yet."
        )
    return models, optimizers


Does = Callable[[str], None]


def savers(accelerator: Any) -> tuple[Does, Does]:
    """How its state is written into a folder, and read from it."""
    return partial(_save, accelerator), partial(_load, accelerator)


def part_savers(accelerator: Any) -> tuple[Does, Does]:
    """The same of what a rank beside rank 0 has alone."""
    return partial(_save_part, accelerator), partial(_load_gradients, accelerator)


def _save(accelerator: Any, folder: str) -> None:
    torch = sys.modules["torch"]
    with _named_by_us(accelerator):
        accelerator.save_state(folder)
    gradients = [gradients_of(model) for model in accelerator._models]
    if any(gradients):
        torch.save(gradients, os.path.join(folder, GRADIENTS))


def _save_part(accelerator: Any, folder: str) -> None:
    """What accelerate writes for this rank goes to where it looks for it; what is the same for all ranks is rank 0's."""
    _save(accelerator, folder)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith("random_states_"):
            os.rename(path, os.path.join(os.path.dirname(folder), name))
        elif name != GRADIENTS:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _load(accelerator: Any, folder: str) -> None:
    with _named_by_us(accelerator):
        accelerator.load_state(folder)
    _load_gradients(accelerator, folder)


def _load_gradients(accelerator: Any, folder: str) -> None:
    torch = sys.modules["torch"]
    file = os.path.join(folder, GRADIENTS)
    if os.path.exists(file):
        gradients = torch.load(file, map_location="cpu", weights_only=True)
        for model, of_model in zip(accelerator._models, gradients):
            give_gradients(model, of_model)


@contextlib.contextmanager
def _named_by_us(accelerator: Any) -> Iterator[None]:
    """It may be told to name its checkpoints itself, and does so whatever it is given."""
    configuration = accelerator.project_configuration
    before, configuration.automatic_checkpoint_naming = configuration.automatic_checkpoint_naming, False
    try:
        yield
    finally:
        configuration.automatic_checkpoint_naming = before
