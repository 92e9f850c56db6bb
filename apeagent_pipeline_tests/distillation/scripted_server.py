"""An OpenAI-compatible server that answers as a script says, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = "portfolio seen\n####\nHOLD"

Script = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], Any, float]]
"""Called with the number of the request and its body: status, headers, document or raw bytes, delay in seconds."""


def completion(text: str | None = GOOD, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 150, "completion_tokens": 30, "total_tokens": 180},
    }


class ScriptedServer:
    """Answers each request as ``script(number, body)`` says: (status, headers, document, raw bytes or pieces, delay).

    ``pages`` answers GET requests: path below the base URL to status and document.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.pages: dict[str, tuple[int, Any]] = {}
        self.headers: list[dict[str, str]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, document, delay = outer.script(number, body)
                time.sleep(delay)
                if isinstance(document, list):
                    self._send_pieces(status, headers, document)
                    return
                payload = document if isinstance(document, bytes) else json.dumps(document).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:
                    self.close_connection = True  # the client has gone: a timeout, or it was killed

            def _send_pieces(self, status: int, headers: dict[str, str], pieces: list[Any]) -> None:
                """Send a stream: bytes as they are, numbers as pauses in seconds; a None cuts the connection."""
                self.close_connection = True
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "text/event-stream", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for piece in pieces:
                        if piece is None:
                            return
                        if isinstance(piece, bytes):
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                            self.wfile.flush()
                        else:
                            time.sleep(piece)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    pass

            def do_GET(self) -> None:
                status, document = outer.pages.get(self.path.removeprefix("/v1"), (404, {"error": {"message": "none"}}))
                payload = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # a client was killed
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
