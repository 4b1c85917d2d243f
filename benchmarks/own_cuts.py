"""Is the gradient of a step that `memsup.step` cuts that of the whole, by kind of loss; what does it cost where nothing is cut.

    python benchmarks/own_cuts.py [gradients] [adam] [prices] [--pairs 60]

First: 16 rows of 6 to 24 tokens, small models of transformers and of torch, dropout off, float32. The gradient of the parts
added up as they are, of the parts weighted by their rows, and as memsup computes it, each against that of the whole batch
(relative error); and what memsup found out about the loss. Second: what Adam makes of rounding, without memsup: BERT's question
answering, trained by plain torch with whole batches and with the same in four parts, and by how much its tensors end apart,
those whose gradient is zero but for rounding and the others. Third: a step with `memsup.step` and without memory trouble, and
the same step without it, taking turns, in processor time of one thread; each pair gives a ratio, of which the median is shown,
and between which two half of them lie. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from memsup.memory import held
from memsup.step import Step

ROWS, LENGTH, WORDS = 16, 24, 64
CUT = 5
"""The rows of the first of two parts, and the most of memsup's."""


class Loss(NamedTuple):
    """A model, its batch, and the loss of some rows of it."""

    model: nn.Module
    batch: Any
    of: Callable[[Any], torch.Tensor]


def texts(rows: int = ROWS, length: int = LENGTH) -> dict[str, torch.Tensor]:
    lengths = torch.randint(6, length + 1, (rows,))
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, WORDS, (rows, length)) * mask, "attention_mask": mask}


def bert(kind: str, length: int = LENGTH, **more: Any) -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} | more
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=length, **size, **no_dropout)
    model: nn.Module = getattr(transformers, f"BertFor{kind}")(config)
    return model


def decoder(kind: str, **more: Any) -> nn.Module:
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    config = getattr(transformers, f"{kind.partition('For')[0]}Config")(vocab_size=WORDS, pad_token_id=0, **size, **more)
    model: nn.Module = getattr(transformers, kind)(config)
    return model


def with_loss(model: nn.Module, batch: dict[str, Any], **more: Any) -> Loss:
    return Loss(model, batch, lambda part: model(**part, **more).loss)


def of_words(batch: dict[str, torch.Tensor], share: float = 1.0) -> dict[str, torch.Tensor]:
    """Labels for all words, or some of them."""
    none = (batch["attention_mask"] == 0) | (torch.rand(batch["input_ids"].shape) > share)
    return batch | {"labels": batch["input_ids"].masked_fill(none, -100)}


def causal(*, of_all: bool) -> Loss:
    batch = of_words(texts())
    items = {"num_items_in_batch": (batch["labels"][:, 1:] != -100).sum()} if of_all else {}
    return with_loss(decoder("LlamaForCausalLM"), batch, **items)


def smoothed() -> Loss:
    """As Trainer's label smoother has it: over all words of the window, if it is told how many."""
    loss = with_loss(bert("TokenClassification", num_labels=WORDS), of_words(texts()))
    items = int((loss.batch["labels"] != -100).sum())

    def of(part: Any) -> torch.Tensor:
        logits = loss.model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        flat = logits.flatten(0, 1), part["labels"].flatten()
        return nn.functional.cross_entropy(*flat, label_smoothing=0.1, reduction="sum") / items

    return loss._replace(of=of)


def spans() -> Loss:
    starts = torch.randint(0, 5, (ROWS,))
    return with_loss(bert("QuestionAnswering"), texts() | {"start_positions": starts, "end_positions": starts + 1})


def packed() -> Loss:
    lengths = [7, 5, 9, 3, 8, 4]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ids = torch.randint(1, WORDS, positions.shape)
    batch = {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}
    return with_loss(decoder("LlamaForCausalLM"), batch, use_cache=False)


def contrastive() -> Loss:
    model = bert("SequenceClassification")

    def of(part: Any) -> torch.Tensor:
        pooled = nn.functional.normalize(model.bert(**part).pooler_output, dim=1)
        return nn.functional.cross_entropy(pooled @ pooled.flip(1).T * 20, torch.arange(len(pooled)))

    return Loss(model, texts(), of)


def of_pictures(*normalization: nn.Module) -> Loss:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *normalization, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    batch = (torch.randn(ROWS, 3, 8, 8), torch.randint(0, 4, (ROWS,)))
    return Loss(model, batch, lambda part: nn.functional.cross_entropy(model(part[0]), part[1]))


LOSSES: dict[str, Callable[[], Loss]] = {
    "LlamaForCausalLM, told the labels of the whole (Trainer)": lambda: causal(of_all=True),
    "LlamaForCausalLM by itself": lambda: causal(of_all=False),
    "BERT, label smoothing, told the labels of the whole": smoothed,
    "BERT classification": lambda: with_loss(bert("SequenceClassification"), texts() | {"labels": torch.arange(ROWS) % 2}),
    "BERT regression": lambda: with_loss(bert("SequenceClassification", num_labels=1), texts() | {"labels": torch.randn(ROWS)}),
    "BERT token classification": lambda: with_loss(bert("TokenClassification", num_labels=WORDS), of_words(texts())),
    "BERT masked LM": lambda: with_loss(bert("MaskedLM"), of_words(texts(), 0.15)),
    "BERT question answering": spans,
    "LlamaForSequenceClassification": lambda: with_loss(
        decoder("LlamaForSequenceClassification"), texts() | {"labels": torch.arange(ROWS) % 2}
    ),
    "LlamaForCausalLM, packed row of 6 documents": packed,
    "plain torch: convolutions, a tuple": lambda: of_pictures(nn.GroupNorm(2, 4)),
    "in-batch contrastive": contrastive,
    "BatchNorm": lambda: of_pictures(nn.BatchNorm2d(4)),
    "MixtralForCausalLM with its auxiliary loss": lambda: with_loss(
        decoder("MixtralForCausalLM", num_local_experts=4, output_router_logits=True), of_words(texts())
    ),
}


class Compared(NamedTuple):
    """Relative errors of a gradient; None where it cannot be computed so."""

    added: float | None
    by_rows: float | None
    ours: float
    is_cut: bool
    said: str


def compare(make: Callable[[], Loss]) -> Compared:
    torch.manual_seed(0)
    loss = make()
    loss.model.train()
    buffers = [buffer.clone() for buffer in loss.model.buffers()]
    whole = gradient(loss, [(loss.batch, 1.0)])
    added = by_rows = None
    if not isinstance(loss.batch, dict) or len(loss.batch["input_ids"]) == ROWS:
        first, second = rows_of(loss.batch, slice(0, CUT)), rows_of(loss.batch, slice(CUT, ROWS))
        added = apart(gradient(loss, [(first, 1.0), (second, 1.0)]), whole)
        by_rows = apart(gradient(loss, [(first, CUT / ROWS), (second, 1 - CUT / ROWS)]), whole)
    for buffer, before in zip(loss.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    tokens = CUT * (LENGTH if isinstance(loss.batch, dict) else 1)
    step = Step(loss.model, most_tokens=min(tokens, 12) if added is None else tokens)
    loss.model.zero_grad()
    step.micro_batch(loss.batch, loss.of)
    said = step.weighting if step.refusal is None else f"not cut: {step.refusal.name}"
    return Compared(added, by_rows, apart(gradient_of(loss.model), whole), step.is_cut, str(said))


def rows_of(batch: Any, rows: slice) -> Any:
    return (
        {name: value[rows] for name, value in batch.items()}
        if isinstance(batch, dict)
        else tuple(value[rows] for value in batch)
    )


def gradient(loss: Loss, parts: list[tuple[Any, float]]) -> torch.Tensor:
    loss.model.zero_grad()
    for part, weight in parts:
        (loss.of(part) * weight).backward()
    return gradient_of(loss.model)


def gradient_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters() if parameter.grad is not None])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


# --------------------------------------------------------------------------------------------------------------------
# What Adam makes of rounding


STEPS, PARTS = 12, 4
ROUNDING = 1e-6
"""The part of the largest gradient of a model below which a tensor's own is nothing but rounding."""


class Trained(NamedTuple):
    """What a training ends with, and the largest gradient that each tensor ever had."""

    weights: dict[str, torch.Tensor]
    gradients: dict[str, float]


def trained(parts: int, rate: float, eps: float, *, of_doubles: bool = False) -> Trained:
    """A model trained in plain torch on the same batches, each of them in so many equal parts; its gradient is cut to 1, as
    Trainer's is.
    """
    torch.manual_seed(0)
    model = bert("QuestionAnswering", 128, hidden_size=64, intermediate_size=256).train()
    if of_doubles:
        model.double()
    optimizer, largest = (
        torch.optim.AdamW(model.parameters(), lr=rate, eps=eps),
        dict.fromkeys(dict(model.named_parameters()), 0.0),
    )
    for _ in range(STEPS):
        places = torch.randint(0, 100, (128,))
        batch = texts(128, 128) | {"start_positions": places, "end_positions": places + 1}
        for first in range(0, 128, 128 // parts):
            (model(**rows_of(batch, slice(first, first + 128 // parts))).loss / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                largest[name] = max(largest[name], float(weight.grad.abs().max()))
        optimizer.step()
        optimizer.zero_grad()
    return Trained({name: weight.detach() for name, weight in model.named_parameters()}, largest)


def adam() -> None:
    print(
        f"\n| BERT question answering, {STEPS} steps, whole and in {PARTS} parts | the largest gradient of all "
        "| tensors whose gradient is rounding: the largest of them | they end apart by | the others |\n|---|---|---|---|---|"
    )
    ways = {
        "learning rate 1e-3, eps 1e-8": (1e-3, 1e-8, False),
        "5e-5 (Trainer's own), 1e-8": (5e-5, 1e-8, False),
        "1e-3, eps 1e-6": (1e-3, 1e-6, False),
        "1e-3, 1e-8, in float64": (1e-3, 1e-8, True),
    }
    for what, (rate, eps, of_doubles) in ways.items():
        whole, cut = (trained(parts, rate, eps, of_doubles=of_doubles) for parts in (1, PARTS))
        most = max(whole.gradients.values())
        differs = {name: float((whole.weights[name] - cut.weights[name]).abs().max()) for name in whole.weights}
        none = {name for name, size in whole.gradients.items() if size <= ROUNDING * most}
        told = ", ".join(sorted({".".join(name.split(".")[-3:]) for name in none}))
        others = max(value for name, value in differs.items() if name not in none)
        noise = max(whole.gradients[name] for name in none)
        print(f"| {what} | {most:.1e} | {noise:.1e} ({told}) | {max(differs[name] for name in none):.1e} | {others:.1e} |")


# --------------------------------------------------------------------------------------------------------------------
# What it costs


_SETTLING = 40
"""Pairs that are left out: the first batches are asked how they are weighted, and what they take is measured each time."""


def prices(pairs: int) -> None:
    print(
        "\n| a step, nothing cut | alone | with `memsup.step` / alone | with a memory limit told / alone |\n|---|---|---|---|"
    )
    for name, loss in {
        "BERT 6 × 384, 16 × 64 tokens": priced(texts(16, 64), hidden_size=384, num_hidden_layers=6, num_attention_heads=6),
        "BERT 2 × 128, 16 × 32 tokens": priced(texts(16, 32), hidden_size=128),
        "BERT 2 × 32, 16 × 24 tokens": priced(texts()),
    }.items():
        optimizer = torch.optim.AdamW(loss.model.parameters(), lr=1e-5)
        plain, limited = (
            Step(loss.model, optimizers=optimizer),
            Step(loss.model, memory_limit_bytes=held().anonymous_bytes + (8 << 30)),
        )
        ways: list[Callable[[], Any]] = [
            lambda loss=loss: loss.of(loss.batch).backward(),  # type: ignore[misc]
            lambda loss=loss, step=plain: step.micro_batch(loss.batch, loss.of),  # type: ignore[misc]
            lambda loss=loss, step=limited: step.micro_batch(loss.batch, loss.of),  # type: ignore[misc]
        ]
        took: list[list[float]] = [[], [], []]
        for pair in range(pairs + _SETTLING):
            for index in (0, 1, 2) if pair % 2 else (2, 1, 0):
                began_s = time.process_time()
                ways[index]()
                optimizer.step()
                optimizer.zero_grad()
                if pair >= _SETTLING:
                    took[index].append(time.process_time() - began_s)
        ratios = [sorted(other / alone for other, alone in zip(some, took[0], strict=True)) for some in took[1:]]
        columns = [
            f"{statistics.median(some):.3f} ({some[len(some) // 4]:.3f} to {some[-len(some) // 4]:.3f})" for some in ratios
        ]
        print(f"| {name} | {statistics.median(took[0]) * 1e3:.1f} ms | {columns[0]} | {columns[1]} |")


def priced(batch: dict[str, torch.Tensor], **size: Any) -> Loss:
    rows = len(batch["input_ids"])
    model = bert("SequenceClassification", batch["input_ids"].shape[1], **size)
    return with_loss(model.train(), batch | {"labels": torch.arange(rows) % 2})


def gradients() -> None:
    print("| loss | parts added up | weighted by rows | memsup | it found |\n|---|---|---|---|---|")
    for name, make in LOSSES.items():
        found = compare(make)
        cells = ["–" if error is None else f"{error:.1e}" for error in (found.added, found.by_rows)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {found.ours:.0e} | {found.said} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", nargs="*", help="gradients, adam, prices; all of them by default")
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {"gradients": gradients, "adam": adam, "prices": lambda: prices(arguments.pairs)}
    for which in arguments.which or parts:
        parts[which]()


if __name__ == "__main__":
    main()
