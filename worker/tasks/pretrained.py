"""Model, configuration and tokenizer as transformers loads them, for whatever task: what a foreign folder may not do, and what
is said of one that cannot be loaded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from memsup.memory import is_out_of_memory
from memsup.shared.data.errors import InputError
from memsup.shared.files import read_small
from memsup.shared.log import log
from memsup.shared.model import tokenizer as tokenizer_files
from memsup.shared.model.config import OWN_ATTENTION
from memsup.shared.model.folder import MOST_TEXT_BYTES, ModelSource, check_model
from memsup.shared.settings import Settings
from memsup.worker.plan.padding import Padding, choose, in_words
from memsup.worker.tasks.characters import character_vocabulary, write_tokenizer
from memsup.worker.tasks.probe import Probe, Says

_MOST_SPECIAL_TOKENS = 1000
_POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"}
_POSITIONS_AFTER_PADDING |= {"xlm-roberta", "xlm-roberta-xl", "xmod"}
"""Models whose first positions belong to padding, so that they take fewer tokens than they have positions."""


def quiet_libraries() -> None:
    """Has what transformers says go the way of our own events, and no bars be drawn."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()


class Origin(NamedTuple):
    """Where a training's model comes from, and what was loaded of it before its weights."""

    name: str
    """The folder or hub id that everything is loaded from."""
    kind: ModelSource
    config: Any
    tokenizer: Any | None
    """None means that it has none, so that one is made of the training's texts."""
    max_length: int
    """The length in tokens at which texts are cut."""


def open_origin(settings: Settings, checkpoint: Path | None) -> Origin:
    """What the task's settings name, or a checkpoint that is gone on from. Raises InputError."""
    quiet_libraries()
    model = settings.task.model
    found = check_model(model, task=settings.task.kind) if checkpoint is None else None
    name = str(checkpoint or model)
    config = load_config(name)
    tokenizer = load_tokenizer(name) if found is None or found.has_tokenizer else None
    kind = found.source if found else ModelSource.FOLDER
    return Origin(name, kind, config, tokenizer, longest_of(settings.training.max_length, config, tokenizer))


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer


def load_tokenizer(origin: str) -> Any:
    """The tokenizer of the model. Raises InputError."""
    tokenizer = from_pretrained(transformers.AutoTokenizer, origin)
    if _is_empty(tokenizer):
        raise InputError(
            f"The tokenizer of {origin} has no vocabulary: transformers finds no file of it that its class reads; copy its "
            "tokenizer.json there too."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {origin} has no padding token: choose a model that was made for classification."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_empty(tokenizer: Any) -> bool:
    """Whether it knows nothing but special tokens. Where transformers misses a vocabulary it may well make such a one."""
    if len(tokenizer) > _MOST_SPECIAL_TOKENS:
        return False
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    return not any(any(map(str.isalnum, token)) for token in tokenizer.get_vocab() if token not in special)


def tokenizer_name(model: str) -> str:
    """A name that changes when a folder's tokenizer, or the settings it is made by, change. A hub id stands for itself. Raises
    InputError.
    """
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    for pattern in ("config.json", "tokenizer_config.json", *tokenizer_files.FILES):
        for file in sorted(file for file in Path(model).glob(pattern) if not file.is_dir()):
            try:
                digest.update(os.fsencode(file.name) + read_small(file, MOST_TEXT_BYTES))
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}: copy it again.") from None
    return digest.hexdigest()


def tokenizer_of_characters(texts: Iterable[Sequence[str | tuple[str, str]]], origin: Origin, folder: Path) -> Any:
    """A tokenizer for a model that has none, made of these texts, which is left in `folder`. Raises InputError."""
    vocabulary = character_vocabulary(texts, at_most=origin.config.vocab_size)
    write_tokenizer(vocabulary, folder, max_length=positions_of(origin.config) or origin.max_length)
    return from_pretrained(transformers.AutoTokenizer, str(folder))


def positions_of(config: Any) -> int | None:
    """The most tokens that the model takes. None means that it sets no bound."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return positions if positions > 0 else None


def longest_of(wanted: int | None, config: Any, tokenizer: Any | None) -> int:
    """The length at which texts are cut: what the settings want, unless model or tokenizer take less."""
    bounds = [wanted or 512, positions_of(config), getattr(tokenizer, "model_max_length", None)]
    return min(bound for bound in bounds if bound is not None)


# --------------------------------------------------------------------------------------------------------------------
# Model


def load_config(origin: str) -> Any:
    """The model's configuration. Which code computes attention is not for a model's folder to say: it might name a kernel at a
    hub, which transformers would fetch and run. Raises InputError.
    """
    config = from_pretrained(transformers.AutoConfig, origin)
    if config._attn_implementation not in OWN_ATTENTION:
        config._attn_implementation = None  # of its model too if it has several; transformers then takes the first that it can
    return config


def about_model(model: Any, origin: str, new: list[str] | None) -> str:
    """Kind, size and origin of a model that `load_model` has loaded, in a line for people."""
    weights = "trained from nothing" if new is None else f"weights from {origin}" + (f", new: {', '.join(new)}" if new else "")
    return f"{model.config.model_type}, {model.num_parameters():,} parameters, {weights}"


def load_model(
    auto: Any,
    origin: str,
    kind: ModelSource,
    config: Any,
    tokenizer: Any,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, list[str] | None]:
    """The model as `auto`, a class of transformers such as AutoModelForCausalLM, makes it, and the names of its weights that
    are new; None of them means that all are. New weights depend on `seed` alone. Raises InputError.
    """
    config.pad_token_id = tokenizer.pad_token_id  # some models tell from it which positions are padding
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind is ModelSource.CONFIG_ONLY:
            config.vocab_size = len(tokenizer)
            return _loading(origin, lambda: auto.from_config(config, dtype=dtype)), None
        model, found = from_pretrained(
            auto, origin, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
    rows = _embedding_rows(model)
    if rows is not None and len(tokenizer) > rows:
        raise InputError(
            f"The tokenizer of {origin} has {len(tokenizer):,} tokens and the model {rows:,}: they do not belong together; "
            "copy both again."
        )
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    if 2 * sum(sizes.get(name, 0) for name in new) > sum(sizes.values()):
        raise InputError(f"The weights in {origin} are not of the model that its config.json describes: copy both again.")
    own = f"{model.base_model_prefix}."
    if (other := min((name for name, *_ in found["mismatched_keys"] if name.startswith(own)), default=None)) is not None:
        raise InputError(
            f"The weights in {origin} have {other} in another shape than the model that its config.json describes, which "
            "would begin with random numbers there: copy both again."
        )
    if (lacks := missing_layer(model, new)) is not None:
        raise InputError(
            f"The weights in {origin} lack {lacks} of the model that its config.json describes, which would begin with random "
            "numbers: copy both again."
        )
    return model, sorted(new)


def missing_layer(model: Any, new: Container[str]) -> str | None:
    """The first weight of a layer of the model itself, or of its table of tokens, that is among the new ones. None means that
    none is: what a head and what leads to it need may be new.
    """
    of_layers = re.compile(rf"{re.escape(model.base_model_prefix)}\.(.*\.)?\d+\.")
    table = getattr(_embeddings(model), "weight", None)
    lacking = (name for name, weight in model.named_parameters() if name in new and (weight is table or of_layers.match(name)))
    return min(lacking, default=None)


def _embedding_rows(model: Any) -> int | None:
    """For how many tokens the model has a row. It is None for one that has no such table, such as CANINE."""
    rows = getattr(_embeddings(model), "num_embeddings", None)
    return None if rows is None else int(rows)


def _embeddings(model: Any) -> Any | None:
    """The model's table of tokens. It is None for one that has none."""
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


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


def from_pretrained(auto: Any, origin: str, **arguments: Any) -> Any:
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
        raise InputError(_why_not_loaded(origin, error)) from None


def _why_not_loaded(origin: str, error: Exception) -> str:
    """What a library says stays in the log: it may be an advice that is wrong here, such as to run others' code."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"The model {origin} needs the package {error.name}, which is not installed."
    failed = f"The model {origin} cannot be loaded ({type(error).__name__}; the worker's log has more)"
    if os.path.isdir(origin):
        return f"{failed}: copy its config.json, weights and tokenizer again from where it came from, all of one version."
    return f"{failed}: check the name and the network, or give a folder with its config.json, weights and tokenizer."


# --------------------------------------------------------------------------------------------------------------------
# What it says of a row


class Padded(Protocol):
    """Rows that can be padded on either side."""

    @property
    def lengths(self) -> NDArray[np.int32]: ...

    def padded(self, indices: NDArray[np.int64], padding: Padding) -> dict[str, torch.Tensor]: ...


def find_padding(
    model: Any, says: Says, train: Padded, evaluation: Padded, expected: Padding, boundary: Callable[[], None]
) -> tuple[Padding, list[str]]:
    """Where rows are padded so that the model says of each what it says of it alone, and what is to be told of that. The side
    that people expect is tried first. Raises InputError where it depends on other rows anyway.
    """
    rows = train if np.ptp(train.lengths) else evaluation
    sides = [expected, Padding.LEFT if expected is Padding.RIGHT else Padding.RIGHT]
    probe = Probe(model, says, rows.padded, rows.lengths, boundary)
    try:
        same = probe.same(sides)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"The model cannot compute rows of the data ({type(error).__name__}: {error}): choose another model."
        ) from error
    found = choose(same)
    if found is None:
        when = "after it has computed another one" if same.beside_others else "beside another one of the same length"
        raise InputError(
            f"The model says something else of a row {when}, so its result would depend on how much memory there was: choose "
            "another model."
        )
    about = [in_words(found, sides[0])]
    if probe.draws_by_cut(found):
        about.append("What the model drops of a row depends on the rows beside it, so another cut is another draw of dropout.")
    return found, [sentence for sentence in about if sentence is not None]
