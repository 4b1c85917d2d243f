"""Joins memsup to Hugging Face's Trainer in a program that does not call memsup: `attach_site.py` calls `join` when
`transformers.trainer` has been imported.

Only two names of that module are replaced, and neither does anything but call the one before unless a supervisor guards the
process: `Trainer.train`, in which `trainer.py` begins, and `skip_first_batches`, by which a training that is gone on with
comes to its place in the data.
"""

from __future__ import annotations

import functools
from typing import Any


def join(module: Any) -> None:
    """Has each `train()` of a Trainer, or of a class made of it, be guarded."""
    whole = module.Trainer.train
    if getattr(whole, "is_memsups", False):
        return

    @functools.wraps(whole)
    def train(self: Any, *arguments: Any, **named: Any) -> Any:
        from memsup import trainer

        return trainer.train(self, functools.partial(whole, self), arguments, named)

    train.is_memsups = True  # type: ignore[attr-defined]
    module.Trainer.train = train
    join_skipping(module)


def join_skipping(module: Any) -> None:
    """Has a loader that is watched (`trainer_feed.py`) be told of the batches that are left out of it."""
    skip = getattr(module, "skip_first_batches", None)
    if skip is None or getattr(skip, "is_memsups", False):
        return

    @functools.wraps(skip)
    def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
        feed = getattr(dataloader, "memsups_feed", None)
        return skip(dataloader, num_batches) if feed is None else feed.skip(skip, dataloader, num_batches)

    skip_first_batches.is_memsups = True  # type: ignore[attr-defined]
    module.skip_first_batches = skip_first_batches
