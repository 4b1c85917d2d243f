"""Whether a model's tokenizer says how a dialogue is written: a template in its folder. Nothing of it is run here."""

from __future__ import annotations

import json
from pathlib import Path

from memsup.shared.files import UnreadableError, read_document
from memsup.shared.model import content

FILES = ("chat_template.jinja", "chat_template.json")


def has_chat_template(folder: Path) -> bool:
    """Whether a template lies there, in a file of its own or in the tokenizer's configuration."""
    if any((folder / name).is_file() for name in FILES):
        return True
    try:
        found = read_document(folder / "tokenizer_config.json", json.loads, most_bytes=content.MOST_INDEX_BYTES)
    except (OSError, UnreadableError):
        return False
    return isinstance(found, dict) and bool(found.get("chat_template"))
