"""Text classification: what a text has, one of a few labels or a number, is learnt from examples.

Covers features, model, loss, and metrics for any encoder that `AutoModelForSequenceClassification` knows: from a hub id, from a
folder with weights, or from a folder with a `config.json` alone, which is trained from nothing. What a label
is, its loss and its measures are in `targets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from memsup.memory import is_out_of_memory
from memsup.shared.data.check import refuse_unknown_weights
from memsup.shared.data.columns import Columns
from memsup.shared.data.errors import InputError
from memsup.shared.data.sources import locate
from memsup.shared.data.targets import ProblemType
from memsup.shared.log import log
from memsup.shared.model.folder import ModelSource
from memsup.shared.model.head import Fit
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.plan.padding import Padding
from memsup.worker.tasks import Boundary, Metrics, Prepared, Trained
from memsup.worker.tasks.cache import heads
from memsup.worker.tasks.corpus import Corpus, Counts, Rows, Source, StreamedTexts, Text, open_corpus
from memsup.worker.tasks.heads import begin_head_anew, doubts_refused, give_labels
from memsup.worker.tasks.pretrained import (
    Origin,
    about_model,
    find_padding,
    from_pretrained,
    load_config,
    load_model,
    load_tokenizer,
    longest_of,
    open_origin,
    refuse_mixing,
    tokenizer_name,
    tokenizer_of_characters,
)
from memsup.worker.tasks.stream import open_stream
from memsup.worker.tasks.targets import TARGETS, WEIGHTS, Stored, Target, logits_of
from memsup.worker.tasks.tokens import Tokens

_CLASSIFIER = transformers.AutoModelForSequenceClassification


# --------------------------------------------------------------------------------------------------------------------
# Features


class TextRows:
    """Rows of a corpus as the model's tensors."""

    def __init__(self, rows: Rows, batched: Callable[[Stored], Stored], tokenizer: Any, *, has_types: bool) -> None:
        """`batched` makes of labels as the corpus keeps them those that the loss takes. With `has_types` the model is told the
        types of tokens, as its tokenizer gives them.
        """
        self._rows, self._batched = rows, batched
        self.class_weights: NDArray[np.float64] | None = None
        """What a row of each label counts, by the labels' places in the corpus. None means that all count the same."""
        self._padding_token, self.padding = int(tokenizer.pad_token_id), Padding(tokenizer.padding_side)
        self._padding_type = int(tokenizer.pad_token_type_id) if has_types else None

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self._rows.lengths

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, indices: NDArray[np.int64]) -> str:
        return self._rows.where(indices)

    def weight(self, indices: NDArray[np.int64]) -> float:
        """What these rows count together."""
        return float(len(indices) if self.class_weights is None else self.class_weights[self._rows.labels(indices)].sum())

    def batch(self, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return self.padded(indices, self.padding)

    def padded(self, indices: NDArray[np.int64], padding: Padding) -> dict[str, torch.Tensor]:
        """As `batch`, padded on that side."""
        lengths = self._rows.lengths[indices][:, None]
        longest = lengths.max()
        places = np.arange(longest)[None, :]
        mask = places >= longest - lengths if padding is Padding.LEFT else places < lengths
        tokens = np.full(mask.shape, self._padding_token, np.int64)
        tokens[mask] = self._rows.tokens(indices)
        batch = {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self._batched(self._rows.labels(indices))),
        }
        if self.class_weights is not None:
            batch[WEIGHTS] = torch.from_numpy(self.class_weights[self._rows.labels(indices)].astype(np.float32))
        if self._padding_type is not None:
            types = np.full(mask.shape, self._padding_type, np.int64)
            types[mask] = self._rows.token_types(indices)
            batch["token_type_ids"] = torch.from_numpy(types)
        return batch


# --------------------------------------------------------------------------------------------------------------------
# The task


class TextClassification:
    """The task `text-classification`."""

    def __init__(self, problem_type: ProblemType) -> None:
        self._problem_type, self._target = problem_type, TARGETS[problem_type]

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
        origin = open_origin(settings, checkpoint)
        _, kind, config, tokenizer, max_length = origin

        boundary()
        with doubts_refused(paths.name):
            source = Source(
                train=task.train or "",
                evaluation=task.eval,
                text=task.text,
                label=task.label,
                problem_type=self._problem_type,
                text_pair=task.text_pair,
                labels=task.labels,
                accept=task.accept,
                eval_share=training.eval_share,
                seed=training.seed,
                encoder=f"{tokenizer_name(task.model or origin.name)}, {max_length}",
            )
            find = heads(locate, head_rows) if task.stream else locate
            corpus = open_corpus(paths.cache, source, partial(_make_encoder, origin), boundary, find)
            has_weights = kind is not ModelSource.CONFIG_ONLY
            fit, label_places = give_labels(config, corpus.labels, task.kind, has_weights=has_weights, accept=task.accept)
            config.problem_type = self._problem_type
        if tokenizer is None:
            tokenizer = from_pretrained(transformers.AutoTokenizer, str(corpus.tokenizer_folder))
        boundary()
        model, new = load_model(_CLASSIFIER, origin.name, kind, config, tokenizer, training.seed)
        if fit is Fit.DOUBTFUL:
            begin_head_anew(model, _CLASSIFIER, training.seed)
        refuse_mixing(model)
        batched = partial(self._target.batched, places=label_places)
        rows_of = partial(TextRows, batched=batched, tokenizer=tokenizer, has_types=_takes_types(model, tokenizer))
        refuse_special_tokens(model, corpus, tokenizer, rows_of)
        train, evaluation = rows_of(corpus.train), rows_of(corpus.evaluation)
        if task.class_weights is not None:
            train.class_weights = _class_weights(task.class_weights, corpus)
        about_cuts: list[str] = []
        if padding is None:
            padding, about_cuts = find_padding(model, logits_of, train, evaluation, train.padding, boundary)
        train.padding = evaluation.padding = padding
        if padding is not Padding.NONE:
            tokenizer.padding_side = padding.value  # it is saved with the model, for whoever pads its rows
        stream = None
        if task.stream:
            texts = StreamedTexts(corpus, source, Tokens(tokenizer, max_length), lambda rows: _alike(rows_of(rows), train))
            stream = open_stream(find(task.train or ""), texts, settings, paths, boundary, longest=max_length)
        return Prepared(
            model=model.eval(),
            tokenizer=tokenizer,
            train=train,
            stream=stream,
            evaluation=evaluation,
            padding=padding,
            about_cuts=about_cuts,
            fingerprint=corpus.fingerprint,
            left_out=_left_out(corpus.counts),
            beside=_beside(corpus.counts),
            facts={
                **_data_facts(corpus, self._target, max_length, tokenizer),
                "model": f"{about_model(model, origin.name, new)}; {len(tokenizer):,} tokens",
            },
        )

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = self._target.losses(logits_of(model, batch), batch["labels"])
        return (losses * batch[WEIGHTS]).sum() if WEIGHTS in batch else losses.sum()

    def weight(self, examples: Trained, indices: NDArray[np.int64]) -> float:
        return examples.weight(indices)

    def new_metrics(self) -> Metrics:
        return self._target.new_metrics()


def _alike(rows: TextRows, others: TextRows) -> TextRows:
    """The rows, padded and weighed as others are."""
    rows.padding, rows.class_weights = others.padding, others.class_weights
    return rows


def _class_weights(wanted: Literal["balanced"] | Mapping[str, float], corpus: Corpus) -> NDArray[np.float64]:
    """What a row of each label counts. Raises InputError."""
    if wanted != "balanced":
        refuse_unknown_weights(wanted, corpus.labels)
        return np.array([wanted.get(name, 1.0) for name in corpus.labels], np.float64)
    rows = len(corpus.train)
    of_label = np.bincount(corpus.train.labels(np.arange(rows)), minlength=len(corpus.labels))
    return rows / (len(corpus.labels) * np.maximum(of_label, 1))  # as scikit-learn has it


def load_finished(folder: str, max_length: int | None) -> tuple[Any, Tokens, bool]:
    """A model that a run has made, with what makes tokens of texts as in its training, and whether it takes their types. Raises
    InputError.
    """
    config = load_config(folder)
    tokenizer = load_tokenizer(folder)
    model, _ = load_model(_CLASSIFIER, folder, ModelSource.FOLDER, config, tokenizer, seed=0)
    return model.eval(), Tokens(tokenizer, longest_of(max_length, config, tokenizer)), _takes_types(model, tokenizer)


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer


def _make_encoder(origin: Origin, texts: Iterator[list[Text]], folder: Path) -> Tokens:
    return Tokens(origin.tokenizer or tokenizer_of_characters(texts, origin, folder), origin.max_length)


# --------------------------------------------------------------------------------------------------------------------
# Model


def refuse_special_tokens(model: Any, corpus: Corpus, tokenizer: Any, rows_of: Callable[[Rows], TextRows]) -> None:
    """Raises InputError where texts make a special token and the model cannot compute such a row beside one that has more or
    fewer of them: BART and T5, for one, look for the token that ends a text and want as many of it in each row.
    """
    for made in corpus.special:
        other_row = corpus.row_with_other_number(made)
        if other_row is None:
            continue
        batch = rows_of(corpus.rows(np.array([made.first_row, other_row]))).batch(np.arange(2))
        try:
            with torch.no_grad():
                logits_of(model.eval(), batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.warning("A row with a special token failed", exc_info=True)
            token = tokenizer.convert_ids_to_tokens(made.token)
            raise InputError(
                f"{corpus.where(made.first_row)}: the text makes the special token {token!r}, and this model cannot take one "
                f"among other rows{_more(made.rows - 1)}: write it in another way, as with a blank inside, or delete the row."
            ) from None


def _more(rows: int) -> str:
    return f"; so it is in {rows:,} more" if rows else ""


def _takes_types(model: Any, tokenizer: Any) -> bool:
    """Whether whoever asks the model hands it the types of tokens: its tokenizer gives them, and it knows what they are."""
    return "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in signature(model.forward).parameters


# --------------------------------------------------------------------------------------------------------------------
# What was found


def _left_out(counts: Counts) -> dict[str, int]:
    left_out = {
        "they have no text": counts.blank,
        "their text makes no token": counts.tokenless,
        "their label is none of task.labels": counts.other_labels,
    }
    return {why: rows for why, rows in left_out.items() if rows}


def _beside(counts: Counts) -> dict[str, float]:
    found = {"shared_rows": counts.shared, "left_out_rows": sum(_left_out(counts).values())}
    return {name: float(rows) for name, rows in found.items() if rows}


def _data_facts(corpus: Corpus, target: Target, max_length: int, tokenizer: Any) -> dict[str, str]:
    train, evaluation, counts = corpus.train, corpus.evaluation, corpus.counts
    lengths = np.concatenate([train.lengths, evaluation.lengths])
    reach = f"{100 * np.mean(lengths >= max_length):.1f} % of the texts reach"
    facts = {
        "data": f"{len(train):,} rows to train on, text in {_text_columns(corpus.columns)}, label in {corpus.columns.label!r}",
        "labels": target.about(corpus.labels, train.labels(np.arange(len(train)))),
        "evaluation": f"{len(evaluation):,} rows held out, equal texts all on one side",
        "length": f"median {np.median(lengths):.0f} tokens; {reach} {max_length}, where they are cut",
    }
    if not corpus.is_held_out:
        facts["evaluation"] = f"{len(evaluation):,} rows of their own; the texts of {counts.shared:,} are trained on too"
    if corpus.special:
        first = min(corpus.special, key=attrgetter("first_row"))
        facts["special tokens"] = (
            f"{counts.special:,} texts make tokens that mean something to the model, as transformers has it; "
            f"the first is {tokenizer.convert_ids_to_tokens(first.token)!r} in {corpus.where(first.first_row)}"
        )
    if counts.repeated:
        facts["repeated"] = f"{counts.repeated:,} rows of the training data have the text of an earlier one"
    return facts


def _text_columns(columns: Columns) -> str:
    return repr(columns.text) if columns.text_pair is None else f"{columns.text!r} and {columns.text_pair!r}"
