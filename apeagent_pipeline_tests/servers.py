"""Starting HTTP servers for a test, and stopping them after it."""

from collections.abc import Callable, Iterator
from http.server import HTTPServer
from typing import Any, Protocol, TypeVar


class Serving(Protocol):
    """What has a running server inside."""

    server: HTTPServer


S = TypeVar("S", bound=Serving)


def stopped_afterwards(kind: Callable[..., S]) -> Iterator[Callable[..., S]]:
    """A function that makes (and so starts) servers of a kind; all of them are stopped when the iteration goes on."""
    servers: list[S] = []

    def start(*arguments: Any) -> S:
        servers.append(kind(*arguments))
        return servers[-1]

    yield start
    for each in servers:
        each.server.shutdown()
        each.server.server_close()
