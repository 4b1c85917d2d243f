"""Part f: a power limit, set for the run and given back after a kill: on a card whose settings are yours to change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from lines import Finding, Unproved, attempt
from stage import Stage

TITLE = "f. The power limit"
DEADLINE_S = 60.0
PROMISES = {
    "set": "limits.power_w is in force while the run trains.",
    "restored": "After SIGKILL of the supervisor the card has its own limit back within 10 s.",
    "as_found": "The card's power limit is what it was before all of this.",
}


def prove(stage: Stage) -> Iterator[Finding]:
    found = _limit_w()
    if found is None:
        for key in PROMISES:
            yield Finding(key=key, held=None, measured="the driver names no power limit")
        return
    if stage.rehearses or stage.may_cap:
        yield from attempt(["set", "restored"], lambda: _capped(stage, found))
    else:
        for key in ("set", "restored"):
            yield Finding(
                key=key, held=None, measured="it changes a setting of the card: only with --power-cap, on a card of yours"
            )
    # What was lowered in an earlier part would still be lowered now.
    now = _limit_w()
    default = float(os.environ.get("POWER_LIMIT_BEFORE_W") or found)
    yield Finding(
        key="as_found",
        held=now is not None and abs(now - default) < 1.0,
        measured=f"{default:.0f} W before, {now} W now",
        figures={"before_w": default, "after_w": now},
    )


def _capped(stage: Stage, found: float) -> Iterator[Finding]:
    wanted = round(0.9 * found)
    run = stage.run(
        "capped",
        stage.job("capped", rows=600, model={}),
        f"limits.power_w={wanted}",
        "training.epochs=500",
        "checkpoint.every=1h",
    )
    try:
        run.start()
        took_s = _until(lambda: _limit_w() == wanted, 40.0)
        yield _told("set", took_s, f"{wanted} W in place of {found:.0f}")
        supervisor = run.look().pid
        if supervisor is None:
            raise Unproved("there was no supervisor to be killed")
        os.kill(supervisor, signal.SIGKILL)
        took_s = _until(lambda: _limit_w() == found, 10.0)
        yield _told("restored", took_s, f"{found:.0f} W again")
    finally:
        run.end()


def _told(key: str, took_s: float | None, what: str) -> Finding:
    return Finding(
        key=key, held=took_s is not None, measured=f"{what}: {'never' if took_s is None else f'after {took_s:.1f} s'}"
    )


def _until(true: Callable[[], bool], within_s: float) -> float | None:
    """The seconds until it is `true`. Returns None where that takes longer than `within_s`."""
    began_s = time.monotonic()
    while not true():
        if time.monotonic() - began_s > within_s:
            return None
        time.sleep(0.2)
    return time.monotonic() - began_s


def _limit_w() -> float | None:
    """The power limit in force now, as a process of its own is told by the driver. Returns None where the driver names none."""
    asked = (
        "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetPowerManagementLimit(n.nvmlDeviceGetHandleByIndex(0)) / 1000)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=30, check=False)
    return float(done.stdout) if done.returncode == 0 else None
