"""What providers answer when they refuse, and what is made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.chain.rpc_errors import RpcErrorKind, classify, hinted_blocks

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
        (-32600, "batch size too large", None, RpcErrorKind.BATCH),
        (None, "Batch requests are not allowed", 400, RpcErrorKind.BATCH),
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


@pytest.mark.parametrize(
    ("message", "blocks"),
    [
        ("Log response size exceeded. ... this block range should work: [0x64, 0xc7]", 100),
        ("query returned more than 10000 results. Try with this block range [0x64, 0x65].", 2),
        ("query exceeds max results 20000, retry with the range 100-150", 51),
        ("query exceeds max results 20000, retry with the range 100-20099", None),  # what was asked
        ("this block range should work: [0x0, 0xc7]", None),  # outside
        ("this block range should work: [0x70, 0x65]", None),  # upside down
        ("range 20000 exceeds limit of 10000", 10_000),
        ("eth_getLogs is limited to a 10,000 range", 10_000),
        ("please limit the query to at most 1000 blocks", 1_000),
        ("ranges over 10000 blocks are not supported on freetier", 10_000),
        ("You can make eth_getLogs requests with up to a 10 block range.", 10),
        ("You can make eth_getLogs requests with up to a 2K block range and no limit on the response size", 2_000),
        ("up to 5 percent", 5),
        ("up to 5percent", None),
        ("query exceeds max block range 100000", None),  # larger than what was asked
        ("query timeout exceeded", None),
        ("Block range limit exceeded.", None),
    ],
)
def test_a_hint_counts_if_it_is_smaller_and_inside_what_was_asked(message: str, blocks: int | None) -> None:
    assert hinted_blocks(message, 100, 20_099) == blocks


@given(st.text(), st.integers(0, 10**9), st.integers(1, 10**6))
def test_no_text_makes_a_hint_that_is_not_smaller(message: str, first: int, blocks: int) -> None:
    for text in (message, f"retry with the range {first}-{first + blocks}", f"[{hex(first)}, {message}]"):
        hint = hinted_blocks(text, first, first + blocks - 1)
        assert hint is None or 1 <= hint < blocks
