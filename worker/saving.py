"""When and what the training saves, where it begins, and the model it leaves behind.

Covers the decisions around a checkpoint and its meaning for the run. Which bytes it consists of is in `state.py`; how they
become durable, verified and old is in `checkpoint/`.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from memsup.cadence import OVERHEAD_FRACTION, Experience, is_due
from memsup.checkpoint import in_memory, manifest
from memsup.checkpoint.draft import Draft, Saved
from memsup.checkpoint.errors import CheckpointError, Damaged, DamagedWhenWritten
from memsup.checkpoint.in_memory import InMemory
from memsup.checkpoint.info import Info
from memsup.checkpoint.reading import verify
from memsup.checkpoint.store import Store, remove_tree
from memsup.folders import MARK
from memsup.memory import is_out_of_memory
from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.commands import command
from memsup.shared.files import flush_folder
from memsup.shared.log import log
from memsup.shared.messages import CheckpointNote, DecisionKind, FailureCause, Kept, StateGivenUp, Welcome
from memsup.shared.record import RunRecord
from memsup.worker.kept import Lifeline
from memsup.worker.micro_batch_limit import begin_limited
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding
from memsup.worker.plan.position import Position
from memsup.worker.plan.stopping import merit_of
from memsup.worker.session import GiveUp, Session
from memsup.worker.state import (
    OPTIMIZER,
    STATE_FILE,
    Evaluated,
    State,
    keep_state,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_state,
)
from memsup.worker.tasks.stream import Stream
from memsup.worker.training import OneRank, Training

if TYPE_CHECKING:
    from memsup.worker.ranks.sharded import Sharded

OTHER_BITS = "The results will be right, but not bit for bit what they would have been"

_FIRST_LOSS_SCALE = 2.0**16


# ---------------------------------------------------------------------------------------------------------------------
# Where the run begins


@dataclass(frozen=True)
class Start:
    """The place from which this life goes on. Where all fields are None it begins from the settings alone."""

    folder: Path | None = None
    """The folder from which model and tokenizer come. None means that they come from `task.model`."""
    state: State | None = None
    """The state that is gone on with. None beside a folder means that only its weights are taken."""
    note: CheckpointNote | None = None
    """The run's own newest checkpoint. None means that it has none."""
    saved: State | None = None
    """The state that this checkpoint holds."""
    kept: InMemory | None = None
    """Where the tensors of `state` are: in memory, newer than those of `folder`. None means that they are there."""


def find_start(record: RunRecord, store: Store, session: Session) -> Start:
    """The newest state of the run that is whole: in memory, where the last worker has left one that is newer than what there is
    on disk; or its newest checkpoint; or what `checkpoint.resume_from` names. Raises `GiveUp`.
    """
    info, set_aside = store.newest_valid()
    for damaged in set_aside:
        what = "A damaged checkpoint was set aside as" if damaged.moved else "Left as it lies and not used:"
        sentence = f"{what} {damaged.path}{':' if damaged.moved else ', for'} {damaged.reason}"
        session.decided(DecisionKind.CHECKPOINT_DAMAGED, sentence, checkpoint=damaged.path, step=damaged.step)
    own = Start() if info is None else _start_from(info, record, store)
    kept = None if record.settings.training.shard else _left_in_memory(record, session, own.saved)
    named = record.settings.checkpoint.resume_from
    if kept is not None:
        folder = Path(named) if own.folder is None and named is not None else own.folder
        return replace(own, folder=folder, state=kept[0], kept=kept[1])
    if own.state is not None:
        if set_aside:
            sentence = f"Goes on after step {own.state.step:,} from {own.folder}, since newer checkpoints were damaged."
            session.decided(DecisionKind.CHECKPOINT_USED, sentence, checkpoint=own.folder, step=own.state.step)
        else:
            log.info("Going on from a checkpoint", step=own.state.step, path=str(own.folder))
        return own
    if set_aside:
        sentence = f"No checkpoint is left that is whole, so the run begins anew, from {named or 'the settings alone'}."
        session.decided(DecisionKind.CHECKPOINT_USED, sentence, step=0)
    return Start() if named is None else _start_from_another(Path(named), record.run)


def _start_from(info: Info, record: RunRecord, store: Store) -> Start:
    """The run's newest checkpoint. Raises `GiveUp`."""
    state = _readable_state(info.path, record.run)
    if state.run_id != record.run_id:
        raise GiveUp(
            FailureCause.BAD_INPUT,
            f"{store.folder} has checkpoints of another run: choose an empty checkpoint.folder, or name the checkpoint to "
            "go on from as checkpoint.resume_from.",
        )
    note = CheckpointNote(
        path=str(info.path),
        step=state.step,
        at_unix_s=info.created_unix_s or unix_s(),
        verified=True,
        save_s=None,
        size_bytes=info.bytes,
    )
    return Start(info.path, state, note, state)


def _start_from_another(folder: Path, run: str) -> Start:
    """What another run has left in `folder`. Raises `GiveUp`."""
    if not (folder / manifest.NAME).exists():
        log.warning("No checkpoint of memsup: only its weights are taken, steps and optimizer begin anew", path=str(folder))
        return Start(folder)
    try:
        verify(folder)
    except CheckpointError as error:
        raise GiveUp(FailureCause.BAD_INPUT, f"{folder} cannot be resumed from: {error}") from None
    state = _readable_state(folder, run)
    log.info("Going on from a checkpoint of another run", step=state.step, run_id=state.run_id, path=str(folder))
    return Start(folder, state)


def _left_in_memory(record: RunRecord, session: Session, saved: State | None) -> tuple[State, InMemory] | None:
    """What the last worker has left in memory, if it is whole and newer than what is `saved`. Says whether it is used, and why
    it is not.
    """
    lifeline = session.lifeline
    if lifeline is None or lifeline.handed is None:
        return None
    note, fd = lifeline.handed
    if saved is None or note.step > saved.step:
        try:
            kept = InMemory(fd)
            state = read_state(kept)
            if not state.step == kept.step == note.step or state.run_id != record.run_id:
                raise Damaged(f"it holds step {state.step} of the run {state.run_id}.")
        except Damaged as error:
            sentence = f"The state of step {note.step:,} that was kept in memory is not used: {error}"
            session.decided(DecisionKind.MEMORY_DAMAGED, sentence, step=note.step)
        else:
            disk = "there is no checkpoint yet" if saved is None else f"the newest checkpoint is of step {saved.step:,}"
            age = f"{note.age_s:.0f} s before the worker died that had computed it"
            sentence = f"Goes on after step {state.step:,}, which was kept in memory {age}; {disk}."
            session.decided(DecisionKind.MEMORY_USED, sentence, step=state.step)
            return state, kept
    lifeline.forget()
    return None


def _readable_state(folder: Path, run: str) -> State:
    """A whole checkpoint of another version of memsup is not damaged, and the older ones will be no different."""
    try:
        return read_state(folder)
    except Damaged as error:
        raise GiveUp(
            FailureCause.BAD_INPUT,
            f"{folder} was not written by this version of memsup ({error}): start anew with: {command('start', run)} --fresh",
        ) from None


def resume(training: Training, start: Start, welcome: Welcome, *, lanes: int, packs: bool) -> None:
    """Puts `training` where `start` says, and the plan where the journal and the supervisor say; a new run begins in so many
    `lanes`, and without padding where the model `packs`. Raises `GiveUp`.
    """
    state, plan = start.state, training.plan
    training.done_before = training.audit.last_step()
    if state is None:
        training.loss_scale = _FIRST_LOSS_SCALE if training.settings.amp == "fp16" else 1.0
        training.audit.resume(0)
    else:
        source = start.kept or start.folder
        assert source is not None
        _refuse_other_training(training, state, start.folder or training.store.folder)
        model, tick, staging = training.prepared.model, training.session.tick, training.staging
        weights = training.prepared.weights
        if training.sharded is not None:
            read_rows(training.sharded, source, weights.stem, tick)
        else:
            read_tensors(source, weights.stem, weights.tensors(model), tick, staging)
            read_tensors(source, OPTIMIZER, optimizer_tensors(model, training.optimizer), tick, staging)
        training.step = state.step
        training.loss = state.loss
        training.loss_scale, training.steps_at_scale = state.loss_scale, state.steps_at_scale
        if state.run_id == training.record.run_id:  # another run's results are not of weights that this run has kept
            training.evaluated, training.best, training.without_rise = state.evaluated, state.best, state.without_rise
        training.trained_s = state.trained_s
        if training.prepared.stream is not None and state.stream is not None:
            training.prepared.stream.go_on(state.stream)
        training.audit.resume(state.step, state.digest)
    if state is not None and state.run_id == training.record.run_id:
        training.newest, training.newest_state = start.note, start.saved
        if start.kept is not None:  # what was computed since the newest checkpoint is still at risk, were memory lost
            training.saved_s = -(state.trained_s - (start.saved.trained_s if start.saved is not None else 0.0))
        plan.begin(state.plan, saved=True)
    else:
        plan.begin(first_plan(training, lanes, packs=packs), saved=False)
    if training.prepared.padding is Padding.NONE and not plan.at(training.step + 1).equal_lengths:  # an earlier version's
        plan.change(training.step + 1, "the model sees padding", equal_lengths=True)
    if plan.at(training.step + 1).packed and not packs:
        plan.change(training.step + 1, "the model's layers see padding here", packed=False)
    begin_limited(training, welcome.micro_tokens_limit)
    training.shares = training.ranks.shares(plan.at(training.step + 1))
    training.publish()
    training.session.publish(checkpoint=start.note)
    if training.session.lifeline is not None:
        training.session.lifeline.forget()


def read_rows(sharded: Sharded, source: Path | InMemory, stem: str, tick: Callable[[], None]) -> None:
    """Reads a rank's rows of weights and moments from a verified checkpoint."""
    read_tensors(source, stem, sharded.weights, tick)
    read_tensors(source, OPTIMIZER, sharded.moments, tick)


def first_plan(training: OneRank, lanes: int, *, packs: bool) -> Entry:
    return Entry(
        step=1,
        start=(training.settings.micro_tokens or 1024) * (lanes if training.settings.tune else 1),
        activation_checkpointing=bool(training.settings.gradient_checkpointing)
        and training.prepared.model.supports_gradient_checkpointing,
        threads=training.threads,
        ranks=len(training.shares),
        lanes=lanes,
        equal_lengths=training.prepared.padding is Padding.NONE,
        packed=packs,
        planned_bytes=training.measuring.planner.limit_bytes,
        cause="the settings",
        at_unix_s=unix_s(),
    )


def _refuse_other_training(training: Training, state: State, folder: Path) -> None:
    """A checkpoint can only be continued by the same training on the same rows."""
    schedule = training.schedule
    differences = [
        what
        for what, differs in {
            "the data, its split or its length limit changed": state.fingerprint != training.prepared.fingerprint,
            "task.stream or task.shuffle_buffer was another": _of_stream(state.stream) != _of_stream(training.prepared.stream),
            f"training.seed was {state.seed}": state.seed != schedule.seed,
            f"training.effective_batch was {state.effective_batch}": state.effective_batch != schedule.effective_batch,
            f"all of its {state.step} steps are done already, set more training.epochs": _has_nothing_left(training, state),
        }.items()
        if differs
    ]
    if differences:
        weights = shlex.quote(f"task.model={folder}")
        raise GiveUp(
            FailureCause.BAD_INPUT,
            f"{folder} cannot be continued: {'; '.join(differences)}. Put that back, or start anew from its weights with: "
            f"{command('start', training.record.run)} --fresh --set {weights}",
        )
    _refuse_other_device(training, state)
    before = state.plan.ranks
    others = {
        f"{training.ranks.count} ranks instead of {before}": before != training.ranks.count,
        f"the model {'shared by ranks' if training.sharded else 'whole on each rank'}": state.shared
        is not (training.sharded is not None),
        f"{training.threads} threads instead of {state.threads}": state.threads != training.threads,
        f"torch {torch.__version__} instead of {state.torch_version}": state.torch_version != torch.__version__,
        f"{training.device.type} instead of {state.device}": state.device not in (None, training.device.type),
    }
    if any(others.values()):
        what = "; ".join(what for what, differs in others.items() if differs)
        sentence = f"It goes on after step {state.step:,} with {what}: right, but not bit for bit what it would have been."
        training.session.decided(DecisionKind.OTHER_BITS, sentence, step=state.step)


def _of_stream(stream: Position | Stream | None) -> int | None:
    """How many rows of it are shuffled together. None means that there is none."""
    return None if stream is None else stream.rows


def _has_nothing_left(training: Training, state: State) -> bool:
    """Whether no step is left to do. The run's own last checkpoint only lacks its model; another run's would be called finished
    without anything having been trained.
    """
    left = training.schedule.total_steps - state.step
    return left < 0 or (left == 0 and state.run_id != training.record.run_id)


def _refuse_other_device(training: Training, state: State) -> None:
    """A run that lost its GPU must not creep on on the CPU unasked."""
    settings = training.record.settings
    moved = state.device == "cuda" and training.device.type == "cpu" and settings.training.device != "cpu"
    if moved and not settings.recovery.continue_on_cpu:
        raise GiveUp(
            FailureCause.BAD_INPUT,
            f"The run was computed on a GPU up to step {state.step}, and there is none that works now; a lost one comes back "
            "with a reboot. To go on on the CPU, much slower: "
            f"{command('start', training.record.run)} --set recovery.continue_on_cpu=true",
        )


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def save(training: Training, *, last: bool) -> CheckpointNote:
    """Writes the state after the last whole step, unless the newest checkpoint has it. Raises CheckpointError."""
    state = _state(training)
    if training.newest is not None and _means_the_same(state, training.newest_state):
        damage = _damage(training.newest)
        if damage is None:
            return training.newest
        sentence = f"{training.newest.path} was damaged since it was written, so its step is written again: {damage}"
        path = Path(training.newest.path)
        training.session.decided(DecisionKind.CHECKPOINT_DAMAGED, sentence, checkpoint=path, step=training.newest.step)
    merit = merit_of(training.evaluated.metrics) if training.evaluated and training.is_evaluated else None
    with training.soft_limit.spare(), training.store.draft(training.step, emergency=last) as draft:
        write_state(
            draft,
            state,
            weights=training.prepared.weights,
            model=training.prepared.model,
            tokenizer=training.prepared.tokenizer,
            optimizer=training.optimizer,
            tick=training.session.tick,
            staging=training.staging,
            shared_out=training.ranks.all_rows_of(training.sharded, training.step),
        )
        saved = _committed(draft, merit, training.session)
    training.newest = CheckpointNote(
        path=str(saved.path),
        step=saved.step,
        at_unix_s=unix_s(),
        verified=True,
        save_s=saved.seconds,
        size_bytes=saved.bytes,
    )
    training.newest_state = state
    training.save_s = saved.seconds
    training.saved_s = training.work_s()
    log.info("Checkpoint written", step=saved.step, took_s=round(saved.seconds, 1), path=str(saved.path), note=saved.note)
    return training.newest


def _committed(draft: Draft, merit: float | None, session: Session) -> Saved:
    try:
        return draft.commit(metric=merit)
    except DamagedWhenWritten as damage:
        session.decided(DecisionKind.CHECKPOINT_DAMAGED, str(damage), checkpoint=damage.path, step=damage.step)
        raise


def save_if_due(training: Training) -> None:
    """Saves if the work since the last save is worth it (`program/cadence.py`)."""
    now_s = training.work_s()
    experience = Experience(save_s=training.save_s, trained_s=training.trained_s + now_s, deaths=training.deaths)
    if is_due(now_s, training.saved_s, experience, training.record.settings.checkpoint.every_s):
        save_if_possible(training)


def save_evaluated(training: Training) -> None:
    """Saves the best result so far: at once where its weights are to become the model, else as soon as a save takes no more
    than its share of the time. What is not the best is saved as `save_if_due` says.
    """
    share_s = (training.save_s or 0.0) / OVERHEAD_FRACTION
    is_cheap = training.work_s() - training.saved_s >= share_s
    if training.best is training.evaluated and (is_cheap or training.settings.keep == "best"):
        save_if_possible(training)
    else:
        save_if_due(training)


def save_if_possible(training: Training) -> None:
    """Saves, and goes on where that fails: what a full disk means is the supervisor's to decide."""
    try:
        training.session.checkpoint_now()
    except Exception as error:
        if not isinstance(error, CheckpointError) and not is_out_of_memory(error):
            raise
        training.session.save_failed(error)
        training.saved_s = training.work_s()  # or it would be tried again at each step


def keep_if_due(training: Training) -> None:
    """Hands the newest state over in memory where so much work was done since it or a checkpoint was written as the supervisor
    says. A kill at any time leaves what was handed over before.
    """
    lifeline = training.session.lifeline
    if lifeline is None or training.sharded is not None:
        return
    every_s = lifeline.every_s
    if every_s is None:
        lifeline.size_bytes = 0
    training.soft_limit.leave(2 * lifeline.size_bytes)  # while one is written, there are two
    if every_s is None or training.work_s() - max(training.saved_s, training.kept_s) < every_s:
        return
    try:
        _keep(training, lifeline)
    except _Unwanted:
        log.info("The state is not kept in memory", step=training.step, why="memory gets short")
    except Exception as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            raise
        log.warning("The state could not be kept in memory", step=training.step, why=str(error))
    training.kept_s = training.work_s()


class _Unwanted(Exception):  # noqa: N818 - nothing is wrong
    """Nobody wants the state any more that is being written."""


def _keep(training: Training, lifeline: Lifeline) -> None:
    began_s = monotonic_s()

    def tick() -> None:
        training.session.tick()
        if lifeline.every_s is None:
            raise _Unwanted

    with training.soft_limit.spare(), in_memory.Draft(training.step, tick) as draft:
        keep_state(
            draft,
            _state(training),
            weights=training.prepared.weights,
            model=training.prepared.model,
            optimizer=training.optimizer,
            staging=training.staging,
        )
        fd = draft.seal()
    size_bytes, took_s = os.fstat(fd).st_size, monotonic_s() - began_s
    lifeline.hand_over(Kept(step=training.step, size_bytes=size_bytes, took_s=took_s), fd)
    log.info("State kept in memory", step=training.step, took_s=round(took_s, 3), mib=size_bytes >> 20)


def give_up_kept(training: OneRank) -> bool:
    """Gives up the state in memory where host memory has run out, before anything is asked of the training. Returns whether
    there was one, so that there is room now that there was not.
    """
    lifeline = training.session.lifeline
    if lifeline is None or not lifeline.size_bytes or training.device_memory is not None:
        return False
    lifeline.every_s, lifeline.size_bytes = None, 0
    training.soft_limit.leave(0)
    training.soft_limit.renew()
    training.session.link.report(StateGivenUp(step=training.step))
    return True


def _state(training: Training) -> State:
    return State(
        run_id=training.record.run_id,
        fingerprint=training.prepared.fingerprint,
        step=training.step,
        seed=training.schedule.seed,
        effective_batch=training.schedule.effective_batch,
        padding=training.prepared.padding,
        device=training.device.type,
        threads=training.threads,
        torch_version=str(torch.__version__),
        shared=training.sharded is not None,
        plan=training.plan.at(training.step + 1),
        digest=training.audit.digest,
        loss=training.loss,
        loss_scale=training.loss_scale,
        steps_at_scale=training.steps_at_scale,
        evaluated=training.evaluated,
        best=training.best,
        without_rise=training.without_rise,
        trained_s=round(training.trained_s + training.work_s(), 1),
        stream=_position(training),
    )


def _position(training: Training) -> Position | None:
    stream, schedule = training.prepared.stream, training.schedule
    return stream.position(schedule.pass_of(training.step + 1)) if stream is not None else None


def _means_the_same(state: State, other: State | None) -> bool:
    return other is not None and (state.step, state.plan, state.evaluated) == (other.step, other.plan, other.evaluated)


def _damage(note: CheckpointNote) -> str | None:
    """What is wrong with a checkpoint. None means that it is whole."""
    try:
        verify(Path(note.path))
    except CheckpointError as error:
        return str(error)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The result


def chosen(training: Training, last: CheckpointNote) -> tuple[Path, Evaluated]:
    """The checkpoint whose weights become the model, and how good they are: the `last` one, or that of the best result where
    `training.keep` says so. Where the best is damaged or gone the last one is used, and that is put on record.
    """
    best = training.best
    assert training.evaluated is not None
    if training.settings.keep == "last" or best is None or best.step == training.step:
        return Path(last.path), training.evaluated
    found, set_aside = training.store.valid_of(best.step)
    if found is not None:
        return found.path, best
    so = f"so the model has the weights of step {training.step:,}, the last one."
    if set_aside:
        aside = set_aside[0]
        sentence = (
            f"The checkpoint with the best result, of step {best.step:,}, was damaged: {aside.reason} It is {aside.path}, {so}"
        )
        training.session.decided(DecisionKind.BEST_LOST, sentence, checkpoint=aside.path, step=best.step)
    else:
        sentence = f"The checkpoint with the best result, of step {best.step:,}, is not in {training.store.folder}, {so}"
        training.session.decided(DecisionKind.BEST_LOST, sentence, step=best.step)
    return Path(last.path), training.evaluated


def export_model(checkpoint: Path, target: Path, session: Session) -> None:
    """Makes `target` the model of a verified checkpoint: written beside it, flushed, renamed. Raises OSError."""
    beside, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (beside, old):
        if leftover.exists():
            remove_tree(leftover)
    beside.mkdir(mode=0o700)
    for file in sorted(checkpoint.iterdir()):
        if file.name.startswith(OPTIMIZER) or file.name in (STATE_FILE, manifest.NAME, MARK):
            continue
        shutil.copyfile(file, beside / file.name)
        with (beside / file.name).open("rb") as copy:
            os.fsync(copy.fileno())
        session.tick()
    flush_folder(beside)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    flush_folder(target.parent)
    if old.exists():
        remove_tree(old)
