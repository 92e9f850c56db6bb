"""How soon hopeless endpoints are given up, and what is told meanwhile.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.giving_up``. Each behaviour is one HTTP server of which three
days are asked, with real waits; all of them at the same time, so it takes as long as the slowest.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.collector import Collector
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.campaign import DAY, Truth, truth
from apeagent_pipeline_tests.chain.faulty_proxy import Fault, hangs_up, html, http_error, no_tags, result_is, rpc_error

SOON, A_MINUTE = 10.0, 75.0
DAYS = 3


class Behaviour(NamedTuple):
    """What an endpoint does, the seconds within which it has to be given up, and a word of the error."""

    faults: list[Fault]
    most_seconds: float
    told: str


class Ending(NamedTuple):
    """How asking for three days ended: seconds of the first and of all, first line on the screen, error."""

    first: float
    whole: float
    news: float | None
    error: str


BEHAVIOURS = {
    "closes every connection": Behaviour([hangs_up()], SOON, "no answer"),
    "HTTP 401": Behaviour([http_error(401, b"unknown key")], SOON, "401"),
    "HTTP 403": Behaviour([http_error(403, b"forbidden")], SOON, "403"),
    "monthly capacity used up": Behaviour(
        [http_error(429, b'{"error":{"code":429,"message":"Monthly capacity limit exceeded."}}')], SOON, "Monthly"
    ),
    "monthly capacity used up, inside HTTP 200": Behaviour(
        [rpc_error(-32005, "daily request count exceeded, request rate limited: monthly quota reached")], SOON, "quota"
    ),
    "history pruned, with an error": Behaviour(
        [rpc_error(4444, "pruned history unavailable", "eth_getLogs")], SOON, "pruned"
    ),
    "Retry-After: 3600": Behaviour([http_error(429, b"", {"Retry-After": "3600"})], SOON, "asks for no requests until"),
    "another chain": Behaviour([result_is("0x1", "eth_chainId")], SOON, "serves chain 1"),
    "no contract": Behaviour([result_is("0x", "eth_getCode")], SOON, "no contract"),
    "eth_getLogs does not exist": Behaviour(
        [rpc_error(-32601, "the method eth_getLogs does not exist", "eth_getLogs")], SOON, "does not exist"
    ),
    "a web page for every request": Behaviour([html()], A_MINUTE, "not JSON"),
    "HTTP 502 for every request": Behaviour([http_error(502)], A_MINUTE, "502"),
    "HTTP 429 for every request, no Retry-After": Behaviour([http_error(429)], A_MINUTE, "429"),
    "an unknown error for every request": Behaviour([rpc_error(-32000, "nobody knows why")], A_MINUTE, "nobody knows"),
    "no finalized and no safe block, head at genesis": Behaviour(
        [no_tags("finalized", "safe", error=True), result_is("0x0", "eth_blockNumber")], SOON, "not synced"
    ),
}


@contextmanager
def silent_server(dripping: bool) -> Iterator[str]:
    """Takes connections and never answers, or sends a byte a second of an endless answer; yields the URL."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    stopped = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection:
            if dripping:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stopped.wait(1.0):
                try:
                    connection.sendall(b" " if dripping else b"")
                except OSError:
                    return

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/key"
    finally:
        stopped.set()
        listening.close()


def ask(url: SecretStr) -> Ending:
    """Read three days; each has to fail."""
    client = RpcClient([MaskedHTTPProvider(url, "RPC endpoint 1")])
    begun = time.monotonic()
    news: list[float] = []
    client.tell = lambda line: news.append(time.monotonic() - begun)
    reader, ends, error = Collector(client, BASE_ETH_USDC), [], ""
    for i in range(DAYS):
        try:
            reader.read_day(DAY + timedelta(days=i))
        except ChainError as failed:
            error = error or str(failed)
        else:
            error = "no error"
        ends.append(time.monotonic() - begun)
    return Ending(ends[0], ends[-1], news[0] if news else None, error)


def of_behaviour(faults: list[Fault], true: Truth) -> Ending:
    """How a node with these faults is given up."""
    with lies.nodes(true.provider, faults) as (node,):
        return ask(node.secret_url)


def of_silence(dripping: bool) -> Ending:
    """How a server without an answer is given up."""
    with silent_server(dripping) as url:
        return ask(SecretStr(url))


def of_closed_port() -> Ending:
    """How a port is given up on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return ask(SecretStr(f"http://127.0.0.1:{port}/key"))


def measured() -> dict[str, tuple[float, str, Ending]]:
    """Behaviour -> seconds that it may take, a word that the error must have, and how it ended."""
    true = truth()
    works: dict[str, tuple[float, str, Callable[[], Ending]]] = {
        "refuses connections": (SOON, "no answer", of_closed_port),
        "never answers": (A_MINUTE, "no answer", lambda: of_silence(False)),
        "sends a byte a second": (A_MINUTE, "did not end", lambda: of_silence(True)),
    }
    for name, (faults, most, told) in BEHAVIOURS.items():
        works[name] = most, told, lambda faults=faults: of_behaviour(faults, true)  # type: ignore[misc]
    with ThreadPoolExecutor(len(works)) as executor:
        endings = {name: executor.submit(work) for name, (_, _, work) in works.items()}
        return {name: (*works[name][:2], ending.result()) for name, ending in endings.items()}


def main() -> None:
    """Print the table."""
    names = "endpoint|at most s|first day, s|three days, s|first line after, s|met|error"
    table = Table(*names.split("|"), title="Giving up")
    for name, (most, told, ending) in measured().items():
        met = ending.whole <= most and told in ending.error and (ending.news is not None or ending.whole <= SOON)
        news = "-" if ending.news is None else f"{ending.news:.1f}"
        cells = [f"{most:.0f}", f"{ending.first:.1f}", f"{ending.whole:.1f}", news, "yes" if met else "NO"]
        table.add_row(name, *cells, ending.error[:90])
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
