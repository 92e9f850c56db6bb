"""A chain with a stopped clock, and a real HTTP server in front of it."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.collector import Collector, CollectorConfig
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.chain.events import SWAP_TOPIC
from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient
from apeagent_pipeline_tests.servers import stopped_afterwards

NOW = datetime(2025, 1, 26, 12, tzinfo=UTC)
SECRET = "s3cr3t-api-key-0123456789"

Answer = dict[str, Any]
Fault = Callable[[str, list[Any]], Answer | tuple[int, dict[str, str], bytes] | None]


@pytest.fixture(scope="session")
def provider() -> EmbeddedChainProvider:
    return EmbeddedChainProvider(42, now=NOW.timestamp)


@pytest.fixture(scope="session")
def two_days(provider: EmbeddedChainProvider) -> pl.DataFrame:
    collector = Collector(RpcClient([provider]), BASE_ETH_USDC)
    return pl.concat([collector.read_day(FIRST_DAY + timedelta(days=i)) for i in range(2)])


@pytest.fixture(scope="session")
def day_logs(provider: EmbeddedChainProvider) -> list[Answer]:
    first, last = Collector(RpcClient([provider]), BASE_ETH_USDC).block_range(FIRST_DAY)
    query = {"fromBlock": hex(first), "toBlock": hex(last), "topics": [SWAP_TOPIC]}
    return provider.make_request("eth_getLogs", [query])["result"]


class Node:
    """A JSON-RPC server on this machine. Set ``fault`` to answer a request in another way than the chain would.

    A fault returns None (no fault), a JSON-RPC answer, or (HTTP status, headers, body). ``change`` edits good answers.
    """

    def __init__(self, provider: EmbeddedChainProvider) -> None:
        self.provider = provider
        self.fault: Fault = lambda method, params: None
        self.change: Callable[[str, Any], Any] = lambda method, result: result
        self.shuffles_batches = False
        self.requests: list[str] = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet: otherwise each answer waits for a delayed ACK

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, body = node.answer(request)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> SecretStr:
        return SecretStr(f"http://user:{SECRET}@127.0.0.1:{self.server.server_port}/v2/{SECRET}?key={SECRET}")

    def answer(self, request: Any) -> tuple[int, dict[str, str], bytes]:
        if isinstance(request, list):
            answers = [self.one(entry) for entry in request]
            for answer in answers:
                if isinstance(answer, tuple):
                    return answer
            return 200, {}, json.dumps(answers[::-1] if self.shuffles_batches else answers).encode()
        answer = self.one(request)
        return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())

    def one(self, request: Answer) -> Any:
        method, params = request["method"], request["params"]
        self.requests.append(method)
        answer = self.fault(method, params)
        if answer is None:
            answer = dict(self.provider.make_request(method, params))
            if "result" in answer:
                answer["result"] = self.change(method, answer["result"])
        return {**answer, "id": request["id"]} if isinstance(answer, dict) else answer

    def collector(self, *others: "Node", parts: Path | None = None, **config: Any) -> Collector:
        nodes = [self, *others]
        providers = [MaskedHTTPProvider(node.url, f"RPC endpoint {i}") for i, node in enumerate(nodes, 1)]
        client = RpcClient(providers, sleep=lambda seconds: None)
        return Collector(client, BASE_ETH_USDC, CollectorConfig(**config), parts)


@pytest.fixture
def new_node(provider: EmbeddedChainProvider) -> Iterator[Callable[[], Node]]:
    yield from stopped_afterwards(lambda: Node(provider))


@pytest.fixture
def node(new_node: Callable[[], Node]) -> Node:
    return new_node()
