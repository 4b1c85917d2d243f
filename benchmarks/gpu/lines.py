"""The lines of the proof: what is promised, what was measured, and whether it held; and the page that a person reads. Pure."""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


class Verdict(enum.StrEnum):
    """What became of a promise."""

    HELD = "held"
    NOT_HELD = "not held"
    NOT_RUN = "NOT RUN"
    """Nothing was measured; why stands in its place."""
    FAILED = "failed"
    """The proof itself broke down here, which says nothing about the promise."""


class Unproved(Exception):  # noqa: N818 - it is no fault of a program's, but what a line is about
    """What was promised did not come; the text says what was seen in its place."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a part tells about one of its promises. `held` is None where nothing was found out about the promise."""

    key: str
    held: bool | None
    measured: str
    """One clause with the numbers; why, where nothing was found out."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs; units are in the names."""
    broke: bool = False
    """The proof itself broke down at this promise."""

    @property
    def verdict(self) -> Verdict:
        if self.broke:
            return Verdict.FAILED
        if self.held is None:
            return Verdict.NOT_RUN
        return Verdict.HELD if self.held else Verdict.NOT_HELD


def attempt(keys: Iterable[str], check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `check` finds about the promises `keys`, in their order. Where it stops at one of them, that one did not hold
    (`Unproved`) or the proof broke there (any other error), and the later ones were not run: the rest of the part goes on.
    """
    left = list(keys)
    try:
        for finding in check():
            left.remove(finding.key)
            yield finding
    except Exception as error:
        traceback.print_exc()
        why = f"{error}" if isinstance(error, Unproved) else f"failed: {type(error).__name__}: {error}"
        unproved = isinstance(error, Unproved)
        yield Finding(key=left[0], held=False if unproved else None, measured=why[:800], broke=not unproved)
        for key in left[1:]:
            yield Finding(key=key, held=None, measured=f"the line {left[0]} had to be seen before")


def line(part: str, promise: str, finding: Finding) -> dict[str, Any]:
    return {
        "part": part,
        "key": finding.key,
        "promise": promise,
        "verdict": str(finding.verdict),
        "measured": finding.measured,
        "figures": dict(finding.figures),
    }


def unreached(part: str, promises: Mapping[str, str], told: Iterable[str], why: str, *, broke: bool) -> list[dict[str, Any]]:
    """Lines for the promises that a part did not come to. Where it `broke`, the first of them is what it broke at."""
    missing = [key for key in promises if key not in set(told)]
    return [
        line(part, promises[key], Finding(key=key, held=None, measured=why, broke=broke and key == missing[0]))
        for key in missing
    ]


def page(document: Mapping[str, Any]) -> str:
    """The whole proof as text. `document` is what `proof.json` holds."""
    lines = document["lines"]
    said = [f"{sum(one['verdict'] == verdict for one in lines)} {verdict}" for verdict in Verdict]
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items() if value is not None)
    parts = [
        "memsup on a GPU: what is promised, what was measured",
        *(
            ["REHEARSAL on a CPU and a library that only speaks NVML: none of this says anything about a GPU."]
            if document["rehearsal"]
            else []
        ),
        f"{document['began']}, {document['took_s']:.0f} s. {machine}.",
        f"{', '.join(said)}.",
    ]
    for part in document["parts"]:
        parts += ["", f"{part['title']} ({part['took_s']:.0f} s of at most {part['deadline_s']:.0f})"]
        for one in lines:
            if one["part"] == part["part"]:
                parts += [f"  {one['verdict']:9} {one['promise']}", f"            {one['measured']}"]
    return "\n".join(parts) + "\n"
