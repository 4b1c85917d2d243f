"""Hugging Face's Trainer under memsup's guard: each `train()` goes on by itself, is seen, and obeys.

The same for a program that calls `memsup.guard(trainer)` and for one that knows nothing of memsup (`attach.py`). What is needed
is put on the one trainer for as long as its `train()` runs, around whatever its class, unsloth or the user have put there:

    get_train_dataloader      the loader is watched (`trainer_feed.py`)
    get_batch_samples         the batches of a window, which is one optimizer step, are waited for
    training_step             something is computed, in parts where it has to be (`trainer_cut.py`); so is prediction_step
    _maybe_log_save_evaluate  a step, or an epoch, is over; what it logs, evaluates and saves included: a boundary
    _save_checkpoint          the user's own saves (`trainer_given.py`)
    _load_rng_state           where a training is gone on with, its generators are ours to put back

and a callback, for the boundaries within a window and within an evaluation. Parameters do not change within a window, so a
checkpoint in its middle is one of its beginning. One within an evaluation, or before the end of an epoch is told of, remembers
what is to be made up for; whoever goes on begins with that.

A stop unwinds the program (`Leave`). `control.should_training_stop` is never set for it: with that a program goes on behind
`train()`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

from memsup import attach, life, messages, places, trainer_callbacks, trainer_files, trainer_given
from memsup.about import About, NotCut, Seam
from memsup.cut_probe import Refusal
from memsup.life import Life, TwiceError
from memsup.link import start_anew, told
from memsup.memory import lift, read_memory
from memsup.places import Place
from memsup.session import CannotLimitError, Leave
from memsup.store import Checkpoint, CheckpointError
from memsup.trainer_cut import Cutter
from memsup.trainer_feed import Feed, FeedPlace, states_as_json
from memsup.trainer_given import Given

SEAMS = ("get_train_dataloader", "get_batch_samples", "training_step", "_maybe_log_save_evaluate", "_save_checkpoint")
"""What a Trainer has to have to be guarded; those of before transformers 4.46 lack some of it."""
_REPLICATED = {"NO", "MULTI_GPU", "MULTI_CPU"}
"""How accelerate calls it where each rank has the whole model."""
_LOGGED = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step")
_under_way = False
"""Whether a `train()` of this process is guarded: one that it calls itself, of a teacher say, is part of it."""


class _Wishes(NamedTuple):
    """What `memsup.guard` was given with a trainer."""

    name: str | None = None
    save_every_s: float | None = None


def guard(trainer: Any, name: str | None = None, save_every_s: float | None = None) -> Any:
    """Has each `train()` of this trainer be guarded; returns it. `name` and `save_every_s` are those of `memsup.guard`."""
    whole, trainer.memsups_wishes = trainer.train, _Wishes(name, save_every_s)
    if not getattr(whole, "is_memsups", False):
        module = sys.modules.get("transformers.trainer")
        if module is not None:
            attach.join_skipping(module)

        @functools.wraps(whole)
        def guarded(*arguments: Any, **named: Any) -> Any:
            return train(trainer, whole, arguments, named)

        guarded.is_memsups = True  # type: ignore[attr-defined]
        trainer.train = guarded
    return trainer


def train(trainer: Any, whole: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """`trainer.train(…)` under a supervisor's guard, where there is one; `whole` is what it is without."""
    global _under_way
    if _under_way or told() is None:
        return whole(*arguments, **named)
    resume = arguments[0] if arguments else named.get("resume_from_checkpoint")
    trial = arguments[1] if len(arguments) > 1 else named.get("trial")
    try:
        guarded = _begin(trainer, resume, trial)
    except (CheckpointError, TwiceError):
        raise
    except Exception as error:
        _say(f"this training is fenced, not attached: {error!r}")
        life.let_go()
        guarded = None
    if guarded is None:
        return whole(*arguments, **named)
    arguments = (guarded.resumes_from, *arguments[1:])
    named = {name: value for name, value in named.items() if name != "resume_from_checkpoint"}
    _under_way = True
    try:
        with guarded.joined():
            output = whole(*arguments, **named)
        return guarded.complete(output)
    except Leave:
        raise
    except BaseException as error:  # a notebook's KeyboardInterrupt too
        guarded.given_up()
        if isinstance(error, Exception):
            guarded.judge(error)
        raise
    finally:
        _under_way = False


def _say(text: str) -> None:
    print(f"memsup: {text}", file=sys.stderr)


def _begin(trainer: Any, resume: Any, trial: Any) -> _Guarded | None:
    lacks = [name for name in SEAMS if not hasattr(trainer, name)]
    if lacks:
        _say(f"this training is fenced, not attached: its Trainer has no {lacks[0]}. transformers 4.46 or newer is needed.")
        return None
    kind = str(getattr(trainer.accelerator.distributed_type, "value", trainer.accelerator.distributed_type))
    if kind not in _REPLICATED and trainer.args.world_size > 1:
        if trainer.args.process_index == 0:
            _say(f"this training is fenced, not attached: {kind} shares a model out to ranks, which memsup does not join.")
        return None
    detail, wishes = _why_not_saved(trial), getattr(trainer, "memsups_wishes", _Wishes())
    found = life.begin(About(Seam.TRAINER, saves=not detail, not_cut=NotCut.NOT_PROBED, detail=detail), wishes.name)
    if found is None:
        return None
    found.session.every_s = wishes.save_every_s if wishes.save_every_s is not None else found.told.every_s
    if not found.session.follows:
        trainer_files.sweep(trainer.args.output_dir)
    guarded = _Guarded(trainer, found)
    guarded.find(resume)
    found.session.begin(guarded, guarded.save_part)
    return guarded


def _why_not_saved(trial: Any) -> str:
    """Why nothing is saved, a clause. It is empty where it is."""
    if trial is not None:
        return "a search draws the arguments of each trial, so no trial is saved"
    check = getattr(sys.modules.get("transformers.utils.import_utils"), "check_torch_load_is_safe", None)
    try:
        if check is not None:
            check()
    except ValueError:
        return "Trainer does not load what it has saved with this torch, which is older than 2.6"
    return ""


class _Point(NamedTuple):
    """Where a training would go on from: between two steps, or before what a step or an epoch ends with."""

    generators: Any
    feed: FeedPlace
    pending: dict[str, Any] | None = None
    """What is to be made up for before the next step: `stage`, `flags` (log, evaluate, save) and `ends`, whether the end of an
    epoch is still to be told of. It is None where nothing is.
    """
    stops: bool = False
    """No step is left: the last one is done, or somebody has ended the training early."""
    flops: float = 0
    """`current_flos`, the operations that are not in the state yet."""
    tokens: Any = 0
    logged: dict[str, Any] | None = None
    """What the next line of the log, and the last one, are made of."""
    callbacks: Sequence[tuple[str, dict[str, Any]]] = ()
    """What callbacks remember, such as the evaluations without a rise after which the training is ended early."""


class _Guarded:
    """One `train()` under a supervisor's guard; a `session.Program`."""

    def __init__(self, trainer: Any, found: Life) -> None:
        self.trainer, self.life, self.session, self.training = trainer, found, found.session, found.training
        self.resumes_from: Any = None
        """What Trainer is to go on from. It is None where it begins anew."""
        self._resumed: dict[str, Any] | None = None
        """What our checkpoint adds to that. It is None where it is none of ours."""
        self._feed = Feed()
        self._point: _Point | None = None
        self._saved: _Point | None = None
        """What the newest checkpoint holds."""
        self._is_neutral = False
        """No step is left to do, and all that it ends with is done: Trainer's loop is gone through without doing anything."""
        self._epoch_has_ended = False
        self._in_window = 0
        """The micro-batches that were computed since the point."""
        self._holds_gradients = False
        """At the point there are gradients of a window that the end of the data has cut short."""
        self._has_buffers = False
        """The model changes in forward passes as well, so in a window's middle it is not what it was at its beginning."""
        self._cutter: Cutter | None = None
        self._losses: list[Any] = []
        self._given = Given(trainer, found.told.run_id)
        self._output: list[Any] | None = None
        """What `train()` has returned. It is None while it has not."""
        self._after: dict[str, Any] | None = None
        """What is pending once the step that ends now has logged, evaluated and saved."""
        self._has_windows = False
        """The loop is one that asks for the batches of a window, so where it is in its data is known."""
        self._save_as_ever: Any = None

    # -- the beginning ------------------------------------------------------------------------------------------------

    def find(self, asked: Any) -> None:
        """Decides what is gone on from: the newest whole checkpoint of this training; else what the user has `asked` for; else
        one of a time before memsup, where it is one of this training as far as can be told. Raises `CheckpointError`.
        """
        newest, place = self.training.newest, self.training.resumed
        if newest is not None and place is not None:
            more = place.more or {}
            if "feed" not in more:
                raise CheckpointError(
                    f"The checkpoint of step {newest.step:,} is whole, but it is none of a Trainer's: the program was changed. "
                    f"To begin anew: {start_anew()}"
                )
            self.resumes_from, self._resumed = newest.path, more
            feed = more["feed"]
            self._feed = Feed(
                FeedPlace(feed["passes"], feed["given"], feed["begun_with"], tuple(feed["ahead"])), place.generators
            )
            if not self.session.follows:
                self._given.go_on(newest.path, more)
            return
        self.resumes_from = trainer_given.asked_for(self.trainer, self.session, asked)
        if not asked and self.session.about.saves:
            self.resumes_from = trainer_given.from_before(self.trainer, self.session, self.life.told.run_id)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Puts what is needed on the trainer, and takes it away again; but for the callback, by which an evaluation that comes
        behind `train()` is still held and paced.
        """
        trainer = self.trainer
        if getattr(trainer, "memsups_callback", None) is None:
            trainer.memsups_callback = _callback()
            trainer.add_callback(trainer.memsups_callback)
        trainer.memsups_callback.guarded = self
        self._save_as_ever = trainer._save_checkpoint
        wrapped = {
            "get_train_dataloader": self._get_train_dataloader,
            "get_batch_samples": self._get_batch_samples,
            "training_step": self._training_step,
            "prediction_step": self._prediction_step,
            "evaluation_loop": self._evaluation_loop,
            "prediction_loop": self._evaluation_loop,
            "_maybe_log_save_evaluate": self._maybe_log_save_evaluate,
            "_save_checkpoint": self._save_checkpoint,
            "_load_rng_state": self._load_rng_state,
        }
        before = {name: vars(trainer).get(name) for name in wrapped}
        for name, wrapper in wrapped.items():
            whole = getattr(trainer, name, None)
            if whole is not None:
                setattr(trainer, name, functools.wraps(whole)(functools.partial(wrapper, whole)))
        try:
            yield
        finally:
            self._feed.look_away()
            for name, own in before.items():
                if own is not None:
                    setattr(trainer, name, own)
                else:
                    vars(trainer).pop(name, None)

    def began(self) -> None:
        """Trainer has made or loaded all that a step needs (`on_train_begin`)."""
        trainer, resumed = self.trainer, self._resumed
        self._has_buffers = any(_changes_in_forward(module) for module in trainer.model.modules())
        if resumed is None:
            self._point, self._saved = self._now(), None
        else:
            place = self.training.resumed
            assert place is not None
            self._put_back_logged(resumed["logged"])
            if not self.life.ranks.is_alone:
                trainer.current_flos = resumed["flops"]
            remembered = [(str(kind), dict(state)) for kind, state in resumed.get("callbacks", ())]
            trainer_callbacks.remind(trainer, remembered)
            self._point = self._saved = _Point(
                place.generators,
                self._feed.place,
                resumed["pending"],
                resumed["stops"],
                logged=resumed["logged"],
                callbacks=remembered,
            )
            places.put_back(place.generators)
            self._resumed = None
            trainer.control.should_training_stop = resumed["stops"]
            of_rank = self.resumes_from if self.training.is_complete else self.training.part_folder
            self._holds_gradients = trainer_files.read_gradients(trainer.model, of_rank)
            if self.training.is_complete:
                self._is_neutral = True
            else:
                self._make_up(resumed["pending"])
                self._is_neutral = resumed["stops"]
        self.session.publish(phase="training", **self.place())

    def _make_up(self, pending: dict[str, Any] | None) -> None:
        """Does what a step or an epoch ends with, where the checkpoint was written before that."""
        if pending is None:
            return
        trainer = self.trainer
        loss = trainer._tr_loss if hasattr(trainer, "_tr_loss") else _zero(trainer)
        what = (loss, None, trainer.model_wrapped, None, int(trainer.state.epoch or 0), None, time.time())
        if pending["stage"] != "end":
            control = trainer.control
            control.should_log, control.should_evaluate, control.should_save = pending["flags"]
            self._epoch_has_ended = pending["stage"] == "epoch"
            trainer._maybe_log_save_evaluate(*what)
        if pending["ends"]:
            trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
            trainer._maybe_log_save_evaluate(*what)
        self._feed.moved_on()

    # -- what is put on the trainer -----------------------------------------------------------------------------------

    def _get_train_dataloader(self, whole: Any, *arguments: Any, **named: Any) -> Any:
        if self._point is not None and self._feed.place != FeedPlace():  # Trainer begins anew, with a smaller batch size
            self._feed.look_away()
            self._feed = Feed()
        return self._feed.watch(whole(*arguments, **named))

    def _get_batch_samples(self, whole: Any, *arguments: Any, **named: Any) -> Any:
        """A window begins. While its batches are waited for the training is at its point."""
        if self._is_neutral:
            return [], None
        self._has_windows = True
        with self.session.waiting(is_whole=self._in_window == 0):
            samples, count = whole(*arguments, **named)
        self._feed.gave(len(samples))
        self._feed.arrive()
        return samples, count

    def _training_step(self, whole: Any, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        if self._cutter is None:
            self._cutter = Cutter(self.trainer, self.life, model, self.substep_ended)
        begins = self._in_window == 0 if self._has_windows else None
        loss = self._cutter.training_step(whole, model, inputs, arguments, named, begins=begins)
        self._in_window += 1
        self._losses.append(loss)
        return loss

    def _prediction_step(self, whole: Any, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        if self._cutter is None:
            return whole(model, inputs, *arguments, **named)
        return self._cutter.prediction_step(whole, model, inputs, arguments, named)

    def _evaluation_loop(self, whole: Any, *arguments: Any, **named: Any) -> Any:
        if self._point is not None and self._point.pending is not None and self.trainer.is_in_train:
            self._point = self._point._replace(logged=self._logged(), flops=self.trainer.current_flos)  # it is logged by now
        with self.session.phase("evaluating"):
            return whole(*arguments, **named)

    def _maybe_log_save_evaluate(self, whole: Any, *arguments: Any, **named: Any) -> Any:
        """A step or an epoch is over."""
        if self._is_neutral:
            return None
        control = self.trainer.control
        stage = "epoch" if self._epoch_has_ended else "step"
        self._holds_gradients = stage == "epoch" and self._in_window > 0
        self._in_window = 0
        self.session.show_loss(*self._losses)
        self._losses.clear()
        is_last = float(self.trainer.state.epoch or 0).is_integer() or control.should_training_stop
        ends = stage == "step" and is_last
        self._after = {"stage": "end", "flags": [], "ends": True} if ends else None
        flags = [control.should_log, control.should_evaluate, control.should_save]
        before = self._point
        if control.should_evaluate or control.should_save:
            before = self._point = self._now({"stage": stage, "flags": flags, "ends": ends})
        whole(*arguments, **named)
        self._epoch_has_ended = False
        point = self._point
        if point is before or point is not self._saved or point is None or point.pending is not self._after:
            self._point = self._now(self._after)  # but where the user has had it saved just now
        self._mend_what_was_written_to()
        self.session.boundary()
        return None

    def _load_rng_state(self, whole: Any, *arguments: Any, **named: Any) -> Any:
        if self.training.resumed is None:
            return whole(*arguments, **named)
        return self._feed.arrive()

    def substep_ended(self) -> None:
        """A micro-batch is done, and not the last one of its window."""
        if self._has_buffers or self._holds_gradients:
            self.session.part()
        else:
            self.session.own_boundary()

    def prediction_step_ended(self) -> None:
        """A batch of an evaluation is done."""
        self.session.own_boundary()

    def step_ended(self) -> None:
        """A step is done, and what it logs, evaluates and saves is not. In a loop of somebody's own it is the only sign."""
        if self._feed.counts_passes:
            place, args, state = self._feed.place, self.trainer.args, self.trainer.state
            state.epoch = place.passes + place.given / (state.max_steps * args.gradient_accumulation_steps)
        if not self._has_windows:
            if self.session.about.not_cut is not NotCut.NO_BOUNDARY:
                detail = "its loop is not Trainer's, so where it is in its data is not known"
                if self._cutter is not None:
                    self._cutter.refuse(Refusal.NO_BOUNDARY)
                self.session.describe(saves=False, cuts=False, not_cut=NotCut.NO_BOUNDARY, detail=detail)
                _say(f"this training is attached, and can be neither cut nor saved: {detail}.")
            self._point = None
            self.session.boundary()

    def epoch_ended(self) -> None:
        """An epoch is told of as over."""
        self._epoch_has_ended = True
        if not self._is_neutral:
            self._feed.pass_ended()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _now(self, pending: dict[str, Any] | None = None) -> _Point:
        trainer = self.trainer
        return _Point(
            places.taken(),
            self._feed.place,
            pending,
            trainer.control.should_training_stop,
            trainer.current_flos,
            trainer.state.num_input_tokens_seen,
            self._logged(),
            trainer_callbacks.remembered(trainer),
        )

    def _logged(self) -> dict[str, Any]:
        logged = {name: getattr(self.trainer, name) for name in _LOGGED if hasattr(self.trainer, name)}
        if hasattr(self.trainer, "_tr_loss"):
            logged["_tr_loss"] = self.trainer._tr_loss.clone()
        return logged

    def _put_back_logged(self, logged: dict[str, Any]) -> None:
        for name, value in logged.items():
            if name == "_tr_loss":
                self.trainer._tr_loss += value
            else:
                setattr(self.trainer, name, value)

    def save(self) -> Checkpoint:
        """Writes a checkpoint of the training as it was at its point, or gives back the newest where that is one."""
        training, point = self.training, self._point
        if training.newest is not None and (point is None or point is self._saved):
            return training.newest
        if point is None:
            raise CheckpointError("The training has not begun yet.")
        place = self._place(point)

        def write(folder: str) -> None:
            with self.life.ranks.parts(folder):
                self._write(point, place.generators, folder)

        found = training.save(place, write)
        self._saved = point
        return found

    def save_part(self, folder: str) -> None:
        """Writes what only this rank knows into the checkpoint that rank 0 writes."""
        point = self._point
        if point is None:
            raise CheckpointError("the training has not begun yet")
        place = self._place(point)

        def write(own: str) -> None:
            with self._as_at(place.generators):
                self.trainer._save_rng_state(folder)
            if self._holds_gradients:
                trainer_files.write_gradients(self.trainer.model, own)

        self.training.save_part(folder, place, write)
        self._saved = point

    def _place(self, point: _Point) -> Place:
        state = self.trainer.state
        more = {
            "feed": point.feed.as_json(),
            "pending": point.pending,
            "stops": point.stops,
            "logged": {name: float(value) if name == "_tr_loss" else value for name, value in (point.logged or {}).items()},
            "callbacks": point.callbacks,
            "output": self._output,
            "flops": float(point.flops),
            **self._given.as_json(),
        }
        return Place(
            run_id="",
            program=[],
            step=state.global_step,
            epoch=point.feed.passes,
            in_epoch=point.feed.given,
            is_complete=False,
            begun_with=None,
            generators=states_as_json(point.generators),
            trained_s=self.session.trained_s,
            more=more,
        )

    def _write(self, point: _Point, generators: places.Generators, folder: str) -> None:
        """Has Trainer write all that it goes on from into `folder`, as it was at `point`."""
        trainer, state = self.trainer, self.trainer.state
        lift()  # a save is not to fail for want of what a step may not take
        args = trainer.args
        flops, tokens, best = trainer.current_flos, state.num_input_tokens_seen, state.best_model_checkpoint
        only_model, pushes = args.save_only_model, args.push_to_hub
        trainer.current_flos, state.num_input_tokens_seen = point.flops, point.tokens
        args.save_only_model = args.push_to_hub = False
        try:
            with self._as_at(generators), trainer_files.written_into(trainer, folder), self._without_collectives():
                self._save_as_ever(trainer.model, None)
            state.best_model_checkpoint = self._given.best(best)
            state.save_to_json(os.path.join(folder, trainer_files.STATE))
            if self._holds_gradients:
                trainer_files.write_gradients(trainer.model, folder)
        finally:
            args.save_only_model, args.push_to_hub = only_model, pushes
            stored = point.flops if self.life.ranks.is_alone else 0
            trainer.current_flos, state.num_input_tokens_seen = flops - stored, tokens

    @contextlib.contextmanager
    def _as_at(self, generators: places.Generators) -> Iterator[None]:
        """The generators are these inside, and what they were afterwards."""
        drawn = places.take()
        places.put_back(generators)
        try:
            yield
        finally:
            places.put_back(drawn)

    @contextlib.contextmanager
    def _without_collectives(self) -> Iterator[None]:
        """What Trainer saves inside it saves without the other ranks, which save what is theirs elsewhere: it would add up
        operations over all of them, and wait for them where it looks for the best checkpoint.
        """
        if self.life.ranks.is_alone:
            yield
            return
        state = self.trainer.state
        best, state.best_global_step = getattr(state, "best_global_step", None), None
        self.trainer.store_flos = _nothing
        try:
            yield
        finally:
            state.best_global_step = best
            del self.trainer.store_flos

    def _save_checkpoint(self, whole: Any, *arguments: Any, **named: Any) -> None:
        """The user wants a checkpoint: the same files are ours and the user's."""
        if not self.session.about.saves:
            whole(*arguments, **named)
            return
        self._point = self._now(self._after)
        if not self.session.follows:
            self._save_as_wanted()
        self.session.meet()

    def _save_as_wanted(self) -> None:
        trainer = self.trainer
        try:
            with self._given.wanted() as target:
                self._given.give(self.session.save_now()["path"], target)
                if trainer.args.push_to_hub:
                    trainer._push_from_checkpoint(target)
        except CheckpointError as error:  # what is computed is worth more than the program's end would be
            step = trainer.state.global_step
            self.session.decided("checkpoint_failed", f"No checkpoint after step {step:,}: {error}", step=step)

    def _mend_what_was_written_to(self) -> None:
        """Where a callback has written to files of the checkpoint that was just given, memsup's own is written anew."""
        if self._given.was_written_to():  # never where another rank has given it
            self.training.newest = self._saved = None
            self.session.save_if_possible()

    # -- the end ------------------------------------------------------------------------------------------------------

    def complete(self, output: Any) -> Any:
        """`train()` has come to its end. Returns what it returns: where that was in an earlier life, what it did then."""
        trainer, training = self.trainer, self.training
        resumed = training.resumed
        if training.is_complete and resumed is not None and resumed.more is not None:
            told_then = resumed.more["output"]
            trainer.state.log_history[:] = trainer_files.state_in(self.resumes_from)["log_history"]
            places.put_back(resumed.generators)
            output = type(output)(*told_then)
            which = "this training" if training.key == "1" else f"training {training.key}"
            if not self.session.follows:
                _say(f"{which} is complete at step {output[0]:,}, so no step is left. To begin anew: {start_anew()}")
        elif self.session.about.saves:
            training.is_complete = True
            self._point, self._output = self._now(), list(output)
            if not self.session.follows:
                self.session.save_if_possible()
            self.session.meet()
        metrics = {name: value for name, value in output[2].items() if isinstance(value, (int, float))}
        training.is_complete = True
        training.finish(self.session, self._result(), metrics, output[0])
        return output

    def _result(self) -> str:
        """Where a model lies that can be loaded when `train()` has come to its end: what the program has saved already, else
        the newest checkpoint.
        """
        out = os.path.abspath(self.trainer.args.output_dir)
        is_model = any(os.path.exists(os.path.join(out, name)) for name in ("config.json", "adapter_config.json"))
        newest = self.training.newest
        return out if is_model or newest is None else newest.path

    def judge(self, error: Exception) -> None:
        """Raises `CheckpointError` where `train()` has failed before it was where our checkpoint left it."""
        newest = self.training.resumed
        if self._resumed is not None and newest is not None:
            raise CheckpointError(
                f"The checkpoint of step {newest.step:,} is whole, but this training cannot go on from it: {error}. If the "
                f"program was changed, begin anew with: {start_anew()}"
            ) from error

    def given_up(self) -> None:
        """`train()` has failed. If the program goes on all the same, the next `train()` is another training."""
        self.training.is_complete = True

    # -- progress, and what else a session asks -----------------------------------------------------------------------

    def place(self) -> messages.Message:
        state, offset = self.trainer.state, self.training.offset
        return {
            "step": offset + state.global_step,
            "total_steps": offset + state.max_steps if state.max_steps > 0 else None,
            "epoch": float(state.epoch or 0.0),
        }

    def memory(self) -> messages.Message:
        return read_memory()

    def limit(self, order: messages.Message) -> int:
        if self._cutter is None or self._cutter.joined is None:
            raise CannotLimitError("It has not computed its first batch yet, or a library of its own computes it.")
        return self._cutter.joined.limit(order)


# --------------------------------------------------------------------------------------------------------------------


def _callback() -> Any:
    class MemsupCallback(sys.modules["transformers.trainer_callback"].TrainerCallback):  # type: ignore[misc]
        """Tells the training that is under way of what Trainer tells nobody else."""

        guarded: _Guarded

        def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
            self.guarded.began()

        def on_pre_optimizer_step(self, *_arguments: Any, **_named: Any) -> None:
            lift()  # an optimizer makes its state in the first step, and cannot do with less

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            self.guarded.step_ended()

        def on_substep_end(self, *_arguments: Any, **_named: Any) -> None:
            self.guarded.substep_ended()

        def on_prediction_step(self, *_arguments: Any, **_named: Any) -> None:
            self.guarded.prediction_step_ended()

        def on_epoch_end(self, *_arguments: Any, **_named: Any) -> None:
            self.guarded.epoch_ended()

    return MemsupCallback()


def _nothing() -> None:
    """What is called in place of what is not to be done."""


def _zero(trainer: Any) -> Any:
    return sys.modules["torch"].tensor(0.0, device=trainer.args.device)


def _changes_in_forward(module: Any) -> bool:
    return bool(getattr(module, "track_running_stats", False))
