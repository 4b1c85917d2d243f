"""Models of any build: layers that add their gradients in place and in turn give torch's gradient, whatever a model does with
its layers; and what fails in one lane leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import embedding, linear
from torch.utils.checkpoint import checkpoint

from memsup.worker.compute.in_place import add_in_place, keep_apart_what_else_is_used
from memsup.worker.compute.lanes import Lanes
from memsup.worker.compute.rounding import round_together
from memsup.worker.compute.turns import Turns, is_added_in_turn
from memsup.worker.hardware import autocast

CPU = torch.device("cpu")
WORDS, WIDTH = 30, 8


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Plain(nn.Module):
    """A table, three layers, and scores for its words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scores = nn.Linear(WIDTH, WORDS, bias=False)
        self.finish()

    def finish(self) -> None:
        """What is special about a model."""

    def inner(self, given: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            given = torch.tanh(layer(given))
        return given

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scores(self.inner(self.table(ids))).float().square().sum()


class Tied(Plain):
    def finish(self) -> None:
        self.scores.weight = self.table.weight


class TiedLayers(Plain):
    def finish(self) -> None:
        self.layers[2].weight = self.layers[0].weight


class CalledTwice(Plain):
    def inner(self, given: torch.Tensor) -> torch.Tensor:
        return super().inner(super().inner(given))


class OfTwoNames(Plain):
    def finish(self) -> None:
        self.layers[1] = self.layers[0]


class PartlyFrozen(Plain):
    def finish(self) -> None:
        self.layers[0].bias.requires_grad_(requires_grad=False)
        self.layers[1].weight.requires_grad_(requires_grad=False)
        self.table.weight.requires_grad_(requires_grad=False)


class ComputedTwice(Plain):
    def inner(self, given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = checkpoint(super().inner, given, use_reentrant=False)
        return found


class ComputedTwiceFromInside(Plain):
    def inner(self, given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = checkpoint(super().inner, given, use_reentrant=True)
        return found


class WithPadding(Plain):
    def finish(self) -> None:
        self.table = nn.Embedding(WORDS, WIDTH, padding_idx=-1)


class Borrows(Plain):
    """Uses weights past their layers."""

    def inner(self, given: torch.Tensor) -> torch.Tensor:
        given = linear(super().inner(given), self.layers[0].weight, self.layers[1].bias)
        return given + embedding(torch.arange(given.shape[1]), self.table.weight)


class GivesAWeight(Plain):
    """Has a layer compute with another one's weights, as attention by relative positions does."""

    def inner(self, given: torch.Tensor) -> torch.Tensor:
        return super().inner(given) @ self.layers[0](self.layers[1].weight)


class Lower(Plain):
    def finish(self) -> None:
        self.layers[1].to(torch.bfloat16)

    def inner(self, given: torch.Tensor) -> torch.Tensor:
        first, lower, last = self.layers
        return last(lower(first(given).to(torch.bfloat16)).float())


class Hooked(Plain):
    """Its gradients are looked at on their way, and what layers take and give as well."""

    def finish(self) -> None:
        self.layers[0].weight.register_hook(lambda gradient: 2 * gradient)
        self.layers[1].register_forward_hook(lambda _layer, _given, found: found * 3)
        self.layers[2].register_full_backward_hook(lambda _layer, of_given, _of_found: (of_given[0] / 2,))
        self.table.weight.register_hook(lambda gradient: gradient.clamp(-1, 1) * 0 + 1)


class Normed(Plain):
    """The weights of a layer are made of others in each pass."""

    def finish(self) -> None:
        self.layers[0] = torch.nn.utils.weight_norm(self.layers[0])
        self.layers[1] = torch.nn.utils.parametrizations.weight_norm(self.layers[1])


class Turned(Plain):
    """A weight that does not lie in one piece."""

    def finish(self) -> None:
        self.layers[0].weight = nn.Parameter(torch.randn(WIDTH, WIDTH).T)


class Replaced(Plain):
    """The forward pass of a layer is already another one."""

    def finish(self) -> None:
        layer = self.layers[1]
        layer.forward = lambda given: linear(given, 2 * layer.weight, layer.bias)


MODELS = [
    Plain,
    Tied,
    TiedLayers,
    CalledTwice,
    OfTwoNames,
    PartlyFrozen,
    ComputedTwice,
    ComputedTwiceFromInside,
    WithPadding,
    Borrows,
    GivesAWeight,
    Lower,
    Hooked,
    Normed,
    Turned,
]
batches = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, WORDS - 1), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)


def part(rows: list[list[int]]) -> Callable[[Any], None]:
    def compute(model: Any) -> None:
        loss = model(torch.tensor(rows))
        with autocast(CPU, None):
            loss.backward()

    return compute


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*use_reentrant.*:UserWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_whatever_a_model_does_with_its_layers_the_gradient_is_torchs(kind: type[Plain]) -> None:
    model, plain = kind(), kind()
    assert add_in_place(model) > 0
    keep_apart_what_else_is_used(model, lambda: model(torch.tensor([[1, 2]])))
    lanes = Lanes(model, 2, 2)

    @given(st.lists(st.tuples(batches, batches), min_size=1, max_size=3))
    @settings(max_examples=15, deadline=None)
    def any_rows(micro_batches: list[tuple[Any, Any]]) -> None:
        plain.zero_grad(set_to_none=True)
        for rows in (rows for both in micro_batches for rows in both):
            plain(torch.tensor(rows)).backward()
        wanted, found = gradients(plain), []
        for _ in range(2):
            lanes.drop()
            with lanes.step(contextlib.nullcontext):
                for both in micro_batches:
                    lanes.run([part(rows) for rows in both])
            lanes.gather()
            found.append(gradients(model))
        assert found[0].keys() == wanted.keys()
        for name, gradient in wanted.items():
            near = 1e-6 if gradient.dtype is torch.float32 else 2**-7
            apart = torch.linalg.vector_norm((found[0][name] - gradient).float())
            assert apart <= near * torch.linalg.vector_norm(gradient.float()) + 1e-6, name
            assert torch.equal(found[0][name], found[1][name]), f"{name} has the same bits each time"

    any_rows()


def test_a_layer_whose_forward_pass_is_another_one_keeps_it() -> None:
    model, plain = Replaced(), Replaced()
    assert add_in_place(model) == 4
    for one in (model, plain):
        part([[1, 2, 3]])(one)
    for ours, torchs in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        torch.testing.assert_close(ours, torchs)


def test_a_gradient_of_a_gradient_is_refused_where_it_would_be_wrong() -> None:
    model = Plain()
    add_in_place(model)
    given_rows = torch.ones(2, WIDTH, requires_grad=True)
    (slope,) = torch.autograd.grad(model.inner(given_rows).sum(), given_rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


class GivesTheWeightItself(nn.Module):
    """A layer that is given a parameter as it lies there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.places = nn.Parameter(torch.randn(5, WIDTH))
        self.layer, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.layer(self.places) + self.other(self.places))[ids].float().square().sum()


def test_what_a_lane_rounds_is_what_the_optimizer_has_made() -> None:
    """A lane's parameter shows the first one's numbers, and must not be computed with as it was in the first step."""
    model = GivesTheWeightItself()
    plain = copy.deepcopy(model)
    round_together(model)
    add_in_place(model)
    lanes = Lanes(model, 2, 2)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.1, fused=True) for one in (model, plain)]
    for _ in range(4):
        with autocast(CPU, "bf16"):
            for rows in ([[0, 1]], [[2, 3, 4]]):
                part(rows)(plain)
        with lanes.step(lambda: autocast(CPU, "bf16")):
            lanes.run([part([[0, 1]]), part([[2, 3, 4]])])
        lanes.gather()
        for ours, torchs in zip(gradients(model).values(), gradients(plain).values(), strict=True):
            torch.testing.assert_close(ours, torchs, rtol=2**-6, atol=2**-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


# --------------------------------------------------------------------------------------------------------------------
# What fails


@settings(max_examples=20, deadline=None)
@given(failing=st.integers(0, 1), place=st.integers(0, 2), backwards=st.booleans())
def test_a_lane_that_fails_in_the_middle_leaves_nothing_behind(failing: int, place: int, backwards: bool) -> None:
    """Memory runs out in one lane while the other adds to the same gradients: nobody waits for ever, and when all gradients are
    dropped, the step has the bits that it would have had.
    """
    model = CalledTwice()
    add_in_place(model)
    lanes = Lanes(model, 2, 2)
    parts = [part([[1, 2, 3], [4, 5, 6]]), part([[7, 8], [9, 1]])]

    def computed() -> dict[str, torch.Tensor]:
        lanes.drop()
        with lanes.step(contextlib.nullcontext):
            lanes.run(parts)
        lanes.gather()
        return gradients(model)

    def runs_out(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def fails_later(_layer: Any, _given: Any, found: torch.Tensor) -> None:
        found.register_hook(runs_out)

    expected = computed()
    lanes.drop()
    layer = lanes.models[failing].layers[place]
    hook = layer.register_forward_hook(fails_later if backwards else runs_out)
    with pytest.raises(RuntimeError, match="can't allocate"), lanes.step(contextlib.nullcontext):
        lanes.run(parts)
    hook.remove()
    found = computed()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert all(is_added_in_turn(layer.weight) for layer in model.layers)


def test_a_lane_that_is_interrupted_while_it_waits_is_waited_for_no_more() -> None:
    """Three lanes: the first is interrupted while it waits for its turn; the others go on, who wait for each other."""
    weights = [nn.Parameter(torch.zeros(())) for _ in range(3)]
    turns, done = Turns(3), []

    class Interrupts(threading.Condition):
        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            if threading.current_thread().name == "first":
                raise KeyboardInterrupt
            return super().wait_for(predicate, timeout)

    turns._changed = Interrupts()

    def run(lane: int, order: list[int]) -> None:
        with contextlib.suppress(KeyboardInterrupt), turns.lane(lane):
            for number in order:
                with turns.turn(lane, weights[number]):
                    done.append((lane, number))

    first = threading.Thread(target=run, args=(0, [0, 0]), name="first", daemon=True)
    first.start()
    first.join(30)
    others = [threading.Thread(target=run, args=(lane, order), daemon=True) for lane, order in ((1, [1, 1]), (2, [2, 1]))]
    for other in others:
        other.start()
    for other in others:
        other.join(30)
        assert not other.is_alive(), "it waits for ever"
    assert sorted(done)[-4:] == [(1, 1), (1, 1), (2, 1), (2, 2)]
