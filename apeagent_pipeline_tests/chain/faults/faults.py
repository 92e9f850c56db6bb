"""Faults of nodes, by what a reader of swaps meets."""

from collections.abc import Callable
from typing import Any

from apeagent_pipeline_tests.chain.faults.true_day import Faults
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Fault,
    Log,
    asked_for,
    changed_logs,
    empty_between,
    hangs_up,
    html,
    http_error,
    lags,
    refuses_batches,
    result_is,
    result_limit,
    rpc_error,
    truncated,
)

OTHER = "0x" + "1" * 40


def hint(style: str, low: int, high: int) -> str:
    """How Alchemy, Infura and reth name a range."""
    return {
        "alchemy": "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range. Based "
        f"on your parameters, this block range should work: [{low:#x}, {high:#x}]",
        "infura": f"query returned more than 10000 results. Try with this block range [{low:#x}, {high:#x}].",
        "reth": f"query exceeds max results 20000, retry with the range {low}-{high}",
    }[style]


def moved_log(logs: list[Log], **fields: Any) -> list[Log]:
    """The first log with other fields, then the rest."""
    return [{**logs[0], **fields}, *logs[1:]]


def with_conflict(logs: list[Log]) -> list[Log]:
    """The first log a second time, from another branch of the chain."""
    return [*logs, {**logs[0], "blockHash": "0x" + "9" * 64, "transactionHash": "0x" + "8" * 64}]


def outside(logs: list[Log]) -> list[Log]:
    """One log from long ago."""
    return moved_log(logs, blockNumber="0x1")


def foreign_pool(logs: list[Log]) -> list[Log]:
    """One log of another pool of the same PoolManager."""
    return moved_log(logs, topics=[logs[0]["topics"][0], "0x" + "7" * 64, logs[0]["topics"][2]])


def without_timestamps(logs: list[Log]) -> list[Log]:
    """As older nodes answer."""
    return [{name: value for name, value in log.items() if name != "blockTimestamp"} for log in logs]


LIES: dict[str, Callable[[list[Log]], list[Log]]] = {
    "a log of another contract": lambda logs: moved_log(logs, address=OTHER),
    "a log of another pool": foreign_pool,
    "a removed log": lambda logs: moved_log(logs, removed=True),
    "a log outside the range asked": outside,
    "a log twice with other hashes": with_conflict,
}

NO_BATCHES: dict[str, Fault] = {
    "an error object": refuses_batches(-32600, "batch requests are not supported"),
    "HTTP 400": refuses_batches(-32600, "Batch requests are disabled", 400),
    "HTTP 413": refuses_batches(-32014, "too many RPC calls in batch request", 413),
}
SHORT_BATCHES: dict[str, Fault] = {
    "drpc": refuses_batches(31, "Batch of more than 10 requests are not allowed on free plan", 500, longer_than=10),
    "geth": refuses_batches(-32600, "batch too large", longer_than=10),
    "mainnet.base.org": refuses_batches(-32014, "maximum 10 calls in 1 batch", longer_than=10),
}

no_receipts_of_blocks = rpc_error(-32601, "the method eth_getBlockReceipts does not exist", "eth_getBlockReceipts")

REFUSED: dict[str, tuple[Faults, str]] = {
    "429 for ever": (lambda chain: [http_error(429)], "RPC endpoint 1.* HTTP 429"),
    "502 for ever": (lambda chain: [asked_for("eth_getLogs", http_error(502))], "RPC endpoint 1.* HTTP 502"),
    "401": (lambda chain: [http_error(401, b"invalid key")], "RPC endpoint 1.* HTTP 401"),
    "HTML for ever": (lambda chain: [html()], "RPC endpoint 1.* not JSON"),
    "truncated for ever": (lambda chain: [asked_for("eth_getLogs", truncated())], "RPC endpoint 1"),
    "null logs for ever": (lambda chain: [result_is(None, "eth_getLogs")], "RPC endpoint 1.* eth_getLogs"),
    "closed connections for ever": (lambda chain: [hangs_up()], "RPC endpoint 1.* no answer"),
    "wrong chain": (lambda chain: [result_is("0x1", "eth_chainId")], "chain 1, expected 8453"),
    "no PoolManager": (lambda chain: [result_is("0x", "eth_getCode")], "PoolManager"),
    "a single block over the limit": (
        lambda chain: [result_limit(0, -32005, "query returned more than 0 results")],
        r"single block \d+",
    ),
    "behind for ever": (lambda chain: [lags(chain.noon)], "RPC endpoint 1"),
    "logs behind for ever, empty list": (
        lambda chain: [asked_for("eth_getLogs", lags(chain.noon))],
        "RPC endpoint 1.* lags: its head is",
    ),
    "logs behind for ever, error": (
        lambda chain: [asked_for("eth_getLogs", lags(chain.noon, past_head="error"))],
        "RPC endpoint 1.* beyond current head",
    ),
    **{
        f"for ever {name}": (lambda chain, lie=lie: [changed_logs(lie)], "RPC endpoint 1") for name, lie in LIES.items()
    },
    "logs without a field": (
        lambda chain: [changed_logs(lambda logs: [{"address": logs[0]["address"]}])],
        "RPC endpoint 1",
    ),
    "logs that are no list": (lambda chain: [result_is({}, "eth_getLogs")], "RPC endpoint 1"),
    "a swap that the node tells in no way": (
        lambda chain: [empty_between(chain.noon, chain.noon), no_receipts_of_blocks],
        "swaps are missing between blocks .* RPC endpoint 1",
    ),
}
