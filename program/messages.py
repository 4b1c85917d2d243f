"""The messages of the worker socket as plain dictionaries, for a program that has no msgspec. Pure.

`shared/messages.py` is the schema, and says when each is sent; a test holds what is made here against it. Only what a person's
own program says is here, and of orders only what it can carry out.
"""

from __future__ import annotations

from typing import Any

PROTOCOL = b"memsup/2"
MOST_TEXT = 60_000
"""Characters of a text; the schema allows a little more."""
MOST_NAME, MOST_PATH, MOST_METRICS = 256, 4096, 1000

Message = dict[str, Any]
Note = dict[str, Any]
"""A `CheckpointNote`."""

ORDERS = frozenset({"checkpoint", "pace", "pause", "resume", "stop"})
"""The orders that a session carries out."""
REFUSED = frozenset({"limit_micro_batch", "limit_memory"})
"""The orders that it answers by saying that it cannot."""
NO_ORDERS = frozenset({"welcome", "lease"})


def hello(pid: int, run_id: str) -> Message:
    return {"kind": "hello", "pid": pid, "run_id": run_id}


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


def heartbeat(progress: Message, resident_bytes: int | None, checkpoint: Note | None) -> Message:
    memory = {
        "resident_bytes": resident_bytes,
        "cuda_allocated_bytes": None,
        "cuda_reserved_bytes": None,
        "data_limit_bytes": None,
    }
    return {
        "kind": "heartbeat",
        "progress": progress,
        "batch": None,
        "memory": memory,
        "checkpoint": checkpoint,
        "digest": None,
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


def done(order_id: int, detail: str, checkpoint: Note | None = None) -> Message:
    return {"kind": "done", "order_id": order_id, "detail": detail[:MOST_TEXT], "checkpoint": checkpoint}


def order_failed(order_id: int, detail: str) -> Message:
    return {"kind": "order_failed", "order_id": order_id, "detail": detail[:MOST_TEXT]}


def leaving(reason: str, checkpoint: Note | None) -> Message:
    return {"kind": "leaving", "reason": reason[:MOST_TEXT], "checkpoint": checkpoint}


def finished(model_path: str, metrics: dict[str, float], steps: int) -> Message:
    few = {str(name)[:MOST_NAME]: float(value) for name, value in list(metrics.items())[:MOST_METRICS]}
    return {"kind": "finished", "model_path": model_path[:MOST_PATH], "metrics": few, "steps": steps, "samples": 0}


def failed(cause: str, message: str, traceback: str | None, step: int) -> Message:
    return {"kind": "failed", "cause": cause, "message": message[:MOST_TEXT], "traceback": traceback, "step": step}


def decided(what: str, detail: str, checkpoint: str | None = None, step: int | None = None) -> Message:
    return {"kind": "decided", "what": what, "detail": detail[:MOST_TEXT], "checkpoint": checkpoint, "step": step}
