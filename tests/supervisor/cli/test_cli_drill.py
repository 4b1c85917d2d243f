"""`memsup drill`: rehearses for real, says what it proved, and leaves nothing behind however it ends."""

from __future__ import annotations

import fnmatch
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from kit.cli_process import MEMSUP, eventually, memsup

from memsup.supervisor.cli.drill import Finding, Verdict, _findings, _room
from memsup.supervisor.drill import balloon as balloon_program
from memsup.supervisor.drill import scenes
from memsup.supervisor.drill.private_mounts import leave_the_common_view, mount_small_disk
from memsup.supervisor.drill.scenes import SCENES, Scene
from memsup.supervisor.drill.scenes import memory as memory_scene
from memsup.supervisor.drill.toy import NotProvedError, NotRehearsedError, OverError, Room, made_up_reviews

NAMES = [name for scene in SCENES for name in scene.names]
NEED_A_MOUNT = {"heat", "full disk"}
MIB = 1 << 20


def left_of(folder: Path, runs: Iterable[str] = ("drill_*",)) -> list[str]:
    """What is left of drills: files in `folder`, processes that were started from there, and fences of `runs`."""
    cgroups = [path for path, _, _ in os.walk("/sys/fs/cgroup")]  # others' come and go meanwhile
    found = [str(entry) for entry in folder.iterdir()]
    found += [path for run in runs for path in fnmatch.filter(cgroups, f"*/memsup-{run}")]
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR", "").startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the drill makes its own folder; short, as a temporary folder is."""
    with tempfile.TemporaryDirectory(prefix="drilled-") as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(scene, id=", ".join(scene.names), marks=[pytest.mark.nightly] if set(scene.names) & NEED_A_MOUNT else [])
        for scene in SCENES
        if scene.play is not memory_scene
    ],
)
def test_each_scene_is_played_and_proved(scene: Scene, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own, as in a drill. The scene about memory is in `test_ledger_replay.py`, which needs its ledger. The
    runs whose bits are compared are a sixth as long.
    """
    monkeypatch.setattr(scenes, "EPOCHS", scenes.EPOCHS // 6)
    found: list[Finding] = []
    with _room(threading.Event()) as room:
        thread = threading.Thread(target=lambda: found.extend(_findings(scene, room)))
        thread.start()
        thread.join()
    assert [finding.name for finding in found] == list(scene.names)
    for finding in found:
        assert_proved(finding.name, finding.verdict, finding.text)
    assert list(folder.iterdir()) == []


def assert_proved(name: str, verdict: str, text: str) -> None:
    """With figures. Where nothing may be mounted, two scenes say so instead."""
    allowed = {Verdict.PROVED, Verdict.NOT_REHEARSED} if name in NEED_A_MOUNT else {Verdict.PROVED}
    assert verdict in allowed, (name, text)
    assert any(character.isdigit() for character in text) or verdict == Verdict.NOT_REHEARSED


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_bad_night_is_rehearsed_and_proved_and_nothing_is_left_of_it(folder: Path) -> None:
    """The whole drill, as a person has it played."""
    done = memsup("drill", "--json", within_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.document["proved"] is True
    found = {finding["name"]: finding for finding in done.document["findings"]}
    assert sorted(found) == sorted(NAMES)
    for name, finding in found.items():
        assert_proved(name, finding["verdict"], finding["text"])
    assert left_of(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGKILL])
def test_an_interrupted_drill_cleans_up_and_even_a_killed_one_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    """At a random instant, so also in the midst of a start."""
    drill = subprocess.Popen([*MEMSUP, "drill"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(random.SystemRandom().uniform(1, 12))
    drill.send_signal(signal.SIGSTOP)
    runs = [json.loads(record.read_bytes())["run_id"] for record in folder.glob("*/*/state/*/run.json")]
    drill.send_signal(number)
    drill.send_signal(signal.SIGCONT)
    drill.communicate(timeout=120)
    assert drill.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    eventually(lambda: left_of(folder, runs) == [], 60)


def test_a_supervisor_that_was_begun_just_now_is_ended_too(tmp_path: Path) -> None:
    """It holds no lock yet, and would make its folders anew behind the janitor's back."""
    folder, other = tmp_path / "drill", tmp_path / "other"
    folder.mkdir()
    begun, stranger = (
        subprocess.Popen(["sleep", "1000"], env={"MEMSUP_STATE_DIR": f"{place}/one/state", "PATH": os.environ["PATH"]})
        for place in (folder, other)
    )
    try:
        janitor = [sys.executable, "-P", "-m", "memsup.supervisor.drill.janitor", str(folder)]
        subprocess.run(janitor, input=b"", check=True, timeout=60)
        assert begun.wait(timeout=10) == -signal.SIGKILL
        assert stranger.poll() is None
        assert not folder.exists()
    finally:
        for process in (begun, stranger):
            process.kill()
            process.wait()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with (tmp_path / "janitor").open("wb") as janitor:
        yield Room(folder=tmp_path, machine=None, over=threading.Event(), janitor=janitor)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, [("one", "proved", "It held."), ("two", "proved", "It held again.")]),
        (NotProvedError("It did not."), [("one", "proved", "It held."), ("two", "not proved", "It did not.")]),
        (NotRehearsedError("Not here."), [("one", "proved", "It held."), ("two", "not rehearsed", "Not here.")]),
        (OSError("a bug"), [("one", "proved", "It held."), ("two", "not proved", "OSError: a bug")]),
        (OverError(), [("one", "proved", "It held.")]),
    ],
)
def test_what_goes_wrong_is_said_of_the_thing_that_it_happened_in(
    room: Room, error: BaseException | None, expected: list[tuple[str, str, str]]
) -> None:
    """An error of the drill's own proves nothing, either."""

    def play(_: Room) -> Iterator[str]:
        yield "It held."
        if error is not None:
            raise error
        yield "It held again."

    assert [tuple(finding) for finding in _findings(Scene(("one", "two"), play), room)] == expected


def test_what_follows_on_something_unproved_is_not_called_proved(room: Room) -> None:
    def play(_: Room) -> Iterator[str]:
        raise NotProvedError("It did not.")
        yield ""

    found = list(_findings(Scene(("one", "two"), play), room))
    assert found[1] == Finding("two", Verdict.NOT_REHEARSED, "It follows on the one before.")


def test_the_balloon_holds_what_it_is_told_and_gives_it_back(tmp_path: Path) -> None:
    """And an order that was there before it is not for it: after the kill the next worker begins without a burden."""
    told = tmp_path / "told"
    told.write_text(f"{200 * MIB} {4096 * MIB}")
    balloon = subprocess.Popen([sys.executable, "-I", "-S", balloon_program.__file__, str(told)])
    try:
        eventually(lambda: not told.exists())
        resident = psutil.Process(balloon.pid).memory_info
        small = resident().rss
        assert small < 40 * MIB
        told.write_text(f"{100 * MIB} {4096 * MIB}")
        eventually(lambda: resident().rss > small + 90 * MIB)
        told.write_text(f"0 {4096 * MIB}")
        eventually(lambda: resident().rss < small + 10 * MIB)
        assert resident().rss < 120 * MIB
    finally:
        balloon.kill()
        balloon.wait()


def test_the_toy_learns_from_the_same_rows_each_time() -> None:
    assert made_up_reviews() == made_up_reviews()
    assert len(made_up_reviews().splitlines()) == 241


def test_what_is_mounted_for_a_scene_is_seen_by_its_own_processes_alone(tmp_path: Path) -> None:
    """And is small, and gone with them."""
    seen: dict[str, object] = {}
    place = tmp_path / "small"
    place.mkdir()

    def scene() -> None:
        try:
            leave_the_common_view()
            mount_small_disk(place, MIB)
        except OSError as error:
            seen["refused"] = error
            return
        (place / "file").write_text("x")
        seen["child"] = subprocess.run(["ls", place], capture_output=True, text=True, check=True).stdout.split()
        found = os.statvfs(place)
        seen["bytes"] = found.f_blocks * found.f_frsize

    thread = threading.Thread(target=scene)
    thread.start()
    thread.join()
    if "refused" in seen:
        pytest.skip(f"NOT RUN: this system lets nobody mount here: {seen['refused']}")
    assert seen == {"child": ["file"], "bytes": MIB}
    assert list(place.iterdir()) == []
