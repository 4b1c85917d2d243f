"""What a Trainer's callbacks remember while it trains, such as the evaluations without a rise after which early stopping ends
it. It is a part of where a training is, like its generators.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any


def remembered(trainer: Any) -> list[tuple[str, dict[str, Any]]]:
    """The class and what it remembers of each callback that tells so (Trainer's `ExportableState`): what may change while it
    trains, in the callbacks' order.
    """
    return [(type(callback).__name__, copy.deepcopy(callback.state()["attributes"])) for callback in _exportable(trainer)]


def remind(trainer: Any, states: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Has the callbacks remember what they did when `remembered` was asked. Trainer by itself does so only where
    `restore_callback_states_from_checkpoint` is set.
    """
    left = list(states)
    for callback in _exportable(trainer):
        known = callback.state()["attributes"]
        for index, (kind, state) in enumerate(left):
            if kind == type(callback).__name__:
                for name in known.keys() & state.keys():
                    setattr(callback, name, copy.deepcopy(state[name]))
                del left[index]
                break


def _exportable(trainer: Any) -> list[Any]:
    kind = getattr(sys.modules["transformers.trainer_callback"], "ExportableState", ())  # since transformers 4.42
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind)]
