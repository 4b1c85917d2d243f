"""The JSON schema of `memsup.toml`, for editors (taplo, Even Better TOML). Pure; made from the types of the settings."""

from __future__ import annotations

from typing import Any

import msgspec

from memsup.shared.settings import Key, Settings, Written, keys

_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_AS_WRITTEN: dict[Written, dict[str, Any]] = {
    Written.SIZE: {"anyOf": [{"type": "integer", "minimum": 101}, {"type": "string", "examples": ["600MiB", "4GB", "85%"]}]},
    Written.DURATION: {"type": "string", "examples": ["auto", "90s", "10m", "1h30m"]},
    Written.PATH: _TEXT,
    Written.MODEL: _TEXT,
    Written.PATHS: _TEXTS,
    Written.WORDS: _TEXTS,
    Written.NAMES: _TEXTS,
    Written.WEIGHTS: {"anyOf": [_TEXT, {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}]},
}


def schema_of_settings() -> dict[str, Any]:
    """The schema, in which a file with a key or a value that memsup would refuse is none."""
    root: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, key in keys().items():
        place = sections.setdefault(key.section, {}) if key.section else root
        place[name.rpartition(".")[2]] = _schema_of(key)
    for section, properties in sections.items():
        root[section] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memsup.toml",
        "type": "object",
        "properties": root,
        "additionalProperties": False,
    }


def _schema_of(key: Key) -> dict[str, Any]:
    if key.written is not None:
        found = dict(_AS_WRITTEN[key.written])
    elif key.is_secret:
        found = dict(_TEXT)
    else:
        found = msgspec.json.schema(key.type)
        choices = [one for one in found.pop("anyOf", [found]) if one.get("type") != "null"]
        found = dict(choices[0]) if len(choices) == 1 else {"anyOf": choices}
    if key.may_be_unset and "string" not in str(found.get("type")):
        found = {"anyOf": [*found.get("anyOf", [found]), {"const": "auto"}]}
    default = key.value(Settings())
    if isinstance(default, str | int | float | bool):
        found["default"] = default
    return found
