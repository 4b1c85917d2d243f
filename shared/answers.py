"""What a language model answered to a few questions before and after its training, for people to compare."""

from __future__ import annotations

from pathlib import Path

import msgspec

from memsup.shared.files import UnreadableError, read_document

ANSWERS_FILE = "answers.json"
"""Its name below the run's state folder."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A question that was not trained on."""

    asked: str
    """The question; where more than one message stands before the answer, all of it as the model sees it. Only the end of what
    is long.
    """
    wanted: str
    """The answer in the data; only its beginning."""
    before: str | None
    """What the model answered before training. None means that nobody asked it."""
    after: str | None
    """What it answers now. None means that it is still being trained."""


_answers = msgspec.json.Decoder(list[Answered])


def read_answers(state: Path) -> list[Answered]:
    """Those of a run, by its state folder; none where there are none that can be read."""
    try:
        return read_document(state / ANSWERS_FILE, _answers.decode)
    except (OSError, UnreadableError):
        return []
