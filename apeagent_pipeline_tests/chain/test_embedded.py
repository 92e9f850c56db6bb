"""The embedded chain behaves like a node."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from web3 import Web3

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.embedded import FINALIZED_DEPTH, MAX_RANGE, EmbeddedChainProvider
from apeagent_pipeline.chain.events import SWAP_TOPIC

NOW = datetime(2025, 1, 26, 12, tzinfo=UTC)


def test_web3_itself_can_use_it(provider: EmbeddedChainProvider) -> None:
    w3 = Web3(provider)
    assert w3.is_connected()
    assert w3.eth.chain_id == 8453
    head = w3.eth.get_block("latest")
    assert head["number"] == w3.eth.block_number
    assert head["timestamp"] == 2 * head["number"] + 1_686_789_347
    assert NOW - timedelta(seconds=2) < datetime.fromtimestamp(head["timestamp"], UTC) <= NOW
    assert w3.eth.get_block("finalized")["number"] == head["number"] - FINALIZED_DEPTH
    assert w3.eth.get_block(head["number"])["parentHash"] == w3.eth.get_block(head["number"] - 1)["hash"]
    assert len(w3.eth.get_code(Web3.to_checksum_address(BASE_ETH_USDC.pool_manager))) > 0
    assert len(w3.eth.get_code(Web3.to_checksum_address("0x" + "1" * 40))) == 0
    logs = w3.eth.get_logs(
        {
            "address": Web3.to_checksum_address(BASE_ETH_USDC.pool_manager),
            "topics": [SWAP_TOPIC, BASE_ETH_USDC.pool_id],
            "fromBlock": head["number"] - 5_000,
            "toBlock": head["number"],
        }
    )
    assert len(logs) > 50


def test_a_day_is_the_same_whatever_was_read_before_and_in_whatever_pieces(day_logs: list[dict[str, Any]]) -> None:
    fresh = EmbeddedChainProvider(42, now=NOW.timestamp)
    first, last = int(day_logs[0]["blockNumber"], 16), int(day_logs[-1]["blockNumber"], 16)

    def logs(start: int, end: int) -> list[Any]:
        query = {"fromBlock": hex(start), "toBlock": hex(end), "topics": [SWAP_TOPIC]}
        return fresh.make_request("eth_getLogs", [query])["result"]

    logs(last + 100_000, last + 100_001)
    pieces = []
    for start in range(first, last + 1, 7_001):
        pieces += logs(start, min(start + 7_000, last))
    assert pieces == day_logs


def test_keys_ascend_and_are_unique(day_logs: list[dict[str, Any]]) -> None:
    keys = [(int(log["blockNumber"], 16), int(log["logIndex"], 16)) for log in day_logs]
    assert keys == sorted(set(keys))
    assert len({log["transactionHash"] for log in day_logs}) == len(day_logs)


def test_an_answer_cannot_be_spoiled_by_whoever_changed_the_last_one(provider: EmbeddedChainProvider) -> None:
    block = provider.make_request("eth_blockNumber", [])["result"]
    query = {"fromBlock": hex(int(block, 16) - 2_000), "toBlock": block}
    answer = provider.make_request("eth_getLogs", [query])["result"]
    kept = [dict(log) for log in answer]
    answer[0]["data"] = "0x"
    answer[0]["topics"].clear()
    again = provider.make_request("eth_getLogs", [query])["result"]
    assert again[0]["data"] == kept[0]["data"]
    assert len(again[0]["topics"]) == 3


@pytest.mark.parametrize(
    "query",
    [
        {"address": "0x" + "1" * 40},
        {"topics": ["0x" + "2" * 64]},
        {"topics": [None, "0x" + "3" * 64]},
        {"address": ["0x" + "1" * 40]},
    ],
)
def test_logs_of_somebody_else_are_not_there(provider: EmbeddedChainProvider, query: dict[str, Any]) -> None:
    query = {**query, "fromBlock": "0x1850000", "toBlock": "0x1851000"}
    assert provider.make_request("eth_getLogs", [query])["result"] == []


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("eth_sendTransaction", [{}], -32601),
        ("eth_getLogs", [{"fromBlock": "0x0", "toBlock": hex(MAX_RANGE)}], -32602),
        ("eth_getLogs", [{"fromBlock": "0x5", "toBlock": "0x4"}], -32000),
        ("eth_getLogs", [{"fromBlock": "0x5", "toBlock": "0xffffffff"}], -32000),
        ("eth_getLogs", [{"blockHash": "0x" + "0" * 64}], -32602),
        ("eth_getLogs", [], -32602),
        ("eth_getBlockByNumber", ["newest", False], -32602),
        ("eth_getBlockByNumber", [17, False], -32602),
    ],
)
def test_what_it_cannot_answer_it_refuses_as_a_node_does(
    provider: EmbeddedChainProvider, method: str, params: list[Any], code: int
) -> None:
    answer = provider.make_request(method, params)
    assert "result" not in answer
    assert answer["error"]["code"] == code


def test_a_block_of_the_future_is_null_and_days_before_the_pool_are_empty(provider: EmbeddedChainProvider) -> None:
    assert provider.make_request("eth_getBlockByNumber", ["0xffffffff", False])["result"] is None
    query = {"fromBlock": "0x10", "toBlock": "0x1000"}
    assert provider.make_request("eth_getLogs", [query])["result"] == []
