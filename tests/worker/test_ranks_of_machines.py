"""Several machines: who is let in and what is given to them, and the same samples and the same model as one machine computes,
whoever leaves and comes back. The machines are two supervisors on this one, which reach each other over the loopback interface.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import zmq
from kit.cli_process import memsup
from kit.lone_supervisor import LoneSupervisor, newest_checkpoint, state_of, tiny_settings
from kit.one_life import a_record, without_dropout
from safetensors.numpy import load_file

from memsup.shared.clock import monotonic_s
from memsup.shared.messages import (
    CheckpointNote,
    Decided,
    DecisionKind,
    Finished,
    Heartbeat,
    Leaving,
    Pause,
    PauseMode,
    Phase,
    Resume,
)
from memsup.shared.nodes import (
    PROTOCOL,
    Address,
    Described,
    OfferedFile,
    draw_key,
    frames_of,
    is_of_another_version,
    unlike,
)
from memsup.shared.secret import Secret
from memsup.shared.settings import Settings
from memsup.worker.link import STARTING
from memsup.worker.ranks import joined, receive
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.door import Door
from memsup.worker.ranks.lock import keys_of, use_key
from memsup.worker.ranks.offered import Offered
from memsup.worker.ranks.receive import ANSWERS_WITHIN_S, Asking, RefusedError, place
from memsup.worker.ranks.versions import versions

T = TypeVar("T")
KEY = draw_key()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# ---------------------------------------------------------------------------------------------------------------------
# The door


class Open:
    """A door that is open, what came in through it, and where it is."""

    def __init__(self, settings: Settings) -> None:
        self.heard: queue.SimpleQueue[tuple[bytes, m.ToFirstMachine]] = queue.SimpleQueue()
        self.broke: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        self.address = Address("127.0.0.1", free_port())
        offered = Offered(a_record(settings, "first", "0123456789ab"))
        self.door = Door(
            self.address,
            keys_of(KEY),
            offered,
            heard=lambda peer, message: self.heard.put((peer, message)),
            looked=lambda _elapsed_s: None,
            broke=self.broke.put,
        )
        self.door.start()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Open]:
    (tmp_path / "data").mkdir()
    opened = Open(tiny_settings(tmp_path / "data", rows=20_000))
    yield opened
    opened.door.close()


@contextmanager
def a_guest(address: Address, key: str | None) -> Iterator[zmq.Socket[bytes]]:
    """A socket of somebody who has this key, or comes without a lock."""
    context = zmq.Context()
    guest = context.socket(zmq.DEALER)
    guest.linger = 0
    if key is not None:
        use_key(guest, keys_of(key), address)
    guest.connect(f"tcp://{address}")
    try:
        yield guest
    finally:
        context.destroy(linger=0)


JOIN = m.Join(node="0123456789ab", name="other", versions=versions())


def test_who_has_the_key_is_heard_and_answered(door: Open) -> None:
    with a_guest(door.address, KEY) as guest:
        guest.send_multipart(frames_of(JOIN))
        peer, message = door.heard.get(timeout=10)
        assert message == JOIN
        door.door.tell(peer, m.NotHere(why="a test"))
        assert guest.poll(10_000)
        assert m.from_first_machine(guest.recv_multipart()) == m.NotHere(why="a test")


@pytest.mark.parametrize("key", [None, draw_key()], ids=["no key", "another key"])
def test_nobody_else_is_heard(door: Open, key: str | None) -> None:
    with a_guest(door.address, key) as stranger, a_guest(door.address, KEY) as guest:
        stranger.send_multipart(frames_of(m.Join(node="x", name="stranger", versions=versions())))
        assert not stranger.poll(1000)
        guest.send_multipart(frames_of(JOIN))
        assert door.heard.get(timeout=10)[1] == JOIN
        assert door.heard.empty()


def test_what_is_no_message_of_a_machine_is_dropped_and_the_door_stays_open(door: Open) -> None:
    """Neither garbage, nor what only the first machine says, nor an order comes in."""
    evil = [
        [b""],
        [b"memsup-nodes/1", b"\xc1" * 1000],
        [b"something-else/1", *frames_of(JOIN)[1:]],
        frames_of(JOIN) * 2,
        frames_of(m.NotHere(why="a test")),
        frames_of(m.Obey(order=Pause(order_id=1, reason="a test", mode=PauseMode.HOLD))),
        frames_of(m.Obey(order=Resume(order_id=1, reason="a test"))),
        [b"memsup-nodes/1", b"\xdf\xff\xff\xff\xff"],
    ]
    with a_guest(door.address, KEY) as guest:
        for frames in evil:
            guest.send_multipart(frames)
        guest.send_multipart(frames_of(JOIN))
        assert door.heard.get(timeout=10)[1] == JOIN
        assert door.heard.empty()


def test_who_comes_with_another_key_is_told_that_it_is_the_key(door: Open) -> None:
    """And not that nobody answers, two minutes later."""
    asks = Asking(door.address, draw_key())
    began_s = monotonic_s()
    try:
        with pytest.raises(RefusedError, match="does not take the key"):
            asks.describe()
    finally:
        asks.close()
    assert monotonic_s() - began_s < ANSWERS_WITHIN_S / 2


def test_a_machine_that_speaks_as_another_version_does_is_told_so_in_words_that_it_knows(door: Open) -> None:
    with a_guest(door.address, KEY) as guest:
        guest.send_multipart([b"memsup-nodes/7", b"whatever it says then"])
        assert guest.poll(10_000)
        answer = guest.recv_multipart()
        assert answer[0] == PROTOCOL
        told = m.from_first_machine(answer)
        assert isinstance(told, m.NotHere)
        assert "another version" in told.why
        assert not told.again
    assert is_of_another_version([b"memsup-nodes/7", b""])
    assert not is_of_another_version([PROTOCOL, b""])
    assert not is_of_another_version([b"garbage"])
    assert not is_of_another_version([])


def test_what_differs_between_two_machines_is_named() -> None:
    assert unlike(versions(), versions()) is None
    assert {"memsup", "torch"} <= set(versions())
    assert unlike({"memsup": "1", "torch": "2.14.0"}, {"memsup": "1", "torch": "2.13.0"}) == "torch 2.14.0, and 2.13.0 here"
    assert unlike({}, {"memsup": "1"}) == "memsup of an unknown version, and 1 here"


def test_a_machine_with_other_versions_receives_nothing(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = Asking(door.address, KEY)
    monkeypatch.setattr(receive, "versions", lambda: versions() | {"torch": "1.0"})
    try:
        with pytest.raises(RefusedError, match=r"The first machine has torch \S+, and 1.0 here"):
            asks.describe()
    finally:
        asks.close()


def test_a_door_that_breaks_is_no_door_that_nobody_comes_through(door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """All would wait for each other for ever."""
    monkeypatch.setattr(m, "to_first_machine", lambda _frames: 1 / 0)
    with a_guest(door.address, KEY) as guest:
        guest.send_multipart(frames_of(JOIN))
        assert isinstance(door.broke.get(timeout=10), ZeroDivisionError)


@pytest.mark.parametrize("name", [b"caf\xe9.bin", "权重 二.bin".encode()])
def test_a_model_with_any_name_in_its_folder_is_sent_or_refused_in_a_sentence(tmp_path: Path, name: bytes) -> None:
    """A name that is not UTF-8 cannot be told to another machine, and the door stays open."""
    (tmp_path / "data").mkdir()
    settings = tiny_settings(tmp_path / "data")
    with open(os.fsencode(str(settings.task.model)) + b"/" + name, "wb") as file:
        file.write(b"x")
    opened = Open(settings)
    asks = Asking(opened.address, KEY)
    try:
        if name.isascii() or b"\xe9." not in name:
            assert any(file.path.endswith("权重 二.bin") for file in asks.describe().files)
        else:
            with pytest.raises(RefusedError, match="not UTF-8 text: rename it"):
                asks.describe()
        assert opened.broke.empty()
    finally:
        asks.close()
        opened.door.close()


def test_a_checkpoint_is_as_old_as_the_first_machine_says_whatever_the_clock_here_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "unix_s", lambda: 5_000_000.0)
    session = joined.GuestSession.__new__(joined.GuestSession)
    note = CheckpointNote(path="/c", step=7, at_unix_s=1000.0, verified=True, save_s=None)

    def told(unix_s: float, note: CheckpointNote) -> CheckpointNote | None:
        progress = msgspec.structs.replace(STARTING.progress)
        session._told = m.Told(name="first", unix_s=unix_s, progress=progress, checkpoint=note, digest=None, evaluation=None)
        return session._elsewhere(note)

    first = told(1030.0, note)
    assert first == msgspec.structs.replace(note, path="first:/c", at_unix_s=5_000_000.0 - 30)
    assert told(1031.5, note) == first, "it is the same one"
    assert told(2000.0, msgspec.structs.replace(note, step=8, at_unix_s=2001.0)).at_unix_s == 5_000_000.0  # type: ignore[union-attr]


def test_both_sides_make_the_same_keys_of_one_and_others_of_another() -> None:
    key = draw_key()
    assert keys_of(key) == keys_of(key)
    assert len({*keys_of(key), *keys_of(draw_key())}) == 8


def test_data_and_model_arrive_as_they_are_and_a_changed_file_is_refused(door: Open, tmp_path: Path) -> None:
    asks = Asking(door.address, KEY)
    try:
        offer = asks.describe()
        names = {Path(file.path).name: number for number, file in enumerate(offer.files)}
        assert set(names) == {"reviews.csv", "config.json"}
        assert "key" not in msgspec.json.encode(offer).decode()
        number = names["reviews.csv"]
        file, target = offer.files[number], tmp_path / "here" / "reviews.csv"
        assert file.size_bytes > 1 << 18
        asks.fetch(number, file, target)
        assert target.read_bytes() == Path(file.path).read_bytes()
        with Path(file.path).open("r+b") as there:
            there.write(b"!")
        with pytest.raises(RefusedError, match="has changed"):
            asks.fetch(number, file, target)
        assert not target.exists()
    finally:
        asks.close()


@pytest.mark.slow
def test_a_dry_run_of_joining_says_that_what_was_received_is_kept(
    door: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the start behind it does not have it sent again. Who has the key of another run gets nothing, and is told why."""
    monkeypatch.setenv("MEMSUP_STATE_DIR", str(tmp_path / "state of 我"))
    command = ["start", "--dry-run", "--join", str(door.address)]
    refused = memsup(*command, cwd=tmp_path, within_s=600, MEMSUP_NODES_KEY=draw_key())
    assert refused.returncode == 2
    assert "does not take the key" in refused.stderr
    done = memsup(*command, cwd=tmp_path, within_s=600, MEMSUP_NODES_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert f"Asking the first machine at {door.address}" in done.stderr
    assert "Dry run: nothing was started. What was received is kept for the start." in done.stderr
    (kept,) = (tmp_path / "state of 我").rglob("reviews.csv")
    assert kept.stat().st_size > 1 << 18
    assert not (tmp_path / "state of 我" / "default").exists()


@pytest.mark.parametrize("path", ["relative", "/a/../../etc/passwd", "//a", "/a//b", "/a/./b", "", "/" + "a/" * 2000])
def test_a_file_comes_to_lie_nowhere_but_where_it_belongs(path: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        place(tmp_path, OfferedFile(path=path, size_bytes=1, blake2b=""))


def test_what_is_offered_has_no_secret_in_it(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings.notify.urls = [Secret("json://user:s3cr3t@example.org")]
    settings.nodes = msgspec.structs.replace(settings.nodes, key=Secret(KEY))
    offered = Offered(a_record(settings, "first", "0123456789ab"))
    offered.described()
    assert offered._thread is not None
    offered._thread.join()
    found = offered.described()
    assert isinstance(found, Described)
    assert not any(secret in msgspec.json.encode(found).decode() for secret in ("s3cr3t", KEY))


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

STEPS = 54


def settings_for(folder: Path, **nodes: Any) -> Settings:
    """Steps that take long enough to be met in the middle, without dropout."""
    settings = without_dropout(
        tiny_settings(
            folder,
            rows=240,
            words=100,
            hidden=128,
            training__epochs=2,
            training__max_length=128,
            training__micro_tokens=512,
            training__learning_rate=1e-4,
        )
    )
    settings.nodes = msgspec.structs.replace(settings.nodes, key=Secret(KEY), **nodes)
    return settings


class Both:
    """The first machine and another one."""

    def __init__(self, first: LoneSupervisor, other: LoneSupervisor) -> None:
        self.first, self.other = first, other

    def until(self, what: str, condition: Callable[[], T | None], deadline_s: float = 250.0) -> T:
        """What `condition` gives when it is true. Both are heard meanwhile, and a worker of the other machine that has ended is
        started again, as its supervisor would do.
        """
        end_s = monotonic_s() + deadline_s
        while not (found := condition()):
            assert monotonic_s() < end_s, (
                f"{deadline_s} s passed before {what}.\n{self.first.log()[-3000:]}\n{self.other.log()[-3000:]}"
            )
            for one in (self.first, self.other):
                one.pump(0.01)
            if self.other.worker is not None and self.other.worker.poll() is not None and not self.is_finished(self.other):
                self.other.start()
        return found

    @staticmethod
    def is_finished(one: LoneSupervisor) -> Finished | None:
        return next((report for report in one.reports if isinstance(report, Finished)), None)

    def finish(self) -> tuple[Finished, Finished]:
        first = self.until("the first one has finished", lambda: self.is_finished(self.first))
        other = self.until("the other one knows that", lambda: self.is_finished(self.other))
        assert self.first.exit_status() == self.other.exit_status() == 0
        return first, other

    def step(self, beyond: int) -> Heartbeat:
        def reached() -> Heartbeat | None:
            for report in reversed(self.first.reports):
                if isinstance(report, Heartbeat) and report.progress.phase is Phase.TRAINING and report.progress.step > beyond:
                    return report
            return None

        return self.until(f"a step beyond {beyond}", reached)


@contextmanager
def two(folder: Path, **nodes: Any) -> Iterator[Both]:
    port = free_port()
    first = LoneSupervisor(settings_for(folder, count=2, address="127.0.0.1", port=port, **nodes), name="first")
    other = LoneSupervisor(settings_for(folder, join=f"127.0.0.1:{port}"), name="other")
    with first, other:
        first.start()
        other.start()
        yield Both(first, other)


_ALONE: list[tuple[dict[str, Any], dict[str, Any]]] = []


@pytest.fixture
def alone(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state and the weights at the end of a run on one machine."""
    if not _ALONE:
        settings = settings_for(tmp_path)
        settings.nodes.key = None
        with LoneSupervisor(settings, name="alone") as supervisor:
            supervisor.run_to_end()
            _ALONE.append((state_of(supervisor.paths), load_file(newest_checkpoint(supervisor.paths) / "model.safetensors")))
    return _ALONE[0]


def learned_the_same(first: LoneSupervisor, alone: tuple[dict[str, Any], dict[str, Any]]) -> None:
    state, weights = state_of(first.paths), load_file(newest_checkpoint(first.paths) / "model.safetensors")
    assert state["step"] == alone[0]["step"] == STEPS
    assert state["digest"].partition(".")[0] == alone[0]["digest"].partition(".")[0]
    assert max(float(np.abs(weight - alone[1][name]).max()) for name, weight in weights.items()) <= 1e-5


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_machines_learn_what_one_does_and_the_other_says_so(
    tmp_path: Path, alone: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """A pause of the other machine's own holds both, and costs nothing. The other one has no checkpoint of its own, and ends
    with the first one's figures.
    """
    with two(tmp_path) as both:
        both.step(3)
        both.other.send(Pause(order_id=7, reason="a test", mode=PauseMode.HOLD))

        def holds() -> int | None:
            last = next(report for report in reversed(both.first.reports) if isinstance(report, Heartbeat))
            return last.progress.step if last.nodes and last.nodes[0].holds and last.nodes[0].rank else None

        step = both.until("the first machine sees that the other holds", holds)
        seen = len(both.first.reports)
        both.until("it was looked at for a while", lambda: len(both.first.reports) > seen + 4)
        assert both.until("it still holds", holds) == step
        both.other.send(Resume(order_id=8, reason="a test"))
        ends = both.finish()
        assert ends[1].metrics == ends[0].metrics
        assert ends[1].model_path == f"127.0.0.1:{ends[0].model_path}"
        learned_the_same(both.first, alone)
        assert not both.other.paths.checkpoints.exists()
        told = [report.what for report in both.first.reports if isinstance(report, Decided)]
        assert told.count(DecisionKind.NODE_JOINED) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_a_machine_whose_worker_dies_joins_again_and_no_sample_is_lost(
    tmp_path: Path, alone: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """The first machine saves what it has when the other one comes anew, and begins with it from there."""
    with two(tmp_path) as both:
        both.step(5)
        assert both.other.worker is not None
        os.kill(both.other.worker.pid, signal.SIGKILL)
        left = both.until(
            "the first machine leaves", lambda: next((r for r in both.first.reports if isinstance(r, Leaving)), None)
        )
        # Which of both, depends on whether it died while gradients were added up.
        assert left.reason.endswith(("has come anew", "the connection to another machine broke"))
        assert left.checkpoint is not None
        both.first.exit_status()
        step = left.checkpoint.step
        both.first.start()
        both.step(step)
        both.finish()
        learned_the_same(both.first, alone)
