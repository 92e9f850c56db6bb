"""Where alerts go."""

import json
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


class Webhook:
    """A real server that answers as the path says: broken, moved, slow, or well."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.elsewhere: list[str] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (webhook.elsewhere if "elsewhere" in self.path else webhook.told).append(body["text"])
                if "slow" in self.path:
                    Event().wait(2)
                    return
                self.send_response(500 if "broken" in self.path else 307 if "moved" in self.path else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                with suppress(ConnectionError):  # the other side has heard enough
                    while "endless" in self.path:
                        self.wfile.write(b"." * 1000)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
