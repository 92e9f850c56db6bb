"""Spaces requests, and finds the pace that an endpoint allows."""

import threading
import time
from collections import deque
from collections.abc import Callable

_SLOWER, _FASTER = 1.25, 0.99
_SLOWEST = 5.0
_SECONDS_BETWEEN_CHANGES = 1.0


class Pacer:
    """Spaces requests evenly, for all threads together.

    A refusal for going too fast makes the pace slower; every answer makes it a little faster again.

    Args:
        per_second: Largest number of calls a second; 0 for no limit.
        sleep: Waits the given seconds.
    """

    def __init__(self, per_second: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._least = 1 / per_second if per_second else 0.0
        self._interval = self._least
        self._sleep = sleep
        self._next = 0.0
        self._changed = 0.0
        self._sent: deque[tuple[float, int]] = deque(maxlen=64)
        self._lock = threading.Lock()

    @property
    def calls_per_second(self) -> float | None:
        """The pace at present, or None if nothing limits it."""
        return 1 / self._interval if self._interval else None

    def wait(self, requests: int) -> None:
        """Wait until so many requests may be sent."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + requests * self._interval
            self._sent.append((at, requests))
        if at > now:
            self._sleep(at - now)

    def pause(self, seconds: float) -> None:
        """Let no thread send for a while: a node that refuses one thread refuses them all."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def answered(self) -> None:
        """An answer came: the pace may grow a little."""
        with self._lock:
            if self._interval > self._least:
                self._interval = max(self._least, self._interval * _FASTER)

    def slow_down(self) -> None:
        """The node says that requests come too fast. Refusals of the same moment count once."""
        with self._lock:
            now = time.monotonic()
            if now - self._changed < _SECONDS_BETWEEN_CHANGES:
                return
            self._changed = now
            self._interval = min(_SLOWEST, _SLOWER * max(self._interval, self._observed(now)))

    def _observed(self, now: float) -> float:
        recent = [(at, count) for at, count in self._sent if now - at < 2]
        calls = sum(count for _, count in recent)
        return (now - recent[0][0]) / calls if calls else 0.0
