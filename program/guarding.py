"""`memsup.guard`: what a program gives memsup to guard, and the run that it gets for it.

Without `memsup start`, in a process that was forked, and in one of several ranks it does nothing but train. What the run does
is in `run.py`, what it has of its supervisor in `life.py`.
"""

from __future__ import annotations

from typing import Any, Callable, TypeVar, overload

from memsup import life, places
from memsup.run import Run, State, about_calls

Trainer = TypeVar("Trainer")


@overload
def guard(trainer: Trainer, /) -> Trainer: ...
@overload
def guard(
    *,
    save: Callable[[str], Any] | None = None,
    load: Callable[[str], Any] | None = None,
    save_every_s: float | None = None,
    name: str | None = None,
    **parts: Any,
) -> Run: ...
def guard(
    trainer: Any = None,
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
    anything with `state_dict` and `load_state_dict`, on the devices where they are to stay. Instead of them, or beside them,
    `save(folder)` writes files into a folder, and `load(folder)` reads them again. The generators of Python, numpy and torch
    are always part of it. With neither there are orders and progress, but no checkpoints. `save_every_s` is the seconds between
    two checkpoints. None means that their cost decides, or the setting `checkpoint.every`.

    A `trainer`, Hugging Face's or one of a class made of it, is given back, and each `train()` of it is guarded; nothing else
    is to be given with it.

    To be called in the main thread, when all of that is made; and again for each further training of the program, when the one
    before is complete (`run.finish`). `name` tells them apart. None means that their order does.

    Raises TypeError for what cannot be saved, `TwiceError` (a RuntimeError) for a training that was guarded before, or is
    guarded while another one is under way, and `CheckpointError` where there is a checkpoint that this program cannot load.
    """
    if trainer is not None:
        from memsup import trainer as trainers

        if not hasattr(trainer, "train") or not hasattr(trainer, "callback_handler"):
            raise TypeError(
                "memsup.guard takes a Trainer, or what there is to save by name: memsup.guard(model=…, optimizer=…)."
            )
        return trainers.guard(trainer)
    if (save is None) is not (load is None):
        raise TypeError("memsup.guard needs save= and load= together, or neither.")
    states = [State(*places.savers(parts))] if parts else []
    if save is not None and load is not None:
        states.append(State(save, load))
    found = life.begin(about_calls(saves=bool(states)), name)
    if found is None:
        return Run()
    found.session.every_s = save_every_s if save_every_s is not None else found.told.every_s
    run = Run(found, states)
    run._begin()
    return run
