"""A server that answers every request as an attacker would, and remembers what it was sent."""

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


class HostileServer:
    """``answer`` writes the whole response, status line included."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append({name.lower(): value for name, value in self.headers.items()})
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has had enough
                    answer(self)

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def _begin(handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Digits of a JSON number, as fast as they are taken."""
    _begin(handler)
    while True:
        handler.wfile.write(b"1" * (1 << 20))


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, so that no packet is ever late."""
    _begin(handler)
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def bomb(handler: BaseHTTPRequestHandler) -> None:
    """A gigabyte in one megabyte."""
    _begin(handler, Content_Encoding="gzip")
    packed = gzip.compress(bytes(1 << 24))
    for _ in range(64):
        handler.wfile.write(packed)


def redirect(to: str) -> Answer:
    """Send the client, with all it carries, to another server."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _begin(handler, 307, Location=to, Content_Length="0")

    return answer


def document(value: Any, status: int = 200) -> Answer:
    """A JSON document."""
    return raw(json.dumps(value).encode(), status)


def raw(body: bytes, status: int = 200) -> Answer:
    """Any bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _begin(handler, status, Content_Length=str(len(body)))
        handler.wfile.write(body)

    return answer
