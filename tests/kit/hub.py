"""A hub of models at this machine's own address, over real sockets."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Hub(http.server.ThreadingHTTPServer):
    """Answers as a hub does, for the models that are put into it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def put(self, model: str, config: Any, names: list[str] | None = None) -> None:
        if config is not None:
            content = config if isinstance(config, bytes) else json.dumps(config).encode()
            self.answers[f"/{model}/resolve/main/config.json"] = 200, content
        if names is not None:
            listed = {"id": model, "siblings": [{"rfilename": name} for name in names]}
            self.answers[f"/api/models/{model}"] = 200, json.dumps(listed).encode()

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}/", "HF_HOME": "/nowhere"}


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        code, body = self.server.answers.get(self.path, (404, b"{}"))
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub_that_answers() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
