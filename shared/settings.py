"""Every setting, once: name, type, default and meaning; and how flags, environment and files are laid over each other.

The struct below is the only place in which a setting is declared; `--set section.key=value`, `MEMSUP_SECTION_KEY` and
`memsup.toml` are all read against it, and the origin of each value is kept so that `start` can say where a limit came from.
What a tier puts in for an unset value (`None` here) is decided in `supervisor/tiers.py`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
import platformdirs

from memsup.shared.lanes import MOST_LANES


class SettingsError(Exception):
    """A setting is unknown or makes no sense; the text is one plain sentence with what to do."""


class Share(msgspec.Struct, frozen=True):
    """A part of something that is measured later, such as 0.9 of the RAM."""

    fraction: float


TierName = Literal["low", "safe", "full"]
Positive = Annotated[int, msgspec.Meta(gt=0)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Task(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is trained on what. Paths are absolute once loaded. `package:NAME/PATH` names data inside an installed package."""

    kind: Literal["text-classification"] = "text-classification"
    model: str | None = None
    """A model's folder or hub id. A folder with a `config.json` alone is a model to be trained from nothing."""
    train: str | None = None
    """CSV, TSV, JSONL or Parquet; or a folder with one `<label>.txt` for each label, one text a line."""
    eval: str | None = None
    """The same for evaluation; unset: a tenth of `train` is held out."""
    text: str | None = None
    """The column with the text; unset: found by its content."""
    label: str | None = None
    """The column with the label; unset: found by its content."""


class Training(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    epochs: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 3.0
    effective_batch: Positive | None = None
    """Samples of one optimizer step; fixed for the run."""
    max_length: Annotated[int, msgspec.Meta(ge=4, le=1_000_000)] | None = None
    micro_tokens: Positive | None = None
    """Most rows × padded length computed at once, at the start."""
    tune: bool | None = None
    """Search for the fastest cut while training. Left open: where `micro_tokens` was left open as well."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)] = 5e-5
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.01
    warmup: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.06
    """Share of all steps in which the learning rate rises."""
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    eval_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """Share of `task.train` that is held out when `task.eval` is unset."""
    seed: NotNegative = 42
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: Literal["off", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool | None = None
    optimizer_on_host: bool | None = None
    """On a GPU: the optimizer's moments lie in host memory."""
    loader_processes: NotNegative | None = None
    threads: Positive | None = None
    """Threads of CPU computation; chosen once and kept for the run, since another number gives other bits."""
    lanes: Annotated[int, msgspec.Meta(ge=1, le=MOST_LANES)] | None = None
    """Parts of a micro-batch computed side by side on a CPU. Left open: as memory allows (`shared/lanes.py`)."""


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    ram: Share | int = Share(0.9)
    """Bounds the worker's whole tree: bytes, or a share of the RAM this machine (or cgroup) has."""
    ram_reserve: Share | int | None = None
    """What the rest of the machine keeps; unset: a tenth of the RAM, at least 512 MiB (96 MiB inside a cgroup)."""
    vram: Share | int = Share(0.95)
    gpu_temperature_c: Annotated[float, msgspec.Meta(gt=0, lt=150)] | None = None
    cpu_temperature_c: Annotated[float, msgspec.Meta(gt=0, lt=150)] | None = None
    power_w: Annotated[float, msgspec.Meta(gt=0)] | None = None
    on_battery: Literal["pause", "run"] = "pause"
    """What a laptop does that is unplugged."""


class Recovery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    continue_on_cpu: bool = False
    """A run whose GPU is lost goes on on the CPU: much slower, and with other rounding."""
    after_power_loss: Literal["ask", "gentle", "same"] = "gentle"
    """How it goes on when the whole machine has died (`supervisor/footing.py`)."""


class Checkpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    every_s: float | None = None
    """Seconds between checkpoints; `auto` (None here) weighs what a save costs against what a death would."""
    keep: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 2
    folder: str | None = None
    resume_from: str | None = None


class Notify(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    urls: list[str] = msgspec.field(default_factory=list)
    """Where messages go, as apprise writes it; `file:/PATH` (one a line) and `env:NAME` keep them out of settings and logs."""
    ping_url: str | None = None
    """Fetched every minute while the supervisor lives; may be `file:` or `env:`, too."""


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    tier: Literal["auto", "low", "safe", "full"] = "auto"
    task: Task = msgspec.field(default_factory=Task)
    training: Training = msgspec.field(default_factory=Training)
    limits: Limits = msgspec.field(default_factory=Limits)
    recovery: Recovery = msgspec.field(default_factory=Recovery)
    checkpoint: Checkpoint = msgspec.field(default_factory=Checkpoint)
    notify: Notify = msgspec.field(default_factory=Notify)


class Loaded(msgspec.Struct, frozen=True):
    """The settings in force, and for each key that was set (`training.epochs`) the place that set it."""

    settings: Settings
    origins: dict[str, str]


# The name a person writes → the field that holds it, where they differ: the field carries its unit.
_WRITTEN = {"checkpoint.every": "checkpoint.every_s"}
_DURATIONS = {"checkpoint.every"}
_SIZES = {"limits.ram", "limits.ram_reserve", "limits.vram"}
_PATHS = {"task.model", "task.train", "task.eval", "checkpoint.folder", "checkpoint.resume_from"}
_NOT_SETTINGS = {"MEMSUP_STATE_DIR", "MEMSUP_RUNTIME_DIR"}


def load(
    *, job_file: Path | None, flags: Iterable[str], environment: Mapping[str, str], user_file: Path | None = None
) -> Loaded:
    """Flags > environment > `job_file` > `user_file` > defaults. Flags look like `training.epochs=2`.

    Raises `SettingsError` for the first setting that is unknown, malformed or senseless.
    """
    layers: list[tuple[str, Path, dict[str, Any]]] = []
    here = Path.cwd()
    for file in (user_file, job_file):
        if file is not None:
            layers.append((str(file), file.resolve().parent, _flatten(_read_toml(file), str(file))))
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
    return Loaded(settings=_build(values, origins), origins=origins)


def user_settings_file() -> Path | None:
    """The user's own `memsup.toml`, if there is one."""
    file = Path(platformdirs.user_config_path("memsup")) / "memsup.toml"
    return file if file.is_file() else None


def all_keys() -> list[str]:
    """Every setting as a person writes it: `tier`, `task.kind`, …"""
    renamed = {field: written for written, field in _WRITTEN.items()}
    keys = []
    for field in msgspec.structs.fields(Settings):
        section = field.type
        if isinstance(section, type) and issubclass(section, msgspec.Struct):
            keys += [f"{field.name}.{inner.name}" for inner in msgspec.structs.fields(section)]
        else:
            keys.append(field.name)
    return [renamed.get(key, key) for key in keys]


# --------------------------------------------------------------------------------------------------------------------
# Values as people write them

_SIZE = re.compile(r"([\d_]+(?:\.\d+)?)\s*([kmgt]i?b?|b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))+")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int | Share:
    """`600MiB`, `4GB`, `4G` (binary, as free and systemd read it), a number of bytes, or a share: `85%`. Raises ValueError."""
    text = text.strip()
    if text.endswith("%"):
        fraction = float(text[:-1]) / 100
        if not 0 < fraction <= 1:
            raise ValueError("a share lies between 0% and 100%")
        return Share(fraction)
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("write a size such as 600MiB, 4GB or 85%")
    unit = (match[2] or "b").lower()
    base = 1000 if unit.endswith("b") and "i" not in unit and unit != "b" else 1024
    size = int(float(match[1].replace("_", "")) * base ** ("bkmgt".index(unit[0])))
    if size <= 0:
        raise ValueError("a size must be more than nothing")
    return size


def parse_duration_s(text: str) -> float | None:
    """`2s`, `10m`, `1h30m`; `auto` is None. Raises ValueError."""
    text = text.strip()
    if text == "auto":
        return None
    if not _DURATION.fullmatch(text):
        raise ValueError("write a duration such as 90s, 10m or 1h30m, or auto")
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))
    if total <= 0:
        raise ValueError("a duration must be more than nothing")
    return total


# --------------------------------------------------------------------------------------------------------------------
# Reading the layers


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from None


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
        raise SettingsError(f"--set {flag}: write it as KEY=VALUE, for example training.epochs=2.")
    return _known(key.strip(), "--set"), value.strip()


def _key_of_variable(name: str) -> str:
    wanted = name.removeprefix("MEMSUP_").lower()
    for key in all_keys():
        if key.replace(".", "_") == wanted:
            return key
    return _known(wanted, f"the environment variable {name}")


def _known(key: str, origin: str) -> str:
    keys = all_keys()
    if key in keys:
        return key
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [k.rpartition(".")[2] for k in keys], n=1, cutoff=0.5
    )
    hint = next((k for k in keys if near and (k == near[0] or k.endswith("." + near[0]))), None)
    advice = f"Did you mean {hint}?" if hint else "docs/settings.md lists them all."
    raise SettingsError(f"Unknown setting {key!r} in {origin}. {advice}")


def _typed(key: str, value: Any, origin: str, folder: Path) -> Any:
    """The value with its type: text from flags and environment becomes what TOML would have given."""
    try:
        if key in _SIZES:
            return parse_size(str(value))
        if key in _DURATIONS:
            return parse_duration_s(str(value))
    except ValueError as error:
        raise SettingsError(f"{key} = {value} ({origin}) is not usable: {error}.") from None
    if key == "notify.urls" and isinstance(value, str):
        return value.split()
    if key in _PATHS and isinstance(value, str):
        return _located(value, folder, hub_allowed=key == "task.model")
    return value


def _located(value: str, folder: Path, *, hub_allowed: bool) -> str:
    if value.startswith("package:"):
        return value
    path = Path(os.path.expanduser(value))
    if not path.is_absolute():
        path = folder / path
    if hub_allowed and not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        return value  # a hub id such as bert-base-chinese or hfl/chinese-roberta-wwm-ext
    return os.path.normpath(path)


def _build(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    """Converts key by key, so that an error names its key and its origin."""
    settings = Settings()
    for key, value in values.items():
        section_name, _, field_name = _WRITTEN.get(key, key).rpartition(".")
        target = getattr(settings, section_name) if section_name else settings
        kind = get_type_hints(type(target), include_extras=True)[field_name]
        if value in ("auto", "") and type(None) in get_args(kind):
            setattr(target, field_name, None)
            continue
        from_text = origins[key] in ("flag", "environment")
        try:
            converted = value if isinstance(value, Share) else msgspec.convert(value, kind, strict=not from_text)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{key} = {value} ({origins[key]}) is not usable: {_plain(str(error))}.") from None
        setattr(target, field_name, converted)
    return settings


def _plain(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "")
