"""Answers that do not arrive, or not whole: a day ends in the very same file."""

import time
from pathlib import Path

import pytest

from apeagent_pipeline_tests.chain.faults.true_day import Chain, Faults, assert_made, materialize, survive
from apeagent_pipeline_tests.chain.faulty_proxy import (
    hangs_up,
    html,
    http_error,
    outage,
    result_is,
    rpc_error,
    running,
    sometimes,
    truncated,
)

SURVIVED: dict[str, Faults] = {
    "10 % of 429 with Retry-After": lambda chain: [sometimes(0.1, http_error(429, b"", {"Retry-After": "1"}))],
    "10 % of 429 with a date in Retry-After": lambda chain: [
        sometimes(0.1, http_error(429, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    ],
    "10 % of 429 without Retry-After": lambda chain: [sometimes(0.1, http_error(429, b"Too Many Requests"))],
    "10 % rate errors inside HTTP 200": lambda chain: [
        sometimes(0.1, rpc_error(-32005, "daily request count exceeded, request rate limited"))
    ],
    "10 % of 502": lambda chain: [sometimes(0.1, http_error(502, b"<html>502 Bad Gateway</html>"))],
    "10 % of 503, no backend": lambda chain: [
        sometimes(0.1, rpc_error(-32011, "no backend is currently healthy to serve traffic"))
    ],
    "10 % of closed connections": lambda chain: [sometimes(0.1, hangs_up())],
    "20 % of truncated bodies": lambda chain: [sometimes(0.2, truncated())],
    "20 % of connections cut within the body": lambda chain: [sometimes(0.2, truncated(honest_length=False))],
    "20 % of HTML bodies": lambda chain: [sometimes(0.2, html())],
    "20 % of null logs": lambda chain: [sometimes(0.2, result_is(None, "eth_getLogs"))],
    "20 % of null blocks": lambda chain: [sometimes(0.2, result_is(None, "eth_getBlockByNumber"))],
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_can_be_survived_ends_in_the_very_same_file(name: str, chain: Chain, home: Path) -> None:
    survive(SURVIVED[name], chain, home)


def test_8_seconds_of_refused_connections_are_waited_out(chain: Chain, home: Path, real_waits: None) -> None:
    with running(chain.url) as proxy:
        proxy.faults = [outage(proxy, after=10, seconds=8)]
        begun = time.monotonic()
        materialize(home, chain.day, proxy.url)
        assert 8 < time.monotonic() - begun < 25
    assert_made(home, chain)
