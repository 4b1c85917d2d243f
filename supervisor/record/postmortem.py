"""What did the run die of? The evidence in, a verdict out. Pure; `evidence.py` collects.

Claims no more than it can show. That memory was the cause is only said where the kernel (or earlyoom) wrote down that it killed
this supervisor for it; a machine that went down without a word may have lost its power, been reset, crashed or hung, and unless
something tells them apart the sentence says so. Readings from before the death are evidence, not proof.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from memsup.supervisor.record.blackbox import Frame, Heat, Mark
from memsup.supervisor.words import VERIFIED, count, duration, percent, size

LIVED_ON_S = 20.0
"""Where the journal of that boot goes on for this long after the last frame, the machine outlived the supervisor."""
SHUTS_DOWN_WITHIN_S = 180.0
AROUND_S = 300.0
"""What the kernel wrote this long before the last frame, or later, can have to do with the death."""
NEAR_SHUTDOWN_C = 3.0
"""A last temperature within this of where the device shuts itself down speaks for heat."""
STOOD_STILL_S = 10.0
"""Frames come once a second. Where so long passed between two of them, the whole machine stood still."""


class Cause(enum.StrEnum):
    CLEAN = "clean stop"
    KILLED = "killed"
    KERNEL_OOM = "kernel out of memory"
    PANIC = "kernel panic"
    THERMAL = "thermal shutdown"
    POWER = "power loss"
    HANG = "hang"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Line:
    """One line of a log. `at` is its Unix time. It is None where the line has none."""

    at: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that is known at the next start. What is None could not be read, and `unread` says why."""

    frames: tuple[Frame, ...] = ()
    broken: int = 0
    """How many blocks of the ring are torn."""
    boot: str
    """The boot of this start."""
    now_unix_s: float
    booted_unix_s: float | None = None
    kernel: tuple[Line, ...] | None = None
    """The kernel's own log of the boot of the last frame."""
    journal: tuple[Line, ...] | None = None
    """The last lines of everything that was logged in that boot; their end is the last sign of life."""
    crash_dumps: tuple[Line, ...] | None = None
    """What the kernel left in pstore, with the files' dates."""
    checkpoint_step: int | None = None
    checkpoint_path: str | None = None
    checkpoint_unix_s: float | None = None
    checkpoint_verified: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    cause: Cause
    sure: bool
    """Whether the kernel or memsup itself wrote the cause down. False where it is the likeliest that fits."""
    machine: bool
    """Whether the whole machine died. False where the supervisor alone did, or where the machine was shut down in good
    order."""
    sentence: str
    evidence_for: tuple[str, ...] = ()
    evidence_against: tuple[str, ...] = ()
    died_unix_s: float | None = None
    lost_s: float | None = None
    """The seconds of work since the newest checkpoint. It is None where that is not known."""
    checkpoint_step: int | None = None
    checkpoint_path: str | None = None

    @property
    def is_bad(self) -> bool:
        return self.cause is not Cause.CLEAN


@dataclass
class _Finding:
    cause: Cause
    sure: bool
    sentence: str
    pro: list[str] = field(default_factory=list)
    contra: list[str] = field(default_factory=list)
    machine: bool = True


def judge(evidence: Evidence) -> Verdict | None:
    """What the life before died of. Returns None where there was none of this run, so that there is nothing to explain."""
    if not evidence.frames:
        if not evidence.broken:
            return None
        finding = _Finding(
            Cause.UNKNOWN,
            False,
            "The black box of the life before cannot be read, so nothing can be said about it.",
            machine=False,
        )
        return _verdict(evidence, None, finding)
    last = evidence.frames[-1]
    if last.mark == Mark.CLEAN:
        finding = _Finding(Cause.CLEAN, True, f"It ended in good order: {last.reason or 'no reason was noted'}.", machine=False)
    elif last.boot == evidence.boot:
        finding = _supervisor_death(evidence, last)
    else:
        finding = _machine_death(evidence, last)
    return _verdict(evidence, last, finding)


def _verdict(evidence: Evidence, last: Frame | None, finding: _Finding) -> Verdict:
    lost_s = None
    if last is not None and evidence.checkpoint_unix_s is not None:
        lost_s = max(0.0, last.at - evidence.checkpoint_unix_s)
    return Verdict(
        cause=finding.cause,
        sure=finding.sure,
        machine=finding.machine,
        sentence=finding.sentence,
        evidence_for=tuple(finding.pro),
        evidence_against=tuple(finding.contra),
        died_unix_s=last.at if last else None,
        lost_s=lost_s,
        checkpoint_step=evidence.checkpoint_step,
        checkpoint_path=evidence.checkpoint_path,
    )


# --------------------------------------------------------------------------------------------------------------------
# The machine lived on


def _supervisor_death(evidence: Evidence, last: Frame, lived_on_s: float | None = None) -> _Finding:
    """The verdict where the machine outlived the supervisor. `lived_on_s` is for how long it did, where it was started again
    later, which has nothing to do with the death. It is None where the machine has not been started again.
    """
    machine = "the machine lived on" if lived_on_s is None else "the machine itself was started again later"
    proof = []
    if lived_on_s is not None:
        proof.append(f"The journal of that boot goes on for {duration(lived_on_s)} after memsup's last record.")
    kernel = _around(evidence.kernel or (), last)
    if (record := _first(kernel, lambda text: _oom_victim(text) == last.pid)) is not None:
        sentence = f"The kernel killed the supervisor because memory had run out; {machine}."
        return _Finding(Cause.KERNEL_OOM, True, sentence, [_quoted("kernel", record), *proof], machine=False)
    if (record := _first(_around(evidence.journal or (), last), lambda text: _earlyoom_victim(text) == last.pid)) is not None:
        sentence = f"earlyoom killed the supervisor because memory was short; {machine}."
        return _Finding(Cause.KILLED, True, sentence, [_quoted("journal", record), *proof], machine=False)
    if (record := _first(kernel, lambda text: f"[{last.pid}]" in text and _CRASH.search(text) is not None)) is not None:
        sentence = f"The supervisor crashed; {machine}."
        return _Finding(Cause.KILLED, True, sentence, [_quoted("kernel", record), *proof], machine=False)
    sentence = f"The supervisor was killed or ended without a word; {machine}."
    proof = proof or ["The machine has not been started again since."]
    finding = _Finding(Cause.KILLED, False, sentence, proof, machine=False)
    if evidence.kernel is not None:
        finding.contra.append("The kernel's log has no record that it killed or stopped the supervisor.")
    finding.contra += evidence.unread
    return finding


# --------------------------------------------------------------------------------------------------------------------
# The machine went down


def _machine_death(evidence: Evidence, last: Frame) -> _Finding:
    kernel = _around(evidence.kernel or (), last)
    dumps = [line for line in evidence.crash_dumps or () if line.at is None or line.at >= last.at - AROUND_S]
    for source, lines in (("kernel", kernel), ("crash dump", dumps)):
        if (record := _first(lines, lambda text: _PANIC.search(text) is not None)) is not None:
            return _panic(record, source, [*kernel, *dumps])
        if (record := _first(lines, lambda text: _THERMAL.search(text) is not None)) is not None:
            sentence = "The machine shut itself down because it was too hot."
            return _Finding(Cause.THERMAL, True, sentence, [_quoted(source, record), *_heat(last)])
    if (record := _first(kernel, lambda text: _oom_victim(text) == last.pid)) is not None:
        sentence = "The kernel killed the supervisor because memory had run out; the machine went down later."
        return _Finding(Cause.KERNEL_OOM, True, sentence, [_quoted("kernel", record)])
    ending = [line for line in evidence.journal or () if line.at is None or 0 <= line.at - last.at + 5 <= SHUTS_DOWN_WITHIN_S]
    if (record := _first(ending, lambda text: _SHUTDOWN.search(text) is not None)) is not None:
        sentence = "The machine was shut down in good order, and the run was ended with it before it could say so."
        return _Finding(Cause.KILLED, True, sentence, [_quoted("journal", record)], machine=False)
    lived_on_s = _lived_on_s(evidence, last)
    if lived_on_s is not None and lived_on_s > LIVED_ON_S:
        return _supervisor_death(evidence, last, lived_on_s)
    return _without_a_word(evidence, last, kernel)


def _panic(record: Line, source: str, lines: Sequence[Line]) -> _Finding:
    if _OOM_PANIC.search(record.text):
        return _Finding(
            Cause.PANIC,
            True,
            "The kernel stopped the machine because memory had run out (panic_on_oom).",
            [_quoted(source, record)],
        )
    finding = _Finding(Cause.PANIC, True, "The kernel stopped the machine with a panic.", [_quoted(source, record)])
    if (before := _first(lines, lambda text: text.startswith(("BUG:", "Oops")) or "general protection" in text)) is not None:
        finding.pro.append(_quoted(source, before))
    return finding


def _without_a_word(evidence: Evidence, last: Frame, kernel: Sequence[Line]) -> _Finding:
    """The verdict where there is no shutdown, no panic and no record of heat: it was power, a reset, a hang, or heat that
    nobody wrote down.
    """
    went = "The machine went down without shutting down"
    pro = _silence(evidence)
    if (record := _first(kernel, lambda text: _oom_victim(text) is not None)) is not None:
        pro.append(f"Shortly before, the kernel had killed another process. {_quoted('kernel', record)}")
    stuck = _first(kernel, lambda text: _STUCK.search(text) is not None)
    hot = _at_shutdown(last)
    gpu_gone = _first(kernel, lambda text: _GPU_GONE.search(text) is not None)
    if hot is not None:
        limit = f"{hot.shutdown_c:.0f} °C"
        sentence = (
            f"{went}, most likely because it was too hot: {_named(hot)} was at {hot.celsius:.0f} °C and shuts down at {limit}."
        )
        return _Finding(Cause.THERMAL, False, sentence, [*_heat(last), *pro], ["No log says that heat was the reason."])
    if stuck is not None:
        sentence = f"{went}, most likely after it hung: the kernel had complained that something was stuck."
        return _Finding(
            Cause.HANG, False, sentence, [_quoted("kernel", stuck), *pro], ["It may have lost its power all the same."]
        )
    if (stood_s := _stood_still_s(evidence.frames)) is not None:
        sentence = f"{went}, most likely after it hung: the supervisor itself had stood still for {duration(stood_s)} before."
        return _Finding(Cause.HANG, False, sentence, pro, ["No log says what was stuck."])
    finding = _Finding(
        Cause.POWER,
        False,
        f"{went}: its power was cut, or it was reset, crashed or hung. Which of these, nothing here can tell.",
        pro,
    )
    if gpu_gone is not None or any(heat.lost for heat in _heats(last)):
        finding.pro.append(
            _quoted("kernel", gpu_gone) if gpu_gone else "A GPU had fallen off the bus, as when its power supply gives in."
        )
    finding.pro += _heat(last)
    finding.contra += evidence.unread
    return finding


def _silence(evidence: Evidence) -> list[str]:
    pro = ["The last frame of the black box says nothing of an end, and a new boot follows."]
    if evidence.journal is not None:
        pro.append("The journal of that boot ends without a shutdown.")
    if evidence.crash_dumps is not None and not evidence.crash_dumps:
        pro.append("The kernel left no crash dump.")
    return pro


# --------------------------------------------------------------------------------------------------------------------
# Reading the lines

_OOM = re.compile(r"(?:Out of memory|out of memory).*?[Kk]illed process (\d{1,10})\b|oom-kill:.*\bpid=(\d{1,10})\b")
_EARLYOOM = re.compile(r"earlyoom.*sending SIG(?:TERM|KILL) to process (\d{1,10})\b")
_CRASH = re.compile(r"segfault|general protection|trap (?:invalid opcode|divide error)|bus error")
_PANIC = re.compile(r"Kernel panic - not syncing")
_OOM_PANIC = re.compile(r"Kernel panic - not syncing: [^\n]*(?:[Oo]ut of memory|System is deadlocked on memory)")
_THERMAL = re.compile(r"[Cc]ritical temperature reached|HARDWARE PROTECTION shutdown \(Temperature too high\)")
_SHUTDOWN = re.compile(
    r"systemd-shutdown|Reached target (?:System )?(?:Shutdown|Power Off|Reboot|(?:shutdown|poweroff|reboot)\.target)"
    r"|The system will (?:power off|reboot) now|System is (?:powering down|rebooting)"
)
_STUCK = re.compile(r"soft lockup|hard LOCKUP|rcu.*(?:detected stalls|self-detected stall)|blocked for more than \d+ seconds")
_GPU_GONE = re.compile(r"NVRM: Xid .*\b79\b|GPU has fallen off the bus")


def _oom_victim(text: str) -> int | None:
    found = _OOM.search(text)
    return int(found[1] or found[2]) if found else None


def _earlyoom_victim(text: str) -> int | None:
    found = _EARLYOOM.search(text)
    return int(found[1]) if found else None


def _around(lines: Iterable[Line], last: Frame) -> list[Line]:
    """The lines that can have to do with the death, those without a date among them."""
    return [line for line in lines if line.at is None or line.at >= last.at - AROUND_S]


def _first(lines: Iterable[Line], test: Callable[[str], bool]) -> Line | None:
    return next((line for line in lines if test(line.text)), None)


def _lived_on_s(evidence: Evidence, last: Frame) -> float | None:
    dated = [line.at for line in (*(evidence.journal or ()), *(evidence.kernel or ())) if line.at is not None]
    return max(dated) - last.at if dated else None


def _quoted(source: str, line: Line) -> str:
    return f"{source}: {line.text.strip().removeprefix(f'{source}: ')[:200]}"


# --------------------------------------------------------------------------------------------------------------------
# Reading the frames


def _heats(frame: Frame) -> tuple[Heat, ...]:
    return frame.facts.heats if frame.facts else ()


def _named(heat: Heat) -> str:
    return "the CPU or board" if heat.index < 0 else f"GPU {heat.index}"


def _heat(frame: Frame) -> list[str]:
    told = []
    for heat in _heats(frame):
        if heat.celsius is not None:
            limit = "" if heat.slowdown_c is None else f", slows itself down at {heat.slowdown_c:.0f}"
            told.append(f"Last temperature of {_named(heat)}: {heat.celsius:.0f} °C{limit}.")
    return told


def _at_shutdown(frame: Frame) -> Heat | None:
    return next(
        (
            heat
            for heat in _heats(frame)
            if heat.celsius is not None and heat.shutdown_c is not None and heat.celsius >= heat.shutdown_c - NEAR_SHUTDOWN_C
        ),
        None,
    )


def _stood_still_s(frames: Sequence[Frame]) -> float | None:
    """How long the supervisor's own clock jumped between two of the last frames of one life, in which the machine stood still
    and not the worker alone. Returns None where it did not.
    """
    tail = [frame for frame in frames[-10:] if frame.boot == frames[-1].boot and frame.pid == frames[-1].pid]
    gaps = [after.mono - before.mono for before, after in itertools.pairwise(tail)]
    longest = max(gaps, default=0.0)
    return longest if longest >= STOOD_STILL_S else None


def last_minute(frames: Sequence[Frame]) -> Iterator[str]:
    """What the last minute before the last frame looked like, in a few lines."""
    if not frames:
        return
    last = frames[-1]
    minute = [frame for frame in frames if frame.boot == last.boot and frame.mono >= last.mono - 60]
    facts = last.facts
    if facts is not None:
        step = "" if facts.step is None else f", step {count(facts.step)}"
        yield f"{facts.state}{f' ({facts.phase})' if facts.phase else ''}{step}"
    traces = [reading for frame in minute for reading in frame.trace]
    workers = [reading.worker_mib for reading in traces if reading.worker_mib is not None]
    if workers:
        limit = f" of {size(facts.limit_mib * 2**20)}" if facts and facts.limit_mib else ""
        yield f"worker {size(workers[0] * 2**20)} → {size(workers[-1] * 2**20)}{limit}, at most {size(max(workers) * 2**20)}"
    rooms = [reading.available_mib for reading in traces if reading.available_mib is not None]
    if rooms:
        total = f" of {size(last.total_mib * 2**20)}" if last.total_mib else ""
        yield f"RAM available {size(rooms[0] * 2**20)} → {size(rooms[-1] * 2**20)}{total}, at least {size(min(rooms) * 2**20)}"
    pressures = [reading.pressure for reading in traces if reading.pressure is not None]
    if pressures and max(pressures) >= 0.01:
        yield f"at worst {percent(max(pressures))} of the time somebody waited for RAM"
    if facts is not None and facts.disk_free_mib is not None:
        yield f"{size(facts.disk_free_mib * 2**20)} free on the disk of the run's state"
    for heat in _heats(last):
        if heat.celsius is not None:
            yield f"{_named(heat)} {heat.celsius:.0f} °C" + ("" if heat.power_w is None else f", {heat.power_w:.0f} W")


def told(
    evidence: Evidence, verdict: Verdict, *, waits: bool = False, is_command: bool = False, is_paused: bool = False
) -> list[str]:
    """The next start's first words, for a terminal and a message. `waits` tells that nothing is started before a person
    says so, `is_command` that what the run saves may be its own affair, `is_paused` that it is to stand still.
    """
    lines = [verdict.sentence]
    if verdict.is_bad:
        if verdict.died_unix_s is not None:
            lines.append(f"Last record: {duration(evidence.now_unix_s - verdict.died_unix_s)} ago.")
        lines += [f"Then: {text}" for text in last_minute(evidence.frames)]
        lines += [f"For it: {text}" for text in verdict.evidence_for]
        lines += [f"Against it: {text}" for text in verdict.evidence_against]
        if is_command and is_paused and not verdict.machine and verdict.checkpoint_step is None:
            lines.append("The command is guarded again where it still stands, as it was paused; else it is begun anew.")
        elif is_command and verdict.checkpoint_step is None:
            lines.append(f"The command {'would be' if waits else 'is'} begun anew.")
        else:
            lines.append(_left(evidence, verdict, "It would go on" if waits else "It goes on"))
    return lines


def _left(evidence: Evidence, verdict: Verdict, it_goes_on: str) -> str:
    if verdict.checkpoint_step is None:
        return "There is no checkpoint yet: it begins again."
    verified = VERIFIED[evidence.checkpoint_verified]
    lost = "" if verdict.lost_s is None else f", {duration(verdict.lost_s)} of work are done again"
    return f"{it_goes_on} from the checkpoint of step {count(verdict.checkpoint_step)} ({verified}){lost}."
