"""The user's own checkpoints of a Trainer's training, `checkpoint-120` in the output folder: given to the user where memsup has
written one that was wanted, rotated out as the user's arguments say, and what a training may go on with of them.

How one is given and taken away is in `trainer_files.py`; what memsup goes on with by itself, in `training.py`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from memsup import places, trainer_files
from memsup.session import Session
from memsup.store import CheckpointError, Damaged, verified


class Given:
    """What the user was given of one training."""

    def __init__(self, trainer: Any, run_id: str) -> None:
        self._trainer, self._run_id = trainer, run_id
        self._paths: list[str] = []
        """The oldest first."""
        self._wanted: str | None = None
        """Where the checkpoint that is being written is wanted. It is None where the user wants none."""
        self._stamps: tuple[str, dict[str, tuple[int, int]]] | None = None
        """What tells whether anybody has written to the one that was given last; and where memsup has the same files."""

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint of memsup's remembers of it."""
        return {"given": self._paths, "gives": self._wanted}

    def go_on(self, path: str, kept: dict[str, Any]) -> None:
        """The training goes on with memsup's checkpoint at `path`, which has `kept` this."""
        self._paths = [given for given in kept["given"] if os.path.isdir(given)]
        also = kept["gives"]
        if also is not None and os.path.isdir(also):
            self._paths = [*(given for given in self._paths if given != also), also]
        elif also is not None:  # killed between the two
            with contextlib.suppress(CheckpointError):
                self.give(path, also)

    @contextlib.contextmanager
    def wanted(self) -> Iterator[str]:
        """Inside, the user wants a checkpoint of the step that the training is at; where, is told."""
        folder = self._trainer._get_output_dir(trial=None)
        self._wanted = os.path.join(folder, f"checkpoint-{self._trainer.state.global_step}")
        try:
            yield self._wanted
        finally:
            self._wanted = None

    def best(self, before: str | None) -> str | None:
        """Where the best checkpoint lies, or will in a moment. It is what it was `before` where that is not known."""
        step = getattr(self._trainer.state, "best_global_step", None)
        if step:
            path = os.path.join(self._trainer._get_output_dir(trial=None), f"checkpoint-{step}")
            if path == self._wanted or os.path.isdir(path):
                return path
        return before

    def give(self, path: str, target: str) -> None:
        """Has the user find memsup's checkpoint at `path` where it is wanted, and takes away what is wanted no more. Raises
        `CheckpointError`.
        """
        try:
            moved = trainer_files.give(path, target, self._run_id)
        except OSError as error:
            raise CheckpointError(f"{target} could not be written: {error.strerror or error}.") from error
        if moved is not None:
            print(f"memsup: {target} is of an earlier run; that one was moved to {moved}", file=sys.stderr)
        self._paths = [*(given for given in self._paths if given != target), target]
        self._stamps = (path, trainer_files.stamp(path))
        limit = self._trainer.args.save_total_limit
        best = getattr(self._trainer.state, "best_model_checkpoint", None)
        while limit is not None and 0 < limit < len(self._paths):
            oldest = next((given for given in self._paths[:-1] if given != best), None)
            if oldest is None:
                return
            self._paths.remove(oldest)
            trainer_files.take_away(oldest, self._run_id)

    def was_written_to(self) -> bool:
        """Whether somebody, a callback say, has written to files of the checkpoint that was just given, which were memsup's as
        well. It is asked once.
        """
        stamps, self._stamps = self._stamps, None
        if stamps is None:
            return False
        path, before = stamps
        with contextlib.suppress(OSError):
            now = trainer_files.stamp(path)
            return any(now.get(name) != state for name, state in before.items())
        return False


# --------------------------------------------------------------------------------------------------------------------
# What a training goes on with where memsup has no checkpoint of it


def asked_for(trainer: Any, session: Session, asked: Any) -> Any:
    """What the user asks to go on from. It is None where that is nothing. Raises `CheckpointError` where it is memsup's and
    damaged.
    """
    if asked is True:
        for _, path in _numbered(trainer.args.output_dir):
            if (why := _damage(path)) is None:
                return path
            detail = f"{path} was not gone on with, although it is the newest that resume_from_checkpoint=True finds: {why}"
            session.decided("checkpoint_damaged", detail, path)
        return True
    if isinstance(asked, str) and (why := _damage(asked)) is not None:
        raise CheckpointError(f"resume_from_checkpoint={asked!r} is damaged: {why} Name another one.")
    return asked or None


def from_before(trainer: Any, session: Session, run_id: str) -> str | None:
    """A checkpoint that Trainer has written without memsup, if it is one of this training and not the last. It is None where
    none is.
    """
    for _, path in _numbered(trainer.args.output_dir):
        run = trainer_files.run_of(path)
        if run is not None and run != run_id:
            print(f"memsup: {path} is a checkpoint of another run, so it is not gone on with.", file=sys.stderr)
            return None
        if run is not None:
            continue
        with contextlib.suppress(OSError, ValueError):
            state = trainer_files.state_in(path)
            if not _is_of_this_training(state, trainer):
                return None
        why = trainer_files.why_damaged(path)
        if why is None:
            step = state["global_step"]
            detail = f"{path} is a checkpoint of step {step:,} from before memsup; it loads, and is gone on with."
            session.decided("checkpoint_used", detail, path, step)
            print(f"memsup: {detail}", file=sys.stderr)
            return path
        session.decided("checkpoint_damaged", f"{path}, from before memsup, is not gone on with: {why}.", path)
    return None


def _numbered(folder: str) -> list[tuple[int, str]]:
    """The checkpoints in an output folder with their steps, the newest first."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            head, _, step = name.rpartition("-")
            if head == "checkpoint" and step.isascii() and step.isdigit():
                found.append((int(step), os.path.join(folder, name)))
    return sorted(found, reverse=True)


def _damage(path: str) -> str | None:
    """What is wrong with a checkpoint that somebody else may have written; a sentence. It is None where nothing is, and where
    it has no manifest.
    """
    if trainer_files.run_of(path) is None:
        return None
    try:
        place = places.read_place(path)
        verified(path, place.offset + place.step)
    except Damaged as damage:
        return str(damage)
    except (OSError, ValueError, TypeError, CheckpointError) as error:
        return f"It cannot be read: {error}."
    return None


def _is_of_this_training(state: dict[str, Any], trainer: Any) -> bool:
    """Whether `state`, of an earlier time, is one of this training that is not over, as far as that can be told."""
    args = trainer.args
    lasts = state.get("max_steps") == args.max_steps if args.max_steps > 0 else _epochs(state) == _whole(args.num_train_epochs)
    same = lasts and state.get("train_batch_size") in {None, trainer._train_batch_size}
    step, most = state.get("global_step"), state.get("max_steps")
    return same and isinstance(step, int) and isinstance(most, int) and 0 < step < most


def _epochs(state: dict[str, Any]) -> Any:
    return state.get("num_train_epochs")


def _whole(epochs: float) -> int:
    return -int(-epochs // 1)
