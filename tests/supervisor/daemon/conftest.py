"""A run's folders and the supervisor's two sockets in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memsup.shared.paths import RunPaths, prepare, run_paths
from memsup.supervisor.daemon.sockets import Sockets


@pytest.fixture
def paths() -> RunPaths:
    paths = run_paths("default")
    prepare(paths)
    return paths


@pytest.fixture
def sockets(paths: RunPaths) -> Iterator[Sockets]:
    sockets = Sockets(paths)
    yield sockets
    sockets.close()
