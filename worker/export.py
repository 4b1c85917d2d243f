"""`python -m memsup.worker.export`: makes one model of adapters and the weights that they belong to, in a process of its own.

Writes the folder `--target`, which is not there yet, beside its place, flushes and renames it. On stdout stands one line,
`{"dtype": …}` or `{"error": "one sentence"}`. Adapters are added in float32; the result has the type that the weights came in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import sys
from pathlib import Path

from memsup.memory import is_out_of_memory
from memsup.shared.data.errors import InputError
from memsup.shared.files import flush_folder
from memsup.shared.log import FromLibraries, json_lines, log, log_to, to_standard_error
from memsup.worker.imports import quick_scan_of_transformers, without_search_for_garbage


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker.export", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--limit-bytes", type=int)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    log_to(None, json_lines(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    if arguments.limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.limit_bytes, arguments.limit_bytes))
    try:
        said = {"dtype": _merge(arguments.model, Path(arguments.target))}
    except Exception as error:
        log.exception("Exporting ends here")
        said = {"error": _why(error, arguments.limit_bytes)}
    answers.write(json.dumps(said) + "\n")
    answers.flush()
    return int("error" in said)


def _merge(folder: str, target: Path) -> str:
    """Returns the type of the weights."""
    with without_search_for_garbage(), quick_scan_of_transformers():
        from memsup.worker.tasks.answering import load_answering

    found = load_answering(folder)
    model = found.model.to(found.dtype)
    beside = target.with_name(target.name + ".new")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(mode=0o700)
    try:
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(beside)
        found.tokenizer.save_pretrained(beside)
        for file in beside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        flush_folder(beside)
        beside.rename(target)
        flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return str(model.dtype).removeprefix("torch.")


def _why(error: Exception, limit_bytes: int | None) -> str:
    if is_out_of_memory(error):
        limit = "" if not limit_bytes else f" of {limit_bytes >> 20:,} MiB"
        return (
            f"The model does not fit into the memory{limit} that may be used now: pause what else runs, or wait until it ends."
        )
    if isinstance(error, OSError):
        return f"The model cannot be written: {error.strerror}."
    return str(error) if isinstance(error, InputError) else f"The model cannot be exported ({type(error).__name__}: {error})."


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # taking torch down in order takes seconds
