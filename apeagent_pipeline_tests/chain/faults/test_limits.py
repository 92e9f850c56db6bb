"""A node that limits the range or the number of its results: the same file for more requests."""

from pathlib import Path
from typing import Any

import pytest

from apeagent_pipeline_tests.chain.faults.faults import hint
from apeagent_pipeline_tests.chain.faults.true_day import Chain, Faults, assert_made, materialize, survive
from apeagent_pipeline_tests.chain.faulty_proxy import Ask, Fault, Reply, range_limit, rate_limit, result_limit, running


def _status_of_errors(status: int) -> Fault:
    """Replies with an error in them carry this HTTP status."""

    def fault(payload: Any, ask: Ask) -> Reply:
        reply = ask(payload)
        answers = reply.body if isinstance(reply.body, list) else [reply.body]
        return Reply(reply.body, status) if any("error" in answer for answer in answers) else reply

    return fault


SURVIVED: dict[str, Faults] = {
    "range limit 100, Chainstack": lambda chain: [range_limit(100, -32602, "Block range limit exceeded.")],
    "range limit 100, usable hint of Alchemy": lambda chain: [
        range_limit(100, -32602, lambda low, high, limit: hint("alchemy", low, low + limit - 1))
    ],
    "range limit 100, hint equal to the range asked": lambda chain: [
        range_limit(100, -32602, lambda low, high, limit: hint("reth", low, high))
    ],
    "range limit 1,000, hint before the range asked": lambda chain: [
        range_limit(1_000, -32005, lambda low, high, limit: hint("infura", low - 900, low - 401))
    ],
    "range limit 1,000, hint beyond the range asked": lambda chain: [
        range_limit(1_000, -32602, lambda low, high, limit: hint("alchemy", low, high + 100))
    ],
    "range limit 1,000, hint backwards": lambda chain: [
        range_limit(1_000, -32005, lambda low, high, limit: hint("infura", high, low))
    ],
    **{
        f"range limit 1,000, {name}": lambda chain, code=code, message=message: [range_limit(1_000, code, message)]
        for name, code, message in [
            ("Infura", -32602, lambda low, high, limit: f"range {high - low + 1} exceeds limit of {limit}"),
            ("mainnet.base.org", -32000, "block range too large"),
            ("reth", -32602, "query exceeds max block range 1000"),
            ("Coinbase", -32005, "please limit the query to at most 1000 blocks"),
            ("QuickNode", -32614, "eth_getLogs is limited to a 1,000 range"),
            ("publicnode", -32701, "exceed maximum block range: 1000"),
            ("drpc", 35, "ranges over 1000 blocks are not supported on freetier"),
            ("scroll-geth", -32000, "block range is bigger than maxBlockRange"),
            ("Ankr", -32600, "block range is too wide"),
        ]
    },
    "range limit 1,000, QuickNode with HTTP 413": lambda chain: [
        _status_of_errors(413),
        range_limit(1_000, -32614, "eth_getLogs is limited to a {limit} range"),
    ],
    "range limit 1,000, Alchemy with HTTP 400": lambda chain: [
        _status_of_errors(400),
        range_limit(1_000, -32600, lambda low, high, limit: hint("alchemy", low, low + limit - 1)),
    ],
}

RESULT_LIMITS: dict[str, Fault] = {
    **{
        f"hint of {style}": result_limit(
            200, -32005, lambda low, high, limit, style=style: hint(style, low, low + (high - low) // 4)
        )
        for style in ("infura", "alchemy", "reth")
    },
    "hint of reth equal to the range asked": result_limit(
        200, -32602, lambda low, high, limit: hint("reth", low, high)
    ),
    "backend response too large": result_limit(200, -32020, "backend response too large"),
    "timeout": result_limit(200, -32005, "query timeout exceeded"),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_a_limit_on_the_range_ends_in_the_very_same_file(name: str, chain: Chain, home: Path) -> None:
    proxy = survive(SURVIVED[name], chain, home)
    if name.startswith("range limit 1,000"):
        assert proxy.calls["eth_getLogs"] < 120, "43 ranges of 1,000 blocks, and the search for that size"


@pytest.mark.parametrize("name", RESULT_LIMITS)
def test_a_result_limit_of_200_only_costs_requests(name: str, chain: Chain, home: Path) -> None:
    proxy = survive(lambda chain: [RESULT_LIMITS[name]], chain, home, rpc_range_blocks=20_000)
    assert proxy.calls["eth_getLogs"] < 60


@pytest.mark.parametrize(("asked_per_second", "allowed_per_second"), [(25, 25), (0, 4)])
def test_a_limit_of_requests_a_second_is_kept_to_or_waited_for(
    chain: Chain, home: Path, real_waits: None, asked_per_second: int, allowed_per_second: int
) -> None:
    with running(chain.url, rate_limit(allowed_per_second)) as proxy:
        materialize(home, chain.day, proxy.url, rpc_requests_per_second=asked_per_second, rpc_range_blocks=1_200)
    assert proxy.requests > 30
    # The window of the proxy and that of the client do not begin together: a few refusals are no impoliteness. A client
    # without a pace of its own is refused on any machine: even a busy one makes more than four requests a second.
    assert proxy.injected <= 5 if asked_per_second else proxy.injected
    assert_made(home, chain)
