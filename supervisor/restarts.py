"""Why did the worker end, and what now? The restart policy, pure.

Covers the cause of a death and the decision (again, again but smaller, give up) with its delay. The budget counts deaths
without *durable* progress, a newer verified checkpoint: a worker that dies often but gets on is let to get on.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from memsup.shared.messages import Failed, FailureCause, Finished, Leaving

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
BUDGET = 5
"""Deaths in a row without a newer checkpoint before the run is given up."""


class Cause(enum.StrEnum):
    FINISHED = "finished"
    LEFT = "left"
    """As ordered, or because its lease ran out."""
    MEMORY = "memory"
    """Killed by the fence or by the ladder because of memory."""
    UNRESPONSIVE = "unresponsive"
    HANG = "hang"
    """It answered, but its main thread got nothing done."""
    KILLED = "killed"
    """By a signal from outside memsup."""
    CRASH = "crash"
    BAD_INPUT = "bad_input"
    ONE_ROW_TOO_LARGE = "one_row_too_large"
    NOT_FINITE = "not_finite"
    DISK_FULL = "disk_full"
    GPU_LOST = "gpu_lost"
    """Its GPU has fallen off the bus: nothing but a restart of the machine brings it back."""
    COMMAND_FAILED = "command_failed"
    """A supervised command ended with an exit code of its own."""


_GIVE_UP = {Cause.GPU_LOST, Cause.BAD_INPUT, Cause.ONE_ROW_TOO_LARGE, Cause.NOT_FINITE, Cause.COMMAND_FAILED}
_OF_FAILURE = {
    FailureCause.BAD_INPUT: Cause.BAD_INPUT,
    FailureCause.OUT_OF_MEMORY: Cause.ONE_ROW_TOO_LARGE,
    FailureCause.NOT_FINITE: Cause.NOT_FINITE,
    FailureCause.DISK_FULL: Cause.DISK_FULL,
    FailureCause.CRASH: Cause.CRASH,
}


@dataclass(frozen=True, kw_only=True)
class Death:
    """What is known when the worker is gone. `exit_status`: the code, or minus the signal's number; None where a process
    that was not our child left no trace.
    """

    exit_status: int | None
    last_words: Finished | Failed | Leaving | None = None
    killed_by_us: Cause | None = None
    fence_oom_kills: int = 0
    gpu_lost: str | None = None
    """The sentence about a GPU of the worker's that was lost before it ended."""
    is_command: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    cause: Cause
    again: bool
    smaller: bool
    delay_s: float
    sentence: str


@dataclass
class Policy:
    """`durable_step` is the newest verified checkpoint's step at the last death; counts deaths since it moved."""

    deaths_in_row: int = 0
    durable_step: int | None = None

    def judge(self, death: Death, durable_step: int | None) -> Verdict:
        cause = cause_of(death)
        if durable_step is not None and (self.durable_step is None or durable_step > self.durable_step):
            self.durable_step, self.deaths_in_row = durable_step, 0
        if cause in (Cause.FINISHED, Cause.LEFT):
            return Verdict(cause=cause, again=False, smaller=False, delay_s=0.0, sentence=sentence_of(cause, death))
        self.deaths_in_row += 1
        again = cause not in _GIVE_UP and self.deaths_in_row <= BUDGET
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.deaths_in_row - 1)) if again else 0.0
        sentence = sentence_of(cause, death)
        if not again and cause not in _GIVE_UP:
            sentence += f" It died {self.deaths_in_row} times without getting as far as a new checkpoint, so it is given up."
        return Verdict(cause=cause, again=again, smaller=cause is Cause.MEMORY, delay_s=delay_s, sentence=sentence)


def cause_of(death: Death) -> Cause:
    if isinstance(death.last_words, Finished):
        return Cause.FINISHED
    if death.gpu_lost is not None and not isinstance(death.last_words, Leaving):
        return Cause.GPU_LOST
    if isinstance(death.last_words, Failed):
        return _OF_FAILURE[death.last_words.cause]
    if death.killed_by_us is not None:
        return death.killed_by_us
    if death.fence_oom_kills > 0:
        return Cause.MEMORY
    if isinstance(death.last_words, Leaving):
        return Cause.LEFT
    if death.is_command and death.exit_status == 0:
        return Cause.FINISHED
    if death.exit_status is not None and death.exit_status < 0:
        return Cause.CRASH if -death.exit_status in _CRASH_SIGNALS else Cause.KILLED
    return Cause.COMMAND_FAILED if death.is_command else Cause.CRASH


_CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def sentence_of(cause: Cause, death: Death) -> str:
    """One plain sentence on what happened; claims no more than is known."""
    if cause is Cause.GPU_LOST:
        return f"{death.gpu_lost} The run continues from its newest checkpoint with: memsup start"
    if isinstance(death.last_words, Failed):
        return death.last_words.message
    match cause:
        case Cause.FINISHED:
            return "It finished."
        case Cause.LEFT:
            return f"It left: {death.last_words.reason}." if isinstance(death.last_words, Leaving) else "It left."
        case Cause.MEMORY if death.killed_by_us is None:
            return f"The kernel killed {death.fence_oom_kills} of its processes at the fence, for memory."
        case Cause.MEMORY:
            return "It stood at its memory limit although frozen, and was killed."
        case Cause.HANG:
            return "Its main thread got nothing done for too long, and it was killed; the ledger has its stacks."
        case Cause.UNRESPONSIVE:
            return "It no longer answered and was killed."
        case Cause.KILLED if death.exit_status is not None:
            return f"It was killed by {_signal_name(-death.exit_status)} from outside memsup."
        case Cause.CRASH if death.exit_status is not None and death.exit_status < 0:
            return f"It crashed with {_signal_name(-death.exit_status)}; its log has the stack (memsup logs --worker)."
        case Cause.COMMAND_FAILED:
            return f"The command ended with exit code {death.exit_status} (memsup logs --worker)."
        case _:
            ended = "unknown" if death.exit_status is None else str(death.exit_status)
            return f"It ended with exit code {ended}; its log says more (memsup logs --worker)."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
