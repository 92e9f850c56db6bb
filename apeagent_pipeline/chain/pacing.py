"""Spaces requests, finds the pace that an endpoint allows, and tells the time that is left."""

import threading
import time
from collections import deque
from collections.abc import Callable

_SLOWER, _FASTER = 1.25, 0.99
_SLOWEST = 5.0
_SECONDS_BETWEEN_CHANGES = 1.0
_REMEMBERED_SECONDS = 60.0


class TimeLeft:
    """Seconds until some work is done, by the pace of the last minute: an endpoint's pace changes.

    Args:
        total: Units of work.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._marks: deque[tuple[float, int]] = deque()

    def after(self, done: int) -> float | None:
        """Seconds left when so many units are done; None as long as nothing tells the pace."""
        now = time.monotonic()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _REMEMBERED_SECONDS:
            self._marks.popleft()
        begun, before = self._marks[0]
        return (self._total - done) * (now - begun) / (done - before) if done > before else None


class RateLimiter:
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

    @property
    def calls_at_once(self) -> int | None:
        """Most calls of one request, or None for no limit: a request takes no more than a second's share.

        At least two, because a question and the head of the chain go together.
        """
        return max(2, int(1 / self._interval)) if self._interval else None

    @property
    def learned_per_second(self) -> float | None:
        """The pace at present if refusals made it slower than it might be, else None."""
        return 1 / self._interval if self._interval > self._least else None

    def start_at(self, per_second: float | None) -> None:
        """Begin with a pace that is known to be allowed; None: with the largest."""
        with self._lock:
            self._interval = max(self._least, 1 / per_second) if per_second else self._least

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
