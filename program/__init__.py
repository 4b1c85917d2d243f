"""What `import memsup` gives a training program of a person's own: checkpoints that can be trusted, and orders from outside.

    import memsup

    run = memsup.guard(model=model, optimizer=optimizer, scheduler=scheduler)   # goes on from the newest checkpoint
    for batch in run.steps(loader, epochs=3):                                   # counts; leaves out what is done
        ...
    run.finish("model")

Under `memsup start -- python train.py` this package is found even where the program's own environment has nothing of memsup,
since it needs the standard library alone, of Python 3.9 or newer. Started in any other way the same lines train as if they
were not there. What a program gets by them, and what it does not, is in docs/own-programs.md.

To be read in this order: `guarding.py` and `run.py` (what a program calls), `life.py` (what a process has of its supervisor),
`session.py` (orders, carried out at boundaries), `link.py` (the connection), `ranks.py` (several processes of one program);
`training.py` (whose checkpoints are whose), `store.py`, `places.py`, `folders.py` and `manifest.py` (checkpoints).
`messages.py`, `packing.py` and `zmtp.py` are the wire. `about.py`, `cadence.py`, `folders.py`, `manifest.py` and `memory.py`
are the built-in training's, or the supervisor's, as well.
`step.py` with `cut_*.py` computes a step in parts where it does not fit into memory, `joined_step.py` joins that to a run.
`attach_site.py`, `attach.py` and `trainer*.py` guard Hugging Face's Trainer, `lightning.py` Lightning's, `accelerator.py` an
Accelerator.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memsup.guarding import guard
    from memsup.run import Run
    from memsup.session import Leave

__all__ = ["Leave", "Run", "guard"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, so that the command line, which is below the same name, pays for none of it. Raises
    ImportError on a Python that is too old for it, which is the program's own.
    """
    if name in __all__ and sys.version_info < (3, 9):
        raise ImportError(f"memsup.{name} needs Python 3.9 or newer, and this is {sys.version_info[0]}.{sys.version_info[1]}.")
    if name == "guard":
        from memsup.guarding import guard

        return guard
    if name == "Run":
        from memsup.run import Run

        return Run
    if name == "Leave":
        from memsup.session import Leave

        return Leave
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
