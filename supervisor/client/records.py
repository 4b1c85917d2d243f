"""The record of a run as it is to be started: of what was planned, and of what it was before."""

from __future__ import annotations

import os
import time

from memsup.shared.paths import RunPaths, current_folder, current_umask
from memsup.shared.record import MemoryEstimate, RunRecord
from memsup.shared.run_file import new_run_id
from memsup.shared.status import Wanted
from memsup.supervisor.client.joining import with_key
from memsup.supervisor.client.preparing import Plan
from memsup.supervisor.decide.estimate import KEPT_BYTES
from memsup.supervisor.decide.variables import joined, to_keep


def new_record(paths: RunPaths, plan: Plan) -> RunRecord:
    plan.settings.nodes = with_key(plan.settings.nodes)
    return RunRecord(
        run=paths.name,
        run_id=new_run_id(),
        created_unix_s=time.time(),
        wanted=Wanted.RUNNING,
        tier=plan.resolution.tier,
        tier_reason=plan.resolution.reason,
        settings=plan.settings,
        estimate=_memory_estimate(plan),
        command=plan.command,
        command_folder=str(current_folder()) if plan.command else None,
        command_environment=to_keep(os.environ) if plan.command else None,
        command_umask=current_umask() if plan.command else None,
    )


def continued_record(record: RunRecord, plan: Plan) -> RunRecord:
    """The record to go on with: a pause outlives the supervisor, a stop ends with a start."""
    # Whoever stopped the run knows of a death of the machine; it goes on gently only if that was asked for and is chosen now.
    if record.wanted is Wanted.STOPPED:
        asked = record.settings.recovery.after_power_loss == "ask"
        record.gentle = record.gentle and asked and plan.settings.recovery.after_power_loss == "gentle"
    if record.wanted is not Wanted.PAUSED:
        record.wanted = Wanted.RUNNING
    record.settings = plan.settings
    record.settings.nodes = with_key(record.settings.nodes)
    if record.command is not None:
        kept = record.command_environment
        record.command_environment = to_keep(joined(kept, os.environ), kept)
    return record


def _memory_estimate(plan: Plan) -> MemoryEstimate | None:
    needs, training, ranks = plan.resolution.needs, plan.settings.training, plan.resolution.ranks
    if needs is None or plan.resolution.on_gpu:
        return None
    held_bytes = needs.held_bytes + KEPT_BYTES + needs.lane_bytes
    return MemoryEstimate(
        held_bytes=held_bytes * ranks,
        token_bytes=(needs.micro_batch_bytes - held_bytes) / (needs.rows * needs.length) * ranks,
        most_tokens=(training.effective_batch or 1) * needs.length,
    )
