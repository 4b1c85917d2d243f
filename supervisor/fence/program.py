"""What a command's environment has, so that a program of a person's own can call `memsup.guard`, and one with Hugging Face's
Trainer need not.

Its interpreter may know nothing of memsup, and be older. So a folder with nothing but a link to memsup's own package comes
first on `PYTHONPATH`, before what the user has there. A second one has a `sitecustomize`, which every interpreter of the
command imports, and which waits for a Trainer (`program/attach_site.py`). Programs that do not look at it (`python -I`) are
fenced and no more.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import memsup
from memsup.shared.commands import command
from memsup.shared.endpoints import WORKER_SOCKET
from memsup.shared.log import log
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord

VARIABLE = "_MEMSUP_LINK"
"""The client reads it (`program/link.py`)."""


def told_to_program(paths: RunPaths, record: RunRecord, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a program finds memsup, and its run. Empty where no folder can be made, or none of that name can
    stand in `PYTHONPATH`.
    """
    ours = make_findable(paths, record)
    if not ours:
        return {}
    theirs = environment.get("PYTHONPATH")
    checkpoint = record.settings.checkpoint
    told = {
        "socket": str(paths.runtime / WORKER_SOCKET),
        "run_id": record.run_id,
        "checkpoints": checkpoint.folder or str(paths.checkpoints),
        "every_s": checkpoint.every_s,
        "keep": checkpoint.keep,
        "start_anew": command("start", paths.name) + " --fresh",
    }
    return {"PYTHONPATH": os.pathsep.join([*ours, theirs] if theirs else ours), VARIABLE: json.dumps(told)}


def make_findable(paths: RunPaths, record: RunRecord) -> list[str]:
    """The folders for `PYTHONPATH`, made anew where somebody removed them: a program that runs may start processes that look
    there at any time. Empty where none can be made, or stand there.
    """
    package = Path(os.path.dirname(os.path.abspath(str(memsup.__file__))))
    links = {paths.runtime / "program" / "memsup": package}
    if record.attaches:
        links[paths.runtime / "attaching" / "sitecustomize.py"] = package / "attach_site.py"
    if os.pathsep in str(paths.runtime):
        log.warning("Programs cannot find memsup.guard: the folder's name has a colon", folder=str(paths.runtime))
        return []
    try:
        for link, target in links.items():
            _link(link, target)
    except OSError as error:
        log.warning("Programs cannot find memsup.guard", why=str(error))
        return []
    return [str(link.parent) for link in links]


def _link(link: Path, target: Path) -> None:
    """Makes a folder with its one link, which may be left from an earlier start, of another memsup perhaps."""
    link.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        if os.readlink(link) == str(target):
            return
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(target)
