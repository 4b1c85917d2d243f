"""Lightning's Trainer under memsup's guard: each `fit()` goes on by itself, is seen, and obeys.

Its checkpoints are its own, of `save_checkpoint`, with what Lightning does not keep: the generators, and where the loop is in
its data. There is a boundary behind each batch after which the optimizer has stepped, with the validation that belongs to it.
What is put on the trainer for as long as `fit()` runs:

    fit_loop.setup_data            the loader is watched: a pass over it is begun with which generators?
    epoch_loop.on_advance_end      a batch is done
    epoch_loop._on_before_fetch    the next one is waited for
    epoch_loop._on_after_fetch

and a callback, which goes back to the place in the data, and has the batches of a validation held and paced. Gradients are
computed as ever, so nothing is cut.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any, Callable

from memsup import life, messages, places
from memsup.about import About, NotCut, Seam
from memsup.life import Life
from memsup.link import start_anew
from memsup.memory import read_memory
from memsup.places import Place
from memsup.session import CannotLimitError, Leave
from memsup.store import Checkpoint, CheckpointError

FILE, GRADIENTS = "lightning.ckpt", "memsup-gradients.pt"


def is_one(given: Any) -> bool:
    """Whether `given` is Lightning's Trainer, of whose package nothing is imported here."""
    return _package(given) is not None


def _package(trainer: Any) -> str | None:
    for kind in type(trainer).__mro__:
        for package in ("lightning.pytorch", "pytorch_lightning"):
            if kind.__name__ == "Trainer" and kind.__module__.startswith(package + "."):
                return package
    return None


def guard(trainer: Any, name: str | None = None, save_every_s: float | None = None) -> Any:
    """Has each `fit()` of this trainer be guarded; returns it."""
    whole = trainer.fit
    if not getattr(whole, "is_memsups", False):

        @functools.wraps(whole)
        def guarded(*arguments: Any, **named: Any) -> Any:
            return _fit(trainer, whole, inspect.signature(whole).bind(*arguments, **named), name, save_every_s)

        guarded.is_memsups = True  # type: ignore[attr-defined]
        trainer.fit = guarded
    return trainer


def _fit(
    trainer: Any, whole: Callable[..., Any], bound: inspect.BoundArguments, name: str | None, save_every_s: float | None
) -> Any:
    about = About(Seam.LIGHTNING, not_cut=NotCut.OTHER, detail="Lightning computes its gradients itself")
    found = life.begin(about, name)
    if found is None:
        return whole(*bound.args, **bound.kwargs)
    found.session.every_s = save_every_s if save_every_s is not None else found.told.every_s
    guarded = _Guarded(trainer, found)
    newest = found.training.newest
    if newest is not None:
        bound.arguments["ckpt_path"] = os.path.join(newest.path, FILE)
        if not os.path.exists(bound.arguments["ckpt_path"]):
            raise CheckpointError(
                f"The checkpoint of step {newest.step:,} is whole, but it is none of Lightning's: the program was changed. To "
                f"begin anew: {start_anew()}"
            )
    found.session.begin(guarded)
    try:
        with guarded.joined():
            output = whole(*bound.args, **bound.kwargs)
    except Leave:
        raise
    except BaseException:  # if the program goes on all the same, the next `fit()` is another training
        found.training.is_complete = True
        raise
    guarded.complete()
    return output


class _Guarded:
    """One `fit()` under a supervisor's guard; a `session.Program`."""

    def __init__(self, trainer: Any, found: Life) -> None:
        self.trainer, self.life, self.session, self.training = trainer, found, found.session, found.training
        self._resumed: Place | None = found.training.resumed
        """Where the newest checkpoint left the loop. It is None once the loop is there."""
        self._step = self._resumed.step if self._resumed is not None else 0
        self._in_epoch = 0
        self._begun_with: places.Taken | None = None
        """The generators before this pass over the data began. It is None before the first one."""
        self._given_with: places.Taken | None = None
        self._done_with: places.Taken | None = None
        """The generators before the last batch was asked for; and the same of the last batch that is done."""
        self._waiting: contextlib.ExitStack | None = None
        """What is to be left when the batch that is waited for is there. It is None while none is."""
        self._total_steps: int | None = None
        self._loss: Any = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Puts what is needed on the trainer, and takes it away again."""
        trainer, callback = self.trainer, _callback(self)
        loop = trainer.fit_loop
        wrapped = [
            (loop, "setup_data", self._setup_data),
            (loop.epoch_loop, "on_advance_end", self._advance_ended),
            (loop.epoch_loop, "_on_before_fetch", self._before_fetch),
            (loop.epoch_loop, "_on_after_fetch", self._after_fetch),
        ]
        trainer.callbacks.insert(0, callback)
        for owner, name, wrapper in wrapped:
            setattr(owner, name, functools.partial(wrapper, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, _ in wrapped:
                vars(owner).pop(name, None)
            if callback in trainer.callbacks:
                trainer.callbacks.remove(callback)

    # -- what is put on the trainer -----------------------------------------------------------------------------------

    def _setup_data(self, whole: Callable[[], Any]) -> None:
        source = self.trainer.fit_loop._data_source
        if "dataloader" not in vars(source):
            give = source.dataloader
            source.dataloader = lambda: self._watched(give())
        whole()

    def _watched(self, loader: Any) -> Any:
        """The loader, of which it is seen when a pass begins; one that is none of torch's is left as it is."""
        begin = getattr(loader, "_get_iterator", None)
        if begin is not None and "_get_iterator" not in vars(loader):

            def passes() -> None:
                self._begun_with = places.taken(loader)

            def begun() -> Any:
                passes()
                iterator = begin()
                if places.has_processes_that_stay(loader):
                    places.before_each_further_pass(iterator, passes)
                return iterator

            loader._get_iterator = begun
        return loader

    def train_started(self) -> None:
        """All is loaded; the loop goes back to its place in the data."""
        trainer, place = self.trainer, self._resumed
        steps = trainer.estimated_stepping_batches
        self._total_steps = int(steps) if steps != float("inf") and steps >= 0 else None
        if place is not None:
            if place.in_epoch:
                self._go_back(place)
            places.put_back(place.generators)
            self._resumed = None
        self.session.publish(phase="training", **self.place())

    def _go_back(self, place: Place) -> None:
        fit_loop = self.trainer.fit_loop
        fetcher = fit_loop._data_fetcher
        for loader in fit_loop._combined_loader.flattened:
            if place.begun_with is not None:
                places.put_back_for_pass(place.begun_with, loader)
            if hasattr(getattr(loader, "sampler", None), "set_epoch"):
                loader.sampler.set_epoch(place.epoch)
        iter(fetcher)
        for number in range(place.in_epoch):
            if number == place.in_epoch - 1 and place.given_with is not None:
                places.put_back(place.given_with)
                self._done_with = places.taken()
            if next(fetcher, None) is None:
                raise CheckpointError(
                    f"The loader gives fewer batches than the {place.in_epoch} of this epoch that are done: its data or its "
                    f"batch size have changed. To begin anew: {start_anew()}"
                )
            self.session.tick()
        fetcher.fetched = 0  # the loop adds what it has counted itself
        fetcher.done = False
        self._in_epoch = place.in_epoch

    def _before_fetch(self, whole: Callable[[], Any]) -> None:
        whole()
        self._given_with = places.taken()
        self._waiting = contextlib.ExitStack()
        self._waiting.enter_context(self.session.waiting())

    def _after_fetch(self, whole: Callable[[], Any]) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        whole()

    def _advance_ended(self, whole: Callable[..., Any], *arguments: Any) -> None:
        whole(*arguments)
        loop = self.trainer.fit_loop.epoch_loop
        self.training.newest, self._done_with = None, self._given_with
        self._in_epoch, self._step = loop.batch_progress.current.completed, self.trainer.global_step
        if self._loss is not None:
            self.session.show_loss(self._loss)
        if loop._should_accumulate():
            self.session.part()
        else:
            self.session.boundary()

    def batch_ended(self, outputs: Any) -> None:
        """A batch is computed; `outputs` is what its `training_step` gave."""
        self._loss = outputs.get("loss") if isinstance(outputs, dict) else outputs

    def complete(self) -> None:
        """`fit()` has come to its end."""
        if self.session.leaving is not None:
            raise self.session.leaving
        training = self.training
        if self.trainer.interrupted:
            return
        if not training.is_complete:
            training.is_complete, training.newest = True, None
            self.session.save_now()
        found = self.trainer.callback_metrics
        metrics = {name: float(value) for name, value in found.items()}
        training.finish(self.session, "", metrics, self._step)

    # -- what the session asks ----------------------------------------------------------------------------------------

    def save(self) -> Checkpoint:
        """Writes a checkpoint, or gives back the newest where it holds all that was computed."""
        if self.training.newest is not None:
            return self.training.newest
        place = Place(
            run_id="",
            program=[],
            step=self._step,
            epoch=self.trainer.current_epoch,
            in_epoch=self._in_epoch,
            is_complete=False,
            begun_with=places.as_json(self._begun_with) if self._begun_with is not None else None,
            generators=places.take(),
            given_with=places.as_json(self._done_with) if self._done_with is not None else None,
            trained_s=self.session.trained_s,
        )

        def write(folder: str) -> None:
            self.trainer.save_checkpoint(os.path.join(folder, FILE))

        return self.training.save(place, write)

    def place(self) -> messages.Message:
        offset, total = self.training.offset, self._total_steps
        batches = getattr(self.trainer, "num_training_batches", 0)
        done = self._in_epoch / batches if isinstance(batches, int) and batches else 0.0
        return {
            "step": offset + self._step,
            "total_steps": offset + total if total is not None else None,
            "epoch": float(self.trainer.current_epoch + done),
        }

    def memory(self) -> messages.Message:
        return read_memory()

    def limit(self, order: messages.Message) -> int:
        raise CannotLimitError(f"Lightning computes its gradients itself, so memsup cuts nothing ({order['kind']}).")


def _callback(guarded: _Guarded) -> Any:
    """The callback, of a class of Lightning's own."""
    base: Any = sys.modules[str(_package(guarded.trainer))].Callback

    class Guard(base):  # type: ignore[misc]
        def on_train_start(self, _trainer: Any, _module: Any) -> None:
            guarded.train_started()

        def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, _batch: Any, _number: int) -> None:
            guarded.batch_ended(outputs)

        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                guarded.session.part()

        def on_validation_start(self, trainer: Any, _module: Any) -> None:
            if not trainer.sanity_checking:
                guarded.session.publish(phase="evaluating")

        def on_validation_end(self, trainer: Any, _module: Any) -> None:
            if not trainer.sanity_checking:
                guarded.session.publish(phase="training")

    return Guard()
