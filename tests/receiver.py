"""A local HTTP server that records what is posted to it, as Slack would get it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What came, by path; `answers` has the status for a path that refuses."""

    port: int
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def take(self, path: str) -> list[dict[str, Any]]:
        """Return what came to a path since the last time."""
        taken = [body for where, body in self.posted if where == path]
        self.posted = [post for post in self.posted if post[0] != path]
        return taken


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.partition("?")[0].rstrip("/")
            status = here.answers.get(path, 200)
            if status == 200:
                here.posted.append((path, body))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"ok" if status == 200 else f"no_service {path}".encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
