"""The messages of the worker socket as plain dictionaries, for a program that has no msgspec. Pure.

`shared/messages.py` is the schema, and says when each is sent; a test holds what is made here against it. Only what a person's
own program says is here, and of orders only what it can carry out.
"""

from __future__ import annotations

from typing import Any

from memsup.about import MOST_DETAIL, About, NotAttached

PROTOCOL = b"memsup/2"
MOST_TEXT = 60_000
"""Characters of a text; the schema allows a little more."""
MOST_NAME, MOST_PATH, MOST_METRICS = 256, 4096, 1000

Message = dict[str, Any]
Note = dict[str, Any]
"""A `CheckpointNote`."""

LIMITS = frozenset({"limit_micro_batch", "limit_memory"})
"""The orders that are for what cuts its batches."""
ORDERS = frozenset({"checkpoint", "pace", "pause", "resume", "stop"}) | LIMITS
"""The orders that a session carries out."""
NO_ORDERS = frozenset({"welcome", "lease"})
_INT, _NUMBER, _NONE = (int,), (int, float), (int, type(None))
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "welcome": {"lease_s": _NUMBER, "memory_limit_bytes": _NONE, "micro_tokens_limit": _NONE, "deaths": _INT},
    "lease": {"lease_s": _NUMBER},
    "pace": {"duty_fraction": _NUMBER},
    "pause": {"mode": (str,)},
    "stop": {"checkpoint": (bool,)},
    "limit_micro_batch": {"micro_tokens": _NONE, "halve": (bool,), "may_grow": (bool,), "limit_bytes": _NONE},
    "limit_memory": {"device_bytes": _INT},
}
"""What is read of each message that a program is told, besides what all orders have."""
_DEFAULTS = {"deaths": 0, "micro_tokens": None, "halve": False, "may_grow": True, "limit_bytes": None}
_MOST_LEASE_S = 86_400.0


def makes_sense(told: Any) -> bool:
    """Whether this is a message that a supervisor tells a program, with all that is read of it."""
    kind = told.get("kind") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in ORDERS | NO_ORDERS:
        return False
    fields = _FIELDS.get(kind, {}) if kind in NO_ORDERS else {"order_id": _INT, "reason": (str,), **_FIELDS.get(kind, {})}
    for name, types in fields.items():
        value = told.get(name, _DEFAULTS.get(name, ...))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            return False
        if isinstance(value, (int, float)) and not 0 <= value < 1 << 64:
            return False
    is_paced = kind != "pace" or 0 < told["duty_fraction"] <= 1
    return is_paced and (kind != "pause" or told["mode"] in {"hold", "release"}) and told.get("lease_s", 0) <= _MOST_LEASE_S


def hello(pid: int, run_id: str, about: About) -> Message:
    return {"kind": "hello", "pid": pid, "run_id": run_id, "program": _about(about)}


def described(about: About) -> Message:
    return {"kind": "described", "program": _about(about)}


def not_attached(pid: int, run_id: str, why: NotAttached, detail: str) -> Message:
    return {"kind": "not_attached", "pid": pid, "run_id": run_id, "why": why.value, "detail": detail[:MOST_DETAIL]}


def _about(about: About) -> Message:
    return {
        "seam": about.seam.value,
        "training": about.training[:MOST_NAME],
        "saves": about.saves,
        "cuts": about.cuts,
        "not_cut": about.not_cut.value if about.not_cut is not None else None,
        "detail": about.detail[:MOST_DETAIL],
    }


def progress() -> Message:
    """What is known of a program that has just begun."""
    return {
        "phase": "starting",
        "ticks": 0,
        "epoch": 0.0,
        "step": 0,
        "total_steps": None,
        "samples": None,
        "loss": None,
        "samples_per_s": None,
        "eta_s": None,
    }


def batch(
    effective: int,
    micro_tokens: int,
    micro_rows: int | None = None,
    peak_bytes: int | None = None,
    predicted_bytes: int | None = None,
) -> Message:
    """A `BatchShape`."""
    return {
        "effective": effective,
        "micro_tokens": micro_tokens,
        "micro_rows": micro_rows,
        "peak_bytes": peak_bytes,
        "predicted_bytes": predicted_bytes,
    }


def heartbeat(
    progress: Message, memory: Message, checkpoint: Note | None, batch: Message | None = None, cpu_s: float | None = None
) -> Message:
    """`memory` is what `memory.read_memory` gives back."""
    return {
        "kind": "heartbeat",
        "progress": progress,
        "batch": batch,
        "memory": memory,
        "checkpoint": checkpoint,
        "digest": None,
        "cpu_s": cpu_s,
    }


def note(path: str, step: int, at_unix_s: float, *, verified: bool, save_s: float | None, size_bytes: int) -> Note:
    return {
        "path": path,
        "step": step,
        "at_unix_s": at_unix_s,
        "verified": verified,
        "save_s": save_s,
        "size_bytes": size_bytes,
    }


def accepted(order_id: int) -> Message:
    return {"kind": "accepted", "order_id": order_id}


def done(order_id: int, detail: str, checkpoint: Note | None = None, micro_tokens: int | None = None) -> Message:
    return {
        "kind": "done",
        "order_id": order_id,
        "detail": detail[:MOST_TEXT],
        "checkpoint": checkpoint,
        "micro_tokens": micro_tokens,
    }


def order_failed(order_id: int, detail: str) -> Message:
    return {"kind": "order_failed", "order_id": order_id, "detail": detail[:MOST_TEXT]}


def out_of_memory(where: str, device: str, step: int, before_tokens: int, after_tokens: int, detail: str) -> Message:
    return {
        "kind": "out_of_memory",
        "where": where[:MOST_NAME],
        "device": device[:MOST_NAME],
        "step": step,
        "micro_tokens_before": before_tokens,
        "micro_tokens_after": after_tokens,
        "detail": detail[:MOST_TEXT],
    }


def leaving(reason: str, checkpoint: Note | None) -> Message:
    return {"kind": "leaving", "reason": reason[:MOST_TEXT], "checkpoint": checkpoint}


def finished(model_path: str, metrics: dict[str, float], steps: int) -> Message:
    few = {str(name)[:MOST_NAME]: float(value) for name, value in list(metrics.items())[:MOST_METRICS]}
    return {"kind": "finished", "model_path": model_path[:MOST_PATH], "metrics": few, "steps": steps, "samples": 0}


def failed(cause: str, message: str, traceback: str | None, step: int, *, exit_status: int | None = None) -> Message:
    return {
        "kind": "failed",
        "cause": cause,
        "message": message[:MOST_TEXT],
        "traceback": traceback,
        "step": step,
        "exit_status": exit_status,
    }


def decided(what: str, detail: str, checkpoint: str | None = None, step: int | None = None) -> Message:
    return {"kind": "decided", "what": what, "detail": detail[:MOST_TEXT], "checkpoint": checkpoint, "step": step}
