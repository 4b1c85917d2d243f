"""What is measured of a run, declared once: how far it is, how it computes, memory, GPUs. Pure.

A field that is None is not known. Whoever needs more adds to these (`shared/messages.py` what a worker must tell,
`supervisor/decide/readings.py` what the sensors saw, `shared/status.py` what a person asks about), and whoever needs less takes
what it needs by name, with `narrow`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Protocol, TypeVar

import msgspec


class KnownProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a training is."""

    phase: str | None = None
    """What the worker's main thread does, a `Phase` of `shared/messages.py`."""
    epoch: float | None = None
    step: int | None = None
    total_steps: int | None = None
    samples: int | None = None
    """Samples that were trained on so far, each as often as it was."""
    loss: float | None = None
    samples_per_s: float | None = None
    eta_s: float | None = None
    """The seconds that are left."""


class Computing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one step went, as parts of it. What is missing to 1 are operations that are no matrix products, and
    products that are slower than they can be.
    """

    step: int
    """The step that was looked at."""
    peak_per_s: float
    """The operations (multiplications and additions) a second that this machine makes of matrix products like the model's."""
    useful: float
    """What the products of the rows' own tokens take at that speed: the share of the peak at which the run computes."""
    padding: float
    """What the products of padding take at that speed."""
    attention: float
    """What attention took beyond its useful products."""
    optimizer: float
    """Adding, clipping and applying gradients."""
    loading: float
    """Making tensors of rows."""
    waiting: float
    """Lanes waiting for one another."""
    starting: float | None
    """Starting operations, as the planner learnt it from micro-batches of many sizes. None means that it has not yet."""


class RankReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several ranks (docs/ranks.md); rank 0 is the worker itself."""

    share: float
    """The part of a step's tokens that it computes."""
    pid: int
    micro_tokens: int | None = None
    """The most that rows × padded length of its micro-batches may be. It is None for rank 0, of which more is told, and not
    known of another that has not begun."""
    resident_bytes: int | None = None
    """It is None for rank 0, and not known of another that has not begun."""
    waits: bool = False
    """Whether it has done its part of the step, and waits for the others."""
    gpu: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    """The UUID of the GPU that it computes on. It is None on a CPU, and where torch does not tell it."""
    cuda_allocated_bytes: int | None = None
    """What it holds of that GPU. It is None on a CPU, and not known of another that has not begun."""
    cuda_reserved_bytes: int | None = None
    """The same with what torch keeps for later."""


class NodeReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another machine of a run that several compute (docs/ranks.md), as this one knows it."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    """Its host's name; of the first machine, before that has answered, its address."""
    is_first: bool = False
    """Whether it is the one that saves, and has the run's affairs."""
    is_here: bool = False
    """Whether it is connected."""
    rank: int | None = None
    """Which rank it computes as. It is None for one that does not take part now."""
    share: float | None = None
    """The part of a step's tokens that it computes. It is None where that is not known."""
    waits: bool = False
    """Whether it has done its part of the step, and waits for the others."""
    holds: bool = False
    """Whether it is paused, hot, or short of memory there, and the others wait for it."""
    silent_s: float = 0.0
    """For how long nothing was heard of it."""
    resident_bytes: int | None = None
    """What its process holds there. It is None where that is not known."""


class KnownBatch(msgspec.Struct, frozen=True, kw_only=True):
    """How an optimizer step is computed."""

    effective: int | None = None
    """Samples of one optimizer step."""
    micro_tokens: int | None = None
    """The most that rows × padded length of a micro-batch may be."""
    micro_rows: int | None = None
    """Rows of the last micro-batch."""
    peak_bytes: int | None = None
    """The most that the training process alone, or its device, held in the last step."""
    predicted_bytes: int | None = None
    """What the memory model said of that step before it was done."""
    ranks: tuple[RankReading, ...] | None = None
    """The ranks that compute it together. It is None where one does."""
    computing: Computing | None = None
    """Where the time of a step goes. It is None before the first look, on a GPU, and where a model's work is not known."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the built-in training's evaluations have found so far."""

    metric: Annotated[str, msgspec.Meta(max_length=256)]
    """The metric that results are compared by: accuracy, of which more is better, or loss, of which less is."""
    value: float | None
    """The result of the last evaluation. It is None where that was not finite."""
    step: int
    """The step after which that was."""
    best: float | None
    """The best result. It is None where none was finite; so is the next one."""
    best_step: int | None
    without_rise: int
    """How many evaluations in a row there were since the best one."""
    patience: int | None
    """With so many of them training ends. It is None where it does not end early."""
    keeps_best: bool
    """Whether the weights of the best result are to become the model, and not the last ones."""


class KnownMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Host memory: what there is, and what the worker has of it."""

    ram_total_bytes: int | None = None
    """What this process may use: the smallest of the machine's RAM and every enclosing cgroup's limit."""
    ram_available_bytes: int | None = None
    """The smallest of MemAvailable and what is left, page cache not counted, in every enclosing cgroup."""
    worker_bytes: int | None = None
    """Memory that only the death of the worker's whole tree would give back (anonymous and shared, no page cache)."""


class KnownGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU."""

    index: int
    """The driver's number, which is not CUDA's."""
    name: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature_c: float | None = None
    slowdown_c: float | None = None
    """The temperature at which the device slows itself down, as it says itself."""
    power_w: float | None = None


Narrow = TypeVar("Narrow", bound=msgspec.Struct)


def narrow(kind: type[Narrow], *sources: msgspec.Struct, **own: Any) -> Narrow:
    """A `kind` made of what `sources` have under the names of its fields, the later source first, and of `own` above all."""
    wanted = set(kind.__struct_fields__)
    taken = {name: getattr(source, name) for source in sources for name in source.__struct_fields__ if name in wanted}
    return kind(**(taken | own))


class HasCelsius(Protocol):
    """A sensor's temperature, whatever else is known of it."""

    @property
    def celsius(self) -> float | None: ...


Sensor = TypeVar("Sensor", bound=HasCelsius)


def hottest(sensors: Iterable[Sensor]) -> Sensor | None:
    """The sensor with the highest temperature. Returns None where no temperature is known."""
    known = (sensor for sensor in sensors if sensor.celsius is not None)
    return max(known, key=lambda sensor: sensor.celsius or 0.0, default=None)
