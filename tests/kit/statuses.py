"""What a supervisor might answer, for what is drawn of it."""

from __future__ import annotations

import time
from typing import Any

from kit.cli_process import RUN_ID
from memsup.shared.readings import Evaluation, KnownBatch, KnownGpu
from memsup.shared.status import (
    ActionStatus,
    CheckpointStatus,
    MemoryStatus,
    ProgressStatus,
    RunState,
    Status,
    TemperatureStatus,
    Wanted,
)

GIB = 2**30
EVALUATION = Evaluation(
    metric="accuracy", value=0.79, step=1200, best=0.81, best_step=800, without_rise=2, patience=3, keeps_best=True
)


def a_status(state: RunState = RunState.RUNNING, **fields: Any) -> Status:
    return Status(**({"run": "default", "run_id": RUN_ID, "state": state, "wanted": Wanted.RUNNING} | fields))


def full_status() -> Status:
    """Everything known, as in the middle of a night."""
    return a_status(
        tier="full",
        pid=4711,
        worker_pid=4712,
        since=time.time() - 7500,
        progress=ProgressStatus(
            phase="training", epoch=0.7, step=1240, total_steps=5000, samples=19840, loss=0.4123, samples_per_s=23.4, eta_s=2572
        ),
        batch=KnownBatch(effective=16, micro_tokens=2048, micro_rows=5),
        memory=MemoryStatus(
            ram_total_bytes=24 * GIB,
            ram_available_bytes=14 * GIB,
            worker_bytes=2 * GIB,
            limit_bytes=20 * GIB,
            fence="scope",
            fence_bytes=20 * GIB,
            pressure=0.12,
        ),
        gpus=[
            KnownGpu(
                index=0, name="RTX 3070", used_bytes=5 * GIB, total_bytes=8 * GIB, temperature_c=88, slowdown_c=98, power_w=180
            )
        ],
        temperatures=[TemperatureStatus(name="k10temp Tctl", celsius=61.4)],
        checkpoint=CheckpointStatus(
            path="/x/step-00001200", step=1200, age_s=40, verified=True, memory_step=1230, memory_bytes=200 << 20
        ),
        last_action=ActionStatus(
            at=time.time() - 7500,
            rung="shrink",
            action="halve the micro-batch",
            reason="host memory 91 %",
            result="done: 4,096 → 2,048 tokens",
        ),
        restarts=2,
        evaluation=EVALUATION,
    )
