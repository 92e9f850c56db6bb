"""The real server in front of an engine that says what it is told."""

import threading
from contextlib import contextmanager

import requests
import uvicorn

from apeagent_pipeline.serving.server import build_app, listen


class Scripted:
    """An engine that says what it is told, a few characters at a time, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, said="up strong, add\n####\nAPE IN 0.1 ETH"):
        self.said, self.asked, self.generated = said, [], 0

    def stream(self, messages, max_new_tokens):
        self.asked.append(messages)
        said = self.said(messages) if callable(self.said) else self.said
        for start in range(0, min(len(said), 4 * max_new_tokens), 4):
            self.generated += 1
            yield said[start : start + 4]


@contextmanager
def serving(engine, dialect=None):
    listening = listen(0)
    server = uvicorn.Server(uvicorn.Config(build_app(engine, dialect), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def ask(url, text, **more):
    body = {"model": "apeagent", "messages": [{"role": "user", "content": text}], "stream": False, **more}
    return requests.post(f"{url}/api/chat", json=body, timeout=20)
