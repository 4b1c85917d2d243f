"""`memsup.guard`: what a program gives memsup to guard, and the run that it gets for it.

Without `memsup start`, in a process that was forked, and in one of several ranks it does nothing but train. What the run does
is in `run.py`, what it has of its supervisor in `life.py`.
"""

from __future__ import annotations

from typing import Any, Callable

from memsup import life, places
from memsup.run import Run, State, about_calls


def guard(
    *,
    save: Callable[[str], Any] | None = None,
    load: Callable[[str], Any] | None = None,
    save_every_s: float | None = None,
    name: str | None = None,
    **parts: Any,
) -> Run:
    """Puts this program under memsup's guard, and its state where its newest whole checkpoint left it.

    `parts` is what the state consists of, by names of your choice: `model=`, `optimizer=`, `scheduler=`, `scaler=` and so on,
    anything with `state_dict` and `load_state_dict`, on the devices where they are to stay. Instead of them, or beside them,
    `save(folder)` writes files into a folder, and `load(folder)` reads them again. The generators of Python, numpy and torch
    are always part of it. With neither there are orders and progress, but no checkpoints. `save_every_s` is the seconds between
    two checkpoints. None means that their cost decides, or the setting `checkpoint.every`.

    To be called in the main thread, when all of that is made; and again for each further training of the program, when the one
    before is complete (`run.finish`). `name` tells them apart. None means that their order does.

    Raises TypeError for what cannot be saved, `TwiceError` (a RuntimeError) for a training that was guarded before, or is
    guarded while another one is under way, and `CheckpointError` where there is a checkpoint that this program cannot load.
    """
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
