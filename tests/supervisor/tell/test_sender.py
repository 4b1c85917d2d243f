"""Messages really arrive, over real HTTP on this machine; a dead network holds nobody up, and no secret is shown."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.terminal import EVIL, FORGED, obeyed

from memsup.shared.secret import Secret, named
from memsup.supervisor.cli.notify import notify as command
from memsup.supervisor.tell import sender
from memsup.supervisor.tell.messenger import Messenger, Sent
from memsup.supervisor.tell.policy import Kind, Notice
from memsup.supervisor.tell.sender import AddressError, addresses, deliver

SECRET = "s3cr3t-token"
DRIP = -1
"""In place of a status code: its first line never ends."""
NOTICE = Notice(Kind.FAILED, "night: failed", "磁盘已满 <b>&</b>")
needs_apprise = pytest.mark.skipif(importlib.util.find_spec("apprise") is None, reason="not run: apprise is not installed")


class Server:
    """A real HTTP server on the loopback. `answers` are status codes for the next requests; all later ones get 200. None means
    no answer at all.
    """

    def __init__(self) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self.answers: list[int | None] = []
        self.let_go = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code = outer.answers.pop(0) if outer.answers else 200
                outer.got.append((self.command, self.path, body))
                while code == DRIP and not outer.let_go.wait(0.1):
                    self.wfile.write(b"h")
                if code in (None, DRIP):
                    outer.let_go.wait(120)
                    return
                self.send_response(code)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self._server.server_address[1]

    @property
    def notify_url(self) -> str:
        return f"json://127.0.0.1:{self.port}/{SECRET}"

    @property
    def ping_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ping/{SECRET}"

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def messenger() -> Iterator[Callable[..., Messenger]]:
    """Starts messengers, and ends their senders."""
    started: list[Messenger] = []

    def start(urls: list[str], ping_url: str | None = None) -> Messenger:
        made = Messenger([Secret(url) for url in urls], Secret(ping_url) if ping_url else None)
        made.start(time.monotonic())
        started.append(made)
        return made

    yield start
    for made in started:
        if made._process is not None:
            os.killpg(made._process.pid, signal.SIGKILL)
            made._process.wait()
            made.close()


def wait_for(condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)


def answers_of(messenger: Messenger, number: int) -> list[Sent]:
    came: list[Sent] = []
    wait_for(lambda: len(came) >= number or came.extend(messenger.answers()))
    return came


@needs_apprise
def test_a_message_arrives_and_is_reported(server: Server, messenger: Callable[..., Messenger]) -> None:
    """Title and text as they are, Chinese and markup included; the answer names the kind of address only."""
    told = messenger([server.notify_url])
    told.send(NOTICE)
    assert answers_of(told, 1) == [Sent(False, True, "Delivered to: json.")]
    ((method, path, body),) = server.got
    assert (method, path) == ("POST", f"/{SECRET}")
    document = json.loads(body)
    assert (document["title"], document["message"]) == (NOTICE.title, NOTICE.text)


@needs_apprise
def test_a_message_drives_no_terminal_that_shows_it(server: Server, messenger: Callable[..., Messenger]) -> None:
    """A mail is read on terminals, too, and a worker's last words are in it."""
    told = messenger([server.notify_url])
    told.send(Notice(Kind.FAILED, f"default: failed{EVIL}{FORGED}", f"It said {EVIL}\nand ended"))
    assert answers_of(told, 1)[0].ok
    document = json.loads(server.got[0][2])
    assert not obeyed(document["title"] + document["message"])
    assert "\n" not in document["title"]
    assert document["message"].endswith("\nand ended")


def test_the_ping_arrives(server: Server, messenger: Callable[..., Messenger]) -> None:
    """One GET."""
    told = messenger([], server.ping_url)
    told.ping()
    assert answers_of(told, 1) == [Sent(True, True, "Pinged.")]
    assert server.got == [("GET", f"/ping/{SECRET}", b"")]


def test_a_server_that_never_answers_holds_nobody_up(server: Server, messenger: Callable[..., Messenger]) -> None:
    """The guard hands over hundreds of jobs while nothing gets through, each at once; the next ping waits for the first."""
    server.answers = [None] * 50
    told = messenger([server.notify_url], server.ping_url)
    slowest_s = 0.0
    for _ in range(300):
        begun_s = time.monotonic()
        told.send(Notice(Kind.ATTENTION, "t", "x" * 2000))
        told.ping()
        told.answers()
        slowest_s = max(slowest_s, time.monotonic() - begun_s)
    assert slowest_s < 5, "a server that waits for two minutes was waited for"
    wait_for(lambda: [path for _, path, _ in server.got].count(f"/ping/{SECRET}") == 1)


def test_no_secret_is_shown(server: Server, messenger: Callable[..., Messenger]) -> None:
    """Not in the arguments or the environment of the sender or its forks, not in what comes back."""
    server.answers = [500, 500]
    told = messenger([f"json://127.0.0.1:{server.port}/{SECRET}/%%%"], server.ping_url)
    assert told._process is not None
    pid = told._process.pid
    told.send(NOTICE, retry=False)
    told.ping()
    shown = "".join(
        Path(f"/proc/{process}/{what}").read_text(errors="replace") for process in (pid,) for what in ("cmdline", "environ")
    )
    came = answers_of(told, 2)
    assert SECRET not in shown
    assert SECRET not in repr(came)
    assert not any(sent.ok for sent in came)


def test_a_killed_sender_is_replaced(server: Server, messenger: Callable[..., Messenger]) -> None:
    """Not at once, so that a sender which dies again and again costs nothing."""
    told = messenger([], server.ping_url)
    assert told._process is not None
    first = told._process.pid
    os.kill(first, signal.SIGKILL)
    told._process.wait()
    told.ping()
    assert told.answers() == []
    told.start(time.monotonic())
    assert told._process.pid == first
    told.start(time.monotonic() + 1000)
    assert told._process.pid != first
    told.ping()
    assert answers_of(told, 1)[-1].ok


def test_the_sender_ends_with_its_supervisor(server: Server, messenger: Callable[..., Messenger]) -> None:
    """Its stdin ends; what is on its way still arrives."""
    told = messenger([], server.ping_url)
    process = told._process
    assert process is not None
    told.ping()
    told.close()
    assert process.wait(60) == 0
    assert len(server.got) == 1


def test_without_addresses_nothing_is_started() -> None:
    """Who asked for no messages has no further process."""
    told = Messenger([], None)
    told.start(0.0)
    told.send(NOTICE)
    told.ping()
    assert (told.fd, told.answers()) == (None, [])


def test_a_server_that_says_a_byte_now_and_then_keeps_no_place(server: Server) -> None:
    """It is waited for as a whole, and not for each byte; a sender has few places."""
    server.answers = [DRIP]
    short = "import sys; from memsup.supervisor.tell import sender; sender.PING_WITHIN_S = 1.0; sys.exit(sender.main())"
    with subprocess.Popen([sys.executable, "-c", short], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps({"id": 1, "ping": server.ping_url}).encode() + b"\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline())
        server.let_go.set()
    assert answer == {"id": 1, "ok": False, "text": "It was not answered to the end in time."}
    assert child.returncode == 0


def test_garbage_on_its_stdin_does_not_end_the_sender(server: Server, messenger: Callable[..., Messenger]) -> None:
    """Lines that are no jobs, bombs and endless ones included."""
    told = messenger([], server.ping_url)
    told._waiting = b"\xff\n{}\n[]\n" + b"[" * 20_000 + b'\n{"id":"x"}\n{"id":1e999}\n{"id":900}\n'
    told.ping()
    assert [sent for sent in answers_of(told, 1) if sent.ping] == [Sent(True, True, "Pinged.")]


# --------------------------------------------------------------------------------------------------------------------
# One job


@needs_apprise
def test_a_server_that_is_down_for_a_while_is_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those who were not reached get it again."""
    monkeypatch.setattr(sender, "RETRY_AFTER_S", (0.05, 0.05, 0.05))
    server.answers = [500, 503, 200]
    job = {"urls": [f"{server.notify_url}/a"], "title": "t", "text": "x"}
    assert deliver(job, {}) == (True, "Delivered to: json.")
    assert [path for _, path, _ in server.got] == [f"/{SECRET}/a"] * 3


@needs_apprise
def test_who_is_never_reached_is_named_by_kind(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "RETRY_AFTER_S", (0.01,))
    server.answers = [500] * 9
    ok, text = deliver({"urls": [server.notify_url], "title": "t", "text": "x"}, {})
    assert (ok, text) == (False, "Not delivered to: json.")


@needs_apprise
def test_an_address_that_is_none_is_said_so() -> None:
    """Without it."""
    ok, text = deliver({"urls": [f"nonsense://{SECRET}"], "title": "t", "text": "x"}, {})
    assert not ok
    assert "nonsense" in text
    assert SECRET not in text


@pytest.mark.parametrize("code", [404, 500])
def test_a_ping_that_is_refused_is_told(server: Server, code: int) -> None:
    server.answers = [code]
    assert deliver({"ping": server.ping_url}, {}) == (False, f"The ping was answered with {code}.")


def test_a_ping_to_nowhere_is_told(server: Server) -> None:
    """A closed port, and addresses that are no web addresses (file: would read this machine's files)."""
    server.close()
    ok, text = deliver({"ping": server.ping_url}, {})
    assert not ok
    assert SECRET not in text
    assert deliver({"ping": "ftp://127.0.0.1/x"}, {}) == (False, "notify.ping_url is not an http address.")


def test_secrets_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """One address a line, with comments; a file that others can read is refused."""
    file = tmp_path / "urls"
    file.write_text("# mine\njson://a\n\n  json://b  \n")
    file.chmod(0o600)
    assert addresses([f"file:{file}", "env:URLS", "json://e"], {"URLS": "json://c json://d"}) == [
        "json://a",
        "json://b",
        "json://c",
        "json://d",
        "json://e",
    ]
    file.chmod(0o644)
    with pytest.raises(AddressError, match="chmod 600"):
        addresses([f"file:{file}"], {})
    with pytest.raises(AddressError, match="not set"):
        addresses(["env:NOT_THERE"], {})
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, why in (("none", "No such file"), ("pipe", "a pipe and not a file"), ("a\0b", "null byte")):
        with pytest.raises(AddressError, match=f"cannot be read .*{why}"):
            addresses([f"file:{tmp_path / name}"], {})
    with pytest.raises(AddressError, match="a device and not a file"):
        addresses(["file:/dev/null"], {})


def test_an_address_is_named_by_its_kind_only() -> None:
    assert named("dingtalk://token@secret") == "dingtalk"
    assert named("s3cr3t token without a scheme") == "address"


# --------------------------------------------------------------------------------------------------------------------
# memsup notify --test


@needs_apprise
def test_notify_test_tells_what_arrived(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit code 0 when all were reached, 1 when not, and never an address on the screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMSUP_NOTIFY_PING_URL", server.ping_url)
    words = ["--test", "--set", f"notify.urls={server.notify_url}"]
    good = CliRunner().invoke(command, words, standalone_mode=False)
    assert good.return_value == 0, good.output
    assert sorted(good.output.splitlines()) == ["message: Delivered to: json.", "ping: Pinged."]
    server.answers = [500, 500]
    bad = CliRunner().invoke(command, [*words, "--json"], standalone_mode=False)
    assert bad.return_value == 1
    assert {"schema": 1, "reached": False}.items() <= json.loads(bad.output).items()
    assert SECRET not in good.output + bad.output
