"""What the collector reads from real contracts on a real node, against the receipts of the transactions."""

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from eth_abi import decode
from pydantic import SecretStr
from web3 import Web3

from apeagent_pipeline.chain.collector import Collector, CollectorConfig
from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.chain.devnet import Devnet
from apeagent_pipeline.chain.devnet.devnet import ROUTERS
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA
from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient

EVENT = "Swap(bytes32,address,int128,int128,uint160,uint128,int24,uint24)"
DATA = ["int128", "int128", "uint160", "uint128", "int24", "uint24"]


def collect(devnet: Devnet) -> pl.DataFrame:
    """All days by a fresh collector."""
    client = RpcClient([MaskedHTTPProvider(SecretStr(devnet.url), "devnet")], requests_per_second=0)
    collector = Collector(client, devnet.pool, CollectorConfig(transactions=True))
    return pl.concat([collector.read_day(day) for day in devnet.days])


@pytest.fixture(scope="module")
def swaps(devnet: Devnet) -> pl.DataFrame:
    return collect(devnet)


@pytest.fixture(scope="module")
def receipts(devnet: Devnet) -> list[dict[str, Any]]:
    """The rows that the table must have, from every transaction of every block that has one, without `chain.events`."""
    midnights = [datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() for day in devnet.days]
    first = int(midnights[0] - 1_686_789_347 + 1) // 2
    last = first + 43_200 * len(devnet.days) - 1
    topic = Web3.keccak(text=EVENT).to_0x_hex()
    rows: list[dict[str, Any]] = []
    for receipt in every_receipt(devnet, first, last):
        for log in receipt["logs"]:
            if log["topics"][0] != topic:
                continue
            amount0, amount1, sqrt_price, liquidity, tick, fee = decode(DATA, bytes.fromhex(log["data"][2:]))
            number = int(receipt["blockNumber"], 16)
            rows.append(
                {
                    "chain_id": 8453,
                    "pool_id": log["topics"][1],
                    "block_number": number,
                    "block_hash": receipt["blockHash"],
                    "block_timestamp": datetime.fromtimestamp(1_686_789_347 + 2 * number, UTC),
                    "transaction_hash": receipt["transactionHash"],
                    "transaction_index": int(receipt["transactionIndex"], 16),
                    "log_index": int(log["logIndex"], 16),
                    "sender": "0x" + log["topics"][2][-40:],
                    "amount0": str(amount0),
                    "amount1": str(amount1),
                    "sqrt_price_x96": str(sqrt_price),
                    "liquidity": str(liquidity),
                    "tick": tick,
                    "fee": fee,
                    "tx_from": receipt["from"],
                    "tx_to": receipt["to"],
                }
            )
    return rows


def every_receipt(devnet: Devnet, first: int, last: int) -> list[dict[str, Any]]:
    """By block, over all blocks: no log filter takes part."""
    found: list[dict[str, Any]] = []
    provider: Any = devnet.web3.provider
    for start in range(first, last + 1, 4_000):
        numbers = range(start, min(start + 4_000, last + 1))
        answers = provider.make_batch_request([("eth_getBlockReceipts", [hex(number)]) for number in numbers])
        found += [receipt for answer in answers for receipt in answer["result"]]
    return found


def test_every_column_of_every_swap_is_that_of_the_receipt(swaps: pl.DataFrame, receipts: list[dict[str, Any]]) -> None:
    assert swaps.schema == RAW_SWAPS_SCHEMA
    assert swaps.height == 5_000
    assert swaps.to_dicts() == receipts


def test_reading_again_gives_the_same_table(devnet: Devnet, swaps: pl.DataFrame) -> None:
    assert collect(devnet).equals(swaps)


def test_the_traffic_holds_what_a_collector_can_get_wrong(swaps: pl.DataFrame) -> None:
    assert set(swaps["sender"]) == {router.lower() for router in ROUTERS}
    assert swaps["tx_from"].n_unique() == 5
    assert swaps["block_number"].n_unique() < 4_800
    assert swaps["log_index"].max() > 5
    assert swaps.select(pl.col("amount0").str.starts_with("-").mean()).item() == pytest.approx(0.5, abs=0.2)
    assert swaps["liquidity"].n_unique() > 50
    assert swaps["tick"].max() - swaps["tick"].min() > 200


def test_the_swaps_of_a_complete_chain_follow_from_one_another(swaps: pl.DataFrame) -> None:
    found = chain_rate(swaps)
    assert found.judged > 2_000
    assert found.rate is not None
    assert found.rate > 0.97
