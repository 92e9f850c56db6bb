"""The Swap event: what a node answers, the table it becomes, and what must hold for every row.

Source: ``IPoolManager.sol`` of Uniswap v4-core,
``Swap(bytes32 indexed id, address indexed sender, int128 amount0, int128 amount1, uint160 sqrtPriceX96, uint128
liquidity, int24 tick, uint24 fee)``. Amounts are from the swapper's side: negative is paid in, positive received.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, sqrt_price_at_tick, ticks_at_sqrt_prices
from apeagent_pipeline.chain.errors import ChainError

SWAP_TOPIC = "0x40e9cecb9f5f1f1c5b9c97dec2917b7ee92e57ba5563708daca94dd84ad7112f"
"""Keccak-256 of the event's signature."""

RAW_SWAPS_SCHEMA = pl.Schema(
    {
        "chain_id": pl.Int64(),
        "pool_id": pl.String(),
        "block_number": pl.Int64(),
        "block_hash": pl.String(),
        "block_timestamp": pl.Datetime("us", "UTC"),
        "transaction_hash": pl.String(),
        "transaction_index": pl.Int64(),
        "log_index": pl.Int64(),
        "sender": pl.String(),
        "amount0": pl.String(),
        "amount1": pl.String(),
        "sqrt_price_x96": pl.String(),
        "liquidity": pl.String(),
        "tick": pl.Int32(),
        "fee": pl.Int32(),
        "tx_from": pl.String(),
        "tx_to": pl.String(),
    }
)
"""One row a swap. 256-bit values are decimal strings: no digit is lost and every reader understands them."""

NULLABLE_COLUMNS = frozenset({"block_hash", "transaction_index", "tx_from", "tx_to"})
SWAP_KEY = ["block_number", "log_index"]

_WORDS = 6
_WORD_BYTES = 32
_DATA_CHARACTERS = 2 + 2 * _WORDS * _WORD_BYTES
_DECIMAL = {"amount0": r"^(0|-?[1-9]\d*)$", "amount1": r"^(0|-?[1-9]\d*)$"} | {
    "sqrt_price_x96": r"^[1-9]\d*$",
    "liquidity": r"^(0|[1-9]\d*)$",
}


class LogError(ChainError):
    """A node answered with a log that was not asked for or is not a Swap event."""


class RawSwapsError(ChainError):
    """A table of raw swaps breaks one of its own rules."""


def empty_raw_swaps() -> pl.DataFrame:
    """A day without swaps: no rows, every column with its type."""
    return RAW_SWAPS_SCHEMA.to_frame()


def decode_swap_logs(logs: Sequence[Mapping[str, Any]], pool: PoolSpec) -> pl.DataFrame:
    """Turn the answer of ``eth_getLogs`` into raw swaps, all logs at once.

    Args:
        logs: Log objects as JSON-RPC gives them, hex strings and all, in any order.
        pool: Whose logs were asked for.

    Returns:
        RAW_SWAPS_SCHEMA, in the order of the logs. ``block_timestamp`` is null where the node gives none with a log;
        ``tx_from`` and ``tx_to`` are null.

    Raises:
        LogError: if a log lacks a field, comes from another contract or pool, was removed by a reorganisation, or is
            not laid out as the event is.
    """
    if not logs:
        return empty_raw_swaps()
    try:
        columns = {
            name: [log[name] for log in logs]
            for name in ("address", "topics", "data", "blockNumber", "blockHash", "transactionHash")
        }
        columns |= {name: [log[name] for log in logs] for name in ("transactionIndex", "logIndex")}
    except (KeyError, TypeError) as error:
        raise LogError(f"the node answered with a log without the field {error}") from None
    columns["blockTimestamp"] = [log.get("blockTimestamp") for log in logs]
    columns["removed"] = [bool(log.get("removed")) for log in logs]
    _check_topics(columns["topics"])
    topics = columns.pop("topics")
    columns |= {f"topic{i}": [topic[i] for topic in topics] for i in range(3)}
    try:
        table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String()) | {"removed": pl.Boolean()})
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise LogError(f"the node answered with a log whose fields are not hex strings: {error}") from None
    table = table.with_columns(pl.exclude("removed").str.to_lowercase())
    _check_logs(table, pool)
    words = _words(table["data"])
    tick, fee = _small_integer(words, 4, signed=True), _small_integer(words, 5, signed=False)
    return table.select(
        pl.lit(pool.chain_id, pl.Int64()).alias("chain_id"),
        pl.col("topic1").alias("pool_id"),
        _hex_integer("blockNumber").alias("block_number"),
        pl.col("blockHash").alias("block_hash"),
        (_hex_integer("blockTimestamp") * 1_000_000).cast(pl.Datetime("us", "UTC")).alias("block_timestamp"),
        pl.col("transactionHash").alias("transaction_hash"),
        _hex_integer("transactionIndex").alias("transaction_index"),
        _hex_integer("logIndex").alias("log_index"),
        ("0x" + pl.col("topic2").str.tail(40)).alias("sender"),
        pl.Series("amount0", _decimal_strings(words, 0, signed=True)),
        pl.Series("amount1", _decimal_strings(words, 1, signed=True)),
        pl.Series("sqrt_price_x96", _decimal_strings(words, 2, signed=False)),
        pl.Series("liquidity", _decimal_strings(words, 3, signed=False)),
        pl.Series("tick", tick),
        pl.Series("fee", fee),
        pl.lit(None, pl.String()).alias("tx_from"),
        pl.lit(None, pl.String()).alias("tx_to"),
    )


def check_raw_swaps(df: pl.DataFrame, day: date) -> None:
    """Make sure that a table holds one UTC day of swaps, each once and in order.

    Raises:
        RawSwapsError: naming the rule that is broken and the first row that breaks it.
    """
    if df.schema != RAW_SWAPS_SCHEMA:
        differing = sorted(set(df.schema.items()) ^ set(RAW_SWAPS_SCHEMA.items()), key=str)
        raise RawSwapsError(
            f"raw swaps of {day} have other columns than RAW_SWAPS_SCHEMA: {differing or 'their order'}"
        )
    if df.is_empty():
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    required = [name for name in df.columns if name not in NULLABLE_COLUMNS]
    position = pl.struct(SWAP_KEY)
    _refuse(df, day, pl.any_horizontal(pl.col(required).is_null()), f"a value missing in one of {required}")
    _refuse(
        df,
        day,
        ~pl.col("block_timestamp").is_between(start, start + timedelta(days=1), closed="left"),
        f"a block_timestamp outside the UTC day {day}",
    )
    _refuse(df, day, ~position.is_first_distinct(), "the same (block_number, log_index) twice")
    before, after = pl.col("block_number").shift(1), pl.col("block_number")
    unsorted = (after < before) | ((after == before) & (pl.col("log_index") < pl.col("log_index").shift(1)))
    _refuse(df, day, unsorted.fill_null(False), "rows that are not sorted by (block_number, log_index)")
    unsteady = pl.any_horizontal((pl.col("block_hash", "block_timestamp").n_unique() > 1).over("block_number"))
    _refuse(df, day, unsteady, "one block with two hashes or two timestamps")
    backwards = (pl.col("block_timestamp") < pl.col("block_timestamp").shift(1)).fill_null(False)
    _refuse(df, day, backwards, "a block older than the block before it")
    for name, pattern in _DECIMAL.items():
        _refuse(df, day, ~pl.col(name).str.contains(pattern), f"a {name} that is not a decimal integer")
    _refuse(df, day, pl.Series(contradicting_ticks(df)), "a tick that contradicts its sqrt_price_x96")


def contradicting_ticks(df: pl.DataFrame) -> np.ndarray:
    """Which rows have a tick that their square-root price cannot have, or an impossible price; bool [n].

    A swap that stops exactly on an initialised tick on its way down reports the tick below (``Pool.sol``), so both are
    right there.

    Args:
        df: With ``sqrt_price_x96`` (decimal strings) and ``tick``.
    """
    prices = np.array([int(value) for value in df["sqrt_price_x96"]], dtype=object)
    impossible = ((prices < MIN_SQRT_PRICE) | (prices >= MAX_SQRT_PRICE)).astype(bool)
    found = ticks_at_sqrt_prices(np.where(impossible, MIN_SQRT_PRICE, prices))
    given = df["tick"].to_numpy().astype(np.int64)
    wrong = impossible | (found != given)
    for row in np.flatnonzero(wrong & ~impossible & (found - 1 == given)):
        wrong[row] = prices[row] != sqrt_price_at_tick(int(found[row]))
    return wrong


def _refuse(df: pl.DataFrame, day: date, broken: pl.Expr | pl.Series, what: str) -> None:
    rows = df.filter(broken)
    if not rows.is_empty():
        first = rows.row(0, named=True)
        shown = {name: first[name] for name in ("block_number", "log_index", "block_timestamp", "transaction_hash")}
        raise RawSwapsError(f"raw swaps of {day} contain {what}: {rows.height} rows, the first is {shown}")


def _check_topics(topics: Sequence[Any]) -> None:
    if any(not isinstance(topic, list) or len(topic) != 3 for topic in topics):
        raise LogError("the node answered with a log that has not three topics; a Swap event has id and sender indexed")


def _check_logs(table: pl.DataFrame, pool: PoolSpec) -> None:
    rules = {
        f"comes from another contract than {pool.pool_manager}": pl.col("address") == pool.pool_manager.lower(),
        "is not a Swap event": pl.col("topic0") == SWAP_TOPIC,
        f"belongs to another pool than {pool.pool_id}": pl.col("topic1") == pool.pool_id.lower(),
        "was removed by a reorganisation": ~pl.col("removed"),
        "has no well-formed sender": pl.col("topic2").str.contains(r"^0x0{24}[0-9a-f]{40}$"),
        "does not carry six words of data": pl.col("data").str.contains(rf"^0x[0-9a-f]{{{_DATA_CHARACTERS - 2}}}$"),
        "has a malformed number or hash": pl.all_horizontal(
            pl.col("blockNumber", "transactionIndex", "logIndex").str.contains(r"^0x[0-9a-f]{1,15}$"),
            pl.col("blockTimestamp").is_null() | pl.col("blockTimestamp").str.contains(r"^0x[0-9a-f]{1,9}$"),
            pl.col("blockHash", "transactionHash").str.contains(r"^0x[0-9a-f]{64}$"),
        ),
    }
    for what, rule in rules.items():
        broken = table.filter(~rule.fill_null(False))
        if not broken.is_empty():
            where = broken.select("blockNumber", "logIndex").row(0)
            raise LogError(
                f"the node answered with {broken.height} logs that do not belong in the answer: the log at "
                f"(block, index) {where} {what}"
            )


def _hex_integer(name: str) -> pl.Expr:
    return pl.col(name).str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.Int64())


def _words(data: pl.Series) -> np.ndarray:
    # [n, 6, 32] bytes: one conversion for all logs, after the length of each has been checked.
    joined = bytes.fromhex("".join(data.str.slice(2).to_list()))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(data), _WORDS, _WORD_BYTES)


def _decimal_strings(words: np.ndarray, word: int, *, signed: bool) -> list[str]:
    # The only values that fit no column type of numpy: cut the words apart and let Python convert them.
    column = words[:, word].tobytes()
    cuts = range(0, len(column), _WORD_BYTES)
    return [str(int.from_bytes(column[cut : cut + _WORD_BYTES], "big", signed=signed)) for cut in cuts]


def _small_integer(words: np.ndarray, word: int, *, signed: bool) -> np.ndarray:
    # int24 and uint24 fill a whole word; everything above the last four bytes repeats the sign.
    values = np.ascontiguousarray(words[:, word, -4:]).view(">i4")[:, 0].astype(np.int32)
    lowest, highest = (-(1 << 23), (1 << 23) - 1) if signed else (0, (1 << 24) - 1)
    filling = np.where(values < 0, 0xFF, 0)[:, None]
    if (words[:, word, :-4] != filling).any() or (values < lowest).any() or (values > highest).any():
        raise LogError(f"word {word} of a Swap event does not hold a 24-bit integer")
    return values
