"""One training step of anybody's program, computed in parts where it does not fit into memory, with the gradient of the whole.

    step = Step(model, optimizers=[optimizer], boundary=…, tell=…)
    loss = step.micro_batch(batch, lambda part: loss_of(model(part["x"]), part["y"]))   # forward and backward

A *window* is all micro-batches of one optimizer step. Parameters change only at its end, so all of it can be done again. Where
memory runs out its gradients are dropped, its generators put back, parts halved, and it is done anew from its first
micro-batch on. Without trouble and without a bound nothing is cut, and what is computed is what would have been computed.

How a batch becomes parts is in `cut_batch.py`, how their losses are weighted in `cut_weighting.py` and asked of the program in
`cut_probe.py`, how large parts are in `cut_plan.py`; what is predicted, in `cut_predict.py`. Belongs to the main thread.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Callable

from memsup import cut_generators
from memsup.cut_batch import Layouts, trimmed
from memsup.cut_events import Begins, Event, RanOut, Refused, Resized
from memsup.cut_plan import Planner
from memsup.cut_predict import Prediction
from memsup.cut_probe import (
    Buffers,
    NotAScalarError,
    Precision,
    Refusal,
    has_experts,
    innermost,
    is_compiled,
    look,
    look_in_training,
    refused_by_type,
    scalar,
    undisturbed,
)
from memsup.cut_ranks import Replicas, TalksToOthersError
from memsup.cut_tree import loaded_torch
from memsup.cut_weighting import Split, Weighting
from memsup.memory import (
    SoftLimit,
    begin_peak,
    end_peak,
    explained,
    give_back,
    is_out_of_memory,
    is_permanent,
    lift,
    was_in_backward,
)

LossCall = Callable[[Any], Any]
"""The loss of some rows, as a tensor of one number."""
ComputeCall = Callable[[Any, float], Any]
"""The loss of some rows; its gradients, times the second argument, are added to those that there are."""

_CLOSE_WHEN_TRIMMED = 1e-5
_MOST_PROBES = 4
"""How often a program is asked at most how its losses are weighted, where the first batches leave that open."""
_WATCHED_MICRO_BATCHES = 3
"""In so many micro-batches it is looked whether the model changes its own buffers."""
_SHOWN_EVERY = 16
"""Where nothing is cut, every so many micro-batches it is looked how large they are."""
_MARKED = 16
"""Of so many gradients it is remembered how they were left."""


def weighted(loss: Any, weight: float) -> Any:
    """The loss times its weight; the same object where that is 1, so that what is not cut is not changed."""
    return loss if weight == 1.0 else loss * weight


class _MicroBatch:
    """What is remembered of a micro-batch until its window ends, to compute it again."""

    def __init__(self, batch: Any, compute: ComputeCall, loss_of: LossCall, layouts: Layouts) -> None:
        self.batch, self.compute, self.loss_of = batch, compute, loss_of
        self._layouts = layouts
        self._is_looked_at = False
        self._split: Split | None = None
        self.shares: list[float] | None = None
        """The shares of its rows in its loss; empty ones where losses add up. It is None where it is computed whole."""
        self.generators = cut_generators.take()
        """The generators when it began, also when it is done again: others draw between two of them, a collator say."""

    @property
    def split(self) -> Split | None:
        """How it can be cut, which is looked at when it has to be known: on a GPU that may mean to wait for it. It is None
        where it cannot be.
        """
        if not self._is_looked_at:
            self._is_looked_at, self._split = True, self._layouts.find(self.batch)
        return self._split

    @property
    def count(self) -> int:
        """The number of its rows; 1 where it cannot be cut."""
        return self.split.count if self.split is not None else 1

    def tokens(self, row: int, rows: int) -> int:
        """Rows × padded length of `rows` rows from `row` on."""
        return self.split.tokens(row, row + rows) if self.split is not None else rows

    @property
    def length(self) -> int:
        """The length to which rows are padded."""
        return self.split.length if self.split is not None else 1


class Step:
    """The steps of one program."""

    def __init__(
        self,
        modules: Any,
        *,
        optimizers: Any = (),
        scaler: Any = None,
        boundary: Callable[[], None] | None = None,
        tell: Callable[[Event], None] | None = None,
        memory_limit_bytes: int | None = None,
        most_tokens: int | None = None,
        fitted_tokens: int | None = None,
        predicted_tokens: int | None = None,
    ) -> None:
        """`modules` compute the loss, a model or several; `optimizers` change their parameters. `scaler` is a GradScaler, whose
        state is dropped with a window. `boundary` is called between two parts, `tell` with each event. `memory_limit_bytes` is
        what this process may hold of the host's memory; None means that nobody knows. `most_tokens` bounds rows × padded length
        of a part from the beginning; None means that nothing does. `fitted_tokens` is a bound that was found to fit, from which
        parts grow again, and `predicted_tokens` that of what is predicted; None means that nobody has looked for one.
        """
        self._modules = _several(modules)
        self._replicas = Replicas(self._modules)
        self._optimizers = [innermost(optimizer) for optimizer in _several(optimizers)]
        self._scaler = scaler
        self._boundary = boundary if boundary is not None else _nothing
        self._tell = tell if tell is not None else _nothing
        self._parameters = self._all_parameters()
        self._is_on_host = all(parameter.device.type == "cpu" for parameter in self._parameters)
        self._limit_bytes = memory_limit_bytes if self._is_on_host else None
        self._soft_limit = SoftLimit(self._limit_bytes)
        in_powers = is_compiled(part for module in self._modules for part in module.modules())
        self._planner = Planner(
            limit_bytes=self._limit_bytes, most_tokens=most_tokens, fitted_tokens=fitted_tokens, in_powers=in_powers
        )
        self._layouts = Layouts()
        self._prediction = Prediction(
            self._modules,
            self._soft_limit,
            self._device(),
            fitted_tokens=predicted_tokens,
            in_powers=in_powers,
            boundary=self._boundary,
            tell=self._tell,
        )
        self._weighting = Weighting()
        self._is_type_known, self._probes, self._counted = False, 0, 0
        self._may_trim: bool | None = None
        """Whether padding may be cut off. It is None before that was tried."""
        self._watched = 0
        self._window: list[_MicroBatch] = []
        self._has_ended = True
        """Whether the next micro-batch is the first of its window for certain."""
        self._given: list[tuple[Any, Any]] = []
        """The gradients that were there when the window began, of whose parameters; None where they were all zero."""
        self._marks: list[tuple[Any, weakref.ref[Any], int]] = []
        self.refusal: Refusal | None = None
        """Why no step is computed in parts. It is None where they may be, or where nobody knows yet."""
        self.is_amid = self.is_cut = False
        """Whether a micro-batch is being computed; whether the last one was computed in parts."""
        self.rows: int | None = None
        """The rows of a micro-batch lately. None before there was one."""
        self.part_rows: int | None = None
        self.part_tokens: int | None = None
        """Rows, and rows × padded length, of the largest part of a micro-batch lately. None before there was one."""
        self._most_begun_tokens = 0
        """Rows × padded length of the largest part that was begun below a limit."""
        for optimizer in self._optimizers:
            if hasattr(optimizer, "register_step_post_hook"):  # torch 2.0 and newer
                optimizer.register_step_post_hook(lambda *_: self.end_window())

    # -- what adapters ask --------------------------------------------------------------------------------------------

    @property
    def weighting(self) -> str | None:
        """What the loss is, for people. It is None where that is not known."""
        kind = self._weighting.kind
        return kind.value if kind is not None else None

    @property
    def most_tokens(self) -> int | None:
        """The bound of rows × padded length of a part. None means that there is none."""
        return self._planner.most_tokens

    @property
    def predict_tokens(self) -> int | None:
        """The same of what is predicted without gradients."""
        return self._prediction.most_tokens

    def refuse(self, refusal: Refusal, detail: str = "") -> None:
        """Has no step computed in parts from now on, for a reason that only the caller knows."""
        if self.refusal is None:
            self.refusal = refusal
            self._tell(Refused(refusal, detail))

    def limit(self, most_tokens: int | None = None, *, halve: bool = False, may_grow: bool = True) -> int | None:
        """Carries out an order about the size of parts (`LimitMicroBatch`), from the next part on; returns the bound. None of
        `most_tokens` lifts it.
        """
        return self._planner.order(most_tokens, halve=halve, may_grow=may_grow, in_use=self.part_tokens)

    def memory_limit(self, limit_bytes: int | None, room_bytes: int | None = None) -> None:
        """Takes in that this process may hold more or less of the host's memory from now on. None means that nobody knows.
        `room_bytes` is what there is of that now, which parts are to fit into; a part that does not is computed all the same.
        None means all of it.
        """
        if self._is_on_host:
            self._limit_bytes = limit_bytes
            self._soft_limit.limit_to(limit_bytes)
            self._planner.limit_to(limit_bytes if room_bytes is None else room_bytes)

    def limit_memory(self, device_bytes: int) -> None:
        """Has torch reserve no more than that of each GPU in use; does nothing where it computes on the CPU."""
        cuda = loaded_torch().cuda
        if self._is_on_host or not cuda.is_initialized():
            return
        for index in {parameter.device.index or 0 for parameter in self._parameters if parameter.device.type == "cuda"}:
            total_bytes = cuda.get_device_properties(index).total_memory
            cuda.set_per_process_memory_fraction(min(1.0, device_bytes / total_bytes), index)
            if cuda.memory_reserved(index) > device_bytes:
                cuda.empty_cache()

    def spare(self) -> contextlib.AbstractContextManager[None]:
        """Lets the work inside, a save say, use the memory that is kept free below the limit."""
        return self._soft_limit.spare()

    # -- training -----------------------------------------------------------------------------------------------------

    def micro_batch(
        self,
        batch: Any,
        loss_of: LossCall,
        *,
        backward: Callable[[Any], Any] | None = None,
        compute: ComputeCall | None = None,
        begins: bool | None = None,
    ) -> Any:
        """Computes the loss of a batch and adds its gradients to those that there are, in parts if need be. Returns the loss,
        without its graph.

        `loss_of(part)` gives the loss of some rows, and `backward(loss)` the gradients; or `compute(part, weight)` does both,
        with the gradients times the weight, and returns the loss without. They may be called again until the window ends.
        `begins` says whether this is the first micro-batch of a window. None means that it is found out: an optimizer has
        stepped, or somebody has changed or dropped the gradients. Raises what they raise; running out of memory only where
        nothing smaller is left. Where several ranks add up their gradients after this micro-batch, they have done so.
        """
        with self._replicas.apart() as is_added_up:
            loss = self._own_micro_batch(batch, loss_of, backward, compute, begins)
        if is_added_up:
            lift()  # what runs out of memory while others wait for it is not done again
            self._replicas.add_up()
            if begins is None:
                self._marks = self._marked()
        return loss

    def _own_micro_batch(
        self,
        batch: Any,
        loss_of: LossCall,
        backward: Callable[[Any], Any] | None,
        compute: ComputeCall | None,
        begins: bool | None,
    ) -> Any:
        """What of a micro-batch this rank has to compute."""
        run = compute if compute is not None else _computing(loss_of, backward)
        if self.refusal is not None:
            return self._whole(batch, run)
        if begins or self._has_ended or (begins is None and self._is_touched()):
            self._begin_window()
        micro = _MicroBatch(batch, run, loss_of, self._layouts)
        if not self._weighting.is_known:
            self._ask(micro.split, loss_of)
        if self.refusal is not None:
            return self._whole(batch, run)
        self._soft_limit.keep()
        self._window.append(micro)
        self.is_amid = True
        try:
            loss = self._computed()
        except BaseException:
            self._window.pop()  # whoever catches that goes on without it
            raise
        finally:
            self.is_amid = False
        if begins is None:
            self._marks = self._marked()
        return loss

    def predict(self, batch: Any, call: Callable[[Any], Any]) -> Any:
        """What `call` gives for a batch without gradients, in parts if need be: see `Prediction.of`."""
        with self._replicas.apart():
            return self._prediction.of(batch, call)

    def end_window(self) -> None:
        """The optimizer has stepped, or what was computed is given up: forgets what is remembered of the window."""
        self._has_ended = True
        if self.is_amid:  # a loss that steps something by itself
            return
        if self._window:
            moved = self._planner.window_done()
            if moved is not None:
                self._tell(Resized(moved.before, moved.after, moved.cause))
        self._window.clear()
        self._given.clear()
        self._marks.clear()

    def _whole(self, batch: Any, run: ComputeCall) -> Any:
        """Computes what must not be cut."""
        assert self.refusal is not None
        self.is_cut = False
        try:
            return run(batch, 1.0)
        except Exception as error:
            if is_out_of_memory(error):
                explained(error, self.refusal.sentence)
            raise

    def _computed(self) -> Any:
        """Computes the newest micro-batch, and where memory runs out the whole window; returns the loss of the newest."""
        index, row = len(self._window) - 1, 0
        watch = Buffers(self._modules) if self._watched < _WATCHED_MICRO_BATCHES else None
        loss: Any = None
        is_again = False
        while True:
            micro = self._window[index]
            rows = self._next(micro, row)
            if row == 0:
                self.is_cut, loss = rows is not None, None
                if is_again:
                    cut_generators.put_back(micro.generators)
            part_loss = again = None
            try:
                part_loss = self._part(micro, row, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                again = self._after_exhaustion(error, micro, row, rows, watch)
                if again is None:
                    raise
            # Out here the exception is gone, and with it the frames and the graph that it kept alive.
            if again is not None:
                self._drop()
                self._tell(again)
                index, row, is_again = 0, 0, True
                continue
            loss = part_loss if rows is None else _added(loss, part_loss)
            row = row + rows if rows is not None else 0
            if rows is None or row == micro.count:
                index, row = index + 1, 0
                if index == len(self._window):
                    break
            self._boundary()
        if watch is not None:
            self._watched += 1
            if watch.have_changed():
                self.refuse(Refusal.CHANGES_ITSELF)
        return loss

    def _next(self, micro: _MicroBatch, row: int) -> int | None:
        """How many rows to compute next. It is None where the batch is computed whole."""
        self._counted += 1
        if row == 0:
            micro.shares = None
            is_wanted = self._planner.is_bounded or self._counted % _SHOWN_EVERY == 1
            if self.refusal is not None or not is_wanted or micro.split is None:
                return None
            rows = self._planner.rows(micro.split, 0)
            self.rows, self.part_rows, self.part_tokens = micro.count, rows, micro.tokens(0, rows)
            if self._limit_bytes is not None and self.part_tokens > self._most_begun_tokens:
                self._most_begun_tokens = self.part_tokens
                self._tell(Begins(micro.count, rows, self.part_tokens))
            if rows == micro.count:
                return None
            micro.shares = self._shares(micro.split, micro.loss_of)
        if micro.shares is None or micro.split is None:
            return None
        return self._planner.rows(micro.split, row)

    def _shares(self, split: Split, loss_of: LossCall) -> list[float] | None:
        """The shares of the rows of a batch; empty ones where losses add up. It is None where it must not be cut."""
        shares = self._weighting.shares(split)
        while shares is None and self.refusal is None and self._probes < _MOST_PROBES:
            self._ask(split, loss_of)
            shares = self._weighting.shares(split)
        return self._weighting.shares(split, at_best=True) if shares is None and self.refusal is None else shares

    def _part(self, micro: _MicroBatch, row: int, rows: int | None) -> Any:
        """Computes some rows of a micro-batch, or all of them where `rows` is None; returns their share of its loss."""
        if rows is None or micro.split is None or micro.shares is None:
            return self._measured(micro, row, None, micro.batch, 1.0)
        weight = sum(micro.shares[row : row + rows]) if micro.shares else 1.0
        if weight == 0.0:  # a mean over nothing is no number
            return 0.0
        part = self._without_padding(micro.split.part(row, row + rows), micro.loss_of)
        return self._measured(micro, row, rows, part, weight) * weight

    def _measured(self, micro: _MicroBatch, row: int, rows: int | None, part: Any, weight: float) -> Any:
        """Computes a part, and measures what it takes where memory is limited."""
        before_bytes = _peak_begun() if self._planner.wants_peak() else None
        loss = micro.compute(part, weight)
        if before_bytes is not None:
            with contextlib.suppress(OSError):
                tokens = micro.tokens(row, rows if rows is not None else micro.count)
                self._planner.observe(tokens, micro.length, before_bytes, end_peak())
        return loss

    # -- what memory asks for -----------------------------------------------------------------------------------------

    def _after_exhaustion(
        self, error: Exception, micro: _MicroBatch, row: int, rows: int | None, watch: Buffers | None
    ) -> RanOut | None:
        """What the window is done again with. It is None where the error is to be raised; then it has a sentence more."""
        where = "backward" if was_in_backward(error) else "forward"
        rows = rows if rows is not None else micro.count
        tokens = micro.tokens(row, rows)
        if watch is not None and watch.have_changed():
            self.refuse(Refusal.CHANGES_ITSELF)
        event = RanOut(where, self._device(), tokens, None, str(error)[:2000])
        why = self._why_not_again(error, rows)
        if why is not None:
            explained(error, why)
            self._tell(event)
            return None
        return event._replace(tokens_after=self._planner.out_of_memory(tokens))

    def _why_not_again(self, error: Exception, rows: int) -> str | None:
        """Why a step that ran out of memory cannot be done again in smaller parts, as a sentence. None means that it can be."""
        if is_permanent(str(error)):
            return "A process does not get over running out of memory for the processor's code, but a new one goes on."
        if self.refusal is not None:
            return self.refusal.sentence
        if rows < 2:
            return "One row does not fit into memory by itself: shorter rows, a smaller model or more memory would help."
        if not self._weighting.is_known:
            return "Batches cannot be computed in parts yet, since it is not known how their losses are weighted."
        return None

    def _drop(self) -> None:
        """Drops all that was computed of the window."""
        for parameter in self._all_parameters():
            parameter.grad = None
        states = getattr(self._scaler, "_per_optimizer_states", None)
        if states:
            states.clear()
        give_back()
        self._soft_limit.renew()
        with self._soft_limit.spare():
            self._give_back()

    def _give_back(self) -> None:
        for parameter, gradient in self._given:
            parameter.grad = gradient.clone() if gradient is not None else loaded_torch().zeros_like(parameter)

    # -- windows ------------------------------------------------------------------------------------------------------

    def _begin_window(self) -> None:
        self.end_window()
        self._has_ended = False
        present = [parameter for parameter in self._parameters if parameter.grad is not None]
        if present:
            are_zero = _are_zero([parameter.grad for parameter in present])
            self._given = [(parameter, None if are_zero else parameter.grad.clone()) for parameter in present]

    def _is_touched(self) -> bool:
        """Whether gradients are not as the last micro-batch left them."""
        now = [(parameter.grad, mark(), version) for parameter, mark, version in self._marks]
        return not now or any(gradient is not left or _version_of(gradient) != version for gradient, left, version in now)

    def _marked(self) -> list[tuple[Any, weakref.ref[Any], int]]:
        few = self._parameters[:: max(1, len(self._parameters) // _MARKED)]
        return _marks_of(few) or _marks_of(self._parameters)

    def _all_parameters(self) -> list[Any]:
        found = {id(parameter): parameter for module in self._modules for parameter in module.parameters()}
        for optimizer in self._optimizers:
            for group in getattr(optimizer, "param_groups", ()):
                found.update((id(parameter), parameter) for parameter in group["params"])
        return list(found.values())

    def _device(self) -> str:
        return str(self._parameters[0].device) if self._parameters else "cpu"

    # -- what is asked of the program ---------------------------------------------------------------------------------

    def _ask(self, split: Split | None, loss_of: LossCall) -> None:
        """Finds out how losses are weighted, or why they cannot be. Leaves it open where this batch does not say."""
        refusal = refused_by_type(self._modules, self._optimizers, self._replicas) if not self._is_type_known else None
        self._is_type_known = True
        if refusal is None and split is None:
            refusal = Refusal.NO_ROWS
        if refusal is not None:
            self.refuse(refusal)
            return
        assert split is not None
        if split.count < 2 or self._probes >= _MOST_PROBES:
            return
        self._probes += 1
        precision, detail = Precision(), ""
        try:
            with precision.of(self._modules):
                seen = look(split, lambda part: [precision.noted(scalar(loss_of(part)))], self._modules)
        except NotAScalarError as error:
            refusal, detail = Refusal.NOT_A_SCALAR, str(error)
        except TalksToOthersError as error:
            refusal, detail = Refusal.SEVERAL_RANKS, str(error)
        except Exception as error:
            refusal, detail = Refusal.FAILED_IN_PROBE, f"{type(error).__name__}: {error}"[:2000]
        else:
            for one in seen[0] if seen else []:
                self._weighting.learn(one, close=precision.close)
            if self._weighting.is_refuted:
                refusal = self._reason(split, loss_of)
            elif self._probes == 1:
                refusal = self._refused_in_training(split, loss_of)
        if refusal is not None:
            self.refuse(refusal, detail)

    def _reason(self, split: Split, loss_of: LossCall) -> Refusal:
        """Why no weighting is right: the loss of a row among itself is nothing where rows are told apart from each other."""
        if has_experts(self._modules):
            return Refusal.AUXILIARY_LOSS
        with contextlib.suppress(Exception), undisturbed(self._modules):
            alone, two = float(scalar(loss_of(split.part(0, 1)))), float(scalar(loss_of(split.part(0, 2))))
            if abs(alone) < 1e-6 < abs(two):
                return Refusal.IN_BATCH
        return Refusal.UNKNOWN

    def _refused_in_training(self, split: Split, loss_of: LossCall) -> Refusal | None:
        """Why a loss that can be weighted in evaluation cannot be in training. It is None where it can, or that is not seen."""
        precision, weighting = Precision(), Weighting()
        with precision.of(self._modules):
            seen = look_in_training(split, lambda part: [precision.noted(scalar(loss_of(part)))], self._modules)
        for one in seen[0] if seen else []:
            weighting.learn(one, close=precision.close)
        if not weighting.is_refuted:
            return None
        return Refusal.AUXILIARY_LOSS if has_experts(self._modules) else Refusal.UNKNOWN

    def _without_padding(self, part: Any, loss_of: LossCall) -> Any:
        """The part without its padding, where the loss is the same without: that is tried once."""
        if self._may_trim is False:
            return part
        shorter = trimmed(part)
        if shorter is None:
            return part
        if self._may_trim is None:
            try:
                with undisturbed(self._modules):
                    with_it, without = float(scalar(loss_of(part))), float(scalar(loss_of(shorter)))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._may_trim = False
            else:
                self._may_trim = abs(with_it - without) <= _CLOSE_WHEN_TRIMMED * abs(with_it)
        return shorter if self._may_trim else part


def _nothing(*_: Any) -> None:
    """What is called where nobody wants to be."""


def _peak_begun() -> int | None:
    """What is held at the beginning of a part. It is None where the kernel does not measure peaks."""
    try:
        return begin_peak()
    except OSError:
        return None


def _several(some: Any) -> list[Any]:
    return list(some) if isinstance(some, (list, tuple, set, frozenset)) else [some]


def _computing(loss_of: LossCall, backward: Callable[[Any], Any] | None) -> ComputeCall:
    def compute(part: Any, weight: float) -> Any:
        loss = loss_of(part)
        if backward is not None:
            backward(weighted(loss, weight))
        else:
            weighted(loss, weight).backward()
        return loss.detach() if hasattr(loss, "detach") else loss

    return compute


def _added(total: Any, loss: Any) -> Any:
    return loss if total is None else total + loss


def _are_zero(gradients: list[Any]) -> bool:
    """Whether all of them are nothing but zeros, as `zero_grad(set_to_none=False)` leaves them."""
    torch = loaded_torch()
    try:
        most = torch.stack([norm.to("cpu", torch.float32) for norm in torch._foreach_norm(gradients, float("inf"))]).max()
    except (AttributeError, RuntimeError, NotImplementedError):  # an old torch, or sparse ones
        return False
    return float(most) == 0.0


def _version_of(gradient: Any) -> Any:
    """How often it was changed in place. None where there is none."""
    return None if gradient is None else gradient._version


def _marks_of(parameters: list[Any]) -> list[tuple[Any, weakref.ref[Any], int]]:
    """How the gradients of these are now, of those that have one; the marks keep none of them alive."""
    have = [(parameter, parameter.grad) for parameter in parameters]
    return [(parameter, weakref.ref(gradient), gradient._version) for parameter, gradient in have if gradient is not None]
