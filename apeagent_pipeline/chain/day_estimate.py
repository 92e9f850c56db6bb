"""What one day will take from an endpoint: measured, or from the limits that are known of it."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from apeagent_pipeline.chain.day_reading import PoolEvents
from apeagent_pipeline.chain.days import SECONDS_PER_DAY
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.log_reader import SMALL_RANGE, LogReader

_REQUESTS_BESIDE_RANGES = 5
_MANY_REQUESTS = 500
_MEASURED_SECONDS = 12.0


class DayEstimate(NamedTuple):
    """What one day will take from one endpoint.

    Attributes:
        endpoint: How texts name it.
        range_blocks: Blocks that one request may ask for.
        calls_per_second: Pace of the calls, or None if nothing limits it.
        requests: Requests for one day.
        seconds: Time for one day.
    """

    endpoint: str
    range_blocks: int
    calls_per_second: float | None
    requests: int
    seconds: float

    @property
    def limits(self) -> str:
        """Blocks a request and pace, in words."""
        pace = self.calls_per_second
        told = f"{pace:.{0 if pace >= 10 else 1}f} calls a second" if pace else "no limit on the pace"
        return f"{self.range_blocks:,} blocks a request, {told}"

    def __str__(self) -> str:
        return (
            f"{self.endpoint}: {self.limits}: about {self.requests:,} requests and "
            f"{max(self.seconds / 60, 0.1):.1f} minutes for a day"
        )


def estimate(endpoint: Endpoint, range_blocks: int, block_seconds: float, request_seconds: float) -> DayEstimate:
    """What a day takes.

    Args:
        endpoint: Where it will be read.
        range_blocks: Blocks of one request.
        block_seconds: Seconds between two blocks.
        request_seconds: Seconds of one request, over the requests that run at a time.
    """
    requests = -(-int(SECONDS_PER_DAY / block_seconds) // range_blocks) + _REQUESTS_BESIDE_RANGES
    pace = endpoint.calls_per_second
    paced = requests * (2 if range_blocks > SMALL_RANGE else 1) / pace if pace else 0.0
    return DayEstimate(str(endpoint), range_blocks, pace, requests, max(paced, requests * request_seconds))


def measure(reader: LogReader, head: int, range_blocks: int, block_seconds: float, parallel: int) -> DayEstimate:
    """Ask for the logs of one range; if a day will take many requests, ask for some seconds, to find the pace.

    Args:
        reader: Whose first endpoint is measured.
        head: The last final block.
        range_blocks: Size of the first range.
        block_seconds: Seconds between two blocks.
        parallel: Requests at a time.

    Raises:
        RpcError: if no endpoint answers.
    """
    first = max(head - range_blocks + 1, 0)
    _, pieces = reader.read_range(first, first + range_blocks - 1, accept=_accept_all, most_pieces=1)
    endpoint = pieces[0].endpoint
    blocks = reader.sizes[endpoint].blocks
    begun = time.monotonic()
    until = begun + (_MEASURED_SECONDS if SECONDS_PER_DAY / block_seconds / blocks > _MANY_REQUESTS else 0.0)
    if until > begun:
        reader.client.tell(f"finding the pace of {endpoint}, for {_MEASURED_SECONDS:.0f} s")

    def ask(stride: int) -> int:
        asked = 0
        while not asked or time.monotonic() < until:
            start = max(head - (asked * parallel + stride + 1) * blocks, 0)
            reader.read_range(start, start + blocks - 1, accept=_accept_all, avoid=_others(reader, endpoint))
            asked += 1
        return asked

    with ThreadPoolExecutor(parallel) as executor:
        asked = sum(executor.map(ask, range(parallel)))
    # Where the pace was refused, the time of the first, faster requests says nothing about a whole day.
    seconds = 0.0 if endpoint.learned_pace else (time.monotonic() - begun) / asked
    return estimate(endpoint, reader.sizes[endpoint].blocks, block_seconds, seconds)


def _others(reader: LogReader, endpoint: Endpoint) -> list[Endpoint]:
    return [each for each in reader.client.endpoints if each is not endpoint]


def _accept_all(endpoint: Endpoint, events: PoolEvents, end: int, blocks: list[Any]) -> None:
    """Accept any answer: only the size of the range is measured."""
