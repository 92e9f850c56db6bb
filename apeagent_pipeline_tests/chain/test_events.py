"""Logs become rows, and wrong logs and rows become errors."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from eth_abi import decode, encode
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, sqrt_price_at_tick
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.events import (
    RAW_SWAPS_SCHEMA,
    SWAP_TOPIC,
    LogError,
    RawSwapsError,
    check_raw_swaps,
    decode_swap_logs,
    empty_raw_swaps,
)

Log = dict[str, Any]
TYPES = ["int128", "int128", "uint160", "uint128", "int24", "uint24"]
FIELDS = ("amount0", "amount1", "sqrt_price_x96", "liquidity", "tick", "fee")


def word(value: int) -> str:
    return f"{value % (1 << 256):064x}"


def test_the_topic_is_the_hash_of_the_events_signature() -> None:
    signature = b"Swap(bytes32,address,int128,int128,uint160,uint128,int24,uint24)"
    assert "0x" + keccak(signature).hex() == SWAP_TOPIC


def test_every_column_equals_what_the_abi_library_reads(day_logs: list[Log]) -> None:
    table = decode_swap_logs(day_logs, BASE_ETH_USDC)
    assert table.schema == RAW_SWAPS_SCHEMA
    for row, log in list(zip(table.iter_rows(named=True), day_logs, strict=True))[::50]:
        expected = decode(TYPES, bytes.fromhex(log["data"][2:]))
        assert [int(row[name]) for name in FIELDS] == list(expected)
        assert row["sender"] == "0x" + log["topics"][2][-40:]
        assert row["block_timestamp"].timestamp() == int(log["blockTimestamp"], 16)
        assert (row["block_number"], row["log_index"]) == (int(log["blockNumber"], 16), int(log["logIndex"], 16))
        assert (row["block_hash"], row["transaction_hash"]) == (log["blockHash"], log["transactionHash"])


def test_the_largest_values_lose_no_digit(day_logs: list[Log]) -> None:
    values = [-(1 << 127), (1 << 127) - 1, (1 << 160) - 1, (1 << 128) - 1, -887_272, (1 << 24) - 1]
    log = {**day_logs[0], "data": "0x" + "".join(map(word, values))}
    row = decode_swap_logs([log], BASE_ETH_USDC).row(0, named=True)
    assert [int(row[name]) for name in FIELDS] == values


def _integers(kind: str) -> st.SearchStrategy[int]:
    bits = int(kind.lstrip("uint"))
    low, high = (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return st.integers(low, high) | st.sampled_from([low, low + 1, 0, high - 1, high])


@given(st.lists(st.tuples(*map(_integers, TYPES)), min_size=1, max_size=20))
def test_any_values_of_the_event_are_read_as_the_abi_library_wrote_them(rows: list[tuple[int, ...]]) -> None:
    logs = [
        {
            "address": BASE_ETH_USDC.pool_manager,
            "topics": [SWAP_TOPIC, BASE_ETH_USDC.pool_id, "0x" + "0" * 24 + "12" * 20],
            "data": "0x" + encode(TYPES, row).hex(),
            "blockNumber": hex(position),
            "blockHash": "0x" + "34" * 32,
            "transactionHash": "0x" + "56" * 32,
            "transactionIndex": "0x0",
            "logIndex": hex(position),
        }
        for position, row in enumerate(rows)
    ]
    table = decode_swap_logs(logs, BASE_ETH_USDC)
    assert table.schema == RAW_SWAPS_SCHEMA
    assert [tuple(int(value) for value in row) for row in table.select(FIELDS).iter_rows()] == rows
    assert table["block_number"].to_list() == list(range(len(rows)))


def test_a_log_without_a_time_leaves_it_open_and_loses_nothing_else(day_logs: list[Log]) -> None:
    whole = decode_swap_logs(day_logs[:4], BASE_ETH_USDC)
    absent = {name: value for name, value in day_logs[0].items() if name != "blockTimestamp"}
    null, zero = ({**log, "blockTimestamp": value} for log, value in zip(day_logs[1:3], (None, "0x0"), strict=True))
    found = decode_swap_logs([absent, null, zero, day_logs[3]], BASE_ETH_USDC)
    assert found.drop("block_timestamp").equals(whole.drop("block_timestamp"))
    assert found["block_timestamp"].to_list() == [None, None, None, whole["block_timestamp"][3]]


def test_checksummed_addresses_and_upper_case_hex_are_understood(day_logs: list[Log]) -> None:
    log = {**day_logs[0], "address": BASE_ETH_USDC.pool_manager, "data": "0x" + day_logs[0]["data"][2:].upper()}
    assert decode_swap_logs([log], BASE_ETH_USDC).equals(decode_swap_logs(day_logs[:1], BASE_ETH_USDC))


def test_no_logs_are_a_typed_empty_table() -> None:
    assert decode_swap_logs([], BASE_ETH_USDC).equals(empty_raw_swaps())
    assert empty_raw_swaps().schema == RAW_SWAPS_SCHEMA
    check_raw_swaps(empty_raw_swaps(), FIRST_DAY)


def _topics(log: Log, position: int, value: str) -> list[str]:
    return [value if i == position else topic for i, topic in enumerate(log["topics"])]


FOREIGN: dict[str, Callable[[Log], Log]] = {
    "another contract": lambda log: {"address": "0x" + "1" * 40},
    "not a Swap event": lambda log: {"topics": _topics(log, 0, "0x" + "2" * 64)},
    "another pool": lambda log: {"topics": _topics(log, 1, "0x" + "3" * 64)},
    "removed by a reorganisation": lambda log: {"removed": True},
    "sender": lambda log: {"topics": _topics(log, 2, "0x" + "4" * 64)},
    "three topics": lambda log: {"topics": log["topics"][:2]},
    "six words": lambda log: {"data": log["data"][:-2]},
    "malformed number": lambda log: {"blockNumber": None},
    "malformed number or hash": lambda log: {"logIndex": "12"},
    "number or hash": lambda log: {"transactionHash": "0x12"},
    "not hex strings": lambda log: {"blockNumber": 12},
    "word 0 .* int128": lambda log: _with_word(log, 0, 1 << 127),
    "word 1 .* int128": lambda log: _with_word(log, 1, -(1 << 127) - 1),
    "word 2 .* uint160": lambda log: _with_word(log, 2, 1 << 160),
    "word 3 .* uint128": lambda log: _with_word(log, 3, -1),
    "word 4 .* int24": lambda log: _with_word(log, 4, 1 << 23),
    "word 5 .* uint24": lambda log: _with_word(log, 5, -1),
}


def _with_word(log: Log, position: int, value: int) -> Log:
    start = 2 + 64 * position
    return {"data": log["data"][:start] + word(value) + log["data"][start + 64 :]}


@pytest.mark.parametrize("expected", FOREIGN)
def test_a_log_that_does_not_belong_is_an_error_that_says_why(day_logs: list[Log], expected: str) -> None:
    broken = {**day_logs[1], **FOREIGN[expected](day_logs[1])}
    with pytest.raises(LogError, match=expected):
        decode_swap_logs([day_logs[0], broken], BASE_ETH_USDC)


def test_a_log_without_a_field_names_the_field(day_logs: list[Log]) -> None:
    with pytest.raises(LogError, match="blockHash"):
        decode_swap_logs([{k: v for k, v in day_logs[0].items() if k != "blockHash"}], BASE_ETH_USDC)


@pytest.fixture(scope="module")
def day(day_logs: list[Log]) -> pl.DataFrame:
    table = decode_swap_logs(day_logs, BASE_ETH_USDC)
    check_raw_swaps(table, FIRST_DAY)
    return table


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("other columns", lambda df: df.drop("fee")),
        ("other columns", lambda df: df.cast({"tick": pl.Int64()})),
        ("other columns", lambda df: df.select(sorted(df.columns))),
        ("missing", lambda df: df.with_columns(pl.lit(None, pl.String()).alias("amount0"))),
        ("twice", lambda df: pl.concat([df, df.tail(1)])),
        ("not sorted", lambda df: df.reverse()),
        ("decimal integer", lambda df: df.with_columns(pl.lit("1e18").alias("amount1"))),
        ("decimal integer", lambda df: df.with_columns(pl.lit("-5").alias("sqrt_price_x96"))),
        ("contradicts", lambda df: df.with_columns(pl.col("tick") + 1)),
        ("contradicts", lambda df: df.with_columns(pl.lit(str(MAX_SQRT_PRICE)).alias("sqrt_price_x96"))),
        (
            "two timestamps",
            lambda df: df.with_columns(block_number=pl.lit(1, pl.Int64()), log_index=pl.int_range(pl.len())),
        ),
        (
            "older than",
            lambda df: df.with_columns(block_timestamp=pl.col("block_timestamp").reverse()).filter(
                pl.col("block_number").is_unique()
            ),
        ),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_by_name(
    day: pl.DataFrame, expected: str, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    with pytest.raises(RawSwapsError, match=expected):
        check_raw_swaps(change(day), FIRST_DAY)


def test_a_day_with_rows_of_another_day_is_refused(day: pl.DataFrame) -> None:
    for other in (FIRST_DAY - timedelta(days=1), FIRST_DAY + timedelta(days=1), date(2030, 1, 1)):
        with pytest.raises(RawSwapsError, match="outside the UTC day"):
            check_raw_swaps(day, other)


def test_the_tick_below_an_initialised_one_is_accepted_as_the_contract_reports_it(day: pl.DataFrame) -> None:
    price = str(sqrt_price_at_tick(-195_000))
    changed = day.head(1).with_columns(pl.lit(price).alias("sqrt_price_x96"))
    for tick, right in [(-195_000, True), (-195_001, True), (-195_002, False), (-194_999, False)]:
        table = changed.with_columns(pl.lit(tick, pl.Int32()).alias("tick"))
        if right:
            check_raw_swaps(table, FIRST_DAY)
        else:
            with pytest.raises(RawSwapsError, match="contradicts"):
                check_raw_swaps(table, FIRST_DAY)
