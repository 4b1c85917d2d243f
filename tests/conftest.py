"""What every test gets: folders of its own, no setting from outside, and hypothesis that prints how to repeat a failure.

NVML=absent runs them as on a machine without NVIDIA's library, wherever they run, and NVML=fake as on one with a GPU
(`fake_nvml/`); unset: as the machine is. Tests that need a certain device bring it themselves.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("memsup", print_blob=True, deadline=None)
hypothesis.settings.load_profile("memsup")

# A shell leaves it ignored to what it runs in the background, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the library is found that NVML asks for."""
    wanted = os.environ.get("NVML", "")
    folder = tmp_path_factory.mktemp("nvml")
    match wanted:
        case "":
            return {}
        case "absent":
            (folder / "libnvidia-ml.so.1").touch()  # found first, and no library
            return {"LD_LIBRARY_PATH": str(folder)}
        case "fake":
            from kit.fake_nvml import FakeNvml, build

            return FakeNvml(build(folder), folder / "control").environment
        case _:
            raise pytest.UsageError(f"NVML={wanted} is neither absent nor fake.")


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: dict[str, str]) -> Path:
    """State and sockets below `tmp_path`, for this process and all its children; nothing of the user's own is touched."""
    for name in [name for name in os.environ if name.startswith("MEMSUP_")]:
        monkeypatch.delenv(name)
    for name, value in nvml.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MEMSUP_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events that this process logs, with their fields."""
    from memsup.shared import log

    events: list[dict[str, Any]] = []
    monkeypatch.setattr(log._outputs, "outputs", (lambda event: events.append(dict(event)),))
    return events
