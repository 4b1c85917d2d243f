"""`memsup.guard`: what a program gives memsup to guard, and the run that it gets for it.

Without `memsup start`, and in a process that was forked, it does nothing but train. What the run does is in `run.py`, what it
has of its supervisor in `life.py`.
"""

from __future__ import annotations

from typing import Any, Callable, Protocol, TypeVar, overload

from memsup import accelerator, life, lightning, places
from memsup.about import About, NotCut, Seam
from memsup.run import Computes, Run, State


class Trains(Protocol):
    """Hugging Face's Trainer, or one of a class made of it."""

    train: Callable[..., Any]
    callback_handler: Any


Trainer = TypeVar("Trainer", bound=Trains)


@overload
def guard(trainer: Trainer, /, *, save_every_s: float | None = None, name: str | None = None) -> Trainer: ...
@overload
def guard(
    whole: Any = None,
    /,
    *,
    save: Callable[[str], Any] | None = None,
    load: Callable[[str], Any] | None = None,
    save_every_s: float | None = None,
    name: str | None = None,
    **parts: Any,
) -> Run: ...
def guard(
    whole: Any = None,
    /,
    *,
    save: Callable[[str], Any] | None = None,
    load: Callable[[str], Any] | None = None,
    save_every_s: float | None = None,
    name: str | None = None,
    **parts: Any,
) -> Any:
    """Puts this program under memsup's guard, and its state where its newest whole checkpoint left it.

    `parts` is what the state consists of, by names of your choice: `model=`, `optimizer=`, `scheduler=`, `scaler=` and so on,
    anything with `state_dict` and `load_state_dict`, on the devices where they are to stay. Instead of them `whole` may be an
    Accelerator that has prepared all that the training consists of. Instead of either, or beside it, `save(folder)` writes
    files into a folder, and `load(folder)` reads them again. The generators of Python, numpy and torch are always part of it.
    With nothing there are orders and progress, but no checkpoints. `save_every_s` is the seconds between two checkpoints. None
    means that their cost decides, or the setting `checkpoint.every`.

    A `trainer`, Hugging Face's or Lightning's, or one of a class made of it, is given back, and each `train()` or `fit()` of it
    is guarded; it has its own `save`, so only `save_every_s` and `name` may be given with it.

    To be called in the main thread, when all of that is made; and again for each further training of the program, when the one
    before is complete (`run.finish`). `name` tells them apart. None means that their order does.

    Raises TypeError for what cannot be guarded, `TwiceError` (a RuntimeError) for a training that was guarded before, or is
    guarded while another one is under way, and `CheckpointError` where there is a checkpoint that this program cannot load.
    """
    if (save is None) is not (load is None):
        raise TypeError("memsup.guard needs save= and load= together, or neither.")
    is_trainer = hasattr(whole, "train") and hasattr(whole, "callback_handler")
    if is_trainer or lightning.is_one(whole):
        if save is not None or parts:
            what = "save=" if save is not None else f"{next(iter(parts))}="
            raise TypeError(f"memsup.guard takes no {what} with a Trainer, which saves all that it trains with itself.")
        if not is_trainer:
            return lightning.guard(whole, name, save_every_s)
        from memsup import trainer

        return trainer.guard(whole, name, save_every_s)
    if whole is None:
        states = [State(*places.savers(parts), *places.part_savers(parts))] if parts else []
        computes, seam = _computes(parts), Seam.CALLS
    elif accelerator.is_one(whole) and not parts:
        models, optimizers = accelerator.prepared(whole)
        states = [State(*accelerator.savers(whole), *accelerator.part_savers(whole))]
        computes, seam = Computes(models, optimizers, whole.scaler, whole.backward), Seam.ACCELERATE
    else:
        raise TypeError(
            "memsup.guard takes a Trainer, an Accelerator, or what there is to save by name: "
            "memsup.guard(model=…, optimizer=…)."
        )
    if save is not None and load is not None:
        states.append(State(save, load))
    found = life.begin(About(seam, saves=bool(states), not_cut=NotCut.NO_BACKWARD), name)
    if found is None:
        return Run(computes=computes)
    found.session.every_s = save_every_s if save_every_s is not None else found.told.every_s
    run = Run(found, states, computes)
    run._begin()
    return run


def _computes(parts: dict[str, Any]) -> Computes:
    """Which of the parts a step is computed with, by what they can do."""
    given = list(parts.values())
    return Computes(
        modules=[part for part in given if hasattr(part, "named_parameters")],
        optimizers=[part for part in given if hasattr(part, "param_groups")],
        scaler=next((part for part in given if hasattr(part, "scale") and hasattr(part, "unscale_")), None),
    )
