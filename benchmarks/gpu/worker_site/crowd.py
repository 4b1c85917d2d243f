"""Everything that torch may still have is taken at one place of a step: see `sitecustomize.py`.

Works by torch's own hooks alone, so that it knows nothing of the worker. Without CUDA nothing can be taken; then the error that
would have come is raised where it would have come.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

LEAST_BYTES = 1 << 20
EVALUATION, FORWARD, BACKWARD, OPTIMIZER = "evaluation", "forward", "backward", "optimizer"


class Crowd:
    def __init__(self, places: dict[str, int], log: Path) -> None:
        """`places`: the step (from 1) in which each place is crowded."""
        self._places, self._log = places, log
        self._steps = 0
        self._taken: list[torch.Tensor] = []
        self._at: str | None = None
        self._empty_cache = torch.cuda.empty_cache

    def before_module(self, module: torch.nn.Module, _inputs: Any) -> None:
        if getattr(module, "base_model", module) is not module:  # a whole model, with what stands on its encoder
            self._crowd(FORWARD if module.training else EVALUATION)

    def after_module(self, module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        """At each layer, since what is freed on the way back would do for the next one."""
        if not type(module).__name__.endswith("Layer") or not module.training:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda _gradient: self._crowd(BACKWARD, again=True))

    def before_step(self, *_: Any) -> None:
        self._crowd(OPTIMIZER)

    def after_step(self, *_: Any) -> None:
        self._steps += 1
        if self._at == OPTIMIZER:
            self._leave(needed_room=False)

    def empty_cache(self) -> None:
        if self._at is not None:
            self._leave(needed_room=True)
        self._empty_cache()

    def _crowd(self, place: str, *, again: bool = False) -> None:
        """`again`: what has become free since then is taken as well."""
        if self._at == place and again:
            self._take()
        elif self._at is None and self._is_due(place):
            self._at = place
            taken_bytes = self._take()
            self._note(place, "taken", bytes=taken_bytes)
            if not torch.cuda.is_available() and place != OPTIMIZER:
                self._leave(needed_room=True)  # nobody gives a cache back on a CPU
                raise torch.OutOfMemoryError("CUDA out of memory. (There is no CUDA: the proof is rehearsed.)")

    def _is_due(self, place: str) -> bool:
        """Also after the worker has died in between: a place is crowded once in a run's life. What is computed before the first
        step is no evaluation: a model is asked there what it does with padding.
        """
        step = self._places.get(place)
        due = step is not None and (self._steps > 0 if place == EVALUATION else self._steps + 1 >= step)
        if due:
            del self._places[place]
        return due

    def _take(self) -> int:
        taken_bytes, size = 0, 1 << 30
        while torch.cuda.is_available() and size >= LEAST_BYTES:
            try:
                self._taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
            else:
                taken_bytes += size
        return taken_bytes

    def _leave(self, *, needed_room: bool) -> None:
        assert self._at is not None
        self._taken.clear()
        self._note(self._at, "given back", needed_room=needed_room)
        self._at = None

    def _note(self, place: str, what: str, **more: Any) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"at": time.time(), "step": self._steps + 1, "place": place, "what": what} | more) + "\n")


def come() -> None:
    """Into this process."""
    log = Path(os.environ["CROWD_LOG"])
    places = {place: int(step) for place, _, step in (word.partition("@") for word in os.environ["CROWD"].split())}
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            places.pop(json.loads(line)["place"], None)
    crowd = Crowd(places, log)
    torch.cuda.empty_cache = crowd.empty_cache
    register_module_forward_pre_hook(crowd.before_module)
    register_module_forward_hook(crowd.after_module)
    register_optimizer_step_pre_hook(crowd.before_step)
    register_optimizer_step_post_hook(crowd.after_step)
