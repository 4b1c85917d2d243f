"""`memsup.guard` and the run that it gives back: all that a program of a person's own calls.

Without `memsup start`, in a process that was forked, and in one of several ranks the calls do nothing but train. What has to be
remembered is in `places.py`, how it becomes durable in `store.py`, what is ordered in `session.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Callable, TypeVar

from memsup import messages, places
from memsup.link import Link, Lost, NotAttachedError, Told, told
from memsup.places import Place
from memsup.session import Session
from memsup.store import Checkpoint, CheckpointError, Store

Batch = TypeVar("Batch")
FolderCall = Callable[[str], Any]
_LOSS_EVERY_S = 0.5
"""How often the value of a loss is looked at, which on a GPU waits for it to be computed."""
_END = object()
_guarded: Run | None = None
"""The run of this process. It is None before `guard`; the process has one connection, so it has one run."""


def guard(
    *,
    save: FolderCall | None = None,
    load: FolderCall | None = None,
    save_every_s: float | None = None,
    **parts: Any,
) -> Run:
    """Puts this program under memsup's guard, and its state where its newest whole checkpoint left it.

    `parts` is what the state consists of, by names of your choice: `model=`, `optimizer=`, `scheduler=`, `scaler=` and so on,
    anything with `state_dict` and `load_state_dict`, on the devices where they are to stay. Instead of them, or beside them,
    `save(folder)` writes files into a folder, directly, and `load(folder)` reads them again. The generators of Python, numpy
    and torch are always part of it. With neither there are orders and progress, but no checkpoints. `save_every_s` is the
    seconds between two checkpoints. None means that they take at most 1 % of the time, or the setting `checkpoint.every`.

    To be called once, in the main thread, when all of that is made. Raises TypeError for what cannot be saved, and
    `CheckpointError` where there is a checkpoint that this program cannot load.
    """
    global _guarded
    if (save is None) is not (load is None):
        raise TypeError("memsup.guard needs save= and load= together, or neither.")
    found = told()
    if found is None:
        return Run()
    if _guarded is not None and _guarded.is_attached:
        raise RuntimeError("memsup.guard was called before in this program: a process has one run.")
    if threading.current_thread() is not threading.main_thread():
        return _not_attached("it was not called in the main thread")
    if os.environ.get("WORLD_SIZE", "1").strip() not in {"", "0", "1"}:
        return _not_attached("this is one of several ranks, which memsup does not join yet")
    calls = [places.savers(parts)] if parts else []
    if save is not None and load is not None:
        calls.append((save, load))
    link = Link(found)
    every_s = save_every_s if save_every_s is not None else found.every_s
    attached = _Attached(link, found, calls, every_s)
    try:
        attached.look()
        link.open()
        run = Run(attached)
        run._begin()
    except NotAttachedError as error:
        link.close()
        return _not_attached(str(error))
    _guarded = run
    return run


def _not_attached(why: str) -> Run:
    print(f"memsup: this process is fenced, not attached: {why}. It trains without memsup's checkpoints.", file=sys.stderr)
    return Run()


class _Attached:
    """What only a run under a supervisor has."""

    def __init__(self, link: Link, told: Told, calls: list[tuple[FolderCall, FolderCall]], every_s: float | None) -> None:
        self.link, self.told, self.calls, self.every_s = link, told, calls, every_s
        self.store = Store(told.checkpoints, told.keep)
        self.program = places.this_program()

    def look(self) -> None:
        """Raises `NotAttachedError` where the checkpoints are another program's, as far as that can be seen without touching
        them: that one may be attached still, and what the supervisor knows of it is to stay when it is through.
        """
        with contextlib.suppress(CheckpointError, OSError, ValueError, TypeError):  # to be judged once nobody else may write
            newest = self.store.newest_path()
            if newest is not None:
                self.judge(places.read_place(newest))

    def judge(self, place: Place) -> None:
        """Raises `NotAttachedError` where a checkpoint at `place` is not one of this program."""
        if place.run_id != self.told.run_id:
            raise NotAttachedError(f"{self.store.folder} has another run's checkpoints: choose another checkpoint.folder")
        if place.program != self.program:
            other = " ".join(place.program)
            raise NotAttachedError(f"this run's checkpoints are those of another program of the same command: {other}")


class Run:
    """The run of this program. Without a supervisor it only counts."""

    def __init__(self, attached: _Attached | None = None) -> None:
        self.step = 0
        """How many steps are done, in all lives of the program."""
        self.epoch = 0
        """The epoch, from 0, that `steps` is in."""
        self.total_steps: int | None = None
        """How many steps there are in all. It is None where nobody knows."""
        self._in_epoch = 0
        self._loader: Any = None
        self._begun_with: places.Generators | None = None
        self._resumed: Place | None = None
        """Where the newest checkpoint left the loop. It is None once the loop is there."""
        self._is_complete = self._has_steps = False
        self._newest: Checkpoint | None = None
        """The newest checkpoint, where it holds all that was computed."""
        self._loss: Any = None
        self._loss_s = -_LOSS_EVERY_S
        self._attached = attached
        self._session: Session | None = None
        if attached is not None:
            save = self._save if attached.calls else None
            self._session = Session(attached.link, save, attached.every_s)

    @property
    def is_attached(self) -> bool:
        """Whether a supervisor guards what this process does here."""
        return self._attached is not None and self._attached.link.is_ours

    # -- what a program calls -----------------------------------------------------------------------------------------

    def steps(self, loader: Iterable[Batch], *, epochs: int | None = 1, total: int | None = None) -> Iterator[Batch]:
        """The batches of `loader`, again in each of `epochs`, without those that the newest checkpoint has behind it. Each is
        one step, and after each there is a boundary: the state must be whole when the loop's body ends.

        `total` ends the loop after so many steps. None means that only the epochs do; without either there would be no end.
        Batches that are left out are taken from the loader all the same, so that it gives the same ones as before; it has to
        draw its order when an epoch begins, as torch's DataLoader does, or with a generator of its own. Raises `Leave`.
        """
        if self._has_steps:
            raise RuntimeError("run.steps was called before: a run has one loop of steps.")
        if epochs is None and total is None:
            raise TypeError("run.steps needs epochs= or total=, or it would never end.")
        self._has_steps, self._loader = True, loader
        self.total_steps = _total(loader, epochs, total)
        if self.is_attached and self._session is not None:
            self._session.publish(phase="training", total_steps=self.total_steps)
        while not self._is_complete and (epochs is None or self.epoch < epochs) and not self._is_at(total):
            count = 0
            for batch in self._epoch(loader):
                count += 1
                yield batch
                self.step += 1
                self._in_epoch += 1
                self._boundary()
                if self._is_at(total):
                    break
            if count == 0 and self._in_epoch == 0 and epochs is None:
                raise ValueError("run.steps: the loader gives no batch, so the loop would never end.")
            if not self._is_at(total):
                self.epoch, self._in_epoch = self.epoch + 1, 0
        if self.is_attached and self._session is not None:
            self._session.publish(phase="finishing")

    def boundary(self, *, loss: Any = None) -> None:
        """One step of a loop of your own is done, and the state is whole: to be called after each, beginning at `run.step`.
        Not to be called within `steps`. `loss` is a number, or a tensor of one. Raises `Leave`.
        """
        if self._has_steps:
            raise RuntimeError("run.boundary is for loops without run.steps, which counts by itself; use run.tell(loss=…).")
        self.tell(loss=loss)
        self.step += 1
        self._boundary()

    def tell(self, *, loss: Any) -> None:
        """What `memsup status` shows from the next boundary on: a number, or a tensor of one, looked at twice a second."""
        self._loss = loss.detach() if hasattr(loss, "detach") else loss

    def finish(self, path: str | None = None, *, metrics: dict[str, float] | None = None) -> None:
        """The training is complete, and its result lies at `path`, where the program has written it. `metrics` is what came of
        it. A program that ends without this although steps are left has not finished. What dies after it is begun again and
        finds no step left. Raises `Leave` in a program that was told to leave, and has caught that.
        """
        if self._session is not None and self._session.leaving is not None and self.is_attached:
            raise self._session.leaving
        self._is_complete, self._newest = True, None
        if not self.is_attached or self._session is None:
            return
        if self._attached is not None and self._attached.calls:
            self._session.save_now()
        result = os.path.abspath(path) if path else ""
        self._session.link.report(messages.finished(result, metrics or {}, self.step))
        self._session.link.flush()

    # -- boundaries ---------------------------------------------------------------------------------------------------

    def _is_at(self, total: int | None) -> bool:
        return total is not None and self.step >= total

    def _boundary(self) -> None:
        self._newest = None
        if self._session is None or not self.is_attached:
            return
        self._session.publish(step=self.step, epoch=self._epochs_done(), phase="training")
        now_s = time.monotonic()
        if self._loss is not None and now_s - self._loss_s >= _LOSS_EVERY_S:
            self._loss_s = now_s
            with contextlib.suppress(TypeError, ValueError, RuntimeError):  # what is shown must not end what is shown
                self._session.publish(loss=float(self._loss))
        self._session.boundary()

    def _epochs_done(self) -> float:
        length = _length(self._loader)
        return self.epoch + (self._in_epoch / length if length else 0.0)

    def _epoch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """What is left of this epoch: as long as the loop has not come to where the checkpoint left it, the generators are put
        back to the epoch's beginning and batches are taken and left out.
        """
        resumed, self._resumed = self._resumed, None
        if not self.is_attached:
            yield from loader
            return
        if resumed is not None and resumed.begun_with is not None:
            places.put_back(resumed.begun_with, loader)
        self._begun_with = places.take(loader)
        batches = iter(loader)
        assert self._session is not None
        for _ in range(self._in_epoch):
            if next(batches, _END) is _END:
                raise CheckpointError(
                    f"The loader gives fewer batches than the {self._in_epoch} of this epoch that are done: its data or its "
                    "batch size have changed. To begin anew: memsup start --fresh"
                )
            self._session.tick()
        if resumed is not None:
            places.put_back(resumed.generators)
        yield from batches

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Loads the newest whole checkpoint of this run, and has the supervisor told of the end of this process. Raises
        `NotAttachedError` where this is not the program whose checkpoints these are, and `CheckpointError`.
        """
        attached, session = self._attached, self._session
        assert attached is not None
        assert session is not None
        session.publish(phase="loading")
        attached.store.sweep()
        try:
            newest, aside = attached.store.newest()
            place = places.read_place(newest.path) if newest is not None else None
        except (CheckpointError, OSError, ValueError, TypeError) as error:
            raise NotAttachedError(f"its checkpoints cannot be told: {error}") from None
        if place is not None:
            attached.judge(place)
        for damaged in aside:
            detail = f"The checkpoint of step {damaged.step:,} is damaged and was set aside: {damaged.reason}"
            attached.link.report(messages.decided("checkpoint_damaged", detail, damaged.path, damaged.step))
        if aside:
            used = "begins anew, for there is no whole one" if newest is None else f"goes on from that of step {newest.step:,}"
            detail = f"Newer checkpoints are damaged; the program {used}."
            step = newest.step if newest else None
            attached.link.report(messages.decided("checkpoint_used", detail, newest.path if newest else None, step))
        _tell_of_the_end(self)
        _leave_on_sigterm(attached.link)
        if newest is not None and place is not None:
            self._load(newest, place)
        session.publish(phase="training", step=self.step, epoch=self._epochs_done())

    def _load(self, newest: Checkpoint, place: Place) -> None:
        assert self._attached is not None
        assert self._session is not None
        try:
            for _, load in self._attached.calls:
                load(newest.path)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint of step {newest.step:,} is whole, but this program cannot load it: {error}. If the program "
                "was changed, begin anew with: memsup start --fresh"
            ) from error
        self.step, self.epoch, self._in_epoch = place.step, place.epoch, place.in_epoch
        self._is_complete, self._resumed, self._newest = place.is_complete, place, newest
        self._session.found(newest)
        places.put_back(place.generators)
        if self._is_complete:
            done = f"complete at step {self.step:,}, so no step is left"
            print(f"memsup: this training is {done}. To begin anew: memsup start --fresh", file=sys.stderr)

    def _save(self) -> Checkpoint:
        """Writes a checkpoint, or gives back the newest where it holds all that was computed."""
        assert self._attached is not None
        if self._newest is not None:
            return self._newest
        attached = self._attached
        place = Place(
            run_id=attached.told.run_id,
            program=attached.program,
            step=self.step,
            epoch=self.epoch,
            in_epoch=self._in_epoch,
            is_complete=self._is_complete,
            begun_with=self._begun_with,
            generators=places.take(),
        )

        def write(folder: str) -> None:
            for save, _ in attached.calls:
                save(folder)
            places.write_place(folder, place)

        self._newest = attached.store.save(self.step, write)
        return self._newest


# --------------------------------------------------------------------------------------------------------------------
# The loader's length, and the ends of a process


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # it has none, or does not know
        return None


def _total(loader: Any, epochs: int | None, total: int | None) -> int | None:
    length = _length(loader)
    whole = length * epochs if length is not None and epochs is not None else None
    return total if whole is None or (total is not None and total < whole) else whole


def _leave_on_sigterm(link: Link) -> None:
    """Has a SIGTERM, as at a shutdown, end the program at its next boundary, with a checkpoint; unless the program has a use
    for it itself.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def leave(_number: int, _frame: Any) -> None:
        link.orders.put(Lost("SIGTERM"))

    leave.is_memsups = True  # type: ignore[attr-defined]  # for a child that is forked
    signal.signal(signal.SIGTERM, leave)


def _tell_of_the_end(run: Run) -> None:
    """Has the supervisor told of the last step of a program that ends, and of an exception that ends it, before Python prints
    that.
    """
    link = run._attached.link if run._attached is not None else None

    @atexit.register
    def last_beat() -> None:
        if run.is_attached and link is not None:
            link.flush(1.0)

    before = sys.excepthook

    def told_first(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if run.is_attached and link is not None and not isinstance(error, KeyboardInterrupt):
            unloadable = isinstance(error, CheckpointError)
            text = str(error) if unloadable else f"The program ended with {kind.__name__} after step {run.step:,}: {error}"
            stack = "".join(traceback.format_exception(kind, error, where))[-messages.MOST_TEXT :]
            link.report(messages.failed("bad_input" if unloadable else "crash", text, stack, run.step))
            link.flush()
        before(kind, error, where)

    sys.excepthook = told_first
