"""Some steps of a training under torch's profiler: see `sitecustomize.py`.

Writes what they took as one JSON document: by operation, how often the host waited for the device, and how busy that was.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
MOST_OPERATIONS = 15


class Profile:
    def __init__(self, first: int, last: int, into: Path) -> None:
        """Steps are counted from 1; `first` is the last one before those that are looked at."""
        self._first, self._last, self._into = first, last, into
        self._steps = 0
        self._began_s = 0.0
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)

    def after_step(self, *_: Any) -> None:
        self._steps += 1
        if self._steps == self._first:
            self._profiler.start()
            self._began_s = time.perf_counter()
        elif self._steps == self._last:
            took_s = time.perf_counter() - self._began_s
            self._profiler.stop()
            self._write(took_s)

    def _write(self, took_s: float) -> None:
        averages = self._profiler.key_averages()
        steps = self._last - self._first
        device_us = {event.key: event.self_device_time_total for event in averages}
        host_us = {event.key: event.self_cpu_time_total for event in averages}
        first = sorted(averages, key=lambda event: -(device_us[event.key] or host_us[event.key]))
        document = {
            "steps": steps,
            "step_s": took_s / steps,
            "waits_a_step": sum(event.count for event in averages if event.key in WAITS) / steps,
            "busy": sum(event.self_device_time_total for event in averages if event.device_type.name == "CUDA") / 1e6 / took_s,
            "operations": [
                {
                    "name": event.key[:80],
                    "a_step": event.count / steps,
                    "host_ms": host_us[event.key] / 1000 / steps,
                    "device_ms": device_us[event.key] / 1000 / steps,
                }
                for event in first[:MOST_OPERATIONS]
            ],
        }
        self._into.write_text(json.dumps(document), encoding="utf-8")


def begin() -> None:
    """In this process: PROFILE is FIRST:LAST."""
    first, _, last = os.environ["PROFILE"].partition(":")
    profile = Profile(int(first), int(last), Path(os.environ["PROFILE_INTO"]))
    register_optimizer_step_post_hook(profile.after_step)
