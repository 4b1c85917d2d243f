"""A model's folder, looked at before anything is loaded from it, without trusting what lies there.

`start` and the worker ask `check_model`, so that no library is led to a pipe, a device or a file of absurd size, and that what
can be told without torch is told before the terminal is closed. Goes by names, sizes and beginnings of files; no weights are
read. `weights.py`, `content.py`, `tokenizer.py` and `config.py` judge one thing each.
"""

from __future__ import annotations

import enum
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import Any

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.files import UnreadableError, open_regular, read_document
from memsup.shared.model import content, hub, libraries, pickles, tokenizer, weights
from memsup.shared.model.config import check_config, check_figures, replaced
from memsup.shared.model.tensors import check_names, check_tensors, token_rows
from memsup.shared.model.vocabulary import check_vocabulary

MOST_CONFIG_BYTES = 4 << 20
"""Room for the names of 50,000 labels."""
MOST_TEXT_BYTES = 256 << 20
"""The largest vocabularies that there are, as JSON, have a tenth of it."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TEXTS = {
    "*config.json": content.MOST_INDEX_BYTES,
    "*.index.json": content.MOST_INDEX_BYTES,
    "tokenizer.json": MOST_TEXT_BYTES,
    "vocab*": MOST_TEXT_BYTES,
    "merges.txt": MOST_TEXT_BYTES,
    "*.model": MOST_TEXT_BYTES,
    "*tokens*.json": content.MOST_INDEX_BYTES,
    "*.jinja": content.MOST_INDEX_BYTES,
}
"""What the libraries read as a whole, and the most bytes of it."""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_UNFINISHED = (".cache/huggingface/download/*.incomplete", "._____temp/*")
"""What the hub's library, and ModelScope's, have while they fetch into a folder."""
_LEVELS_DOWN = 3
_MOST_LOOKED_AT = 2000


class ModelSource(enum.StrEnum):
    """Where a model's weights come from."""

    FOLDER = "folder"
    CONFIG_ONLY = "config only"
    """The weights come from nowhere: the folder has a config.json alone, and the model is trained from nothing."""
    HUB = "hub"
    """The weights come from the hub, or from what was fetched of it before."""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What was seen of a model."""

    source: ModelSource
    folder: Path | None
    """Where its files lie. It is None for a model that has to be fetched from the hub first."""
    config: Mapping[str, Any] | None
    """What its config.json holds. It is None where nobody has read it yet."""
    has_tokenizer: bool
    notes: tuple[str, ...] = ()
    """What is done otherwise than the model's files say, each a sentence."""
    cannot_take: str | None = None
    """The token that no text may spell, since the model looks for the one that ends a row and wants as many in each. None means
    that it may spell any.
    """


def check_model(
    model: str | None, environment: Mapping[str, str] = os.environ, *, task: TaskKind = "text-classification"
) -> ModelSummary:
    """What there is of `model` on this machine. Raises InputError for a folder that holds no model which can be trained here
    for such a task, and for anything in it that no library should be led to.
    """
    if not model:
        raise InputError("task.model is not set: name a hub id such as bert-base-chinese, or a folder with a config.json.")
    path = Path(model)
    if (meant := hub.id_in_address(model)) and not os.path.lexists(path):
        raise InputError(f"{model[:300]} is an address: give the id alone, {meant}")
    if not os.path.lexists(path) and hub.is_hub_id(model):
        return _check_fetched(model, hub.cached_folder(model, environment), task)
    if not os.path.isdir(path):
        raise InputError(_no_folder(path, model[:300]))
    if not os.path.lexists(path / "config.json"):
        raise InputError(_no_config(path))
    return _check_folder(path, str(path), ModelSource.FOLDER, task)


def _check_fetched(model: str, folder: Path | None, task: TaskKind) -> ModelSummary:
    """Of a model from the hub. What was fetched only in part is as good as nothing: the worker fetches the rest."""
    missing = ModelSummary(source=ModelSource.HUB, folder=None, config=None, has_tokenizer=True)
    if folder is None or next((name for name in weights.NAMES if os.path.isfile(folder / name)), None) is None:
        return missing
    try:
        for index in folder.glob("*.index.json"):
            if not all(os.path.isfile(shard) for shard in content.shards(index)):
                return missing
    except InputError:
        return missing
    return _check_folder(folder, model, ModelSource.HUB, task)


def _check_folder(folder: Path, where: str, source: ModelSource, task: TaskKind) -> ModelSummary:
    names = _check_files(folder)
    if any(name == "adapter_config.json" for name in names):
        raise InputError(
            f"{where} is an adapter (PEFT, LoRA) and not a whole model: merge it into its model, see docs/models.md."
        )
    try:
        content.check_begin(folder / "config.json")
        found = read_config(folder)
    except (OSError, UnreadableError) as error:
        raise InputError(
            f"{folder / 'config.json'} cannot be read as JSON ({error}): copy it again from where the model came from."
        ) from None
    config = check_config(where, found, task)
    check_figures(where, config, libraries.activations(), whole_heads=libraries.wants_whole_heads(str(config["model_type"])))
    tokenizer_config = _read_tokenizer_config(folder, names)
    file = weights.find_weights(where, names, config)
    has_tokenizer = tokenizer.has_tokenizer(names, config, tokenizer_config)
    said: tuple[str, ...] = ()
    rows: int | None = None
    kind = str(config["model_type"])
    try:
        if file is not None:
            content.check_weights(folder / file)
            if (has := content.tensors(folder / file)) is not None:
                words, usual = libraries.words_of(kind), libraries.usual_figures(kind)
                said = check_tensors(where, has, config, words, libraries.families(), usual)
                rows = token_rows(has)
            elif file.endswith(".bin") and (pickled := pickles.names_in(folder / file)) is not None:
                check_names(where, config, pickled, libraries.words_of(kind), libraries.families())
        for name in names:
            if name.endswith("config.json") or any(fnmatchcase(name, pattern) for pattern in tokenizer.FILES):
                content.check_begin(folder / name)
        check_vocabulary(folder, names, tokenizer.tokenizer_class(config, tokenizer_config), tokenizer_config, rows)
    except OSError as error:
        raise _unreadable(error, folder) from None
    if file is None and any(any(folder.glob(pattern)) for pattern in _UNFINISHED):
        raise InputError(f"{where} has no weights, and was not fetched to its end: fetch it again.")
    if file is None and (checkpoints := _checkpoints(folder)):
        newest = checkpoints[-1]
        raise InputError(f"The weights of {where} lie in its {newest}: give that folder, or copy them up: {folder / newest}")
    if not has_tokenizer and file is not None and source is ModelSource.FOLDER:
        raise InputError(f"{where} has weights but no tokenizer: copy its tokenizer.json or vocab.txt there too.")
    tokenizer.check_tokenizer(
        where,
        names,
        config,
        tokenizer_config,
        libraries.is_installed,
        is_tiktoken=lambda name: _is_tiktoken(folder / name),
    )
    return ModelSummary(
        source=ModelSource.CONFIG_ONLY if file is None else source,
        folder=folder,
        config=config,
        has_tokenizer=has_tokenizer,
        notes=(*replaced(config), *said),
        cannot_take=tokenizer.end_token(tokenizer_config) if _counts_end_tokens(config, task) else None,
    )


def _counts_end_tokens(config: Mapping[str, Any], task: TaskKind) -> bool:
    return task == "text-classification" and libraries.counts_end_tokens(str(config["model_type"]))


def read_config(folder: Path) -> Any:
    """What `config.json` holds. Raises OSError and `UnreadableError`."""
    return read_document(folder / "config.json", json.loads, most_bytes=MOST_CONFIG_BYTES)


def _read_tokenizer_config(folder: Path, names: list[str]) -> Mapping[str, Any]:
    if "tokenizer_config.json" not in names:
        return {}
    file = folder / "tokenizer_config.json"
    try:
        content.check_begin(file)
        found = read_document(file, json.loads, most_bytes=content.MOST_INDEX_BYTES)
    except (OSError, UnreadableError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): copy it again from where the model came from.") from None
    return found if isinstance(found, dict) else {}


def _is_tiktoken(file: Path) -> bool:
    """Whether it is a list of tokens in base64 with their ranks, and not sentencepiece's own format."""
    if file.name == "tiktoken.model":
        return True
    try:
        fd, _ = open_regular(file)
    except OSError:
        return False
    try:
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", os.pread(fd, 512, 0)) is not None
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------------------------------------
# Folders that are none of a model


def _no_folder(path: Path, model: str) -> str:
    if os.path.isfile(path):
        if path.name.casefold().endswith(_ARCHIVES):
            return f"{model} is an archive: unpack it, and give the folder that holds the model's config.json."
        return f"{model} is a file: give the folder that holds it and the model's config.json, {path.parent}"
    if drive := re.match(r"([A-Za-z]):[\\/]", model):
        return f"{model} is a path of Windows: inside WSL its drive lies in /mnt/{drive[1].lower()}."
    return f"There is no model folder {model}: give the folder that holds the model's config.json, or a hub id."


def _no_config(folder: Path) -> str:
    begin = f"{folder} has no config.json, so it is no model folder"
    try:
        names = sorted(entry.name for _, entry in zip(range(_MOST_LOOKED_AT), os.scandir(folder), strict=False))
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}."
    if "adapter_config.json" in names:
        return f"{folder} is an adapter (PEFT, LoRA) and not a whole model: merge it into its model, see docs/models.md."
    near = [name for name in names if weights.meant_by(name) == "config.json"]
    if near:
        return f"{begin}, but {near[0]}: rename it to config.json."
    if checkpoints := _checkpoints(folder):
        return f"{begin}. It has {len(checkpoints)} checkpoints of a training: give one, such as {folder / checkpoints[-1]}"
    if below := _models_below(folder):
        more = f" or one of {len(below) - 1} more" if len(below) > 1 else ""
        return f"{begin}. A model lies below it: give {below[0]}{more}."
    if os.path.isfile(folder.parent / "config.json"):
        return f"{begin}. Its parent folder is one: give {folder.parent}"
    if original := next((name for name in names if fnmatchcase(name, "*bert_config.json")), None):
        if any(name.endswith(".bin") for name in names):
            return f'{begin}, but {original}: rename it to config.json, and add "model_type": "bert" to it.'
        return (
            f"{folder} is a model as it was first published, for TensorFlow: take it from the hub, such as bert-base-chinese."
        )
    if archives := [name for name in names if name.casefold().endswith(_ARCHIVES)]:
        return f"{begin}, but {archives[0]}: unpack it."
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return f"{begin}. {gguf[0]} is llama.cpp's, rounded to a few bits each: get the model that it was made from."
    return f"{begin}: give the one that save_pretrained wrote."


def _checkpoints(folder: Path) -> list[str]:
    """A Trainer's checkpoints in the folder, the newest last."""
    found = [name for name in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", name.name)]
    found = [name for name in found if os.path.isfile(name / "config.json")]
    return [name.name for name in sorted(found, key=lambda name: int(name.name.rpartition("-")[2]))]


def _models_below(folder: Path) -> list[Path]:
    """Folders with a config.json below this one, the nearest first. Looks at so many entries and levels only, into no link."""
    found: list[Path] = []
    level, left = [folder], _MOST_LOOKED_AT
    for _ in range(_LEVELS_DOWN):
        below: list[Path] = []
        for place in level:
            try:
                entries = sorted(place.iterdir())[:left]
            except OSError:
                continue
            left -= len(entries)
            below += [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
        found += [place for place in below if os.path.isfile(place / "config.json")]
        if found or left <= 0:
            break
        level = below
    return found


# --------------------------------------------------------------------------------------------------------------------
# Files that no library should be led to


def _check_files(folder: Path) -> list[str]:
    """The names of the files there. Raises InputError for what is neither a file nor a folder, for a link that leads nowhere,
    and for a file larger than any real one of its kind.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    if _is_read(entry.name):
                        raise InputError(f"{entry.path} is a link that leads nowhere: fetch or copy the file itself.")
                    continue
                if _is_of_no_interest(entry):
                    continue
                _check_file(entry)
                names.append(entry.name)
    except OSError as error:
        raise _unreadable(error, folder) from None
    return sorted(names)


def _check_file(entry: os.DirEntry[str]) -> None:
    """Raises InputError and OSError."""
    facts, begins = entry.stat(), b""
    size_bytes = facts.st_size
    if entry.name.endswith(".safetensors") or not stat.S_ISREG(facts.st_mode):
        fd, size_bytes = open_regular(entry.path)
        begins = os.pread(fd, 8, 0)
        os.close(fd)
    header_bytes = int.from_bytes(begins, "little")
    if content.MOST_HEADER_BYTES < header_bytes < size_bytes:
        raise _too_large(f"the header of {entry.path}", header_bytes, content.MOST_HEADER_BYTES)
    if size_bytes > (most_bytes := _most_bytes(entry.name)):
        raise _too_large(entry.path, size_bytes, most_bytes)


def _is_read(name: str) -> bool:
    """Whether a library would open a file of this name."""
    return _most_bytes(name) < math.inf or any(fnmatchcase(name, pattern) for pattern in (*WEIGHTS, *tokenizer.FILES))


def _is_of_no_interest(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder beside the files, such as one of checkpoints."""
    return entry.is_dir() and _most_bytes(entry.name) == math.inf and not entry.name.endswith((".safetensors", ".bin"))


def _most_bytes(name: str) -> float:
    return next((most_bytes for pattern, most_bytes in _TEXTS.items() if fnmatch(name, pattern)), math.inf)


def _unreadable(error: OSError, folder: Path) -> InputError:
    return InputError(
        f"{error.filename or folder} cannot be read: {error.strerror}; a model's folder has what save_pretrained wrote."
    )


def _too_large(what: str, has_bytes: int, most_bytes: float) -> InputError:
    return InputError(
        f"{what[:1].upper() + what[1:]} has {has_bytes:,} bytes, and no real one more than {most_bytes:,}: "
        "copy it again from where the model came from."
    )
