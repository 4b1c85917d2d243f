"""A step that is cut has the gradient of the whole, and a step in which memory ran out is done as if it had not."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from memsup.cut_events import RanOut, Refused
from memsup.cut_probe import Refusal
from memsup.step import Step, weighted

WORDS, LENGTH = 40, 12
EXACT = 1e-6
"""The relative error of a gradient in float32 up to which it is the same."""


class Task(NamedTuple):
    """A model, a batch, and the loss of some of its rows."""

    model: nn.Module
    batch: Any
    loss_of: Callable[[Any], torch.Tensor]


class Reader(nn.Module):
    """Reads tokens without looking at what is padded."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.mix = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.mix(self.embed(tokens))[0])


def texts(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded rows of unequal lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH + 1, (rows,), generator=draw)
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, WORDS, (rows, LENGTH), generator=draw) * mask, "attention_mask": mask}


def labelled(batch: dict[str, torch.Tensor], classes: int = WORDS, share: float = 1.0) -> dict[str, torch.Tensor]:
    """Labels for each token, or some of them; what is padded has none."""
    draw = torch.Generator().manual_seed(7)
    labels = torch.randint(0, classes, batch["input_ids"].shape, generator=draw)
    no_label = (batch["attention_mask"] == 0) | (torch.rand(labels.shape, generator=draw) > share)
    return {**batch, "labels": labels.masked_fill(no_label, -100)}


def of_tokens(logits: torch.Tensor, labels: torch.Tensor, **how: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), **how)


def language_model(rows: int, *, of_all: bool) -> Task:
    """Losses as Trainer has them: a sum over the labels of the whole, or a mean over those of a part."""
    model, batch = Reader(WORDS), texts(rows)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    items = int((batch["labels"][:, 1:] != -100).sum())

    def loss_of(part: Any) -> torch.Tensor:
        logits, labels = model(part["input_ids"])[:, :-1], part["labels"][:, 1:]
        return of_tokens(logits, labels, reduction="sum") / items if of_all else of_tokens(logits, labels)

    return Task(model, batch, loss_of)


def tokens(rows: int, *, share: float, smoothing: float = 0.0) -> Task:
    model, batch = Reader(5), labelled(texts(rows), 5, share)
    return Task(model, batch, lambda part: of_tokens(model(part["input_ids"]), part["labels"], label_smoothing=smoothing))


def spans(rows: int) -> Task:
    """As question answering: where something begins, over all positions, padded ones too, so padding is not cut off."""
    model, batch = Reader(2), texts(rows)
    batch |= {"start_positions": torch.arange(rows) % 3, "end_positions": torch.arange(rows) % 3}

    def loss_of(part: Any) -> torch.Tensor:
        begin, end = model(part["input_ids"]).unbind(-1)
        entropy = nn.functional.cross_entropy
        return (entropy(begin, part["start_positions"]) + entropy(end, part["end_positions"])) / 2

    return Task(model, batch, loss_of)


def masked_mean(rows: int) -> Task:
    """A mean over what a mask of the batch's own shows, as in preference learning."""
    model, batch = Reader(1), texts(rows)
    return Task(
        model,
        batch,
        lambda part: (model(part["input_ids"])[..., 0].square() * part["attention_mask"]).sum() / part["attention_mask"].sum(),
    )


@dataclass
class Pictures:
    pixels: torch.Tensor
    labels: torch.Tensor
    scale: torch.Tensor  # has no rows
    name: str = "pictures"


def pictures(rows: int) -> Task:
    draw = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    batch = Pictures(
        torch.randn(rows, 3, 8, 8, generator=draw), torch.randint(0, 4, (rows,), generator=draw), torch.tensor([2.0])
    )
    return Task(model, batch, lambda part: nn.functional.cross_entropy(model(part.pixels) * part.scale, part.labels))


def values(rows: int) -> Task:
    """A regression on a tuple, as a loop of one's own has it."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    draw = torch.Generator().manual_seed(4)
    batch = (torch.randn(rows, 6, generator=draw), [torch.randn(rows, 1, generator=draw), None])
    return Task(model, batch, lambda part: nn.functional.mse_loss(model(part[0]), part[1][0]))


def packed(rows: int) -> Task:
    """Documents behind one another in one row, which see nothing of each other; `rows` of them."""
    model = Reader(WORDS)
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, LENGTH, (rows,), generator=draw).tolist()
    ids = torch.randint(1, WORDS, (1, sum(lengths)), generator=draw)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    batch = {
        "input_ids": ids,
        "position_ids": positions,
        "labels": ids.masked_fill(positions == 0, -100),
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }

    def loss_of(part: Any) -> torch.Tensor:
        bounds = part["cu_seq_lens_q"].tolist()
        assert bounds[-1] == part["input_ids"].shape[1]
        assert part["max_length_q"] == max(end - begin for begin, end in itertools.pairwise(bounds))
        logits = torch.cat([model(part["input_ids"][:, a:b]) for a, b in itertools.pairwise(bounds)], 1)
        return of_tokens(logits[:, :-1], part["labels"][:, 1:])

    return Task(model, batch, loss_of)


TASKS: dict[str, Callable[[int], Task]] = {
    "a sum over the labels of the whole": functools.partial(language_model, of_all=True),
    "a mean over shifted labels": functools.partial(language_model, of_all=False),
    "a mean over labels": functools.partial(tokens, share=1.0),
    "few labels, and rows without any": functools.partial(tokens, share=0.15),
    "labels that are smoothed": functools.partial(tokens, share=0.5, smoothing=0.1),
    "spans": spans,
    "what a mask shows": masked_mean,
    "pictures in a dataclass": pictures,
    "a regression in a tuple": values,
    "documents in a packed row": packed,
}


def gradient(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def relative_error(gradient: list[torch.Tensor], whole: list[torch.Tensor]) -> float:
    assert len(gradient) == len(whole)
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(gradient, whole, strict=True))
    return float((apart / sum(float(b.double().square().sum()) for b in whole)) ** 0.5)


def whole_gradient(task: Task) -> list[torch.Tensor]:
    task.loss_of(task.batch).backward()
    found = gradient(task.model)
    task.model.zero_grad()
    return found


@pytest.fixture(autouse=True)
def _the_same_weights_each_time() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=6)
@given(rows=st.integers(2, 17), bound=st.floats(0.01, 0.99))
def test_any_cut_has_the_gradient_of_the_whole(name: str, rows: int, bound: float) -> None:
    task = TASKS[name](rows)
    whole = whole_gradient(task)
    told: list[Any] = []
    step = Step(task.model, tell=told.append, most_tokens=max(1, int(rows * LENGTH * bound / 2)))
    loss = step.micro_batch(task.batch, task.loss_of)
    assert not told
    assert relative_error(gradient(task.model), whole) < EXACT
    assert float(loss) == pytest.approx(float(task.loss_of(task.batch).detach()), rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_it_is_cut_where_it_is_bounded_and_else_is_what_it_was(name: str) -> None:
    task = TASKS[name](8)
    whole = whole_gradient(task)
    step = Step(task.model)
    step.micro_batch(task.batch, task.loss_of)
    assert not step.is_cut
    assert all(map(torch.equal, gradient(task.model), whole))
    assert step.limit(halve=True) is not None
    task.model.zero_grad()
    step.micro_batch(task.batch, task.loss_of)
    assert step.is_cut
    assert step.refusal is None
    assert relative_error(gradient(task.model), whole) < EXACT


# --------------------------------------------------------------------------------------------------------------------
# What is refused


class Contrast(nn.Module):
    """Tells the rows of a batch apart from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.left(rows) @ self.right(rows).T, torch.arange(len(rows)))


class Experts(nn.Module):
    """A mixture whose routing has a loss of its own, over all of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 1) for _ in range(4))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        chances = self.router(rows).softmax(-1)
        outputs = torch.cat([expert(rows) for expert in self.experts], -1)
        used = nn.functional.one_hot(chances.argmax(-1), 4).float().mean(0)
        return (outputs * chances).sum(-1).square().mean() + 0.05 * 4 * (used * chances.mean(0)).sum()


class OnlyInTraining(nn.Module):
    """Says so in training alone, behind dropout of each kind."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.drop = what, nn.Dropout(0.5)
        self.layer = MoELinear(6, 6) if what == "experts" else nn.Linear(6, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.layer(rows))
        heads = hidden[:, None, None]
        dropped = 0.5 if self.training else 0.0
        hidden = nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropped)[:, 0, 0]
        if self.training and self.what == "statistics":
            hidden = nn.functional.batch_norm(hidden, None, None, training=True)
        loss = self.out(hidden).square().mean()
        return loss + hidden.mean(0).square().sum() if self.training and self.what == "experts" else loss


class MoELinear(nn.Linear):
    """Is called like the layers of a mixture of experts."""


class Drifting(nn.Module):
    """Keeps a mean of what it saw."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.mul_(0.9).add_(rows.detach().mean(0))
        return self.layer(rows).square().mean()


def rows_of_six(rows: int = 9) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def refused(model: nn.Module, batch: Any, loss_of: Callable[[Any], Any], **how: Any) -> Step:
    """A step of what is to be refused, cut as far as it would be."""
    told: list[Any] = []
    step = Step(model, tell=told.append, most_tokens=3, **how)
    for _ in range(3):
        step.micro_batch(batch, loss_of)
        step.end_window()
    assert [type(event) for event in told] == [Refused]  # said once
    assert told[0].refusal is step.refusal
    return step


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Contrast(), Refusal.IN_BATCH),
        (Experts(), Refusal.AUXILIARY_LOSS),
        (nn.DataParallel(nn.Linear(6, 1)), Refusal.DATA_PARALLEL),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), Refusal.BATCH_STATISTICS),
        (nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4).cpu(), nn.Linear(4, 1)).eval(), Refusal.BATCH_STATISTICS),
    ],
    ids=lambda value: value.name if isinstance(value, Refusal) else type(value).__name__,
)
def test_what_no_weighting_makes_right_is_never_cut(model: nn.Module, why: Refusal) -> None:
    batch = rows_of_six()
    model(batch).square().mean().backward()
    whole = gradient(model)
    model.zero_grad()
    step = Step(model, most_tokens=3)
    step.micro_batch(batch, lambda part: model(part).square().mean() if not isinstance(model, Contrast) else model(part))
    assert (step.refusal, step.is_cut) == (why, False)
    assert isinstance(model, Contrast) or all(map(torch.equal, gradient(model), whole))
    assert why.value in why.sentence


def test_statistics_that_are_frozen_are_none() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].eval()
    task = Task(model, rows_of_six(), lambda part: model(part).square().mean())
    whole = whole_gradient(task)
    step = Step(model, most_tokens=3)
    step.micro_batch(task.batch, task.loss_of)
    assert step.is_cut
    assert relative_error(gradient(model), whole) < EXACT


@pytest.mark.parametrize(
    ("what", "why"), [("experts", Refusal.AUXILIARY_LOSS), ("statistics", Refusal.UNKNOWN), ("nothing", None)]
)
def test_what_only_training_has_is_seen_behind_dropout(what: str, why: Refusal | None) -> None:
    for model in (OnlyInTraining(what), OnlyInTraining(what).eval()):  # as Trainer has it before its first step

        def compute(part: torch.Tensor, weight: float, model: nn.Module = model) -> torch.Tensor:
            model.train()
            loss = model(part)
            weighted(loss, weight).backward()
            return loss.detach()

        step = Step(model, most_tokens=12)
        step.micro_batch(rows_of_six(), model, compute=compute)
        assert (step.refusal, step.is_cut) == (why, why is None)


def test_a_model_that_changes_itself_is_refused_once_that_is_seen() -> None:
    model = Drifting()
    assert refused(model, rows_of_six(), model).refusal is Refusal.CHANGES_ITSELF


def test_a_loss_that_is_no_number_or_cannot_be_computed_for_some_rows_is_left_alone() -> None:
    model = nn.Linear(6, 1)
    batch = rows_of_six()

    def many(part: torch.Tensor) -> Any:
        return model(part).square().mean(0).repeat(2)

    assert refused_without_backward(model, batch, many).refusal is Refusal.NOT_A_SCALAR

    def only_whole(part: torch.Tensor) -> torch.Tensor:
        if len(part) != len(batch):
            raise ValueError("that is no batch")
        return model(part).square().mean()

    assert refused(model, batch, only_whole).refusal is Refusal.FAILED_IN_PROBE
    assert refused(model, {"graph": object()}, lambda _: model(batch).square().mean()).refusal is Refusal.NO_ROWS


def refused_without_backward(model: nn.Module, batch: Any, loss_of: Callable[[Any], Any]) -> Step:
    step = Step(model, most_tokens=3)
    step.micro_batch(batch, loss_of, backward=lambda loss: loss.sum().backward())
    return step


def test_an_optimizer_that_steps_in_backward_is_refused() -> None:
    model = nn.Linear(6, 1)
    model.weight.register_post_accumulate_grad_hook(lambda weight: None)
    assert refused(model, rows_of_six(), lambda part: model(part).square().mean()).refusal is Refusal.STEPS_IN_BACKWARD


def test_what_only_the_caller_knows_is_refused_before_anything_is_tried() -> None:
    model, calls = nn.Linear(6, 1), []
    step = Step(model, most_tokens=3)
    step.refuse(Refusal.DRAWN_COMPLETIONS)
    step.micro_batch(rows_of_six(), lambda part: calls.append(len(part)) or model(part).square().mean())
    assert calls == [9]


# --------------------------------------------------------------------------------------------------------------------
# The probe


class Noisy(nn.Module):
    """Drops, counts and keeps, in each mode."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 1), nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.calls += 1
            random.random(), np.random.rand(), torch.rand(1)
        return self.frozen(self.drop(self.layer(rows))).square().mean()


def test_the_probe_leaves_modes_buffers_and_generators_as_they_were() -> None:
    model, batch = Noisy(), rows_of_six()
    alone = copy.deepcopy(model)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    alone(batch).backward()
    after = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    Step(model).micro_batch(batch, model)
    assert all(map(torch.equal, gradient(model), gradient(alone)))
    assert (torch.rand(1), random.random(), np.random.rand()) == after
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)
    assert float(model.calls) == 0


def test_a_batch_in_which_weightings_differ_tells_them_apart_where_the_first_did_not() -> None:
    model = Reader(5)
    full = {"input_ids": torch.ones(8, LENGTH, dtype=torch.long), "labels": torch.ones(8, LENGTH, dtype=torch.long)}
    later = labelled(texts(16), 5, 0.3)
    del later["attention_mask"]

    def loss_of(part: Any) -> torch.Tensor:  # a mean over rows of means over labels
        each = nn.functional.cross_entropy(model(part["input_ids"]).transpose(1, 2), part["labels"], reduction="none")
        return (each.sum(1) / (part["labels"] != -100).sum(1).clamp(min=1)).mean()

    step = Step(model, most_tokens=4 * LENGTH)
    step.micro_batch(full, loss_of)
    model.zero_grad()
    whole = whole_gradient(Task(model, later, loss_of))
    step.micro_batch(later, loss_of)
    assert step.is_cut
    assert step.weighting == "a mean over rows"
    assert relative_error(gradient(model), whole) < EXACT


# --------------------------------------------------------------------------------------------------------------------
# Running out of memory

TOO_MUCH_BYTES = 1 << 50


class _HungryBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)
        return gradient


class Hungry(nn.Module):
    """Asks torch for more than there is where it is given more than `most` rows; the error is the allocator's own."""

    def __init__(self, most: int, where: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.most, self.where = most, where
        self.layer, self.out, self.drop = nn.Linear(6, 6), nn.Linear(6, 1), nn.Dropout(dropout)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.layer(rows).tanh())
        if len(rows) > self.most and torch.is_grad_enabled() and self.where == "forward":
            torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)
        if len(rows) > self.most and torch.is_grad_enabled() and self.where == "backward":
            hidden = _HungryBackward.apply(hidden)
        return self.out(hidden)


def trained(step_of: Callable[[nn.Module, torch.optim.Optimizer], Callable[..., Any]], model: Hungry, **how: Any) -> nn.Module:
    """A model after some steps of two micro-batches each, whose batches are drawn in between, as a collator would."""
    torch.manual_seed(11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    compute = step_of(model, optimizer)
    for _ in range(how.get("steps", 4)):
        for _ in range(2):
            compute(torch.randn(9, 6))
        optimizer.step()
        optimizer.zero_grad(set_to_none=how.get("set_to_none", True))
    return model


def undisturbed_steps(model: nn.Module, _optimizer: Any) -> Callable[..., Any]:
    return lambda batch: model(batch).square().mean().backward()


def apart(model: nn.Module, other: nn.Module) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("is_told", [True, False], ids=["with the optimizer", "without it"])
@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zeros"])
def test_a_window_in_which_memory_ran_out_is_done_again(where: str, is_told: bool, set_to_none: bool) -> None:
    alone = trained(undisturbed_steps, _hungry(100, where), set_to_none=set_to_none)
    drawn = torch.rand(1)
    told: list[Any] = []

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
        step = Step(model, optimizers=optimizer if is_told else (), tell=told.append)
        return lambda batch: step.micro_batch(batch, lambda part: model(part).square().mean())

    model = trained(steps, _hungry(2, where), set_to_none=set_to_none)
    assert [(event.where, event.tokens_before, event.tokens_after) for event in told] == [(where, 54, 27), (where, 18, 9)]
    assert apart(model, alone) < 1e-6
    assert torch.rand(1) == drawn


def _hungry(most: int, where: str) -> Hungry:
    torch.manual_seed(0)
    return Hungry(most, where)


def test_gradients_that_were_there_when_the_window_began_are_there_when_it_is_done_again() -> None:
    """Which somebody has computed before; and it runs out only in the second micro-batch."""
    model, batches = _hungry(100, "backward"), [rows_of_six(4), rows_of_six(9)]

    def others(model: nn.Module) -> None:
        sum(parameter.sum() for parameter in model.parameters()).backward()

    others(model)
    for batch in batches:
        model(batch).square().mean().backward()
    whole, other = gradient(model), _hungry(4, "backward")
    others(other)
    told: list[Any] = []
    step = Step(other, tell=told.append)
    for batch in batches:
        step.micro_batch(batch, lambda part: other(part).square().mean())
    assert [type(event) for event in told] == [RanOut]
    assert relative_error(gradient(other), whole) < EXACT


def test_one_row_that_does_not_fit_raises_what_was_raised_with_a_sentence() -> None:
    model = _hungry(0, "forward")
    told: list[Any] = []
    step = Step(model, tell=told.append)
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        step.micro_batch(rows_of_six(), lambda part: model(part).square().mean())
    assert "One row does not fit" in raised.value.__notes__[0]
    assert [event.tokens_after for event in told] == [27, 9, None]


def test_what_must_not_be_cut_raises_what_was_raised_with_the_reason() -> None:
    model = nn.Sequential(_hungry(3, "forward"), nn.BatchNorm1d(1))
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        Step(model).micro_batch(rows_of_six(), lambda part: model(part).square().mean())
    assert Refusal.BATCH_STATISTICS.sentence in raised.value.__notes__[0]


def test_another_error_is_raised_as_it_is() -> None:
    model = nn.Linear(6, 1)
    step = Step(model)
    with pytest.raises(ZeroDivisionError):
        step.micro_batch(rows_of_six(), lambda part: model(part).mean(), compute=lambda part, weight: 1 / 0)
    assert step.is_amid is False


def test_orders_are_carried_out_between_parts_and_what_they_raise_goes_through() -> None:
    class LeaveError(Exception):
        pass

    model, batch = nn.Linear(6, 1), rows_of_six(8)
    seen: list[int] = []

    def boundary() -> None:
        seen.append(step.part_rows or 0)
        if len(seen) == 1:
            step.limit(6)
        if len(seen) == 4:
            raise LeaveError

    step = Step(model, boundary=boundary, most_tokens=24)
    with pytest.raises(LeaveError):
        step.micro_batch(batch, lambda part: model(part).square().mean())
    assert len(seen) == 4  # after four rows, then after each one


def test_trainer_s_way_to_compute_is_given_the_weight() -> None:
    task = TASKS["a mean over labels"](9)
    whole = whole_gradient(task)
    weights: list[float] = []

    def compute(part: Any, weight: float) -> torch.Tensor:
        weights.append(weight)
        loss = task.loss_of(part)
        weighted(loss, weight).backward()
        return loss.detach()

    step = Step(task.model, most_tokens=4 * LENGTH)
    step.micro_batch(task.batch, task.loss_of, compute=compute)
    assert len(weights) == 3
    assert sum(weights) == pytest.approx(1.0)
    assert relative_error(gradient(task.model), whole) < EXACT


# --------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_of_no_rows_nothing_is_predicted_as_ever() -> None:
    step = Step(nn.Linear(6, 1))
    step.limit(2)
    for batch in (torch.zeros(0, 6), torch.zeros(3, 6)):
        assert step.predict(batch, nn.Linear(6, 2)).shape == (len(batch), 2)


def test_what_is_predicted_in_parts_is_joined() -> None:
    torch.manual_seed(2)
    model, batch = Hungry(100, "forward").eval(), {"rows": rows_of_six(9), "labels": torch.randn(9, 1)}
    names = [f"row {row}" for row in range(9)]
    sizes: list[int] = []

    def call(part: Any) -> Any:
        sizes.append(len(part["rows"]))
        if len(part["rows"]) > 3:
            torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)
        logits = model(part["rows"])
        lengths = torch.ones(len(part["rows"]), 2 + len(sizes) % 2)
        return {
            "loss": nn.functional.mse_loss(logits, part["labels"]),
            "logits": (logits, lengths),
            "array": logits.numpy(),
            "names": part["names"],
            "cache": None,
        }

    told: list[Any] = []
    step = Step(model, tell=told.append)
    with torch.no_grad():
        output = step.predict({**batch, "names": names}, call)
        logits = model(batch["rows"])
    assert [(event.where, event.tokens_after) for event in told] == [("evaluate", 27)]
    assert torch.allclose(output["logits"][0], logits)
    assert np.allclose(output["array"], logits.numpy())
    assert output["names"] == names
    assert float(output["loss"]) == pytest.approx(float(nn.functional.mse_loss(logits, batch["labels"])), rel=1e-5)
    assert output["logits"][1].shape == (9, 3)
    assert (output["logits"][1] == -100).sum() == 6  # as Trainer fills up, where a part was shorter


def test_what_cannot_be_joined_raises_what_was_raised() -> None:
    def call(part: Any) -> Any:
        if len(part) > 4:
            torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)
        return {"rows": part, "count": len(part)}

    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        Step(nn.Linear(6, 1)).predict(rows_of_six(9), call)
    assert "may be that of the rows" in raised.value.__notes__[0]


# --------------------------------------------------------------------------------------------------------------------
# In other company


def test_two_hundred_steps_end_where_they_would_have() -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
        step = Step(model, optimizers=optimizer)
        return lambda batch: step.micro_batch(batch, lambda part: model(part).square().mean())

    alone = trained(undisturbed_steps, _hungry(100, "forward"), steps=200)
    assert apart(trained(steps, _hungry(4, "forward"), steps=200), alone) < 1e-5


@pytest.mark.parametrize("name", TASKS)
def test_computed_in_bfloat16_the_weighting_is_the_same(name: str) -> None:
    task = TASKS[name](12)

    def loss_of(part: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return task.loss_of(part)

    whole = whole_gradient(task._replace(loss_of=loss_of))
    step = Step(task.model)
    step.micro_batch(task.batch, loss_of)
    task.model.zero_grad()
    step.limit(halve=True)
    step.micro_batch(task.batch, loss_of)
    assert step.refusal is None
    assert step.is_cut
    assert relative_error(gradient(task.model), whole) < 0.02


def test_activations_computed_twice_are_of_the_part() -> None:
    task = TASKS["a mean over labels"](9)
    whole = whole_gradient(task)
    inner = task.model.embed

    def loss_of(part: Any) -> torch.Tensor:
        mixed = torch.utils.checkpoint.checkpoint(
            lambda ids: task.model.mix(inner(ids))[0], part["input_ids"], use_reentrant=False
        )
        return of_tokens(task.model.out(mixed), part["labels"])

    step = Step(task.model, most_tokens=4 * LENGTH)
    step.micro_batch(task.batch, loss_of)
    assert step.is_cut
    assert relative_error(gradient(task.model), whole) < EXACT


def test_a_scaled_loss_keeps_its_scale_and_a_window_that_is_dropped_takes_what_it_found_along() -> None:
    alone, model, batch = _hungry(100, "backward"), _hungry(3, "backward"), rows_of_six()

    def steps(model: nn.Module, *, in_parts: bool) -> None:
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        step = Step(model, optimizers=optimizer, scaler=scaler)

        def backward(loss: torch.Tensor) -> None:
            scaler.scale(loss).backward()

        if in_parts:
            step.micro_batch(batch, lambda part: model(part).square().mean(), backward=backward)
        else:
            backward(model(batch).square().mean())
        scaler.step(optimizer)
        scaler.update()

    steps(alone, in_parts=False)
    steps(model, in_parts=True)
    assert apart(model, alone) < 1e-6


def test_a_compiled_model_sees_few_sizes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    seen: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            seen.append(next(len(one) for one in given if not isinstance(one, nn.Parameter)))
            return graph(*given)

        return run

    compiled = torch.compile(model, backend=counting, dynamic=False)
    task = Task(model, rows_of_six(13), lambda part: compiled(part).square().mean())
    whole = gradient(model) or whole_gradient(Task(model, task.batch, lambda part: model(part).square().mean()))
    step = Step(compiled, most_tokens=5 * 6)
    step.micro_batch(task.batch, task.loss_of)
    assert seen == [4, 4, 4, 1]  # and the probe is not compiled for
    assert relative_error(gradient(model), whole) < EXACT
