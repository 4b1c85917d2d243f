"""What is known of a checkpoint from outside. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Info:
    """A checkpoint as it lies in the folder."""

    path: Path
    step: int | None
    """The step that it holds. None means that it is not known, since its manifest cannot be read."""
    created_unix_s: float | None
    bytes: int | None
    metric: float | None
    """The evaluation's result, the greater the better. None means that there was no evaluation."""
    problem: str | None = None
    """Why it cannot be used. None means that nothing is known against it."""
