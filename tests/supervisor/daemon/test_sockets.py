"""Who is spoken to on the two sockets: the worker that was started, and the client that asked. Real sockets, real peers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from memsup.shared import messages as m
from memsup.shared.endpoints import CONTROL_SOCKET, WORKER_SOCKET, SocketFolder
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths
from memsup.supervisor.daemon.sockets import GARBAGE_EVERY_S, NOBODY, Sockets
from memsup.supervisor.decide.run.actions import Answer
from memsup.supervisor.decide.run.freed import GivenBack

RUN_ID, PID = "abc", os.getpid()
PATIENCE_MS = 20_000
Peer = Callable[[str], "zmq.Socket[bytes]"]


@pytest.fixture
def peer(paths: RunPaths) -> Iterator[Peer]:
    """Connects to one of the two sockets as a worker or a client does."""
    context, folder = zmq.Context(), SocketFolder(paths)
    made: list[zmq.Socket[bytes]] = []

    def connect(name: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(folder.endpoint(name))
        made.append(socket)
        return socket

    yield connect
    for socket in made:
        socket.close()
    context.term()
    folder.close()


def arrived(socket: zmq.Socket[bytes]) -> None:
    assert socket.poll(PATIENCE_MS), "nothing came"


def heard(sockets: Sockets, messages: int = 0) -> list[m.AnyReport]:
    """What comes while the loop turns: so many messages, or what is there within a moment."""
    found: list[m.AnyReport] = []
    deadline_s = time.monotonic() + (PATIENCE_MS / 1000 if messages else 0.1)
    while time.monotonic() < deadline_s and (not messages or len(found) < messages):
        found += sockets.reports(time.monotonic(), RUN_ID, lambda peer, said: peer == said == PID)
        time.sleep(0.002)
    return found


def asked(sockets: Sockets, requests: int) -> list[tuple[int, RequestKind]]:
    found: list[tuple[int, RequestKind]] = []
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while len(found) < requests:
        assert time.monotonic() < deadline_s, "nothing came"
        found += ((token, request.what) for token, request in sockets.requests(time.monotonic()))
        time.sleep(0.002)
    return found


def hello(run_id: str = RUN_ID, pid: int = PID) -> list[bytes]:
    return m.encode(m.Hello(pid=pid, run_id=run_id))


def test_only_the_worker_that_was_started_is_heard_and_spoken_to(sockets: Sockets, peer: Peer) -> None:
    """Not who comes without a Hello, with another run's, or with another process's number."""
    worker, strangers = peer(WORKER_SOCKET), [peer(WORKER_SOCKET) for _ in range(3)]
    sockets.send(m.Lease(lease_s=1.0))  # nobody is there yet: lost, and no error
    said = [hello(run_id="another"), hello(pid=1), m.encode(m.Accepted(order_id=1))]
    for stranger, words in zip(strangers, said, strict=True):
        stranger.send_multipart(words)
        assert heard(sockets) == []
    worker.send_multipart(hello())
    assert [type(report) for report in heard(sockets, 1)] == [m.Hello]
    sockets.send(m.Lease(lease_s=2.0))
    arrived(worker)
    assert m.decode_for_worker(worker.recv_multipart()) == m.Lease(lease_s=2.0)
    assert not any(stranger.poll(0) for stranger in strangers)


def test_what_an_earlier_worker_still_has_to_say_is_not_the_next_ones(sockets: Sockets, peer: Peer) -> None:
    earlier = peer(WORKER_SOCKET)
    earlier.send_multipart(hello())
    assert len(heard(sockets, 1)) == 1
    sockets.forget_worker()
    earlier.send_multipart(m.encode(m.Accepted(order_id=1)))
    assert heard(sockets) == []
    sockets.send(m.Lease(lease_s=1.0))
    assert not earlier.poll(50)


def test_each_client_gets_the_answer_to_its_own_question_once(sockets: Sockets, peer: Peer) -> None:
    clients = [peer(CONTROL_SOCKET) for _ in range(2)]
    tokens = []
    for number, (client, kind) in enumerate(zip(clients, (RequestKind.CHECKPOINT, RequestKind.PAUSE_RELEASE), strict=True)):
        client.send_multipart(m.encode(m.Request(request_id=40 + number, what=kind)))
        tokens += [token for token, what in asked(sockets, 1) if what is kind]
    assert len({NOBODY, *tokens}) == 3
    sockets.answer(Answer(NOBODY, True, "asked by Ctrl-C"), b"{}")
    freed = GivenBack(ram_bytes=5, vram_bytes=None)
    for _ in range(2):
        sockets.answer(Answer(tokens[1], True, "Paused.", given_back=freed), b"{}")
    arrived(clients[1])
    reply = m.decode_reply(clients[1].recv_multipart())
    assert (reply.request_id, reply.ok, reply.text, reply.freed_ram_bytes) == (41, True, "Paused.", 5)
    assert not any(client.poll(50) for client in clients)


def test_garbage_is_counted_and_told_at_most_once_a_minute(sockets: Sockets, peer: Peer) -> None:
    stranger = peer(WORKER_SOCKET)

    def flood(frames: int) -> None:
        for _ in range(frames):
            stranger.send_multipart([b"\xff garbage"])
            assert heard(sockets) == []

    assert sockets.garbage_to_tell(100.0) == 0
    flood(3)
    assert sockets.garbage_to_tell(100.0) == 3
    flood(2)
    assert sockets.garbage_to_tell(100.0 + GARBAGE_EVERY_S / 2) == 0
    assert sockets.garbage_to_tell(100.0 + GARBAGE_EVERY_S) == 2
    assert sockets.garbage_to_tell(100.0 + 2 * GARBAGE_EVERY_S) == 0


def test_the_sockets_leave_nothing_behind(paths: RunPaths) -> None:
    sockets = Sockets(paths)
    assert {file.name for file in paths.runtime.iterdir()} >= {WORKER_SOCKET, CONTROL_SOCKET}
    sockets.close()
    assert not {WORKER_SOCKET, CONTROL_SOCKET} & {file.name for file in paths.runtime.iterdir()}
