"""Limits of an endpoint: found once, kept between processes, and a pace that the endpoint bears."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain import pacing
from apeagent_pipeline.chain.collector import Collector
from apeagent_pipeline.chain.endpoint import Endpoint
from apeagent_pipeline.chain.endpoint_limits import EndpointLimits
from apeagent_pipeline.chain.pacing import RateLimiter, TimeLeft
from apeagent_pipeline.chain.range_size import RangeSize
from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient
from apeagent_pipeline.chain.source import open_swap_source
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.benchmarks.free_tier import LIMIT, SimulatedTime
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.campaign import DAY, Truth, truth
from apeagent_pipeline_tests.chain.faulty_proxy import FaultyProxy, range_limit, refuses_batches

UNNAMED = "query returned more than 100 results"


@pytest.fixture(scope="module")
def true() -> Truth:
    return truth()


def read_a_day(node: FaultyProxy, folder: Path) -> Collector:
    """As a new process reads it."""
    client = RpcClient([MaskedHTTPProvider(node.secret_url, "RPC endpoint 1")], sleep=lambda seconds: None)
    collector = Collector(client, BASE_ETH_USDC, limits=EndpointLimits(folder))
    collector.read_events(DAY)
    return collector


@pytest.mark.parametrize("message", [LIMIT, UNNAMED])
def test_a_limit_once_learned_is_not_met_again_by_another_process(message: str, true: Truth, tmp_path: Path) -> None:
    faults = [lies.no_state(), range_limit(1_000, -32600, message), refuses_batches(-32600, "batch too long", 200, 4)]
    with lies.nodes(true.provider, faults) as (node,):
        assert read_a_day(node, tmp_path).splits > 0
        assert node.largest_batch > 4
        node.largest_batch = 0
        assert read_a_day(node, tmp_path).splits <= (message == UNNAMED), "a limit that has no name is tried seldom"
        assert node.largest_batch <= 4
        (kept,) = tmp_path.iterdir()
        assert not [secret for secret in node.secrets.values() if secret in kept.name + kept.read_text()]


def test_an_endpoint_without_limits_is_known_to_have_none(true: Truth, tmp_path: Path) -> None:
    with lies.nodes(true.provider, []) as (node,):
        read_a_day(node, tmp_path)
    (kept,) = tmp_path.iterdir()
    found = json.loads(kept.read_text())
    assert [found[name] for name in ("range_blocks", "batch_size", "calls_per_second")] == [None, None, None]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found | {"learned": (datetime.now(UTC) - timedelta(days=8)).isoformat()},
        lambda found: found | {"learned": (datetime.now(UTC) + timedelta(days=8)).isoformat()},
        lambda found: found | {"learned": "2026-01-01T00:00:00"},
        lambda found: found | {"range_blocks": 0},
        lambda found: found | {"calls_per_second": -1},
        lambda found: [],
    ],
)
def test_limits_that_are_old_or_cannot_be_read_are_found_anew(
    spoil: Callable[[dict[str, object]], object], true: Truth, tmp_path: Path
) -> None:
    def applied() -> int:
        size = RangeSize(5_000)
        EndpointLimits(tmp_path).apply({Endpoint(true.provider, RateLimiter(0.0)): size})
        return size.blocks

    size = RangeSize(5_000)
    size.refused(5_000, 1_000, is_limit=True)
    size.answered(1_000, 1)
    EndpointLimits(tmp_path).keep({Endpoint(true.provider, RateLimiter(0.0)): size})
    assert applied() == 1_000
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps(spoil(json.loads(kept.read_text()))))
    assert applied() == 5_000


def test_a_range_that_was_set_smaller_than_the_known_limit_stays_smaller() -> None:
    size = RangeSize(50)
    size.start_at(1_000, is_named=True)
    assert (size.blocks, size.limit) == (50, None)


def test_the_first_line_of_sync_asks_a_node_once_and_doctor_always(true: Truth, tmp_path: Path) -> None:
    with lies.nodes(true.provider, [lies.no_state(), range_limit(100, -32600, LIMIT)]) as (node,):
        settings = Settings(home=tmp_path, rpc_urls=(node.secret_url,), rpc_requests_per_second=0.0)
        with mock.patch("apeagent_pipeline.chain.day_estimate._MEASURED_SECONDS", 0.1):
            first = open_swap_source(settings).plan(3)  # type: ignore[attr-defined]
            asked = node.requests
            assert "3 days from RPC endpoint 1 of 1, 100 blocks a request" in first
            again = open_swap_source(settings).plan(3)  # type: ignore[attr-defined]
            assert node.requests == asked
            assert again.split(":")[0] == first.split(":")[0]
            assert "100 blocks a request" in open_swap_source(settings).estimate()  # type: ignore[attr-defined]
            assert node.requests > asked


def test_a_plan_without_an_answer_says_why(tmp_path: Path) -> None:
    node = FaultyProxy("http://127.0.0.1:1")
    node.close()
    with mock.patch("apeagent_pipeline.chain.rpc._backoff", lambda rounds: 0.0):
        told = open_swap_source(Settings(home=tmp_path, rpc_urls=(node.secret_url,))).plan(2)  # type: ignore[attr-defined]
    assert "unknown" in told
    assert "gave no answer" in told


@pytest.mark.parametrize("per_second", [2.0, 5.5, 8.3, 20.0])
@pytest.mark.parametrize("burst_seconds", [1.0, 10.0])
def test_the_pace_comes_near_to_what_a_node_allows_without_retry_after(per_second: float, burst_seconds: float) -> None:
    clock, calls = SimulatedTime(), 2_000
    left, at, refused = per_second * burst_seconds, clock.now, 0
    with mock.patch.object(pacing, "time", clock):
        limiter = RateLimiter(25.0, clock.sleep)
        begun, answered = clock.now, 0
        while answered < calls:
            limiter.wait(1)
            clock.sleep(0.02)
            left, at = min(per_second * burst_seconds, left + (clock.now - at) * per_second), clock.now
            if left < 1:
                refused += 1
                limiter.slow_down()
                clock.sleep(0.5)
            else:
                left, answered = left - 1, answered + 1
                limiter.answered()
        seconds = clock.now - begun
    assert seconds < 1.1 * calls / per_second
    assert refused < 0.06 * calls
    assert limiter.calls_per_second is not None
    assert 0.7 * per_second < limiter.calls_per_second < 1.3 * per_second


def test_no_request_holds_more_calls_than_a_second_allows() -> None:
    limiter = RateLimiter(25.0)
    assert limiter.calls_at_once == 25
    limiter.start_at(5.5)
    assert limiter.calls_at_once == 5
    limiter.start_at(0.3)
    assert limiter.calls_at_once == 2, "logs and the head of the chain are asked for together"
    assert RateLimiter(0.0).calls_at_once is None


def test_the_time_left_follows_a_pace_that_changes() -> None:
    clock = SimulatedTime()
    with mock.patch.object(pacing, "time", clock):
        time_left = TimeLeft(10_000)
        assert time_left.after(0) is None
        done = 0
        for per_second in (100, 10):
            for _ in range(70):
                clock.sleep(1.0)
                done += per_second
                seconds = time_left.after(done)
            assert seconds == pytest.approx((10_000 - done) / per_second, rel=0.01)
