"""After a death of the whole machine: gentler, as it was, or stopped until a person says so (`recovery.after_power_loss`).

The death is one that the black box tells of: frames of another boot, without an end. Command line, supervisor and training are
as they are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kit.cli_process import a_run, end_supervisors, eventually, memsup
from kit.fake_nvml import FakeNvml, build, compiler
from kit.run_state import endless_job, status, until

from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import read_record
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.client.contact import is_held
from memsup.supervisor.daemon.systemd import is_wanted
from memsup.supervisor.decide.after_power_loss import UNRESTRAINED, Restraint, restraint_of, waits
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.thresholds import heat_limits
from memsup.supervisor.record.blackbox import BlackBox, read_blackbox

DIED = "The machine went down without shutting down"
GENTLY = "Since the machine died it goes on gently: "


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


def entries(paths: RunPaths, event: str) -> list[dict[str, Any]]:
    lines = [msgspec.json.decode(line) for line in paths.ledger.read_bytes().splitlines()] if paths.ledger.exists() else []
    return [line for line in lines if line["event"] == event]


def the_machine_dies(paths: RunPaths) -> None:
    """The supervisor is killed, and the frames it left are of an earlier boot."""
    eventually(lambda: read_blackbox(paths.blackbox).frames)
    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))
    (frame, *_) = reversed(read_blackbox(paths.blackbox).frames)
    box = BlackBox(paths.blackbox, "0b4f3b5c-6f2e-4d38-9c5d-0123456789ab")
    for second in range(3):
        box.note(MemoryReading(at_s=1000.0 + second, ram_total_bytes=16 << 30, ram_available_bytes=9 << 30))
        box.flush(1000.0 + second, frame.at + second)


def record_of(tier: str = "full", micro_tokens: int | None = 4096, **fields: Any) -> RunRecord:
    settings = Settings()
    settings.training.micro_tokens = micro_tokens
    settings.recovery.after_power_loss = fields.pop("after", "gentle")
    known: dict[str, Any] = {"run": "default", "run_id": "r", "created_unix_s": 0.0, "wanted": Wanted.RUNNING, "gentle": True}
    return RunRecord(tier=tier, tier_reason="", settings=settings, **(known | fields))


@pytest.mark.parametrize(
    ("record", "most_tokens"),
    [
        (record_of("full", 4096), 1024),
        (record_of("safe", 1024), 128),
        (record_of("low", 128), 64),
        (record_of("full", 96), 48),
        (record_of("full", 1), 1),
        (record_of("full", None, command=["python", "train.py"]), None),
    ],
)
def test_gentler_is_the_tier_below_and_never_more_than_half(record: RunRecord, most_tokens: int | None) -> None:
    restraint = restraint_of(record, watches_gpus=True)
    assert (restraint.most_micro_tokens, restraint.cooler_by_c, restraint.power_fraction) == (most_tokens, 5.0, 0.85)


def test_it_is_said_in_a_sentence_with_what_to_type() -> None:
    here = restraint_of(record_of(run="second"), watches_gpus=True).sentence
    assert here == (
        "Since the machine died it goes on gently: micro-batches of at most 1,024 tokens, everything 5 °C cooler and 85 % of "
        "the GPU's power limit, where the driver lets it be set. As before: memsup stop --run second, then memsup start "
        "--run second; never so: --set recovery.after_power_loss=same"
    )
    command = restraint_of(record_of(command=["true"]), watches_gpus=False)
    assert command == Restraint(cooler_by_c=5.0, sentence=command.sentence)
    assert str(command.sentence).startswith(GENTLY + "everything 5 °C cooler. As before: memsup stop, then memsup start;")


def test_nothing_changes_where_nothing_happened_or_the_user_said_so() -> None:
    for record in (record_of(gentle=False), record_of(after="same"), record_of(after="ask")):
        assert restraint_of(record, watches_gpus=True) is UNRESTRAINED
    assert waits(record_of(after="gentle")) is waits(record_of(after="same")) is None
    assert waits(record_of(after="ask", wanted=Wanted.PAUSED)) is None, "nothing would be started anyway"


def test_cooler_is_cooler_at_every_level_but_the_devices_own() -> None:
    ever = heat_limits(93.0)
    cooler = ever.cooler(5.0)
    for level in ("colour_c", "pace_c", "hold_c", "resume_c"):
        assert getattr(cooler, level) == getattr(ever, level) - 5.0
    assert cooler.slowdown_c == 93.0


def test_ask_starts_nothing_until_a_person_has_said_so(tmp_path: Path) -> None:
    """Exit 1 and what to type; `status` says it, no boot begins it, and the next start is the answer."""
    begun = tmp_path / "begun"
    paths = a_run(command=["sh", "-c", f"echo x >> {begun}; exec sleep 1000"])
    memsup("start", "--set", "recovery.after_power_loss=ask")
    eventually(lambda: begun.exists() and begun.read_text() == "x\n")
    the_machine_dies(paths)
    asked = memsup("start")
    assert asked.returncode == 1
    assert asked.stderr.startswith(DIED)
    assert "It stays stopped, as recovery.after_power_loss is ask. Go on as before: memsup start" in asked.stderr
    assert "Started" not in asked.stdout
    eventually(lambda: not is_held(paths))
    seen = memsup("status", "--json")
    assert seen.returncode == 1
    assert (seen.document["state"], seen.document["wanted"]) == ("stopped", "stopped")
    assert [sentence[: len(DIED)] for sentence in seen.document["attention"][:1]] == [DIED]
    assert "Go on as before: memsup start" in seen.document["attention"][1]
    assert not is_wanted(read_record(paths.record), None)
    assert [entry["reason"] for entry in entries(paths, "wanted")] == [seen.document["attention"][1]]
    assert begun.read_text() == "x\n", "nothing was started"
    assert memsup("start").returncode == 0
    until(lambda seen: seen["state"] == "running")
    assert status()["attention"] == []
    eventually(lambda: begun.read_text() == "x\nx\n")


def test_ask_can_be_answered_with_gently(tmp_path: Path) -> None:
    paths = a_run(command=["sleep", "1000"])
    memsup("start", "--set", "recovery.after_power_loss=ask")
    the_machine_dies(paths)
    assert memsup("start").returncode == 1
    eventually(lambda: not is_held(paths))
    memsup("start", "--set", "recovery.after_power_loss=gentle")
    assert [sentence[: len(GENTLY)] for sentence in status()["attention"]] == [GENTLY]
    memsup("stop")
    memsup("start")
    assert status()["attention"] == []


def test_same_goes_on_as_it_was_and_says_only_what_happened() -> None:
    paths = a_run(command=["sleep", "1000"])
    memsup("start", "--set", "recovery.after_power_loss=same")
    the_machine_dies(paths)
    assert memsup("start").returncode == 0
    assert [sentence[: len(DIED)] for sentence in status()["attention"]] == [DIED]


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="NOT RUN: there is no C compiler to build the NVML library with")
@pytest.mark.usefixtures("unhurried")
def test_gently_is_smaller_and_with_less_power_until_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real training, beside a library that speaks NVML's ABI. It outlives a kill of the supervisor, and ends with a stop."""
    (tmp_path / "lib").mkdir()
    fake = FakeNvml(build(tmp_path / "lib"), tmp_path / "control")
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    job = tmp_path / "job"
    endless_job(job, '[checkpoint]\nevery = "2s"\n')

    def trains_with(micro_tokens: int) -> Any:
        def trains(seen: Any) -> bool:
            computes = seen["state"] == "running" and seen["progress"]["phase"] == "training"
            return bool(computes and seen["batch"]["micro_tokens"] == micro_tokens)

        return until(trains, 120)

    memsup("start", cwd=job)
    paths = run_paths("default")
    trains_with(96)
    power_w = fake[0].power_limit_w
    the_machine_dies(paths)
    started = memsup("start", cwd=job)
    assert started.returncode == 0
    assert started.stderr.startswith(DIED)
    seen = trains_with(48)
    assert [sentence.partition(":")[0] for sentence in seen["attention"]] == [DIED, GENTLY.partition(":")[0]]
    (order,) = [entry for entry in entries(paths, "order") if entry["action"] == "micro-batches of at most 48 tokens"]
    assert order["reason"] == "gentler since the machine died"
    assert order["result"].startswith("done")
    eventually(lambda: fake[0].power_limit_w == pytest.approx(0.85 * power_w))
    os.kill(int(paths.lock.read_text()), signal.SIGKILL)
    eventually(lambda: not is_held(paths))
    memsup("start", cwd=job)
    trains_with(48)
    memsup("stop", cwd=job)
    eventually(lambda: not is_held(paths))
    memsup("start", cwd=job)
    assert trains_with(96)["attention"] == []
    eventually(lambda: fake[0].power_limit_w == power_w)
