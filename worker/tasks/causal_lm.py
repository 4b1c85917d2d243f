"""To go on with a text: a chat model learns to answer as in examples, or any language model from plain text.

Covers features, model, loss and metrics for any decoder that `AutoModelForCausalLM` knows, trained as a whole or by adapters
(`lora.py`). How dialogues become tokens is in `dialogues.py`, what a row weighs in `sequences.py`, and how the loss stays small
in `compute/token_loss.py`.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from memsup.shared.data.chat_check import fields_of, locate_dialogues
from memsup.shared.data.errors import InputError
from memsup.shared.model.adapters import trains_adapters
from memsup.shared.model.content import parameters
from memsup.shared.model.folder import ModelSource, check_model
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.compute.frozen import keep_lower, widened
from memsup.worker.compute.token_loss import Scores, find_scores, losses_of_rows, summed_loss
from memsup.worker.hardware import lower_precision
from memsup.worker.plan.padding import Padding
from memsup.worker.state import Weights, WholeModel
from memsup.worker.tasks import Boundary, Metrics, Prepared, Trained
from memsup.worker.tasks.answering import Samples
from memsup.worker.tasks.cache import digest, heads
from memsup.worker.tasks.dialogues import DialogueReader, template_of
from memsup.worker.tasks.lora import attach, base_of, load_adapters, refuse_other_base
from memsup.worker.tasks.pretrained import (
    about_model,
    find_padding,
    load_model,
    open_origin,
    refuse_mixing,
    tokenizer_name,
)
from memsup.worker.tasks.sequences import (
    IGNORED,
    SequenceCorpus,
    SequenceRows,
    Source,
    StreamedSequences,
    open_sequences,
)
from memsup.worker.tasks.stream import open_stream
from memsup.worker.tasks.sums import Sums

_LOOKED_AT_TOKENS = 64
"""Of a row so many tokens are asked for what a model sees, and how it makes its scores."""
_FORESIGHT_FRACTION = 1e-5
"""The difference that no rounding makes, as a part of the largest score."""
_STORED = {torch.bfloat16: "BF16", torch.float16: "F16"}
"""How safetensors name the types."""


class CausalLM:
    """The task `causal-lm`."""

    def __init__(self) -> None:
        self._scores = Scores(in_pieces=False)

    def load(
        self,
        settings: Settings,
        paths: RunPaths,
        boundary: Boundary,
        *,
        checkpoint: Path | None = None,
        padding: Padding | None = None,
        head_rows: int | None = None,
    ) -> Prepared:
        task, training = settings.task, settings.training
        adapts = trains_adapters(task.kind, training.method, settings.lora.base_bits)
        origin, kind, config, tokenizer, max_length = open_origin(settings, None if adapts else checkpoint)
        assert tokenizer is not None  # `chat_check` has refused a model without one

        boundary()
        find = heads(locate_dialogues, head_rows) if task.stream else locate_dialogues
        corpus = open_sequences(
            paths.cache,
            Source(
                task=msgspec.json.encode([task.kind, task.messages, task.prompt, task.completion, task.text]).decode(),
                train=task.train or "",
                evaluation=task.eval,
                eval_share=training.eval_share,
                seed=training.seed,
                encoder=f"{tokenizer_name(str(task.model))}, {digest((template_of(tokenizer) or '').encode())}, {max_length}",
            ),
            lambda *_: DialogueReader(tokenizer, task, max_length),
            boundary,
            padding_token=int(tokenizer.pad_token_id),
            labels_are_tokens=True,
            find=find,
        )
        boundary()
        lower = lower_precision(training.amp) if adapts else None
        model, new = _loaded(origin, kind, config, tokenizer, training.seed, lower)
        if new:
            raise InputError(
                f"The weights in {origin} lack {new[0]} of the model that its config.json describes, which would begin with "
                "random numbers: copy both again."
            )
        refuse_mixing(model)
        train, evaluation = corpus.train, corpus.evaluation
        with widened(model):
            _refuse_foresight(model.eval(), train)
            self._scores = find_scores(model, _beginning(train))
        about_cuts: list[str] = []
        if not self._scores.in_pieces:
            about_cuts.append(
                f"The model makes its scores in a way of its own, so those of all tokens of a micro-batch for the "
                f"{config.get_text_config().vocab_size:,} words of its vocabulary are held at once."
            )
        weights: Weights = WholeModel()
        if adapts:
            base = base_of(str(task.model), boundary, settings.lora.base_bits)
            if checkpoint is not None:
                refuse_other_base(base, checkpoint)
            weights = adapters = attach(model, settings.lora, str(task.model), base, training.seed)
            if checkpoint is not None:
                load_adapters(model, adapters, checkpoint)
        if padding is None:
            # Tokens count their places from the left, so the other side is tried first.
            says = partial(losses_of_rows, scores=self._scores)
            with widened(model):
                padding, found = find_padding(model, says, train, evaluation, Padding.RIGHT, boundary)
            about_cuts += found
        train.padding = evaluation.padding = padding
        model.config.use_cache = True  # as it came, for whoever asks the result
        stream = None
        if task.stream:
            source = find(task.train or "")
            reader = DialogueReader(tokenizer, task, max_length, fields_of(source, task))
            stream = open_stream(source, StreamedSequences(reader, train), settings, paths, boundary, longest=max_length)
        return Prepared(
            model=model.eval(),
            tokenizer=tokenizer,
            train=train,
            stream=stream,
            evaluation=evaluation,
            padding=padding,
            about_cuts=about_cuts,
            fingerprint=corpus.fingerprint,
            left_out=corpus.counts.left_out,
            beside=_beside(corpus),
            facts=_facts(corpus, max_length, f"{about_model(model, origin, new)}; {len(tokenizer):,} tokens", model),
            samples=Samples(evaluation, tokenizer, paths.state),
            weights=weights,
        )

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return summed_loss(model, batch, self._scores, IGNORED)

    def weight(self, examples: Trained, indices: NDArray[np.int64]) -> float:
        return examples.weight(indices)

    def new_metrics(self) -> Metrics:
        return TokenMetrics(self._scores)


def _loaded(
    origin: str, kind: ModelSource, config: Any, tokenizer: Any, seed: int, lower: torch.dtype | None
) -> tuple[Any, list[str] | None]:
    """As `load_model`. Weights that all came in `lower` are left in it where mixed precision computes with them so. Raises
    InputError.
    """
    load = partial(load_model, transformers.AutoModelForCausalLM, origin, kind, config, tokenizer, seed)
    if lower is not None and config.dtype is lower:
        model, new = load(dtype=lower)
        folder = check_model(origin, task="causal-lm").folder
        if folder is not None and set(parameters(folder)) == {_STORED[lower]} and keep_lower(model):
            return model, new
        del model
    return load()


class TokenMetrics(Sums):
    """Counts on the model's device, so that nothing waits for it before `result`."""

    summed = ("_loss", "_targets", "_rows")

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._loss: Any = 0.0
        self._targets: Any = 0
        self._rows = 0

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        self._loss = self._loss + summed_loss(model, batch, self._scores, IGNORED).double()
        self._targets = self._targets + (batch["labels"] != IGNORED).sum()
        self._rows += len(batch["labels"])

    def result(self) -> dict[str, float]:
        """The mean loss of a target, and its exponential: among how many words the model is as good as undecided."""
        targets = int(self._targets)
        loss = float(self._loss) / targets
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "targets": float(targets),
            "rows": float(self._rows),
        }


def _beginning(rows: SequenceRows) -> dict[str, torch.Tensor]:
    """The first tokens of the longest row, as a batch."""
    batch = rows.padded(np.array([rows.lengths.argmax()], dtype=np.int64), rows.padding)
    return {name: values[:, :_LOOKED_AT_TOKENS] for name, values in batch.items()}


def _refuse_foresight(model: Any, rows: SequenceRows) -> None:
    """Raises InputError for a model that sees the token that it is to say, as an encoder does."""
    batch = _beginning(rows)
    half = batch["input_ids"].shape[1] // 2
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][:, half:] = batch["input_ids"][:, :1]
    with torch.no_grad():
        one, two = (
            model(**{name: values for name, values in each.items() if name != "labels"}, use_cache=False).logits[0, :half]
            for each in (batch, other)
        )
    if half and bool((one - two).abs().max() > _FORESIGHT_FRACTION * one.abs().max()):
        raise InputError(
            f"The model ({model.config.model_type}) sees the tokens that it is to say, so it would learn to copy them: choose "
            "one that goes on with texts, such as a Llama, a Qwen or a SmolLM."
        )


def _beside(corpus: SequenceCorpus) -> dict[str, float]:
    counts = corpus.counts
    found = {"shared_rows": counts.shared, "cut_rows": counts.cut, "left_out_rows": sum(counts.left_out.values())}
    return {name: float(rows) for name, rows in found.items() if rows}


def _facts(corpus: SequenceCorpus, max_length: int, about: str, model: Any) -> dict[str, str]:
    train, evaluation, counts = corpus.train, corpus.evaluation, corpus.counts
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held_out = "held out, equal questions all on one side"
    if not corpus.is_held_out:
        held_out = f"of their own; the questions of {counts.shared:,} are trained on too"
    return {
        "data": f"{len(train):,} rows to train on, with {int(train.targets.sum(dtype=np.int64)):,} tokens to learn",
        "evaluation": f"{len(evaluation):,} rows {held_out}",
        "length": f"median {np.median(train.lengths):.0f} tokens; {counts.cut:,} rows are cut at {max_length}",
        "model": about,
        "learnt": f"{trained:,} parameters",
    }
