"""One day from a node that a free tier allows: 10 blocks a request, and so many compute units a second.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.free_tier``. The node is the embedded chain; it
refuses what goes beyond the tier as Alchemy does, without a ``Retry-After``. The clock is simulated: a day takes about
half a minute of CPU, however long it takes by that clock.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain import day_estimate, pacing, rpc
from apeagent_pipeline.chain.collector import Collector, CollectorConfig
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.chain.endpoint_limits import EndpointLimits
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline_tests.chain.campaign import DAY, truth
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, Fault, Reply, calls_of, each_answer, range_limit

UNITS = {"eth_getLogs": 60, "eth_call": 26, "eth_blockNumber": 10, "eth_chainId": 0}
"""Compute units of a call; every other one takes `OTHER_UNITS`. alchemy.com/docs/reference/compute-unit-costs, 2026."""

OTHER_UNITS = 20
RANGE_BLOCKS = 10
LATENCY_S = 0.05
FIRST_SHARE, LAST_SHARE = 0.02, 0.98
"""Where the seconds left are judged: before, the pace is not found; after, nobody plans with them."""

SETTING_PER_SECOND = 25.0
"""Default of APEAGENT_RPC_REQUESTS_PER_SECOND."""

REFUSED = "Your app has exceeded its compute units per second capacity. Please consider upgrading your plan."
LIMIT = "Under the Free tier plan, you can make eth_getLogs requests with up to a {limit} block range."


class SimulatedTime:
    """The `time` module with a clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Simulated seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds


class TierNode:
    """A node that answers what its tier allows: a budget of units that refills evenly.

    Args:
        node: Answers what the tier lets through.
        per_second: Units a second.
        burst_seconds: Seconds after which the budget is full.
        clock: Whose seconds.
        faults: What else changes the answers, the first of them outermost.
    """

    def __init__(
        self,
        node: EmbeddedChainProvider,
        per_second: float,
        burst_seconds: float,
        clock: SimulatedTime,
        faults: list[Fault],
    ) -> None:
        self.requests = self.refused = self.largest = 0
        self._node, self._clock, self._faults = node, clock, faults
        self._per_second, self._most = per_second, per_second * burst_seconds
        self._left, self._at = self._most, clock.now

    identity = "tier"

    def __str__(self) -> str:
        return "RPC endpoint 1"

    def make_request(self, method: str, params: list[Any]) -> Any:
        """The answer to one call."""
        return self._answer({"id": 0, "method": method, "params": params})

    def make_batch_request(self, calls: Sequence[tuple[str, list[Any]]]) -> Any:
        """The answers to several calls, or one refusal."""
        return self._answer([{"id": i, "method": method, "params": params} for i, (method, params) in enumerate(calls)])

    def _answer(self, payload: Any) -> Any:
        calls = calls_of(payload)
        units = sum(UNITS.get(call["method"], OTHER_UNITS) for call in calls)
        self.requests += 1
        self.largest = max(self.largest, len(calls))
        self._clock.sleep(LATENCY_S)
        now = self._clock.now
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < units:
            self.refused += 1
            return {"id": None, "error": {"code": 429, "message": REFUSED}}
        self._left -= units

        def ask(payload: Any) -> Reply:
            found = [{**self._node.make_request(each["method"], each["params"]), "id": each["id"]} for each in calls]
            return Reply(found if isinstance(payload, list) else found[0])

        answers: Ask = ask
        for fault in reversed(self._faults):
            answers = _behind(fault, answers)
        return answers(payload).body


def _behind(fault: Fault, ask: Ask) -> Ask:
    return lambda payload: fault(payload, ask)


def without_timestamps() -> Fault:
    """Logs as older nodes tell them, without the time of their block: the client asks for headers."""

    def bare(log: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in log.items() if name != "blockTimestamp"}

    def change(call: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        is_logs = call["method"] == "eth_getLogs" and "result" in answer
        return {**answer, "result": [bare(log) for log in answer["result"]]} if is_logs else answer

    return each_answer(change)


class Figures(NamedTuple):
    """What one day took.

    Attributes:
        seconds: Until the day was read.
        least: Seconds that the day's ranges alone take at the pace of the tier.
        requests: Sent by the client.
        refused: Refused of these.
        largest: Most calls in one request.
        error: Largest error of the seconds left that were shown, as a share of those that were really left.
        is_right: Whether every swap was found.
    """

    seconds: float
    least: float
    requests: int
    refused: int
    largest: int
    error: float
    is_right: bool


@contextlib.contextmanager
def simulated(clock: SimulatedTime) -> Iterator[None]:
    """Let the client live by the clock."""
    with contextlib.ExitStack() as stack:
        for module in (day_estimate, pacing, rpc):
            stack.enter_context(mock.patch.object(module, "time", clock))
        yield


def read_a_day(
    per_second: float, burst_seconds: float, *, has_timestamps: bool = True, limits: Path | None = None
) -> Figures:
    """One day from one endpoint of the tier, one request at a time."""
    clock, true = SimulatedTime(), truth()
    faults = [range_limit(RANGE_BLOCKS, -32600, LIMIT), *([] if has_timestamps else [without_timestamps()])]
    least_requests = -(-(true.last - true.first + 1) // RANGE_BLOCKS)
    node = TierNode(true.provider, per_second, burst_seconds, clock, faults)
    shown: list[tuple[float, float, float]] = []

    def progress(done: int, total: int, **metrics: float) -> None:
        if "seconds_left" in metrics:
            shown.append((clock.now, done / total, metrics["seconds_left"]))

    with simulated(clock):
        client = RpcClient([node], requests_per_second=SETTING_PER_SECOND, sleep=clock.sleep)
        kept = EndpointLimits(limits) if limits else None
        begun = clock.now
        events = Collector(client, BASE_ETH_USDC, CollectorConfig(parallel=1), limits=kept).read_events(DAY, progress)
        ended = clock.now
    errors = [abs(left - (ended - at)) / (ended - at) for at, share, left in shown if FIRST_SHARE < share < LAST_SHARE]
    return Figures(
        ended - begun,
        least_requests * UNITS["eth_getLogs"] / per_second,
        node.requests,
        node.refused,
        node.largest,
        max(errors, default=1.0),
        events.swaps.drop("block_timestamp").equals(true.swaps.drop("block_timestamp")),
    )


def main() -> None:
    """Read the days and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    names = "tier|seconds|at the pace|ratio|requests|refused|most calls|seconds left, largest error|all swaps"
    table = Table(*names.split("|"), title="One day at 10 blocks a request")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        for name, per_second, burst, has_timestamps, limits in (
            ("330 units a second", 330, 1, True, kept / "330"),
            ("330, limits kept of the day before", 330, 1, True, kept / "330"),
            ("500 units a second", 500, 1, True, None),
            ("500, ten seconds at once", 500, 10, True, None),
            ("500, logs without timestamps", 500, 1, False, None),
        ):
            found = read_a_day(per_second, burst, has_timestamps=has_timestamps, limits=limits)
            cells = [f"{found.seconds:.0f}", f"{found.least:.0f}", f"{found.seconds / found.least:.2f}"]
            cells += [f"{found.requests:,}", f"{found.refused:,}", f"{found.largest}", f"{found.error:.0%}"]
            table.add_row(name, *cells, "yes" if found.is_right else "NO")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
