"""The words of the page that a reader may not know, each with a sentence that a browser shows above it. Pure."""

from __future__ import annotations

import html
import re

GLOSSARY = {
    "intervention": "Something that memsup did to the run to protect the machine or the work, or that befell the run.",
    "price": "The time in which training did not get on because of it: held, started again, or busy with steps done before.",
    "micro-batch": "The rows that are computed at once. Smaller ones take less memory; what is learned stays the same.",
    "effective batch": "The samples of one optimizer step. It never changes during a run.",
    "worker": "The process that trains. The supervisor watches over it from outside.",
    "supervisor": "The small process that watches memory, heat and disk, and starts the worker again where it died.",
    "checkpoint": "A copy of all that was learned, on the disk. A run goes on from the newest one that is whole.",
    "fence": "The limit on the worker's memory that the kernel enforces, should all else fail.",
    "reserve": "The memory that is kept for the rest of the machine.",
    "ledger": "The record of every decision with its cause and its result.",
    "tier": "How much of the machine a run takes to begin with: low, safe or full.",
    "held": "The worker stands still and keeps its memory.",
    "frozen": "The worker was stopped by the kernel, in the middle of whatever it did.",
}
_WORDS = re.compile(rf"\b({'|'.join(sorted(map(re.escape, GLOSSARY), key=len, reverse=True))})(?=s?\b)", re.IGNORECASE)


def explained(markup: str) -> str:
    """Text of the page, made harmless before, whose first word of the glossary has its meaning with it."""
    return _WORDS.sub(_with_its_meaning, markup, count=1)


def _with_its_meaning(found: re.Match[str]) -> str:
    meaning = html.escape(GLOSSARY[found[1].lower()], quote=True)
    return f'<abbr title="{meaning}">{found[1]}</abbr>'
