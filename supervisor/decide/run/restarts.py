"""Why did the worker end, and what now? The restart policy, pure.

Covers the cause of a death and the decision (again, again but smaller, give up) with its delay. Two things end the restarts:
the budget, which counts deaths without *durable* progress (a newer verified checkpoint), so that a worker which dies often but
gets on is let to get on; and a step that fails by itself again and again, since it will fail the next time as well. Both are
remembered in a `Budget`, which the supervisor keeps on disk: one that is started again does not begin to count anew.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from memsup.shared.commands import DEFAULT_RUN, command
from memsup.shared.messages import Failed, FailureCause, Finished, Leaving
from memsup.supervisor.words import plural

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
JITTER = 0.5
"""Up to this part of a delay is left out at random: what died together need not come back together."""
CROWDED_DELAY_S = 300.0
"""A worker that other programs left no room on the GPU is started again after this time."""
BUDGET = 5
"""So many deaths in a row without a newer checkpoint are allowed; with one more the run is given up."""
MOST_NOT_BEGUN = 60
"""A life that cannot be begun for want of processes, memory or descriptors is tried for about an hour."""
FAILURES_OF_A_STEP = 3
"""A step that has failed by itself so often is not tried again."""
MOST_TRACEBACK_CHARS = 4_000
"""The ledger keeps this much of a traceback: its end, which says most. The worker's log has all of it."""


class Cause(enum.StrEnum):
    """Why a worker ended."""

    FINISHED = "finished"
    LEFT = "left"
    """The worker left as it was ordered to, or because its lease ran out; or a person had it killed."""
    MEMORY = "memory"
    """The fence or the ladder killed it because of memory."""
    UNRESPONSIVE = "unresponsive"
    HANG = "hang"
    """The worker answered, but its main thread got nothing done."""
    KILLED = "killed"
    """A signal from outside memsup killed it."""
    CRASH = "crash"
    BAD_INPUT = "bad_input"
    ONE_ROW_TOO_LARGE = "one_row_too_large"
    NOT_FINITE = "not_finite"
    DISK_FULL = "disk_full"
    AFTER_SLEEP = "after_sleep"
    """The machine slept, and CUDA was dead in the worker afterwards."""
    CROWDED_OUT = "crowded_out"
    """Other programs took the GPU memory that it needs."""
    GPU_LOST = "gpu_lost"
    """The worker's GPU has fallen off the bus: nothing but a restart of the machine brings it back."""
    COMMAND_FAILED = "command_failed"
    """A supervised command ended with an exit code of its own."""


_NO_FAULT = {Cause.CROWDED_OUT: CROWDED_DELAY_S, Cause.AFTER_SLEEP: FIRST_DELAY_S}
"""What is no fault of the run's does not count, and another life follows after so many seconds."""
_GIVE_UP = {Cause.GPU_LOST, Cause.BAD_INPUT, Cause.ONE_ROW_TOO_LARGE, Cause.NOT_FINITE, Cause.COMMAND_FAILED}
_OF_FAILURE = {
    FailureCause.BAD_INPUT: Cause.BAD_INPUT,
    FailureCause.OUT_OF_MEMORY: Cause.ONE_ROW_TOO_LARGE,
    FailureCause.NOT_FINITE: Cause.NOT_FINITE,
    FailureCause.DISK_FULL: Cause.DISK_FULL,
    FailureCause.AFTER_SLEEP: Cause.AFTER_SLEEP,
    FailureCause.CRASH: Cause.CRASH,
}

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget is what is remembered from death to death; `deaths` is never above `BUDGET` in one that is kept."""

    deaths: _Count = 0
    """The worker died so often since `durable_step` moved."""
    durable_step: int | None = None
    """The step of the newest verified checkpoint at the last death. It is None where there was none."""
    failed_step: int | None = None
    """The last step that failed by itself. It is None where none has."""
    failures: _Count = 0
    """That step has failed so often."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """A death is what is known when the worker is gone."""

    run: str = DEFAULT_RUN
    """The run's name, for commands that are suggested."""
    exit_status: int | None
    """The exit code, or minus the signal's number. It is None where a process that was not our child left no trace."""
    rest_status: int = 0
    """How what a command left running ended, of which nobody but its supervisor knows: 0 where that was well."""
    last_words: Finished | Failed | Leaving | None = None
    """What the worker said of its end. It is None where the worker said nothing."""
    killed_by_us: Cause | None = None
    """Why the supervisor killed it: `LEFT` where a person asked for that. It is None where the supervisor did not."""
    was_told: bool = False
    """Whether a foreign command had been told to end, by SIGTERM."""
    was_attached: bool = False
    """Whether a foreign command had been attached, so that it reported and could be ordered to save and leave."""
    steps_left: tuple[int, int] | None = None
    """The step at which an attached program was, and its last one. It is None where no step was left, or nobody knows."""
    fence_oom_kills: int = 0
    """The kernel killed so many of its processes at the fence."""
    gpu_lost: str | None = None
    """The sentence about a GPU of the worker's that was lost before it ended. It is None where none was lost."""
    continues_on_cpu: bool = False
    """Whether the settings let the run go on on the CPU when its GPU is lost."""
    gpu_crowded: str | None = None
    """The clause about how much more GPU memory other programs hold than before. It is None where that is not much."""
    is_command: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict says what a death was, and what follows from it."""

    cause: Cause
    again: bool
    """Whether another life follows."""
    smaller: bool
    """Whether that life begins with smaller micro-batches."""
    delay_s: float
    """The next life begins after this time."""
    sentence: str
    """What happened, for people."""
    budget: Budget
    """What is to be remembered. A run that is given up has a new one: whoever starts it again has seen to what was wrong."""


@dataclass
class Restarts:
    """The restarts of one run under this supervisor: what is left of the budget, and when and how the next life begins."""

    budget: Budget = field(default_factory=Budget)
    count: int = 0
    """The deaths that another life follows."""
    due: bool = False
    """Whether the life after the last of them has not begun yet."""
    recovering: bool = False
    """The worker died, and the life after it has not come back to its work yet."""
    not_before_s: float = 0.0
    """The next life begins no sooner than at this time."""
    not_begun: int = 0
    """The next life could not be begun so often in a row, for want of something that may come back."""
    why_not_begun: str | None = None
    """The sentence about that. It is None where the last one could be begun."""
    on_cpu: bool = False
    """The GPU was lost, and the worker is told to leave it alone."""
    micro_tokens_limit: int | None = None
    """The next life begins with micro-batches of at most so many tokens. It is None where nothing has ended for memory."""

    def died(self, now_s: float, verdict: Verdict) -> None:
        """Takes note of a death, and of the life that follows it where one does."""
        self.budget = verdict.budget
        if verdict.again:
            self.count, self.recovering, self.due = self.count + 1, True, True
            self.on_cpu = self.on_cpu or verdict.cause is Cause.GPU_LOST
            self.not_before_s = now_s + verdict.delay_s

    def began(self) -> None:
        """Takes note of a life that has begun."""
        self.due, self.not_begun, self.why_not_begun = False, 0, None

    def not_started(self, now_s: float, sentence: str) -> float | None:
        """Takes note of a life that could not be begun; returns the seconds until it is tried again. None: that was the last
        time.
        """
        self.not_begun += 1
        if self.not_begun > MOST_NOT_BEGUN:
            return None
        wait_s = delay_s(self.not_begun, 0.0)
        self.why_not_begun, self.not_before_s = sentence, now_s + wait_s
        return wait_s

    def left(self, now_s: float) -> None:
        """Takes note of a worker that left as it was told: the next one may begin at once."""
        self.not_before_s = now_s

    def recovered(self) -> bool:
        """Takes note of a life that is back at its work, and tells whether that is news."""
        was_recovering, self.recovering = self.recovering, False
        return was_recovering

    def shrink(self, micro_tokens: int) -> tuple[int, int]:
        """Halves the micro-batch for the lives to come; returns the tokens before and after."""
        self.micro_tokens_limit = max(1, micro_tokens // 2)
        return micro_tokens, self.micro_tokens_limit


def judge(death: Death, budget: Budget, durable_step: int | None, jitter_fraction: float) -> Verdict:
    """What a death was, and what follows. `durable_step` is the newest checkpoint's. It is None where there is none.
    `jitter_fraction`, 0 to 1 and by chance, is how much of `JITTER` is used.
    """
    cause = cause_of(death)
    sentence = sentence_of(cause, death)
    if cause in (Cause.FINISHED, Cause.LEFT):
        return Verdict(cause=cause, again=False, smaller=False, delay_s=0.0, sentence=sentence, budget=budget)
    if cause in _NO_FAULT:  # another program may stay for hours, and a laptop sleep each night
        budget, wait_s = _refilled(budget, durable_step), _NO_FAULT[cause]
        return Verdict(cause=cause, again=True, smaller=False, delay_s=wait_s, sentence=sentence, budget=budget)
    budget = _charged(_refilled(budget, durable_step), cause, death)
    if cause in _GIVE_UP and not (cause is Cause.GPU_LOST and death.continues_on_cpu):
        why_not = ""
    elif budget.failed_step is not None and budget.failures >= FAILURES_OF_A_STEP:
        why_not = f" Step {budget.failed_step:,} has failed {budget.failures} times now, so it is not tried again."
    elif budget.deaths > BUDGET:
        why_not = f" It died {budget.deaths} times without getting as far as a new checkpoint, so it is given up."
    else:
        wait_s, smaller = delay_s(budget.deaths, jitter_fraction), cause is Cause.MEMORY
        return Verdict(cause=cause, again=True, smaller=smaller, delay_s=wait_s, sentence=sentence, budget=budget)
    return Verdict(cause=cause, again=False, smaller=False, delay_s=0.0, sentence=sentence + why_not, budget=Budget())


def delay_s(deaths: int, jitter_fraction: float) -> float:
    """The time to the next life after so many deaths (1 or more) in a row: twice as long each time."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (deaths - 1)) * (1 - JITTER * jitter_fraction)


def _refilled(budget: Budget, durable_step: int | None) -> Budget:
    if durable_step is None or (budget.durable_step is not None and durable_step <= budget.durable_step):
        return budget
    return msgspec.structs.replace(budget, durable_step=durable_step, deaths=0)


def _charged(budget: Budget, cause: Cause, death: Death) -> Budget:
    words, failed_step, failures = death.last_words, budget.failed_step, budget.failures
    if cause is Cause.CRASH and isinstance(words, Failed) and words.step:  # 0: before the first one
        failures = failures + 1 if words.step == failed_step else 1
        failed_step = words.step
    return msgspec.structs.replace(budget, deaths=budget.deaths + 1, failed_step=failed_step, failures=failures)


# --------------------------------------------------------------------------------------------------------------------
# What a death was


def cause_of(death: Death) -> Cause:
    """The most specific cause that is known."""
    if isinstance(death.last_words, Finished) and (not death.is_command or death.exit_status in {0, None}):
        return Cause.FINISHED
    if death.gpu_lost is not None and not isinstance(death.last_words, Leaving):
        return Cause.GPU_LOST
    if isinstance(death.last_words, Failed) and (status := death.last_words.exit_status) is not None:
        return death.killed_by_us or _cause_of_rank(status, death)
    if isinstance(death.last_words, Failed):
        cause = _OF_FAILURE[death.last_words.cause]
        if cause is Cause.ONE_ROW_TOO_LARGE and death.gpu_crowded is not None:
            return Cause.CROWDED_OUT
        # Of a person's own program nobody knows that nothing less could be tried: a process that is new may find room.
        return Cause.CRASH if cause is Cause.ONE_ROW_TOO_LARGE and death.is_command else cause
    if death.killed_by_us is not None:
        return death.killed_by_us
    if death.fence_oom_kills > 0:
        return Cause.MEMORY
    if isinstance(death.last_words, Leaving):
        return Cause.LEFT
    if death.is_command and death.was_told and (death.exit_status is None or death.exit_status in _ENDS_OF_THE_TOLD):
        if death.was_attached and not isinstance(death.last_words, Finished):
            return Cause.UNRESPONSIVE  # it was to save what it has, and then to leave
        return Cause.LEFT  # also with 0: only who was not told to end has finished
    if death.is_command and death.exit_status == 0:
        is_well = death.rest_status in _GOOD_ENDS_OF_THE_REST and death.steps_left is None
        return Cause.FINISHED if is_well else Cause.COMMAND_FAILED
    if death.exit_status is not None and death.exit_status < 0:
        return Cause.CRASH if -death.exit_status in _CRASH_SIGNALS else Cause.KILLED
    return Cause.COMMAND_FAILED if death.is_command and not death.was_attached else Cause.CRASH


def _cause_of_rank(exit_status: int, death: Death) -> Cause:
    """Why a rank ended with which all the others ended: the same as if the worker itself had."""
    if exit_status == -signal.SIGKILL and death.fence_oom_kills > 0:
        return Cause.MEMORY
    return Cause.KILLED if exit_status < 0 and -exit_status not in _CRASH_SIGNALS else Cause.CRASH


_ENDS_OF_THE_TOLD = {-signal.SIGTERM, *range(256)}
"""How a command ends that obeys SIGTERM: by the signal itself, or with an exit code of its own choice."""
_GOOD_ENDS_OF_THE_REST = {0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGPIPE}
"""A server that a command has left running ends when somebody tells it to, and who wrote to the command when that is gone."""
_CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def sentence_of(cause: Cause, death: Death) -> str:
    """One plain sentence on what happened; claims no more than is known."""
    if cause is Cause.GPU_LOST and death.continues_on_cpu:
        return f"{death.gpu_lost} The run continues on the CPU from its newest checkpoint, as recovery.continue_on_cpu allows."
    if cause is Cause.GPU_LOST and death.is_command and not death.was_attached:
        return f"{death.gpu_lost} The command is begun anew with: {command('start', death.run)}"
    if cause is Cause.GPU_LOST:
        return f"{death.gpu_lost} The run continues from its newest checkpoint with: {command('start', death.run)}"
    if cause is Cause.CROWDED_OUT:
        return f"It found no room on the GPU: {death.gpu_crowded}. It tries again every {CROWDED_DELAY_S / 60:.0f} minutes."
    if isinstance(death.last_words, Failed):
        return death.last_words.message
    log = f"{command('logs', death.run)} --worker"
    match cause:
        case Cause.FINISHED:
            return "It finished."
        case Cause.LEFT if death.is_command and not isinstance(death.last_words, Leaving):
            return f"The command ended as it was told to ({how_it_ended(death.exit_status)})."
        case Cause.LEFT:
            return f"It left: {death.last_words.reason}." if isinstance(death.last_words, Leaving) else "It left."
        case Cause.MEMORY if death.killed_by_us is None:
            return f"The kernel killed {death.fence_oom_kills} of its processes at the fence, for memory."
        case Cause.MEMORY:
            return "Memory stayed short although it was frozen, and it was killed."
        case Cause.HANG:
            return "It got nothing done for too long, and was killed; the line before has its stacks, if it still wrote them."
        case Cause.UNRESPONSIVE if death.was_attached:
            ended = how_it_ended(death.exit_status)
            return f"The program came to no boundary at which it could have saved and left, and was ended ({ended})."
        case Cause.UNRESPONSIVE if death.is_command:
            return "The command did not end by itself when it was told to, and was killed."
        case Cause.UNRESPONSIVE:
            return "It no longer answered and was killed."
        case Cause.KILLED if death.exit_status is not None:
            return f"It was killed by {_signal_name(-death.exit_status)} from outside memsup."
        case Cause.CRASH if death.exit_status is not None and death.exit_status < 0:
            return f"It crashed with {_signal_name(-death.exit_status)}; its log has the stack ({log})."
        case Cause.COMMAND_FAILED if death.exit_status == 0 and death.steps_left is not None:
            step, total = death.steps_left
            ended = f"The program ended by itself at step {step:,} of {total:,}, without a call of run.finish"
            return f"{ended}. To go on from its newest checkpoint: {command('start', death.run)}"
        case Cause.COMMAND_FAILED if death.exit_status == 0:
            rest = f"what it had left running ended after it with {how_it_ended(death.rest_status)}"
            return f"The command itself ended with exit code 0, but {rest} ({log})."
        case Cause.COMMAND_FAILED if death.exit_status is None:
            return f"The command has ended; how, only the supervisor would have known that had started it, and died ({log})."
        case Cause.COMMAND_FAILED:
            return f"The command ended with exit code {death.exit_status} ({log})."
        case _:
            ended = "unknown" if death.exit_status is None else str(death.exit_status)
            return f"It ended with exit code {ended}; its log says more ({log})."


def last_words_of(death: Death) -> str:
    """What the ledger says of the end: how the process ended and what the kernel did on the first line, below it the end of its
    traceback.
    """
    ended = how_it_ended(death.exit_status)
    if death.fence_oom_kills:
        ended += f"; {plural(death.fence_oom_kills, 'process', 'processes')} killed by the kernel at the fence"
    traceback = death.last_words.traceback if isinstance(death.last_words, Failed) else None
    return f"{ended}\n{traceback.strip()[-MOST_TRACEBACK_CHARS:]}" if traceback else ended


def how_it_ended(exit_status: int | None) -> str:
    """How a process ended, in a few words."""
    if exit_status is None:
        return "no exit status is known"
    return _signal_name(-exit_status) if exit_status < 0 else f"exit code {exit_status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
