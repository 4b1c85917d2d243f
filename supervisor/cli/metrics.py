"""`memsup metrics`: a process of its own that tells Prometheus of all runs of this user, on this machine alone.

Listens at 127.0.0.1. Only a request that names 127.0.0.1 or localhost is answered, so that no page in a browser can read it by
a name that it has led here. What is told is in `client/measures.py`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click

from memsup.shared.model.libraries import is_installed
from memsup.supervisor.cli.options import json_option
from memsup.supervisor.cli.screen import data, json_data
from memsup.supervisor.cli.streams import must_be_read
from memsup.supervisor.client.errors import RefusedError

HOST = "127.0.0.1"
PORT = 9754
_HOSTS = {HOST, "localhost"}
MOST_AT_ONCE = 16
"""Connections beyond so many are closed."""
SILENT_S = 5.0
"""Who sends nothing for so long, or takes nothing, is left."""
CANNOT_LISTEN = 1

Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@click.command(short_help="Tell Prometheus of all runs, on this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Where it listens; 0: a free one.")
@json_option
def metrics(port: int, as_json: bool) -> int:
    """Serve what Prometheus collects of all your runs at http://127.0.0.1:PORT/metrics, until Ctrl-C.

    Exit code: 1 it cannot listen there, 2 prometheus-client is not installed.
    """
    if not is_installed("prometheus_client"):
        raise RefusedError("memsup metrics needs prometheus-client, which is not installed: pip install 'memsup[metrics]'")
    from prometheus_client import CollectorRegistry, make_wsgi_app

    from memsup.supervisor.client.measures import Runs

    registry = CollectorRegistry()
    registry.register(Runs())
    try:
        server = make_server(HOST, port, _guarded(make_wsgi_app(registry)), _Server, _Quiet)
    except OSError as error:
        raise RefusedError(_why_not(port, error), CANNOT_LISTEN) from None
    with server:
        url = f"http://{HOST}:{server.server_port}/metrics"
        if as_json:
            json_data({"schema": 1, "url": url})
        else:
            data(f"All runs of yours, for Prometheus: {url}   (Ctrl-C ends it)")
        must_be_read()
        server.serve_forever()
    return 0


def _why_not(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken, by another memsup metrics or another program: choose another one with --port."
    return f"Port {port} cannot be listened at ({error.strerror}): choose another one with --port."


def _guarded(answer: Answer) -> Answer:
    """`answer` for those who ask for this machine, and for the metrics."""

    def guarded(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host = environment.get("HTTP_HOST", "").rpartition(":")[0] or environment.get("HTTP_HOST", "")
        if host not in _HOSTS:
            return _refused(start, "403 Forbidden", "This is for programs of this machine, at 127.0.0.1 or localhost.")
        if environment["PATH_INFO"] != "/metrics":
            return _refused(start, "404 Not Found", "What there is, is at /metrics.")
        return answer(environment, start)

    return guarded


def _refused(start: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = MOST_AT_ONCE

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free = threading.Semaphore(MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone; what goes wrong here otherwise is answered with status 500, and shown by wsgiref."""

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks for the machine's name, which may take long
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, *_: Any) -> None: ...
