"""What providers answer when they refuse, and what is made of it."""

import pytest

from apeagent_pipeline.chain.rpc_errors import RpcErrorKind, classify

RANGE = [
    (-32602, "Log response size exceeded. Based on your parameters, this block range should work: [0x1, 0x2]"),
    (-32005, "query returned more than 10000 results. Try with this block range [0x1, 0x2]"),
    (-32005, "query timeout exceeded"),
    (-32602, "range 20000 exceeds limit of 10000"),
    (-32614, "eth_getLogs is limited to a 10,000 range"),
    (-32602, "Block range limit exceeded."),
    (None, "block range too large"),
    (-32020, "backend response too large"),
    (-32005, "please limit the query to at most 1000 blocks"),
    (-32602, "query exceeds max block range 100000"),
    (-32602, "query exceeds max results 20000, retry with the range 1-2"),
    (-32701, "exceed maximum block range: 50000"),
    (35, "ranges over 10000 blocks are not supported on freetier"),
    (-32000, "block range is bigger than maxBlockRange"),
    (-32600, "block range is too wide"),
]


@pytest.mark.parametrize(("code", "message"), RANGE)
def test_a_range_that_is_too_large_is_asked_for_in_smaller_pieces(code: int | None, message: str) -> None:
    assert classify(code, message) is RpcErrorKind.RANGE


@pytest.mark.parametrize(
    ("code", "message", "status", "kind"),
    [
        (None, "", 413, RpcErrorKind.RANGE),
        (None, "", 429, RpcErrorKind.RATE),
        (-32005, "rate limit exceeded", None, RpcErrorKind.RATE),
        (-32005, "Too Many Requests", None, RpcErrorKind.RATE),
        (-32097, "Your app has exceeded its compute units per second capacity", None, RpcErrorKind.RATE),
        (None, "no backend is currently healthy to serve traffic", None, RpcErrorKind.TRANSIENT),
        (-32000, "block range extends beyond current head block", None, RpcErrorKind.TRANSIENT),
        (-32000, "header not found", None, RpcErrorKind.TRANSIENT),
        (-32603, "Internal error", None, RpcErrorKind.TRANSIENT),
        (None, "<html>Bad gateway</html>", 502, RpcErrorKind.TRANSIENT),
        (None, "", 503, RpcErrorKind.TRANSIENT),
        (None, "Must be authenticated!", 401, RpcErrorKind.FATAL),
        (-32601, "the method eth_foo does not exist", None, RpcErrorKind.FATAL),
        (-32602, "invalid argument 0: hex string without 0x prefix", None, RpcErrorKind.FATAL),
    ],
)
def test_other_refusals_are_waited_out_or_given_up(
    code: int | None, message: str, status: int | None, kind: RpcErrorKind
) -> None:
    assert classify(code, message, status) is kind
