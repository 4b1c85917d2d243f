"""What every test gets: folders of its own, no setting from outside, and hypothesis that prints how to repeat a failure."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("memsup", print_blob=True, deadline=None)
hypothesis.settings.load_profile("memsup")


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and sockets below `tmp_path`, for this process and all its children; nothing of the user's own is touched."""
    for name in [name for name in os.environ if name.startswith("MEMSUP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MEMSUP_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path
