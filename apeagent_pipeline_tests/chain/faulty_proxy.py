"""A real HTTP proxy in front of a node, and the faults that nodes and the ways to them have.

A fault is a function ``fault(payload, ask) -> Reply`` around the node: it sees the JSON-RPC payload (one call or a
batch), may ask the node, and answers. Faults compose: ``sometimes(0.1, http_error(502))``, ``[lags(...), shuffles()]``.
"""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

Call = dict[str, Any]
Answer = dict[str, Any]
Log = dict[str, Any]


class HangUpError(Exception):
    """The connection is closed instead of an answer."""


@dataclass(frozen=True)
class Reply:
    """What goes back: a JSON value, or raw bytes that need not be JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The bytes of the body."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Ask = Callable[[Any], Reply]
Fault = Callable[[Any, Ask], Reply]


class FaultyProxy:
    """Forwards JSON-RPC to a node through a list of faults, the first of them outermost.

    Args:
        upstream: URL of the node.
        faults: Any time replaceable.

    Attributes:
        requests: HTTP requests received.
        calls: JSON-RPC calls received, by method.
        answered: Block ranges whose logs were given, in order.
        injected: Replies that are not what the node said.
        largest_batch: Most calls in one request.
    """

    def __init__(self, upstream: str, faults: Sequence[Fault] = (), name: str = "0") -> None:
        self.upstream = urlsplit(upstream)
        self.faults = list(faults)
        self.requests = 0
        self.injected = 0
        self.largest_batch = 0
        self.calls: Counter[str] = Counter()
        self.answered: list[tuple[int, int]] = []
        # Each part differs, so that a text in which one of them shows tells which; the password needs quoting.
        self.secrets = {part: f"s3cr3t-{part}-{name}-0123456789" for part in ("user", "path", "key")}
        self.secrets["password"] = f"s3cr3t/password@{name}-0123456789"
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.open()

    @property
    def url(self) -> str:
        """Address of the proxy with a secret in every part that can carry one."""
        secret = self.secrets
        login = f"{secret['user']}:{quote(secret['password'], safe='')}"
        return f"http://{login}@127.0.0.1:{self._port}/v2/{secret['path']}?key={secret['key']}"

    @property
    def secret_url(self) -> SecretStr:
        """The same as pydantic holds it."""
        return SecretStr(self.url)

    def open(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(self._port, self)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def answer(self, payload: Any) -> Reply:
        """Let a payload through the faults."""
        calls = calls_of(payload)
        with self._lock:
            self.requests += 1
            self.calls.update(call["method"] for call in calls)
            self.largest_batch = max(self.largest_batch, len(calls))
        said: list[Reply] = []

        def node(payload: Any) -> Reply:
            said.append(self._forward(payload))
            return said[-1]

        ask: Ask = node
        for fault in reversed(self.faults):
            ask = _around(fault, ask)
        try:
            reply = ask(payload)
        except HangUpError:
            self._count_injected()
            raise
        if not said or reply != said[-1]:
            self._count_injected()
        self._note_ranges(calls, reply)
        return reply

    def _forward(self, payload: Any) -> Reply:
        # One connection to the node for each connection to us, kept alive.
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port)
        body = json.dumps(payload)
        path = self.upstream.path or "/"
        self._local.connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._local.connection.getresponse()
        return Reply(json.loads(response.read()), response.status)

    def _count_injected(self) -> None:
        with self._lock:
            self.injected += 1

    def _note_ranges(self, calls: list[Call], reply: Reply) -> None:
        answers = {each.get("id"): each for each in calls_of(reply.body) if isinstance(each, dict)}
        for call in calls:
            if call["method"] == "eth_getLogs" and "result" in answers.get(call["id"], {}):
                with self._lock:
                    self.answered.append(range_of(call))


def _around(fault: Fault, ask: Ask) -> Ask:
    return lambda payload: fault(payload, ask)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed leave broken connections; nobody needs to read of them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20  # head and body in one packet: otherwise each answer waits for a delayed ACK
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.proxy._connections.add(self.connection)

    def finish(self) -> None:
        self.server.proxy._connections.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            reply = self.server.proxy.answer(payload)
        except HangUpError:
            self.close_connection = True
            return
        body = reply.encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or int(headers["Content-Length"]) != len(body)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def running(upstream: str, *faults: Fault, name: str = "0") -> Iterator[FaultyProxy]:
    """A proxy that is closed at the end."""
    proxy = FaultyProxy(upstream, faults, name)
    try:
        yield proxy
    finally:
        proxy.close()


def calls_of(payload: Any) -> list[Any]:
    """The calls (or answers) of a payload, be it a batch or not."""
    return payload if isinstance(payload, list) else [payload]


def range_of(call: Call) -> tuple[int, int]:
    """First and last block that an ``eth_getLogs`` asks for."""
    query = call["params"][0]
    return int(query["fromBlock"], 16), int(query["toBlock"], 16)


# When a fault strikes


def sometimes(share: float, fault: Fault, seed: int = 1) -> Fault:
    """Strikes a share of the requests."""
    rng = random.Random(seed)
    return lambda payload, ask: fault(payload, ask) if rng.random() < share else ask(payload)


def first(n: int, fault: Fault) -> Fault:
    """Strikes the first ``n`` requests that it would change, then never again."""
    left = [n]

    def only_first(payload: Any, ask: Ask) -> Reply:
        if left[0] <= 0:
            return ask(payload)
        said: list[Reply] = []

        def listen(payload: Any) -> Reply:
            said.append(ask(payload))
            return said[-1]

        reply = fault(payload, listen)
        if not said or reply != said[-1]:
            left[0] -= 1
        return reply

    return only_first


def asked_for(method: str, fault: Fault) -> Fault:
    """Strikes requests with a call of this method."""
    return lambda payload, ask: (
        fault(payload, ask) if any(call["method"] == method for call in calls_of(payload)) else ask(payload)
    )


def in_batches(fault: Fault) -> Fault:
    """Strikes batches only."""
    return lambda payload, ask: fault(payload, ask) if isinstance(payload, list) else ask(payload)


# The way to the node


def http_error(status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Answers with an HTTP status instead of the node."""
    return lambda payload, ask: Reply(body, status, headers or {})


def html() -> Fault:
    """A gateway's page with status 200."""
    return lambda payload, ask: Reply(
        b"<!doctype html><html><body><h1>Checking your browser</h1></body></html>", 200, {"Content-Type": "text/html"}
    )


def truncated(*, honest_length: bool = True) -> Fault:
    """The first half of the answer; the header announces that half, or the whole, after which the line goes dead."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        body = reply.encode()
        length = {} if honest_length else {"Content-Length": str(len(body))}
        return Reply(body[: len(body) // 2], reply.status, {**reply.headers, **length})

    return fault


def hangs_up() -> Fault:
    """Closes the connection without an answer."""

    def fault(payload: Any, ask: Ask) -> Reply:
        raise HangUpError

    return fault


def outage(proxy: FaultyProxy, after: int, seconds: float) -> Fault:
    """After some requests, refuse connections for a while: the listening socket is really closed."""
    seen = [0]

    def fall_and_rise() -> None:
        proxy.close()
        time.sleep(seconds)
        proxy.open()

    def fault(payload: Any, ask: Ask) -> Reply:
        seen[0] += 1
        if seen[0] == after:
            threading.Thread(target=fall_and_rise, daemon=True).start()
            raise HangUpError
        return ask(payload)

    return fault


def rate_limit(per_second: int, headers: Mapping[str, str] | None = None) -> Fault:
    """429 for every request above so many within a second."""
    recent: deque[float] = deque()
    lock = threading.Lock()

    def fault(payload: Any, ask: Ask) -> Reply:
        now = time.monotonic()
        with lock:
            while recent and recent[0] <= now - 1:
                recent.popleft()
            if len(recent) >= per_second:
                return Reply({"error": "Too Many Requests"}, 429, headers or {})
            recent.append(now)
        return ask(payload)

    return fault


# What is said to single calls, alone or in a batch


def each_answer(change: Callable[[Call, Answer], Answer]) -> Fault:
    """Changes the answers of single calls."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        asked = {call["id"]: call for call in calls_of(payload)}

        def changed(answer: Any) -> Any:
            known = isinstance(answer, dict) and answer.get("id") in asked
            return change(asked[answer["id"]], answer) if known else answer

        body = [changed(each) for each in reply.body] if isinstance(reply.body, list) else changed(reply.body)
        return replace(reply, body=body)

    return fault


def rpc_error(code: int, message: str, method: str | None = None) -> Fault:
    """A JSON-RPC error inside HTTP 200."""
    return each_answer(
        lambda call, answer: _error(answer, code, message) if method in (None, call["method"]) else answer
    )


def result_is(value: Any, method: str) -> Fault:
    """One method always has this result."""
    return each_answer(lambda call, answer: {**answer, "result": value} if call["method"] == method else answer)


def no_tags(*tags: str, error: bool) -> Fault:
    """Block tags that the node does not know: an error, or null."""

    def change(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getBlockByNumber" or call["params"][0] not in tags:
            return answer
        return _error(answer, -39001, "Unknown block") if error else {**answer, "result": None}

    return each_answer(change)


Message = Callable[[int, int, int], str]
"""(first block, last block, limit) -> what the node says."""


def range_limit(blocks: int, code: int, message: str | Message) -> Fault:
    """Refuses logs of more than so many blocks; "{limit}" in the message is the limit."""

    def change(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getLogs" or range_of(call)[1] - range_of(call)[0] < blocks:
            return answer
        return _error(answer, code, _say(message, call, blocks))

    return each_answer(change)


def result_limit(logs: int, code: int, message: str | Message) -> Fault:
    """Refuses ranges with more than so many logs."""

    def change(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getLogs" or len(answer.get("result") or []) <= logs:
            return answer
        return _error(answer, code, _say(message, call, logs))

    return each_answer(change)


def changed_logs(change: Callable[[list[Log]], list[Log]]) -> Fault:
    """Other logs than the node's, wherever it has any."""

    def changed(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getLogs" or not answer.get("result"):
            return answer
        return {**answer, "result": change(answer["result"])}

    return each_answer(changed)


def empty_between(low: int, high: int) -> Fault:
    """Says that no range which touches these blocks has a log."""

    def change(call: Call, answer: Answer) -> Answer:
        if call["method"] != "eth_getLogs" or range_of(call)[1] < low or range_of(call)[0] > high:
            return answer
        return {**answer, "result": []}

    return each_answer(change)


def lags(head: int, *, past_head: str = "empty") -> Fault:
    """A backend that has seen no block after ``head``; what it says of later ones is nothing, or an error.

    Block tags are left alone: finality comes from elsewhere.
    """

    def change(call: Call, answer: Answer) -> Answer:
        method, params = call["method"], call["params"]
        if method == "eth_blockNumber":
            return {**answer, "result": hex(head)}
        if method == "eth_getBlockByNumber" and params[0].startswith("0x") and int(params[0], 16) > head:
            return {**answer, "result": None}
        if method != "eth_getLogs" or range_of(call)[1] <= head:
            return answer
        if past_head == "error":
            return _error(answer, -32000, "block range extends beyond current head block")
        return {**answer, "result": [log for log in answer["result"] if int(log["blockNumber"], 16) <= head]}

    return each_answer(change)


def orphaned(first_block: int) -> Fault:
    """From a block on, another branch of the chain: every block has another hash, and each log another index."""

    def other(text: str) -> str:
        return "0x" + text[2:][::-1]

    def change(call: Call, answer: Answer) -> Answer:
        result = answer.get("result")
        if call["method"] == "eth_getLogs" and result:
            logs = [
                {**log, "blockHash": other(log["blockHash"]), "logIndex": hex(int(log["logIndex"], 16) + 1)}
                if int(log["blockNumber"], 16) >= first_block
                else log
                for log in result
            ]
            return {**answer, "result": logs}
        if call["method"] == "eth_getBlockByNumber" and result and int(result["number"], 16) >= first_block:
            parent = result["parentHash"] if int(result["number"], 16) == first_block else other(result["parentHash"])
            return {**answer, "result": {**result, "hash": other(result["hash"]), "parentHash": parent}}
        return answer

    return each_answer(change)


# Batches


def loses_answers() -> Fault:
    """A batch without its last answer."""
    return in_batches(lambda payload, ask: _with_body(ask(payload), lambda body: body[:-1]))


def shuffles(seed: int = 0) -> Fault:
    """A batch whose answers come in any order, as the standard allows."""
    rng = random.Random(seed)

    def shuffled(body: list[Any]) -> list[Any]:
        mixed = list(body)
        while mixed == body:
            rng.shuffle(mixed)
        return mixed

    return in_batches(lambda payload, ask: _with_body(ask(payload), shuffled))


def refuses_batches(code: int, message: str, status: int = 200, longer_than: int = 0) -> Fault:
    """One error object for a whole batch, or for a batch longer than so many calls."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return in_batches(
        lambda payload, ask: Reply(error, status) if len(payload) > longer_than else ask(payload),
    )


def _with_body(reply: Reply, change: Callable[[list[Any]], list[Any]]) -> Reply:
    return replace(reply, body=change(reply.body)) if isinstance(reply.body, list) and len(reply.body) > 1 else reply


def _error(answer: Answer, code: int, message: str) -> Answer:
    return {"jsonrpc": "2.0", "id": answer["id"], "error": {"code": code, "message": message}}


def _say(message: str | Message, call: Call, limit: int) -> str:
    return message(*range_of(call), limit) if callable(message) else message.replace("{limit}", f"{limit:,}")
