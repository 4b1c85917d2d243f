"""Who is told what, and when: the policy of messages and of the dead man's ping. Pure; `sender.py` sends.

A person is told at once when a run that was queued begins, or when one has finished or failed, goes on again after the machine
died, needs attention, or was paused for more than a quarter of an hour. Each trouble that needs attention is told once in half
a day, and no more than a few messages a day in all; what was held back comes with the digest in the morning. A run that a
person watches with `memsup status` needs none of this.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from memsup.shared.commands import command
from memsup.shared.status import OVER, RunState, Status, TroubleKind, Wanted
from memsup.supervisor.words import count, duration, ending_line, plural, rest_by_hours, result_line, size, steps

PAUSED_LONG_S = 15 * 60.0
ATTENTION_HOLDS_S = 60.0
"""A trouble that passes within a minute needs nobody."""
SAME_AGAIN_S = 12 * 3600.0
APART_S = 30 * 60.0
"""The least time between two messages that are not about the end of something."""
MOST_A_DAY = 6
MORNING_HOUR = 8
PING_EVERY_S = 60.0


class Kind(enum.StrEnum):
    FINISHED = "finished"
    FAILED = "failed"
    ATTENTION = "attention"
    REVIVED = "revived"
    """Training goes on after a death of the whole machine, or waits for a person to say so."""
    PAUSED = "paused"
    BEGUN = "begun"
    """A run that was queued begins."""
    DIGEST = "digest"
    TEST = "test"


_AT_ONCE = {Kind.FINISHED, Kind.FAILED, Kind.REVIVED, Kind.BEGUN}


@dataclass(frozen=True)
class Notice:
    kind: Kind
    title: str
    text: str


class Told(msgspec.Struct, kw_only=True):
    """What was told, kept in a file across restarts of the supervisor: nothing is told twice. Times are Unix seconds."""

    run_id: str = ""
    ended: str | None = None
    """The end of the run that was told. It is None where none was told."""
    waits: bool = False
    """Whether it was queued when it was looked at last."""
    troubles: dict[str, float] = msgspec.field(default_factory=dict)
    """Each trouble that needed attention (`Status.attention_kinds`), and when it was told."""
    sent: list[float] = msgspec.field(default_factory=list)
    """The times at which messages went out that are counted."""
    held_back: list[str] = msgspec.field(default_factory=list)
    digest_day: str = ""


class Policy:
    """Sees every status and says what is to be sent now."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._since: dict[str, float] = {}
        """When each present trouble was first seen."""
        self._paused_told = False
        self._revived: tuple[str, ...] = ()
        self._waits = False
        self._told_elsewhere = {TroubleKind.FAILED}
        """Troubles that have a message of their own, so that they need none as attention."""
        self._next_ping_s = 0.0

    def machine_died(self, sentences: Sequence[str], *, waits: bool = False) -> None:
        """Takes the post-mortem's words: to be told once training goes on, or, where it `waits` for a person, is stopped."""
        self._waits = waits
        self._revived = tuple(sentences)
        self._told_elsewhere |= {TroubleKind.MACHINE_DIED, TroubleKind.WAITS}

    def ping_due(self, now_s: float) -> bool:
        """Whether a ping is to be sent now; `now_s` is monotonic."""
        if now_s < self._next_ping_s:
            return False
        self._next_ping_s = now_s + PING_EVERY_S
        return True

    def step(self, unix_s: float, local_hour: int, local_day: str, status: Status) -> list[Notice]:
        """What is to be sent now; to be called about once a second. `local_day`, such as 2026-05-29, and `local_hour` are the
        user's.
        """
        if status.run_id != self.told.run_id:
            self.told = Told(run_id=status.run_id or "", digest_day=self.told.digest_day)
        notices = [
            notice
            for notice in (
                self._end(status),
                self._begin(status),
                self._revival(status),
                self._pause(unix_s, status),
                self._attention(unix_s, status),
                self._digest(local_hour, local_day, status),
            )
            if notice is not None
        ]
        return [notice for notice in notices if self._may_go(notice, unix_s)]

    def _may_go(self, notice: Notice, unix_s: float) -> bool:
        """Whether the notice goes now. What goes is counted; what has to stay is kept for the digest."""
        if notice.kind in _AT_ONCE or notice.kind is Kind.DIGEST:
            return True
        sent = [at for at in self.told.sent if 0 <= unix_s - at < 86_400]  # later dates are of a clock set back
        if len(sent) >= MOST_A_DAY or (sent and unix_s - sent[-1] < APART_S):
            self.told.held_back = [*self.told.held_back, notice.text][-20:]
            return False
        self.told.sent = [*sent, unix_s]
        return True

    def _end(self, status: Status) -> Notice | None:
        if status.state not in (RunState.FINISHED, RunState.FAILED) or self.told.ended == status.state:
            return None
        self.told.ended = str(status.state)
        if status.state is RunState.FINISHED:
            # A command has no metrics, and a message without a word is delivered by nobody.
            text = _sentences(_result(status), _restarts(status)) or "It ran to its end."
            return Notice(Kind.FINISHED, f"{status.run}: finished", text)
        return Notice(
            Kind.FAILED, f"{status.run}: failed", _sentences(status.failure or "No reason is known.", _checkpoint(status))
        )

    def _begin(self, status: Status) -> Notice | None:
        waited, self.told.waits = self.told.waits, status.waiting is not None
        if not waited or self.told.waits or status.wanted is Wanted.STOPPED or status.state in OVER:
            return None
        return Notice(Kind.BEGUN, f"{status.run}: begins", _sentences("It is its turn.", _progress(status)))

    def _revival(self, status: Status) -> Notice | None:
        if not self._revived or status.state is not (RunState.STOPPED if self._waits else RunState.RUNNING):
            return None
        sentences, self._revived = self._revived, ()
        what = "the machine died, and it waits for you" if self._waits else "goes on after the machine died"
        return Notice(Kind.REVIVED, f"{status.run}: {what}", _sentences(*sentences, _progress(status)))

    def _pause(self, unix_s: float, status: Status) -> Notice | None:
        rest = rest_by_hours(status)
        goes_on = rest is not None and rest.until is not None
        if status.state not in (RunState.PAUSED, RunState.COOLING) or status.since is None or goes_on:
            self._paused_told = False
            return None
        lasts_s = unix_s - status.since
        if self._paused_told or lasts_s < PAUSED_LONG_S:
            return None
        self._paused_told = True
        why = f": {status.last_action.reason}" if status.state is RunState.COOLING and status.last_action else ""
        what = str(status.state) if rest is None else f"{rest.what}, that is"
        text = f"It is {what} for {duration(lasts_s)} now{why}. Continue with: {command('resume', status.run)}"
        return Notice(Kind.PAUSED, f"{status.run}: still {status.state}", _sentences(text, _progress(status)))

    def _attention(self, unix_s: float, status: Status) -> Notice | None:
        seen = zip(status.attention_kinds, status.attention, strict=True)
        now = {trouble: sentence for trouble, sentence in seen if trouble not in self._told_elsewhere}
        self._since = {trouble: self._since.get(trouble, unix_s) for trouble in now}
        self.told.troubles = {
            trouble: at for trouble, at in self.told.troubles.items() if trouble in now or 0 <= unix_s - at < SAME_AGAIN_S
        }
        fresh = [
            trouble
            for trouble in now
            if unix_s - self._since[trouble] >= ATTENTION_HOLDS_S
            and unix_s - self.told.troubles.get(trouble, -1e18) >= SAME_AGAIN_S
        ]
        if not fresh or status.state in (RunState.FINISHED, RunState.FAILED):
            return None
        self.told.troubles |= dict.fromkeys(fresh, unix_s)
        return Notice(
            Kind.ATTENTION,
            f"{status.run}: needs attention",
            _sentences(*(now[trouble] for trouble in fresh), _progress(status)),
        )

    def _digest(self, local_hour: int, local_day: str, status: Status) -> Notice | None:
        if self.told.digest_day == "":
            self.told.digest_day = local_day  # the first morning is the next one
        if local_hour < MORNING_HOUR or self.told.digest_day == local_day:
            return None
        self.told.digest_day = local_day
        if status.state in (RunState.FINISHED, RunState.FAILED, RunState.STOPPED):
            return None  # that was told, or asked for
        held_back, self.told.held_back = self.told.held_back, []
        rest = rest_by_hours(status)
        lines = [
            f"It is {status.state if rest is None else rest.what}. {_progress(status)}",
            _checkpoint(status),
            _restarts(status),
            *status.attention,
        ]
        lines += [f"Held back: {text}" for text in held_back]
        return Notice(Kind.DIGEST, f"{status.run}: good morning", "\n".join(line for line in lines if line))


def trial_notice(run: str) -> Notice:
    return Notice(Kind.TEST, f"{run}: a test", "memsup can reach you here. It will tell you when the run ends, or needs you.")


def _sentences(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _progress(status: Status) -> str:
    progress = status.progress
    if progress.step is None:
        return ""
    left = f", {duration(progress.eta_s)} left" if progress.eta_s is not None else ""
    loss = f", loss {progress.loss:.3g}" if progress.loss is not None else ""
    return f"{steps(progress.step, progress.total_steps).capitalize()}{loss}{left}."


def _result(status: Status) -> str:
    result, ending = result_line(status), ending_line(status)
    return _sentences(f"{result}." if result else "", f"{ending[0].upper()}{ending[1:]}." if ending else "")


def _checkpoint(status: Status) -> str:
    if status.checkpoint.step is None:
        return "There is no checkpoint yet."
    age = f", {duration(status.checkpoint.age_s)} old" if status.checkpoint.age_s is not None else ""
    return f"Newest checkpoint: step {count(status.checkpoint.step)}{age}."


def _restarts(status: Status) -> str:
    memory = f", worker {size(status.memory.worker_bytes)}" if status.memory.worker_bytes else ""
    return f"{plural(status.restarts, 'restart')}{memory}." if status.restarts else ""
