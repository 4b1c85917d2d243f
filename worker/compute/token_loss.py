"""The loss of a language model by pieces of tokens: the scores of all tokens for the whole vocabulary are never held at once.

For each token that is learnt a model gives a score to every word of its vocabulary: 150,000 of them in float32, with softmax
and gradient beside them, are 2 MB a token, many times what all its layers keep. Here the last layer (its head) and the cross
entropy are computed for a piece of the tokens at a time, forward and backward, and nothing of a piece is kept. Only tokens with
a target are computed at all. The sum is the same but for rounding.

Where the head is frozen, as under adapters, the gradient of what goes into it is computed with the piece itself, so nothing is
computed twice. Where it learns, the backward pass computes each piece again; the gradient of a plain linear head is added where
it is kept, without a second matrix of that size beside it.

What a model does with its scores after the head (a scale, a soft cap) is found out by asking it (`find_scores`), and where none
of the known ways gives its own scores, they are computed as a whole, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from memsup.worker.compute.frozen import ROUNDED

PIECE_NUMBERS = 1 << 22
"""How many scores are computed at a time: 16 MiB in float32, and twice as much with their gradients."""
PIECE_OF_DEVICE = 512
"""On a device a score is computed at a time for each so many bytes that may be taken there: with their gradients they take some
2 % of them. A device needs many tokens at a time, since each piece reads the whole head."""
LEAST_PIECE_TOKENS = 32
"""Fewer tokens at a time would read the head's weights for next to nothing."""
_SAME_FRACTION = 1e-4
"""The difference that counts as rounding, as a part of the largest score."""

PLACES, TARGETS = "target_places", "targets"
"""In a batch, the places of the tokens that have a target, among all of its tokens, and these targets."""

_numbers = PIECE_NUMBERS
"""How many scores are computed at a time in this process."""

Scale = Callable[[torch.Tensor], torch.Tensor]


def size_pieces(device_bytes: int | None) -> None:
    """Has this process compute as many scores at a time as suit a device of which it may take so many bytes. None means that it
    computes on a CPU.
    """
    global _numbers
    _numbers = PIECE_NUMBERS if device_bytes is None else max(PIECE_NUMBERS, device_bytes // PIECE_OF_DEVICE)


@dataclass(frozen=True)
class Scores:
    """How a model's scores come about from what its last layer gives."""

    in_pieces: bool
    """Whether they may be computed by pieces. Otherwise only the model as a whole gives them."""
    factor: float = 1.0
    """What they are multiplied by."""
    cap: float | None = None
    """The bound that they approach softly. None means that there is none."""

    def of(self, model: Any, hidden: torch.Tensor, rounded: torch.Tensor | None = None) -> torch.Tensor:
        """The scores of some tokens, tokens × vocabulary, in float32. `rounded` are the head's weights as `rounded_head` has
        them.
        """
        head = model.get_output_embeddings()
        return self.finished(head(hidden) if rounded is None else functional.linear(hidden, rounded, head.bias))

    def finished(self, scores: torch.Tensor) -> torch.Tensor:
        """What the model makes of what its head gives, in float32."""
        if self.factor != 1:
            scores = scores * self.factor
        if self.cap is not None:
            scores = torch.tanh(scores / self.cap) * self.cap
        return scores.float()

    def loss(
        self, said: torch.Tensor, targets: torch.Tensor, factor: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of what a head gives for a piece of tokens, and its gradient by that, times `factor`. Of float32 it
        takes no more than the scores and the gradient, which is made in place.
        """
        if self.cap is not None:
            given = said.detach().requires_grad_()
            with torch.enable_grad():
                loss = functional.cross_entropy(self.finished(given), targets, reduction="sum")
            (of_said,) = torch.autograd.grad(loss, given, factor)
            return loss.detach(), of_said
        dtype, each = said.dtype, targets[:, None]
        logarithms = torch.log_softmax(self.finished(said), dim=-1)
        loss = -logarithms.gather(-1, each).sum()
        gradient = logarithms.exp_().scatter_add_(-1, each, -torch.ones_like(each, dtype=logarithms.dtype))
        if factor is not None or self.factor != 1:
            gradient.mul_(self.factor if factor is None else factor * self.factor)
        return loss, gradient.to(dtype)


def find_scores(model: Any, batch: dict[str, torch.Tensor]) -> Scores:
    """The way that gives the model's own scores of `batch`, without a gradient."""
    head = model.get_output_embeddings()
    if head is None:
        return Scores(in_pieces=False)
    with torch.no_grad():
        own = model(**inputs_of(batch), use_cache=False).logits.float()
        hidden = hidden_states(model, batch)
        for factor, cap in _known_ways(model.config):
            way = Scores(in_pieces=True, factor=factor, cap=cap)
            found = way.of(model, hidden)
            if found.shape == own.shape and bool((found - own).abs().max() <= _SAME_FRACTION * own.abs().max()):
                return way
    return Scores(in_pieces=False)


def _known_ways(config: Any) -> Iterator[tuple[float, float | None]]:
    """Factor and cap, as configurations name them."""
    caps = [None, getattr(config, "final_logit_softcapping", None)]
    factors = [1.0, getattr(config, "logit_scale", None), getattr(config, "lm_head_multiplier", None)]
    if divided := getattr(config, "logits_scaling", None):
        factors.append(1 / divided)
    for cap in dict.fromkeys(caps):
        for factor in dict.fromkeys(factors):
            if isinstance(factor, int | float) and (cap is None or isinstance(cap, int | float)):
                yield float(factor), cap


def hidden_states(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the last layer gives for each token: rows × length × units."""
    found: torch.Tensor = model.base_model(**inputs_of(batch), use_cache=False)[0]
    return found


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch the model is given."""
    return {name: values for name, values in batch.items() if name not in ("labels", PLACES, TARGETS)}


def with_targets(batch: dict[str, torch.Tensor], ignored: int) -> dict[str, torch.Tensor]:
    """The batch with its targets, `PLACES` and `TARGETS`: each is said by the token before it. Found out on a device they would
    have to be waited for.
    """
    following = batch["labels"][:, 1:]
    has_target = following != ignored
    places = functional.pad(has_target, (0, 1)).flatten().nonzero()[:, 0]
    return batch | {PLACES: places, TARGETS: following[has_target]}


def summed_loss(model: Any, batch: dict[str, torch.Tensor], scores: Scores, ignored: int) -> torch.Tensor:
    """The sum of the losses of all targets of `batch`, a float32 scalar."""
    if TARGETS not in batch:
        batch = with_targets(batch, ignored)
    places, targets = batch[PLACES], batch[TARGETS]
    if not scores.in_pieces:
        whole = model(**inputs_of(batch), use_cache=False).logits.flatten(0, 1)[places]
        return functional.cross_entropy(whole.float(), targets, reduction="sum")
    hidden = hidden_states(model, batch).flatten(0, 1)[places]
    if not torch.is_grad_enabled():
        return _total(model, scores, hidden, targets)
    trained = [parameter for parameter in model.get_output_embeddings().parameters() if parameter.requires_grad]
    summed: torch.Tensor = _Pieces.apply(hidden, targets, model, scores, *trained)
    return summed


def losses_of_rows(model: Any, batch: dict[str, torch.Tensor], scores: Scores) -> torch.Tensor:
    """The mean loss of each row over all of its tokens, whatever its targets; without a gradient."""
    ignored = -100
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, ignored)
    has_target = labels[:, 1:] != ignored
    has_target &= batch["attention_mask"][:, :-1] == 1  # on the left, padding would say the first token
    targets = labels[:, 1:][has_target]
    if scores.in_pieces:
        hidden = hidden_states(model, batch)[:, :-1][has_target]
        parts = [
            functional.cross_entropy(scores.of(model, hidden[p]), targets[p], reduction="none") for p in _pieces(model, hidden)
        ]
        losses = torch.cat(parts) if parts else hidden.new_zeros(0)
    else:
        whole = model(**inputs_of(batch), use_cache=False).logits[:, :-1][has_target]
        losses = functional.cross_entropy(whole.float(), targets, reduction="none")
    of_rows = torch.zeros(len(labels), dtype=losses.dtype, device=losses.device)
    rows = has_target.nonzero()[:, 0]
    return (of_rows.index_add_(0, rows, losses) / has_target.sum(dim=1).clamp(min=1))[:, None]


def rounded_head(model: Any, device: str) -> torch.Tensor | None:
    """The weights of a frozen linear head in the lower precision that is computed in, so that they are not rounded for each
    piece again. None means that there is nothing to round.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.requires_grad or not torch.is_autocast_enabled(device):
        return None
    lower, kept = torch.get_autocast_dtype(device), getattr(head, ROUNDED, None)
    return kept if kept is not None and kept.dtype is lower else head.weight.detach().to(lower)


def piece_tokens(vocabulary: int) -> int:
    """How many tokens are computed at a time."""
    return max(LEAST_PIECE_TOKENS, _numbers // max(1, vocabulary))


def _pieces(model: Any, hidden: torch.Tensor) -> Iterator[slice]:
    size = piece_tokens(model.config.get_text_config().vocab_size)
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _total(model: Any, scores: Scores, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    total, rounded = torch.zeros((), device=hidden.device), rounded_head(model, hidden.device.type)
    for piece in _pieces(model, hidden):
        total += functional.cross_entropy(scores.of(model, hidden[piece], rounded), targets[piece], reduction="sum")
    return total


class _Pieces(torch.autograd.Function):
    """The summed loss. Of the head's parameters that learn, the gradients are added to their `grad` in the backward pass."""

    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, targets: torch.Tensor, model: Any, scores: Scores, *trained: torch.Tensor
    ) -> torch.Tensor:
        context.model, context.scores, context.trained = model, scores, trained
        context.precision = _precision(hidden.device.type)
        if trained:
            context.save_for_backward(hidden, targets)
            return _total(model, scores, hidden, targets)
        total, gradient = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        rounded = rounded_head(model, hidden.device.type)
        for piece in _pieces(model, hidden):
            loss, gradient[piece] = _of_piece(model, scores, hidden[piece], targets[piece], rounded)
            total += loss
        context.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (factor,) = gradients
        nothing = (None,) * (3 + len(context.trained))
        if not context.trained:
            (gradient,) = context.saved_tensors
            return gradient * factor, *nothing
        hidden, targets = context.saved_tensors
        gradient = torch.empty_like(hidden)
        with context.precision():
            for piece in _pieces(context.model, hidden):
                gradient[piece] = _add_gradient(context, hidden[piece].detach(), targets[piece], factor)
        return gradient, *nothing


def _of_piece(
    model: Any, scores: Scores, hidden: torch.Tensor, targets: torch.Tensor, rounded: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a piece under a frozen head, and its gradient by `hidden`. `rounded` is as `rounded_head` has it."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear:
        weight = head.weight if rounded is None else rounded
        loss, of_said = scores.loss(functional.linear(hidden, weight, head.bias), targets)
        return loss, of_said @ weight
    part = hidden.detach().requires_grad_()
    with torch.enable_grad():
        said = head(part)
    loss, of_said = scores.loss(said.detach(), targets)
    (of_part,) = torch.autograd.grad(said, part, of_said)
    return loss, of_part


def _add_gradient(context: Any, hidden: torch.Tensor, targets: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Adds the gradient of a piece to those of the head; returns that of `hidden`."""
    model, scores = context.model, context.scores
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.requires_grad:
        _, of_said = scores.loss(head(hidden), targets, factor)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.weight
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.addmm_(of_said.T.to(weight.dtype), hidden.to(weight.dtype))
            if head.bias is not None and head.bias.requires_grad:
                of_bias = of_said.to(head.bias.dtype).sum(dim=0)
                head.bias.grad = of_bias if head.bias.grad is None else head.bias.grad.add_(of_bias)
        return of_said @ head.weight  # mixed precision has it rounded, once a step
    part = hidden.requires_grad_()
    with torch.enable_grad():
        said = head(part)
    _, of_said = scores.loss(said.detach(), targets, factor)
    of_part, *of_trained = torch.autograd.grad(said, (part, *context.trained), of_said, allow_unused=True)
    for parameter, found in zip(context.trained, of_trained, strict=True):
        if found is not None:
            parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)
    assert of_part is not None
    return of_part


def _precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What enters the precision of forward passes as it is now."""
    if not torch.is_autocast_enabled(device):
        return lambda: torch.autocast(device, enabled=False)
    lower = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=lower)
