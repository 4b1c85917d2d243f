"""Rows made up for each task of an encoder, and settings for a training on them that takes a few seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from kit.lone_supervisor import tiny_settings
from memsup.shared.settings import Settings

TASKS: dict[str, dict[str, str]] = {
    "classes": {},
    "pairs": {"task__text_pair": "second"},
    "labels": {"task__problem_type": "multi_label_classification"},
    "scores": {"task__problem_type": "regression"},
    "tags": {"task__kind": "token-classification"},
}
_SIGNS = "好坏大小高低快慢冷热新旧"


def tiny_task(folder: Path, task: str, *, rows: int, **values: Any) -> Settings:
    """As `tiny_settings`, with so many rows of `task`."""
    file = folder / "rows.jsonl"
    wanted = tiny_settings(folder, task__train=file, **TASKS[task], **values)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task, rows)), encoding="utf-8")
    return wanted


def rows_of(task: str, count: int) -> list[dict[str, Any]]:
    """Texts of 1 to 30 characters and what is learnt of them: with texts that have no second one, or no label, and words of
    several pieces.
    """
    draw, found = random.Random(5), []
    for number in range(count):
        text = "".join(draw.choices(_SIGNS, k=draw.randint(1, 30)))
        tokens = [text[place : place + 3] for place in range(0, len(text), 3)]
        of_task: dict[str, dict[str, Any]] = {
            "classes": {"text": text, "label": draw.choice("ab")},
            "pairs": {"text": text, "second": text[::-1] * draw.randint(0, 1), "label": draw.choice("ab")},
            "labels": {"text": text, "label": sorted(draw.sample("abc", number % 4))},
            "scores": {"text": text, "label": draw.randint(-8, 8) / 4},
            "tags": {"tokens": tokens, "tags": draw.choices(["O", "B-X"], k=len(tokens))},
        }
        found.append(of_task[task])
    return found
