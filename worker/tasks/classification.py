"""Text classification: a text has one of a few labels.

Covers features, model, loss, and metrics for any encoder that `AutoModelForSequenceClassification` knows: from a hub id, from a
folder with weights, or from a folder with a `config.json` alone, which is trained from nothing. One label a text.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional

from memsup.shared.data.errors import InputError
from memsup.shared.files import read_small
from memsup.shared.log import log
from memsup.shared.model_folder import MOST_TEXT_BYTES, ModelSource, check_model
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.memory import is_out_of_memory
from memsup.worker.tasks import Boundary, Examples, Prepared
from memsup.worker.tasks.characters import character_vocabulary, write_tokenizer
from memsup.worker.tasks.corpus import Corpus, Rows, Source, open_corpus

_CHARS_A_TOKEN = 100
"""No tokenizer makes longer tokens of text; what lies further behind the cut is not worth its memory."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_OWN_ATTENTION = ("sdpa", "eager")
"""The ways to compute attention that are in torch and transformers themselves."""
_POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"}
_POSITIONS_AFTER_PADDING |= {"xlm-roberta", "xlm-roberta-xl", "xmod"}
"""Models whose first positions belong to padding, so that they take fewer tokens than they have positions."""


# --------------------------------------------------------------------------------------------------------------------
# Features


class Tokens:
    """The encoder that the corpus is made with."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.vocabulary_size = len(tokenizer)
        self._tokenizer, self._max_length = tokenizer, max_length

    def encode(self, texts: list[str]) -> Sequence[Sequence[int]]:
        cut = [text[: self._max_length * _CHARS_A_TOKEN] for text in texts]
        encoded = self._tokenizer(
            cut, truncation=True, max_length=self._max_length, return_attention_mask=False, return_token_type_ids=False
        )
        return encoded["input_ids"]


class TextRows:
    """Rows of a corpus as the model's tensors."""

    def __init__(self, rows: Rows, label_places: NDArray[np.int64], tokenizer: Any) -> None:
        self._rows, self._label_places = rows, label_places
        self._padding_token, self._padding_left = int(tokenizer.pad_token_id), tokenizer.padding_side == "left"

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self._rows.lengths

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        lengths = self._rows.lengths[indices][:, None]
        longest = lengths.max()
        places = np.arange(longest)[None, :]
        mask = places >= longest - lengths if self._padding_left else places < lengths
        tokens = np.full(mask.shape, self._padding_token, np.int64)
        tokens[mask] = self._rows.tokens(indices)
        return {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self._label_places[self._rows.labels(indices)]),
        }


# --------------------------------------------------------------------------------------------------------------------
# Loss and metrics


class ClassificationMetrics:
    """Counts on the model's device, so that nothing waits for it before `result`."""

    def __init__(self) -> None:
        self._loss: Any = 0.0
        self._correct: Any = 0
        self._rows_of_label: Any = 0

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        logits = _logits(model, batch)
        self._loss = self._loss + functional.cross_entropy(logits, batch["labels"], reduction="none").double().sum()
        self._correct = self._correct + (logits.argmax(dim=-1) == batch["labels"]).sum()
        places = torch.arange(logits.shape[-1], device=logits.device)  # `bincount` would wait for the device
        self._rows_of_label = self._rows_of_label + (batch["labels"][:, None] == places).sum(dim=0)

    def result(self) -> dict[str, float]:
        rows = int(self._rows_of_label.sum())
        return {
            "accuracy": int(self._correct) / rows,
            "majority_accuracy": int(self._rows_of_label.max()) / rows,
            "loss": float(self._loss) / rows,
            "rows": float(rows),
        }


def _logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits, shape (rows, labels), in float32 whatever the forward pass computed in."""
    return model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits.float()


class TextClassification:
    """The task `text-classification`."""

    def load(self, settings: Settings, paths: RunPaths, boundary: Boundary, *, checkpoint: Path | None = None) -> Prepared:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_default_handler()  # what it says goes the way of our own events
        transformers.utils.logging.enable_propagation()
        task, training = settings.task, settings.training
        kind = check_model(task.model) if checkpoint is None else ModelSource.FOLDER
        origin = str(checkpoint or task.model)
        config = _load_config(origin)
        tokenizer = _load_tokenizer(origin, kind)
        max_length = _max_length(training.max_length, config, tokenizer)

        boundary()
        corpus = open_corpus(
            paths.cache,
            Source(
                train=task.train or "",
                evaluation=task.eval,
                text=task.text,
                label=task.label,
                eval_share=training.eval_share,
                seed=training.seed,
                encoder=f"{_tokenizer_name(task.model or origin)}, {max_length}",
            ),
            partial(_make_encoder, tokenizer, config, max_length),
            boundary,
        )
        if tokenizer is None:
            tokenizer = _from_pretrained(transformers.AutoTokenizer, str(corpus.tokenizer_folder))
        label_places = _give_labels(config, corpus.labels)
        boundary()
        model, new_layers = _load_model(origin, kind, config, tokenizer, training.seed)
        refuse_mixing(model)
        return Prepared(
            model=model.eval(),
            tokenizer=tokenizer,
            train=TextRows(corpus.train, label_places, tokenizer),
            evaluation=TextRows(corpus.evaluation, label_places, tokenizer),
            fingerprint=corpus.fingerprint,
            left_out={"they have no text": corpus.counts.blank} if corpus.counts.blank else {},
            facts={
                **_data_facts(corpus, max_length, held_out=task.eval is None),
                "model": f"{config.model_type}, {model.num_parameters():,} parameters, {new_layers}; {len(tokenizer):,} tokens",
            },
        )

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(_logits(model, batch), batch["labels"], reduction="sum")

    def weight(self, examples: Examples, indices: NDArray[np.int64]) -> float:  # noqa: ARG002 - others weigh by what the rows hold
        return float(len(indices))

    def new_metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics()


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer


def _load_tokenizer(origin: str, kind: ModelSource) -> Any | None:
    """The tokenizer of the model. None means that it comes with none and is trained from nothing: then one is learnt. Raises
    InputError.
    """
    if kind is not ModelSource.HUB and not any(any(Path(origin).glob(pattern)) for pattern in _TOKENIZER_FILES):
        if kind is ModelSource.CONFIG_ONLY:
            return None
        raise InputError(f"{origin} has weights but no tokenizer: copy its tokenizer.json or vocab.txt there too.")
    tokenizer = _from_pretrained(transformers.AutoTokenizer, origin)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {origin} has no padding token: choose a model that was made for classification."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_name(model: str) -> str:
    """A name that changes when a folder's tokenizer, or the settings it is made by, change. A hub id stands for itself. Raises
    InputError.
    """
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    for pattern in ("config.json", "tokenizer_config.json", *_TOKENIZER_FILES):
        for file in sorted(Path(model).glob(pattern)):
            try:
                digest.update(os.fsencode(file.name) + read_small(file, MOST_TEXT_BYTES))
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}: copy it again.") from None
    return digest.hexdigest()


def _positions(config: Any) -> int | None:
    """The most tokens that the model takes. None means that it sets no bound."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return positions if positions > 0 else None


def _max_length(wanted: int | None, config: Any, tokenizer: Any | None) -> int:
    """The length at which texts are cut: what the settings want, unless model or tokenizer take less."""
    bounds = [wanted or 512, _positions(config), getattr(tokenizer, "model_max_length", None)]
    return min(bound for bound in bounds if bound is not None)


def _make_encoder(tokenizer: Any | None, config: Any, max_length: int, texts: Iterator[list[str]], folder: Path) -> Tokens:
    if tokenizer is None:
        vocabulary = character_vocabulary(texts, at_most=config.vocab_size)
        write_tokenizer(vocabulary, folder, max_length=_positions(config) or max_length)
        tokenizer = _from_pretrained(transformers.AutoTokenizer, str(folder))
    return Tokens(tokenizer, max_length)


# --------------------------------------------------------------------------------------------------------------------
# Model


def _give_labels(config: Any, labels: list[str]) -> NDArray[np.int64]:
    """Puts the labels into the model's configuration, in its own order where it knows just these, and returns the place of
    each of `labels` among its outputs.
    """
    known = {str(name): place for name, place in (config.label2id or {}).items()}
    if set(known) == set(labels) and sorted(known.values()) == list(range(len(labels))):
        places = [known[name] for name in labels]
    else:
        places = list(range(len(labels)))
    config.label2id = dict(zip(labels, places, strict=True))
    config.id2label = {place: name for name, place in sorted(config.label2id.items(), key=lambda item: item[1])}
    config.problem_type = "single_label_classification"
    return np.array(places, np.int64)


def _load_config(origin: str) -> Any:
    """The model's configuration. Which code computes attention is not for a model's folder to say: it might name a kernel at a
    hub, which transformers would fetch and run. Raises InputError.
    """
    config = _from_pretrained(transformers.AutoConfig, origin)
    if config._attn_implementation not in _OWN_ATTENTION:
        config._attn_implementation = None  # of its model too if it has several; transformers then takes the first that it can
    return config


def _load_model(origin: str, kind: ModelSource, config: Any, tokenizer: Any, seed: int) -> tuple[Any, str]:
    """The model, and what of it is new. New weights depend on `seed` alone. Raises InputError."""
    auto = transformers.AutoModelForSequenceClassification
    config.pad_token_id = tokenizer.pad_token_id  # some models tell from it which positions are padding
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind is ModelSource.CONFIG_ONLY:
            config.vocab_size = len(tokenizer)
            return _loading(origin, lambda: auto.from_config(config, dtype=torch.float32)), "trained from nothing"
        model, found = _from_pretrained(
            auto, origin, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"The tokenizer of {origin} has {len(tokenizer):,} tokens and the model "
            f"{model.get_input_embeddings().num_embeddings:,}: they do not belong together; copy both again."
        )
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    if 2 * sum(sizes.get(name, 0) for name in new) > sum(sizes.values()):
        raise InputError(f"The weights in {origin} are not of the model that its config.json describes: copy both again.")
    return model, f"weights from {origin}" + (f", new: {', '.join(sorted(new))}" if new else "")


def refuse_mixing(model: torch.nn.Module) -> None:
    """Raises InputError for a model in which the rows of a micro-batch change each other's results: then pressure on memory,
    which changes the cut into micro-batches, would change what is learnt.
    """
    mixing = [name for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if mixing:
        raise InputError(
            f"The model normalises over the rows of a batch (BatchNorm in {mixing[0]} and {len(mixing) - 1} more), so its "
            "result would depend on how much memory there was: choose a model with layer normalisation, such as BERT."
        )


def _from_pretrained(auto: Any, origin: str, **arguments: Any) -> Any:
    return _loading(origin, lambda: auto.from_pretrained(origin, trust_remote_code=False, **arguments))


def _loading(origin: str, load: Callable[[], Any]) -> Any:
    """Calls `load`; whatever a foreign folder makes the libraries raise becomes an InputError. Only running out of memory or
    disk stays what it is.
    """
    try:
        return load()
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it all the same
            raise InputError(
                f"The weights of {origin} are a pickle with more in it than tensors, which could run a program of somebody "
                "else's; memsup does not load it. Get the model as safetensors."
            ) from None
        log.warning("Loading failed", origin=origin, exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"The model {origin} cannot be loaded ({reason}): check the name and the network, or give a folder with "
            "its config.json, weights and tokenizer."
        ) from None


# --------------------------------------------------------------------------------------------------------------------
# What was found


def _data_facts(corpus: Corpus, max_length: int, *, held_out: bool) -> dict[str, str]:
    train, evaluation, counts = corpus.train, corpus.evaluation, corpus.counts
    of_label = np.bincount(train.labels(np.arange(len(train))), minlength=len(corpus.labels))
    most = [(corpus.labels[place], of_label[place] / len(train)) for place in np.argsort(-of_label, kind="stable")[:8]]
    lengths = np.concatenate([train.lengths, evaluation.lengths])
    cut = float(np.mean(lengths >= max_length))
    facts = {
        "data": f"{len(train):,} rows to train on, text in {corpus.columns.text!r}, label in {corpus.columns.label!r}",
        "labels": f"{len(corpus.labels)}: " + ", ".join(f"{name} {share:.0%}" for name, share in most),
        "evaluation": f"{len(evaluation):,} rows held out, equal texts all on one side",
        "length": f"median {np.median(lengths):.0f} tokens; {cut:.1%} of the texts reach {max_length}, where they are cut",
    }
    if not held_out:
        facts["evaluation"] = f"{len(evaluation):,} rows of task.eval; the texts of {counts.shared:,} are trained on too"
    if counts.repeated:
        facts["repeated"] = f"{counts.repeated:,} rows of the training data have the text of an earlier one"
    return facts
