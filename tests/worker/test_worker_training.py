"""Pressure changes how a gradient is computed, never what is learned: the same samples, steps, schedule and weights."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.lone_supervisor import tiny_settings
from kit.one_life import StarvedTask, decisions, exhaustions, one_life, reports

from memsup.memory import held
from memsup.shared.messages import DecisionKind, Done, FailureCause, LimitMicroBatch, Pause, PauseMode, Resume
from memsup.worker import exhaustion, train
from memsup.worker.computing import FIRST_STEP
from memsup.worker.evaluating import evaluate
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.planner import Planner
from memsup.worker.saving import save_if_due, save_if_possible
from memsup.worker.session import GiveUp, Leave
from memsup.worker.training import Training

pytestmark = pytest.mark.slow  # torch and transformers take their seconds

MIB = 1 << 20


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def life(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Training]:
    """With dropout, as models come: what is dropped does not depend on the cut either."""
    settings = tiny_settings(tmp_path, training__micro_tokens=60, training__threads=2, training__lanes=request.param)
    with one_life(settings) as training:
        assert training.prepared.model.config.hidden_dropout_prob > 0
        assert training.plan.at(1).lanes_used == len(training.lanes) == request.param
        yield training


class AsItBegan:
    """A training as it was when it began, to be put back there."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._model = copy.deepcopy(training.prepared.model.state_dict())
        self._optimizer = copy.deepcopy(training.optimizer.state_dict())
        self._task = training.task
        self.plan = training.plan.at(1)

    def again(self) -> Training:
        training = self._training
        training.prepared.model.load_state_dict(self._model)
        training.optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        training.task = self._task
        training.step, training.evaluated, training.best = 0, None, None
        training.audit.resume(0)
        training.plan._put(self.plan)
        reports(training)
        return training


def weights(training: Training) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in training.prepared.model.parameters()])


def gradient(training: Training) -> torch.Tensor:
    return torch.cat([value.grad.detach().flatten() for value in training.prepared.model.parameters()])


def order(training: Training, **limit: Any) -> None:
    training.session.link.orders.put(LimitMicroBatch(order_id=1, reason="a test", **limit))


def take_steps(training: Training, count: int) -> None:
    for _ in range(count):
        train.take_step(training)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient


def test_any_split_gives_the_whole_batchs_gradient(life: Training) -> None:
    """In float32, dropout included, to within a millionth; the loss as well. The rows have one label: before training the
    gradients of two labels cancel each other to a hundredth, and rounding would be compared with that.
    """
    labels = life.prepared.train.batch(np.arange(len(life.prepared.train)))["labels"].numpy()
    rows = np.flatnonzero(labels == 1)[:24]
    life.settings.clip_norm = "off"
    life.plan.change(1, "all rows at once", limit=None)
    life.plan._put(Entry(step=1, start=10_000, lanes=len(life.lanes), cause="all at once", at_unix_s=0.0))
    whole = train._accumulate(life, 1, rows)
    assert whole is not None
    assert life.largest_tokens <= 24 * int(life.prepared.train.lengths[rows].max())
    assert life.micro_rows.size == 24
    expected = gradient(life)

    @given(micro_tokens=st.integers(1, 2000), activation_checkpointing=st.booleans(), one_lane=st.booleans())
    @settings(max_examples=40)
    def any_split(micro_tokens: int, activation_checkpointing: bool, one_lane: bool) -> None:
        life.plan._put(
            Entry(
                step=1,
                start=micro_tokens,
                lanes=len(life.lanes),
                one_lane=one_lane,
                activation_checkpointing=activation_checkpointing,
                cause="another split",
                at_unix_s=0.0,
            )
        )
        split = train._accumulate(life, 1, rows)
        assert split is not None
        assert float(split.figures[0]) == pytest.approx(float(whole.figures[0]), rel=1e-6)
        assert torch.linalg.vector_norm(gradient(life) - expected) <= 1e-6 * torch.linalg.vector_norm(expected)

    any_split()


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("twice", [False, True], ids=["activations kept", "activations computed twice"])
def test_a_step_done_twice_has_the_same_bits(tmp_path: Path, lanes: int, twice: bool) -> None:
    """With dropout: what is drawn depends on seed, step and position alone, in whatever order lanes come to it."""
    given_settings = tiny_settings(tmp_path, training__threads=2, training__lanes=lanes, training__gradient_checkpointing=twice)
    with one_life(given_settings) as life:
        assert len(life.lanes) == lanes
        begun = AsItBegan(life)
        rows = life.order.batch(3)
        life.settings.clip_norm = "off"
        one = train._accumulate(begun.again(), 3, rows)
        first = gradient(life)
        torch.rand(1000)  # somebody else draws
        train._accumulate(life, 4, life.order.batch(4))
        other = train._accumulate(life, 3, rows)
        assert one is not None
        assert other is not None
        assert torch.equal(one.figures, other.figures)
        assert torch.equal(first, gradient(life))
        train._accumulate(life, 4, rows)
        assert not torch.equal(first, gradient(life)), "another step draws other masks"


def test_a_run_that_has_room_for_fewer_lanes_than_it_began_with_goes_on_in_fewer(tmp_path: Path) -> None:
    """Steps that had been done already are redone in as many as before: their bits are known."""
    with one_life(tiny_settings(tmp_path, training__threads=2, training__lanes=2)) as first:
        take_steps(first, 3)
    with one_life(tiny_settings(tmp_path, training__threads=2, training__lanes=1)) as second:
        assert second.step == 0, "nothing was saved"
        assert [second.plan.at(step).lanes_used for step in (1, 2, 3, 4, 5)] == [2, 2, 2, 1, 1]
        take_steps(second, 5)
        assert second.step == 5
    with one_life(tiny_settings(tmp_path, training__threads=2, training__lanes=2)) as third:
        assert third.plan.at(6).lanes_used == 1, "and does not change its bits again for it"


# ---------------------------------------------------------------------------------------------------------------------
# Steps under pressure

events = st.lists(
    st.one_of(
        st.tuples(st.just("halve"), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 300)),
        st.tuples(st.just("free"), st.just(0)),
        st.tuples(st.just("hold"), st.just(0)),
        st.tuples(st.just("forward"), st.integers(1, 4)),
        st.tuples(st.just("backward"), st.integers(1, 4)),
    ),
    max_size=8,
)


@pytest.mark.parametrize("sequences", [5, pytest.param(30, marks=pytest.mark.nightly)])
def test_no_sequence_of_shrink_grow_exhaustion_and_pause_changes_what_is_learnt(life: Training, sequences: int) -> None:
    steps = 5
    begun = AsItBegan(life)
    for _ in range(steps):
        train.take_step(life)
    planned, learnt = life.audit.digest.split(".")[0], weights(life)

    @given(happening=st.lists(events, min_size=steps, max_size=steps))
    @settings(max_examples=sequences, suppress_health_check=[HealthCheck.too_slow])
    def whatever_happens(happening: list[list[tuple[str, int]]]) -> None:
        training = begun.again()
        for step_events in happening:
            failures = {}
            for what, number in step_events:
                match what:
                    case "halve":
                        order(training, halve=True)
                    case "limit":
                        order(training, micro_tokens=number)
                    case "free":
                        order(training)
                    case "hold":
                        training.session.link.orders.put(Pause(order_id=2, reason="a test", mode=PauseMode.HOLD))
                        training.session.link.orders.put(Resume(order_id=3, reason="a test"))
                    case where:
                        failures[number] = where
            training.task = StarvedTask(
                begun._task,
                lambda where, rows, call, failures=failures: rows > 1 and failures.get(call) == where,
            )
            train.take_step(training)
        assert training.step == steps
        assert training.audit.digest.split(".")[0] == planned, "rows, loss weights and learning rates are those of the plan"
        # Adam divides by the root of tiny second moments, so rounding shows magnified where a gradient is nearly nothing.
        assert torch.linalg.vector_norm(weights(training) - learnt) <= 1e-3 * torch.linalg.vector_norm(learnt - begun_weights)

    begun.again()
    begun_weights = weights(life)
    whatever_happens()


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_out_of_memory_is_an_ordinary_event(life: Training, where: str, call: int) -> None:
    """The step's gradients are dropped, the micro-batch halved, journalled first, and the step done again: as if nothing had
    happened.
    """
    begun = AsItBegan(life)
    train.take_step(life)
    undisturbed = weights(life)
    begun.again()
    life.task = StarvedTask(begun._task, lambda at, rows, number: at == where and number == call)
    train.take_step(life)
    assert torch.linalg.vector_norm(weights(life) - undisturbed) <= 1e-4 * torch.linalg.vector_norm(undisturbed)
    (report,) = exhaustions(life)
    assert (report.where, report.step, report.device) == (where, 1, "cpu")
    assert report.micro_tokens_after <= report.micro_tokens_before // 2
    assert "can't allocate memory" in report.detail
    entry = life.plan.at(1)
    assert entry.ceiling == report.micro_tokens_after
    assert entry.cause.startswith(f"out of memory in {where}")
    assert life.paths.plan.read_bytes().splitlines()[-1].count(entry.cause.encode()) == 1


def test_the_graph_of_a_failed_step_is_gone_before_it_is_done_again(life: Training) -> None:
    """Recovering inside the `except` would keep it alive: nothing of it may be left when memory is handed back."""
    import gc

    alive: list[int] = []
    begun = AsItBegan(life)
    hand_back = exhaustion.hand_back

    def counted(device: Any) -> None:
        hand_back(device)
        alive.append(
            sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.grad_fn is not None)
        )

    life.task = StarvedTask(begun._task, lambda at, rows, number: at == "backward" and number == 2)
    exhaustion.hand_back = counted
    try:
        train.take_step(life)
    finally:
        exhaustion.hand_back = hand_back
    assert alive == [0]


@pytest.mark.parametrize("where", ["forward", "evaluate"])
def test_where_generated_code_finds_no_memory_a_new_process_goes_on_smaller(life: Training, where: str) -> None:
    """In this process oneDNN does not get over it, so no micro-batch would be small enough here."""
    train.take_step(life)
    before = life.plan.at(2).micro_tokens
    life.task = StarvedTask(life.task, lambda at, rows, number: at == where and rows > 1, "could not create a primitive")
    with pytest.raises(Leave, match="a new one goes on") as left:
        train.take_step(life) if where == "forward" else evaluate(life)
    assert left.value.checkpoint is not None
    assert left.value.checkpoint.step == life.step == 1
    assert life.plan.at(2).micro_tokens < before
    assert life.paths.plan.read_bytes().splitlines()[-1].count(b"out of memory in") == 1


def test_one_row_that_does_not_fit_first_gets_activation_checkpointing(life: Training) -> None:
    life.task = StarvedTask(life.task, lambda at, rows, number: at == "backward" and not life.activation_checkpointing)
    train.take_step(life)
    assert life.plan.at(1).activation_checkpointing
    reported = exhaustions(life)
    assert [report.micro_tokens_after for report in reported][-1] == reported[-1].micro_tokens_before, "the cut stayed"
    train.take_step(life)
    assert life.step == 2
    assert not exhaustions(life)


def test_one_row_that_never_fits_fails_with_its_name_and_the_numbers(life: Training) -> None:
    life.task = StarvedTask(life.task, lambda at, rows, number: at == "forward")
    with pytest.raises(GiveUp, match=r"The text at .*, line \d+ has \d+ tokens .* \d+ MiB are held") as given_up:
        train.take_step(life)
    assert given_up.value.cause is FailureCause.OUT_OF_MEMORY
    assert given_up.value.step == 1


@pytest.mark.parametrize("where", ["forward", "backward", "evaluate"])
def test_a_crash_names_file_and_line_of_what_was_computed_then(life: Training, where: str) -> None:
    life.task = StarvedTask(life.task, lambda at, rows, number: at == where and number >= 2, error="no such index")
    with pytest.raises(GiveUp, match=r"crashed: RuntimeError: no such index") as given_up:
        evaluate(life) if where == "evaluate" else train.take_step(life)
    assert given_up.value.cause is FailureCause.CRASH
    _, _, named = str(given_up.value).partition("look at what it was computed from: ")
    file, _, lines = named.partition(", line")
    assert 1 <= len(re.findall(r"[0-9]+", lines)) <= 8
    if where != "evaluate":
        assert life.at_rows is not None
        assert len(life.at_rows) < 16, "the rows of the micro-batch, and not all of the step's"
        assert named == life.prepared.train.where(life.at_rows)
    assert Path(file).is_file()


def test_the_optimizers_step_is_never_repeated(life: Training) -> None:
    """Its weights may be half updated. The run goes back to its newest checkpoint, which is not of them."""
    train.take_step(life)
    note = life.session.checkpoint_now()
    step = life.optimizer.step

    def half_done() -> None:
        step()
        raise MemoryError

    life.optimizer.step = half_done  # type: ignore[method-assign,assignment]
    with pytest.raises(GiveUp, match="half updated") as given_up:
        train.take_step(life)
    assert given_up.value.cause is FailureCause.CRASH
    assert [report.where for report in exhaustions(life)] == ["optimizer"]
    assert life.step == 1
    assert life.newest == note


def test_the_optimizers_state_exists_before_the_first_step(life: Training) -> None:
    before = {id(value) for state in life.optimizer.state.values() for value in state.values()}
    assert len(before) == 3 * len(list(life.prepared.model.parameters()))
    train.take_step(life)
    assert {id(value) for state in life.optimizer.state.values() for value in state.values()} == before


def test_evaluation_shrinks_as_well_and_counts_every_row_once(life: Training) -> None:
    life.step = life.schedule.total_steps
    evaluate(life)
    undisturbed = life.evaluated
    life.evaluated = None
    life.task = StarvedTask(life.task, lambda at, rows, number: at == "evaluate" and rows > 2)
    evaluate(life)
    assert life.evaluated is not None
    assert undisturbed is not None
    assert life.evaluated.metrics["rows"] == len(life.prepared.evaluation)
    assert life.evaluated.metrics["accuracy"] == undisturbed.metrics["accuracy"]
    assert life.evaluated.metrics["loss"] == pytest.approx(undisturbed.metrics["loss"], rel=1e-5)
    assert {report.where for report in exhaustions(life)} == {"evaluate"}
    assert life.plan.at(life.step + 1).ceiling is None, "training is not concerned"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rows(life: Training, value: float) -> None:
    real = life.task.loss
    life.task.loss = lambda model, batch: real(model, batch) * value  # type: ignore[method-assign]
    before = weights(life)
    with pytest.raises(GiveUp, match="at step 1") as given_up:
        train.take_step(life)
    assert given_up.value.cause is FailureCause.NOT_FINITE
    line = life.prepared.train.where(life.order.batch(1)[:1]).rpartition(" ")[2]
    assert re.search(rf"\b{line}\b", str(given_up.value))
    assert torch.equal(weights(life), before)


# ---------------------------------------------------------------------------------------------------------------------
# Orders within a step


def test_a_limit_holds_at_once_and_the_step_is_done_again(life: Training) -> None:
    rows_seen: list[int] = []
    real = life.task.loss

    def seen(model: Any, batch: Any) -> Any:
        rows_seen.append(len(batch["labels"]))
        if len(rows_seen) == 1:
            order(life, micro_tokens=1)
        return real(model, batch)

    life.task.loss = seen  # type: ignore[method-assign]
    train.take_step(life)
    lanes = len(life.lanes)
    assert sum(rows_seen[:lanes]) > 1
    assert rows_seen[lanes:] == [1] * life.schedule.effective_batch
    assert [done.micro_tokens for done in reports(life) if isinstance(done, Done)] == [1]


def test_halving_halves_what_is_used_not_what_is_allowed(life: Training) -> None:
    """With room for a thousand tokens and steps that use a few hundred, half of a thousand would change nothing."""
    life.plan._put(Entry(step=1, start=1000, cause="much room", at_unix_s=0.0))
    train.take_step(life)
    used = life.largest_tokens
    assert used < 500
    order(life, halve=True)
    train.take_step(life)
    assert life.plan.at(2).micro_tokens <= life.largest_tokens <= used // 2 + 48


def test_single_rows_are_not_halved_but_compute_their_activations_twice(life: Training) -> None:
    """Half of a row is that row again, and only slower: the next lever is pulled instead, and the planner may take it back."""
    life.settings.tune = True
    order(life, micro_tokens=1)
    train.take_step(life)
    longest = life.largest_tokens
    order(life, micro_tokens=longest)
    order(life, halve=True)
    train.take_step(life)
    after = life.plan.at(2)
    assert after.activation_checkpointing
    assert after.limit is not None
    assert longest // 2 < after.limit <= longest
    order(life, halve=True)
    train.take_step(life)
    assert life.plan.at(3).activation_checkpointing
    assert life.plan.at(3).micro_tokens > longest // 2
    order(life)
    train.take_step(life)
    assert life.plan.at(4).limit is None


def test_growth_is_free_again_when_the_limit_is_lifted(life: Training) -> None:
    order(life, micro_tokens=10)
    train.take_step(life)
    order(life)
    train.take_step(life)
    assert [life.plan.at(step).micro_tokens for step in (1, 2, 3)] == [10, 60, 60]


def test_a_limit_of_no_growth_keeps_what_is(life: Training) -> None:
    order(life, micro_tokens=40)
    train.take_step(life)
    order(life, may_grow=False)
    train.take_step(life)
    assert life.plan.at(3).micro_tokens == 40


# ---------------------------------------------------------------------------------------------------------------------
# Mixed precision


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_on(tmp_path: Path, amp: str) -> None:
    with one_life(tiny_settings(tmp_path, training__amp=amp)) as life:
        for _ in range(5):
            train.take_step(life)
        assert life.step == 5
        assert weights(life).dtype == torch.float32
        assert life.loss_scale == (2.0**16 if amp == "fp16" else 1.0)


def test_a_loss_scale_that_is_too_high_costs_no_step(tmp_path: Path) -> None:
    """Where the scaled gradient overflows, the step is done again with half the scale, until it fits."""
    with one_life(tiny_settings(tmp_path, training__amp="fp16")) as life:
        life.loss_scale = 2.0**120
        train.take_step(life)
        assert life.step == 1
        assert 1 < life.loss_scale < 2.0**120
        assert bool(torch.isfinite(weights(life)).all())


# ---------------------------------------------------------------------------------------------------------------------
# Saving does not end training


def test_a_checkpoint_that_cannot_be_written_is_on_record_and_training_goes_on(life: Training) -> None:
    train.take_step(life)
    life.store.folder.write_bytes(b"where a folder should be")
    try:
        save_if_possible(life)
    finally:
        life.store.folder.unlink()
    train.take_step(life)
    assert life.step == 2
    (said,) = decisions(life)
    assert (said.what, said.step) == (DecisionKind.CHECKPOINT_FAILED, 1)


def test_who_dies_often_saves_more_often(life: Training) -> None:
    """A save of half a second, two minutes after the last one: too early on a calm machine, not on a deadly one."""
    train.take_step(life)
    life.record.settings.checkpoint.every_s = None  # auto
    life.save_s, life.trained_s = 0.5, 36_000.0
    life.saved_s = life.work_s() - 120
    save_if_due(life)
    assert life.newest is None
    life.deaths = 10
    save_if_due(life)
    assert life.newest is not None
    assert life.newest.step == 1


# ---------------------------------------------------------------------------------------------------------------------
# The planner at work


def test_a_tuned_run_changes_its_cuts_and_learns_the_same(tmp_path: Path) -> None:
    ends = []
    for tune in (False, True):
        asked = tiny_settings(tmp_path, training__micro_tokens=60, training__tune=tune, training__epochs=4.0)
        with one_life(asked, name=f"tuned-{tune}") as life:
            take_steps(life, 40)
            assert (len(life.plan._written) > 1) is tune  # on so small a model the fixed costs of a micro-batch are most
            ends.append((life.audit.digest.split(".")[0], weights(life)))
            if tune:
                peak_bytes, predicted_bytes = life.measuring.last
                assert peak_bytes is not None
                assert predicted_bytes == pytest.approx(peak_bytes, rel=0.1)
                computing = life.looking.found
                assert computing is not None
                assert computing.step == FIRST_STEP
                assert 0 < computing.useful < 1
                assert 0 < computing.optimizer + computing.loading + computing.attention < 1
                assert 0 < (computing.starting or 0) < 1
    assert ends[0][0] == ends[1][0]
    assert torch.allclose(ends[0][1], ends[1][1], atol=1e-4)


def test_steps_that_are_redone_are_cut_as_the_tuned_run_had_cut_them(tmp_path: Path) -> None:
    """And so have the same bits, dropout included, though the clock would have it otherwise this time."""
    asked = tiny_settings(tmp_path, training__micro_tokens=60, training__tune=True, training__epochs=4.0)
    digests = []
    for _ in range(2):
        with one_life(asked) as life:  # no checkpoint was written: the second life begins anew, with the first one's journal
            take_steps(life, 40)
            assert len(life.plan._written) > 1
            digests.append(life.audit.digest)
    assert digests[0] == digests[1]


class LeakingTask(StarvedTask):
    """Keeps some of its memory for ever, each time."""

    def __init__(self, task: Any, leak_bytes: int) -> None:
        super().__init__(task, lambda *_: False)
        self._leak_bytes = leak_bytes
        self.kept: list[bytearray] = []

    def loss(self, model: Any, batch: Any) -> Any:
        self.kept.append(bytearray(b"1") * self._leak_bytes)
        return super().loss(model, batch)


def test_a_leak_ends_in_a_planned_checkpoint_and_a_new_process_not_in_ever_smaller_micro_batches(tmp_path: Path) -> None:
    asked = tiny_settings(tmp_path, training__micro_tokens=4000, training__tune=True, training__epochs=50.0)
    with one_life(asked) as life:
        life.task = LeakingTask(life.task, 2 * MIB)
        room = 800 * MIB
        limit_bytes = held().anonymous_bytes + room
        life.measuring.planner = Planner(limit_bytes=limit_bytes, longest=100, may_checkpoint=True)
        with pytest.raises(Leave, match="MiB a step: something leaks") as left:
            take_steps(life, 300)
        assert left.value.checkpoint is not None
        assert left.value.checkpoint.step == life.step
        assert held().anonymous_bytes < limit_bytes - room / 3
        assert life.plan.at(life.step + 1).bands == ()
