"""The run that `memsup.guard` gives back to a program's own loop: it counts, leaves out what is done, and has a boundary after
each step.

Without a supervisor it only counts. What has to be remembered is in `places.py`; whose checkpoints are whose, in `training.py`.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar

from memsup import messages, places
from memsup.about import Seam
from memsup.life import Life
from memsup.link import start_anew
from memsup.memory import read_memory
from memsup.places import Place
from memsup.session import CannotLimitError
from memsup.store import Checkpoint, CheckpointError

if TYPE_CHECKING:
    from memsup.joined_step import JoinedStep

Batch = TypeVar("Batch")
_END = object()


class State(NamedTuple):
    """How a program's state is written into a folder, and read from it."""

    save: Callable[[str], Any]
    load: Callable[[str], Any]
    save_part: Callable[[str], Any] | None = None
    load_part: Callable[[str], Any] | None = None
    """The same of what only a rank beside rank 0 has, with a folder of its own. None means that there is nothing."""


class Computes(NamedTuple):
    """What a step is computed with."""

    modules: list[Any] = []  # noqa: RUF012 - never changed
    optimizers: list[Any] = []  # noqa: RUF012
    scaler: Any = None
    """A GradScaler. It is None where there is none."""
    backward: Callable[[Any], Any] | None = None
    """What computes gradients of a loss. None means its own `backward`, scaled where there is a scaler."""

    def of(self, loss: Any) -> None:
        """Computes the gradients of `loss`."""
        if self.backward is not None:
            self.backward(loss)
        elif self.scaler is not None:
            self.scaler.scale(loss).backward()
        else:
            loss.backward()


class Run:
    """The run of this program, or one of its trainings."""

    def __init__(self, life: Life | None = None, states: list[State] | None = None, computes: Computes | None = None) -> None:
        """`states` are what there is to save, in the order in which it is loaded; `computes` is what `backward` works with."""
        self.step = 0
        """How many steps of this training are done, in all lives of the program."""
        self.epoch = 0
        """The epoch, from 0, that `steps` is in."""
        self._total_steps: int | None = None
        self._loop = 0
        self._loop_from = 0
        self._in_epoch = 0
        self._loader: Any = None
        self._is_in_loop = False
        self._begun_with: places.Generators | None = None
        self._resumed: Place | None = None
        """Where the newest checkpoint left the loop. It is None once the loop is there."""
        self._given_with: places.Taken | None = None
        """The generators before the loader was asked for the last batch. It is None where it was not in this epoch."""
        self._done_with: places.Taken | None = None
        """The same of the last batch that is done."""
        self._waits = False
        """Whether the loader is asked for a batch now."""
        self._is_complete = False
        self._handled = sys.exc_info()[1]
        """The exception in whose handler all of this happens. It is None where there is none, as a rule."""
        self._loss: Any = None
        self._life, self._states, self._computes = life, states or [], computes or Computes()
        self._joined_step: JoinedStep | None = None
        """What computes steps in parts. It is None before the first `backward`, and where nothing is cut."""

    @property
    def is_attached(self) -> bool:
        """Whether a supervisor guards what this process does here."""
        return self._ours is not None

    @property
    def _ours(self) -> Life | None:
        """The life of this process. It is None where this is a fork of that process, or nobody guards it."""
        return self._life if self._life is not None and self._life.is_ours else None

    @property
    def total_steps(self) -> int | None:
        """How many steps there are in all. It is None where nobody knows. A loop with `boundary` may set it."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, total: int | None) -> None:
        self._total_steps = operator.index(total) if total is not None else None  # numpy's integers are not for the wire
        if self._ours is not None:
            self._ours.session.publish(total_steps=self.place()["total_steps"])

    # -- what a program calls -----------------------------------------------------------------------------------------

    def steps(self, loader: Iterable[Batch], *, epochs: int | None = 1, total: int | None = None) -> Iterator[Batch]:
        """The batches of `loader`, again in each of `epochs`, without those that the newest checkpoint has behind it. Each is
        one step, and after each there is a boundary: the state must be whole when the loop's body ends.

        `total` ends the loop after so many steps. None means that only the epochs do; without either there would be no end.
        Batches that are left out are taken from the loader all the same, so that it gives the same ones as before; it has to
        draw its order when an epoch begins, as torch's DataLoader does, or with a generator of its own. Called again when the
        loop before is through, it is another loop of the same training, with epochs of its own. Raises `Leave`.
        """
        if self._is_in_loop:
            raise RuntimeError("run.steps was called within its own loop: a run has one loop at a time.")
        if epochs is None and total is None:
            raise TypeError("run.steps needs epochs= or total=, or it would never end.")
        if not self._enter_loop(loader, epochs, total):
            return
        life = self._ours
        if life is not None:
            life.session.publish(phase="training")
        end = self._loop_from + total if total is not None else None
        try:
            while not self._is_complete and (epochs is None or self.epoch < epochs) and not self._is_at(end):
                count = 0
                for batch in self._epoch(loader):
                    count += 1
                    yield batch
                    self.step += 1
                    self._in_epoch += 1
                    self._boundary()
                    if self._is_at(end):
                        break
                if count == 0 and self._in_epoch == 0 and epochs is None:
                    raise ValueError("run.steps: the loader gives no batch, so the loop would never end.")
                if not self._is_at(end):
                    self.epoch, self._in_epoch = self.epoch + 1, 0
        finally:
            self._is_in_loop, self._resumed = False, None
        if life is not None:
            life.session.publish(phase="finishing")

    def _enter_loop(self, loader: Any, epochs: int | None, total: int | None) -> bool:
        """Begins the next loop. Returns whether any of it is left to do: the newest checkpoint may be of a later one."""
        self._loop += 1
        if self._resumed is not None and self._loop < self._resumed.loop:
            return False
        if self._resumed is None or self._loop > self._resumed.loop:
            self.epoch, self._in_epoch, self._begun_with, self._loop_from = 0, 0, None, self.step
        self._is_in_loop, self._loader = True, loader
        of_loop = _total(loader, epochs, total)
        self.total_steps = self._loop_from + of_loop if of_loop is not None else None
        return True

    def boundary(self, *, loss: Any = None) -> None:
        """One step of a loop of your own is done, and the state is whole: to be called after each, beginning at `run.step`.
        Not to be called within `steps`. `loss` is a number, or a tensor of one. Raises `Leave`.
        """
        if self._is_in_loop:
            raise RuntimeError("run.boundary is for loops without run.steps, which counts by itself; use run.tell(loss=…).")
        self.tell(loss=loss)
        if self._ours is not None and not self._loop:
            self._ours.session.describe(seam=Seam.BOUNDARY)
        self.step += 1
        self._boundary()

    def backward(self, loss_of: Callable[[Any], Any], batch: Any) -> Any:
        """Computes the loss of a batch and adds its gradients to those that there are, as `loss_of(batch).backward()` does; in
        parts where it does not fit into memory. Returns the loss, without its graph, and shows it in `memsup status`.

        `loss_of(part)` gives the loss of some rows of the batch, a tensor of one number, and may be called several times: of
        the first batch to find out how losses of parts are to be weighted, and again from the first micro-batch since the last
        step of the optimizer on, where memory has run out. `batch` is a tensor, or a list, tuple or dictionary of them, with
        the rows in the first dimension. With `scaler=` among the parts the loss is scaled. Raises what `loss_of` raises;
        running out of memory only where nothing smaller is left, or where the batch must not be cut, which `status` says.
        """
        step = self._cuts()
        if step is None:
            loss = loss_of(batch)
            self._computes.of(loss)
            loss = loss.detach() if hasattr(loss, "detach") else loss
        else:
            loss = step.micro_batch(batch, loss_of, backward=self._computes.of)
        self.tell(loss=loss)
        return loss

    def predict(self, call: Callable[[Any], Any], batch: Any) -> Any:
        """What `call(batch)` gives, without gradients to be computed from it; where memory does not suffice it is called for
        parts of the rows, and what it gives for them is joined along the first dimension.
        """
        step = self._cuts()
        return call(batch) if step is None else step.step.predict(batch, call)

    def _cuts(self) -> JoinedStep | None:
        """What computes in parts. It is None where nobody guards this process, or no model was given to be guarded."""
        life, computes = self._ours, self._computes
        if life is None or not computes.modules:
            return None
        if self._joined_step is None:
            from memsup.joined_step import JoinedStep

            self._joined_step = JoinedStep(life, computes.modules, optimizers=computes.optimizers, scaler=computes.scaler)
        return self._joined_step

    def evaluate(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of `loader`, for an evaluation within a step or between two: after each, memsup can hold the program or
        slow it down, and sees that it gets on. What saves waits for the next boundary.
        """
        life = self._ours
        if life is None:
            yield from loader
            return
        batches = iter(loader)
        with life.session.phase("evaluating"):
            while True:
                with life.session.waiting():
                    batch: Any = next(batches, _END)
                if batch is _END:
                    return
                yield batch
                life.session.part()

    def tell(self, *, loss: Any) -> None:
        """What `memsup status` shows from the next boundary on: a number, or a tensor of one, looked at twice a second."""
        self._loss = loss.detach() if hasattr(loss, "detach") else loss

    def finish(self, path: str | None = None, *, metrics: dict[str, float] | None = None) -> None:
        """The training is complete, and its result lies at `path`, where the program has written it. `metrics` is what came of
        it. A program that ends without this although steps are left has not finished. What dies after it is begun again and
        finds no step left.

        Raises `Leave` in a program that was told to leave, and has caught that. While an exception is on its way, as in a
        `finally`, nothing is complete: that is said, and the exception goes on.
        """
        life = self._ours
        if life is not None and life.session.leaving is not None:
            raise life.session.leaving
        error = sys.exc_info()[1]
        if error is not None and error is not self._handled:
            if life is not None:
                print(
                    f"memsup: run.finish was called while {type(error).__name__} is on its way, so the training does not count "
                    "as complete. If it is, call run.finish behind the try statement.",
                    file=sys.stderr,
                )
            return
        self._is_complete = True
        if life is None:
            return
        training = life.training
        if not training.is_complete:
            training.is_complete, training.newest = True, None
            if self._states and not life.session.follows:
                life.session.save_now()
        training.finish(life.session, os.path.abspath(path) if path else "", metrics or {}, self.step)

    # -- what the session asks (`session.Program`) --------------------------------------------------------------------

    def save(self) -> Checkpoint:
        """Writes a checkpoint, or gives back the newest where it holds all that was computed."""
        life = self._life
        assert life is not None
        training = life.training
        if training.newest is not None:
            return training.newest

        def write(folder: str) -> None:
            # Who has finished goes on with nothing, and the other ranks need not come to where that is said.
            with contextlib.nullcontext() if training.is_complete else life.ranks.parts(folder):
                for state in self._states:
                    state.save(folder)

        with self._joined_step.step.spare() if self._joined_step is not None else contextlib.nullcontext():
            return training.save(self._place(), write)

    def save_part(self, folder: str) -> None:
        """Writes what only this rank knows into the checkpoint that rank 0 writes."""
        assert self._life is not None

        def write(own: str) -> None:
            for state in self._states:
                if state.save_part is not None:
                    state.save_part(own)

        self._life.training.save_part(folder, self._place(), write)

    def _place(self) -> Place:
        assert self._life is not None
        return Place(
            run_id="",
            program=[],
            step=self.step,
            epoch=self.epoch,
            in_epoch=self._in_epoch,
            is_complete=False,
            begun_with=self._begun_with,
            generators=places.as_json(self._given_with if self._waits and self._given_with is not None else places.taken()),
            given_with=places.as_json(self._done_with) if self._in_epoch and self._done_with is not None else None,
            loop=self._loop,
            loop_from=self._loop_from,
            trained_s=self._life.session.trained_s,
        )

    def place(self) -> messages.Message:
        offset = self._life.training.offset if self._life is not None else 0
        total = self._total_steps
        return {
            "step": offset + self.step,
            "total_steps": offset + total if total is not None else None,
            "epoch": self._epochs_done(),
        }

    def memory(self) -> messages.Message:
        return read_memory()

    def limit(self, order: messages.Message) -> int:
        if self._joined_step is None:
            raise CannotLimitError("It has not computed its first batch yet.")
        return self._joined_step.limit(order)

    # -- boundaries ---------------------------------------------------------------------------------------------------

    def _is_at(self, end: int | None) -> bool:
        return end is not None and self.step >= end

    def _boundary(self) -> None:
        life = self._ours
        if life is None:
            return
        life.training.newest, self._done_with = None, self._given_with
        life.session.publish(phase="training")
        if self._loss is not None:
            life.session.show_loss(self._loss)
        life.session.boundary()

    def _epochs_done(self) -> float:
        length = _length(self._loader)
        return self.epoch + (self._in_epoch / length if length else 0.0)

    def _epoch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """What is left of this epoch: as long as the loop has not come to where the checkpoint left it, the generators are put
        back to the epoch's beginning and batches are taken and left out.
        """
        resumed, self._resumed = self._resumed, None
        life = self._ours
        if life is None:
            yield from loader
            return
        if resumed is not None and resumed.begun_with is not None:
            places.put_back_for_pass(resumed.begun_with, loader)
        self._begun_with = places.take(loader)
        batches = iter(loader)
        for number in range(self._in_epoch):
            if number == self._in_epoch - 1 and resumed is not None and resumed.given_with is not None:
                places.put_back(resumed.given_with)
                self._done_with = places.taken()
            if next(batches, _END) is _END:
                raise CheckpointError(
                    f"The loader gives fewer batches than the {self._in_epoch} of this epoch that are done: its data or its "
                    f"batch size have changed. To begin anew: {start_anew()}"
                )
            life.session.tick()
        if resumed is not None:
            places.put_back(resumed.generators)
        while True:
            batch: Any = self._next(life, batches)
            if batch is _END:
                return
            yield batch

    def _next(self, life: Life, batches: Iterator[Any]) -> Any:
        """The next batch. While it is waited for, orders are carried out, and the state is that of the boundary before."""
        self._given_with, self._waits = places.taken(), True
        try:
            with life.session.waiting(is_whole=True):
                return next(batches, _END)
        finally:
            self._waits = False

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Loads the newest whole checkpoint of this training. Raises `CheckpointError`."""
        life = self._life
        assert life is not None
        newest, place = life.training.newest, life.training.resumed
        if newest is not None and place is not None:
            self._load(newest, place)
        life.session.begin(self, self.save_part)
        life.session.publish(phase="training", **self.place())

    def _load(self, newest: Checkpoint, place: Place) -> None:
        life = self._life
        assert life is not None
        try:
            for state in self._states:
                state.load(newest.path)
                if state.load_part is not None and life.session.follows and not place.is_complete:
                    state.load_part(life.training.part_folder)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint of step {newest.step:,} is whole, but this program cannot load it: {error}. If the program "
                f"was changed, begin anew with: {start_anew()}"
            ) from error
        self.step, self.epoch, self._in_epoch = place.step, place.epoch, place.in_epoch
        self._loop_from, self._is_complete, self._resumed = place.loop_from, place.is_complete, place
        places.put_back(place.generators)
        if self._is_complete and not life.session.follows:
            which = "this training" if place.training == "1" else f"training {place.training}"
            done = f"complete at step {self.step:,}, so no step is left"
            print(f"memsup: {which} is {done}. To begin anew: {start_anew()}", file=sys.stderr)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # it has none, or does not know
        return None


def _total(loader: Any, epochs: int | None, total: int | None) -> int | None:
    length = _length(loader)
    whole = length * epochs if length is not None and epochs is not None else None
    return total if whole is None or (total is not None and total < whole) else whole
