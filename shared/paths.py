"""Where a run keeps its things, and the guard at the door: only the user's own, real, closed folders are used.

Covers the names of folders and files, and their checks. Opens no socket (`shared/endpoints.py`) and reads no file in them.
"""

from __future__ import annotations

import os
import re
import stat
from functools import cached_property
from pathlib import Path

import msgspec


class PathError(Exception):
    """A folder cannot be used; the text is one plain sentence with what to do."""


_RUN_NAME = re.compile(r"[^\W_][\w.-]{0,63}")
_MOST_NAME_BYTES = 200
"""A file system takes names of 255 bytes (NAME_MAX), and a run set aside has a longer name. A letter has up to four."""


class RunPaths(msgspec.Struct, frozen=True, dict=True):
    """All files of one run. `state` survives everything; `runtime` holds sockets and locks until the next boot."""

    name: str
    state: Path
    runtime: Path

    @cached_property
    def record(self) -> Path:
        return self.state / "run.json"

    @cached_property
    def status(self) -> Path:
        return self.state / "status.json"

    @cached_property
    def ledger(self) -> Path:
        return self.state / "ledger.jsonl"

    @cached_property
    def claim(self) -> Path:
        """What the run may take of the machine's memory, for other runs."""
        return self.state / "claim.json"

    @cached_property
    def blackbox(self) -> Path:
        return self.state / "blackbox"

    @cached_property
    def history(self) -> Path:
        return self.state / "history.jsonl"

    @cached_property
    def worker_log(self) -> Path:
        return self.state / "worker.log"

    @cached_property
    def supervisor_log(self) -> Path:
        return self.state / "supervisor.log"

    @cached_property
    def plan(self) -> Path:
        return self.state / "plan.jsonl"

    def plan_of_rank(self, rank: int) -> Path:
        """The plan of a rank beside the first."""
        return self.state / f"plan.rank{rank}.jsonl"

    @cached_property
    def cache(self) -> Path:
        """The data set, tokenised; may be deleted at any time."""
        return self.state / "cache"

    @cached_property
    def curves(self) -> Path:
        """What is written for TensorBoard and the like, a folder for each."""
        return self.state / "curves"

    @cached_property
    def checkpoints(self) -> Path:
        return self.state / "checkpoints"

    @cached_property
    def model(self) -> Path:
        return self.state / "model"

    @cached_property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.runtime / "supervisor.lock"


def run_paths(name: str) -> RunPaths:
    """The folders of run `name`; nothing is created. Raises `PathError` for a name that cannot be a folder's."""
    if not _RUN_NAME.fullmatch(name):
        raise PathError(
            f"{name!r} cannot be a run's name: use up to 64 letters, digits, '.', '-' or '_', beginning with a letter or digit."
        )
    if len(os.fsencode(name)) > _MOST_NAME_BYTES:
        raise PathError(
            f"{name!r} cannot be a run's name: it has {len(os.fsencode(name))} bytes in UTF-8, and no more than "
            f"{_MOST_NAME_BYTES} fit. Use a shorter one."
        )
    for root, variable in ((state_root(), "MEMSUP_STATE_DIR"), (runtime_root(), "MEMSUP_RUNTIME_DIR")):
        there = next(place for place in (root, *root.parents) if os.path.lexists(place))
        if not there.is_dir():
            raise PathError(f"{root} cannot be a folder: {there} is none. Choose another with {variable}.")
    state, runtime = state_root() / name, runtime_root() / name
    for folder in (state, runtime):
        if not is_text(str(folder)):
            raise PathError(f"{folder} is not UTF-8 text: choose another folder with MEMSUP_STATE_DIR and MEMSUP_RUNTIME_DIR.")
    return RunPaths(name=name, state=state, runtime=runtime)


def is_text(name: str) -> bool:
    """Whether `name` can be written down. A name that is not UTF-8 reaches Python as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def current_folder() -> Path:
    """The folder in which the command was given. Raises `PathError` where it is gone, or its name cannot be written down."""
    try:
        here = Path.cwd()
    except OSError as error:
        raise PathError(f"The current folder cannot be found ({error.strerror}): change to one that exists.") from None
    if not is_text(str(here)):
        raise PathError(f"The name of the current folder, {here}, is not UTF-8: rename it, or change to another folder.")
    return here


def current_umask() -> int:
    """What is taken from the rights of files that this process makes; it can only be told by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def absolute(path: str) -> Path:
    """`path` as seen from the current folder, which is only asked for where that matters. Raises `PathError`."""
    return Path(path) if os.path.isabs(path) else current_folder() / path


def state_root() -> Path:
    """`MEMSUP_STATE_DIR`, or `$XDG_STATE_HOME/memsup`."""
    chosen = os.environ.get("MEMSUP_STATE_DIR")
    if chosen:
        return absolute(chosen)
    # As `platformdirs` has it, which takes longer to import than a status to be asked for.
    home = os.environ.get("XDG_STATE_HOME", "").strip() or os.path.expanduser("~/.local/state")
    return Path(home) / "memsup"


def runtime_root() -> Path:
    """`MEMSUP_RUNTIME_DIR`, or `$XDG_RUNTIME_DIR/memsup`, or a private folder in /tmp where that is unset or gone."""
    chosen = os.environ.get("MEMSUP_RUNTIME_DIR")
    if chosen:
        return absolute(chosen)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and os.path.isdir(session):
        return Path(session) / "memsup"
    return Path(f"/tmp/memsup-{os.getuid()}")  # noqa: S108 - `prepare` refuses it unless it is ours alone


def prepare(paths: RunPaths) -> None:
    """Creates the run's two folders and checks them and the folders of all runs above them. Raises `PathError`."""
    for folder in (paths.state, paths.runtime):
        make_private(folder.parent)
        make_private(folder)


def make_private(folder: Path) -> None:
    """Creates `folder` (and what is missing above it) for this user alone, then checks it with `check_private`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PathError(f"{folder} cannot be created: {error.strerror}. Choose another with {_variable_of(folder)}.") from None
    check_private(folder)


def paths_of(run_name: str) -> RunPaths:
    """The folders of a run. Raises `PathError` for a name that cannot be a run's, and for a state folder that is not the
    user's.
    """
    paths = run_paths(run_name)
    for folder in (paths.state.parent, paths.state):
        if os.path.lexists(folder):
            check_private(folder)
    return paths


def check_private(folder: Path) -> None:
    """Raises `PathError` unless `folder` is a real folder (no link) of this user into which nobody else can write."""
    os.close(open_private(folder))


def open_private(folder: Path) -> int:
    """A descriptor of `folder`, checked on the descriptor itself, so that nothing can be swapped in between."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PathError(
            f"{folder} cannot be used as a private folder: {error.strerror}. Choose another with {_variable_of(folder)}."
        ) from None
    found = os.fstat(fd)
    problem = None
    if found.st_uid != os.getuid():
        problem = f"belongs to user {found.st_uid}, not to you (user {os.getuid()}). Choose another with {_variable_of(folder)}"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o}). Close it with: chmod 700 '{folder}'"
    if problem:
        os.close(fd)
        raise PathError(f"{folder} {problem}.")
    return fd


def _variable_of(folder: Path) -> str:
    """The environment variable that says where `folder` is to lie."""
    return "MEMSUP_RUNTIME_DIR" if folder.absolute().is_relative_to(runtime_root()) else "MEMSUP_STATE_DIR"
