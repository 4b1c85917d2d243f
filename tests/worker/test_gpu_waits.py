"""A step on a GPU waits for it once, when all of the step has been queued; anything else would leave the device idle.

There is no GPU: the step is computed on torch's device `meta`, whose tensors have shapes and no numbers. Whatever asks it for a
number, a copy or a truth, and so would wait for a GPU, raises; the one that may is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.lone_supervisor import tiny_settings

from memsup.shared.messages import Pace
from memsup.worker.training import Training

pytestmark = pytest.mark.slow  # torch takes its seconds

GIB = 1 << 30


class Queued:
    """What a step asks of a device that computes later: `happened`, in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.figures = [0.7, 2.0]
        self.reached = 0
        """How many marks on its clock the device has come to."""
        self._marks = 0

    def read_figures(self, figures: torch.Tensor) -> list[float]:
        assert figures.shape == (2,)
        self.happened.append("waited")
        self.reached = self._marks
        return self.figures

    def mark(self) -> int:
        self._marks += 1
        return self._marks

    def elapsed_s(self, begin: int, end: int) -> float | None:
        return float(end - begin) if end <= self.reached else None

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.happened.append("pinned")
        return tensor.clone()


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> Queued:
    from kit import fake_cuda

    from memsup.worker import hardware, train

    queued, meta = Queued(), torch.device("meta")
    allocator = fake_cuda.Allocator(weights_bytes=GIB, token_bytes=GIB // 1000)
    optimizers, step = sys.modules["torch.optim.optimizer"], torch.optim.AdamW.step
    fused = optimizers._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"])
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: (queued.happened.append("stepped"), step(optimizer)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: queued.pin(tensor))  # a function is bound, a method is not
    monkeypatch.setattr(train, "choose_device", lambda *_arguments, **_named: meta)
    monkeypatch.setattr(train, "device_memory", lambda _device, _limit: allocator)
    monkeypatch.setattr(train, "autocast", lambda *_arguments, **_named: nullcontext())
    monkeypatch.setattr(torch, "autocast", lambda *_arguments, **_named: nullcontext())  # `meta` has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    monkeypatch.setattr(train, "clock_of", lambda _device: queued)
    monkeypatch.setattr(train, "read_figures", queued.read_figures)
    monkeypatch.setattr(hardware, "find_threads", lambda _most: pytest.fail("threads are tried where a GPU computes"))
    return queued


@pytest.fixture
def life(tmp_path: Path, queued: Queued) -> Iterator[Training]:
    from kit.one_life import one_life

    with one_life(tiny_settings(tmp_path, training__micro_tokens=24)) as life:
        yield life


def waits_of(life: Training) -> int:
    waits = life.device_memory.waits  # type: ignore[union-attr]
    assert isinstance(waits, int)
    return waits


def test_a_step_waits_once_after_all_of_it_was_queued(life: Training, queued: Queued) -> None:
    from memsup.worker import train

    for _ in range(4):
        train.take_step(life)
        *before, last = queued.happened
        assert last == "waited"
        assert before[-1] == "stepped"
        assert before.count("stepped") == 1
        assert "waited" not in before
        assert before.count("pinned") >= 2 * 2, "some micro-batches, of tokens and labels at least"
        queued.happened.clear()
    assert life.step == 4
    assert life.loss == pytest.approx(0.7)
    assert waits_of(life) == 0
    assert (len(life.lanes), life.threads) == (1, torch.get_num_threads())


def test_rows_that_are_packed_go_through_without_a_question(
    tmp_path: Path, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernels that are told where rows begin, which a device without numbers cannot be asked about."""
    from kit.one_life import one_life

    from memsup.worker import train
    from memsup.worker.compute import packing

    longest: list[int] = []

    def attended(query: Any, key: Any, value: Any, starts: Any, most: int, **_: Any) -> torch.Tensor:
        assert starts.dtype is torch.int32
        longest.append(most)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # of this shape

    monkeypatch.setattr("memsup.worker.compute.attention.attend_rows", attended)
    monkeypatch.setattr(packing, "can_attend", lambda *_arguments, **_named: True)
    monkeypatch.setattr(packing, "_says_the_same", lambda _model, _dtype: True)
    with one_life(tiny_settings(tmp_path, training__micro_tokens=40)) as life:
        assert life.plan.at(1).packed
        for _ in range(2):
            train.take_step(life)
        assert queued.happened.count("waited") == 2
        assert life.loss == pytest.approx(0.7)
    assert len(longest) >= 2 * life.prepared.model.config.num_hidden_layers


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_language_models_step_waits_once_as_well(tmp_path: Path, queued: Queued, method: str) -> None:
    """The host knows which tokens have targets, and that no row consists of several; the device is asked neither."""
    from kit.chat import tiny_chat
    from kit.one_life import one_life

    from memsup.worker import train

    settings = tiny_chat(tmp_path / "chat", training__micro_tokens=200, training__method=method, training__device="auto")
    with one_life(settings) as life:
        for _ in range(2):
            train.take_step(life)
            *before, last = queued.happened
            assert last == "waited"
            assert "waited" not in before
            assert before.count("pinned") >= 3 * 2, "some micro-batches"
            queued.happened.clear()
        metrics, examples = life.task.new_metrics(), life.prepared.train
        metrics.add(life.prepared.model.eval(), train.to_device(examples.batch(np.arange(3)), life.device))
        assert "waited" not in queued.happened


def test_rows_with_and_without_padding_go_through_without_a_question(life: Training, queued: Queued) -> None:
    """Transformers looks whether a mask hides anything; the host knows, and the device is not asked."""
    from memsup.worker.hardware import to_device

    examples, model = life.prepared.train, life.prepared.model
    by_length = np.argsort(examples.lengths, kind="stable")
    equal = by_length[examples.lengths[by_length] == examples.lengths[by_length[0]]][:2].astype(np.int64)
    uneven = np.array([by_length[0], by_length[-1]], np.int64)
    sent = [to_device(examples.batch(rows), life.device) for rows in (equal, uneven)]
    assert ["attention_mask" in batch for batch in sent] == [False, True]
    metrics = life.task.new_metrics()
    for batch in sent:
        life.task.loss(model.train(), batch).backward()
        metrics.add(model.eval(), batch)
    assert "waited" not in queued.happened


def test_times_are_taken_in_when_the_device_has_come_to_them(life: Training, queued: Queued) -> None:
    from memsup.worker import train

    timed: list[float] = []
    observe = life.measuring.planner.observe_time

    def noted(*arguments: Any, took_s: float, **named: Any) -> None:
        timed.append(took_s)
        observe(*arguments, took_s=took_s, **named)

    life.measuring.planner.observe_time = noted  # type: ignore[method-assign]
    train.take_step(life)
    assert timed == []
    train.take_step(life)
    assert timed
    assert set(timed) == {1.0}


def test_a_gradient_that_is_not_finite_is_found_after_the_step_which_it_kept_from_changing_anything(
    life: Training, queued: Queued
) -> None:
    from memsup.shared.messages import FailureCause
    from memsup.worker import train
    from memsup.worker.session import GiveUp

    train.take_step(life)
    queued.figures = [0.7, float("nan")]
    with pytest.raises(GiveUp, match=r"The gradient's norm is nan at step 2: .*reviews\.csv, lines ") as refused:
        train.take_step(life)
    assert refused.value.cause is FailureCause.NOT_FINITE
    assert life.step == 1
    assert life.optimizer.found_inf.shape == ()  # type: ignore[attr-defined]


def test_a_gap_begins_when_the_device_has_done_its_work(life: Training) -> None:
    """Queued work would be computed in the gap, so that a pace for the sake of heat would cool nothing."""
    life.boundary()
    assert waits_of(life) == 0
    life.session.link.orders.put(Pace(order_id=1, reason="heat", duty_fraction=0.99))
    life.boundary()
    life.boundary()
    assert waits_of(life) == 1


@pytest.mark.parametrize(("device", "amp", "tf32"), [("cuda", "bf16", True), ("cuda", "off", False), ("cpu", "bf16", False)])
def test_what_mixed_precision_leaves_in_float32_is_multiplied_as_tf32_on_a_gpu(device: str, amp: str, tf32: bool) -> None:
    from memsup.worker.hardware import set_products

    try:
        set_products(torch.device(device), amp)
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
