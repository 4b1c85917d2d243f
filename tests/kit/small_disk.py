"""A file system with room for little, which can be filled to the last byte; a real one, seen by one test alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memsup.supervisor.drill.private_mounts import leave_the_common_view, mount_small_disk

MIB = 1 << 20


def on_a_small_disk(folder: Path, size_bytes: int, play: Callable[[], None]) -> None:
    """In a thread with a mount of its own over `folder`, which the threads and processes inherit that `play` starts."""
    errors: list[BaseException] = []

    def thread() -> None:
        try:
            try:
                leave_the_common_view()
                mount_small_disk(folder, size_bytes)
            except OSError as error:
                pytest.skip(f"NOT RUN: this system lets nobody mount here: {error}")
            play()
        except BaseException as error:
            errors.append(error)

    running = threading.Thread(target=thread)
    running.start()
    running.join()
    if errors:
        raise errors[0]


def fill(folder: Path) -> Path:
    """The file that takes all of it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    return ballast
