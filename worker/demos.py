"""`python -m memsup.worker.demos JOB --target FOLDER`: writes out what a built-in job trains, once.

Of the packages that it comes from nothing is imported. On stdout stands a line, `{}` or `{"error": "one sentence"}`.
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

import memsup.shared
from memsup.memory import is_out_of_memory
from memsup.shared.data.errors import InputError
from memsup.shared.files import flush_folder
from memsup.shared.log import FromLibraries, json_lines, log, log_to, to_standard_error
from memsup.worker import demo_chat, demo_english

_WRITERS = {"chat": demo_chat.write, "english": demo_english.write}
_MOST_BYTES = 3 << 30
"""Twice what the largest one takes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker.demos", description=__doc__)
    parser.add_argument("job", choices=_WRITERS)
    parser.add_argument("--target", required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    log_to(None, json_lines(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    target = Path(arguments.target)
    beside = target.with_name(f"{target.name}.{os.getpid()}.new")
    said: dict[str, str] = {}
    try:
        beside.mkdir(parents=True, mode=0o700)
        _WRITERS[arguments.job](beside)
        shutil.copyfile(Path(memsup.shared.__file__).parent / "demo" / f"{arguments.job}.toml", beside / "memsup.toml")
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
        return "Memory ran out while the demo was written, which takes 1.5 GiB: close something, and try again."
    if isinstance(error, OSError) and error.strerror:
        return f"The demo cannot be written: {error.strerror}."
    return str(error) if isinstance(error, InputError) else f"The demo cannot be made ({type(error).__name__}: {error})."


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # taking torch down in order takes seconds
