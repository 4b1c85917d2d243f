"""Training of small adapters beside frozen weights (LoRA, Hu et al. 2021), by peft and in its layout.

The weights that are frozen are not copied into each checkpoint: it names where they are from and the hash of each of their
files, and is gone on with only beside the same ones. A checkpoint is a folder that `PeftModel.from_pretrained` loads.

    adapter_model.safetensors, adapter_config.json    as peft lays them out
    base.json                                         where the frozen weights are from, and what they were (`Base`)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash

from memsup.shared.data.errors import InputError
from memsup.shared.files import UnreadableError, open_regular, read_document
from memsup.shared.model.folder import WEIGHTS, check_model
from memsup.shared.settings import Lora
from memsup.worker.compute.frozen import seen_as_float32
from memsup.worker.state import Tick

BASE_FILE = "base.json"
ADAPTER = "adapter_model"
_NAME = "default"
_OF_NAME = re.compile(rf"\.{_NAME}(?=\.|$)")
"""Within the name of a weight; of a table of tokens at its end."""
_PREFIX = "base_model.model."
_HASHED_BYTES = 8 << 20


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The frozen weights that adapters belong to."""

    source: str
    """The folder, or the id at the hub."""
    files: dict[str, str]
    """The hash (XXH3, 128 bits) of the configuration and of each file of weights."""
    bits: int | None = None
    """In how many bits they were rounded to for training. None means that they were not."""


class Adapters:
    """What of a model with adapters is saved (`state.Weights`)."""

    stem = ADAPTER
    is_whole = False

    def __init__(self, config: Any, base: Base) -> None:
        self._config, self._base = config, base

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """The weights that learn, by peft's names."""
        trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        return {_PREFIX + _OF_NAME.sub("", name): tensor.detach() for name, tensor in trained.items()}

    def describe(self, model: Any, folder: Path) -> None:  # noqa: ARG002 - the configuration is the adapters'
        """Writes what belongs beside the tensors. Raises OSError."""
        self._config.save_pretrained(str(folder))
        (folder / BASE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self._base)) + b"\n")


def attach(model: Any, settings: Lora, source: str, base: Base, seed: int) -> Adapters:
    """Puts adapters into `model`, and freezes all else. Raises InputError."""
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) if settings.targets else "all-linear",
        use_rslora=settings.rslora,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(devices=[]), seen_as_float32(model):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
        except ValueError as error:
            if not settings.targets:
                raise
            names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")})
            raise InputError(
                f"lora.targets = {','.join(settings.targets)} fits no layer of the model: name some of {', '.join(names[:20])}."
            ) from error
    adapted: list[Any] = [one for one in model.modules() if isinstance(one, peft.tuners.tuners_utils.BaseTunerLayer)]
    for layer in adapted:
        # Else peft makes float32 of what mixed precision has rounded, for it to be rounded again.
        layer.cast_input_dtype_enabled = bool(settings.dropout)
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules or ())
    return Adapters(config, base)


def base_of(model: str, tick: Tick, bits: int | None = None) -> Base:
    """The files of the frozen weights as they are now, rounded to so many `bits` if any. Raises InputError."""
    folder = check_model(model, task="causal-lm").folder
    assert folder is not None, "it has been loaded"
    names = sorted({"config.json", *(file.name for pattern in WEIGHTS for file in folder.glob(pattern))})
    try:
        return Base(source=model, files={name: _hash(folder / name, tick) for name in names}, bits=bits)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}.") from None


def read_base(folder: Path) -> Base:
    """The frozen weights that the adapters in `folder` belong to. Raises InputError."""
    try:
        return read_document(folder / BASE_FILE, msgspec.json.Decoder(Base).decode)
    except (OSError, UnreadableError) as error:
        raise InputError(f"{folder / BASE_FILE} cannot be read ({error}): put the file back.") from None


def refuse_other_base(base: Base, checkpoint: Path) -> None:
    """Raises InputError where the adapters in `checkpoint` belong to other weights."""
    was = read_base(checkpoint)
    if was.bits != base.bits:
        now, then = (f"lora.base_bits = {bits}" if bits is not None else "no lora.base_bits" for bits in (base.bits, was.bits))
        raise InputError(f"The adapters in {checkpoint} were trained with {then}, and now there is {now}: set it as it was.")
    if was.files != base.files:
        other = sorted(name for name in {*was.files, *base.files} if was.files.get(name) != base.files.get(name))
        raise InputError(
            f"The adapters in {checkpoint} were trained beside other weights than those in {base.source}: "
            f"{', '.join(other[:4])} changed since. Put back the model as it was ({was.source}), or start anew."
        )


def load_adapters(model: Any, adapters: Adapters, checkpoint: Path) -> None:
    """Copies the adapters in `checkpoint` into those of `model`. Raises InputError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    own: Mapping[str, torch.Tensor] = adapters.tensors(model)
    try:
        found = load_file(checkpoint / f"{ADAPTER}.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"The adapters in {checkpoint} cannot be read ({error}).") from None
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in found.items()}:
        raise InputError(
            f"The adapters in {checkpoint} are of other layers or another rank: set lora.rank and lora.targets alike."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def merged(model: Any, folder: str) -> Any:
    """The model with the adapters in `folder` added to its weights."""
    import peft

    adapted = peft.PeftModel.from_pretrained(model, folder)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    adapts_one = any(hasattr(each, "base_layer") for each in (table, head))
    if adapts_one and head is not None and head.weight is table.weight:
        # What is added to the one would else be added to the other as well, and twice where both learn.
        of_head = getattr(head, "base_layer", head)
        of_head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return adapted.merge_and_unload()


def _hash(file: Path, tick: Tick) -> str:
    found = xxhash.xxh3_128()
    fd, _ = open_regular(file)
    with os.fdopen(fd, "rb") as content:
        while piece := content.read(_HASHED_BYTES):
            found.update(piece)
            tick()
    return found.hexdigest()
