"""Choosing the fence: the best kind that works here, shown by really using it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from memsup.shared.clock import monotonic_s
from memsup.shared.descriptors import wait_ready
from memsup.supervisor.fence.base import Fence, FenceError, Kind
from memsup.supervisor.fence.cgroup1 import Cgroup1Fence
from memsup.supervisor.fence.cgroup2 import DelegatedFence
from memsup.supervisor.fence.kill import KillState, TreeKill
from memsup.supervisor.fence.rlimit import NoFence, RlimitFence
from memsup.supervisor.fence.scope import ScopeFence
from memsup.supervisor.kernel.children import Child, spawn

_PATIENCE_S = 20.0

_MAKERS: dict[Kind, type[ScopeFence | DelegatedFence | Cgroup1Fence | RlimitFence | NoFence]] = {
    Kind.SCOPE: ScopeFence,
    Kind.CGROUP2: DelegatedFence,
    Kind.CGROUP1: Cgroup1Fence,
    Kind.RLIMIT: RlimitFence,
    Kind.NONE: NoFence,
}


@dataclass(frozen=True, slots=True)
class Chosen:
    fence: Fence
    refused: list[tuple[Kind, str]]
    """Each better kind, with a plain clause that says why it cannot be had here."""


def choose_fence(run: str, limit_bytes: int, *, device_is_cuda: bool, among: Sequence[Kind] = tuple(Kind)) -> Chosen:
    """The best kind of `among` that passed a rehearsal: a small process was put inside, found there with its limit, and killed.

    `run` must be unique to the run (its `run_id`): the fence is named after it, and so is what an earlier supervisor of the run
    left, which the fence returned may still hold (`populated`). Takes some tenths of a second and starts processes.
    """
    refused: list[tuple[Kind, str]] = []
    for kind in among:
        if kind is Kind.RLIMIT and device_is_cuda:
            why = "it limits what is mapped, and CUDA maps far more memory than it uses, so that nothing would run below it"
            refused.append((kind, why))
            continue
        try:
            rehearse(_MAKERS[kind](f"{run}_try_{os.getpid()}", limit_bytes))
            fence: Fence = _MAKERS[kind](run, limit_bytes)
            break
        except FenceError as error:
            refused.append((kind, str(error)))
    else:
        fence = NoFence(run, limit_bytes)
    fence.why_no_better = "; ".join(f"{kind}: {why}" for kind, why in refused)
    return Chosen(fence, refused)


# The child tells what it sees of its own limits, then waits to be killed.
_REHEARSAL = "import resource, sys; print(resource.getrlimit(resource.RLIMIT_DATA)[0], flush=True); sys.stdin.read()"


def rehearse(fence: Fence) -> float:
    """Puts a small process into `fence`, checks it there, freezes and kills it, and removes the fence.

    Returns the seconds from the order to kill to the last exit. Raises `FenceError` with what did not work.
    """
    answers, output = os.pipe()
    stdin, keep_open = os.pipe()
    try:
        child = spawn([*fence.launch_prefix(), sys.executable, "-I", "-S", "-c", _REHEARSAL], stdin=stdin, output=output)
    except OSError as error:
        os.close(answers)
        os.close(keep_open)
        fence.remove()
        raise FenceError(f"a process cannot be put inside ({error})") from None
    finally:
        os.close(output)
        os.close(stdin)
    problem = _problem(fence, child, _line(answers))
    kill = TreeKill(fence, child, now_s=monotonic_s(), give_up_s=_PATIENCE_S)
    while kill.step(monotonic_s()) is KillState.KILLING:
        wait_ready([child.pidfd] if child.exit_code() is None else [], 0.005)
    os.close(answers)
    os.close(keep_open)
    child.close()
    fence.remove()
    if problem is None and kill.state is KillState.UNDEAD:
        problem = "a process inside did not die"
    if problem is not None:
        raise FenceError(problem)
    assert kill.took_s is not None
    return kill.took_s


def _problem(fence: Fence, child: Child, answer: str) -> str | None:
    if not answer.lstrip("-").isdigit():
        return f"a process put inside did not start: {answer or 'no answer'}"
    if child.pid not in fence.pids():
        return "a process put inside was not found there"
    if fence.kind is Kind.RLIMIT and int(answer) != fence.limit_bytes:
        return f"a process inside had a limit of {answer} bytes, not {fence.limit_bytes}"
    if fence.folder is not None and fence.used_bytes() is None:
        return "the kernel does not count its memory"
    fence.freeze()
    deadline_s = monotonic_s() + _PATIENCE_S
    while not fence.frozen():
        if monotonic_s() > deadline_s:
            return "a process inside could not be frozen"
        wait_ready([], 0.002)
    return None


def _line(descriptor: int) -> str:
    """The last line that comes before the writer waits for its input or is gone. Empty when none comes in time."""
    text, deadline_s = b"", monotonic_s() + _PATIENCE_S
    while not text.endswith(b"\n") and wait_ready([descriptor], deadline_s - monotonic_s()):
        more = os.read(descriptor, 4096)
        if not more:
            break
        text += more
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
