"""What every test gets: folders of its own, no setting from outside, and hypothesis that prints how to repeat a failure.

NVML=absent runs them as on a machine without NVIDIA's library, wherever they run, and NVML=fake as on one with a GPU
(`fake_nvml/`); unset: as the machine is. Tests that need a certain device bring it themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from kit import FAULTS
from kit.faults.night_clock import NightClock

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the worker has it: threads that wait leave the cores to other tests
# What a child has compiled, the next hundred find; as in the Makefile, for who runs pytest by hand.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
hypothesis.settings.register_profile("memsup", print_blob=True, deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("nightly", print_blob=True, deadline=None, max_examples=200)  # new examples each time
hypothesis.settings.load_profile("memsup")

# A shell leaves it ignored to what it runs in the background, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


TESTS = Path(__file__).parent
BUDGET_S = float(os.environ.get("TEST_BUDGET_S", "60"))
"""No test outside of `nightly` may take longer on a machine that has its cores for it, nor may what it needs be made ready for
longer. An emulated machine has other budgets.
"""


LEFT_BEHIND = "TEST_RUNS_LEFT_BEHIND"
"""The variable with the file in which all processes of a session write down the runs that tests have left."""
_said_of_runs: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of xdist has it of the process that started it
        os.environ[LEFT_BEHIND] = f"{tempfile.mkdtemp(prefix='runs-left-')}/runs.jsonl"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The runs that no test's own process could ask are asked by one with torch; one that told something else fails all."""
    file = Path(os.environ[LEFT_BEHIND])
    if hasattr(session.config, "workerinput"):
        return
    if file.exists():
        from kit.asked_again import remembered

        environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMSUP_")} | {
            "HF_HUB_OFFLINE": "1"
        }
        asking = [sys.executable, "-m", "kit.asked_again", str(file)]
        subprocess.run(asking, cwd=TESTS, env=environment | {"PYTHONPATH": str(TESTS)}, timeout=900, check=False)
        _said_of_runs.extend(remembered(file))
        if any(line.startswith("WRONG") for line in _said_of_runs) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    shutil.rmtree(file.parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said_of_runs:
        terminalreporter.write_line(line, red=line.startswith("WRONG"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones come first, so that at the end of a parallel run no core waits for one of them."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that is over the budget, which grows as far as processes outnumber the cores."""
    report = yield
    computing = 2 * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # each test has a process or two of its own
    crowd = max(1.0, max(computing, os.getloadavg()[0]) / len(os.sched_getaffinity(0)))
    if report.passed and call.duration > BUDGET_S * crowd and "nightly" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = (
            f"It took {call.duration:.0f} s, and may take {BUDGET_S * crowd:.0f} on this machine as it is now. Make it quicker "
            "(tests/README.md says by what means), or mark it nightly if only nights are for it."
        )
    return report


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


@pytest.fixture(autouse=True)
def accuracy_is_counted_again(private_folders: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever run a test has trained to its end told the accuracy that its saved model has (`kit/asked_again.py`)."""
    yield
    own = private_folders / "state"
    for state in {own, Path(os.environ.get("MEMSUP_STATE_DIR", own))}:
        if state.is_dir() and any(state.glob("*/checkpoints/step-*")):
            from kit.asked_again import remember

            for run in state.iterdir():
                remember(run, request.node.nodeid, Path(os.environ[LEFT_BEHIND]))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws from torch does not depend on the tests that ran before it in the same process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """A guarded program takes a signal for as long as its process lives, which here is that of other tests as well."""
    yield
    if (session := sys.modules.get("memsup.session")) is not None:
        signal.signal(session.URGE, signal.SIG_DFL)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in training waits more than it computes, where it only has to go on while something else is tried."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_STEP_S", "0.1")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events that this process logs, with their fields."""
    from memsup.shared import log

    events: list[dict[str, Any]] = []
    monkeypatch.setattr(log._outputs, "outputs", (lambda event: events.append(dict(event)),))
    return events


@pytest.fixture
def night_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NightClock:
    """The clock of all processes of memsup that the test starts: `with night_clock.fast(FAST):` lets their waits pass."""
    clock = NightClock(tmp_path / "clock")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_CLOCK", str(clock.file))
    return clock
