"""What the ledger says of the things that happen to a run: the sentence for people beside the fields for programs. Pure.

Each function makes the record of one event. When it happens is `lifecycle.py`'s and `one_life.py`'s; records of heat, devices
and the supervisor itself are made where these are seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from memsup.shared import messages as m
from memsup.shared.messages import PauseMode
from memsup.shared.readings import Evaluation
from memsup.shared.record import Awaited
from memsup.shared.status import RunState, Wanted
from memsup.supervisor.decide.events import By, Event, Move, Outcome
from memsup.supervisor.decide.ladder import HoldReason, LadderState, Rung, Stance
from memsup.supervisor.decide.run.actions import Action, Record, Why
from memsup.supervisor.decide.run.attachment import what_it_is
from memsup.supervisor.decide.run.freed import GivenBack
from memsup.supervisor.decide.run.hours import Rest
from memsup.supervisor.decide.run.orders import Pending, kind_of, name_of
from memsup.supervisor.decide.run.restarts import Cause, Verdict
from memsup.supervisor.decide.run.unsaved import Unsaved
from memsup.supervisor.decide.run.waiting import Fate, how_they_ended
from memsup.supervisor.words import plural, size, stopped_early_text


def rung(stance: Stance, before: Stance) -> list[Record]:
    """The ladder moved, or asks for something on the rung where it stands. Empty: neither."""
    if stance.rung is not before.rung:
        move = Move.UP if stance.rung > before.rung else Move.DOWN
        reason, action = stance.reason or "calm again", f"ladder {move}"
    elif stance.shrink or (stance.release and not before.release):
        move = Move.SHRINK if stance.shrink else Move.RELEASE
        reason, action = stance.reason, str(move)
    else:
        return []
    name = stance.rung.name.lower()
    return [
        Record(event=Event.RUNG, reason=reason, rung=name, action=action, by=By.LADDER, move=move, pressures=stance.pressures)
    ]


def with_ladder(action: Action, ladder: LadderState | None) -> Action:
    """The action. The record of a decision of the ladder gets what the ladder judged besides the readings."""
    if isinstance(action, Record) and action.rung is not None:
        return msgspec.structs.replace(action, ladder=ladder)
    return action


def order(pending: Pending, outcome: Outcome, detail: str, done: m.Done | None = None) -> Record:
    """The worker answered an order, or did not in time; `detail` is its answer. `done` is its report where it carried the order
    out. It is None where the worker did not.
    """
    sent = pending.order
    after = done.micro_tokens if done else None
    note = done.checkpoint if done else None
    return Record(
        event=Event.ORDER,
        reason=pending.why.reason,
        action=name_of(sent),
        result=detail,
        by=pending.why.by,
        order=kind_of(sent),
        outcome=outcome,
        pressures=pending.why.pressures,
        tokens=(pending.micro_tokens, after) if pending.micro_tokens is not None and after is not None else None,
        duty_fraction=sent.duty_fraction if isinstance(sent, m.Pace) else None,
        checkpoint=note.path if note else None,
        checkpoint_step=note.step if note else None,
    )


def out_of_memory(report: m.OutOfMemory) -> Record:
    """The worker caught an error for memory and did the step again."""
    before, after = report.micro_tokens_before, report.micro_tokens_after
    device = report.device if report.rank is None else f"{report.device} (rank {report.rank})"
    return Record(
        event=Event.OUT_OF_MEMORY,
        reason=f"{device} memory ran out in {report.where} at step {report.step:,}: {report.detail}",
        action=f"micro-batch {before:,} → {after:,} tokens, step redone",
        result="effective batch unchanged, 0 samples lost",
        by=By.WORKER,
        pressures=(HoldReason.MEMORY,),
        tokens=(before, after),
    )


def decided(report: m.Decided) -> Record:
    """The worker decided something by itself."""
    return Record(
        event=Event(report.what),
        reason=report.detail,
        by=By.WORKER,
        checkpoint=report.checkpoint,
        checkpoint_step=report.step,
        rows=report.rows,
    )


def stopped_early(found: Evaluation, model_step: int | None) -> Record:
    """The training has ended before its last step; its model has the weights of `model_step`."""
    return Record(
        event=Event.STOPPED_EARLY,
        reason=stopped_early_text(found, model_step),
        by=By.WORKER,
        checkpoint_step=model_step,
        evaluation=found,
    )


def checkpoint_gone(known: m.CheckpointNote, newest: m.CheckpointNote | None) -> Record:
    """The checkpoint that was the newest is not there any more; `newest` is what is left to go on from. It is None where there
    is none.
    """
    left = (
        "no other is left, so the run begins anew" if newest is None else f"the run goes on from that of step {newest.step:,}"
    )
    reason = f"The checkpoint of step {known.step:,} was taken away or damaged ({known.path}), and {left}."
    return Record(
        event=Event.CHECKPOINT_GONE, reason=reason, by=By.SUPERVISOR, checkpoint=known.path, checkpoint_step=known.step
    )


def attached(about: m.About) -> Record:
    """A process of a command speaks for it, and says what it is."""
    return Record(event=Event.ATTACHED, reason=f"the program is {what_it_is(about, None)}", by=By.WORKER)


def freeze(why: Why, *, emergency: bool) -> Record:
    """The whole tree stands still. In an `emergency` the ladder froze it; else a command is held, which takes no orders."""
    rung = Rung.FREEZE.name.lower() if emergency else None
    return Record(event=Event.FREEZE, reason=why.reason, rung=rung, action="freeze", by=why.by, pressures=why.pressures)


def thaw(why: Why) -> Record:
    """The whole tree goes on; `why` is what it was frozen for."""
    return Record(event=Event.THAW, reason="it may go on", action="thaw", by=why.by)


def card_left(why: Why, held_bytes: int) -> Record:
    """What a program had on the GPU, so many bytes, is in RAM now."""
    action = f"the driver moved {size(held_bytes)} of GPU memory into RAM"
    return Record(event=Event.CARD_LEFT, reason=why.reason, action=action, by=why.by, pressures=why.pressures)


def card_kept(why: Why, cannot: str) -> Record:
    """It was to be moved into RAM, and could not be."""
    result = f"its GPU memory stays on the card: {cannot}"
    return Record(event=Event.CARD_KEPT, reason=why.reason, result=result, by=why.by, pressures=why.pressures)


def card_back(held_bytes: int) -> Record:
    """It is on the card again."""
    action = f"the driver moved {size(held_bytes)} from RAM back onto the card"
    return Record(event=Event.CARD_BACK, reason="it may go on", action=action, by=By.SUPERVISOR)


def card_stuck(trouble: str, *, lost: bool) -> Record:
    """It could not be moved back."""
    then = "CUDA is dead in the program" if lost else "it is tried again"
    return Record(event=Event.CARD_STUCK, reason=trouble, result=then, by=By.SUPERVISOR)


def kill(why: Why, cause: Cause | None) -> Record:
    """The whole tree is killed."""
    return Record(
        event=Event.KILL,
        reason=why.reason,
        rung=Rung.KILL.name.lower() if cause is Cause.MEMORY else None,
        action="kill the whole tree",
        by=why.by,
        cause=cause,
        pressures=why.pressures,
    )


def hang(why: str, stacks: str | None) -> Record:
    """The worker's main thread got nothing done for too long."""
    return Record(event=Event.HANG, reason=why, result=stacks, by=By.SUPERVISOR, cause=Cause.HANG)


def death(verdict: Verdict, last_words: str, exit_status: int | None, unsaved: Unsaved | None, then: Wanted) -> Record:
    """The worker is gone, and not as it was told. `exit_status` is None where it left no trace, `unsaved` where nobody knows of
    its checkpoints. `then` is what is wanted of the run: nothing follows where it stops, and nothing before `resume` where it
    is paused.
    """
    again = verdict.again and then is not Wanted.STOPPED
    if then is Wanted.STOPPED:
        action = "the run stopped all the same"
    elif not again:
        action = "no restart"
    elif then is Wanted.PAUSED:
        action = "restart when it is resumed"
    else:
        action = f"restart after {verdict.delay_s:.1f} s"
    return Record(
        event=Event.DEATH,
        reason=verdict.sentence,
        action=action,
        result=last_words,
        cause=verdict.cause,
        again=again,
        delay_s=verdict.delay_s if again else None,
        exit_status=exit_status,
        lost_steps=unsaved.steps if unsaved else None,
        lost_s=round(unsaved.work_s, 1) if unsaved is not None and unsaved.work_s is not None else None,
    )


def not_started(sentence: str, delay_s: float) -> Record:
    """The worker could not be started, and is tried again after a while."""
    again = f"tried again after {delay_s:.0f} s"
    return Record(event=Event.NOT_STARTED, reason=sentence, action=again, by=By.SUPERVISOR, delay_s=delay_s)


def outlived(processes: int) -> Record:
    """A command has ended, and left so many processes that run on."""
    left = f"{plural(processes, 'process', 'processes')} that it has left still {'runs' if processes == 1 else 'run'}"
    return Record(
        event=Event.OUTLIVED,
        reason=f"the command itself has ended (exit code 0), and {left}",
        action="guarded on what it has left",
    )


def stands_by() -> Record:
    """A process has everything imported, and stands by."""
    reason = "a process stands by with everything imported, and takes the worker's place should it die"
    return Record(event=Event.STANDBY, reason=reason, outcome=Outcome.DONE, by=By.SUPERVISOR)


def no_standby(why: str, by: By = By.SUPERVISOR) -> Record:
    """No process stands by; `why` is a clause."""
    reason = f"no process stands by to take the worker's place should it die: {why}"
    return Record(event=Event.STANDBY, reason=reason, outcome=Outcome.FAILED, by=by)


def kept_in_memory(every_s: float) -> Record:
    """The newest state is kept in memory from now on, so often."""
    reason = f"the newest state is kept in memory as well, after each {every_s:.0f} s of work, should the worker die"
    return Record(event=Event.IN_MEMORY, reason=reason, outcome=Outcome.DONE, by=By.SUPERVISOR)


def not_in_memory(why: str, by: By = By.SUPERVISOR) -> Record:
    """The newest state is not kept in memory; `why` is a clause."""
    reason = f"no state is kept in memory between checkpoints: {why}"
    return Record(event=Event.IN_MEMORY, reason=reason, outcome=Outcome.FAILED, by=by)


def smaller(why: Why, tokens: tuple[int, int]) -> Record:
    """The next life begins with smaller micro-batches."""
    action = f"micro-batch {tokens[0]:,} → {tokens[1]:,} tokens"
    return Record(
        event=Event.SMALLER, reason=why.reason, action=action, by=why.by, pressures=(HoldReason.MEMORY,), tokens=tokens
    )


def left(verdict: Verdict, why: Why) -> Record:
    """The worker left as it was told, by whom `why` says."""
    return Record(event=Event.LEFT, reason=verdict.sentence, by=why.by, cause=verdict.cause)


def given_back(freed: GivenBack) -> list[Record]:
    """What came back of the memory of a worker that is gone. The list is empty where nothing is known of that."""
    if not (freed.text or freed.missing):
        return []
    missing = " ".join(freed.missing) or None
    ram_bytes, vram_bytes = freed.ram_bytes, freed.vram_bytes
    return [
        Record(
            event=Event.GIVEN_BACK, reason=freed.text, result=missing, freed_ram_bytes=ram_bytes, freed_vram_bytes=vram_bytes
        )
    ]


def wanted(wanted: Wanted, mode: PauseMode, why: Why) -> Record:
    """Another state is wanted of the run."""
    paused = wanted is Wanted.PAUSED
    return Record(
        event=Event.WANTED,
        reason=why.reason,
        action=f"{wanted} ({mode})" if paused else str(wanted),
        by=why.by,
        wanted=wanted,
        pause_mode=mode if paused else None,
    )


def waits(what_for: str, ended: Sequence[tuple[Awaited, Fate]] = ()) -> Record:
    """The run is queued: what it waits for now, and how those have `ended` that it waited for."""
    before = f"{how_they_ended(ended)}; " if ended else ""
    return Record(event=Event.WAITS, reason=f"{before}it waits {what_for}", by=By.SUPERVISOR)


def hours(rest: Rest | None, by: By) -> Record:
    """The run's hours have ended, so that it has to `rest`; or have begun, or were waived by a person (None)."""
    if rest is not None:
        return Record(event=Event.HOURS_END, reason="it is outside of its hours", action=f"pause {rest.until}", by=by)
    why = "the user asked, whatever its hours say" if by is By.USER else "its hours begin"
    return Record(event=Event.HOURS_BEGIN, reason=why, action="go on", by=by)


def begins() -> Record:
    """It is the turn of a run that was queued, and there is room for it."""
    return Record(event=Event.BEGINS, reason="no run is waited for any more", action="begin", by=By.SUPERVISOR)


def end(state: RunState, failure: str | None, by: By, cause: Cause | None) -> Record:
    """The run is over. `cause` is that of the last worker's end. It is None where that ended as it was asked to, or there was
    none.
    """
    return Record(event=Event.END, reason=failure or str(state), by=by, cause=cause)
