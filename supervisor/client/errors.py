"""What a client says no with. Imports nothing: the command line loads it before it knows which command is called."""

from __future__ import annotations

NOT_STARTED, REFUSED = 1, 2


class RefusedError(Exception):
    """The command cannot do what was asked; the text is one plain sentence with what to do, and `more` what follows it: lines,
    and rows, which are tuples of cells. `code` becomes the exit code.
    """

    def __init__(self, text: str, code: int = REFUSED, *, more: tuple[str | tuple[str, ...], ...] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.more = more
