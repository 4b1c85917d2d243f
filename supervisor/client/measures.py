"""What Prometheus is told of all runs of this user, as prometheus-client has it: `memsup metrics` serves it.

A run whose supervisor answers is told of as `memsup status --json` has it; of any other one there is what its files say and
stays so (state, steps, result), and no reading. What is not known is absent: nothing is 0 because it could not be read. Names
and units are by Prometheus' conventions; `run`, a GPU's number, a sensor and a metric of an evaluation are labels.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from memsup.shared.interventions import MOST_LINE_BYTES, Intervention, kind_of, read_line
from memsup.shared.messages import RequestKind
from memsup.shared.paths import PathError, RunPaths
from memsup.shared.status import RunState, Status, decode_status
from memsup.shared.tail import Tail
from memsup.supervisor.client.contact import NoAnswerError, NobodyThereError, ask
from memsup.supervisor.client.runs import all_runs, glance
from memsup.supervisor.record.rotation import parts_of

FRESH_S = 1.0
"""Whoever asks again within this time gets the same answer, so that what asking costs is bounded."""
ANSWERS_WITHIN_S = 0.5
"""A supervisor that does not answer within this time is not told of."""
ASKED_WITHIN_S = 5.0
"""When asking has taken so long, those that are left are not asked."""

GAUGES = {
    "state": "1 for the state that the run is in, 0 for the others",
    "guarded": "Whether a supervisor of the run answers",
    "step": "Optimizer steps that are done",
    "planned_steps": "Optimizer steps of the whole run",
    "epoch": "Passes over the data that are done",
    "samples": "Samples that were trained on, each as often as it was",
    "loss": "Loss of the last step",
    "result": "What a finished run came to, by the name of the metric",
    "evaluation": "The last evaluation, by the metric that results are compared by",
    "troubles": "Things that a person should look at; memsup status says which",
    "samples_per_second": "Samples that are trained on in a second",
    "remaining_seconds": "Time to the end, as it goes now",
    "micro_batch_tokens": "The most that rows x padded length of a micro-batch may be",
    "ram_bytes": "RAM that only the end of the worker would give back",
    "ram_limit_bytes": "RAM that the worker may hold",
    "ram_available_bytes": "RAM that is left where the run is, of the machine or a cgroup",
    "disk_free_bytes": "Room where the run is kept",
    "checkpoint_age_seconds": "Age of the newest checkpoint",
    "checkpoint_step": "Step of the newest checkpoint",
    "duty_ratio": "Part of the time in which it computes, to stay cool",
    "temperature_celsius": "Temperature of a sensor that is no GPU's",
    "gpu_temperature_celsius": "Temperature of a GPU",
    "gpu_used_bytes": "Memory of a GPU that is used, by whomever",
    "gpu_power_watts": "Power that a GPU draws",
}
"""What is told of a run at a time, each as `memsup_run_NAME`, with its meaning."""
INTERVENTIONS = "What was done to the run or befell it, by kind, as far as its ledger goes back"


class _Gauges:
    """The families, each made when the first value of it is known."""

    def __init__(self) -> None:
        self.families: dict[str, GaugeMetricFamily] = {}

    def add(self, run: str, name: str, value: float | None, **labels: object) -> None:
        """Adds a value of `memsup_run_NAME`, unless it is not known, or no number."""
        if value is None or not math.isfinite(value):
            return
        if name not in self.families:
            self.families[name] = GaugeMetricFamily(f"memsup_run_{name}", GAUGES[name], labels=("run", *labels))
        self.families[name].add_metric([run, *map(str, labels.values())], float(value))


class Runs:
    """Collects; to be registered with a registry of prometheus-client. Used by several threads."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._counted: dict[str, _Counted] = {}
        self._families: list[Metric] = []
        self._collected_s = -math.inf

    def describe(self) -> list[Metric]:
        """Nothing, so that nobody is asked when this is registered."""
        return []

    def collect(self) -> list[Metric]:
        with self._turn:
            if time.monotonic() - self._collected_s > FRESH_S:
                self._families = list(self._collect())
                self._collected_s = time.monotonic()
            return self._families

    def _collect(self) -> Iterator[Metric]:
        gauges, deadline_s = _Gauges(), time.monotonic() + ASKED_WITHIN_S
        done = CounterMetricFamily("memsup_run_interventions", INTERVENTIONS, labels=("run", "kind"))
        seen = set()
        for paths in all_runs():
            with contextlib.suppress(PathError, OSError):  # it was removed at this moment
                status, answers = _look(paths, deadline_s)
                if status is None:
                    continue
                seen.add(paths.name)
                _tell(gauges, status, answers=answers)
                for kind, times in self._count(paths, status, is_guarded=answers).items():
                    done.add_metric([paths.name, kind], times)
        for name in self._counted.keys() - seen:
            self._counted.pop(name).close()
        yield from gauges.families.values()
        if done.samples:
            yield done

    def _count(self, paths: RunPaths, status: Status, *, is_guarded: bool) -> Counter[Intervention]:
        counted = self._counted.get(paths.name)
        if counted is None or counted.run_id != status.run_id:  # another run has the name now
            if counted is not None:
                counted.close()
            counted = self._counted[paths.name] = _Counted(paths, status.run_id)
        return counted.so_far(is_guarded=is_guarded)


class _Counted:
    """The interventions of one run, of whose ledger each line is read once."""

    def __init__(self, paths: RunPaths, run_id: str | None) -> None:
        self.run_id = run_id
        self._counts: Counter[Intervention] = Counter(dict.fromkeys(Intervention, 0))
        *older, _ = parts_of(paths.ledger)
        for part in older:
            tail = Tail(part, most_line_bytes=MOST_LINE_BYTES)
            self._add(tail)
            tail.close()
        self._tail = Tail(paths.ledger, most_line_bytes=MOST_LINE_BYTES)

    def so_far(self, *, is_guarded: bool) -> Counter[Intervention]:
        """Of a run that nobody guards the ledger is not kept open: there may be more of them than files that may be."""
        self._add(self._tail)
        if not is_guarded:
            self._tail.let_go()
        return self._counts

    def _add(self, tail: Tail) -> None:
        found = (read_line(line) for line, _ in tail.lines())
        self._counts.update(kind for line in found if line is not None and (kind := kind_of(line)) is not None)

    def close(self) -> None:
        self._tail.close()


def _look(paths: RunPaths, deadline_s: float) -> tuple[Status | None, bool]:
    """What is known of a run, and whether its supervisor says so."""
    if time.monotonic() < deadline_s:
        with contextlib.suppress(NobodyThereError, NoAnswerError, msgspec.DecodeError):
            status = decode_status(ask(paths, RequestKind.STATUS, ANSWERS_WITHIN_S).status_json)
            status.run = paths.name
            return status, True
    return glance(paths), False


def _tell(gauges: _Gauges, status: Status, *, answers: bool) -> None:
    add, progress = partial(gauges.add, status.run), status.progress
    for state in RunState:
        add("state", status.state is state, state=state)
    add("guarded", answers)
    add("step", progress.step)
    add("planned_steps", progress.total_steps)
    add("epoch", progress.epoch)
    add("samples", progress.samples)
    add("loss", progress.loss)
    for metric, value in (status.result or {}).items():
        add("result", value, metric=metric)
    if status.evaluation is not None:
        add("evaluation", status.evaluation.value, metric=status.evaluation.metric)
    if answers:
        _tell_readings(add, status)


def _tell_readings(add: Callable[..., None], status: Status) -> None:
    """What is so at this moment, and need not be so at the next."""
    add("troubles", len(status.attention))
    add("samples_per_second", status.progress.samples_per_s)
    add("remaining_seconds", status.progress.eta_s)
    add("micro_batch_tokens", status.batch.micro_tokens)
    add("ram_bytes", status.memory.worker_bytes)
    add("ram_limit_bytes", status.memory.limit_bytes)
    add("ram_available_bytes", status.memory.ram_available_bytes)
    add("disk_free_bytes", status.disk_free_bytes)
    add("checkpoint_age_seconds", status.checkpoint.age_s)
    add("checkpoint_step", status.checkpoint.step)
    add("duty_ratio", status.cooling.duty_fraction if status.cooling else None)
    for sensor in status.temperatures:
        add("temperature_celsius", sensor.celsius, sensor=sensor.name)
    for gpu in status.gpus:
        add("gpu_temperature_celsius", gpu.temperature_c, gpu=gpu.index)
        add("gpu_used_bytes", gpu.used_bytes, gpu=gpu.index)
        add("gpu_power_watts", gpu.power_w, gpu=gpu.index)
