"""Anybody who can open a socket may send any bytes, as often and from as many connections as they like: what the loop, its
memory and its descriptors lose by that is bounded, and who has something to say is heard.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memsup import zmtp
from memsup.shared import messages as m
from memsup.shared.descriptors import wait_ready
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths
from memsup.supervisor.daemon.door import MOST_PEERS_OF_A_PROCESS, NO_DESCRIPTOR_S, STRANGER, WORK_S, WORK_SHARE, Door
from memsup.supervisor.daemon.sockets import MOST_UNANSWERED, ORDERS, ORDERS_PER_S, Sockets
from memsup.supervisor.decide.run.actions import Answer

OPENED = zmtp.opening(b"DEALER")
CROWD = """
import socket, sys
held = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(int(sys.argv[2]))]
for one in held:
    one.connect(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    """A path to listen at that is short enough, wherever the test's folder is."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield f"/proc/{os.getpid()}/fd/{fd}/sock"
    os.close(fd)


@pytest.fixture
def door(file: str) -> Iterator[Door]:
    door = Door(24)
    door.bind(file)
    yield door
    door.close(0.0)


def knock(file: str, said: bytes = OPENED) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    connection.connect(file)
    if said:
        connection.send(said)
    return connection


def turns(door: Door, seconds: float = 0.3) -> list[list[bytes]]:
    """The messages that come while the loop turns for so long, which it does when the door says so."""
    heard: list[list[bytes]] = []
    until_s = time.monotonic() + seconds
    while (now_s := time.monotonic()) < until_s:
        heard += [parts for _, parts in door.messages(now_s)]
        due_s = min(until_s, door.due_s())
        wait_ready([door], due_s - time.monotonic())
    return heard


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side hung up."""
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# -- connections ------------------------------------------------------------------------------------------------------


def test_a_process_has_so_many_connections_and_others_their_place(door: Door, file: str) -> None:
    """Ours came first; a crowd then takes all that there is. We come again, and the crowd has to make room."""
    with ExitStack() as stack:
        first = stack.enter_context(knock(file))
        turns(door, 0.05)
        crowd = []
        for _ in range(2):
            crowd.append(stack.enter_context(subprocess.Popen(
                [sys.executable, "-c", CROWD, file, "40"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )))  # fmt: skip
        for one in crowd:
            while one.stdout is not None and not wait_ready([one.stdout], 0.0):
                turns(door, 0.02)
        turns(door)
        assert len(door._peers) == 24
        assert not is_ended(first)
        second = stack.enter_context(knock(file, OPENED))
        turns(door, 0.05)
        second.send(zmtp.message([b"let me in"]))
        assert turns(door) == [[b"let me in"]]
        of_crowd = [sum(peer.pid == one.pid for peer in door._peers.values()) for one in crowd]
        assert max(of_crowd) <= MOST_PEERS_OF_A_PROCESS
        for one in crowd:
            one.kill()
    turns(door)
    assert not door._peers, "whoever has gone takes no place"


def test_nobody_gets_the_place_of_the_worker(file: str) -> None:
    """However long it is silent, and however many come."""
    door = Door(4)
    door.bind(file)
    worker = knock(file, OPENED)
    turns(door, 0.05)
    worker.send(zmtp.message([b"hello"]))
    for peer, _ in door.messages(time.monotonic()):
        door.favour(peer)
    others = [knock(file) for _ in range(10)]
    turns(door)
    assert not is_ended(worker)
    worker.send(zmtp.message([bytes(100_000)]))
    assert turns(door) == [[bytes(100_000)]], "and it may say more than a stranger"
    for one in (worker, *others):
        one.close()
    door.close(0.0)


def test_without_a_descriptor_nobody_is_let_in_and_nothing_breaks(tmp_path: Path) -> None:
    """Libzmq would abort. The connection waits, and is heard when there is a descriptor again."""
    code = """
import os, resource, socket, sys, time
from memsup import zmtp
from memsup.supervisor.daemon.door import NO_DESCRIPTOR_S, Door
os.chdir(sys.argv[1])
door = Door(8)
door.bind("sock")
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect("sock")
client.send(zmtp.opening(b"DEALER") + zmtp.message([b"x"]))
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
taken = []
try:
    while True:
        taken.append(os.open("/", os.O_RDONLY))
except OSError:
    pass
assert list(door.messages(1.0)) == []
assert 1.0 < door.due_s() <= 1.0 + NO_DESCRIPTOR_S
os.close(taken.pop())
assert list(door.messages(1.5)) == []
later_s = 1.0 + NO_DESCRIPTOR_S
print([parts for _, parts in door.messages(later_s)])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[[b'x']]\n", 0), done.stderr
    assert NO_DESCRIPTOR_S > 0.5


# -- memory and time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"\x01\x01x" * 1000,
        b"\x03" + (1 << 20).to_bytes(8, "big") + bytes(4096),
        b"\x03" + (600).to_bytes(8, "big") + bytes(600),
    ],
    ids=["many parts", "long parts", "no end"],
)
def test_a_message_that_is_too_much_ends_its_connection(door: Door, file: str, said: bytes) -> None:
    """As soon as that is known, and before it is kept."""
    with knock(file, OPENED) as connection:
        turns(door, 0.05)
        try:
            for _ in range(30):
                connection.send(said)
        except OSError:
            pass  # hung up on in the middle of it, or the kernel has enough
        assert turns(door) == []
        assert is_ended(connection)
    assert door.broken == 1
    assert door.why_broken


def test_who_does_not_fetch_answers_gets_no_more_and_is_not_asked(door: Door, file: str) -> None:
    with knock(file, OPENED) as connection:
        asked = 0
        for _ in range(40):
            try:
                connection.send(zmtp.message([b"?"]) * 100)
            except BlockingIOError:
                break
            until_s = time.monotonic() + 0.03
            while (now_s := time.monotonic()) < until_s:
                for peer, _ in door.messages(now_s):
                    asked += 1
                    door.send(peer, [bytes(2000)])
        (peer,) = door._peers.values()
        assert asked < 4000
        assert len(peer.unsent) <= STRANGER.unsent_bytes + 2100
        assert len(peer.incoming._bytes) <= STRANGER.message_bytes + 4096
        before = asked
        is_ended(connection)  # fetches all
        for _, parts in [(0, parts) for parts in turns(door)]:
            asked += len(parts)
        assert asked > before, "and goes on when it has fetched them"


def test_all_together_take_a_part_of_the_time(door: Door, file: str) -> None:
    """Each message costs the loop a millisecond here. A crowd gets a quarter of it, and who comes is heard all the same."""
    crowd = [knock(file, OPENED + zmtp.message([b"noise"]) * 300) for _ in range(8)]
    began_s, quiet, heard = time.monotonic(), None, []
    while (now_s := time.monotonic()) < began_s + 1.0:
        if quiet is None and now_s > began_s + 0.3:
            quiet = knock(file, OPENED + zmtp.message([b"a real question"]))
        for _, parts in door.messages(now_s):
            heard.append(parts)
            until_s = time.monotonic() + 0.001
            while time.monotonic() < until_s:
                pass
        wait_ready([door], min(0.05, door.due_s() - time.monotonic()))
    assert [b"a real question"] in heard
    took_s = time.monotonic() - began_s
    assert len(heard) <= (WORK_S + WORK_SHARE * took_s) / 0.001 + 20
    for one in (*crowd, *([quiet] if quiet else [])):
        one.close()


# -- what is passed on ------------------------------------------------------------------------------------------------


def asks(*kinds: RequestKind) -> bytes:
    return OPENED + b"".join(zmtp.message(m.encode(m.Request(request_id=i, what=what))) for i, what in enumerate(kinds))


def passed_on(sockets: Sockets, later_s: float = 0.0) -> list[tuple[int, RequestKind]]:
    """What comes within a moment, so much later."""
    found: list[tuple[int, RequestKind]] = []
    until_s = time.monotonic() + 0.15
    while (now_s := time.monotonic()) < until_s:
        found += ((token, request.what) for token, request in sockets.requests(now_s + later_s))
        time.sleep(0.002)
    return found


def replies(connection: socket.socket) -> list[m.Reply]:
    incoming = zmtp.Incoming(1 << 20)
    try:
        incoming.feed(connection.recv(1 << 16))
    except BlockingIOError:
        return []
    return [m.decode_reply(parts) for parts in iter(incoming.next_message, None)]


def test_the_same_order_is_given_once_and_all_who_gave_it_are_answered(sockets: Sockets, paths: RunPaths) -> None:
    file = str(paths.runtime / CONTROL_SOCKET)
    with socket_at(file, asks(*[RequestKind.CHECKPOINT] * 5)) as one, socket_at(file, asks(RequestKind.CHECKPOINT)) as two:
        ((token, what),) = passed_on(sockets)
        assert what is RequestKind.CHECKPOINT
        sockets.answer(Answer(token, True, "Checkpoint of step 3."), b"{}")
        assert [reply.request_id for reply in replies(one)] == [0, 1, 2, 3, 4]
        assert [reply.text for reply in replies(two)] == ["Checkpoint of step 3."]
        two.send(asks(RequestKind.CHECKPOINT)[len(OPENED) :])
        assert len(passed_on(sockets, 1.0)) == 1, "when it is done, it may be given again"


def test_another_order_in_between_is_not_joined_over(sockets: Sockets, paths: RunPaths) -> None:
    """Pause, resume, pause: the last one is what is wanted."""
    kinds = (RequestKind.PAUSE_HOLD, RequestKind.RESUME, RequestKind.PAUSE_HOLD)
    with socket_at(str(paths.runtime / CONTROL_SOCKET), asks(*kinds)):
        assert tuple(what for _, what in passed_on(sockets)) == kinds


def test_a_flood_of_orders_of_one_process_waits_and_status_does_not(sockets: Sockets, paths: RunPaths) -> None:
    """A person gives each order with a process of its own, and never meets the limit."""
    file = str(paths.runtime / CONTROL_SOCKET)
    with socket_at(file, asks(*[RequestKind.PAUSE_HOLD, RequestKind.RESUME] * 20)) as flooder:
        first = passed_on(sockets)
        assert len(first) == ORDERS
        assert len(sockets._under_way) == MOST_UNANSWERED
        for token, _ in first:
            sockets.answer(Answer(token, True, "Done."), b"{}")
        assert passed_on(sockets) == []
        later = passed_on(sockets, 2.5 / ORDERS_PER_S)
        assert 2 <= len(later) <= 3
        with socket_at(file, asks(RequestKind.STATUS)) as person:
            ((token, what),) = passed_on(sockets, 2.5 / ORDERS_PER_S)
            assert what is RequestKind.STATUS
            sockets.answer(Answer(token, True, "said"), b"{}")
            assert [reply.text for reply in replies(person)] == ["said"]
        assert len(replies(flooder)) == ORDERS


def by_itself(peer: int, said: int) -> bool:
    """Whether a process says truthfully who it is."""
    return peer == said


def test_only_the_process_that_is_the_worker_can_say_so(sockets: Sockets, paths: RunPaths) -> None:
    """The number and the name of the run are no secret, so the kernel says who speaks."""
    hello = zmtp.message(m.encode(m.Hello(pid=4711, run_id="abc")))
    with socket_at(str(paths.runtime / WORKER_SOCKET), OPENED + hello):
        time.sleep(0.05)
        now_s = time.monotonic()
        assert [*sockets.reports(now_s, "abc", by_itself), *sockets.reports(now_s + 1, "abc", by_itself)] == []


def socket_at(file: str, said: bytes) -> socket.socket:
    """A connection to a path of any length that has said something."""
    folder, name = os.path.split(file)
    fd = os.open(folder, os.O_RDONLY)
    try:
        return knock(f"/proc/self/fd/{fd}/{name}", said)
    finally:
        os.close(fd)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_sockets_that_were_removed_are_made_anew_and_the_worker_stays(sockets: Sockets, paths: RunPaths) -> None:
    hello = zmtp.message(m.encode(m.Hello(pid=os.getpid(), run_id="abc")))
    with socket_at(str(paths.runtime / WORKER_SOCKET), OPENED + hello) as worker:
        assert [type(report) for report in sockets.reports(time.monotonic(), "abc", by_itself)] == [m.Hello]
        assert sockets.keep_reachable() is None
        for name in (WORKER_SOCKET, CONTROL_SOCKET):
            (paths.runtime / name).unlink()
        paths.runtime.rmdir()
        paths.runtime.parent.rmdir()
        assert sockets.keep_reachable() is not None
        assert sockets.troubles == []
        assert paths.runtime.stat().st_mode & 0o777 == 0o700
        sockets.send(m.Lease(lease_s=1.0))
        worker.send(zmtp.message(m.encode(m.Accepted(order_id=1))))
        assert len(list(sockets.reports(time.monotonic(), "abc", by_itself))) == 1
        assert not is_ended(worker)
    with socket_at(str(paths.runtime / CONTROL_SOCKET), asks(RequestKind.STATUS)):
        assert len(passed_on(sockets)) == 1


def test_where_they_cannot_be_made_anew_it_is_said_once_and_tried_on(sockets: Sockets, paths: RunPaths) -> None:
    for name in (WORKER_SOCKET, CONTROL_SOCKET):
        (paths.runtime / name).unlink()
    paths.runtime.rmdir()
    paths.runtime.write_text("in the way")
    assert sockets.keep_reachable() is not None
    assert sockets.keep_reachable() is None
    assert len(sockets.troubles) == 1
    paths.runtime.unlink()
    assert sockets.keep_reachable() is not None
    assert sockets.troubles == []


def test_a_file_in_the_place_of_a_socket_is_put_out_of_the_way(sockets: Sockets, paths: RunPaths) -> None:
    """The folder is this run's alone; and a run that nobody can reach can be neither stopped nor paused."""
    for name in (WORKER_SOCKET, CONTROL_SOCKET):
        (paths.runtime / name).unlink()
        (paths.runtime / name).write_text("in the way")
    assert sockets.keep_reachable() is not None
    assert sockets.troubles == []
    with socket_at(str(paths.runtime / CONTROL_SOCKET), asks(RequestKind.STATUS)):
        assert len(passed_on(sockets)) == 1


# -- any bytes --------------------------------------------------------------------------------------------------------


def fuzz(sockets: Sockets, paths: RunPaths, rounds: int, seed: int) -> None:
    """Good messages of both sockets with faults at each height: bytes, frames, what is packed, numbers and texts."""
    draw = random.Random(seed)
    heartbeat = m.Heartbeat(
        progress=m.Progress(
            phase=m.Phase.TRAINING, ticks=1, epoch=0.5, step=3, total_steps=9, samples=1, loss=0.1, samples_per_s=1.0, eta_s=1.0
        ),
        batch=None,
        memory=m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None),
        checkpoint=m.CheckpointNote(path="/x", step=1, at_unix_s=1.0, verified=True, save_s=0.1),
        digest="d",
    )
    said: list[m.Message] = [
        heartbeat,
        m.Hello(pid=os.getpid(), run_id="abc"),
        m.Finished("/x", {"loss": 1.0}, 3, 4),
        m.Failed(m.FailureCause.CRASH, "x", None, 3),
        *[m.Request(request_id=1, what=what) for what in RequestKind],
    ]
    now_s = time.monotonic()
    for _ in range(rounds):
        parts = [bytearray(part) for part in m.encode(draw.choice(said))]
        for _ in range(draw.randint(0, 3)):
            part = draw.choice(parts)
            at = draw.randrange(len(part) or 1)
            part[at : at + draw.randint(0, 2)] = draw.choice(
                [draw.randbytes(draw.randint(0, 4)), b"\xcb\x7f\xf8" + bytes(6), b""]
            )
        if draw.random() < 0.1:
            parts = parts * draw.choice([2, 9])
        wire = OPENED + zmtp.message([bytes(part) for part in parts])
        if draw.random() < 0.1:
            wire = wire[: draw.randrange(len(wire))] + draw.randbytes(5)
        with socket_at(str(paths.runtime / draw.choice([WORKER_SOCKET, CONTROL_SOCKET])), wire):
            now_s += 1.0
            for token, request in sockets.requests(now_s):
                assert isinstance(request, m.Request)
                sockets.answer(Answer(token, True, ""), b"{}")
            for report in sockets.reports(now_s, "abc", by_itself):
                assert isinstance(report, m.Report)


def test_no_bytes_break_the_sockets(sockets: Sockets, paths: RunPaths) -> None:
    fuzz(sockets, paths, 2_000, seed=1)
    assert sockets.garbage_to_tell(1e9) > 100


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_no_bytes_break_the_sockets_all_night(sockets: Sockets, paths: RunPaths) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    fuzz(sockets, paths, 300_000, seed)
