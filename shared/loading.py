"""How flags, environment and files are laid over each other and become `Settings`.

Flags win over `MEMSUP_SECTION_KEY`, that over `memsup.toml`, that over the user's own file; the origin of each value is kept,
so that `start` can say where a limit came from. What the settings are is in `settings.py`.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import platformdirs

from memsup.shared import other_names
from memsup.shared.files import UnreadableError, read_document
from memsup.shared.paths import current_folder, is_text
from memsup.shared.printable import printable
from memsup.shared.secret import as_secret, named
from memsup.shared.settings import Settings, SettingsError, Share, Written, keys, parse_duration_s, parse_size

_MOST_TOML_BYTES = 256 << 10
_MOST_PATH_BYTES = 4095
"""What Linux takes (path_resolution(7))."""
_MOST_NAME_BYTES = 255
"""What file systems take for one name in a path (NAME_MAX)."""
_MOST_SHOWN = 200
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_NOT_SETTINGS = {"MEMSUP_STATE_DIR", "MEMSUP_RUNTIME_DIR"}


class Loaded(msgspec.Struct, frozen=True):
    """The settings in force, and for each key that was set (`training.epochs`) the place that set it."""

    settings: Settings
    origins: dict[str, str]
    of_job_file: frozenset[str] = frozenset()
    """The keys that the job's file set, which lies in a folder and may be somebody else's."""


def load(
    *, job_file: Path | None, flags: Iterable[str], environment: Mapping[str, str], user_file: Path | None = None
) -> Loaded:
    """The settings in force: flags > environment > `job_file` > `user_file` > defaults. Flags look like `training.epochs=2`.

    Raises `SettingsError` for the first setting that is unknown, malformed or senseless.
    """
    layers: list[tuple[str, Path, dict[str, Any]]] = []
    here = current_folder()
    for file in (user_file, job_file):
        if file is not None:
            content = _flatten(_read_toml(file), str(file))  # what cannot be read has no place that could be resolved
            layers.append((str(file), file.resolve().parent, content))
    from_environment = {}
    for name, value in sorted(environment.items()):
        if name.startswith("MEMSUP_") and name not in _NOT_SETTINGS:
            from_environment[_key_of_variable(name)] = value
    layers.append(("environment", here, from_environment))
    layers.append(("flag", here, dict(_split_flag(flag) for flag in flags)))

    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, folder, layer in layers:
        for key, value in layer.items():
            values[key] = _typed(key, value, origin, folder)
            origins[key] = origin
    of_job_file = frozenset(name for name, origin in origins.items() if job_file is not None and origin == str(job_file))
    return Loaded(settings=_build(values, origins), origins=origins, of_job_file=of_job_file)


def user_settings_file() -> Path | None:
    """The user's own `memsup.toml`. Returns None where there is none."""
    file = Path(platformdirs.user_config_path("memsup")) / "memsup.toml"
    return file if os.path.lexists(file) else None


def _read_toml(file: Path) -> dict[str, Any]:
    if not is_text(str(file)):
        raise SettingsError(f"The name of {file} is not UTF-8: rename its folder.")
    try:
        return read_document(file, _toml, most_bytes=_MOST_TOML_BYTES)
    except FileNotFoundError:
        raise SettingsError(f"{file} cannot be read: the link leads nowhere.") from None
    except UnreadableError as error:
        raise SettingsError(f"{file} cannot be read: {error}.") from None


def _toml(content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # Notepad begins a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not valid TOML: {error}{_line_of(error, content)}") from None
    except ValueError:
        raise ValueError("it holds a number of more digits than can be read") from None


def _line_of(error: tomllib.TOMLDecodeError, content: bytes) -> str:
    """The line that could not be read, as far as it may be told, and what is most often missing in it. It is empty where the
    error names no line.
    """
    place = _AT_LINE.search(str(error))  # Python 3.14 has `lineno`
    lines = content.decode("utf-8-sig").split("\n")
    if place is None or not 0 < int(place[1]) <= len(lines):
        return ""
    line = lines[int(place[1]) - 1].strip()
    name, equals, value = (part.strip() for part in line.partition("="))
    if "://" in line:  # an address may have a password in it
        return f". The line is: {printable(name)} = …"
    advice = ""
    if equals and value and value[0] not in "\"'[{0123456789+-":
        advice = f'; text needs quotation marks: {printable(name)} = "{_shortly(value)}"'
    return f". The line is: {_shortly(line)}{advice}"


def _flatten(table: dict[str, Any], origin: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                flat[_known(f"{key}.{inner}", origin)] = inner_value
        else:
            flat[_known(key, origin)] = value
    return flat


def _split_flag(flag: str) -> tuple[str, str]:
    key, equals, value = flag.partition("=")
    if not equals:
        raise SettingsError(f"--set {_as_key(flag)}: write it as KEY=VALUE, for example training.epochs=2.")
    return _known(key.strip(), "--set"), value.strip()


def variable_of(key: str) -> str:
    """The environment variable of a setting."""
    return "MEMSUP_" + key.replace(".", "_").upper()


def _key_of_variable(name: str) -> str:
    for key in keys():
        if variable_of(key) == name.upper():
            return key
    return _known(name.removeprefix("MEMSUP_").lower(), f"the environment variable {name}")


def _known(key: str, origin: str) -> str:
    known = keys()
    if key in known:
        return key
    if (advice := other_names.told(key)) is not None:
        raise SettingsError(f"Unknown setting {_as_key(key)!r} in {origin}. {advice}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.5
    )
    hint = next((k for k in known if near and (k == near[0] or k.endswith("." + near[0]))), None)
    advice = f"Did you mean {hint}?" if hint else "docs/settings.md lists them all."
    raise SettingsError(f"Unknown setting {_as_key(key)!r} in {origin}. {advice}")


def _as_key(text: str) -> str:
    """As much of `text` as can be a setting's name; what follows may be its value, and that a secret."""
    name = re.match(r"[\w.-]{0,60}", text)
    assert name is not None, "it matches nothing as well"
    return name[0] + ("…" if name[0] != text else "")


def _typed(key: str, value: Any, origin: str, folder: Path) -> Any:
    """The value with its type: text from flags and environment becomes what TOML would have given."""
    if not all(is_text(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
        raise SettingsError(f"{key} ({origin}) is not UTF-8 text: write it in UTF-8, or rename the file that it names.")
    try:
        match keys()[key].written:
            case Written.SIZE:
                return parse_size(str(value))
            case Written.DURATION:
                return parse_duration_s(str(value))
            case Written.WORDS if isinstance(value, str):
                return value.split()
            case Written.PATHS if isinstance(value, str | list):
                return _all_located(value, folder)
            case Written.NAMES if isinstance(value, str) and value not in ("auto", "off"):
                return [name.strip() for name in value.split(",")]
            case Written.WEIGHTS if isinstance(value, str) and ":" in value:
                return _weights(value)
            case (Written.PATH | Written.MODEL) as written if isinstance(value, str):
                return _located(value, folder, hub_allowed=written is Written.MODEL)
    except ValueError as error:
        raise SettingsError(f"{_given(key, value)} ({origin}) is not usable: {error}.") from None
    return value


def _weights(value: str) -> dict[str, float] | str:
    """The number for each name; what is not written so stays as it is, and is refused like any other."""
    parts = [one.rpartition(":") for one in value.split(",")]
    try:
        return {name.strip(): float(weight) for name, _, weight in parts}
    except ValueError:
        return value


def _given(key: str, value: Any) -> str:
    """The setting with its value, as far as that may be told: an address may have a password or a token in it."""
    if keys()[key].is_secret:
        return key
    text = _shortly(value)
    return f"{key} = {named(text)}://…" if "://" in text else f"{key} = {text}"


def _located(value: str, folder: Path, *, hub_allowed: bool) -> str:
    if "\0" in value or len(os.fsencode(value)) > _MOST_PATH_BYTES:
        raise ValueError(f"a path has no zero byte, and at most {_MOST_PATH_BYTES:,} bytes")
    if "://" in value:
        raise ValueError("nothing is fetched from an address; write the path of a file or folder")
    if value.startswith("package:"):
        return value
    path = Path(os.path.expanduser(value))
    if not path.is_absolute():
        path = folder / path
    if hub_allowed and not os.path.lexists(path) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        return value  # a hub id such as bert-base-chinese or hfl/chinese-roberta-wwm-ext
    if not hub_allowed and any(len(os.fsencode(name)) > _MOST_NAME_BYTES for name in path.parts):
        raise ValueError(f"a name in a path has at most {_MOST_NAME_BYTES} bytes")
    return os.path.normpath(path)


def _all_located(value: str | list[Any], folder: Path) -> str | list[Any]:
    """A comma stands between two files only where no file has that very name and one of the two is there."""
    if isinstance(value, list):
        return [_located(each, folder, hub_allowed=False) if isinstance(each, str) else each for each in value]
    whole = _located(value, folder, hub_allowed=False)
    if "," not in value or os.path.lexists(whole):
        return whole
    parts = [_located(part.strip(), folder, hub_allowed=False) for part in value.split(",") if part.strip()]
    return parts if len(parts) > 1 and any(os.path.lexists(part) or glob.has_magic(part) for part in parts) else whole


def _build(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    """The settings, converted key by key, so that an error names its key and its origin. Raises `SettingsError`."""
    settings = Settings()
    for name, value in values.items():
        key = keys()[name]
        if value in ("auto", "") and key.may_be_unset:
            key.set(settings, None)
            continue
        from_text = origins[name] in ("flag", "environment")
        try:
            converted = (
                value
                if isinstance(value, Share)
                else msgspec.convert(value, key.type, strict=not from_text, dec_hook=as_secret)
            )
        except msgspec.ValidationError as error:
            why = key.advice or _wanted(str(error), key.type)
            raise SettingsError(f"{_given(name, value)} ({origins[name]}) is not usable: {why}.") from None
        key.set(settings, converted)
    return settings


def _shortly(value: Any) -> str:
    """The value for a sentence. A number may be longer than Python writes, and a text than anybody reads."""
    try:
        text = str(value)
    except ValueError:
        return "a number without end"
    text = printable(text[: _MOST_SHOWN + 1])  # one sentence is one line
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text in quotes", "array": "a list"}
_BOUNDS = {">": "above", ">=": "of at least", "<": "below", "<=": "of at most"}


def _wanted(refused: str, kind: Any) -> str:
    """What to write, from msgspec's word on what was refused and the type that is wanted."""
    choices = next((get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is Literal), None)
    if choices is not None:
        return f"write {'one of ' if len(choices) > 1 else ''}{', '.join(map(str, choices))}"
    found = re.match(r"Expected `(\w+)(?: \| null)?`(?: (>=|<=|>|<) ([-\d.e+]+))?", refused)
    if found is None or found[1] not in _KINDS:
        return refused[:1].lower() + refused[1:].replace("`", "")
    limit = (found[3] or "").removesuffix(".0")
    limit = f"{int(limit):,}" if limit.removeprefix("-").isdecimal() else limit
    bound = f" {_BOUNDS[found[2]]} {limit}" if found[2] else ""
    return f"write {_KINDS[found[1]]}{bound}"
