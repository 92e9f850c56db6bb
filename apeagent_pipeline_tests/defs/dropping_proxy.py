"""A TCP proxy that drops connections, for any server: an object store, a database."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DroppingProxy:
    """Forwards bytes to 127.0.0.1:``target`` and drops connections as told.

    Attributes:
        chance: Of a connection to be dropped before each piece of data that is forwarded.
        cut: Whether every connection is dropped, and no new one served.
        drops: How many were dropped by chance.
    """

    def __init__(self, target: int) -> None:
        self.chance, self.cut, self.drops = 0.0, False, 0
        self._target = target
        self._random = random.Random(1)
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_all(self) -> None:
        """From now on nothing goes through."""
        self.cut = True
        for each in list(self._open):
            _close(each)

    def close(self) -> None:
        """Stop listening."""
        self.cut_all()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.cut:
                    _close(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {client, server}
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if self.cut or self._random.random() < self.chance:
                    self.drops += not self.cut
                    other.sendall(data[: len(data) // 2])  # half of it arrives
                    break
                other.sendall(data)
        for each in (one, other):
            _close(each)
            self._open.discard(each)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def dropping_proxy(target: int) -> Iterator[DroppingProxy]:
    """A proxy in front of a port of 127.0.0.1."""
    proxy = DroppingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
