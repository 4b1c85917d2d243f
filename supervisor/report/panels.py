"""What is plotted: the panels of the page, with where each line comes from. Pure; drawn by `plots.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from memsup.supervisor.record.history import Point
from memsup.supervisor.report.account import Account
from memsup.supervisor.words import size

_GIB = 2.0**30

Value = Callable[[Point], float | None]


@dataclass(frozen=True, kw_only=True)
class Series:
    name: str
    value: Value
    style: str
    """The CSS classes: `a` to `d` are colours, `limit` is dashed."""
    filled: bool = False
    stepped: bool = False
    smooth: bool = False
    """Each value is drawn as the mean of those around it."""
    scales: bool = True
    """The axis is long enough for it. A limit that nothing came near is left out, and told of in words."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    series: tuple[Series, ...] = ()
    unit: str = ""
    height: int = 150
    low: float | None = None
    """The axis begins at this value. None stands for just below the least one."""
    high: float | None = None
    log2: bool = False
    dots: tuple[tuple[float, float], ...] = ()
    """Single measurements, each with its time."""
    dots_name: str = ""
    note: str = ""


def panels(account: Account) -> Iterator[Panel]:
    """The panels, from top to bottom."""
    yield Panel(
        title="Loss",
        series=(
            Series(name="each step", value=lambda p: p.loss, style="a faint"),
            Series(name="smoothed", value=lambda p: p.loss, style="a", smooth=True),
        ),
        dots=_evaluated(account, "loss"),
        dots_name="on the evaluation data",
    )
    if accuracy := _evaluated(account, "accuracy"):
        yield Panel(title="Accuracy on the evaluation data", unit="%", dots=tuple((x, 100 * share) for x, share in accuracy))
    if f1 := _evaluated(account, "f1"):
        yield Panel(title="F1 on the evaluation data", dots=f1)
    if micro := _evaluated(account, "micro_f1"):
        yield Panel(title="Micro F1 on the evaluation data", dots=micro)
    if pearson := _evaluated(account, "pearson"):
        yield Panel(title="Pearson correlation on the evaluation data", dots=pearson)
    yield Panel(
        title="Throughput",
        unit="samples/s",
        low=0,
        series=(Series(name="samples/s", value=lambda p: p.samples_per_s, style="b"),),
    )
    limits = [m.point.limit_bytes for m in account.moments if m.point.limit_bytes is not None]
    yield Panel(
        title="Memory of the worker",
        unit="GiB",
        low=0,
        series=(
            Series(name="worker", value=lambda p: _gib(p.worker_bytes), style="a", filled=True),
            Series(name="its limit", value=lambda p: _gib(p.limit_bytes), style="limit a", stepped=True, scales=False),
        ),
        note=f"limit {size(limits[-1])}" if limits else "",
    )
    yield Panel(
        title="Memory of the machine",
        unit="GiB",
        low=0,
        series=(
            Series(name="in use", value=_machine_used_gib, style="c"),
            Series(name="all but the reserve", value=_all_but_reserve_gib, style="limit c", stepped=True),
        ),
    )
    indices = sorted({gpu.index for moment in account.moments for gpu in moment.point.gpus})[:4]
    if indices:
        yield Panel(
            title="GPU memory",
            unit="GiB",
            low=0,
            series=tuple(_vram(indices)),
        )
    yield Panel(title="Temperature", unit="°C", series=tuple(_temperatures(indices)))
    if any((moment.point.duty_fraction or 1.0) < 1 for moment in account.moments):
        yield _DUTY
    yield _MICRO_BATCH


_DUTY = Panel(
    title="Duty cycle",
    unit="%",
    height=84,
    low=0,
    high=100,
    series=(
        Series(
            name="share of the time in which it may compute",
            value=lambda p: None if p.duty_fraction is None else 100 * p.duty_fraction,
            style="d",
            filled=True,
            stepped=True,
        ),
    ),
)
_MICRO_BATCH = Panel(
    title="Micro-batch",
    unit="tokens",
    height=110,
    log2=True,
    series=(Series(name="most tokens computed at once", value=lambda p: p.micro_tokens, style="b", stepped=True),),
)


def _evaluated(account: Account, metric: str) -> tuple[tuple[float, float], ...]:
    """One metric of every evaluation, as far as it is known."""
    return tuple(
        (x, value)
        for x, found in account.evaluations
        if (value := found.metrics.get(metric)) is not None and math.isfinite(value) and abs(value) < 1e15
    )


def _vram(indices: Iterable[int]) -> Iterator[Series]:
    for index, style in zip(indices, "abcd", strict=False):
        yield Series(name=f"GPU {index}", value=_of_gpu(index, "used_bytes", _GIB), style=style, filled=index == 0)
        yield Series(name=f"GPU {index} has", value=_of_gpu(index, "total_bytes", _GIB), style=f"limit {style}", stepped=True)


def _temperatures(indices: Iterable[int]) -> Iterator[Series]:
    for index, style in zip(indices, "abcd", strict=False):
        yield Series(name=f"GPU {index}", value=_of_gpu(index, "temperature_c"), style=style)
        yield Series(
            name=f"GPU {index} slows itself down", value=_of_gpu(index, "slowdown_c"), style=f"limit {style}", stepped=True
        )
    yield Series(name="CPU or board, hottest", value=lambda p: p.cpu_c, style="d")
    yield Series(name="its limit", value=lambda p: p.cpu_limit_c, style="limit d", stepped=True)


def _of_gpu(index: int, field: str, divisor: float = 1.0) -> Value:
    def value(point: Point) -> float | None:
        found = next((getattr(gpu, field) for gpu in point.gpus if gpu.index == index), None)
        return None if found is None else found / divisor

    return value


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / _GIB


def _machine_used_gib(point: Point) -> float | None:
    if point.ram_total_bytes is None or point.ram_available_bytes is None:
        return None
    return (point.ram_total_bytes - point.ram_available_bytes) / _GIB


def _all_but_reserve_gib(point: Point) -> float | None:
    if point.ram_total_bytes is None or point.reserve_bytes is None:
        return None
    return (point.ram_total_bytes - point.reserve_bytes) / _GIB
