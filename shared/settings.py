"""Every setting, once: name, type, default and meaning, how a person writes it, and whether it may change later. Pure.

The structs below are the only place in which a setting is declared; `--set section.key=value`, `MEMSUP_SECTION_KEY` and
`memsup.toml` are all read against them (`loading.py`), and `keys` tells what their fields say of themselves.
What a tier puts in for an unset value (`None` here) is decided in `supervisor/decide/tiers.py`.
"""

from __future__ import annotations

import enum
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec

from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.targets import ProblemType, TaskKind
from memsup.shared.lanes import MOST_LANES
from memsup.shared.secret import Secret


class SettingsError(Exception):
    """A setting is unknown or makes no sense; the text is one plain sentence with what to do, and `more` what follows it in
    lines of their own.
    """

    def __init__(self, text: str, *, more: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.more = more


class Share(msgspec.Struct, frozen=True):
    """A part of something that is measured later, such as 0.9 of the RAM."""

    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Written(enum.Enum):
    """How a person writes a value that is no plain number, word or switch."""

    SIZE = enum.auto()
    """`600MiB`, `4GB`, or a share such as `85%`."""
    DURATION = enum.auto()
    """`90s`, `10m`, `1h30m`; its field ends in `_s`, its key does not."""
    PATH = enum.auto()
    """A file or folder, relative to the file that names it."""
    PATHS = enum.auto()
    """A path or a pattern such as `data/*.csv`; or several, in a list or with commas between."""
    MODEL = enum.auto()
    """A path as above, or the id of a model at a hub."""
    WORDS = enum.auto()
    """A list, or its words with blanks between them."""
    NAMES = enum.auto()
    """A list, or its names with commas between them, since names may have blanks in them."""
    WEIGHTS = enum.auto()
    """A table of names with a number each, or `NAME:NUMBER` with commas between; or a word in its place."""


Size = Annotated[Share | Annotated[int, msgspec.Meta(gt=0, le=1 << 60)], msgspec.Meta(extra={"written": Written.SIZE})]
Duration = Annotated[float, msgspec.Meta(gt=0, le=366 * 86400, extra={"written": Written.DURATION})]
PathText = Annotated[str, msgspec.Meta(extra={"written": Written.PATH})]
PathTexts = Annotated[
    str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=10_000)], msgspec.Meta(extra={"written": Written.PATHS})
]
ModelText = Annotated[str, msgspec.Meta(extra={"written": Written.MODEL})]
SecretWords = Annotated[list[Secret], msgspec.Meta(extra={"written": Written.WORDS})]
Names = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=2, extra={"written": Written.NAMES})
]
Weights = Annotated[
    Literal["balanced"] | Annotated[dict[str, Annotated[float, msgspec.Meta(gt=0, le=1e6)]], msgspec.Meta(min_length=1)],
    msgspec.Meta(extra={"written": Written.WEIGHTS}),
]
Words = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1, extra={"written": Written.NAMES})
]
Doubts = Annotated[list[DoubtKind], msgspec.Meta(extra={"written": Written.WORDS})]
LATER_TOO = msgspec.Meta(extra={"may_change": True})
"""Marks a field, or a whole section, that may change while a run lasts: it guards or saves differently, or says when what is
learnt is looked at and for how long, but no step learns anything else."""
CONTACTS = msgspec.Meta(extra={"contacts": True})
"""Marks what something is sent to: a file that lies in a folder may not decide that alone (`supervisor/client/trust.py`)."""
MACHINES = msgspec.Meta(extra={"machines": True})
"""Marks what decides with which other machines a run is computed: a file that lies in a folder may not decide that alone
either."""


def _write(what: str) -> msgspec.Meta:
    """Marks a field with what to write in place of a value that is refused."""
    return msgspec.Meta(extra={"advice": f"write {what}"})


TierName = Literal["low", "safe", "full"]


class CurveKind(enum.StrEnum):
    """What curves of a training are written for, by the name of the package that reads them."""

    TENSORBOARD = "tensorboard"
    TRACKIO = "trackio"


class Task(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is trained on what. Paths are absolute once loaded. `package:NAME/PATH` names data inside an installed package."""

    kind: TaskKind = "text-classification"
    """What is learnt: labels of texts; as `token-classification`, of words and spans in them; or as `causal-lm`, to go on with
    texts, such as to answer in a chat."""
    problem_type: ProblemType = "single_label_classification"
    """What is learnt of a text, as transformers names it: which of a few labels it has, which several
    (`multi_label_classification`), or a number (`regression`)."""
    model: ModelText | None = None
    """A model's folder or hub id. A folder with a `config.json` alone is a model to be trained from nothing."""
    train: PathTexts | None = None
    """CSV, TSV, JSON or Parquet: a file, several, a pattern, or a folder of them; or a folder with a `<label>.txt` or a folder
    `<label>/` of texts for each label."""
    eval: PathTexts | None = None
    """The same for evaluation. None means what lies beside `train` for that, or else a share of `train` that is held out."""
    stream: bool = False
    """Whether the training data are read in their order as training goes on, in place of all of them before it."""
    shuffle_buffer: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    """How many rows of a stream are shuffled together. None means as many as have some four million tokens."""
    text: str | None = None
    """The column with the text. None means that it is found by its name or content."""
    label: str | None = None
    """The column with the label. None means that it is found by its name or content."""
    text_pair: str | None = None
    """The column with a second text, such as the hypothesis to a premise. None means that each row has one text."""
    labels: Annotated[Names | None, _write("two labels or more with commas between them, such as neg,pos")] = None
    """The labels that count: a row with another one is left out. None means that all count that are there."""
    class_weights: Annotated[Weights | None, _write("balanced, or numbers above 0 such as neg:2,pos:1")] = None
    """How much a row counts by its class: `balanced` gives each class the same share, whatever its rows; a table has the number
    for each class, 1 for one that it does not name. None means that each row counts the same."""
    messages: str | None = None
    """The column with the messages of a dialogue (`causal-lm`). None means that it is found by its name."""
    prompt: str | None = None
    """The column with what is asked (`causal-lm`). None means that it is found by its name."""
    completion: str | None = None
    """The column with what is answered (`causal-lm`). None means that it is found by its name."""
    accept: Annotated[Doubts, LATER_TOO, _write(f"any of {', '.join(DoubtKind)}")] = msgspec.field(default_factory=list)
    """The doubts about the data that a person has looked at and found to be none (`shared/data/judge.py`)."""


class Training(msgspec.Struct, kw_only=True):  # a run.json of before may hold what is no setting any more; it is passed over
    """How it is trained. What is None here is decided by the tier, or by the worker where that is said."""

    method: Literal["full", "lora"] | None = None
    """Whether all weights learn, or adapters beside them. None means adapters for `causal-lm` and all weights elsewhere."""
    epochs: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 3.0
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None = None
    """The optimizer steps of the run, however many passes these are. None means that `epochs` says it."""
    effective_batch: Annotated[int, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    """Samples of one optimizer step, fixed for the run."""
    max_length: Annotated[int, msgspec.Meta(ge=4, le=1_000_000)] | None = None
    """Tokens at which a longer text is cut."""
    micro_tokens: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)] | None = None
    """The most that rows × padded length of a micro-batch may be at the start."""
    tune: bool | None = None
    """Whether the fastest cut is searched for while training. None means that it is where `micro_tokens` was left open as
    well."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)] = 5e-5
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.01
    warmup: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.06
    """The share of all steps in which the learning rate rises."""
    clip_norm: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1e30)] | Literal["off"], _write("a number above 0, or off for no clipping")
    ] = 1.0
    """The norm to which gradients are scaled down, or `off`."""
    eval_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    """The share of `task.train` that is held out where nothing else evaluates."""
    evaluate_every: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | Literal["epoch"],
        LATER_TOO,
        _write("a number of steps, or epoch for the end of each pass"),
    ] = "epoch"
    """Steps from one evaluation to the next, or `epoch`. After the last step it is evaluated in any case."""
    patience: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | Literal["off"],
        LATER_TOO,
        _write("a number of evaluations, or off for never ending early"),
    ] = "off"
    """The evaluations in a row without a better result after which training ends, or `off`."""
    keep: Literal["last", "best"] = "last"
    """The weights that become the model: those of the last step, or those of the best evaluation."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 42
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)\Z"), _write("auto, cpu, cuda or cuda:N")] = (
        "auto"
    )
    """What it is computed on."""
    amp: Literal["off", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool | None = None
    optimizer_on_host: bool | None = None
    """Whether the optimizer's moments lie in host memory, on a GPU. None means that they do where the GPU has no room for
    them."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    """Threads of CPU computation, chosen once and kept for the run, since another number gives other bits. None means whatever
    number is fastest, or that of the usable CPUs."""
    lanes: Annotated[int, msgspec.Meta(ge=1, le=MOST_LANES)] | None = None
    """Parts of a micro-batch that a CPU computes side by side. None means as many as memory allows (`shared/lanes.py`)."""
    ranks: Annotated[Annotated[int, msgspec.Meta(ge=1, le=64)] | None, LATER_TOO] = None
    """Processes that compute each step together (docs/ranks.md). None means one for each GPU, or one on CPUs."""
    shard: Annotated[bool, LATER_TOO] = False
    """Whether ranks share the model, so that each has a part of its weights, gradients and moments, instead of all of them."""

    report_to: Annotated[
        Annotated[list[CurveKind], msgspec.Meta(min_length=1, extra={"written": Written.NAMES})] | Literal["off"],
        LATER_TOO,
        _write(f"{', '.join(CurveKind)}, both with a comma between, or off for none"),
    ] = "off"
    """What curves are written for as it goes, or `off` (`worker/curves.py`)."""

    @property
    def curves(self) -> list[CurveKind]:
        """What curves are written for."""
        return [] if self.report_to == "off" else self.report_to

    @property
    def most_norm(self) -> float:
        """The norm to which a larger gradient is scaled down; infinite where none is."""
        return math.inf if self.clip_norm == "off" else self.clip_norm


class Lora(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The adapters that learn in place of the model's own weights (`training.method = "lora"`)."""

    rank: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    """How many numbers of each layer's input an adapter passes on."""
    alpha: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    """What an adapter's output is multiplied by, times the rank. None means twice the rank."""
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """The share of an adapter's input that is dropped in training."""
    targets: Annotated[Words | None, _write("names of layers with commas between them, such as q_proj,v_proj")] = None
    """The layers that get an adapter. None means all linear ones but the last."""
    base_bits: Literal[4] | None = None
    """In how many bits the weights beside which adapters learn are held: 4 is inexact, and takes an eighth of float32's memory.
    None means in those that mixed precision computes with."""
    rslora: bool = False
    """Whether the output is divided by the root of the rank in place of the rank (Kalajdzievski 2023)."""


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the run may take of the machine. None means what the machine and its devices say themselves."""

    ram: Size = Share(0.9)
    """The most that the worker's whole tree may use: bytes, or a share of the RAM that this machine (or cgroup) has."""
    ram_reserve: Size | None = None
    """What the rest of the machine keeps. None means a tenth of the RAM, at least 512 MiB (96 MiB inside a cgroup)."""
    vram: Size = Share(0.95)
    gpu_temperature_c: Annotated[float, msgspec.Meta(gt=0, lt=150)] | None = None
    cpu_temperature_c: Annotated[float, msgspec.Meta(gt=0, lt=150)] | None = None
    power_w: Annotated[float, msgspec.Meta(gt=0, le=100_000)] | None = None
    on_battery: Literal["pause", "run"] = "pause"
    """What is done when a laptop is unplugged."""


class Recovery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the run goes on after something broke."""

    continue_on_cpu: bool = False
    """Whether a run whose GPU is lost goes on on the CPU: much slower, and with other rounding."""
    after_power_loss: Literal["ask", "gentle", "same"] = "gentle"
    """How the run goes on when the whole machine has died (`supervisor/decide/after_power_loss.py`)."""
    standby: Literal["auto", "on", "off"] = "auto"
    """Whether a process stands by that has everything imported, to take the place of a worker that dies
    (`supervisor/decide/run/warm.py`)."""
    in_memory: Literal["auto", "on", "off"] = "auto"
    """Whether the newest state is kept in memory between checkpoints, for the worker that takes its place
    (`supervisor/decide/run/in_memory.py`)."""


TimeOfDay = Annotated[
    str,
    msgspec.Meta(pattern=r"^(off|([01]?[0-9]|2[0-3]):[0-5][0-9]|24:00)\Z"),
    _write("a time of the day such as 07:00, or off"),
]


class Hours(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Between which times of the day it trains, by the clock of this machine (`supervisor/decide/run/hours.py`)."""

    begin: TimeOfDay = "off"
    """When it goes on, each day. With an end alone it goes on when a person says so."""
    end: TimeOfDay = "off"
    """By when it has saved and given its memory back, each day; `off`: it trains at any time."""


class Checkpoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """When checkpoints are written, where, and how many are kept."""

    every_s: Annotated[Duration | None, LATER_TOO] = None
    """Seconds between checkpoints. None (`auto`) means that what a save costs is weighed against what a death would."""
    keep: Annotated[int, msgspec.Meta(ge=2, le=1000), LATER_TOO] = 2
    """How many of the newest checkpoints are kept, besides the best one."""
    folder: PathText | None = None
    """Where checkpoints lie. None means that they lie in the run's state folder."""
    resume_from: PathText | None = None
    """A checkpoint to begin from. None means that it begins from what the run's own folder has, or from nothing."""


class Nodes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Several machines that compute each step together (docs/ranks.md), on CPUs; each is a node."""

    count: Annotated[int, msgspec.Meta(ge=1, le=64), MACHINES] = 1
    """How many machines."""
    address: Annotated[Annotated[str, msgspec.Meta(max_length=64)] | None, MACHINES] = None
    """The number of this machine's address in the network that they share. None means the only private one that it has."""
    port: Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)] = 29400
    """Where the first machine listens for the others."""
    join: Annotated[Annotated[str, msgspec.Meta(max_length=100)] | None, MACHINES] = None
    """The address of the first machine, where this is another. None means that this one is the first, or alone."""
    key: Annotated[Secret | None, MACHINES] = None
    """What each machine has to have to be let in. None means that the first machine draws it."""
    wait_s: Duration = 600.0
    """How long the others wait for a machine that is gone."""
    fewer: bool = False
    """Whether the run goes on without a machine that has not come back in that time. Else it ends, and can be started again."""
    any_network: Annotated[bool, MACHINES] = False
    """Whether addresses are taken that are not of a private network."""


class Notify(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who is told when the run ends or needs somebody."""

    urls: SecretWords = msgspec.field(default_factory=list)
    """Where messages go, as apprise writes it; `file:/PATH` (one a line) and `env:NAME` keep them out of settings and logs."""
    ping_url: Secret | None = None
    """An address that is fetched every minute while the supervisor lives; it may be `file:` or `env:`, too."""


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings of a run, by section."""

    tier: Literal["auto", "low", "safe", "full"] = "auto"
    task: Task = msgspec.field(default_factory=Task)
    training: Training = msgspec.field(default_factory=Training)
    lora: Lora = msgspec.field(default_factory=Lora)
    limits: Annotated[Limits, LATER_TOO] = msgspec.field(default_factory=Limits)
    recovery: Annotated[Recovery, LATER_TOO] = msgspec.field(default_factory=Recovery)
    hours: Annotated[Hours, LATER_TOO] = msgspec.field(default_factory=Hours)
    checkpoint: Checkpoint = msgspec.field(default_factory=Checkpoint)
    nodes: Annotated[Nodes, LATER_TOO] = msgspec.field(default_factory=Nodes)
    notify: Annotated[Notify, LATER_TOO, CONTACTS] = msgspec.field(default_factory=Notify)


@dataclass(frozen=True)
class Key:
    """One setting as a person writes it: where its value lies, and what its field says of itself."""

    section: str
    """The section's name. Empty for a setting that stands alone."""
    field: str
    type: Any
    """The field's annotation, with its bounds."""
    written: Written | None
    """How its value is written. None means that it is written as TOML has it."""
    may_be_unset: bool
    """Whether it can be left to memsup (None), which a person writes as `auto`."""
    may_change: bool
    """Whether a run can go on with another value."""
    is_secret: bool
    """Whether its value is, or holds, a `Secret`."""
    advice: str | None
    """What to write in place of a value that is refused. It is None where the bounds say enough."""
    contacts: bool
    """Whether something is sent to what it names."""
    machines: bool
    """Whether it decides with which other machines a run is computed."""

    def value(self, settings: Settings) -> Any:
        """What `settings` has for it."""
        return getattr(self._holder(settings), self.field)

    def set(self, settings: Settings, value: Any) -> None:
        """Puts `value`, which has the field's type already, into `settings`."""
        setattr(self._holder(settings), self.field, value)

    def _holder(self, settings: Settings) -> Any:
        return getattr(settings, self.section) if self.section else settings


@functools.cache
def keys() -> Mapping[str, Key]:
    """Every setting by the name that a person writes: `tier`, `task.kind`, …"""
    return MappingProxyType(dict(_keys()))


def _keys() -> Iterator[tuple[str, Key]]:
    for name, annotation in get_type_hints(Settings, include_extras=True).items():
        section = get_type_hints(Settings)[name]
        if isinstance(section, type) and issubclass(section, msgspec.Struct):
            for field, inner in get_type_hints(section, include_extras=True).items():
                key = _key(name, field, inner, _extras(annotation) | _extras(inner))
                yield f"{name}.{field.removesuffix('_s') if key.written is Written.DURATION else field}", key
        else:
            yield name, _key("", name, annotation, _extras(annotation))


def _key(section: str, field: str, annotation: Any, extras: dict[str, Any]) -> Key:
    return Key(
        section=section,
        field=field,
        type=annotation,
        written=extras.get("written"),
        may_be_unset=_mentions(annotation, type(None)),
        may_change=extras.get("may_change", False),
        is_secret=_mentions(annotation, Secret),
        advice=extras.get("advice"),
        contacts=extras.get("contacts", False),
        machines=extras.get("machines", False),
    )


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def _extras(annotation: Any) -> dict[str, Any]:
    """What the marks on a field say, those inside of `X | None` as well."""
    found: dict[str, Any] = {}
    for part in get_args(annotation):
        found |= part.extra or {} if isinstance(part, msgspec.Meta) else _extras(part)
    return found


# --------------------------------------------------------------------------------------------------------------------
# Values as people write them

_SIZE = re.compile(r"([\d_]+(?:\.\d+)?)\s*([kmgt]i?b?|b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d))+")
_LONGEST_FIGURE = 40
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int | Share:
    """`600MiB`, `4GB`, `4G` (binary, as free and systemd read it), a number of bytes, or a share: `85%`. Raises ValueError."""
    text = text.strip()
    if text.endswith("%"):
        fraction = float(text[:-1]) / 100
        if not 0 < fraction <= 1:
            raise ValueError("a share lies between 0% and 100%")
        return Share(fraction)
    if text.isascii() and text.isdigit() and len(text) <= 3 and 0 < int(text) <= 100:
        raise ValueError(f"so many bytes are nothing; write {text}% for a share, or a size such as {text}GiB")
    match = _SIZE.fullmatch(text)
    if not match or len(text) > _LONGEST_FIGURE:
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
    if not _DURATION.fullmatch(text) or len(text) > _LONGEST_FIGURE:
        raise ValueError("write a duration such as 90s, 10m or 1h30m, or auto")
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))
    if total <= 0:
        raise ValueError("a duration must be more than nothing")
    return total
