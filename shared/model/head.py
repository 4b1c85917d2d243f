"""The labels of a model's head beside those of the data: whether they are the same, and in which order. Pure.

A head that was trained before has outputs with a meaning. Where its labels are the data's, whatever their case and blanks, its
order and its spelling stay. Where they are others it begins anew: to go on with an output under another name would turn what it
has learnt over.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memsup.shared.data.targets import TaskKind


class Fit(enum.StrEnum):
    """How a head's labels and the data's go together."""

    UNNAMED = "unnamed"
    """The head has no labels of its own, or there is none: the data's are given to it, in their order."""
    SAME = "same"
    OTHER = "other"
    """Another number of labels, and none of them the data's: the head of another task, which is replaced."""
    DOUBTFUL = "doubtful"
    """As many labels as the data have, or some of the data's among them: it may be meant for them."""


@dataclass(frozen=True)
class Match:
    fit: Fit
    names: tuple[str, ...]
    """What the outputs will be called, in their order."""
    places: tuple[int, ...]
    """The output of each of the data's labels."""


def head_labels(config: Mapping[str, Any], task: TaskKind = "text-classification") -> tuple[str, ...] | None:
    """The labels of a classifier's outputs in their order, as its config.json names them. It is None where it names none, or is
    the config of another kind of model than the task's.
    """
    made_for = config.get("architectures")
    wanted = "ForTokenClassification" if task == "token-classification" else "ForSequenceClassification"
    if isinstance(made_for, list) and made_for and not any(wanted in str(name) for name in made_for):
        return None
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        places = config.get("label2id")
        names = {place: name for name, place in places.items()} if isinstance(places, dict) else {}
    by_place = {str(place): str(name) for place, name in names.items()}
    if set(by_place) != {str(place) for place in range(len(by_place))}:
        return None
    return tuple(by_place[str(place)] for place in range(len(by_place))) or None


def match(head: Sequence[str] | None, labels: Sequence[str], *, complete: bool = True) -> Match:
    """`complete` says that the data have no more labels than `labels`."""
    as_data_say = Match(Fit.UNNAMED, tuple(labels), tuple(range(len(labels))))
    if head is None or all(name == f"LABEL_{place}" for place, name in enumerate(head)):
        return as_data_say
    in_head, in_data = list(map(_alike, head)), list(map(_alike, labels))
    if len(set(in_head)) < len(head) or len(set(in_data)) < len(labels):
        in_head, in_data = list(head), list(labels)  # some differ in their case alone, so that it counts
    shared = set(in_head) & set(in_data)
    outside = {"o"} if any(name.startswith("b-") for name in in_data) else set()  # every tagger's head has that
    if len(set(in_head)) == len(in_head) and (shared == set(in_data) if not complete else set(in_head) == set(in_data)):
        return Match(Fit.SAME, tuple(head), tuple(in_head.index(label) for label in in_data))
    if not shared and all(name == str(place) for place, name in enumerate(head)):
        return as_data_say  # numbers are places and no names
    doubtful = bool(shared - outside) or len(head) == len(labels) or (not complete and len(head) > len(labels))
    return Match(Fit.DOUBTFUL if doubtful else Fit.OTHER, as_data_say.names, as_data_say.places)


def _alike(name: str) -> str:
    """The same for names that differ in case, width and blanks alone."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
