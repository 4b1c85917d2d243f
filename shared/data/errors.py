"""What a task's data and model are refused with."""

from __future__ import annotations

from collections.abc import Sequence

from memsup.shared.data.doubts import Doubt


class InputError(Exception):
    """A task's data or model cannot be used; the text is one plain sentence with what to do."""


class NoTaskError(InputError):
    """The data are whole, and are not what a classifier learns from."""


class DoubtfulError(InputError):
    """The data are doubtful, and nobody has accepted that; the text has the sentences of all `doubts`."""

    def __init__(self, doubts: Sequence[Doubt]) -> None:
        super().__init__(" ".join(doubt.what for doubt in doubts))
        self.doubts = doubts
