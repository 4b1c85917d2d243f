"""Models at a hub: what is an id of one, where the hub's own library keeps what it has fetched, and where it would ask.

Nothing is fetched here; `start` looks an id up (`supervisor/client/hub.py`), the worker fetches the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from memsup.shared.files import read_small

_LONGEST_ID = 96
_ENDPOINT = "https://huggingface.co"


def is_hub_id(model: str) -> bool:
    """Whether it has the form of an id, such as bert-base-chinese or hfl/chinese-roberta-wwm-ext."""
    return len(model) <= _LONGEST_ID and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model) is not None


def id_in_address(model: str) -> str | None:
    """The id in a page's address, as browsers show it. It is None where `model` is no such address."""
    found = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/([^/]+(?:/[^/]+)?).*", model)
    return found[1] if found else None


def cached_folder(model: str, environment: Mapping[str, str]) -> Path | None:
    """Where the files lie that were fetched of this model. It is None where none were, or they cannot be read."""
    folder = _cache(environment) / f"models--{model.replace('/', '--')}"
    try:
        commit = read_small(folder / "refs" / "main", 128).decode("ascii", "replace").strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"\w+", commit) and os.path.isfile(snapshot / "config.json") else None


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the hub's library is told to use no network."""
    return (environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE", "")).upper() in {
        "1",
        "ON",
        "YES",
        "TRUE",
    }


def endpoint(environment: Mapping[str, str]) -> str:
    """The address of the hub, without a slash at its end."""
    return environment.get("HF_ENDPOINT", _ENDPOINT).rstrip("/")


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether the hub's library has a token to show. What it is, is not read."""
    if environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    return os.path.isfile(environment.get("HF_TOKEN_PATH") or _home(environment) / "token")


def _home(environment: Mapping[str, str]) -> Path:
    default = Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(environment.get("HF_HOME") or default)).expanduser()


def _cache(environment: Mapping[str, str]) -> Path:
    own = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(own)).expanduser() if own else _home(environment) / "hub"
